"""``hpe predict`` on videos and cameras: faces followed over the frames, raw and smoothed values, the video annotated.

The table has one row per face and frame. Its columns:

- ``source``: the video; ``frame``: 0 for the first; ``seconds`` after the first frame; ``track``: the face's number in
  this video; ``face``: 0 for the largest face of the frame;
- the columns of ``hpe predict`` (:mod:`hpe.predict.read_faces`) from ``x0`` on, for this frame alone;
- with ``_smooth`` at the end of their names, the same smoothed over the track (:mod:`hpe.predict.tracks`):
  ``emotion_smooth``, ``emotion_neutral_smooth`` …, ``direction_smooth`` …, ``yaw_smooth``, ``pitch_smooth``,
  ``roll_smooth``, ``valence_smooth``, ``arousal_smooth``.

Frames without a face give no row; ``skipped.jsonl`` lists them by stretches, and what could not be read.
"""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals as Signal
from typing import IO, Final

import numpy as np
from PIL import Image

from hpe.core.console import count_of, say
from hpe.core.devices import cores
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError, redacted
from hpe.core.files import aside, make_folder, resolved
from hpe.core.progress import progress
from hpe.core.signals import Signals, signals
from hpe.data.annotate import Marker
from hpe.data.detect import DETECTORS, WAYS_TO_INSTALL, installed
from hpe.data.images import RGBImage, pixels_of
from hpe.data.prefetch import ahead
from hpe.data.video import STDIN, Frame, Video, annotated, is_address, is_camera
from hpe.landmarks.model import model_folder
from hpe.predict.face_reader import FaceReader, load
from hpe.predict.faces import MARKERS, Row, columns, drawn, tell_without_axes
from hpe.predict.inputs import printable, safe_place
from hpe.predict.options import AUTO, GIVEN, PredictOptions
from hpe.predict.output import DRAWN, format_of, open_table, table_in, written
from hpe.predict.tracks import FaceTracks, TrackedFace

SKIPPED: Final = "skipped.jsonl"
_ABOUT: Final = {"source": str, "frame": int, "seconds": np.float64, "track": int, "face": int}
_RAW_ONLY: Final = ("x0", "y0", "x1", "y1", "score", "yaw_sd", "pitch_sd", "roll_sd")
_SMOOTH: Final = "_smooth"
_FINER: Final = 2
"""Of the drawing: half of that of images. Drawing takes longer than reading the face."""
_NO_FACE: Final = "no face found"


def read_videos(network: Path, sources: Sequence[str], options: PredictOptions) -> int:
    """Read the faces of videos, one video after another.

    Args:
        network: run folder, head-pose estimator, or folder of a landmark model.
        sources: see :class:`hpe.data.video.Video`.

    Returns:
        The exit code: 1 if something of a video could not be read; ``skipped.jsonl`` and a message say what.

    Raises:
        UserError: there is no such network, the only video cannot be opened, or two options exclude each other.
    """
    form, marker = format_of(options.form), _marker(options)
    if options.crop is not None and options.faces == GIVEN:
        raise UserError(f"--crop {options.crop}: only with a face detector; given faces are not cropped")
    if not options.steady > 0:
        raise UserError(f"--steady {options.steady:g}: expected a number above 0; inf smooths nothing")
    if options.split is not None or options.views.centre != 1.0 or options.batch != PredictOptions().batch:
        raise UserError("--split, --centre and --batch are not for videos; leave them out")
    max_pixels = pixels_of(options.max_megapixels)
    places = _places(sources)
    if options.out is not None and marker is not None:
        for source, place in zip(sources, places, strict=True):
            if resolved(options.out / DRAWN / place) == resolved(Path(source)):
                raise UserError(f"--out {options.out}: its {DRAWN}/{place} is the input; choose another folder")
    with ExitStack() as stack:
        # Before the network, which takes seconds: a wrong name is a message at once.
        first = stack.enter_context(Video(sources[0], max_pixels=max_pixels)) if len(sources) == 1 else None
        reader = load(
            network, faces=_finder(network, options), device=options.device, precision=options.precision,
            crop=options.crop, flips=options.views.flips, which=options.which, weights=options.weights,
        )  # fmt: skip
        results = _open_results(stack, options, form, marker, reader)
        for source, place in zip(sources, places, strict=True):
            try:
                video = first or stack.enter_context(closing(Video(source, max_pixels=max_pixels)))
            except UserError as error:
                results.skip(source, str(error), unread=True)
                continue
            _read(video, place, reader, options.steady, results)
            video.close()
    results.summarise(written(options.out, form, drawn=marker is not None))
    return EXIT_INCOMPLETE if results.unread else EXIT_OK


def _marker(options: PredictOptions) -> Marker | None:
    if options.draw == AUTO:
        return None if options.out is None else MARKERS["axes"]
    if options.draw == "none":
        return None
    if options.draw not in MARKERS:
        raise UserError(f"--draw {options.draw}: expected none, {', '.join(MARKERS)}")
    if options.out is None:
        raise UserError(f"--draw {options.draw}: needs a folder for the annotated video; choose one with --out")
    return MARKERS[options.draw]


def _finder(network: Path, options: PredictOptions) -> str | None:
    """What finds the faces, as :func:`hpe.predict.face_reader.load` takes it."""
    if options.faces == GIVEN or (options.faces == AUTO and model_folder(network) is not None):
        return None
    if options.faces != AUTO:
        return options.faces
    if found := installed():
        say(f"predict: {found[0]} finds the faces (--faces {GIVEN}: each frame is one face)")
        return found[0]
    ways = "; ".join(f"{name}: {WAYS_TO_INSTALL[name]}" for name in DETECTORS)
    raise UserError(
        f"--faces: no face detector is installed ({ways}); for a video of one cropped face use --faces {GIVEN}"
    )


def _places(sources: Sequence[str]) -> list[str]:
    """The name of each annotated video, all different."""
    taken: set[str] = set()
    places = []
    for source in sources:
        if is_camera(source):
            name = f"camera{source}"
        elif source == STDIN:
            name = "stdin"
        else:
            name = Path(redacted(source).rstrip("/")).stem if is_address(source) else Path(source).stem
        name = safe_place(name.replace("/", "_")) or "video"
        count = 1
        while (place := f"{name}{'' if count == 1 else f'-{count}'}.mp4").lower() in taken:
            count += 1
        taken.add(place.lower())
        places.append(place)
    return places


def _columns(heads: Sequence[str]) -> dict[str, type]:
    read = {name: kind for name, kind in columns(heads).items() if name not in ("source", "key", "face")}
    smooth = {f"{name}{_SMOOTH}": kind for name, kind in read.items() if name not in _RAW_ONLY}
    return _ABOUT | read | smooth


def _row(source: str, frame: Frame, number: int, one: TrackedFace) -> Row:
    about = (source, frame.number, frame.seconds, one.track, number)
    smooth = {f"{name}{_SMOOTH}": value for name, value in one.smooth.to_dict().items() if name not in _RAW_ONLY}
    return dict(zip(_ABOUT, about, strict=True)) | one.raw.to_dict() | smooth


@dataclass
class _Results:
    """Where the results go, and what was left out."""

    write: Callable[[Sequence[Row]], None]
    marker: Marker | None
    drawn: Path | None
    file: IO[str] | None
    unread: int = 0
    skipped: int = 0
    videos: int = 0
    frames: int = 0
    without: int = 0
    faces: int = 0
    nan: int = 0

    def skip(self, source: str, reason: str, *, unread: bool = False) -> None:
        """Name something that gives no row."""
        self.unread += unread
        self.skipped += 1
        if self.file is not None:
            entry = {"source": printable(redacted(source)), "key": "", "reason": reason}
            print(json.dumps(entry, ensure_ascii=False), file=self.file)
        if unread:
            say(f"predict: {reason}")

    def summarise(self, files: Sequence[Path]) -> None:
        """Print the last line.

        Args:
            files: that were written; see :func:`hpe.predict.output.written`.
        """
        text = (
            f"predict: {count_of(self.faces, 'face')} in {count_of(self.frames, 'frame')} of "
            f"{count_of(self.videos, 'video')}; {self.without:,} frames without a face"
        )
        if self.unread:
            text += f"; {count_of(self.unread, 'problem')} with reading"
        if files and self.skipped:
            text += f"; {files[0].parent / SKIPPED} lists each"
        if files:
            text += f"; written to {' and '.join(map(str, files))}"
        say(text)
        if self.nan:
            say(
                f"predict: WARNING: for {self.nan:,} faces the network gave NaN; its weights are damaged or overflow: "
                "try another --which"
            )


def _open_results(
    stack: ExitStack, options: PredictOptions, form: str, marker: Marker | None, reader: FaceReader
) -> _Results:
    table = file = None
    if options.out is not None:
        make_folder(options.out, f"--out {options.out}")
        table = table_in(options.out, form)
        part = stack.enter_context(aside(options.out / SKIPPED))
        file = stack.enter_context(part.open("w", encoding="utf-8"))
        if marker is not None:
            tell_without_axes(reader.heads)
            make_folder(options.out / DRAWN, f"--out {options.out}")
    write = stack.enter_context(open_table(table, format_of(form), _columns(reader.heads)))
    folder = None if options.out is None else options.out / DRAWN
    return _Results(write, marker, folder, file)


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """A frame whose faces were read.

    Attributes:
        drawn: the frame with its smoothed faces drawn on it, RGB; None: not asked for.
    """

    frame: Frame
    faces: tuple[TrackedFace, ...]
    drawn: RGBImage | None = None

    def rows(self, source: str) -> list[Row]:
        """The rows of the table."""
        return [_row(source, self.frame, number, face) for number, face in enumerate(self.faces)]

    def marked(self, marker: Marker) -> "SeenFrame":
        """The same with the frame drawn."""
        faces, labels = [face.smooth for face in self.faces], [f"#{face.track}" for face in self.faces]
        return replace(
            self,
            drawn=np.asarray(
                drawn(Image.fromarray(self.frame.picture), faces, marker, labels, finer=_FINER, widen=False)
            ),
        )


@contextmanager
def seen(
    video: Video, reader: FaceReader, tracks: FaceTracks, marker: Marker | None, stop: Signals | None = None
) -> Iterator[Iterator[SeenFrame]]:
    """Every frame of a video in order; threads decode, find faces and draw ahead.

    Args:
        video: not yet iterated.
        reader: finds and reads the faces.
        tracks: of this video alone.
        marker: draws on the frames; None: nothing is drawn.
        stop: ends a camera.
    """

    def finished(one: SeenFrame) -> SeenFrame:
        return one if marker is None else one.marked(marker)

    with (
        closing(_followed(video, reader, tracks, stop)) as frames,
        ahead(finished, frames, threads=cores(), depth=4 * cores()) as done,
    ):
        yield done


def _followed(
    video: Video, reader: FaceReader, tracks: FaceTracks, stop: Signals | None
) -> Generator[SeenFrame, None, None]:
    waiting: deque[Frame] = deque()

    def pictures() -> Iterator[RGBImage]:
        for frame in video:
            # Not before the first frame: without one there is no video.
            if stop is not None and stop.received and frame.number:
                return
            waiting.append(frame)
            yield frame.picture

    # A camera's frames are answered one by one, as they come: together they would be seconds late.
    for faces in map(reader.read, pictures()) if video.live else reader.each(pictures()):
        frame = waiting.popleft()
        yield SeenFrame(frame, tuple(tracks.next(faces.faces, frame.seconds)))


def _read(video: Video, place: str, reader: FaceReader, hertz: float, results: _Results) -> None:
    """Read one video: its rows into the table, its annotated frames into a file of their own."""
    for note in video.notes:
        say(f"predict: {note}")
    tracks, source, gaps = FaceTracks(hertz), printable(video.name), _Gaps()
    frames = with_face = 0
    with ExitStack() as stack:
        stop = stack.enter_context(signals()) if video.live else None
        bar = stack.enter_context(progress(f"predict {video.name}", video.frames, unit="frames"))
        write = None
        if results.drawn is not None and results.marker is not None:
            write = stack.enter_context(annotated(video, results.drawn / place))
        for one in stack.enter_context(seen(video, reader, tracks, results.marker, stop)):
            results.write(one.rows(source))
            if write is not None and one.drawn is not None:
                write(one.drawn, one.frame.seconds)
            results.nan += sum(face.raw.unanswered for face in one.faces)
            results.faces += len(one.faces)
            frames, with_face = frames + 1, with_face + bool(one.faces)
            gaps.see(one.frame, bool(one.faces))
            bar.advance()
    if stop is not None and stop.number is not None:
        say(f"predict: {video.name}: ended by {Signal(stop.number).name}; everything until then is kept")
    for gap in gaps.found():
        results.skip(video.name, gap)
    for problem in video.problems():
        results.skip(video.name, problem, unread=True)
    if video.retimed:
        results.skip(video.name, f"{video.name}: {count_of(video.retimed, 'frame')} without a time of its own")
    results.videos, results.frames = results.videos + 1, results.frames + frames
    results.without += frames - with_face
    followed = count_of(tracks.count, "track")
    say(f"predict: {video.name}: {count_of(frames, 'frame')}, {with_face:,} with a face, {followed}")


class _Gaps:
    """Stretches of frames without a face."""

    def __init__(self) -> None:
        self._stretches: list[list[tuple[int, float]]] = []
        self._open = False

    def see(self, frame: Frame, has_face: bool) -> None:
        """The next frame."""
        at = (frame.number, frame.seconds)
        if not has_face and self._open:
            self._stretches[-1][1] = at
        elif not has_face:
            self._stretches.append([at, at])
        self._open = not has_face

    def found(self) -> Iterator[str]:
        """A line for each."""
        for (first, start), (last, end) in self._stretches:
            yield f"{_NO_FACE} in frames {first:,} to {last:,} ({start:.2f} to {end:.2f} s)"
