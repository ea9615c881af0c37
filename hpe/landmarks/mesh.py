"""The face mesh: MediaPipe 0.10.21 in its own interpreter, asked over a pipe, several views merged.

0.10.21 is the last MediaPipe whose models lie in the package; it needs protobuf < 7, which our other packages
do not. So it gets its own environment (``hpe landmarks install``), and nothing else changes.
"""

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, Literal

import numpy as np
from jaxtyping import Float

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.data.crops import Box
from hpe.data.detect import WAYS_TO_INSTALL, installed, open_detector
from hpe.data.images import RGBImage
from hpe.landmarks.topology import MESH468

VERSION: Final = "mediapipe 0.10.21"
PACKAGES: Final = (
    "numpy>=1.26,<3", "protobuf>=4.25.3,<5", "opencv-python-headless>=4.10,<5", "absl-py>=2,<3", "attrs>=24",
    "flatbuffers>=24", "matplotlib>=3.9,<4",
)  # fmt: skip
"""What the mesh imports; 0.10.21 also requires jax, sounddevice and sentencepiece, which the mesh does not use."""
Which = Literal["largest", "centre", "all"]
WHICH: Final[tuple[Which, ...]] = ("largest", "centre", "all")
VIEWS: Final = {"plain": 1, "mirror": 2, "many": 7}
"""Number of views by name: the picture; and its mirror image; and five turned or resized crops around the face."""
MOST_FACES: Final = 16
_LARGEST_SIDE: Final = 2048
_TRIED_PIXELS: Final = 64
_CROP_FACTORS: Final = (2.0, 1.5, 3.0)
"""Sides of the squares around a detected face in which the mesh looks for it, one after the other."""
_WORKER: Final = Path(__file__).with_name("mesh_worker.py")


def environment() -> Path:
    """Where ``hpe landmarks install`` puts the environment."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hpe" / "face-mesh-0.10.21"


def install(folder: Path) -> Path:
    """Make the environment (about 450 MB, packages from the registry) and return its interpreter.

    Raises:
        UserError: it could not be made.
    """
    python = folder / "bin" / "python"
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    commands = (
        (sys.executable, "-m", "venv", str(folder)),
        (*pip, "--no-deps", VERSION.replace(" ", "==")),
        (*pip, *PACKAGES),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{folder}: `{' '.join(command)}` failed: {done.stderr.strip()[-600:]}")
    return python


def interpreter(given: Path | None = None) -> Path:
    """The interpreter that has the mesh: the given one, that of ``HPE_FACE_MESH_PYTHON``, or the installed one.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get("HPE_FACE_MESH_PYTHON")
    python = given or (Path(named) if named else environment() / "bin" / "python")
    if not python.is_file():
        raise UserError(
            f"{python}: not found; expected a Python interpreter with {VERSION}; run `hpe landmarks install`, "
            "or name another with --python or HPE_FACE_MESH_PYTHON"
        )
    return python


def named_model() -> Path | None:
    """The model file that ``HPE_FACE_MESH_MODEL`` names; None: the package's own.

    Raises:
        UserError: there is no such file, or it is not a TensorFlow Lite model.
    """
    name = os.environ.get("HPE_FACE_MESH_MODEL")
    if not name:
        return None
    path = Path(name)
    if not path.is_file() or path.read_bytes()[4:8] != b"TFL3":
        raise UserError(
            f"HPE_FACE_MESH_MODEL={name}: no such file, or not a .tflite model; expected a mesh of 468 points"
        )
    return path


@dataclass(frozen=True)
class MeshFace:
    """One face.

    Attributes:
        points: picture axes (x right, y down, z towards the viewer), pixels; the mean of the views.
        views: how many views found it.
        spread: root mean square of the views' difference from their mean, as a fraction of the face's size.
    """

    points: Float[np.ndarray, "468 3"]
    views: int
    spread: float

    @property
    def box(self) -> Box:
        """Around the points: x0, y0, x1, y1, pixels."""
        (x0, y0), (x1, y1) = self.points[:, :2].min(0).tolist(), self.points[:, :2].max(0).tolist()
        return x0, y0, x1, y1


class FaceMesh:
    """A running worker; :meth:`close` ends it. Not safe for several threads: see :class:`MeshPool`.

    Args:
        python: from :func:`interpreter`.
        views: 1, 2 or 7, of a face (``VIEWS``).
        model: a .tflite file in place of the package's ``face_landmark.tflite``.

    Raises:
        UserError: the interpreter does not run.
    """

    def __init__(self, python: Path, views: int, model: Path | None = None) -> None:
        self._views = views
        self._command = (str(python), "-u", str(_WORKER), *([str(model)] if model else []))
        # This process makes and removes the folder of links: a worker that crashes would leave its own behind.
        self._links = TemporaryDirectory(prefix="hpe-mesh-", ignore_cleanup_errors=True) if model else None
        command = (*self._command, self._links.name) if self._links else self._command
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            if self._links:
                self._links.cleanup()
            raise UserError(
                f"{python}: cannot be run ({error.strerror}); expected an interpreter with {VERSION}, "
                "such as the one of `hpe landmarks install`"
            ) from error

    def close(self) -> None:
        """End the worker."""
        asking, answering = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            asking.close()
        self._process.wait()
        answering.close()
        if self._links:
            self._links.cleanup()

    def find(self, picture: RGBImage) -> list[MeshFace]:
        """All faces of an RGB picture.

        Raises:
            UserError: the worker died.
        """
        # Every step-th pixel of a large picture is enough for the detector, and keeps width and height in 16 bits.
        step = -(-max(picture.shape[:2]) // _LARGEST_SIDE)
        small = np.ascontiguousarray(picture[::step, ::step])
        height, width = small.shape[:2]
        asking, _ = self._pipes()
        try:
            asking.write(struct.pack("<HHBB", width, height, MOST_FACES, self._views))
            asking.write(small.tobytes())
            asking.flush()
            return [self._mesh(step) for _ in range(self._read(1)[0])]
        except (BrokenPipeError, EOFError) as error:
            raise UserError(
                f"{self._command[0]}: the face mesh ended with code {self._process.wait()}; run "
                f"`{' '.join(self._command)} < /dev/null` to see why, or run `hpe landmarks install` again "
                "(if HPE_FACE_MESH_MODEL is set, check that its file is complete)"
            ) from error

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _read(self, count: int) -> bytes:
        data = self._pipes()[1].read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _mesh(self, step: int) -> MeshFace:
        views = self._read(1)[0]
        raw = np.frombuffer(self._read(views * MESH468.count * 12), np.float32)
        return merged(raw.reshape(views, MESH468.count, 3).astype(float) * step)


def group_detector() -> str | None:
    """The detector that finds the faces of a group for the mesh; None, with a warning, where none is installed.

    The mesh looks for large faces near the camera: of eight clear faces of a group photo it found two by itself.
    """
    for name in installed():
        return name
    ways = "; or ".join(f"{name}: {way}" for name, way in WAYS_TO_INSTALL.items())
    say(
        "hpe: WARNING: --faces all: no face detector is installed, and the mesh alone misses the small faces of a "
        f"group; install {ways}"
    )
    return None


class MeshPool:
    """As many workers as threads call :meth:`find` at a time; :meth:`close` ends them once no thread does.

    Of all faces, an installed detector finds them first, and the mesh looks at each; faces that only the mesh finds
    are kept too.

    Args:
        python: from :func:`interpreter`.
        views: ``plain``, ``mirror`` or ``many``.
        which: of several faces the ``largest``, the nearest to the ``centre``, or ``all``, the largest first.
        model: as of :class:`FaceMesh`; by default the file that ``HPE_FACE_MESH_MODEL`` names, if any.
        detector: the name of the one that finds all faces first (:func:`group_detector`); None: the mesh alone does.

    Attributes:
        without_points: how many faces the detector found in which the mesh found no points.

    Raises:
        UserError: no such views, or the mesh does not run: the first worker starts here, and is tried.
    """

    def __init__(
        self,
        python: Path,
        views: str,
        which: Which = "largest",
        model: Path | None = None,
        detector: str | None = None,
    ) -> None:
        if views not in VIEWS:
            raise UserError(f"views {views!r}: expected one of {', '.join(VIEWS)}")
        self._which: Which = which
        self._start = partial(FaceMesh, python, VIEWS[views], model or named_model())
        self._idle: queue.SimpleQueue[FaceMesh] = queue.SimpleQueue()
        self.detector: str | None = None
        self.without_points = 0
        self._own, self._counting = threading.local(), threading.Lock()
        self.find(np.zeros((_TRIED_PIXELS, _TRIED_PIXELS, 3), np.uint8))
        self.detector = detector  # only now: the trial is not one of the pictures that are counted

    def find(self, picture: RGBImage) -> list[MeshFace]:
        """The faces of an RGB picture that ``which`` asks for.

        Raises:
            UserError: a worker did not start, or died.
        """
        try:
            mesh = self._idle.get_nowait()
        except queue.Empty:
            mesh = self._start()
        try:
            found = mesh.find(picture)
            if self.detector is not None:
                found = self._with_detected(mesh, picture, found)
        except UserError:
            mesh.close()
            raise
        self._idle.put(mesh)
        return chosen(found, self._which, (picture.shape[1], picture.shape[0]))

    def _with_detected(self, mesh: FaceMesh, picture: RGBImage, own: list[MeshFace]) -> list[MeshFace]:
        """The faces that the detector finds, with the mesh's points, and those that only the mesh found."""
        if not hasattr(self._own, "detector"):  # a detector is not safe for several threads
            assert self.detector is not None
            self._own.detector = open_detector(self.detector)
        found: list[MeshFace] = []
        for box, _ in self._own.detector.detect([picture])[0]:
            face = next(filter(None, (_in_crop(mesh, picture, box, factor) for factor in _CROP_FACTORS)), None)
            if face is None:
                if not any(_is_at(one, box) for one in own):
                    with self._counting:
                        self.without_points += 1
            elif not any(_is_at(one, face.box) for one in found):
                found.append(face)
        return found + [one for one in own if not any(_is_at(face, one.box) for face in found)]

    def close(self) -> None:
        """End the workers."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


def _in_crop(mesh: FaceMesh, picture: RGBImage, box: Box, factor: float) -> MeshFace | None:
    """The face in a box of the picture, as the mesh finds it in a square so many times as large as the box."""
    side = factor * max(box[2] - box[0], box[3] - box[1])
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    x, y = max(round(middle_x - side / 2), 0), max(round(middle_y - side / 2), 0)
    cut = picture[y : round(middle_y + side / 2), x : round(middle_x + side / 2)]
    if not cut.size:
        return None
    faces = [replace(face, points=face.points + np.array((x, y, 0.0))) for face in mesh.find(cut)]
    return next((face for face in sorted(faces, key=_area, reverse=True) if _is_at(face, box)), None)


def _is_at(face: MeshFace, box: Box) -> bool:
    """Whether a face's centre lies in the inner half of a box, or the box's centre in the inner half of the face's."""
    for one, other in ((face.box, box), (box, face.box)):
        x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
        across, down = other[2] - other[0], other[3] - other[1]
        if abs(x - (other[0] + other[2]) / 2) <= across / 4 and abs(y - (other[1] + other[3]) / 2) <= down / 4:
            return True
    return False


def merged(views: Float[np.ndarray, "views 468 3"]) -> MeshFace:
    """One face from its views (the second mirrored, in the mirror's order; NaN where a view found none).

    MediaPipe gives z away from the viewer, with another origin in each view; here it is negated and centred.
    """
    views = views.copy()
    if len(views) > 1:
        views[1] = views[1, MESH468.mirror]
    seen = views[np.isfinite(views).all((1, 2))] * (1.0, 1.0, -1.0)
    seen[..., 2] -= seen[..., 2].mean(1, keepdims=True)
    points = seen.mean(0)
    size = max(float(np.ptp(points[:, :2], axis=0).max()), 1e-9)
    return MeshFace(points, len(seen), float(np.sqrt(np.square(seen - points).sum(2).mean())) / size)


def chosen(faces: list[MeshFace], which: Which, size: tuple[int, int]) -> list[MeshFace]:
    """The faces that ``which`` asks for, of a picture of (width, height)."""
    if which == "all":
        return sorted(faces, key=_area, reverse=True)
    if not faces:
        return []
    middle = np.asarray(size) / 2
    if which == "centre":
        return [min(faces, key=lambda face: float(np.linalg.norm(face.points[:, :2].mean(0) - middle)))]
    return [max(faces, key=_area)]


def _area(face: MeshFace) -> float:
    return float(np.ptp(face.points[:, :2], axis=0).prod())
