"""Systematic errors of angles that have a name: swapped, negated, in radians, shifted."""

from itertools import permutations
from typing import Final

import numpy as np
from jaxtyping import Float

from hpe.core.labels import ANGLES

_SPREAD_DEGREES: Final = 4.0
"""True angles that vary less show nothing about signs and order."""
_SURE: Final = 0.5
_RADIANS: Final = 0.1


def diagnose(predicted: Float[np.ndarray, "faces 3"], truth: Float[np.ndarray, "faces 3"]) -> list[str]:
    """The likely mistakes that make ``predicted`` disagree with ``truth`` (degrees); empty when there is none.

    It uses correlations, so that it works for inaccurate networks and other crops too. True angles that hardly vary
    are left out.
    """
    varying = [i for i in range(3) if truth[:, i].std() > _SPREAD_DEGREES]
    if len(predicted) < 3 or not varying:
        return []
    correlation = _correlations(predicted, truth)
    order = _order(correlation, varying)
    found = []
    if order != (0, 1, 2):
        moved = [i for i in varying if order[i] != i]
        what = ", ".join(f"the true {ANGLES[i]} is in {ANGLES[order[i]]}" for i in moved)
        swapped = " and ".join(ANGLES[i] for i in moved) if len(moved) == 2 else "the angles"
        found.append(f"order: {swapped} swapped? {what}")
    found += [
        f"sign: {ANGLES[i]} negated? its correlation with the truth is {correlation[order[i], i]:.2f}"
        for i in varying
        if correlation[order[i], i] < -_SURE
    ]
    scales = [predicted[:, order[i]].std() / truth[:, i].std() for i in varying]
    if max(scales) < _RADIANS and max(abs(correlation[order[i], i]) for i in varying) > _SURE:
        found.append(f"unit: radians? angles vary {1 / max(max(scales), 1e-9):.0f} times less than the truth")
    elif min(scales) > 1 / _RADIANS and max(abs(correlation[order[i], i]) for i in varying) > _SURE:
        found.append(f"unit: degrees interpreted as radians? angles vary {min(scales):.0f} times more than the truth")
    return found


def _correlations(
    predicted: Float[np.ndarray, "faces 3"], truth: Float[np.ndarray, "faces 3"]
) -> Float[np.ndarray, "predicted truth"]:
    """Rank correlations, so that a few angles beyond ±99° do not dominate."""
    ranks = np.argsort(np.argsort(np.concatenate((predicted, truth), 1), 0), 0).astype(float)
    ranks -= ranks.mean(0)
    ranks /= np.maximum(ranks.std(0), 1e-9)
    return ranks[:, :3].T @ ranks[:, 3:] / len(ranks)


def _order(correlation: Float[np.ndarray, "predicted truth"], varying: list[int]) -> tuple[int, ...]:
    """For each true angle, the predicted column that follows it; a column other than its own must be clearly better."""

    def fit(order: tuple[int, ...]) -> float:
        return sum(abs(correlation[order[i], i]) for i in varying)

    best = max(permutations(range(3)), key=fit)
    own = (0, 1, 2)
    clearly = all(
        abs(correlation[best[i], i]) > max(_SURE, abs(correlation[i, i]) + 0.2) for i in varying if best[i] != i
    )
    return best if clearly and fit(best) > fit(own) else own
