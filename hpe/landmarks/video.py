"""Heads in a video: their rotations smoothed over the frames, and the frames with axes.

Averaging Euler angles is wrong near ±180° and near ±90° of yaw; here every step is a part of the shortest rotation
from the last smoothed one to the new one. The cutoff is that of the One Euro filter (Casiez, Roussel, Vogel, 2012):
little lag when the head turns fast, little trembling when it is still.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from hpe.core.distributed import cores
from hpe.core.errors import UserError
from hpe.core.files import make_folder
from hpe.core.progress import progress
from hpe.data.images import RGBImage
from hpe.data.prefetch import ahead
from hpe.landmarks.align import angles_of, rotations_of
from hpe.landmarks.draw import with_axes
from hpe.landmarks.estimator import LandmarkEstimator, PosedFace
from hpe.landmarks.mesh import Which

VIDEOS: Final = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
LONGEST_GAP_SECONDS: Final = 0.5
"""After a longer gap without the face, its filter starts again."""
_CODECS: Final = {".mp4": "mp4v", ".avi": "MJPG"}
_USUAL_RATE: Final = 30.0
_SPEED_FACTOR: Final = 0.02
_SPEED_HERTZ: Final = 1.0


@dataclass
class SmoothedRotation:
    """A One Euro filter on rotations, for one face.

    Attributes:
        slowest_hertz: cutoff for a still head: lower trembles less; ``inf`` smooths nothing.
        speed_factor: hertz added to the cutoff per degree per second: higher lags less.
        speed_hertz: cutoff for smoothing the speed itself.
    """

    slowest_hertz: float = 1.0
    speed_factor: float = _SPEED_FACTOR
    speed_hertz: float = _SPEED_HERTZ
    _rotation: Rotation | None = field(default=None, init=False, repr=False)
    _velocity: Float[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3), init=False, repr=False)
    _seconds: float = field(default=0.0, init=False, repr=False)

    def next(self, angles: Float[np.ndarray, "3"], seconds: float) -> Float[np.ndarray, "3"]:
        """The smoothed yaw, pitch, roll (degrees) at a time; NaN angles (no face) stay NaN and change nothing.

        Raises:
            ValueError: the time is not after the last one.
        """
        angles = np.asarray(angles, float)
        if not np.isfinite(angles).all():
            return np.full(3, np.nan)
        seen = Rotation.from_matrix(rotations_of(angles[None])[0])
        gap = seconds - self._seconds
        if self._rotation is None or gap > LONGEST_GAP_SECONDS:
            self._rotation, self._velocity, self._seconds = seen, np.zeros(3), seconds
            return angles_of(seen.as_matrix()[None])[0]
        if gap <= 0:
            raise ValueError(f"a frame at {seconds} s after one at {self._seconds} s: times must increase")
        step = (seen * self._rotation.inv()).as_rotvec(degrees=True)
        self._velocity += _share(self.speed_hertz, gap) * (step / gap - self._velocity)
        cutoff = self.slowest_hertz + self.speed_factor * float(np.linalg.norm(self._velocity))
        part = Rotation.from_rotvec(_share(cutoff, gap) * step, degrees=True)
        self._rotation, self._seconds = part * self._rotation, seconds
        return angles_of(self._rotation.as_matrix()[None])[0]


def _share(hertz: float, gap_seconds: float) -> float:
    """The part of a step that a low-pass filter with this cutoff takes in one frame."""
    return 1 - math.exp(-2 * math.pi * hertz * gap_seconds)


@dataclass
class _Head:
    rotation: SmoothedRotation
    centre: Float[np.ndarray, "2"]
    seconds: float


class SmoothedHeads:
    """Several heads, each with its own filter; a face belongs to the head that was last seen nearest to it.

    Args:
        slowest_hertz: of each filter.
    """

    def __init__(self, slowest_hertz: float = 1.0) -> None:
        self._slowest_hertz = slowest_hertz
        self._heads: list[_Head] = []

    def next(self, faces: Sequence[PosedFace], seconds: float) -> list[PosedFace]:
        """The faces of a frame with smoothed angles, in their order."""
        self._heads = [head for head in self._heads if seconds - head.seconds <= LONGEST_GAP_SECONDS]
        free = list(self._heads)
        found = []
        for face in faces:
            centre, side = _centre_and_side(face)
            near = [head for head in free if np.linalg.norm(head.centre - centre) < side / 2]
            if near:
                head = min(near, key=lambda one: float(np.linalg.norm(one.centre - centre)))
                free.remove(head)
            else:
                head = _Head(SmoothedRotation(self._slowest_hertz), centre, seconds)
                self._heads.append(head)
            head.centre, head.seconds = centre, seconds
            found.append(replace(face, angles=head.rotation.next(face.angles, seconds)))
        return found


def _centre_and_side(face: PosedFace) -> tuple[Float[np.ndarray, "2"], float]:
    x0, y0, x1, y1 = face.box
    return np.array(((x0 + x1) / 2, (y0 + y1) / 2)), max(x1 - x0, y1 - y0)


def draw_video(
    model: Path,
    source: Path,
    out: Path,
    *,
    which: Which = "largest",
    python: Path | None = None,
    slowest_hertz: float = 1.0,
    workers: int | None = None,
) -> tuple[int, int]:
    """Write a video with the smoothed axes of its faces; return how many frames have a face, and how many there are.

    Args:
        model: as of :class:`LandmarkEstimator`, like ``which`` and ``python``.
        source: a video that OpenCV can read.
        out: ``.mp4`` (MPEG-4) or ``.avi`` (Motion JPEG), without sound.
        slowest_hertz: see :class:`SmoothedRotation`.
        workers: frames that are searched at a time; one per core by default.

    Raises:
        UserError: not a video, one without frames, or OUT cannot be written.
    """
    import cv2

    if out.suffix.lower() not in _CODECS:
        raise UserError(f"{out}: expected a name that ends with {' or '.join(_CODECS)}, because SOURCE is a video")
    if not slowest_hertz > 0:
        raise UserError(f"--steady {slowest_hertz:g}: expected a number above 0; inf smooths nothing")
    video = cv2.VideoCapture(str(source))
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if math.isfinite(rate) and 0 < rate < 1000 else _USUAL_RATE
    frames = _frames(cv2, video)
    first = next(frames, None)
    if first is None:
        raise UserError(f"{source}: OpenCV cannot read it as a video, or it has no frames")
    make_folder(out.parent, str(out.parent))
    heads, seen, count, threads = SmoothedHeads(slowest_hertz), 0, 0, workers or cores()
    with (
        TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder,
        closing(LandmarkEstimator(model, python=python, which=which)) as estimator,
        progress("landmarks draw", None, unit="frames") as bar,
        ahead(
            lambda frame: (frame, estimator.faces(frame)), chain((first,), frames), threads=threads, depth=2 * threads
        ) as posed,
    ):
        part = Path(folder) / out.name  # OpenCV chooses the format by the suffix
        codec = cv2.VideoWriter.fourcc(*_CODECS[out.suffix.lower()])
        writer = cv2.VideoWriter(str(part), codec, rate, first.shape[1::-1])
        if not writer.isOpened():
            raise UserError(f"{out}: OpenCV cannot write {first.shape[1]} × {first.shape[0]} pixels; try .avi")
        for frame, faces in posed:
            drawn = with_axes(frame, heads.next(faces, count / rate))
            writer.write(cv2.cvtColor(np.asarray(drawn), cv2.COLOR_RGB2BGR))
            seen, count = seen + bool(faces), count + 1
            bar.advance()
        writer.release()
        part.replace(out)
    return seen, count


def _frames(cv2: Any, video: Any) -> Iterator[RGBImage]:
    while True:
        good, frame = video.read()
        if not good:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
