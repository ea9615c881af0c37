"""Which sample comes at which position: pure arithmetic over sample counts, never over buffers.

An epoch of a dataset deals its shards out into windows by (seed, epoch) and permutes the samples of each
window; the endless sequence is one epoch after another. Of neighbouring shards each window gets one, so that
a window of a dataset sorted by class holds every class in its share. The sample at position n follows from
(counts, seed, n) alone: nothing is skipped on resume, and the number of ranks and workers plays no part (see
:mod:`hpe.core.randomness` for the permutations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
from jaxtyping import Int64

from hpe.core.errors import UserError
from hpe.core.randomness import hashes, permutation

BLOCK: Final = 1000
"""Positions within which the datasets of a mix (or the classes of a balance) have their exact shares."""

_SHARDS_OF_CLASSES: Final = 96
"""Shards in the windows of all classes of a balance together. Their readers have these and the next ones open (192 in
:mod:`hpe.stream.open_files`), and a node has them in its cache."""

# What is drawn, as the first number behind the seed, so that draws of one kind never repeat those of another. With
# other numbers a resumed run would see other samples than it would have seen without the stop.
_SHARDS_OF_WINDOWS, _ROWS_OF_WINDOW, _PARTS_OF_BLOCK, _SEED_OF_CLASS = 1, 2, 3, 4

Picks = Int64[np.ndarray, "positions 3"]
"""Per position: dataset, shard in the dataset, row in the shard."""

Places = list[tuple[int, int]]
"""Shards: dataset, shard in the dataset."""

_IN_ORDER_WINDOW: Final = 4


class Order(Protocol):
    """A sequence of samples."""

    length: int | None
    """Positions in all, or None when endless."""

    def at(self, start: int, stop: int) -> Picks:
        """The samples at positions start .. stop - 1."""
        ...

    def windows(self, position: int) -> tuple[Places, Places]:
        """The shards that are read around a position, and those that are read next."""
        ...


class InOrder:
    """Every sample of every dataset once, in order of dataset, shard and row."""

    def __init__(self, counts: Sequence[Sequence[int]]) -> None:
        flat = [(d, s, n) for d, shards in enumerate(counts) for s, n in enumerate(shards)]
        self._places = np.asarray([(d, s) for d, s, _ in flat], np.int64).reshape(-1, 2)
        self._ends = np.cumsum([n for _, _, n in flat], dtype=np.int64)
        self.length: int | None = int(self._ends[-1]) if len(flat) else 0

    def at(self, start: int, stop: int) -> Picks:
        """See :class:`Order`."""
        return _locate(self._places, self._ends, np.arange(start, stop))

    def windows(self, position: int) -> tuple[Places, Places]:
        """See :class:`Order`: a few shards."""
        here = int(np.searchsorted(self._ends, position, side="right"))
        middle, end = here + _IN_ORDER_WINDOW, here + 2 * _IN_ORDER_WINDOW
        return _pairs(self._places[here:middle]), _pairs(self._places[middle:end])


class Shuffled:
    """One dataset, endless, each sample exactly once an epoch."""

    length: int | None = None

    def __init__(self, counts: Sequence[int], *, seed: int, window: int, dataset: int = 0) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.samples = int(self.counts.sum())
        self._seed, self._window, self.dataset = seed, window, dataset
        # A batch may reach over the end of a window or an epoch. What is forgotten here is computed again, the same.
        self._epoch = lru_cache(4)(self._epoch_at)
        self._shuffled = lru_cache(4)(self._window_at)

    def at(self, start: int, stop: int) -> Picks:
        """See :class:`Order`."""
        parts = []
        while start < stop:
            epoch, inside = divmod(start, self.samples)
            _, ends = self._epoch(epoch)
            window = int(np.searchsorted(ends, inside, side="right"))
            first = int(ends[window - 1]) if window else 0
            take = min(stop - start, int(ends[window]) - inside)
            parts.append(self._shuffled(epoch, window)[inside - first : inside - first + take])
            start += take
        return np.concatenate(parts) if parts else np.empty((0, 3), np.int64)

    def windows(self, position: int) -> tuple[Places, Places]:
        """See :class:`Order`."""
        epoch, inside = divmod(position, self.samples)
        shards, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        after = shards[window + 1] if window + 1 < len(shards) else self._epoch(epoch + 1)[0][0]
        return [(self.dataset, s) for s in shards[window].tolist()], [(self.dataset, s) for s in after.tolist()]

    def _epoch_at(self, epoch: int) -> tuple[tuple[Int64[np.ndarray, " shards"], ...], Int64[np.ndarray, " windows"]]:
        """The shards of each window, and the position in the epoch at which each window ends."""
        shards = len(self.counts)
        windows = -(-shards // self._window)
        groups = -(-shards // windows)
        draw = hashes(self._seed, _SHARDS_OF_WINDOWS, epoch, count=groups * windows).reshape(groups, windows)
        table = np.argsort(draw, axis=1, kind="stable") + np.arange(groups)[:, None] * windows
        # A row is a group of neighbouring shards, a column is a window; the last group may lack shards.
        columns = tuple(column[column < shards] for column in table.T)
        return columns, np.cumsum([self.counts[column].sum() for column in columns])

    def _window_at(self, epoch: int, window: int) -> Picks:
        shards = self._epoch(epoch)[0][window]
        ends = np.cumsum(self.counts[shards])
        places = np.stack((np.full_like(shards, self.dataset), shards), 1)
        return _locate(places, ends, permutation(self._seed, _ROWS_OF_WINDOW, epoch, window, count=int(ends[-1])))


class Together:
    """Several datasets as if they were one: an epoch has each sample of all of them exactly once."""

    length: int | None = None

    def __init__(self, counts: Sequence[Sequence[int]], *, seed: int, window: int) -> None:
        self._places = np.asarray([(d, s) for d, shards in enumerate(counts) for s in range(len(shards))], np.int64)
        self._order = Shuffled([n for shards in counts for n in shards], seed=seed, window=window)

    def at(self, start: int, stop: int) -> Picks:
        """See :class:`Order`."""
        picks = self._order.at(start, stop)
        return np.column_stack((self._places[picks[:, 1]], picks[:, 2]))

    def windows(self, position: int) -> tuple[Places, Places]:
        """See :class:`Order`."""
        now, after = self._order.windows(position)
        return _pairs(self._places[[s for _, s in now]]), _pairs(self._places[[s for _, s in after]])


class OfDataset(Order, Protocol):
    """An order of samples of one dataset."""

    dataset: int


class Mixed:
    """Several orders mixed: in each block of 1,000 positions every part has its exact share.

    A part's share is its weight in thousandths, rounded (largest remainder), at least one.
    """

    length: int | None = None

    def __init__(self, parts: Sequence[OfDataset], weights: Sequence[float], *, seed: int) -> None:
        self._parts, self._seed = parts, seed
        self.shares = shares_of(weights, BLOCK)
        self._block = lru_cache(8)(self._block_at)

    def share_of(self, dataset: int) -> float:
        """The fraction of the positions that a dataset has."""
        shares = zip(self._parts, self.shares, strict=True)
        return sum(share for part, share in shares if part.dataset == dataset) / BLOCK

    def at(self, start: int, stop: int) -> Picks:
        """See :class:`Order`."""
        picks = np.empty((stop - start, 3), np.int64)
        at = start
        while at < stop:
            block, inside = divmod(at, BLOCK)
            take = min(stop - at, BLOCK - inside)
            which = self._block(block)
            here, out = which[inside : inside + take], picks[at - start : at - start + take]
            for part in np.unique(here):
                share = self.shares[part]
                first = block * share + int(np.count_nonzero(which[:inside] == part))
                mine = here == part
                out[mine] = self._parts[part].at(first, first + int(np.count_nonzero(mine)))
            at += take
        return picks

    def windows(self, position: int) -> tuple[Places, Places]:
        """See :class:`Order`: the windows of all parts, each where it is now."""
        block, inside = divmod(position, BLOCK)
        seen = np.bincount(self._block(block)[:inside], minlength=len(self._parts)).tolist()
        both = [
            part.windows(block * share + of_part)
            for part, share, of_part in zip(self._parts, self.shares, seen, strict=True)
        ]
        now, after = (list(dict.fromkeys(place for part in side for place in part)) for side in zip(*both, strict=True))
        return now, after

    def _block_at(self, block: int) -> Int64[np.ndarray, " positions"]:
        of_part = np.repeat(np.arange(len(self.shares)), self.shares)
        return of_part[permutation(self._seed, _PARTS_OF_BLOCK, block, count=BLOCK)]


def shares_of(weights: Sequence[float], whole: int) -> tuple[int, ...]:
    """``whole`` divided by weights into integers of at least one (largest remainder).

    Raises:
        UserError: more weights than ``whole``.
    """
    if len(weights) > whole:
        raise UserError(
            f"{len(weights):,} datasets (or classes of datasets) cannot be mixed: each has at least one of {whole:,} "
            "samples; name fewer, or name the shards of several as one list"
        )
    exact = np.asarray(weights, float) / sum(weights) * whole
    shares = np.maximum(np.floor(exact).astype(int), 1)
    while (missing := whole - int(shares.sum())) != 0:
        step = int(np.sign(missing))
        gap = (exact - shares) * step
        gap[(shares <= 1) & (step < 0)] = -np.inf
        shares[np.argmax(gap)] += step
    return tuple(int(share) for share in shares)


class OfClass:
    """The samples of one class of a dataset, endless and shuffled like a dataset of their own."""

    length: int | None = None

    def __init__(self, rows: Sequence[Int64[np.ndarray, " n"]], *, seed: int, window: int, dataset: int) -> None:
        self._shards = np.asarray([s for s, of_shard in enumerate(rows) if len(of_shard)], np.int64)
        # Every reader holds these for every sample: int32 is half as much memory.
        self._rows = [of_shard.astype(np.int32) for of_shard in rows if len(of_shard)]
        counts = [len(of_shard) for of_shard in self._rows]
        self.samples, self.dataset = sum(counts), dataset
        self._order = Shuffled(counts, seed=seed, window=window, dataset=dataset)

    def at(self, start: int, stop: int) -> Picks:
        """See :class:`Order`."""
        picks = self._order.at(start, stop).copy()
        picks[:, 2] = [self._rows[shard][row] for _, shard, row in picks.tolist()]
        picks[:, 1] = self._shards[picks[:, 1]]
        return picks

    def windows(self, position: int) -> tuple[Places, Places]:
        """See :class:`Order`."""
        now, after = ([(d, int(self._shards[s])) for d, s in side] for side in self._order.windows(position))
        return now, after


def balanced(
    labels: Sequence[Sequence[Int64[np.ndarray, " rows"]]], *, seed: int, window: int, power: float = 1.0
) -> Mixed:
    """An order in which every class comes equally often, and samples without a label (-1) never.

    Args:
        labels: per dataset and shard, the class of each row, or -1.
        seed, window: as for :class:`Shuffled`; each class is shuffled, and repeated, on its own. Of many classes the
            windows are smaller, so that all together have at most 96 shards, or ``window`` where that is more.
        power: 1 gives every class the same share, 0 the share that it has; values between lie between.

    Raises:
        ValueError: no sample has a label.
    """
    classes = np.unique(np.concatenate([rows for shards in labels for rows in shards] or [[]]))
    found, weights = [], []
    for label in classes[classes >= 0].astype(int).tolist():
        members = [[np.flatnonzero(rows == label) for rows in shards] for shards in labels]
        counts = [sum(map(len, shards)) for shards in members]
        for dataset, (shards, count) in enumerate(zip(members, counts, strict=True)):
            if count:
                found.append((int(hashes(seed, _SEED_OF_CLASS, label, dataset, count=1)[0]), shards, dataset))
                weights.append(count / sum(counts) * sum(counts) ** (1 - power))
    if not found:
        raise ValueError("no sample has a label")
    of_class = max(1, min(window, max(window, _SHARDS_OF_CLASSES) // len(found)))
    parts = [OfClass(shards, seed=own, window=of_class, dataset=dataset) for own, shards, dataset in found]
    return Mixed(parts, weights, seed=seed)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which positions each batch of each rank holds.

    Global batch b is positions ``first + b * batch`` .. ``first + (b + 1) * batch - 1``; a rank takes its
    contiguous part, so ranks together hold what one rank alone would. A batch has at least one sample a rank.
    """

    batch: int
    rank: int
    ranks: int
    first: int = 0
    length: int | None = None

    def part(self, number: int) -> tuple[int, int]:
        """Start and stop of this rank's positions in global batch ``number``; empty past the end."""
        start = self.first + number * self.batch
        size = self.batch if self.length is None else max(0, min(self.batch, self.length - start))
        return start + size * self.rank // self.ranks, start + size * (self.rank + 1) // self.ranks

    @property
    def batches(self) -> int | None:
        """Batches that are not empty for this rank, or None when endless."""
        if self.length is None:
            return None
        left = max(0, self.length - self.first)
        full, last = divmod(left, self.batch)
        return full + (last * (self.rank + 1) // self.ranks > last * self.rank // self.ranks)


def _pairs(places: Int64[np.ndarray, "n 2"]) -> Places:
    return [(dataset, shard) for dataset, shard in places.tolist()]


def _locate(places: Int64[np.ndarray, "n 2"], ends: Int64[np.ndarray, " n"], at: np.ndarray) -> Picks:
    which = np.searchsorted(ends, at, side="right")
    rows = at - np.where(which > 0, ends[which - 1], 0)
    return np.column_stack((places[which], rows))
