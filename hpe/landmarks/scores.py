"""Errors of predicted angles, with bootstrap intervals."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float

from hpe.core.geometry import angle_errors, geodesic_degrees, maev_degrees, rotation_from_euler

_DRAWS: Final = 1000
Angles = Float[np.ndarray, "faces 3"]


@dataclass(frozen=True)
class Scores:
    """Errors over faces.

    Attributes:
        mae, rmse: yaw, pitch, roll, degrees.
        mean_mae: mean of the three.
        mean_mae_interval: 95 % of the bootstrap over faces.
        r2: coefficient of determination, per angle.
        geodesic, maev: mean, degrees.
        mse_radians2: mean squared error over the three angles, the seed's metric.
    """

    faces: int
    mae: tuple[float, float, float]
    mean_mae: float
    mean_mae_interval: tuple[float, float]
    rmse: tuple[float, float, float]
    r2: tuple[float, float, float]
    geodesic: float
    maev: float
    mse_radians2: float


def scores(predicted: Angles, truth: Angles) -> Scores:
    """The errors of predictions for faces."""
    one, other = torch.from_numpy(np.asarray(predicted, float)), torch.from_numpy(np.asarray(truth, float))
    errors = angle_errors(one, other).numpy()
    turned, wanted = rotation_from_euler(one), rotation_from_euler(other)
    squares = np.square(errors)
    spread = np.square(truth - truth.mean(0)).mean(0)
    return Scores(
        faces=len(truth),
        mae=_three(errors.mean(0)),
        mean_mae=float(errors.mean()),
        mean_mae_interval=interval(errors.mean(1)),
        rmse=_three(np.sqrt(squares.mean(0))),
        r2=_three(1 - squares.mean(0) / np.maximum(spread, 1e-12)),
        geodesic=float(geodesic_degrees(turned, wanted).mean()),
        maev=float(maev_degrees(turned, wanted).mean()),
        mse_radians2=float(np.square(np.deg2rad(errors)).mean()),
    )


def interval(values: Float[np.ndarray, " faces"]) -> tuple[float, float]:
    """95 % interval of the mean: percentiles of 1,000 bootstrap means (fixed seed)."""
    draws = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def _three(values: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    yaw, pitch, roll = values.tolist()
    return yaw, pitch, roll
