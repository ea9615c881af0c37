"""The tars that a process has open, each as a descriptor; a remote one is fetched first."""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.files import open_regular
from hpe.stream.remote_cache import RemoteCache
from hpe.stream.shard_sets import Shard

# Three default windows of 64 shards. With fewer than one window, nearly every sample would open its shard again; with
# far more, a reader would come near the usual limit of 1,024 descriptors per process.
OPEN_SHARDS: Final = 192
_RETRY_SECONDS: Final = 600.0
"""After this time a shard that could not be opened is tried again: servers come back."""
_FETCHES: Final = 3


class OpenFile:
    """The descriptor of an open tar; it is closed with this object.

    State: a file offset belongs to all processes that were forked with a descriptor, so readers use ``pread`` only.
    Owner: whoever holds this object. Were the descriptor closed where it is dropped from :class:`OpenFiles`, a batch
    of more shards than that keeps would read through closed descriptors, or through their numbers in other shards.
    """

    def __init__(self, file: int) -> None:
        self.file = file

    def __del__(self) -> None:
        os.close(self.file)

    @property
    def written(self) -> tuple[int, int]:
        """What changes when the file is written to: its size and its date."""
        state = os.fstat(self.file)
        return state.st_size, state.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A shard that could not be opened."""

    reason: str
    since: float

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return time.monotonic() >= self.since + _RETRY_SECONDS


class OpenFiles:
    """Open tars of one process; the least recently used make room for others."""

    def __init__(self, sets: Sequence[Sequence[Shard]], remote: RemoteCache) -> None:
        self._sets, self._remote = sets, remote
        self._known: OrderedDict[tuple[int, int], OpenFile | Unreadable] = OrderedDict()

    def open(self, dataset: int, shard: int) -> OpenFile | Unreadable:
        """The descriptor of a shard, or why it cannot be read."""
        place = dataset, shard
        found = self._known.get(place)
        if found is None or (isinstance(found, Unreadable) and found.due):
            try:
                found = OpenFile(_open_local(self._sets[dataset][shard], self._remote))
            except OSError as error:
                found = Unreadable(f"{error.strerror or error}", time.monotonic())
            self._known[place] = found
        self._known.move_to_end(place)
        if len(self._known) > OPEN_SHARDS:
            self._known.popitem(last=False)
        return found


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
