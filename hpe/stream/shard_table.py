"""The table of a shard: where each sample lies and what its labels are, known before a picture is read.

It comes from the index beside the shards (:mod:`hpe.data.index`): no tar is opened, no remote shard fetched. A tar
without an index is read by the first reader of a node that needs it, and its index kept in the node's cache; every
other reader, and every later epoch, maps that. With a hundred readers on a node, parsing in each of them would cost as
much as decoding.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.core.labels import EMOTIONS
from hpe.data.index import (
    Index,
    IndexedShard,
    IndexFile,
    index_open_shard,
    open_index,
    valid,
    values,
    write_index,
)
from hpe.data.pose_labels import read_labels
from hpe.data.remote_cache import RemoteCache, lock_of_table, used_now
from hpe.data.shard_reader import open_tar
from hpe.stream.batch_block import LABELS, LabelRows
from hpe.stream.open_files import OpenFile, OpenFiles, Unreadable
from hpe.stream.shard_sets import Shard

WHOLE_SHARD: Final = -1
"""The row of damage to the tar itself."""
_FORMAT: Final = "4"
"""Of the cache; part of a file's name, so what another version wrote is not read, but made again."""
_TABLES: Final = 192
_ANGLES: Final = slice(LABELS.index("yaw"), LABELS.index("roll") + 1)
_DIRECTION: Final = LABELS.index("direction")


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where labels come from that a record and a pose table may both hold.

    A dataset that names no pose tables keeps the labels of its records: measured angles go with estimated ones.

    Attributes:
        angles: ``record`` or ``pose``.
        direction: ``record``, or a direction rule of the pose tables, such as ``ours``.
    """

    angles: str = "record"
    direction: str = "record"

    @property
    def rule(self) -> str | None:
        """The direction rule to read from pose tables."""
        return None if self.direction == "record" else self.direction

    @property
    def needs_pose(self) -> bool:
        """True when pose tables are read at all."""
        return self.angles == "pose" or self.rule is not None


@dataclass(frozen=True, slots=True)
class ShardRows:
    """A shard in an index: its entry, and its rows by the columns of :data:`hpe.data.index.SCHEMA`.

    ``written``: date of the index in ns, where the tar may be younger; None: the rows were read from the tar itself.
    """

    entry: IndexedShard
    batch: pa.RecordBatch
    written: int | None = None


@dataclass(frozen=True)
class ShardTable:
    """A shard's samples in order.

    Attributes:
        rows: the shard in its index.
        labels: a row of :data:`hpe.stream.batch_block.LABELS` and the emotion's distribution per sample.
    """

    rows: ShardRows
    labels: LabelRows

    def __len__(self) -> int:
        return len(self.rows.batch)

    @cached_property
    def places(self) -> Int64[np.ndarray, "rows 2"]:
        """Byte offset and size of each picture in the tar."""
        columns = (values(self.rows.batch.column(name), np.int64) for name in ("image_offset", "image_bytes"))
        return np.stack(tuple(columns), 1)

    @cached_property
    def damage(self) -> dict[int, str]:
        """Why the tar ends early (:data:`WHOLE_SHARD`), and damaged records by row."""
        whole = {WHOLE_SHARD: self.rows.entry.damage} if self.rows.entry.damage else {}
        problems = self.rows.batch.column("problem")
        if problems.null_count == len(problems):
            return whole
        rows = np.flatnonzero(valid(problems)).tolist()
        return whole | {row: problems[row].as_py() for row in rows}

    def key(self, row: int) -> str:
        """The key of a row."""
        return self._keys[row].as_py()

    @cached_property
    def _keys(
        self,
    ) -> pa.Array:  # looked up for every sample of every batch: found by name, it takes four times as long
        return self.rows.batch.column("key")


class ShardTables:
    """The tables of one process; the least recently used make room for others.

    Args:
        sets: the shards of each dataset.
        labels: where labels come from; pose tables are joined by key.
        files: opens the tars that have no index.
        remote: fetches the indexes of remote shards.
        cache: the node's folder of tables.
    """

    def __init__(
        self, sets: Sequence[Sequence[Shard]], labels: LabelSource, files: OpenFiles, remote: RemoteCache, cache: Path
    ) -> None:
        self._sets, self._labels, self._files, self._remote, self._cache = sets, labels, files, remote, cache
        self._indexes: dict[str, tuple[Index, dict[str, ShardRows]]] = {}
        self._known: OrderedDict[tuple[int, int], ShardTable | Unreadable] = OrderedDict()

    def rows(self, dataset: int, shard: int) -> ShardRows | Unreadable:
        """The rows of a shard as its tar states them, or why they cannot be read.

        Raises:
            UserError: the index is damaged, or does not list the shard.
        """
        one = self._sets[dataset][shard]
        if one.index is None:
            opened = self._files.open(dataset, shard)
            if one.copied:  # or all shards of a dataset would be in use at once
                self._files.release(dataset, shard)
            return opened if isinstance(opened, Unreadable) else self.rows_of_tar(one, opened)
        if one.index.url not in self._indexes:
            self._indexes[one.index.url] = self._open_index(one.index)
        found = self._indexes[one.index.url][1].get(one.name)
        if found is None:
            raise UserError(f"{one.index.url}: does not list {one.name}; {one.index.way_out}")
        if one.samples not in (None, found.entry.samples) or one.bytes not in (None, found.entry.bytes):
            raise UserError(
                f"{one.index.url}: made from a {one.name} of {found.entry.samples:,} samples in {found.entry.bytes:,} "
                f"bytes, the manifest lists {one.samples} in {one.bytes}; {one.index.way_out}"
            )
        return found

    def rows_of_tar(self, shard: Shard, file: OpenFile) -> ShardRows | Unreadable:
        """The rows of an open tar, from the node's cache where they are there."""
        path = self._cached("tar", shard.url, *file.written(), shard.sha256)
        try:
            index = _load(path)
            if index is None:
                with lock_of_table(self._cache, path.name):
                    # Looked for again: another reader may have stored it while this one waited.
                    if (index := _load(path)) is None:
                        entry, batch = index_open_shard(shard.name, open_tar(file.file))
                        write_index(path, [entry], [batch])
                        index = open_index(path)
        except OSError as error:
            return Unreadable(f"{error.strerror or error}", time.monotonic())
        return ShardRows(index.shards[0], index.batches[0])

    def release(self) -> None:
        """Take the indexes out of this process' memory (:meth:`hpe.data.index.Index.release`)."""
        for index, _ in self._indexes.values():
            index.release()

    def table(self, dataset: int, shard: int) -> ShardTable | Unreadable:
        """The table of a shard, or why it cannot be read.

        Raises:
            UserError: the index is damaged, or the shard's pose table belongs to other samples.
        """
        place = dataset, shard
        found = self._known.get(place)
        if found is None or (isinstance(found, Unreadable) and found.due):
            rows = self.rows(dataset, shard)
            found = rows if isinstance(rows, Unreadable) else self.joined(self._sets[dataset][shard], rows)
            self._known[place] = found
        self._known.move_to_end(place)
        if len(self._known) > _TABLES:
            self._known.popitem(last=False)
        return found

    def joined(self, shard: Shard, rows: ShardRows) -> ShardTable:
        """The table of rows, with the labels of the shard's pose table where these are asked for."""
        table = ShardTable(rows, label_rows(rows.batch))
        if self._labels.needs_pose and shard.pose is not None:
            angles, direction = self._pose_labels(shard.pose, shard.name, rows)
            if self._labels.angles == "pose":
                table.labels[:, _ANGLES] = angles
            if self._labels.rule:
                table.labels[:, _DIRECTION] = direction
        return table

    def _pose_labels(self, pose: Path, name: str, rows: ShardRows) -> tuple[np.ndarray, np.ndarray]:
        """Angles and directions of a pose table in the order of the rows, from the node's cache where they are there.

        Raises:
            UserError: there is no table, or it belongs to other samples.
        """
        try:
            if pose.is_relative_to(self._cache):
                used_now(pose)
            state = pose.stat()
        except OSError as error:
            raise UserError(f"{pose}: no pose table of {name} ({error.strerror}); run `hpe pose`") from error
        keys = rows.batch.column("key")
        digest = hashlib.sha256(b"\0".join(memoryview(part) for part in keys.buffers() if part is not None)).hexdigest()
        path = self._cached("pose", str(pose.resolve()), state.st_size, state.st_mtime_ns, self._labels.rule, digest)
        used_now(path)
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            angles, direction = read_labels(pose, keys.to_pylist(), rule=self._labels.rule)
            stored = np.column_stack((angles, direction))
            with aside(path) as part, part.open("wb") as out:
                np.save(out, stored, allow_pickle=False)
        return stored[:, :3], stored[:, 3]

    def _cached(self, *identity: Any) -> Path:
        name = hashlib.sha256(json.dumps([_FORMAT, *identity]).encode()).hexdigest()[:40]
        return self._cache / f"{name}.table"

    def _open_index(self, file: IndexFile) -> tuple[Index, dict[str, ShardRows]]:
        """An index, and its shards by name. All of it is checked once on each node.

        Raises:
            UserError: it is not there, damaged, or not the one that the manifest names.
        """
        try:
            with self._remote.held(file.url, file.sha256) if file.remote else nullcontext(Path(file.url)) as path:
                state = path.stat()
                stamp = self._cached("index", file.url, state.st_size, state.st_mtime_ns, file.sha256)
                if not used_now(stamp):
                    file.check(path)
                    stamp.touch()
                index = open_index(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{file.url}: {reason}; {file.way_out}") from error
        written = None if file.remote else state.st_mtime_ns
        rows = zip(index.shards, index.batches, strict=True)
        return index, {entry.name: ShardRows(entry, batch, written) for entry, batch in rows}


def _load(path: Path) -> Index | None:
    """A stored index of this node; None where there is none, or it is not whole."""
    used_now(path)
    try:
        return open_index(path)
    except ValueError:
        return None


def label_columns(rows: pa.RecordBatch | pa.Table) -> Float32[np.ndarray, "rows labels"]:
    """The labels of rows of an index by :data:`LABELS`, NaN where there is none; a label's values lie side by side."""
    found = np.empty((rows.num_rows, len(LABELS)), np.float32, order="F")
    for at, name in enumerate(LABELS):
        found[:, at] = _floats(rows.column(name))
    return found


def _floats(column: pa.Array | pa.ChunkedArray) -> Float32[np.ndarray, " rows"]:
    """A column of numbers, NaN where it is null."""
    column = column.cast(pa.float32(), safe=False)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    found = values(column, np.float32)
    return np.where(valid(column), found, np.float32(np.nan)) if column.null_count else found


def label_rows(rows: pa.RecordBatch) -> LabelRows:
    """The labels of a shard, then the emotion's distribution: the votes' shares, or 1 for the emotion."""
    labels = label_columns(rows)
    shares = (labels[:, :1] == np.arange(len(EMOTIONS), dtype=np.float32)).astype(np.float32)
    votes = rows.column("emotion_votes")
    if votes.null_count == len(votes):
        return np.hstack((labels, shares))
    voted = np.flatnonzero(valid(votes))
    counts = values(votes.drop_null().flatten(), np.float64).reshape(-1, len(EMOTIONS))
    total = counts.sum(1)
    shares[voted[total > 0]] = counts[total > 0] / total[total > 0, None]
    return np.hstack((labels, shares))
