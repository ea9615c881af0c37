"""``hpe app``: a local page, served by Python's own server to this machine alone.

Who can ask: only pages of this server. It listens on 127.0.0.1, and refuses a request whose ``Host`` or ``Origin`` is
another name, so that neither another machine nor another page in the same browser reaches the network (DNS rebinding,
cross-site requests). The page's content security policy lets it load nothing from anywhere else.
"""

import base64
import io
import json
import os
import secrets
import sys
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from PIL import Image

from hpe.app.videos import VideoJob, one_line
from hpe.core.console import say
from hpe.core.errors import EXIT_OK, UserError
from hpe.core.labels import AXIS_COLOURS, DIRECTION_COLOURS, DIRECTIONS, EMOTION_COLOURS, EMOTIONS
from hpe.data.annotate import axis_ends
from hpe.data.detect import WAYS_TO_INSTALL, installed
from hpe.data.images import MAX_PIXELS, RGBImage, pixels_of
from hpe.data.video import PACKAGE
from hpe.data.video import installed as can_read_videos
from hpe.landmarks.model import model_folder
from hpe.predict.face_reader import FaceReader, load
from hpe.predict.faces import Face
from hpe.predict.given import pixels_of as pixels_of_image
from hpe.predict.options import AUTO, GIVEN
from hpe.predict.tracks import FaceTracks

HOST: Final = "127.0.0.1"
_LARGEST_IMAGE: Final = 64 << 20
_SHOWN_SIDE: Final = 1600
_QUALITY: Final = 90
_WAIT_SECONDS: Final = 30.0
"""A browser that sends nothing for so long is hung up on."""
_PIECE: Final = 1 << 20
_MOST_DRAINED: Final = 1 << 30
_LONGEST_GAP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """The options of ``hpe app``.

    Attributes:
        port: to listen on; 0: any that is free.
        faces: ``mtcnn``, ``hog``, ``given`` (each image is one face), or ``auto``: the detector that is installed.
        device, precision, which, weights, crop: as of :func:`hpe.load`.
        max_megapixels: larger images and videos are refused.
        max_megabytes: larger uploads of videos are refused.
    """

    port: int = 7860
    faces: str = AUTO
    device: str = "auto"
    precision: str | None = None
    which: str = "best"
    weights: Path | None = None
    crop: str | None = None
    max_megapixels: float = MAX_PIXELS / 1e6
    max_megabytes: int = 500


def app(network: Path, options: AppOptions) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: there is no such network, an option does not fit it, or the port is taken.
    """
    max_pixels = pixels_of(options.max_megapixels)
    if options.max_megabytes < 1:
        raise UserError(f"--max-megabytes {options.max_megabytes}: expected 1 or more")
    faces = _finder(network, options.faces)
    if options.crop is not None and faces is None:
        raise UserError(f"--crop {options.crop}: only with a face detector; given faces are not cropped")
    with TemporaryDirectory(prefix="hpe-app-") as folder:
        try:
            server = Server((HOST, options.port), Handler)
        except OSError as error:
            raise UserError(
                f"--port {options.port}: cannot be used ({(error.strerror or str(error)).lower()}); "
                "give another, or 0 for any that is free"
            ) from error
        with server:
            reader = load(
                network, faces=faces, device=options.device, precision=options.precision, which=options.which,
                weights=options.weights, crop=options.crop,
            )  # fmt: skip
            server.state = State(reader, Path(folder), max_pixels, options.max_megabytes * 1_000_000)
            say(f"app: http://{HOST}:{server.server_port} shows {reader.name}, on this machine only; Ctrl-C ends it")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                say("app: ended")
            finally:
                server.state.close()
    return EXIT_OK


def _finder(network: Path, faces: str) -> str | None:
    if faces == GIVEN or (faces == AUTO and model_folder(network) is not None):
        return None
    if faces != AUTO:
        return faces
    if found := installed():
        return found[0]
    ways = "; ".join(f"{name}: {way}" for name, way in WAYS_TO_INSTALL.items())
    say(f"app: no face detector is installed, so each image is to be one cropped face ({ways})")
    return None


@dataclass
class State:
    """What all requests share.

    Attributes:
        reader: the network; one photo or camera frame at a time uses it, beside a video's thread.
        folder: for videos.
        max_pixels: of an image.
        max_bytes: of a video.
    """

    reader: FaceReader
    folder: Path
    max_pixels: int
    max_bytes: int
    job: VideoJob | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    uploads: threading.Lock = field(default_factory=threading.Lock)
    camera: FaceTracks = field(default_factory=FaceTracks)
    seconds: float = 0.0

    def close(self) -> None:
        """End the video that is read."""
        if self.job is not None:
            self.job.stop()

    @cached_property
    def page(self) -> tuple[bytes, str]:
        """The page, and its content security policy."""
        nonce = secrets.token_urlsafe(16)
        about = {
            "name": self.reader.name,
            "given": self.reader.faces is None,
            "finder": self.reader.faces,
            "heads": self.reader.heads,
            "emotions": dict(zip(EMOTIONS, EMOTION_COLOURS, strict=True)),
            "directions": dict(zip(DIRECTIONS, DIRECTION_COLOURS, strict=True)),
            "axes": list(AXIS_COLOURS),
            "video": None if can_read_videos() else f"Videos need PyAV, which is not installed: {PACKAGE}",
            "most": self.max_bytes,
        }
        text = files("hpe.app").joinpath("page.html").read_text(encoding="utf-8")
        script = files("hpe.app").joinpath("page.js").read_text(encoding="utf-8")
        # Only "<" could end the script in the midst of the JSON; and names come from folders, which may be called
        # anything, so they are put in last.
        told = json.dumps(about).replace("<", "\\u003c")
        for mark, with_what in (("{{nonce}}", nonce), ("{{script}}", script), ("{{about}}", told)):
            text = text.replace(mark, with_what)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return text.encode(), policy

    def photo(self, data: bytes) -> dict[str, Any]:
        """The faces of an encoded image, and the upright image for the page."""
        picture = pixels_of_image(data, "this file", max_pixels=self.max_pixels)
        with self.lock:
            faces = self.reader.read(picture)
        scale = min(1.0, _SHOWN_SIDE / max(picture.shape[:2]))
        shown = Image.fromarray(picture)
        if scale < 1:
            shown = shown.resize((max(round(shown.width * scale), 1), max(round(shown.height * scale), 1)))
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=_QUALITY)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        told = [_told(face) for face in faces.faces]
        return _size(picture) | {
            "faces": told,
            "problem": faces.problem,
            "picture": f"data:image/jpeg;base64,{encoded}",
        }

    def frame(self, data: bytes, seconds: float) -> dict[str, Any]:
        """The faces of a camera's frame, smoothed over those before; an earlier time starts afresh."""
        picture = pixels_of_image(data, "this frame", max_pixels=self.max_pixels)
        with self.lock:
            faces = self.reader.read(picture)
            if not 0 < seconds - self.seconds < _LONGEST_GAP_SECONDS:
                self.camera = FaceTracks()
            self.seconds = seconds
            tracked = self.camera.next(faces.faces, seconds)
        return _size(picture) | {"faces": [_told(one.smooth, one.track) for one in tracked], "problem": faces.problem}

    def video(self, upload: Path) -> None:
        """Read an uploaded video in place of the one before."""
        self.close()
        out, table = self.folder / "annotated.mp4", self.folder / "predictions.jsonl"
        out.unlink(missing_ok=True)
        self.job = VideoJob(self.reader, upload, out, table, self.max_pixels)


def _size(picture: RGBImage) -> dict[str, int]:
    return {"width": picture.shape[1], "height": picture.shape[0]}


def _told(face: Face, track: int | None = None) -> dict[str, Any]:
    """A face as the page takes it."""
    x0, y0, x1, y1 = face.box
    axes = None
    if face.angles is not None:
        centre, length = ((x0 + x1) / 2, (y0 + y1) / 2), max(x1 - x0, y1 - y0) / 2
        axes = np.round(axis_ends(face.angles, centre, length), 1).tolist()
    return {
        "box": face.box,
        "track": track,
        "angles": face.angles,
        "axes": axes,
        "direction": face.direction,
        "emotion": face.emotion,
        "probabilities": face.probabilities,
        "affect": None if face.valence is None else (face.valence, face.arousal),
    }


class Server(ThreadingHTTPServer):
    """The server with what its requests share."""

    state: State

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is no error; anything else is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            say(f"app: {type(error).__name__}: {error}")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    _left = 0
    """Bytes of the upload that were not read yet."""
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hpe", ""
    timeout = _WAIT_SECONDS

    @property
    def _state(self) -> State:
        return self.server.state

    def do_GET(self) -> None:
        """The page, the state of the video, and its results."""
        if not self._allowed():
            return
        job = self._state.job
        match self.path:
            case "/":
                page, policy = self._state.page
                self._send(page, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
            case "/video" if job is not None:
                self._json(job.state())
            case "/video.mp4" if job is not None and job.out.is_file():
                self._file(job.out, "video/mp4")
            case "/predictions.jsonl" if job is not None and job.table.is_file():
                self._file(job.table, "application/jsonl")
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """An image, a camera's frame or a video to read."""
        length = self.headers.get("Content-Length", "")
        self._left = int(length) if length.isdecimal() else 0
        if not self._allowed():
            return
        path, _, query = self.path.partition("?")
        most = self._state.max_bytes if path == "/video" else _LARGEST_IMAGE
        if not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "an upload needs its length")
        elif not self._left:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, "empty file")
        elif self._left > most:
            found = f"{self._left / 1e6:,.1f} MB, more than the {most / 1e6:,.1f} MB allowed"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, found)
        else:
            self._answer(path, query)

    def _answer(self, path: str, query: str) -> None:
        try:
            match path:
                case "/photo":
                    self._json(self._state.photo(self._taken(self._left)))
                case "/frame":
                    self._json(self._state.frame(self._taken(self._left), float(query)))
                case "/video":
                    self._video()
                case _:
                    self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        except (UserError, ValueError) as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (TimeoutError, ConnectionError):
            self.close_connection = True
        except (OSError, MemoryError) as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, getattr(error, "strerror", None) or "out of memory")
        except RuntimeError as error:  # torch's, such as a GPU without room
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, one_line(error))

    def _taken(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the browser has gone")
        self._left -= size
        return data

    def _video(self) -> None:
        if not can_read_videos():
            raise UserError(f"videos are read by PyAV, which is not installed; {PACKAGE}")
        with self._state.uploads:
            upload = self._state.folder / f"upload-{secrets.token_hex(4)}"
            try:
                with upload.open("wb") as file:
                    while self._left:
                        file.write(self._taken(min(self._left, _PIECE)))
            except BaseException:
                upload.unlink(missing_ok=True)
                raise
            self._state.video(upload)
        self._json({})

    def _allowed(self) -> bool:
        """Whether this server's own page asks."""
        port = self.server.server_port
        hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin in {f"http://{host}" for host in hosts}):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "only the page of this server may ask")
        return False

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value, allow_nan=False).encode(), "application/json", {})

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        # A browser that still sends when the connection is closed reports a broken network, and not the reason.
        for _ in range(min(self._left, _MOST_DRAINED) // _PIECE + 1):
            if self._left:
                self._taken(min(self._left, _PIECE))
        self.close_connection = True
        self._send(json.dumps({"error": why}).encode(), "application/json", {}, status)

    def _file(self, path: Path, kind: str) -> None:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size  # a table of a video that is read now grows meanwhile
            self._head(kind, left, {}, HTTPStatus.OK)
            while left and (piece := file.read(min(left, _PIECE))):
                self.wfile.write(piece)
                left -= len(piece)

    def _send(self, data: bytes, kind: str, more: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(kind, len(data), more, status)
        self.wfile.write(data)

    def _head(self, kind: str, size: int, more: dict[str, str], status: HTTPStatus) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind, "Content-Length": str(size), "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        for name, value in (fixed | more).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a camera asks many times a second."""
