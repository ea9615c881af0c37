"""One metric (a "figure") as JSON: its value, its count, its interval, or the reason why it is absent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import ndtr, ndtri

from hpe.core.statistics import CONFIDENCE, REPLICATES, resampled_sums, wilson_interval

Figure = dict[str, Any]
"""``{"value", "n", "low", "high"}``; if it is absent, ``value`` is None and ``reason`` gives the reason."""

_UNDEFINED_SHARE: Final = 0.1
_FEWEST_UNITS: Final = 6
"""With fewer units nothing can be shown at 95 %: if all of five agree, a sign test gives p = 2/2⁵ = 0.06, while
bootstrap draws, all alike, would give an interval of width 0."""
_MOST_UNITS: Final = 2048
"""More units are divided at random into this many bags, and bags are drawn: the variance of the bootstrap stays
the same on average, within about 3 % (√(2/2048)), and its cost no longer grows with the data."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made: the unit of each sample, drawn with replacement, and the number of draws.

    ``unit`` is the number of the person (or photo) if the table names one, because pictures of one person are not
    independent samples; otherwise each row is its own unit.
    """

    unit: Int[ndarray, " rows"]
    by_subject: bool
    replicates: int = REPLICATES
    seed: int = 0

    def of(self, rows: Any) -> "Resampling":
        """The same for some of the rows."""
        return Resampling(self.unit[rows], self.by_subject, self.replicates, self.seed)

    def sums(self, statistics: Float[ndarray, "rows k"]) -> Float[ndarray, "replicates k"] | None:
        """Bootstrapped sums over units; None if there are too few units (:data:`_FEWEST_UNITS`)."""
        _, unit = np.unique(self.unit, return_inverse=True)
        count = int(unit.max()) + 1 if len(unit) else 0
        if count < _FEWEST_UNITS:
            return None
        if count > _MOST_UNITS:
            bag = np.random.default_rng(self.seed).permutation(np.arange(count) % _MOST_UNITS)
            unit, count = bag[unit], _MOST_UNITS
        order = np.argsort(unit, kind="stable")
        starts = np.searchsorted(unit[order], np.arange(count))
        return resampled_sums(np.add.reduceat(statistics[order], starts), self.replicates, self.seed)


def absent(reason: str, n: int = 0) -> Figure:
    """A metric, or a section of metrics, that cannot be computed."""
    return {"value": None, "n": n, "reason": reason}


def figure(value: float, n: int, replicates: Float[ndarray, " r"] | None, *, reason: str) -> Figure:
    """A metric with its bias-corrected percentile bootstrap interval.

    Plain percentiles miss the value where noise pushes a metric to one side, as it does with the calibration error
    (Efron, "Better Bootstrap Confidence Intervals", 1987, without acceleration).

    Args:
        value: the point estimate; NaN becomes null with ``reason``.
        n: number of samples.
        replicates: bootstrapped values, None if there were too few units to draw from.
        reason: why the value would be undefined.
    """
    if not math.isfinite(value):
        return absent(reason, n)
    made: Figure = {"value": float(value), "n": int(n), "low": None, "high": None}
    if replicates is None:
        return made | {"interval_reason": f"fewer than {_FEWEST_UNITS} people or images to draw from"}
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < (1 - _UNDEFINED_SHARE) * len(replicates):
        return made | {"interval_reason": "undefined in too many of the draws"}
    if np.ptp(defined) == 0:  # with 0 of 12 right no draw can differ, but the truth need not be 0
        return made | {"interval_reason": "the same in every draw"}
    below = (np.sum(defined < value) + np.sum(defined == value) / 2) / len(defined)
    shift = 2 * ndtri(np.clip(below, 1 / len(defined), 1 - 1 / len(defined)))
    z = ndtri((1 + CONFIDENCE) / 2)
    low, high = np.quantile(defined, (ndtr(shift - z), ndtr(shift + z)))
    return made | {"low": float(low), "high": float(high)}


def noise_figure(value: float, n: int, replicates: Float[ndarray, " r"] | None) -> Figure:
    """A metric from 0 to 1 that noise only makes larger, such as the calibration error, with its basic interval.

    Draws exceed the value by as much as the value exceeds the truth, so the interval is mirrored at the value, and
    cut at 0 and 1 (Davison and Hinkley, "Bootstrap Methods", 1997, section 5.2).
    """
    made = figure(value, n, replicates, reason="no sample")
    if replicates is None or made.get("low") is None:
        return made
    low, high = np.quantile(replicates, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return made | {"low": float(max(2 * value - high, 0.0)), "high": float(min(max(2 * value - low, value), 1.0))}


def too_few(units: int) -> bool:
    """Whether these are too few people or images for an interval."""
    return units < _FEWEST_UNITS


def two_sided_p(differences: Float[ndarray, " r"]) -> float:
    """Two-sided p-value of a difference from its bootstrap replicates."""
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return float(min(1.0, 2 * (1 + tail) / (1 + len(differences))))


def share(successes: int, trials: int, *, reason: str) -> Figure:
    """A share of independent samples with Wilson's interval."""
    if not trials:
        return absent(reason)
    low, high = wilson_interval(np.asarray(float(successes)), np.asarray(float(trials)))
    return {"value": successes / trials, "n": int(trials), "low": float(low), "high": float(high)}


def counted(reasons: Mapping[str, int]) -> dict[str, int]:
    """The reasons with a count above 0."""
    return {reason: int(count) for reason, count in reasons.items() if count}


def ratio(over: Float[ndarray, "*many"], under: Float[ndarray, "*many"]) -> Float[ndarray, "*many"]:
    """``over / under``, NaN where ``under`` is 0."""
    over, under = np.broadcast_arrays(over, under)
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)


def named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Names to values of the same number."""
    return dict(zip(names, values, strict=True))
