"""The tars that a process has open: opened, and fetched where they are not local, when their pixels are read."""

import errno
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.stream.remote_cache import RemoteCache
from hpe.stream.shard_sets import Shard

# Three default windows of 64 shards. With fewer than one window, nearly every sample would open its shard again.
_MOST_OPEN: Final = 192
_SPARE: Final = 16
"""Descriptors left for everything else that this process may open."""
_MOST_DESCRIPTORS: Final = 1 << 16
_RETRY_SECONDS: Final = 600.0
"""After this time a shard that could not be opened is tried again: servers come back."""
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class OpenFile:
    """The descriptor of an open tar. It is closed with this object.

    State: a file offset belongs to all processes that were forked with a descriptor, so readers use ``pread`` only.
    Owner: whoever holds this object. Were the descriptor closed where the file is dropped from :class:`OpenFiles`, a
    reader would read through closed descriptors, or through their numbers in other shards.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.written = _written(descriptor)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def touched(self) -> bool:
        """Whether the file has another size or date than when it was opened, or last asked about."""
        before, self.written = self.written, _written(self.descriptor)
        return before != self.written


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A shard that could not be opened."""

    reason: str
    since: float


class OpenFiles:
    """Open tars of one process: the least recently used make room, within what the system lets a process have open."""

    def __init__(self, sets: Sequence[Sequence[Shard]], cache: RemoteCache) -> None:
        self.sets, self.cache = sets, cache
        self._open: OrderedDict[tuple[int, int], OpenFile] = OrderedDict()
        self._unreadable: dict[tuple[int, int], Unreadable] = {}
        self._most = 0, 0

    def open(self, dataset: int, shard: int) -> OpenFile | Unreadable:
        """A shard's tar, or why it cannot be read.

        Raises:
            UserError: its store refuses or does not answer; too many files are open, or too much is in the cache.
        """
        place = dataset, shard
        if (found := self._open.get(place)) is not None:
            self._open.move_to_end(place)
            return found
        unreadable = self._unreadable.get(place)
        if unreadable is not None and time.monotonic() < unreadable.since + _RETRY_SECONDS:
            return unreadable
        while len(self._open) >= self._capacity():
            self._open.popitem(last=False)
        try:
            found = self._open[place] = self._opened(self.sets[dataset][shard])
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                raise UserError(_too_few(error)) from error
            found = self._unreadable[place] = Unreadable(f"{error.strerror or error}", time.monotonic())
        return found

    def close_others(self, shards: Collection[tuple[int, int]]) -> None:
        """Close what is not among some shards, so that it may make room in the cache."""
        for place in self._open.keys() - shards:
            del self._open[place]

    def _opened(self, shard: Shard) -> OpenFile:
        if shard.copied:
            with self.cache.opened(shard.url, shard.sha256, shard.bytes) as descriptor:
                return OpenFile(os.dup(descriptor))
        with open_regular(Path(shard.url)) as file:
            return OpenFile(os.dup(file.fileno()))

    def _capacity(self) -> int:
        """How many tars may be open: counted once in each process, as a forked one has its own table of descriptors."""
        process, most = self._most
        if process != os.getpid():
            allowed = raise_limit() - len(os.listdir("/proc/self/fd")) - _SPARE + len(self._open)  # noqa: PTH208
            self._most = _, most = os.getpid(), min(_MOST_OPEN, max(1, allowed))
        return most


def raise_limit() -> int:
    """Let this process have as many files open as the system allows; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return most if soft == resource.RLIM_INFINITY else soft


def _too_few(error: OSError) -> str:
    if error.errno == errno.ENFILE:
        return "this machine has no more open files to give (fs.file-max); end other programs, or raise it"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + 2 * _SPARE  # noqa: PTH208
    return (
        f"a process may have only {soft} files open here, a reader needs {needed}; raise the limit with "
        f"`ulimit -n {max(1024, needed)}` before this command (in a container or a job, that of the runtime or scheduler)"
    )


def _written(descriptor: int) -> tuple[int, int]:
    """What changes when a file is written to."""
    state = os.fstat(descriptor)
    return state.st_size, state.st_mtime_ns
