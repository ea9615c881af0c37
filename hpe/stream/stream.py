"""Datasets of shards, resolved, checked and counted: what loaders are made from."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.labels import BINS_REACH_DEGREES, DIRECTIONS, EMOTIONS
from hpe.data.index import rows_of
from hpe.data.pose_labels import mismatch
from hpe.data.records import Record
from hpe.data.remote_cache import RemoteCache, tables_folder
from hpe.stream.ahead import Ahead
from hpe.stream.batch_block import LABELS
from hpe.stream.loader import Loader
from hpe.stream.open_files import OpenFiles, Unreadable
from hpe.stream.open_tables import OpenTables
from hpe.stream.order import InOrder, Mixed, Order, Plan, Shuffled, Together, balanced
from hpe.stream.shard_sets import ShardSet, resolve
from hpe.stream.shard_table import ShardRows, ShardTables, label_columns
from hpe.stream.worker import BatchReader, Reading, together

_TOLD: Final = 10
_AT_ONCE: Final = 100
"""Shards whose labels are read in one step."""


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
    """How many samples there are, and of which labels.

    ``wide`` of those with ``angles`` have one of 99° or more, for which Hopenet has no bin.
    """

    samples: int
    emotion: tuple[int, ...]
    direction: tuple[int, ...]
    both: tuple[tuple[int, ...], ...]
    angles: int
    affect: int
    wide: int = 0


class Stream:
    """Datasets of shards, resolved, counted and checked: makes the loaders.

    Raises:
        UserError: every problem of every dataset: nothing there, no samples, pose tables that do not match.
    """

    def __init__(self, sets: Sequence[ShardSet], reading: Reading) -> None:
        self.reading = reading
        self._weights = [one.weight for one in sets]
        self._cache = RemoteCache.of_node()
        self.sets = tuple(
            tuple(replace(shard, staged=reading.stage == "node") for shard in shards) for shards in resolve(sets)
        )
        self._files = OpenFiles(self.sets, self._cache)
        self._index = ShardTables(self.sets, reading.labels, self._files, self._cache, tables_folder())
        self._tables = OpenTables(self.sets, self._files, self._index)
        problems = self._problems()
        if problems:
            raise UserError("\n".join(problems))
        self.counts = tuple(
            tuple(self._count(d, s) if one.samples is None else one.samples for s, one in enumerate(shards))
            for d, shards in enumerate(self.sets)
        )
        readable = [any(self._readable(d, s) for s in range(len(shards))) for d, shards in enumerate(self.sets)]
        if empty := [number for number, some in enumerate(readable) if not some]:
            raise UserError("\n".join(f"{sets[d].shards}: no sample in these shards{self._why(d)}" for d in empty))
        self.samples = sum(map(sum, self.counts))
        self._tell_of_unpaired()

    def _problems(self) -> list[str]:
        problems = []
        for shards in self.sets:
            for shard in shards:
                if not shard.remote and not Path(shard.url).is_file():
                    problems.append(f"{shard.url}: there is no such file; expected a regular file")
                elif self.reading.labels.needs_pose and shard.pose is not None:
                    why = mismatch(
                        shard.pose, shard=shard.name, sha256=shard.sha256, samples=shard.samples,
                        rule=self.reading.labels.rule,
                    )  # fmt: skip
                    problems += [why] if why else []
        return problems

    def _count(self, dataset: int, shard: int) -> int:
        entry = self._rows(dataset, shard).entry
        # What a damaged tar has lost counts as one more sample that cannot be read, and so is named.
        return entry.samples + (entry.damage is not None)

    def _why(self, dataset: int) -> str:
        """Why the shards of a dataset have no sample, as far as the first of them tells."""
        entry = self._rows(dataset, 0).entry
        return f": {'; '.join(entry.missing)}" if entry.missing else ""

    def _tell_of_unpaired(self) -> None:
        """Tell what is no sample although it looks like half of one, in tars that `hpe pack` did not write."""
        foreign = [(d, s) for d, shards in enumerate(self.sets) for s, one in enumerate(shards) if one.samples is None]
        told = [
            f"{entry.name}: {entry.unpaired}" for entry in (self._rows(*at).entry for at in foreign) if entry.unpaired
        ]
        if told and os.environ.get("RANK", "0") == "0":
            more = f"\n  and in {len(told) - _TOLD:,} more shards" if len(told) > _TOLD else ""
            say("hpe: WARNING: " + "\n  ".join(told[:_TOLD]) + more)

    def _readable(self, dataset: int, shard: int) -> bool:
        samples = self.sets[dataset][shard].samples
        return bool(self._rows(dataset, shard).entry.samples if samples is None else samples)

    def _rows(self, dataset: int, shard: int) -> ShardRows:
        """The rows of a shard.

        Raises:
            UserError: it cannot be read.
        """
        found = self._index.rows(dataset, shard)
        if isinstance(found, Unreadable):
            raise UserError(f"{self.sets[dataset][shard].url}: {found.reason}")
        return found

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

        Every epoch of all datasets together, or with weights of every dataset, holds each sample exactly once; ranks
        together see the same global batches whatever their number.

        Args:
            seed: of the order.
            batch: samples of a batch over all ranks.
            samples_seen: where to go on (``Loaded.samples_seen`` of the last batch).
            rank, ranks: this process among those of the job.
            window: shards within which samples are shuffled.
            balance: draw classes equally often instead.

        Raises:
            UserError: balance is asked for, but no sample has the label; some datasets have weights and some have none.
        """
        return self._loader(self._order(balance, seed, window), Plan(batch, rank, ranks, samples_seen))

    def draws_per_epoch(self, balance: Balance | None = None) -> tuple[float, ...]:
        """For each dataset, how often one of its samples is drawn while as many are drawn as all datasets have.

        Raises:
            UserError: as :meth:`endless`.
        """
        order = self._order(balance, seed=0, window=1)
        if not isinstance(order, Mixed):
            return (1.0,) * len(self.counts)
        return tuple(order.share_of(d) * self.samples / sum(counts) for d, counts in enumerate(self.counts))

    def _order(self, balance: Balance | None, seed: int, window: int) -> Order:
        if balance:
            return self._balanced(balance, seed, window)
        if len(self.counts) == 1:
            return Shuffled(self.counts[0], seed=seed, window=window)
        weights = [weight for weight in self._weights if weight is not None]
        if not weights:
            return Together(self.counts, seed=seed, window=window)
        if len(weights) < len(self.counts):
            raise UserError(
                f"{len(self.counts)} datasets, {len(weights)} with a weight; give one to all of them, or to none"
            )
        parts = [Shuffled(counts, seed=seed + d, window=window, dataset=d) for d, counts in enumerate(self.counts)]
        return Mixed(parts, weights, seed=seed)

    def once(self, *, batch: int, rank: int = 0, ranks: int = 1) -> Loader:
        """Every sample exactly once over all ranks, in order of dataset, shard and row.

        The last batch may be short, and empty (then left out) for some ranks.
        """
        order = InOrder(self.counts)
        return self._loader(order, Plan(batch, rank, ranks, 0, order.length))

    def label_counts(self, *, only_with_angles: bool = False) -> Counts:
        """How often each label occurs; for a network whose input is the angles, only where there are some."""
        parts = [_counted(self._labels(dataset), only_with_angles) for dataset in range(len(self.sets))]
        totals: tuple[Any, ...] = tuple(map(sum, zip(*parts, strict=True)))
        emotion, direction, both, angles, affect, wide = totals
        return Counts(
            self.samples,
            tuple(emotion.tolist()),
            tuple(direction.tolist()),
            tuple(tuple(row) for row in both.tolist()),
            int(angles),
            int(affect),
            int(wide),
        )

    def records(self) -> Iterator[tuple[str, str, Record | None]]:
        """Shard name, key and record (without landmarks) of every sample, in the order of :meth:`once`.

        None: a damaged record.
        """
        for dataset, shards in enumerate(self.sets):
            for shard, named in enumerate(shards):
                rows = self._index.rows(dataset, shard)
                if not isinstance(rows, Unreadable):
                    for key, record in rows_of(rows.batch):
                        yield named.name, key, record

    def images(self, positions: Sequence[int]) -> Iterator[tuple[str, UInt8[np.ndarray, "size size 3"] | None]]:
        """Keys and pictures at positions of :meth:`once`, as its batches hold them; None: damaged."""
        order = InOrder(self.counts)
        reading = replace(self.reading, decoder="cpu")
        reader = BatchReader(self.sets, order, Plan(1, 0, 1, 0, order.length), reading, self._tables)
        for position in positions:
            block = reader.read(position)
            batch = block.unpack().batch
            yield batch.keys[0], None if block.damage else batch.images[0].permute(1, 2, 0).numpy()

    def _labels(self, dataset: int) -> Float32[np.ndarray, "samples labels"]:
        """The labels of a dataset in order, by :data:`hpe.stream.batch_block.LABELS`, NaN where there is none.

        Raises:
            UserError: its first shard cannot be fetched; to try them all would take a minute each.
        """
        shards, counts = self.sets[dataset], self.counts[dataset]
        rows = np.full((sum(counts), len(LABELS)), np.nan, np.float32, order="F")
        starts = np.cumsum((0, *counts)).tolist()
        joins = self.reading.labels.needs_pose and shards[0].pose is not None
        if not joins and all(shard.index and shard.samples for shard in shards):
            # Many at once: a call for each of ten thousand shards would take seconds.
            for first in range(0, len(shards), _AT_ONCE):
                some = range(first, min(first + _AT_ONCE, len(shards)))
                batches = pa.Table.from_batches(self._rows(dataset, shard).batch for shard in some)
                rows[starts[some.start] : starts[some.stop]] = label_columns(batches)
                self._index.release()
            return rows
        for shard, (start, count) in enumerate(zip(starts, counts, strict=False)):
            table = self._index.table(dataset, shard)
            if not isinstance(table, Unreadable):
                known = table.labels[:count, : len(LABELS)]
                rows[start : start + len(known)] = known
            elif shards[shard].remote and not shard:
                raise UserError(f"{shards[shard].url}: {table.reason}; expected the shard that its manifest lists")
        return rows

    def _balanced(self, balance: Balance, seed: int, window: int) -> Mixed:
        labels: list[list[np.ndarray]] = []
        for dataset, counts in enumerate(self.counts):
            labels_of = self._labels(dataset)
            emotion, direction = (_classes(labels_of, column) for column in range(2))
            match balance.by:
                case "emotion":
                    classes = emotion
                case "direction":
                    classes = direction
                case "both":
                    known = (emotion >= 0) & (direction >= 0)
                    classes = np.where(known, emotion * len(DIRECTIONS) + direction, -1)
            labels.append(np.split(classes, np.cumsum(counts)[:-1]))
        try:
            return balanced(labels, seed=seed, window=window, power=balance.power)
        except UserError:
            raise
        except ValueError:
            raise UserError(f"balanced sampling by {balance.by}: no sample of these shards has this label") from None

    def _loader(self, order: Order, plan: Plan) -> Loader:
        if plan.batch < plan.ranks:
            raise UserError(f"batch: {plan.batch} samples are fewer than {plan.ranks} ranks; use at least {plan.ranks}")
        window = sum(self.counts[dataset][shard] for dataset, shard in order.windows(plan.first)[0])
        several = together(plan, self.reading, window)
        reader = BatchReader(self.sets, order, plan, self.reading, self._tables, several)
        # What was opened to be counted would stay in use as long as this process lives.
        self._files.close_others(())
        return Loader(reader, plan, self.reading, self.samples, Ahead(self.sets, order, plan.first, self._cache))


def _counted(labels: Float32[np.ndarray, "samples labels"], only_with_angles: bool) -> tuple[Any, ...]:
    """How often each emotion, direction and pair of both occurs, and how many have angles, affect, wide angles."""
    if only_with_angles:
        labels = labels[~np.isnan(labels[:, 4:7]).any(1)]
    emotion, direction = (_classes(labels, at) for at in range(2))
    of_emotion = np.bincount(emotion[emotion >= 0], minlength=len(EMOTIONS))
    of_direction = np.bincount(direction[direction >= 0], minlength=len(DIRECTIONS))
    both = emotion * len(DIRECTIONS) + direction
    both = both[(emotion >= 0) & (direction >= 0)]
    pairs = np.bincount(both, minlength=len(EMOTIONS) * len(DIRECTIONS)).reshape(len(EMOTIONS), len(DIRECTIONS))
    yaw, pitch, roll = np.abs(labels[:, 4:7].T)
    largest = np.maximum(np.maximum(yaw, pitch), roll)  # NaN where an angle is missing
    affect = ~np.isnan(labels[:, 2] + labels[:, 3])
    return (
        of_emotion,
        of_direction,
        pairs,
        (~np.isnan(largest)).sum(),
        affect.sum(),
        (largest >= BINS_REACH_DEGREES).sum(),
    )


def _classes(labels: Float32[np.ndarray, "samples labels"], column: int) -> Int64[np.ndarray, " samples"]:
    """A column of class numbers; -1: no label."""
    of = labels[:, column]
    return np.where(of >= 0, of, np.float32(-1)).astype(np.int64)
