"""Metrics of a predictions table: each with its count and interval, or the reason why it is absent.

The layers, from the table to the page:

    1. A table: one row per sample with truth and prediction (columns.py).
    2. Statistics of one sample: its confusion matrix with a single 1 (classes.py), its errors in degrees (pose.py),
       truth, prediction, their squares and product (affect.py).
    3. Sums of these statistics: over all samples, and over people drawn with replacement (values.Resampling).
    4. A metric is a function of sums: the sum over all samples gives the value, the drawn sums give the interval
       (values.figure). One number with its interval is a "figure" in this code.
    5. All metrics, for the whole table and for each group of samples: :func:`figures` below, plain JSON without NaN.

From there to the page: evaluate/measure.py (rows_of) writes the table as RUN/evaluate/NAME.parquet and the result of
:func:`figures` as RUN/evaluate/NAME.json. report/load.py reads them; report/page.py, report/tables.py and
report/templates/run.html make the page. markdown.headline_figures chooses the headline values.

Why the values do not come from torchmetrics, whose ``Metric`` training uses (hpe.train.metrics): training needs each
value once per epoch. Evaluation needs it a thousand times, once per draw. A torchmetrics function takes predictions,
so each draw would process all samples again. A function of sums takes all draws at once as an array, and value and
interval cannot follow different definitions. Drawing people needs all their samples together, wherever the ranks
read them: that is why rank 0 computes everything from one table. Values without an interval (Brier score, quantiles)
come from the samples directly. The tests judge by scikit-learn and SciPy.

In reading order:

    columns.py        the columns of a predictions table as arrays with masks
    values.py         one result: value, count, interval, or why it is absent
    classes.py        accuracy, F1, confusion, calibration
    pose.py           errors of angles, geodesic error, by range
    affect.py         valence and arousal
    markdown.py       results as Markdown tables
    paired.py         two networks on the same samples
    across_seeds.py   one model with several seeds
    association.py    how strongly direction and emotion go together
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS, Emotion
from hpe.core.statistics import CONFIDENCE, REPLICATES, cross_table
from hpe.metrics import affect, classes, pose
from hpe.metrics.columns import Guesses, Labels, Numbers, guesses, judged, labels, numbers, texts, units
from hpe.metrics.markdown import overview, to_markdown
from hpe.metrics.values import Figure, Resampling, absent, share, too_few

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SCHEMA", "figures", "overview", "to_markdown"]

SCHEMA: Final = 1
_GROUPS_SHOWN: Final = 40
"""Values of one group column that are shown; all rarer values together count as one."""


@dataclass(frozen=True, slots=True)
class _Table:
    emotion: Labels | None
    emotion_guess: Guesses | None
    direction: Labels | None
    direction_guess: Guesses | None
    angles: Numbers | None
    angles_guess: Numbers | None
    affect: dict[str, tuple[Numbers | None, Numbers | None]]

    @classmethod
    def read(cls, table: "pa.Table") -> Self:
        return cls(
            labels(table, "emotion", len(EMOTIONS)),
            guesses(table, "emotion", len(EMOTIONS)),
            labels(table, "direction", len(DIRECTIONS)),
            guesses(table, "direction", len(DIRECTIONS)),
            numbers(table, ANGLES),
            numbers(table, [f"{name}_hat" for name in ANGLES]),
            {name: (numbers(table, [name]), numbers(table, [f"{name}_hat"])) for name in ("valence", "arousal")},
        )


def figures(
    table: "pa.Table",
    *,
    trained: Mapping[str, Collection[int]] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of a predictions table, as JSON.

    Args:
        table: one row per sample (see :mod:`hpe.metrics.columns`).
        trained: for ``emotion`` and ``direction``, the classes that the network was trained on; missing: unknown.
        replicates: bootstrap draws.
        seed: of the draws; the same table and seed give the same values.

    Raises:
        UserError: the table is empty, or a column holds values of the wrong kind.
    """
    if not table.num_rows:
        raise UserError("predictions: the table has no rows; expected one per sample")
    unit, by_subject = units(table)
    count = len(np.unique(unit))
    draw = Resampling(unit, by_subject, replicates, seed)
    read, known = _Table.read(table), trained or {}
    deviation = numbers(table, [f"{name}_sd" for name in ANGLES])
    return {
        "schema": SCHEMA,
        "rows": table.num_rows,
        "interval": {
            "confidence": CONFIDENCE,
            "method": _method(by_subject, count),
            "unit": "subject" if by_subject else "image",
            "units": count,
            "replicates": replicates,
            "seed": seed,
        },
        "emotion": classes.classification(read.emotion, read.emotion_guess, draw, EMOTIONS, "emotion"),
        "protocols": _protocols(read, draw),
        "shared": {
            "emotion": classes.shared(
                read.emotion, read.emotion_guess, draw, EMOTIONS, "emotion", trained=known.get("emotion")
            ),
            "direction": classes.shared(
                read.direction, read.direction_guess, draw, DIRECTIONS, "direction", trained=known.get("direction")
            ),
        },
        "direction": classes.classification(read.direction, read.direction_guess, draw, DIRECTIONS, "direction"),
        "pose": pose.pose(read.angles, read.angles_guess, deviation, draw),
        **{name: affect.affect(*pair, draw, name) for name, pair in read.affect.items()},
        "cells": _cells(read),
        "by": {
            name: {value: _brief(read, rows, draw) for value, rows in parts} for name, parts in _partitions(table, read)
        },
    }


def _method(by_subject: bool, count: int) -> str:
    if by_subject and too_few(count):
        return "no bootstrap, too few subjects; Wilson in cells and bins"
    if by_subject:
        return "bias-corrected bootstrap over subjects; Wilson in cells and bins"
    return "bias-corrected bootstrap over images; Wilson for accuracy, top-2, precision, recall, cells and bins"


def _protocols(read: _Table, draw: Resampling) -> Figure:
    """AffectNet's two protocols: eight labels, and seven without contempt."""
    made = {"affectnet_8": classes.brief(read.emotion, read.emotion_guess, draw, EMOTIONS, "emotion")}
    if read.emotion is None or read.emotion_guess is None:
        return made | {"affectnet_7": made["affectnet_8"]}
    seven = classes.among(read.emotion, read.emotion_guess, set(Emotion) - {Emotion.CONTEMPT})
    return made | {"affectnet_7": classes.brief(*seven, draw, EMOTIONS, "emotion")}


def _cells(read: _Table) -> Figure:
    """Emotion accuracy in each cell of direction × emotion, with Wilson's intervals."""
    found = judged(read.emotion, read.emotion_guess, "emotion")
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    if read.direction is None or not (rows & read.direction.mask).any():
        return absent("no sample has a direction label, an emotion label and an emotion prediction")
    rows = rows & read.direction.mask
    counts = np.zeros((2, len(DIRECTIONS), len(EMOTIONS)), int)
    right = (truth.value == guess.choice)[rows]
    direction, emotion = read.direction.value[rows], truth.value[rows]
    counts[0] = cross_table(direction, emotion, len(DIRECTIONS), len(EMOTIONS))
    counts[1] = cross_table(direction[right], emotion[right], len(DIRECTIONS), len(EMOTIONS))
    return {
        "n": int(rows.sum()),
        "rows": list(DIRECTIONS),
        "columns": list(EMOTIONS),
        "count": counts[0].tolist(),
        "correct": counts[1].tolist(),
        "accuracy": [
            [share(int(k), int(n), reason="empty cell") for k, n in zip(correct, count, strict=True)]
            for count, correct in zip(counts[0], counts[1], strict=True)
        ],
    }


def _partitions(table: "pa.Table", read: _Table) -> Iterator[tuple[str, list[tuple[str, Bool[ndarray, " rows"]]]]]:
    for name, column, names in (
        ("direction", read.direction, DIRECTIONS),
        ("emotion", read.emotion, EMOTIONS),
    ):
        if column is not None:
            yield name, [(value, column.mask & (column.value == i)) for i, value in enumerate(names)]
    if read.angles is not None:
        for index, name in enumerate(ANGLES[:2]):
            yield (
                name,
                [(value, read.angles.mask & rows) for value, rows in pose.ranges(read.angles.value[:, index])],
            )
    for name in sorted(set(table.column_names)):
        if name.startswith("group_") and (values := texts(table, name)) is not None:
            yield name, _group_parts(values)


def _group_parts(values: list[str | None]) -> list[tuple[str, Bool[ndarray, " rows"]]]:
    array = np.array(["" if value is None else value for value in values], object)
    known = np.array([value is not None for value in values])
    found, counts = np.unique(array[known], return_counts=True)
    shown = sorted(found[np.argsort(-counts, kind="stable")][:_GROUPS_SHOWN])
    parts = [(str(value), known & (array == value)) for value in shown]
    rest = known & ~np.any([rows for _, rows in parts], axis=0)
    return [*parts, (f"({len(found) - len(shown)} others)", rest)] if rest.any() else parts


def _brief(read: _Table, rows: Bool[ndarray, " rows"], draw: Resampling) -> Figure:
    """The main metrics of some of the rows."""

    def cut(column: Any) -> Any:
        return None if column is None else replace(column, mask=column.mask & rows)

    made: Figure = {
        "rows": int(rows.sum()),
        "emotion": classes.brief(cut(read.emotion), cut(read.emotion_guess), draw, EMOTIONS, "emotion"),
        "direction": classes.brief(cut(read.direction), cut(read.direction_guess), draw, DIRECTIONS, "direction"),
        "pose": pose.brief(cut(read.angles), cut(read.angles_guess), draw),
    }
    for name, (truth, guess) in read.affect.items():
        made[name] = affect.affect(cut(truth), cut(guess), draw, name)
    return made
