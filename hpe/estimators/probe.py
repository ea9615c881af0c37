"""Does an estimator match its description? Tried on real faces, their mirror images and, where known, true angles."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.core.labels import ANGLES, LARGEST_DEGREES
from hpe.estimators.diagnosis import diagnose
from hpe.estimators.estimator import Estimator

LEAST_FACES: Final = 16
_STUCK_DEGREES: Final = 1e-4
_SURE: Final = 0.6
"""From this correlation on, two columns count as equal, or as opposite."""


def probe(
    estimator: Estimator, images: UInt8[Tensor, "faces 3 size size"], truth: Float[np.ndarray, "faces 3"]
) -> list[str]:
    """Contradictions to the description, one phrase each; empty when there are none.

    Args:
        estimator: the one to try.
        images: faces.
        truth: yaw, pitch, roll in degrees; NaN where unknown.
    """
    try:
        poses, mirrored = estimator.predict(images), estimator.predict(images.flip(-1))
    except (RuntimeError, ValueError) as error:
        return [f"output: {str(error).splitlines()[0][:200]}"]
    angles, other = poses.angles.double().cpu().numpy(), mirrored.angles.double().cpu().numpy()
    if angles.shape != (len(images), 3):
        return [f"output: the network gives {len(angles)} poses for {len(images)} pictures"]
    if estimator.finds_faces:
        seen = np.isfinite(angles).all(1) & np.isfinite(other).all(1)
        images, truth, angles, other = images[torch.from_numpy(seen)], truth[seen], angles[seen], other[seen]
    if not np.isfinite(angles).all():
        return ["output: the network gives angles that are not finite numbers"]
    if len(images) and (np.abs(angles) > LARGEST_DEGREES).any(1).mean() > 0.5:
        return _unit_problems(estimator, angles) or [
            f"output: most faces get angles beyond ±{LARGEST_DEGREES:.0f}°, the largest {np.abs(angles).max():.3g}°"
        ]
    if len(images) < LEAST_FACES:
        return []
    if angles.std(0).max() < _STUCK_DEGREES:
        return ["output: the network gives every face the same angles"]
    found = _unit_problems(estimator, angles) or _mirror_problems(angles, other)
    # An angle without truth becomes a constant: `diagnose` then leaves it out, and can still judge the others.
    truth = np.where(np.isfinite(truth).any(0), truth, 0.0)
    known = np.isfinite(truth).all(1)
    if not found and known.sum() >= LEAST_FACES:
        found = diagnose(angles[known], truth[known])
    return found


def _unit_problems(estimator: Estimator, angles: Float[np.ndarray, "faces 3"]) -> list[str]:
    if estimator.output is None or estimator.output.kind != "euler":
        return []
    if estimator.output.unit == "degrees" and np.abs(angles).max() < 1.6:
        return ["output.unit: all angles are within ±1.6 degrees: they are radians"]
    if estimator.output.unit == "radians" and np.abs(angles).max() > 500:
        return [f"output.unit: an angle of {np.abs(angles).max():.0f}° came out: they are degrees, not radians"]
    return []


def _mirror_problems(angles: Float[np.ndarray, "faces 3"], mirrored: Float[np.ndarray, "faces 3"]) -> list[str]:
    """Yaw changes its sign in the mirror, pitch does not."""
    with np.errstate(invalid="ignore", divide="ignore"):
        same = [float(np.corrcoef(angles[:, i], mirrored[:, i])[0, 1]) for i in range(3)]
    found = []
    if same[0] > _SURE:
        opposite = [ANGLES[i] for i in (1, 2) if same[i] < -_SURE]
        named = f", but the angle called {' and '.join(opposite)} does" if opposite else ""
        found.append(f"output.order: the angle called yaw does not change its sign in the mirror{named}")
    elif same[1] < -_SURE:
        found.append("output.order: the angle called pitch changes its sign in the mirror: it is yaw or roll")
    return found


def random_faces(count: int, size: int) -> UInt8[Tensor, "faces 3 size size"]:
    """Random images, for a probe where no face can be read."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
