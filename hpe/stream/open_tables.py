"""The shards that a process has open: the descriptor of each tar, and its table."""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.files import open_regular
from hpe.stream.index import LabelSource, ShardTable, still_holds, table_of
from hpe.stream.remote_cache import RemoteCache
from hpe.stream.shard_sets import Shard

# Three default windows of 64 shards. With fewer than one window, nearly every sample would open its shard again; with
# far more, a reader would come near the usual limit of 1,024 descriptors per process.
_OPEN_SHARDS: Final = 192
_RETRY_SECONDS: Final = 600.0
"""After this time a shard that could not be opened is tried again: servers come back."""
_FETCHES: Final = 3


class OpenTable:
    """An open shard: the descriptor of its tar, and its table. The descriptor is closed with this object.

    State: a file offset belongs to all processes that were forked with a descriptor, so readers use ``pread`` only.
    Owner: whoever holds this object. Were the descriptor closed where the table is dropped from
    :class:`OpenTables`, a batch of more shards than that keeps would read through closed descriptors, or through
    their numbers in other shards.
    """

    def __init__(self, file: int, table: ShardTable) -> None:
        self.file, self.table = file, table
        self.written = _written(file)

    def __del__(self) -> None:
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A shard that could not be opened."""

    reason: str
    since: float


class OpenTables:
    """Open shards of one process; the least recently used make room for others."""

    def __init__(self, sets: Sequence[Sequence[Shard]], labels: LabelSource, remote: RemoteCache, tables: Path) -> None:
        self._sets, self._labels, self._remote, self._tables = sets, labels, remote, tables
        self._known: OrderedDict[tuple[int, int], OpenTable | Unreadable] = OrderedDict()

    def open(self, dataset: int, shard: int) -> OpenTable | Unreadable:
        """Descriptor and table of a shard, or why it cannot be read.

        Raises:
            UserError: the shard's pose table belongs to other samples.
        """
        place = dataset, shard
        found = self._known.get(place)
        if found is None or (isinstance(found, Unreadable) and time.monotonic() >= found.since + _RETRY_SECONDS):
            found = self._known[place] = self._opened(self._sets[dataset][shard])
        self._known.move_to_end(place)
        if len(self._known) > _OPEN_SHARDS:
            self._known.popitem(last=False)
        return found

    def overwritten(self, dataset: int, shard: int) -> bool:
        """Whether somebody has written into an open shard so that it contains other samples now."""
        found = self._known.get((dataset, shard))
        if not isinstance(found, OpenTable) or self._sets[dataset][shard].remote:
            return False
        if (now := _written(found.file)) == found.written:
            return False
        if not still_holds(found.file, found.table):
            return True
        found.written = now  # the same bytes with a new date
        return False

    def _opened(self, shard: Shard) -> OpenTable | Unreadable:
        try:
            file = _open_local(shard, self._remote)
            try:
                table = table_of(shard, file, self._labels, self._tables)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            return Unreadable(f"{error.strerror or error}", time.monotonic())
        return OpenTable(file, table)


def _open_local(shard: Shard, remote: RemoteCache) -> int:
    """A descriptor of the shard, fetched first where it is remote.

    Raises:
        OSError: it cannot be opened or fetched.
    """
    for _ in range(_FETCHES):
        path = remote.local_copy(shard.url, shard.sha256) if shard.remote else Path(shard.url)
        try:
            with open_regular(path) as file:
                return os.dup(file.fileno())
        except FileNotFoundError:
            if not shard.remote:  # another process may have removed this very file to make room for its own
                raise
    raise OSError("removed from the cache again and again: its limit is too small for one window of shards")


def _written(file: int) -> tuple[int, int]:
    """What changes when a file is written to."""
    state = os.fstat(file)
    return state.st_size, state.st_mtime_ns
