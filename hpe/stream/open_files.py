"""The tars that a process has open, each as a descriptor; what is not local is fetched first, when pixels are read."""

import errno
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.data.remote_cache import RemoteCache
from hpe.stream.shard_sets import Shard

if TYPE_CHECKING:
    from hpe.stream.shard_table import ShardTable

_MOST_OPEN: Final = 192
"""Three default windows of 64 shards. With fewer than one, nearly every sample would open its shard again."""
_SPARE: Final = 16
"""Descriptors left for everything else that this process may open."""
_MOST_DESCRIPTORS: Final = 1 << 16
_DESCRIPTORS: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
"""Lists what this process has open."""
_RETRY_SECONDS: Final = 600.0
"""After this time a shard that could not be opened is tried again: somebody may have put it there."""


class OpenFile:
    """The descriptor of an open tar; it is closed with this object.

    State: a file offset belongs to all processes that were forked with a descriptor, so readers use ``pread`` only.
    Owner: whoever holds this object. Were the descriptor closed where it is dropped from :class:`OpenFiles`, a reader
    would read through a closed descriptor, or through its number in another shard.

    Attributes:
        file: the descriptor.
        since: size and date of the file when it was opened, or last found to have the same samples.
        table: what :class:`hpe.stream.open_tables.OpenTables` has found to fit it.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self.since = self.written()
        self.table: ShardTable | Unreadable | None = None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound, as `os` is gone when Python ends
        close(self.file)

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
    """Open tars of one process: the least recently used make room, within what the system lets a process have open."""

    def __init__(self, sets: Sequence[Sequence[Shard]], cache: RemoteCache) -> None:
        self._sets, self._cache = sets, cache
        self._open: OrderedDict[tuple[int, int], OpenFile] = OrderedDict()
        self._unreadable: dict[tuple[int, int], Unreadable] = {}
        self._most = 0, 0

    def open(self, dataset: int, shard: int) -> OpenFile | Unreadable:
        """The descriptor of a shard, or why it cannot be read.

        Raises:
            UserError: its store refuses or does not answer; too many files are open; the cache is full of what is in
                use.
        """
        place = dataset, shard
        if (found := self._open.get(place)) is not None:
            self._open.move_to_end(place)
            return found
        if (lost := self._unreadable.get(place)) is not None and not lost.due:
            return lost
        try:
            while len(self._open) >= self._capacity():
                self._open.popitem(last=False)
            found = self._open[place] = OpenFile(self._descriptor(self._sets[dataset][shard]))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise UserError(_too_many_open(error)) from error
            found = self._unreadable[place] = Unreadable(f"{error.strerror or error}", time.monotonic())
        return found

    def release(self, dataset: int, shard: int) -> None:
        """Close a tar, if nobody holds it."""
        self._open.pop((dataset, shard), None)

    def close_others(self, shards: Collection[tuple[int, int]]) -> None:
        """Close all tars but some, if nobody holds them."""
        for place in self._open.keys() - shards:
            del self._open[place]

    def _descriptor(self, shard: Shard) -> int:
        if shard.copied:
            with self._cache.opened(shard.url, shard.sha256, shard.bytes) as descriptor:
                return os.dup(descriptor)
        with open_regular(Path(shard.url)) as file:
            return os.dup(file.fileno())

    def _capacity(self) -> int:
        """How many tars may be open; counted once in each process, as a forked one has descriptors of its own."""
        process, most = self._most
        if process != os.getpid():
            others = len(os.listdir(_DESCRIPTORS)) - len(self._open)  # noqa: PTH208
            most = min(_MOST_OPEN, max(1, raise_limit() - others - _SPARE))
            self._most = os.getpid(), most
        return most


def raise_limit() -> int:
    """Let this process have as many files open as the system allows; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if 0 <= soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (ValueError, OSError):  # macOS names no hard limit, and has one
            return soft
        return most
    return most if soft == resource.RLIM_INFINITY else soft


def _too_many_open(error: OSError) -> str:
    if error.errno == errno.ENFILE:
        return "this machine has no more open files to give (fs.file-max): end other programs, or raise it"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"a process may have only {soft} files open here, too few for a reader; raise the limit with `ulimit -n 1024` "
        "before this command (in a container or a job, that of the runtime or the scheduler)"
    )
