"""Which face of a frame is which face of the frames before: overlap of boxes, matched by the Hungarian method.

As SORT does it (Bewley et al., "Simple Online and Realtime Tracking", 2016), with a plain constant velocity in place of
its Kalman filter: faces of a video at 10 to 60 frames a second overlap from frame to frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from hpe.data.crops import Box

LEAST_OVERLAP: Final = 0.2
"""Intersection over union of the box that is expected and the one that is found. A face that moves by a third of its
width between two frames, against what its speed promised, still has 0.5."""
LONGEST_GAP_SECONDS: Final = 0.5
"""A face that is not seen for longer is another one when it comes again."""
_MOST_SPEED_SHARE: Final = 0.5
"""Part of a new speed that enters the expected one: detectors' boxes tremble."""


@dataclass
class _Track:
    number: int
    box: Float[np.ndarray, "4"]
    seconds: float
    speed: Float[np.ndarray, "2"]

    def expected(self, seconds: float) -> Float[np.ndarray, "4"]:
        moved = self.speed * (seconds - self.seconds)
        return self.box + np.concatenate((moved, moved))

    def see(self, box: Float[np.ndarray, "4"], seconds: float) -> None:
        moved = ((box[:2] + box[2:]) - (self.box[:2] + self.box[2:])) / 2
        speed = moved / max(seconds - self.seconds, 1e-6)
        self.speed = self.speed + _MOST_SPEED_SHARE * (speed - self.speed)
        self.box, self.seconds = box, seconds


class Tracker:
    """Numbers faces over the frames of one video: 0 for the first face, each number given once."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self.count = 0

    def next(self, boxes: Sequence[Box], seconds: float) -> list[int]:
        """The number of each face of a frame; its boxes in pixels.

        Args:
            boxes: x0, y0, x1, y1 of each face.
            seconds: the frame's time, later than the last one.
        """
        self._tracks = [one for one in self._tracks if seconds - one.seconds <= LONGEST_GAP_SECONDS]
        found = np.asarray(boxes, float).reshape(-1, 4)
        expected = np.asarray([one.expected(seconds) for one in self._tracks], float).reshape(-1, 4)
        overlaps = overlap(found, expected)
        numbers = [-1] * len(found)
        for row, column in zip(*linear_sum_assignment(overlaps, maximize=True), strict=True):
            if overlaps[row, column] >= LEAST_OVERLAP:
                self._tracks[column].see(found[row], seconds)
                numbers[row] = self._tracks[column].number
        for row, number in enumerate(numbers):
            if number < 0:
                self._tracks.append(_Track(self.count, found[row], seconds, np.zeros(2)))
                numbers[row], self.count = self.count, self.count + 1
        return numbers


def overlap(one: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every box of one with every box of the other; 0 for boxes without an area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
