"""Batches out of shards: readers in worker processes, one block of memory a batch, in the order of the plan."""

import itertools
import mmap
import os
import signal
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpe.decode import Colour, decode_into
from hpe.errors import UserError
from hpe.images import DecodeError
from hpe.records import Record
from hpe.shards import index_tar
from hpe.stream.order import InOrder, Mixed, Order, Plan, Shuffled, balanced
from hpe.stream.packed import COLUMNS, Damage, Loaded, Packed, Slot, layout, write_labels
from hpe.stream.pool import Pool
from hpe.stream.shelf import LabelSource, ShardTable, open_local, table_of
from hpe.stream.sources import Shard, ShardSet, resolve
from hpe.stream.spool import Spool, node_folder
from hpe.tables import mismatch

_OPEN_SHARDS: Final = 192
"""Shards that a reader holds open: three default windows; more than this is opened again."""
_NAMED_DAMAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples are read: everything that does not change their order.

    Attributes:
        size: pictures come as size × size pixels.
        colour: ``rgb``, or ``grey`` (luma in three channels).
        labels: where angles and directions come from.
        damaged: ``skip`` (a black row with false masks, named in ``Loaded.damage``) or ``fail``.
        workers: reader processes of this rank; 0 reads in this process.
        prefetch: batches that each worker keeps ready.
        spool_bytes: what fetched shards may take on this node's disk; None: half of what is free.
    """

    size: int
    colour: Colour = "rgb"
    labels: LabelSource = field(default_factory=LabelSource)
    damaged: Literal["skip", "fail"] = "skip"
    workers: int = 0
    prefetch: int = 2
    spool_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """Balanced sampling: classes come equally often.

    Attributes:
        by: ``emotion``, ``direction``, or ``both`` (each pair is a class).
        power: 1 equal shares, 0 the natural shares, between: in between.
    """

    by: Literal["emotion", "direction", "both"] = "emotion"
    power: float = 1.0


@dataclass(frozen=True, slots=True)
class Counts:
    """How many samples there are, and of which labels."""

    samples: int
    emotion: tuple[int, ...]
    direction: tuple[int, ...]
    both: tuple[tuple[int, ...], ...]
    angles: int
    affect: int


class Shelf:
    """Open shards of one process: the least recently used are closed."""

    def __init__(self, sets: Sequence[Sequence[Shard]], labels: LabelSource, spool: Spool, cache: Path) -> None:
        self._sets, self._labels, self._spool, self._cache = sets, labels, spool, cache
        self._open: OrderedDict[tuple[int, int], tuple[int, ShardTable] | str] = OrderedDict()

    def open(self, dataset: int, shard: int) -> tuple[int, ShardTable] | str:
        """Descriptor and table of a shard, or why there is none."""
        place = dataset, shard
        if (known := self._open.get(place)) is not None:
            self._open.move_to_end(place)
            return known
        wanted = self._sets[dataset][shard]
        try:
            file = open_local(wanted, self._spool)
            opened: tuple[int, ShardTable] | str = (file, table_of(wanted, file, self._labels, self._cache))
        except OSError as error:
            opened = f"{error.strerror or error}"
        self._open[place] = opened
        if len(self._open) > _OPEN_SHARDS:
            _, closed = self._open.popitem(last=False)
            if not isinstance(closed, str):
                os.close(closed[0])
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of a worker that the main process raises as its own."""

    message: str


class Batches(Dataset[Packed | Refusal]):
    """Batch number → batch: what runs inside a worker."""

    def __init__(
        self, sets: Sequence[Sequence[Shard]], order: Order, plan: Plan, reading: Reading, shelf: Shelf
    ) -> None:
        self._sets, self._order, self._plan, self._reading, self._shelf = sets, order, plan, reading, shelf
        self.pool: Pool | None = None

    def __getitem__(self, number: int) -> Packed | Refusal:
        try:
            return self._read(number)
        except UserError as error:
            return Refusal(str(error))

    def _read(self, number: int) -> Packed:
        start, stop = self._plan.part(number)
        size, rows = self._reading.size, stop - start
        picks = self._order.at(start, stop).tolist()
        places, total = layout(rows, size, size)
        block, bytes_of_block = self._block(total)
        images = bytes_of_block[: places["images"][1]].reshape(rows, size, size, 3)
        labels = np.empty((rows, COLUMNS), np.float32)
        damage: list[Damage] = []
        wanted = [self._place(*pick) for pick in picks]
        for place in wanted:
            if not isinstance(place, Damage):
                os.posix_fadvise(place.file, place.at, place.size, os.POSIX_FADV_WILLNEED)
        keys = []
        for row, place in enumerate(wanted):
            problem = place if isinstance(place, Damage) else self._fill(place, images[row])
            keys.append(place.key)
            if problem is None and not isinstance(place, Damage):
                labels[row] = place.labels
                continue
            assert problem is not None
            images[row] = 0
            labels[row] = np.nan
            damage.append(problem)
        if damage and self._reading.damaged == "fail":
            raise UserError(f"{damage[0]}; mend or pack again, or read with damaged: skip")
        write_labels(bytes_of_block, labels, size, size)
        seen = self._plan.first + (number + 1) * self._plan.batch
        seen = seen if self._plan.length is None else min(seen, self._plan.length)
        return Packed(block, tuple(keys), size, size, start, seen, tuple(damage))

    def _block(self, size: int) -> tuple[torch.Tensor | Slot, np.ndarray]:
        """Memory for a batch: a slot of the pool, or fresh memory where the trainer holds all slots."""
        worker = torch.utils.data.get_worker_info()
        if worker and self.pool and (slot := self.pool.take(worker.id)) is not None:
            return Slot(self.pool.number, slot, size), self.pool.bytes_of(slot, size)
        block = torch.empty(size, dtype=torch.uint8)
        return block, block.numpy()

    def _place(self, dataset: int, shard: int, row: int) -> "_Place | Damage":
        name = self._sets[dataset][shard].name
        opened = self._shelf.open(dataset, shard)
        if isinstance(opened, str):
            return Damage(name, f"row-{row}", opened)
        file, table = opened
        if row >= len(table):
            why = table.damage.get(-1) or f"the shard has {len(table)} samples, its manifest says more"
            return Damage(name, f"row-{row}", why)
        if row in table.damage:
            return Damage(name, table.key(row), table.damage[row])
        at, size = table.places[row].tolist()
        return _Place(name, table.key(row), file, at, size, table.labels[row])

    def _fill(self, place: "_Place", out: np.ndarray) -> Damage | None:
        try:
            data = os.pread(place.file, place.size, place.at)
            decode_into(data, out, self._reading.colour)
        except (DecodeError, OSError) as error:
            return Damage(place.shard, place.key, str(error))
        return None


@dataclass(slots=True)
class _Place:
    shard: str
    key: str
    file: int
    at: int
    size: int
    labels: np.ndarray


class Loader:
    """An iterator of batches (once through, or endless), with what happened while reading.

    Attributes:
        samples: samples of all datasets together: an epoch.
        waited_seconds: time that the consumer has waited for batches.
        damage: what could not be read so far (the first thousand are named).
        damaged: how many samples could not be read so far.
    """

    def __init__(self, batches: Batches, plan: Plan, reading: Reading, samples: int) -> None:
        self._plan, self._reading, self._dataset, self.samples = plan, reading, batches, samples
        self.waited_seconds = 0.0
        self.damage: list[Damage] = []
        self.damaged = 0
        numbers = range(plan.batches) if plan.batches is not None else _Endless()
        self._batches = len(numbers) if isinstance(numbers, range) else None
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,  # pyright: ignore[reportArgumentType] (any iterable of indices)
            num_workers=reading.workers,
            prefetch_factor=reading.prefetch if reading.workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_worker,
            multiprocessing_context="fork" if reading.workers else None,
            collate_fn=_same,  # pyright: ignore[reportArgumentType] (one batch, not a list)
        )
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        if self._batches is None:
            raise TypeError("an endless stream has no length")
        return self._batches

    def __iter__(self) -> "Loader":
        """Start (again) from the first batch of the plan."""
        self.close()
        self._iterator = self._start()
        return self

    def _start(self) -> Iterator[Any]:
        workers, size = self._reading.workers, self._reading.size
        if workers:
            rows = -(-self._plan.batch // self._plan.ranks)
            # What waits in the queue, and two that the trainer may hold.
            self._dataset.pool = Pool(workers, self._reading.prefetch + 2, layout(rows, size, size)[1])
        with warnings.catch_warnings():  # Python 3.12 warns of any fork beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            return iter(self._loader)

    def __next__(self) -> Loaded:
        if self._iterator is None:
            self._iterator = self._start()
        start = time.perf_counter()
        packed = next(self._iterator)
        self.waited_seconds += time.perf_counter() - start
        if isinstance(packed, Refusal):
            self.close()
            raise UserError(packed.message)
        self.damaged += len(packed.damage)
        self.damage += packed.damage[: _NAMED_DAMAGE - len(self.damage)]
        return packed.unpack()

    def close(self) -> None:
        """End the workers."""
        iterator: Any = self._iterator
        self._iterator = None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Endless:
    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __len__(self) -> int:
        return 1 << 62


def _same(packed: Packed) -> Packed:
    return packed


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the trainer's to handle; a worker ends when its parent does (torch's own watchdog)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # not the trainer's handlers, inherited by the fork
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    from hpe.ranks import from_parent

    from_parent()


class Stream:
    """Datasets of shards, resolved, counted and checked: makes the loaders.

    Raises:
        UserError: every problem of every dataset: nothing there, no samples, pose tables that do not match.
    """

    def __init__(self, sets: Sequence[ShardSet], reading: Reading) -> None:
        self.reading = reading
        self._weights = [one.weight for one in sets]
        self._spool = Spool.of_node(reading.spool_bytes)
        self._cache = node_folder() / "tables"
        self._cache.mkdir(exist_ok=True)
        self.sets = resolve(sets)
        self._shelf = Shelf(self.sets, reading.labels, self._spool, self._cache)
        problems = self._problems()
        if problems:
            raise UserError("\n".join(problems))
        self.counts = tuple(
            tuple(self._count(d, s) if one.samples is None else one.samples for s, one in enumerate(shards))
            for d, shards in enumerate(self.sets)
        )
        if empty := [sets[d].shards for d, of_set in enumerate(self.counts) if not sum(of_set)]:
            raise UserError("\n".join(f"{named}: no sample in these shards" for named in empty))
        self.samples = sum(map(sum, self.counts))

    def _problems(self) -> list[str]:
        problems = []
        for shards in self.sets:
            for shard in shards:
                if not shard.remote and not Path(shard.url).is_file():
                    problems.append(f"{shard.url}: there is no such file")
                elif self.reading.labels.needs_pose and shard.pose is None:
                    problems.append(f"{shard.url}: pose tables are asked for, but no folder of them is named")
                elif self.reading.labels.needs_pose and shard.pose is not None:
                    why = mismatch(
                        shard.pose, shard=shard.name, sha256=shard.sha256, samples=shard.samples,
                        rule=self.reading.labels.rule,
                    )  # fmt: skip
                    problems += [why] if why else []
        return problems

    def _count(self, dataset: int, shard: int) -> int:
        opened = self._shelf.open(dataset, shard)
        if isinstance(opened, str):
            raise UserError(f"{self.sets[dataset][shard].url}: {opened}")
        return len(opened[1])

    def endless(
        self,
        *,
        seed: int,
        batch: int,
        samples_seen: int = 0,
        rank: int = 0,
        ranks: int = 1,
        window: int = 64,
        balance: Balance | None = None,
    ) -> Loader:
        """Shuffled batches without end, from ``samples_seen`` on: a pure function of its arguments.

        Every epoch of every dataset holds each of its samples exactly once; ranks together see the same
        global batches whatever their number.

        Args:
            seed: of the order.
            batch: samples of a batch over all ranks.
            samples_seen: where to go on (``Loaded.samples_seen`` of the last batch).
            rank, ranks: this process among those of the job.
            window: shards within which samples are shuffled.
            balance: draw classes equally often instead.

        Raises:
            UserError: balance is asked for, but no sample has the label.
        """
        if balance:
            order: Order = self._balanced(balance, seed, window)
        else:
            parts = [Shuffled(counts, seed=seed + d, window=window, dataset=d) for d, counts in enumerate(self.counts)]
            order = parts[0] if len(parts) == 1 else Mixed(parts, self._weights, seed=seed)
        return self._loader(order, Plan(batch, rank, ranks, samples_seen))

    def once(self, *, batch: int, rank: int = 0, ranks: int = 1) -> Loader:
        """Every sample exactly once over all ranks, in order of dataset, shard and row.

        The last batch may be short, and empty (then left out) for some ranks.
        """
        order = InOrder(self.counts)
        return self._loader(order, Plan(batch, rank, ranks, 0, order.length))

    def label_counts(self) -> Counts:
        """How often each label occurs: reads every shard's records, once a node."""
        emotion, direction, angles, affect = (np.concatenate(part) for part in zip(*self._labels(), strict=True))
        both = np.zeros((8, 5), np.int64)
        have = (emotion >= 0) & (direction >= 0)
        np.add.at(both, (emotion[have], direction[have]), 1)
        return Counts(
            self.samples,
            tuple(np.bincount(emotion[emotion >= 0], minlength=8).tolist()),
            tuple(np.bincount(direction[direction >= 0], minlength=5).tolist()),
            tuple(tuple(row) for row in both.tolist()),
            int(angles.sum()),
            int(affect.sum()),
        )

    def records(self) -> Iterator[tuple[str, str, Record | None]]:
        """Shard name, key and record of every sample, in the order of :meth:`once`; None: a damaged record."""
        for dataset, counts in enumerate(self.counts):
            for shard in range(len(counts)):
                opened = self._shelf.open(dataset, shard)
                if isinstance(opened, str):
                    continue
                with mmap.mmap(opened[0], 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as data:
                    index = index_tar(data)
                    for key, (start, size) in zip(index.keys, index.records.tolist(), strict=True):
                        try:
                            record = Record.from_json(bytes(data[start : start + size]))
                        except (ValueError, RecursionError):
                            record = None
                        yield self.sets[dataset][shard].name, key, record

    def _labels(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Per shard: emotion and direction (-1: none), and whether there are angles and affect."""
        for dataset, counts in enumerate(self.counts):
            for shard, count in enumerate(counts):
                rows = np.full((count, COLUMNS), np.nan, np.float32)
                opened = self._shelf.open(dataset, shard)
                if not isinstance(opened, str):
                    known = opened[1].labels[:count]
                    rows[: len(known)] = known
                classes = np.nan_to_num(rows[:, :2], nan=-1).astype(np.int64)
                yield (
                    classes[:, 0], classes[:, 1], ~np.isnan(rows[:, 4:7]).any(1), ~np.isnan(rows[:, 2:4]).any(1)
                )  # fmt: skip

    def _balanced(self, balance: Balance, seed: int, window: int) -> Order:
        labels: list[list[np.ndarray]] = [[] for _ in self.counts]
        rows = self._labels()
        for dataset, counts in enumerate(self.counts):
            for _ in counts:
                emotion, direction, _, _ = next(rows)
                match balance.by:
                    case "emotion":
                        classes = emotion
                    case "direction":
                        classes = direction
                    case "both":
                        classes = np.where((emotion >= 0) & (direction >= 0), emotion * 5 + direction, -1)
                labels[dataset].append(classes)
        try:
            return balanced(labels, seed=seed, window=window, power=balance.power)
        except ValueError:
            raise UserError(f"balanced sampling by {balance.by}: no sample of these shards has this label") from None

    def _loader(self, order: Order, plan: Plan) -> Loader:
        if plan.batch < plan.ranks:
            raise UserError(f"batch: {plan.batch} samples do not reach {plan.ranks} ranks; use at least {plan.ranks}")
        return Loader(Batches(self.sets, order, plan, self.reading, self._shelf), plan, self.reading, self.samples)
