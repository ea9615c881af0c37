"""Videos and cameras: upright RGB frames with their times, one at a time; and an MP4 of annotated frames.

Both by PyAV, whose wheels carry FFmpeg (docs/video.md says why). Files are read with FFmpeg's own lists of allowed
containers and protocols, because a file named ``talk.mp4`` may be a playlist that names other files and addresses.
"""

import importlib.util
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from hpe.core.console import count_of, say
from hpe.core.devices import cores
from hpe.core.errors import UserError, redacted
from hpe.core.files import aside, leftovers
from hpe.data.images import MAX_PIXELS, RGBImage

VIDEOS: Final = frozenset((
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".m2ts", ".mts", ".3gp",
    ".ogv", ".mxf",
))  # fmt: skip
"""Suffixes of videos, in lower case."""
STDIN: Final = "-"
PACKAGE: Final = "pip install 'hpe[video]', or: pip install av"
WAIT_SECONDS: Final = 10.0
"""A camera or server that sends nothing for so long is given up."""
_ADDRESS: Final = re.compile(r"(rtsps?|https?|rtmps?|srt|udp|tcp)://", re.IGNORECASE)
_CONTAINERS: Final = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,nut,h264,hevc,ivf,av1,obu,mjpeg,"
    "yuv4mpegpipe"
)
_REMOTE_PROTOCOLS: Final = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,srt,crypto,httpproxy"
_CAMERAS: Final = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_USUAL_RATE: Final = 30.0
_HIGHEST_RATE: Final = 1000.0
_CLOCK: Final = 90_000
"""Ticks per second of a written video: the times of frames are kept to 11 µs, whatever their rate."""
_CODECS: Final = ("libx264", "libopenh264", "mpeg4")
_WRITING_THREADS: Final = 2
"""A fixed number: the bytes that x264 writes depend on it."""
_MOST_MISSING: Final = 0.5
"""Seconds that may be missing at the end of a video before it counts as cut off: containers round their length."""
_LEFT_SECONDS: Final = 3600.0
_LONGEST_PAUSE_SECONDS: Final = 36_000.0
"""A frame that is later than this after the one before has no usable time: it is damaged, and an MP4 cannot hold it."""
_MOST_BAD_PACKETS: Final = 1000
"""In a row, without a frame between them: then the rest of a file is not tried."""


def installed() -> bool:
    """Whether PyAV is there."""
    return importlib.util.find_spec("av") is not None


def is_address(text: str) -> bool:
    """Whether a text is an address of a video, such as ``rtsp://…``."""
    return _ADDRESS.match(text) is not None


def is_camera(text: str) -> bool:
    """Whether a text is the number of a camera, ``0`` or more, and no file's name."""
    return text.isascii() and text.isdecimal() and len(text) < 4 and not Path(text).exists()


def is_video(text: str) -> bool:
    """Whether a text names a video: a file by its suffix, an address, a camera, or ``-``."""
    named = Path(text).suffix.lower() in VIDEOS and not os.path.isdir(text)  # noqa: PTH112 (also of names too long)
    return named or text == STDIN or is_address(text) or is_camera(text)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        number: 0 for the first.
        seconds: after the first frame; each frame has a later time than the one before.
        picture: upright, with square pixels.
    """

    number: int
    seconds: float
    picture: RGBImage


class Video:
    """An open video, camera or stream; iterate over it once. :meth:`close` or ``with`` ends it.

    Args:
        source: a file, the number of a camera, an address, or ``-`` for the standard input.
        max_pixels: larger frames are refused before they are decoded.

    Attributes:
        name: for messages, without a password.
        live: whether it goes on until somebody ends it.
        width, height: of the first frame as it is shown.
        rate: frames per second, on average, as the container says it.
        frames: the number of frames as the container says it; None: it says nothing.
        seconds: how long it is, as the container says it; None: it says nothing.
        notes: what a user should know about it: other videos in the file, sound.
        damaged: frames and pieces that could not be decoded, or only in part.
        cut_off: why it ended early; None: it did not.
        retimed: frames without a usable time of their own.

    Raises:
        UserError: PyAV is missing, there is no such video, it cannot be opened, it is too large, or has no frame.
    """

    def __init__(self, source: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
        av = require()
        text = str(source)
        self.name = redacted(text)
        self.live = is_camera(text) or text.lower().startswith(("rtsp", "rtmp", "srt", "udp"))
        self.damaged = self.retimed = 0
        self.cut_off: str | None = None
        self._source, self._max_pixels = text, max_pixels
        self._offset: Fraction | float = 0.0
        self._errors: Any = av.error.FFmpegError
        self._container: Any = self._open(av)
        self._stream: Any = self._choose()
        self._last_end = 0.0
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            self.close()
            raise UserError(f"{self.name}: has no frame that can be read{self._damage()}; expected a video")
        self._first = first
        self.height, self.width = first.picture.shape[:2]

    def _open(self, av: Any) -> Any:
        source, options = self._source, {}
        what: dict[str, Any] = {"timeout": (WAIT_SECONDS, WAIT_SECONDS), "metadata_errors": "replace"}
        path: Any = source
        if is_camera(source):
            what["format"] = _CAMERAS.get(sys.platform, "v4l2")
            path = source if sys.platform == "darwin" else f"/dev/video{source}"
        elif is_address(source):
            options = {"protocol_whitelist": _REMOTE_PROTOCOLS, "rtsp_transport": "tcp"}
        elif source == STDIN:
            path, what["timeout"] = sys.stdin.buffer, None
            options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "pipe"}
        else:
            _refuse_no_file(Path(source))
            what["timeout"] = None
            path, options = _of_file(source)
        try:
            return av.open(path, "r", options=options, **what)
        except (self._errors, OSError, ValueError) as error:
            raise UserError(self._unopened(error)) from error

    def _unopened(self, error: Exception) -> str:
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, EOFError):
            return f"{self.name}: has no frame; expected a video"
        if is_camera(self._source):
            there = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*"))
            found = f"cameras of this machine: {', '.join(there)}" if there else "this machine has no camera"
            return f"camera {self._source}: cannot be opened ({why.lower()}); {found}"
        if is_address(self._source):
            return f"{self.name}: no video from this address ({why.lower()}); check the address, and that it is reached"
        return (
            f"{self.name}: cannot be read as a video ({why}); if a player shows it, `ffmpeg -i` with a new .mp4 mends "
            "the container"
        )

    def _choose(self) -> Any:
        container = self._container
        all_videos = [one for one in container.streams.video if not _is_picture(one)]
        if not all_videos:
            sound = " but sound" if container.streams.audio else ""
            self.close()
            raise UserError(f"{self.name}: has no video{sound}; expected a video")
        chosen = container.streams.best("video")
        chosen = chosen if chosen in all_videos else all_videos[0]
        context = chosen.codec_context
        if context is None:
            self.close()
            raise UserError(f"{self.name}: this FFmpeg has no decoder for its video")
        self._refuse_size(context.width, context.height)
        # A camera's frames would wait in the threads of whole frames; slices delay nothing.
        context.thread_type = "SLICE" if self.live else "AUTO"
        context.thread_count = min(cores(), 8)
        context.options = {"max_pixels": str(self._max_pixels)}
        rate = float(chosen.average_rate or chosen.guessed_rate or 0)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        self.seconds: float | None = None
        if not self.live and (chosen.duration or 0) > 0 and chosen.time_base:
            self.seconds = float(chosen.duration * chosen.time_base)
        elif not self.live and (container.duration or 0) > 0 and not container.streams.audio:
            self.seconds = container.duration / 1e6
        guessed = round((self.seconds or 0) * self.rate)
        self.frames: int | None = None if self.live else chosen.frames or guessed or None
        self.has_sound = bool(container.streams.audio) and not self.live
        self.notes = []
        if len(all_videos) > 1:
            self.notes.append(f"{self.name}: {len(all_videos)} videos in this file; number {chosen.index} is read")
        aspect = chosen.sample_aspect_ratio or context.sample_aspect_ratio
        self._aspect = float(aspect) if aspect and 1 / 8 < aspect < 8 else 1.0
        return chosen

    def _refuse_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            self.close()
            raise UserError(
                f"{self.name}: {width:,} × {height:,} pixels, more than the {self._max_pixels / 1e6:g} megapixels "
                "allowed; make the video smaller, or raise --max-megapixels"
            )

    def _damage(self) -> str:
        return f" ({self.cut_off})" if self.cut_off else f" ({self.damaged:,} damaged)" if self.damaged else ""

    def __iter__(self) -> Iterator[Frame]:
        yield self._first
        yield from self._frames

    def _decoded(self) -> Iterator[Frame]:
        number, start, last = 0, None, -math.inf
        for decoded in self._undamaged():
            given = None if decoded.time is None else float(decoded.time)
            if start is None:
                start, seconds = given or 0.0, 0.0
                self._offset = start
            else:
                seconds = math.nan if given is None else round(given - start, 6)
                # Broken files and restarted cameras give none, earlier ones, or one in a million years.
                if not last < seconds <= last + _LONGEST_PAUSE_SECONDS:
                    seconds, self.retimed = round(last + 1 / self.rate, 6), self.retimed + 1
            if decoded.is_corrupt:
                self.damaged += 1
            picture = self._picture(decoded)
            yield Frame(number, seconds, picture)
            number, last = number + 1, seconds
            length = decoded.duration and decoded.time_base and float(decoded.duration * decoded.time_base)
            self._last_end = seconds + (length or 1 / self.rate)
        self._judge_end()

    def _judge_end(self) -> None:
        """Was the video shorter than its container says?"""
        if self.live or self.cut_off is not None or self.seconds is None:
            return
        if self.seconds - self._last_end > max(_MOST_MISSING, 2 / self.rate):
            self.cut_off = f"ends after {self._last_end:.1f} s of {self.seconds:.1f} s"

    def _undamaged(self) -> Iterator[Any]:
        """Decoded frames; damaged packets are counted, and a read error is the end."""
        bad = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._errors as error:
                self.cut_off = f"cannot be read any further ({error.strerror or error})"
                return
            try:
                frames = packet.decode()
            except self._errors:
                self.damaged, bad = self.damaged + 1, bad + 1
                if bad >= _MOST_BAD_PACKETS:
                    self.cut_off = f"{bad:,} damaged pieces without a frame between them"
                    return
                continue
            bad = 0 if frames else bad
            yield from frames

    def _picture(self, decoded: Any) -> RGBImage:
        self._refuse_size(decoded.width, decoded.height)
        if self._aspect != 1.0:
            width = max(round(decoded.width * self._aspect), 1)
            self._refuse_size(width, decoded.height)
            decoded = decoded.reformat(width=width, height=decoded.height, format="rgb24")
        return np.ascontiguousarray(upright(decoded.to_ndarray(format="rgb24"), _display_matrix(decoded)))

    def problems(self) -> list[str]:
        """What of it could not be read, as messages; to be asked after the last frame."""
        found = []
        if self.damaged:
            found.append(f"{self.name}: {count_of(self.damaged, 'damaged frame')}")
        if self.cut_off is not None:
            found.append(f"{self.name}: {self.cut_off}")
        return found

    def close(self) -> None:
        """Close it; allowed twice."""
        with suppress(self._errors):
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def require() -> Any:
    """PyAV.

    Raises:
        UserError: it is not installed.
    """
    if not installed():
        raise UserError(f"videos are read by PyAV, which is not installed; {PACKAGE}")
    import av
    import av.logging

    # What FFmpeg prints goes between the lines of the progress; what matters of it comes as an error, too.
    av.logging.set_level(av.logging.PANIC)
    return av


def _refuse_no_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or 'cannot be read').lower()}; expected a video") from error
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise UserError(f"{path}: is not a regular file; expected a video")
    if stat.S_ISREG(mode) and not path.stat().st_size:
        raise UserError(f"{path}: empty file (0 bytes); expected a video")


def _of_file(source: str) -> tuple[str, dict[str, str]]:
    """How FFmpeg opens a file, and nothing but this file."""
    path = os.path.abspath(source)  # noqa: PTH100 (a name such as `concat:x` must not be read as a protocol)
    return path, {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


def _is_picture(stream: Any) -> bool:
    """Whether a stream is a cover or a preview, not a video."""
    shown = stream.disposition
    return bool(shown & (type(shown).attached_pic | type(shown).timed_thumbnails | type(shown).still_image))


def _display_matrix(decoded: Any) -> np.ndarray | None:
    found = decoded.side_data.get("DISPLAYMATRIX")
    return None if found is None else np.frombuffer(bytes(found), np.int32).reshape(3, 3)


def upright(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A picture as its display matrix shows it: turned by quarters, and mirrored.

    Args:
        matrix: as FFmpeg's ``libavutil/display.h`` describes it, or None: ``x' = ax + cy``, ``y' = bx + dy`` for
            ``((a, b, …), (c, d, …), …)``.
    """
    if matrix is None:
        return picture
    (a, b), (c, d) = np.sign(np.where(np.abs(matrix[:2, :2]) < np.abs(matrix[:2, :2]).max() / 2, 0, matrix[:2, :2]))
    if a and d and not b and not c:
        return picture[:: int(d), :: int(a)]
    if b and c and not a and not d:
        return picture.swapaxes(0, 1)[:: int(b), :: int(c)]
    return picture  # turned by another angle: players do not show such videos either


class VideoWriter:
    """Writes an MP4 (H.264) whose frames keep their times.

    Frames of another size than the first are scaled into it, on black. Odd sides lose their last row or column,
    because the format has colours for pairs of pixels.

    Args:
        path: file to write.
        size: width, height.
        rate: of the video, for players that ask for one.

    Raises:
        OSError: it cannot be written, also of the other methods.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        av = require()
        self._av, self._last = av, -1
        self.width, self.height = max(size[0] & ~1, 2), max(size[1] & ~1, 2)
        codec = next(name for name in _CODECS if name in av.codecs_available)
        with _as_os_errors(av, path):
            self._file = path.open("wb")  # through Python, which reports a full disk also when the file is closed
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
            self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            self._stream.codec_context.thread_count = _WRITING_THREADS
            if codec == "libx264":
                self._stream.options = {"preset": "veryfast", "crf": "21"}
            else:
                self._stream.bit_rate = int(self.width * self.height * min(rate, 60) / 8)
        self._path = path

    def write(self, picture: RGBImage, seconds: float) -> None:
        """Add a frame; its time is later than that of the one before."""
        height, width = picture.shape[:2]
        if (width & ~1, height & ~1) != (self.width, self.height):
            picture = _fitted(picture, self.width, self.height)
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(picture[: self.height, : self.width]), format="rgb24"
        )
        frame.pts = max(round(seconds * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._last = frame.pts
        with _as_os_errors(self._av, self._path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left; without a frame the file is no video."""
        try:
            with _as_os_errors(self._av, self._path):
                if self._last >= 0:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
        finally:
            self._file.close()


@contextmanager
def annotated(video: Video, out: Path) -> Iterator[Callable[[RGBImage, float], None]]:
    """A function that writes OUT from frames and their times; OUT is whole or absent, and has the video's sound.

    Raises:
        OSError: it cannot be written.
    """
    _remove_leftovers(out)
    with aside(out) as part, _beside(part) as silent:
        writer: VideoWriter | None = None

        def write(picture: RGBImage, seconds: float) -> None:
            nonlocal writer
            if writer is None:
                writer = VideoWriter(silent, (picture.shape[1], picture.shape[0]), video.rate)
            writer.write(picture, seconds)

        try:
            yield write
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                if writer is not None:
                    writer.close()
            raise
        if writer is not None:
            writer.close()
        problem = copy_sound(video, silent, part) if video.has_sound else ""
        if problem:
            say(f"{out}: without the sound, which cannot be copied ({problem})")
        if problem is not None:
            silent.replace(part)


@contextmanager
def _beside(part: Path) -> Iterator[Path]:
    """A second temporary file, whose name :func:`hpe.core.files.leftovers` knows, too."""
    silent = part.with_name(f"{part.name.removesuffix('.part')}-silent.part")
    try:
        yield silent
    finally:
        silent.unlink(missing_ok=True)


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed process left; another that writes the same file now has just written to its own."""
    for part in leftovers(out):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _LEFT_SECONDS:
                part.unlink()


def _fitted(picture: RGBImage, width: int, height: int) -> RGBImage:
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.pad(Image.fromarray(picture), (width, height), color="black"))


@contextmanager
def _as_os_errors(av: Any, path: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


def copy_sound(video: Video, silent: Path, out: Path) -> str | None:
    """Write OUT: the frames of a silent MP4, and the sound of the video that it was made of, both unchanged.

    Returns:
        None, or why the sound cannot be copied; then OUT is not written, or must not be used.

    Raises:
        OSError: it cannot be written.
    """
    av = require()
    # A pipe or an address is read once: to open it again would wait for ever, or get another part of it.
    if video._source == STDIN or is_address(video._source) or not Path(video._source).is_file():
        return "it is not a file, which could be read again"
    path, options = _of_file(video._source)
    with ExitStack() as stack:
        try:
            sound = stack.enter_context(av.open(path, "r", options=options, metadata_errors="replace"))
            heard = sound.streams.best("audio") or sound.streams.audio[0]
            seen = stack.enter_context(av.open(str(silent), "r"))
            file = stack.enter_context(out.open("wb"))
            made = stack.enter_context(closing(av.open(file, "w", format="mp4")))
            shown, spoken = made.add_stream_from_template(seen.streams.video[0]), made.add_stream_from_template(heard)
            made.start_encoding()
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            return str(getattr(error, "strerror", None) or error)
        offset = round(float(video._offset) / heard.time_base)
        pictures = _packets(av, seen, seen.streams.video[0], shown, 0)
        sounds = _packets(av, sound, heard, spoken, offset)
        with _as_os_errors(av, out):
            for _, packet in merge(pictures, sounds, key=lambda pair: pair[0]):
                made.mux_one(packet)
    return None


def _packets(av: Any, container: Any, stream: Any, target: Any, offset: int) -> Iterator[tuple[float, Any]]:
    """A stream's packets with their times, for another container; damage is the end."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        if packet.dts is None or packet.pts is None or packet.pts < offset:  # the end, or before the first frame
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        packet.stream = target
        yield float(packet.dts * stream.time_base), packet
