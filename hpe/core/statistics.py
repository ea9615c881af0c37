"""Counts, intervals and tests that figures and association share; NumPy and SciPy only.

A table here is a cross table of counts. Functions with ``*many`` in their shapes work on one table and on a
thousand resampled ones alike, and give NaN where a value is not defined (callers turn it into a reason).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import stats

CONFIDENCE: Final = 0.95
REPLICATES: Final = 1000
LEAST_EXPECTED: Final = 5
_DRAWS_AT_ONCE: Final = 1 << 22
"""Random numbers held at a time while resampling: 32 MiB."""


def wilson_interval(
    successes: Float[ndarray, "*many"], trials: Float[ndarray, "*many"], confidence: float = CONFIDENCE
) -> tuple[Float[ndarray, "*many"], Float[ndarray, "*many"]]:
    """Wilson's score interval of a share, NaN where nothing was tried (Wilson, 1927)."""
    z = stats.norm.ppf((1 + confidence) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = successes / trials
        middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
        # Rounding must not push an end past the share itself where all or none succeeded.
        return np.minimum(np.maximum(middle - half, 0.0), share), np.maximum(np.minimum(middle + half, 1.0), share)


def cross_table(
    rows: Int[ndarray, " n"], columns: Int[ndarray, " n"], row_count: int, column_count: int
) -> Int[ndarray, "rows columns"]:
    """How often each pair of a row's and a column's class occurs."""
    cells = np.bincount(rows * column_count + columns, minlength=row_count * column_count)
    return cells.reshape(row_count, column_count)


def _without_empty(table: Float[ndarray, "r c"]) -> Float[ndarray, "r2 c2"]:
    return table[table.sum(1) > 0][:, table.sum(0) > 0]


def expected_counts(table: Float[ndarray, "*many r c"]) -> Float[ndarray, "*many r c"]:
    """Counts that the margins alone would give."""
    with np.errstate(invalid="ignore"):
        return table.sum(-1, keepdims=True) * table.sum(-2, keepdims=True) / table.sum((-1, -2), keepdims=True)


def chi_square(table: Float[ndarray, "*many r c"]) -> Float[ndarray, "*many"]:
    """Pearson's χ²; empty rows and columns add nothing."""
    expected = expected_counts(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, (table - expected) ** 2 / expected, 0.0).sum((-1, -2))


def degrees_of_freedom(table: Float[ndarray, "r c"]) -> int:
    """(rows − 1) · (columns − 1), empty ones not counted."""
    rows, columns = _without_empty(table).shape
    return max(rows - 1, 0) * max(columns - 1, 0)


def cramers_v(table: Float[ndarray, "*many r c"]) -> Float[ndarray, "*many"]:
    """Cramér's V over the table's full shape, 0..1; NaN for a table of one row or column, or empty."""
    smaller = min(table.shape[-2:]) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(chi_square(table) / (table.sum((-1, -2)) * smaller))


def corrected_cramers_v(table: Float[ndarray, "*many r c"], times: int = 1) -> Float[ndarray, "*many"]:
    """Bergsma's bias-corrected V (Bergsma, "A bias-correction for Cramér's V", 2013).

    Args:
        table: counts without empty rows and columns.
        times: how often sampling noise went into the counts: 1 for an observed table, 2 for a table resampled
            from an observed one.
    """
    rows, columns = table.shape[-2:]
    total = table.sum((-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        phi2 = chi_square(table) / total
        phi2 = np.maximum(phi2 - times * (rows - 1) * (columns - 1) / (total - 1), 0.0)
        smaller = np.minimum(rows - (rows - 1) ** 2 / (total - 1) - 1, columns - (columns - 1) ** 2 / (total - 1) - 1)
        return np.where(smaller > 0, np.sqrt(phi2 / smaller), np.nan)


def cramers_v_interval(
    table: Int[ndarray, "r c"], *, replicates: int = REPLICATES, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Bootstrap interval of the bias-corrected V: cells resampled, replicates corrected twice.

    A resampled table carries the noise of the sample and its own; without the second correction the interval
    of a weak association would lie wholly above the truth.
    """
    kept = _without_empty(table)
    if min(kept.shape) < 2:
        return float("nan"), float("nan")
    values = corrected_cramers_v(resampled_counts(kept, replicates, seed), times=2)
    low, high = np.nanquantile(values, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def adjusted_residuals(table: Float[ndarray, "r c"]) -> Float[ndarray, "r c"]:
    """(observed − expected) / standard error: about N(0, 1) without association (Haberman, 1973).

    NaN in rows and columns that hold nothing or everything.
    """
    total = table.sum()
    expected = expected_counts(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = expected * (1 - table.sum(1, keepdims=True) / total) * (1 - table.sum(0, keepdims=True) / total)
        return np.where(variance > 0, (table - expected) / np.sqrt(variance), np.nan)


def exact_cell_p(table: Int[ndarray, "r c"]) -> Float[ndarray, "r c"]:
    """Fisher's exact two-sided p of each cell against the rest of its row and column.

    A normal approximation of residuals errs where few samples are expected: there one can lie six standard errors
    out (Cochran, 1954). NaN in rows and columns that hold nothing or everything.
    """
    found = np.full(table.shape, np.nan)
    total, rows, columns = int(table.sum()), table.sum(1).tolist(), table.sum(0).tolist()
    for i, j in np.ndindex(table.shape):
        row, column, held = rows[i], columns[j], int(table[i, j])
        if 0 < row < total and 0 < column < total:
            two = [[held, row - held], [column - held, total - row - column + held]]
            found[i, j] = stats.fisher_exact(two).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    return found


def holm(p: Float[ndarray, " tests"]) -> Float[ndarray, " tests"]:
    """Holm's step-down adjusted p-values: the family-wise error is held whatever the dependence."""
    order = np.argsort(p)
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def entropy_bits(counts: Float[ndarray, "*many k"]) -> Float[ndarray, "*many"]:
    """Entropy of the shares of counts, in bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = counts / counts.sum(-1, keepdims=True)
        return -np.where(share > 0, share * np.log2(share), 0.0).sum(-1)


def mutual_information_bits(table: Float[ndarray, "*many r c"]) -> Float[ndarray, "*many"]:
    """Mutual information of rows and columns (plug-in estimate), in bits."""
    cells = table.reshape(*table.shape[:-2], -1)
    bits = entropy_bits(table.sum(-1)) + entropy_bits(table.sum(-2)) - entropy_bits(cells)
    return np.maximum(bits, 0.0)  # rounding


def permuted_tables(table: Int[ndarray, "r c"], replicates: int, seed: int) -> Int[ndarray, "n r c"]:
    """Cross tables of the same rows and columns after the rows' labels were shuffled.

    Drawn from their exact distribution (both margins fixed; Patefield, 1981) instead of by shuffling.
    """
    kept_rows, kept_columns = table.sum(1) > 0, table.sum(0) > 0
    kept = _without_empty(table)
    tables = np.zeros((replicates, *table.shape), np.int64)
    # SciPy draws negative counts for a table of one row or column (1.17), which has nothing to shuffle.
    drawn = (
        stats.random_table(kept.sum(1), kept.sum(0)).rvs(replicates, random_state=np.random.default_rng(seed))
        if min(kept.shape) > 1
        else kept
    )
    tables[np.ix_(np.arange(replicates), kept_rows, kept_columns)] = drawn
    return tables


def exceedance_p(observed: float, permuted: Float[ndarray, " n"]) -> float:
    """Share of permutations at least as extreme, the observed one counted among them (never 0)."""
    # Less a little: a permuted value that equals the observed one counts, whatever the rounding of its sums.
    return float((1 + np.sum(permuted >= observed - 1e-12)) / (1 + len(permuted)))


def resampled_counts(counts: Int[ndarray, "*cells"], replicates: int, seed: int) -> Int[ndarray, " n *cells"]:
    """Counts after drawing the samples again with replacement: exactly the bootstrap of independent rows."""
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=replicates)
    return drawn.reshape(replicates, *counts.shape)


def resampled_sums(statistics: Float[ndarray, "units k"], replicates: int, seed: int) -> Float[ndarray, "replicates k"]:
    """Sums of per-unit statistics over units drawn with replacement.

    Every figure that is a function of sums (means, F1, ECE, CCC) is bootstrapped through this one function.
    """
    units = len(statistics)
    if units * replicates <= _DRAWS_AT_ONCE:
        return _times_drawn(units, replicates, seed) @ statistics
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // units)
    rows = [min(step, replicates - start) for start in range(0, replicates, step)]
    return np.concatenate([_draw(units, count, rng) @ statistics for count in rows])


@lru_cache(maxsize=4)
def _times_drawn(units: int, replicates: int, seed: int) -> Float[ndarray, "replicates units"]:
    """Kept, because a table's figures are drawn from the same number of units again and again."""
    return _draw(units, replicates, np.random.default_rng(seed))


def _draw(units: int, replicates: int, rng: np.random.Generator) -> Float[ndarray, "replicates units"]:
    """How often each unit is drawn in each replicate."""
    # Each replicate counts in a range of its own, so that one call of `bincount` does all of them.
    drawn = rng.integers(units, size=(replicates, units)) + np.arange(replicates)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=replicates * units).reshape(replicates, units).astype(float)


@dataclass(frozen=True, slots=True)
class McNemar:
    """Samples that only the first, or only the second, reads rightly, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar_exact(first_right: Bool[ndarray, " n"], second_right: Bool[ndarray, " n"]) -> McNemar:
    """McNemar's exact test of two classifiers on the same samples (p is 1 where they never differ)."""
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    differing = only_first + only_second
    p = float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p)
