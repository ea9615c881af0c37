"""Which samples a balanced subset takes: as many from every cell, a direction with an emotion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.shards import ShardInfo
from hpe.pack import splits

_MOST_DIGITS: Final = 9
_MOST_NAMED: Final = 6
Cell = tuple[int, int]
"""Direction, emotion."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: shard and row in it."""

    shard: ShardInfo
    row: int
    key: str


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
    cells: Mapping[str, Mapping[Cell, list[Place]]],
    wanted: Mapping[str, int],
    grid: Sequence[Cell],
    seed: int,
    names: OptionNames,
) -> dict[str, list[Place]]:
    """The chosen samples of each split, in random order: a function of the keys and the seed alone.

    Args:
        cells: the samples of each cell, by split.
        wanted: how many of each cell, by split.
        grid: the cells to take from.

    Raises:
        UserError: a cell with fewer samples than wanted.
    """
    if not grid:
        raise UserError("no sample has both an emotion and a direction; nothing can be balanced")
    _refuse_short_cells(cells, wanted, grid, names)

    def rank(place: Place) -> tuple[int, str]:
        return splits.order(seed, place.key), place.key

    return {
        name: sorted((p for cell in grid for p in sorted(cells[name][cell], key=rank)[:number]), key=rank)
        for name, number in wanted.items()
    }


def _refuse_short_cells(
    cells: Mapping[str, Mapping[Cell, list[Place]]],
    wanted: Mapping[str, int],
    grid: Sequence[Cell],
    names: OptionNames,
) -> None:
    counts = {name: {cell: len(cells[name].get(cell, ())) for cell in grid} for name in wanted}
    short = [
        (name, cell, count, wanted[name])
        for name, of_split in counts.items()
        for cell, count in of_split.items()
        if count < wanted[name]
    ]
    if not short:
        return
    fits = {name: min(number, *counts[name].values()) for name, number in wanted.items()}
    largest = "/".join(str(fits.get(name, 0)) for name in splits.SPLITS)
    way_out = (
        f"{names.per_cell} {largest} works"
        if all(fits.values())
        else "a cell without a sample cannot be balanced: leave its label out with "
        f"{names.directions} or {names.emotions}, or use another direction rule, or more data"
    )
    short.sort(key=lambda cell: cell[2] / cell[3])
    lines = [
        f"  {name}, {DIRECTIONS[direction]} × {EMOTIONS[emotion]}: {count:,} of {number:,}"
        for name, (direction, emotion), count, number in short[:_MOST_NAMED]
    ]
    if len(short) > _MOST_NAMED:
        lines.append(f"  and {len(short) - _MOST_NAMED:,} more")
    raise UserError(f"{len(short)} cells have too few samples:\n" + "\n".join(lines) + f"\n{way_out}")
