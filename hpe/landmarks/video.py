"""Smoothing of a head's rotation over frames, on the rotations themselves.

Averaging Euler angles is wrong near ±180° and where yaw is ±90°; here every step is a part of the shortest
rotation from the last smoothed one to the new one. The cutoff is that of the One Euro filter (Casiez, Roussel,
Vogel, 2012): little lag when the head turns fast, little trembling when it stands still.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from hpe.landmarks.align import angles_of, rotations_of


@dataclass
class SmoothedRotation:
    """A One Euro filter on rotations; one a face.

    Attributes:
        slowest_hertz: cutoff of a head that stands still: lower trembles less.
        speed_factor: hertz that each degree per second adds to the cutoff: higher lags less.
        speed_hertz: cutoff of the speed's own smoothing.
        longest_gap_seconds: after a longer gap without the face, the next one starts afresh.
    """

    slowest_hertz: float = 1.0
    speed_factor: float = 0.02
    speed_hertz: float = 1.0
    longest_gap_seconds: float = 0.5
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
        if self._rotation is None or gap > self.longest_gap_seconds:
            self._rotation, self._velocity, self._seconds = seen, np.zeros(3), seconds
            return angles_of(seen.as_matrix()[None])[0]
        if gap <= 0:
            raise ValueError(f"a frame at {seconds} s after one at {self._seconds} s: times must grow")
        step = (seen * self._rotation.inv()).as_rotvec(degrees=True)
        self._velocity += _share(self.speed_hertz, gap) * (step / gap - self._velocity)
        cutoff = self.slowest_hertz + self.speed_factor * float(np.linalg.norm(self._velocity))
        part = Rotation.from_rotvec(_share(cutoff, gap) * step, degrees=True)
        self._rotation, self._seconds = part * self._rotation, seconds
        return angles_of(self._rotation.as_matrix()[None])[0]


def smoothed(
    angles: Float[np.ndarray, "frames 3"], frames_per_second: float, *, slowest_hertz: float = 1.0
) -> Float[np.ndarray, "frames 3"]:
    """Yaw, pitch, roll of a video's frames, smoothed forwards in time; frames without a face are NaN rows."""
    filtered = SmoothedRotation(slowest_hertz=slowest_hertz)
    return np.stack([filtered.next(row, frame / frames_per_second) for frame, row in enumerate(angles)])


def _share(hertz: float, gap_seconds: float) -> float:
    """The part of a step that a low-pass filter of this cutoff takes in a frame."""
    return 1 - math.exp(-2 * math.pi * hertz * gap_seconds)
