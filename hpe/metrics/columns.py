"""The columns of a predictions table as arrays with masks.

A predictions table has one row per sample: ``key``, ``shard``, ``split``, ``emotion`` and ``direction``
(truth, null where not labelled), ``emotion_p`` and ``direction_p`` (lists of probabilities) or, for a
classifier that gives no probabilities, ``emotion_hat`` and ``direction_hat``; ``yaw pitch roll`` and ``yaw_hat …``
with ``yaw_sd …`` (degrees); ``valence arousal`` and ``…_hat``; ``source``, ``subject`` and any number of
``group_<name>``. Columns that a metric does not need may be missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from hpe.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of classes; where the mask is false, the class is any number in range."""

    value: Int[ndarray, " rows"]
    mask: Bool[ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class Guesses:
    """What a classifier chose and, if it gives them, the probabilities of the classes."""

    choice: Int[ndarray, " rows"]
    mask: Bool[ndarray, " rows"]
    probability: Float[ndarray, "rows classes"] | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """Columns of numbers side by side; the mask is true where all numbers of a row are finite."""

    value: Float[ndarray, "rows k"]
    mask: Bool[ndarray, " rows"]


Key = tuple[str | None, str | None]
"""Shard and key of a sample."""
T = TypeVar("T", Labels, Numbers)
G = TypeVar("G", Guesses, Numbers)


def labels(table: "pa.Table", name: str, classes: int) -> Labels | None:
    """An integer column, None if the table has no such column, or only nulls in it.

    Raises:
        UserError: not integers, or an integer outside 0..classes-1.
    """
    import pyarrow as pa

    column = _column(table, name)
    if column is None:
        return None
    if not pa.types.is_integer(column.type):
        raise UserError(f"column {name}: {column.type} found; expected integers 0..{classes - 1} or null")
    mask = np.asarray(column.is_valid())
    value = np.asarray(column.fill_null(0)).astype(np.int64)
    wrong = mask & ((value < 0) | (value >= classes))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"column {name}, row {row}: {value[row]} found; expected 0..{classes - 1} or null")
    return Labels(value, mask)


def guesses(table: "pa.Table", name: str, classes: int) -> Guesses | None:
    """``<name>_p`` (lists of ``classes`` numbers) or ``<name>_hat`` (integers), None if neither exists.

    Raises:
        UserError: a list of another length, or not numbers.
    """
    import pyarrow as pa

    column = _column(table, f"{name}_p")
    if column is None:
        chosen = labels(table, f"{name}_hat", classes)
        return None if chosen is None else Guesses(chosen.value, chosen.mask, None)
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        raise UserError(f"column {name}_p: {column.type} found; expected lists of {classes} numbers")
    present = np.asarray(column.is_valid())
    lists = column.combine_chunks().cast(pa.list_(pa.float64()))
    lengths = np.asarray(lists.value_lengths().fill_null(classes))
    if (lengths != classes).any():
        row = int(np.argmax(lengths != classes))
        raise UserError(f"column {name}_p, row {row}: {lengths[row]} numbers found; expected {classes}")
    probability = np.zeros((len(column), classes))
    probability[present] = np.asarray(lists.drop_null().flatten().fill_null(float("nan"))).reshape(-1, classes)
    mask = present & np.all(np.isfinite(probability), axis=1)
    probability[~mask] = 0.0
    return Guesses(probability.argmax(1), mask, probability)


def numbers(table: "pa.Table", names: Sequence[str]) -> Numbers | None:
    """Columns of numbers, None if one of them is missing or holds only nulls.

    Raises:
        UserError: a column of something else.
    """
    import pyarrow as pa

    columns = [_column(table, name) for name in names]
    found = [column for column in columns if column is not None]
    if len(found) < len(columns):
        return None
    for name, column in zip(names, found, strict=True):
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise UserError(f"column {name}: {column.type} found; expected numbers")
    value = np.stack([np.asarray(c.cast(pa.float64()).fill_null(float("nan"))) for c in found], 1)
    mask = np.asarray(np.all(np.isfinite(value), axis=1))
    return Numbers(np.where(mask[:, None], value, 0.0), mask)


def texts(table: "pa.Table", name: str) -> list[str | None] | None:
    """A column as texts, None if it is missing or holds only nulls."""
    column = _column(table, name)
    return None if column is None else [None if v is None else str(v) for v in column.to_pylist()]


def sample_keys(table: "pa.Table") -> list[Key] | None:
    """Shard and key of each row, None if the table has no keys."""
    keys = texts(table, "key")
    return None if keys is None else list(zip(texts(table, "shard") or [None] * len(keys), keys, strict=True))


def judged(truth: T | None, guess: G | None, what: str) -> tuple[T, G, Bool[ndarray, " rows"]] | str:
    """Both columns and the rows that have a label and a prediction, or the reason why there is no such row."""
    if guess is None:
        return f"the run has no {what} predictions"
    if truth is None:
        return f"no sample has a label of {what}"
    rows = truth.mask & guess.mask
    if not rows.any():
        return f"no sample has both a label of {what} and a prediction"
    return truth, guess, rows


def units(table: "pa.Table") -> tuple[Int[ndarray, " rows"], bool]:
    """The number of the unit that each row is resampled with, and whether units are subjects."""
    subjects = texts(table, "subject")
    if subjects is None:
        return np.arange(table.num_rows), False
    number: dict[Any, int] = {}
    # A row without a subject is its own unit.
    names = [(row,) if subject is None else subject for row, subject in enumerate(subjects)]
    unit = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
    return unit, len(number) < table.num_rows


def _column(table: "pa.Table", name: str) -> "pa.ChunkedArray | None":
    if table.column_names.count(name) > 1:
        raise UserError(f"column {name}: {table.column_names.count(name)} columns of that name; expected one")
    if name not in table.column_names:
        return None
    column = table.column(name)
    return None if column.null_count == len(column) else column
