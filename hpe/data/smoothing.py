"""Predictions of one face smoothed over time: rotations as rotations, probabilities as probabilities.

Averaging Euler angles is wrong near ±180° and near ±90° of yaw; here every step is a part of the shortest rotation
from the last smoothed one to the new one. The cutoff is that of the One Euro filter (Casiez, Roussel, Vogel, 2012):
little lag when the head turns fast, little trembling when it is still.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from hpe.core.geometry import euler_from_rotation

LONGEST_GAP_SECONDS: Final = 0.5
"""After a longer gap without the face, its filter starts again."""
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
        seen = Rotation.from_euler("ZYX", angles[[2, 0, 1]], degrees=True)
        gap = seconds - self._seconds
        if self._rotation is None or gap > LONGEST_GAP_SECONDS:
            self._rotation, self._velocity, self._seconds = seen, np.zeros(3), seconds
            return _angles_of(seen)
        if gap <= 0:
            raise ValueError(f"a frame at {seconds} s after one at {self._seconds} s: times must increase")
        step = (seen * self._rotation.inv()).as_rotvec(degrees=True)
        self._velocity += _share(self.speed_hertz, gap) * (step / gap - self._velocity)
        cutoff = self.slowest_hertz + self.speed_factor * float(np.linalg.norm(self._velocity))
        part = Rotation.from_rotvec(_share(cutoff, gap) * step, degrees=True)
        self._rotation, self._seconds = part * self._rotation, seconds
        return _angles_of(self._rotation)


@dataclass
class SmoothedValues:
    """An exponential filter on values whose mean has a meaning, for one face: probabilities, valence and arousal.

    Every result is a weighted mean of what was seen, so that probabilities still sum to one.

    Attributes:
        hertz: cutoff; ``inf`` smooths nothing.
    """

    hertz: float = 1.0
    _values: Float[np.ndarray, " values"] | None = field(default=None, init=False, repr=False)
    _seconds: float = field(default=0.0, init=False, repr=False)

    def next(self, values: Float[np.ndarray, " values"], seconds: float) -> Float[np.ndarray, " values"]:
        """The smoothed values at a time; where one is NaN, all of the result is NaN, and the filter does not change."""
        values = np.asarray(values, float)
        if not np.isfinite(values).all():
            return np.full(values.shape, np.nan)
        gap = seconds - self._seconds
        if self._values is None or gap > LONGEST_GAP_SECONDS:
            self._values = values
        else:
            self._values = self._values + _share(self.hertz, gap) * (values - self._values)
        self._seconds = seconds
        return self._values


def _angles_of(rotation: Rotation) -> Float[np.ndarray, "3"]:
    return euler_from_rotation(torch.from_numpy(rotation.as_matrix())).numpy()


def _share(hertz: float, gap_seconds: float) -> float:
    """The part of a step that a low-pass filter with this cutoff takes in one frame."""
    return 1 - math.exp(-2 * math.pi * hertz * gap_seconds)
