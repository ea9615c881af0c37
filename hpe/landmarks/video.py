"""Heads in a video: their rotations smoothed over the frames, and the frames with axes."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpe.core.devices import cores
from hpe.core.errors import UserError
from hpe.core.files import make_folder
from hpe.core.progress import progress
from hpe.data.images import MAX_PIXELS
from hpe.data.prefetch import ahead
from hpe.data.smoothing import LONGEST_GAP_SECONDS, SmoothedRotation
from hpe.data.tracks import Tracker
from hpe.data.video import Video, annotated
from hpe.landmarks.draw import with_axes
from hpe.landmarks.estimator import LandmarkEstimator, PosedFace
from hpe.landmarks.mesh import Which


class SmoothedHeads:
    """Several heads, each with its own filter, told apart by :class:`hpe.data.tracks.Tracker`.

    Args:
        slowest_hertz: of each filter.
    """

    def __init__(self, slowest_hertz: float = 1.0) -> None:
        self._slowest_hertz = slowest_hertz
        self._tracker = Tracker()
        self._filters: dict[int, tuple[float, SmoothedRotation]] = {}

    def next(self, faces: Sequence[PosedFace], seconds: float) -> list[PosedFace]:
        """The faces of a frame with smoothed angles, in their order."""
        found = []
        for number, face in zip(self._tracker.next([face.box for face in faces], seconds), faces, strict=True):
            _, rotation = self._filters.get(number, (seconds, SmoothedRotation(self._slowest_hertz)))
            self._filters[number] = seconds, rotation
            found.append(replace(face, angles=rotation.next(face.angles, seconds)))
        self._filters = {
            number: seen for number, seen in self._filters.items() if seconds - seen[0] <= LONGEST_GAP_SECONDS
        }
        return found


def draw_video(
    model: Path,
    source: Path,
    out: Path,
    *,
    which: Which = "largest",
    python: Path | None = None,
    slowest_hertz: float = 1.0,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int, list[str]]:
    """Write a video with the smoothed axes of its faces, and its sound.

    Args:
        model: as of :class:`LandmarkEstimator`, like ``which`` and ``python``.
        source: see :class:`hpe.data.video.Video`.
        out: ``.mp4``.
        slowest_hertz: see :class:`SmoothedRotation`.
        workers: frames that are searched at a time; one per core by default.
        max_pixels: larger frames are refused.

    Returns:
        How many frames have a face, how many there are, and what of the video could not be read.

    Raises:
        UserError: not a video, one without frames, or OUT cannot be written.
    """
    if out.suffix.lower() != ".mp4":
        raise UserError(f"{out}: expected a name that ends with .mp4, because SOURCE is a video")
    if not slowest_hertz > 0:
        raise UserError(f"--steady {slowest_hertz:g}: expected a number above 0; inf smooths nothing")
    heads, seen, count, threads = SmoothedHeads(slowest_hertz), 0, 0, workers or cores()
    with Video(source, max_pixels=max_pixels) as video:
        make_folder(out.parent, str(out.parent))
        with (
            closing(LandmarkEstimator(model, python=python, which=which)) as estimator,
            progress("landmarks draw", video.frames, unit="frames") as bar,
            annotated(video, out) as write,
            ahead(
                lambda frame: (frame, estimator.faces(frame.picture)), video, threads=threads, depth=2 * threads
            ) as posed,
        ):  # fmt: skip
            for frame, faces in posed:
                write(np.asarray(with_axes(frame.picture, heads.next(faces, frame.seconds))), frame.seconds)
                seen, count = seen + bool(faces), count + 1
                bar.advance()
        return seen, count, video.problems()
