"""Which samples a balanced subset takes: as many from every cell, a direction with an emotion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.tables import arrow
from hpe.pack import splits

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_DIGITS: Final = 9
_MOST_NAMED: Final = 6
_CELLS: Final = len(DIRECTIONS) * len(EMOTIONS)


@dataclass(frozen=True, slots=True)
class OptionNames:
    """How messages name the options: as on the command line, or as the keys of a config."""

    per_cell: str = "--per-cell"
    directions: str = "--directions"
    emotions: str = "--emotions"


COMMAND_LINE: Final = OptionNames()


def samples_per_cell(text: str, found: Sequence[str], names: OptionNames) -> dict[str, int]:
    """How many samples each cell gives in each split.

    Args:
        text: ``80/40/20`` for train, val and test, or one number for every split.
        found: the splits of the shards.

    Raises:
        UserError: another text, or a number for a split that the shards lack.
    """
    numbers = text.split("/")
    sensible = all(number.isdecimal() and len(number) <= _MOST_DIGITS for number in numbers)
    if not sensible or len(numbers) not in (1, 3) or not any(map(int, numbers)):
        raise UserError(
            f"{names.per_cell} {text[:40]!r}: expected a number, or three for train/val/test such as 80/40/20"
        )
    if len(numbers) == 1:
        return dict.fromkeys(found, int(text))
    wanted = {name: int(number) for name, number in zip(splits.SPLITS, numbers, strict=True) if int(number)}
    if absent := [name for name in wanted if name not in found]:
        zeros = "/".join(number if name in found else "0" for name, number in zip(splits.SPLITS, numbers, strict=True))
        raise UserError(
            f"{names.per_cell} {text}: these shards have no {' and no '.join(absent)} (they have {', '.join(found)}); "
            f"use {names.per_cell} {zeros}, or pack with --val-share and --test-share"
        )
    return wanted


def choose(
    faces: Mapping[str, "Dataset"],
    wanted: Mapping[str, int],
    labels: tuple[Sequence[int], Sequence[int] | None],
    seed: int,
    names: OptionNames,
) -> dict[str, "Dataset"]:
    """The chosen samples of each split, in random order: a function of the keys and the seed alone.

    Args:
        faces: the samples of each split (:func:`hpe.tables`).
        wanted: how many of each cell, by split.
        labels: directions and emotions to take from; None: every emotion that a sample with a direction has.

    Raises:
        UserError: a cell with fewer samples than wanted.
    """
    cells = {name: _cells(faces[name]) for name in wanted}
    counts = {name: np.bincount(found[found >= 0], minlength=_CELLS) for name, found in cells.items()}
    directions, emotions = labels
    if emotions is None:
        found = np.sum(list(counts.values()), 0).reshape(len(DIRECTIONS), len(EMOTIONS))
        emotions = np.flatnonzero(found.any(0)).tolist()
    grid = [direction * len(EMOTIONS) + emotion for direction in directions for emotion in emotions]
    if not grid:
        raise UserError("no sample has both an emotion and a direction; nothing can be balanced")
    _refuse_short_cells(counts, wanted, grid, names)
    return {name: faces[name].select(_first(faces[name], cells[name], grid, wanted[name], seed)) for name in wanted}


def _cells(faces: "Dataset") -> Int[np.ndarray, " rows"]:
    """The cell of each sample, by direction and then emotion; -1 where it lacks one of them."""
    table = arrow(faces)
    direction, emotion = (table[name].fill_null(-1).to_numpy() for name in ("direction", "emotion"))
    return np.where((direction >= 0) & (emotion >= 0), direction * len(EMOTIONS) + emotion, -1)


def _first(
    faces: "Dataset", cells: Int[np.ndarray, " rows"], grid: Sequence[int], number: int, seed: int
) -> Int[np.ndarray, " chosen"]:
    """The first rows of each cell, all in the order of their keys' random numbers."""
    rows = np.flatnonzero(np.isin(cells, grid))
    keys = arrow(faces)["key"].take(pa.array(rows))
    ranks = pa.array([splits.order(seed, key) for key in keys.to_pylist()], pa.uint64())
    # Two keys may have the same number: their own order then decides, on every machine.
    ranked = pa.table({"rank": ranks, "key": keys, "row": rows}).sort_by([("rank", "ascending"), ("key", "ascending")])
    rows = ranked["row"].to_numpy()
    taken = [np.flatnonzero(cells[rows] == cell)[:number] for cell in grid]
    return rows[np.sort(np.concatenate(taken))]


def _refuse_short_cells(
    counts: Mapping[str, Int[np.ndarray, " cells"]], wanted: Mapping[str, int], grid: Sequence[int], names: OptionNames
) -> None:
    short = [
        (name, cell, int(counts[name][cell]), number)
        for name, number in wanted.items()
        for cell in grid
        if counts[name][cell] < number
    ]
    if not short:
        return
    fits = {name: min(number, *counts[name][grid].tolist()) for name, number in wanted.items()}
    largest = "/".join(str(fits.get(name, 0)) for name in splits.SPLITS)
    way_out = (
        f"{names.per_cell} {largest} works"
        if all(fits.values())
        else "a cell without a sample cannot be balanced: leave its label out with "
        f"{names.directions} or {names.emotions}, or use another direction rule, or more data"
    )
    short.sort(key=lambda cell: cell[2] / cell[3])
    lines = [
        f"  {name}, {DIRECTIONS[cell // len(EMOTIONS)]} × {EMOTIONS[cell % len(EMOTIONS)]}: {count:,} of {number:,}"
        for name, cell, count, number in short[:_MOST_NAMED]
    ]
    if len(short) > _MOST_NAMED:
        lines.append(f"  and {len(short) - _MOST_NAMED:,} more")
    raise UserError(f"{len(short)} cells have too few samples:\n" + "\n".join(lines) + f"\n{way_out}")
