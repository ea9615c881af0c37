"""Shards that are read: the descriptor of each tar and its table, which fit each other."""

import time
from collections import OrderedDict
from collections.abc import Sequence

from hpe.stream import open_files
from hpe.stream.index import ShardRows, ShardTable, ShardTables
from hpe.stream.open_files import OpenFile, OpenFiles, Unreadable
from hpe.stream.shard_sets import Shard


class OpenTable:
    """An open shard: its file, and the table that was found to fit it. The descriptor is closed with this object."""

    def __init__(self, opened: OpenFile, table: ShardTable) -> None:
        self.opened, self.table = opened, table
        self.written = opened.written

    @property
    def file(self) -> int:
        """The descriptor."""
        return self.opened.file


class OpenTables:
    """Open shards of one process; the least recently used make room for others."""

    def __init__(self, sets: Sequence[Sequence[Shard]], files: OpenFiles, tables: ShardTables) -> None:
        self._sets, self._files, self._tables = sets, files, tables
        self._known: OrderedDict[tuple[int, int], OpenTable | Unreadable] = OrderedDict()

    def table(self, dataset: int, shard: int) -> ShardTable | Unreadable:
        """The table of a shard; its tar is neither opened nor fetched where there is an index.

        Raises:
            UserError: the index is damaged, or the shard's pose table belongs to other samples.
        """
        return self._tables.table(dataset, shard)

    def open(self, dataset: int, shard: int) -> OpenTable | Unreadable:
        """File and table of a shard, or why it cannot be read.

        Raises:
            UserError: the index is damaged, or the shard's pose table belongs to other samples.
        """
        place = dataset, shard
        found = self._known.get(place)
        if found is None or (isinstance(found, Unreadable) and found.due):
            found = self._known[place] = self._opened(dataset, shard)
        self._known.move_to_end(place)
        if len(self._known) > open_files.OPEN_SHARDS:  # or this would keep open what OpenFiles drops
            self._known.popitem(last=False)
        return found

    def overwritten(self, dataset: int, shard: int) -> bool:
        """Whether somebody has written into an open shard so that it contains other samples now."""
        found = self._known.get((dataset, shard))
        if not isinstance(found, OpenTable) or self._sets[dataset][shard].remote:
            return False
        if (now := found.opened.written) == found.written:
            return False
        own = self._tables.rows_of_tar(self._sets[dataset][shard], found.opened)
        if isinstance(own, Unreadable) or not _begins(found.table.rows, own) or len(own.batch) < len(found.table):
            return True
        found.written = now  # the same bytes with a new date
        return False

    def _opened(self, dataset: int, shard: int) -> OpenTable | Unreadable:
        opened = self._files.open(dataset, shard)
        if isinstance(opened, Unreadable):
            return opened
        table = self._tables.table(dataset, shard)
        if not isinstance(table, Unreadable):
            table = self._fitting(self._sets[dataset][shard], opened, table)
        return table if isinstance(table, Unreadable) else OpenTable(opened, table)

    def _fitting(self, shard: Shard, opened: OpenFile, table: ShardTable) -> ShardTable | Unreadable:
        """The table as it fits the file: of a truncated tar its beginning; of a tar with other samples, none.

        A tar that is younger than its index, or of another size, is read itself (once on a node), as a tar that was
        packed again is often of the same size. What a server or a command gives was compared with its sha256.
        """
        size, date = opened.written
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
    if rows > len(whole.batch):
        return False
    names = part.batch.schema.names[1:]  # without the number of the shard
    return all(part.batch.column(name).equals(whole.batch.column(name).slice(0, rows)) for name in names)
