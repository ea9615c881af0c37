"""Metrics of valence and arousal: concordance, root mean square error, agreement in sign."""

from typing import Final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hpe.metrics.columns import Numbers, judged
from hpe.metrics.values import Figure, Resampling, absent, figure, ratio

_ROUNDING: Final = 1e-12


def statistics(truth: Float[ndarray, " n"], guess: Float[ndarray, " n"]) -> Float[ndarray, "n 8"]:
    """Per sample: 1, t, g, t², g², t·g, (t − g)², same sign."""
    parts = (np.ones_like(truth), truth, guess, truth**2, guess**2, truth * guess, (truth - guess) ** 2)
    return np.stack((*parts, np.sign(truth) == np.sign(guess)), 1)


def concordance(sums: Float[ndarray, "*many 8"]) -> Float[ndarray, "*many"]:
    """Lin's concordance coefficient, 2·cov / (var + var + (mean − mean)²); NaN where nothing varies."""
    n, t, g, tt, gg, tg = (sums[..., index] for index in range(6))
    covariance = tg - t * g / n
    below = tt - t * t / n + gg - g * g / n + (t - g) ** 2 / n
    return ratio(2 * covariance, np.where(below > _ROUNDING * n, below, 0.0))


def root_mean_square_error(sums: Float[ndarray, "*many 8"]) -> Float[ndarray, "*many"]:
    """√ mean (t − g)²."""
    return np.sqrt(sums[..., 6] / sums[..., 0])


def sign_agreement(sums: Float[ndarray, "*many 8"]) -> Float[ndarray, "*many"]:
    """SAGR: share of samples whose prediction has the truth's sign (Nicolaou et al., 2011)."""
    return sums[..., 7] / sums[..., 0]


def affect(truth: Numbers | None, guess: Numbers | None, draw: Resampling, what: str) -> Figure:
    """CCC, RMSE and SAGR of one of valence and arousal."""
    found = judged(truth, guess, what)
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    each, n = statistics(truth.value[rows, 0], guess.value[rows, 0]), int(rows.sum())
    sums, drawn = each.sum(0), draw.of(rows).sums(each)
    of = {"ccc": concordance, "rmse": root_mean_square_error, "sagr": sign_agreement}
    made: Figure = {"n": n}
    for name, function in of.items():
        replicates = None if drawn is None else function(drawn)
        made[name] = figure(float(function(sums)), n, replicates, reason="nothing varies")
    return made
