"""Shards that are read: the descriptor of each tar and its table, which fit each other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpe.data.index import equal_rows
from hpe.stream.open_files import OpenFile, OpenFiles, Unreadable
from hpe.stream.order import Places
from hpe.stream.shard_sets import Shard
from hpe.stream.shard_table import ShardRows, ShardTable, ShardTables


@dataclass(frozen=True, slots=True)
class OpenTable:
    """An open shard: its file, and the table that was found to fit it."""

    opened: OpenFile
    table: ShardTable

    @property
    def file(self) -> int:
        """The descriptor, open as long as this object lives."""
        return self.opened.file


class OpenTables:
    """Open shards of one process. What was found to fit an open file is kept with that file, not here."""

    def __init__(self, sets: Sequence[Sequence[Shard]], files: OpenFiles, tables: ShardTables) -> None:
        self._sets, self._files, self._tables = sets, files, tables
        self._windows: tuple[Places, Places] = [], []

    def table(self, dataset: int, shard: int) -> ShardTable | Unreadable:
        """The table of a shard; its tar is neither opened nor fetched where there is an index.

        Raises:
            UserError: the index is damaged, or the shard's pose table belongs to other samples.
        """
        return self._tables.table(dataset, shard)

    def open(self, dataset: int, shard: int) -> OpenTable | Unreadable:
        """File and table of a shard, or why it cannot be read.

        Raises:
            UserError: the index is damaged, the shard's pose table belongs to other samples; as of
                :meth:`OpenFiles.open`.
        """
        opened = self._files.open(dataset, shard)
        if isinstance(opened, Unreadable):
            return opened
        if opened.table is None or (isinstance(opened.table, Unreadable) and opened.table.due):
            opened.table = self._fitted(dataset, shard, opened)
        return opened.table if isinstance(opened.table, Unreadable) else OpenTable(opened, opened.table)

    def overwritten(self, dataset: int, shard: int) -> bool:
        """Whether somebody has written into an open shard so that it contains other samples now."""
        one, opened = self._sets[dataset][shard], self._files.open(dataset, shard)
        if one.copied or not isinstance(opened, OpenFile) or not isinstance(opened.table, ShardTable):
            return False
        if (now := opened.written()) == opened.since:
            return False
        own = self._tables.rows_of_tar(one, opened)
        if isinstance(own, Unreadable) or not _begins(opened.table.rows, own) or len(own.batch) < len(opened.table):
            return True
        opened.since = now  # the same bytes with a new date
        return False

    def leave_windows(self, windows: tuple[Places, Places]) -> None:
        """Close what no window needs any more, so that it may make room in the cache."""
        if windows != self._windows:
            self._windows = windows
            self._files.close_others({*windows[0], *windows[1]})

    def _fitted(self, dataset: int, shard: int, opened: OpenFile) -> ShardTable | Unreadable:
        one, table = self._sets[dataset][shard], self._tables.table(dataset, shard)
        if isinstance(table, Unreadable) or one.index is not None:
            return table if isinstance(table, Unreadable) else self._fitting(one, opened, table)
        # The table was read from a tar that lay here before: from this one, or from what it has replaced since.
        own = self._tables.rows_of_tar(one, opened)
        if isinstance(own, Unreadable) or _begins(table.rows, own):
            return own if isinstance(own, Unreadable) else table
        return Unreadable("the shard was written over while in use", time.monotonic())

    def _fitting(self, shard: Shard, opened: OpenFile, table: ShardTable) -> ShardTable | Unreadable:
        """The table as it fits the file: of a truncated tar its beginning; of a tar with other samples, none.

        A tar that is younger than its index, or of another size, is read itself (once on a node), as a tar that was
        packed again is often of the same size. What a server or a command gives was compared with its sha256.
        """
        size, date = opened.since
        index = table.rows.written
        if index is None or (size == table.rows.entry.bytes and date <= index):
            return table
        own = self._tables.rows_of_tar(shard, opened)
        if isinstance(own, Unreadable):
            return own
        if not _begins(table.rows, own):
            way_out = shard.index.way_out if shard.index else ""
            return Unreadable(f"the tar was changed after its index was made; {way_out}", time.monotonic())
        return ShardTable(own, table.labels[: len(own.batch)])


def _begins(whole: ShardRows, part: ShardRows) -> bool:
    """Whether a shard's rows begin with those of another reading of it."""
    rows = len(part.batch)
    return rows <= len(whole.batch) and equal_rows(part.batch, whole.batch.slice(0, rows))
