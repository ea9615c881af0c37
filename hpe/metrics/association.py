"""How strongly direction and emotion are associated in a table.

The tables of the thesis (3.1, 4.2, 4.6), with what they lack: intervals, tests corrected for their number, and
the results of chance alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from scipy import special, stats

from hpe.core import statistics
from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS, direction_from_word, emotion_from_word
from hpe.metrics.values import absent, share

if TYPE_CHECKING:
    import pyarrow as pa

SIGNIFICANT: Final = 0.05
_WORDS: Final = (("negligible", 0.1), ("small", 0.3), ("medium", 0.5), ("large", float("inf")))
"""Cohen's bounds of w = V·√(min(rows, columns) − 1) ("Statistical Power Analysis", 1988)."""
_MOST_CLASSES: Final = 100


@dataclass(frozen=True, slots=True)
class Crossed:
    """A cross table with the names of its rows and columns; ``left_out`` rows lack one of the two values.

    ``row`` and ``column`` are what the names are of, such as ``direction`` and ``emotion``.
    """

    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    counts: Int[ndarray, "rows columns"]
    left_out: int
    row: str = "row"
    column: str = "column"


def cross(table: "pa.Table", rows: str = "direction", columns: str = "emotion") -> Crossed:
    """Count two columns against each other.

    ``direction`` and ``emotion`` (any case) may contain our integers or words in any usual spelling; the values of
    other columns are their own classes.

    Raises:
        UserError: a column is missing, or contains a value that is not a direction or emotion.
    """
    row_names, row, row_known = classes_of(table, rows)
    column_names, column, column_known = classes_of(table, columns)
    known = row_known & column_known
    counts = statistics.cross_table(row[known], column[known], len(row_names), len(column_names))
    return Crossed(row_names, column_names, counts, int((~known).sum()), rows, columns)


def classes_of(table: "pa.Table", name: str) -> tuple[tuple[str, ...], ndarray, ndarray]:
    """Names of a column's classes, each row's class, and whether the row has one (see :func:`cross`)."""
    found = [column for column in table.column_names if column.lower() == name.lower()]
    if not found:
        raise UserError(f"column {name}: not found; the table has {', '.join(map(repr, table.column_names))}")
    # Missing are null, NaN, and the blank text that other programs write to Parquet.
    values = [None if v is None or v != v or v == "" else v for v in table.column(found[0]).to_pylist()]
    known = np.array([value is not None for value in values], bool)
    vocabulary = {"direction": (DIRECTIONS, direction_from_word), "emotion": (EMOTIONS, emotion_from_word)}
    if name.lower() not in vocabulary:
        names = tuple(sorted({str(value) for value in values if value is not None}))
        if len(names) > _MOST_CLASSES:
            raise UserError(f"column {name}: {len(names)} different values; expected at most {_MOST_CLASSES}")
        index: dict[Any, int] = {text: place for place, text in enumerate(names)}
        return names, np.array([0 if v is None else index[str(v)] for v in values], int), known
    names, from_word = vocabulary[name.lower()]
    number: dict[Any, int] = {}
    for value in {v for v in values if v is not None}:
        label = from_word(value) if isinstance(value, str) else value
        if label is None or label != int(label) or not 0 <= label < len(names):
            raise UserError(f"column {found[0]}: {value!r} found; expected 0..{len(names) - 1} or {', '.join(names)}")
        number[value] = int(label)
    return names, np.array([0 if v is None else number[v] for v in values], int), known


def associate(crossed: Crossed, *, replicates: int = statistics.REPLICATES, seed: int = 0) -> dict[str, Any]:
    """Everything about a cross table, as JSON.

    Raises:
        UserError: the table is empty.
    """
    counts, n = crossed.counts, int(crossed.counts.sum())
    if not n:
        raise UserError("association: no row of the table has both values")
    made: dict[str, Any] = {
        "n": n,
        "left_out": crossed.left_out,
        "rows": list(crossed.row_names),
        "columns": list(crossed.column_names),
        "counts": counts.tolist(),
        "row_totals": counts.sum(1).tolist(),
        "column_totals": counts.sum(0).tolist(),
        "share_of_row": _shares(counts, counts.sum(1, keepdims=True)),
        "share_of_column": _shares(counts, counts.sum(0, keepdims=True)),
        "spread_of_rows": _spread(crossed.row_names, counts),
        "spread_of_columns": _spread(crossed.column_names, counts.T),
    }
    if min((counts.sum(1) > 0).sum(), (counts.sum(0) > 0).sum()) < 2:
        reason = "only one row or one column has samples, so there can be no association"
        return made | {"association": absent(reason, n), "sentences": [f"{reason.capitalize()}."]}
    if not np.isfinite(statistics.corrected_cramers_v(_held(counts))):
        reason = f"{n} rows are too few to measure an association"
        return made | {"association": absent(reason, n), "sentences": [f"{reason}."]}
    made["association"] = _strength(counts, replicates, seed)
    return made | {"sentences": _sentences(crossed, made["association"])}


def _held(counts: ndarray) -> ndarray:
    """The counts without empty rows and columns."""
    return counts[counts.sum(1) > 0][:, counts.sum(0) > 0]


def _shares(counts: ndarray, of: ndarray) -> list[list[float | None]]:
    return [
        [None if not total else float(k / total) for k, total in zip(row, totals, strict=True)]
        for row, totals in zip(counts, np.broadcast_to(of, counts.shape), strict=True)
    ]


def _spread(names: Sequence[str], counts: ndarray) -> dict[str, dict[str, float]]:
    """Mean, variance (divisor n) and standard deviation of the counts of each row, as the thesis gives them."""
    return {
        name: {"mean": float(row.mean()), "variance": float(row.var()), "deviation": float(row.std())}
        for name, row in zip(names, counts, strict=True)
    }


def _strength(counts: ndarray, replicates: int, seed: int) -> dict[str, Any]:
    kept = _held(counts)
    n, chi = int(kept.sum()), float(statistics.chi_square(kept))
    freedom = statistics.degrees_of_freedom(kept)
    low, high = statistics.cramers_v_interval(kept, replicates=replicates, seed=seed)
    corrected = float(statistics.corrected_cramers_v(kept))
    smaller = min(kept.shape) - 1
    permuted = statistics.permuted_tables(counts, replicates, seed)
    v_permuted = np.sqrt(statistics.chi_square(permuted) / (n * smaller))
    information = float(statistics.mutual_information_bits(counts))
    information_permuted = statistics.mutual_information_bits(permuted)
    entropy = float(statistics.entropy_bits(counts.sum(0)))
    expected = statistics.expected_counts(kept)
    return {
        "n": n,
        "chi_square": chi,
        "degrees_of_freedom": freedom,
        "p": float(stats.chi2.sf(chi, freedom)),
        "log10_p": _log10_p(chi, freedom),
        "cells_expected_below_5": int((expected < statistics.LEAST_EXPECTED).sum()),
        "cramers_v": float(statistics.cramers_v(kept)),
        "cramers_v_corrected": {"value": corrected, "n": n, "low": low, "high": high},
        "strength": _strength_words(low * smaller**0.5, high * smaller**0.5),
        "mutual_information_bits": information,
        "mutual_information_bits_of_chance": float(information_permuted.mean()),
        "entropy_of_columns_bits": entropy,
        "share_of_entropy_explained": information / entropy if entropy else None,
        "best_guess_without": float(counts.sum(0).max() / n),
        "best_guess_given_row": float(counts.max(1).sum() / n),
        "permutation": {
            "replicates": replicates,
            "cramers_v_mean": float(v_permuted.mean()),
            "cramers_v_95th": float(np.quantile(v_permuted, 0.95)),
            "cramers_v_largest": float(v_permuted.max()),
            "p": statistics.exceedance_p(float(np.sqrt(chi / (n * smaller))), v_permuted),
        },
        "residuals": _residuals(counts),
    }


def _log10_p(chi: float, freedom: int) -> float:
    """log10 of the p of χ², also where p itself is too small for a number, as for strong associations of many rows."""
    log = float(stats.chi2.logsf(chi, freedom))
    if not np.isfinite(log):  # SciPy's is the logarithm of an underflowed p: the first terms of the tail's expansion
        a, x = freedom / 2, chi / 2
        log = (a - 1) * np.log(x) - x - float(special.gammaln(a)) + np.log1p((a - 1) / x)
    return float(log / np.log(10))


def _word(w: float) -> str:
    return next(word for word, bound in _WORDS if w < bound)


def _strength_words(low: float, high: float) -> str:
    """Cohen's words for both ends of an interval of w, or his one word if they agree."""
    return " to ".join(dict.fromkeys((_word(low), _word(high))))


def _residuals(counts: ndarray) -> dict[str, Any]:
    """Adjusted standardised residuals, with exact p-values after Holm and after Benjamini and Hochberg."""
    residuals, exact = statistics.adjusted_residuals(counts), statistics.exact_cell_p(counts)
    tested = np.isfinite(exact)
    p = exact[tested]

    def grid(values: ndarray) -> list[list[float | None]]:
        whole = np.full(counts.shape, np.nan)
        whole[tested] = values
        return [[float(v) if np.isfinite(v) else None for v in row] for row in whole]

    return {
        "tests": int(tested.sum()),
        "value": grid(residuals[tested]),
        "p": grid(p),
        "p_holm": grid(statistics.holm(p)),
        "p_benjamini_hochberg": grid(stats.false_discovery_control(p) if len(p) else p),
    }


def _sentences(crossed: Crossed, found: Mapping[str, Any]) -> list[str]:
    v, permutation, residuals = found["cramers_v_corrected"], found["permutation"], found["residuals"]
    r, c = len(crossed.row_names), len(crossed.column_names)
    p = f"{found['p']:.2g}" if found["p"] > 1e-300 else f"10^{found['log10_p']:.0f}"
    cells = []
    values, adjusted = residuals["value"], residuals["p_holm"]
    for i, j in np.ndindex(r, c):
        if adjusted[i][j] is not None and adjusted[i][j] < SIGNIFICANT:
            cells.append((values[i][j], f"{crossed.row_names[i]} {crossed.column_names[j]} {values[i][j]:+.1f}"))
    cells.sort(key=lambda cell: -abs(cell[0]))
    row, column = crossed.row, crossed.column
    guesses = [f"{found[name]:.1%}" for name in ("best_guess_without", "best_guess_given_row")]
    sentences = [
        f"{_headline(found)}: Cramér's V {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f}, "
        f"bias-corrected), χ² = {found['chi_square']:.1f} with {found['degrees_of_freedom']} degrees of freedom, "
        f"p = {p}, n = {found['n']:,}.",
        f"Shuffled labels give V {permutation['cramers_v_mean']:.3f} on average and "
        f"{permutation['cramers_v_largest']:.3f} at most in {permutation['replicates']:,} permutations "
        f"(uncorrected here: {found['cramers_v']:.3f}; p = {permutation['p']:.2g}).",
        f"Knowing the {row} removes {found['share_of_entropy_explained']:.1%} of the uncertainty about the {column} "
        f"({found['mutual_information_bits']:.3f} of {found['entropy_of_columns_bits']:.3f} bits; shuffled labels "
        f"{found['mutual_information_bits_of_chance']:.3f} on average). The most frequent {column} is right in "
        + (
            f"{guesses[0]} of the samples; the most frequent {column} of each {row} is not right more often."
            if guesses[0] == guesses[1]
            else f"{guesses[0]} of the samples, the most frequent {column} of each {row} in {guesses[1]}."
        ),
        f"{len(cells)} of {residuals['tests']} cells differ from independence by Fisher's exact test after Holm's "
        f"correction at {SIGNIFICANT}"
        + (f"; the furthest, in standard errors: {', '.join(t for _, t in cells[:6])}." if cells else "."),
    ]
    if found["cells_expected_below_5"]:
        sentences.append(
            f"{found['cells_expected_below_5']} cells are expected to hold fewer than "
            f"{statistics.LEAST_EXPECTED} samples: trust the permutation's p, not that of χ²; single samples in such "
            "cells can make V large."
        )
    return sentences


def _headline(found: Mapping[str, Any]) -> str:
    """The strength, claimed no more firmly than the interval allows."""
    strength, n = found["strength"], found["n"]
    if found["cramers_v_corrected"]["low"] > 0 or " to " not in strength:
        return f"The association is {strength}"
    most = strength.rpartition(" ")[2]
    if found["permutation"]["p"] < SIGNIFICANT:
        return f"There is an association, but {n:,} rows do not show how strong: anything from nearly none to {most}"
    return f"With {n:,} rows the association cannot be distinguished from none, and could be {most}"


def accuracy_by_row(
    counts: Int[ndarray, "rows columns"],
    correct: Int[ndarray, "rows columns"],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether the share of correct answers depends on the row (Tables 4.2 and 4.6 of the thesis).

    The test permutes the rows' labels among the samples of each column, so that a row with more samples of easier
    columns shows no effect. Its statistic is Σ (correct − expected)² / (expected + 1) over rows.

    Args:
        counts: samples in each cell.
        correct: how many of them were predicted correctly.

    Raises:
        UserError: a cell has more correct samples than samples.
    """
    counts, correct = np.asarray(counts, np.int64), np.asarray(correct, np.int64)
    if counts.shape != correct.shape or (correct > counts).any() or (correct < 0).any():
        raise UserError("correct per cell: expected a table of the same shape, each cell between 0 and its count")
    strata = np.stack((correct, counts - correct), -1)  # rows, columns, right/wrong
    expected = sum(statistics.expected_counts(s)[:, 0] for s in np.moveaxis(strata, 1, 0) if s.sum())
    if not isinstance(expected, np.ndarray):
        return absent("no sample in any cell")
    drawn = np.zeros((replicates, len(counts)))
    for column in range(counts.shape[1]):
        if strata[:, column].sum():
            drawn += statistics.permuted_tables(strata[:, column], replicates, seed + column)[..., 0]

    def statistic(right: ndarray) -> ndarray:
        return ((right - expected) ** 2 / (expected + 1)).sum(-1)

    def cell(k: int, n: int) -> dict[str, Any]:
        return share(int(k), int(n), reason="empty cell")

    right = correct.sum(1)
    return {
        "n": int(counts.sum()),
        "cells": {
            row: {column: cell(correct[i, j], counts[i, j]) for j, column in enumerate(column_names)}
            for i, row in enumerate(row_names)
        },
        "rows": {name: cell(right[i], counts[i].sum()) for i, name in enumerate(row_names)},
        "columns": {n: cell(correct[:, j].sum(), counts[:, j].sum()) for j, n in enumerate(column_names)},
        "expected_correct_of_rows": dict(zip(row_names, map(float, expected), strict=True)),
        "permutation_p": statistics.exceedance_p(float(statistic(right)), statistic(drawn)),
        "replicates": replicates,
    }
