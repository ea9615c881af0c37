"""Shards of the coming windows, fetched while earlier ones are trained on."""

import hashlib
import mmap
import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import locked
from hpe.core.ranks import from_parent
from hpe.data.remote_cache import NoRoomError, RemoteCache
from hpe.stream.order import Order
from hpe.stream.shard_sets import Shard

_AT_ONCE: Final = 8
"""Fetches of a node at the same time."""
_LOOK_SECONDS: Final = 0.2


class Ahead:
    """A process that fetches the window at a position, and once that is trained on the next one.

    Each rank has one, but on a node only one of a job's is at work: whoever holds a lock. Readers fetch what they need
    and what is not here yet by themselves, or wait for it, so nothing depends on this process but time.
    """

    def __init__(self, sets: Sequence[Sequence[Shard]], order: Order, first: int, cache: RemoteCache) -> None:
        self._sets, self._order, self._first, self._cache = sets, order, first, cache
        self._process: BaseProcess | None = None
        self._needed = any(shard.copied for shards in sets for shard in shards)
        # The position, which the trainer writes, and whether it has begun: first comes the first window, alone.
        self._state = np.frombuffer(mmap.mmap(-1, 16), np.int64)
        if self._needed:
            self._cache.refuse_without_locks()
        self.refuse_too_little_room()

    def refuse_too_little_room(self) -> None:
        """See that two windows fit into the cache: one reader is in the next one while another is still in this.

        Raises:
            UserError: they do not.
        """
        now, after = self._order.windows(self._first) if self._needed else ([], [])
        shards = [self._sets[d][s] for d, s in dict.fromkeys(now + after) if self._sets[d][s].copied]
        needed = sum(shard.bytes or 0 for shard in shards)
        if needed > self._cache.limit_bytes:
            windows = f"a window of {len(now)} shards and the next one need {needed / 1e9:,.3g} GB"
            raise UserError(self._cache.too_small(windows))

    def start(self) -> None:
        """Begin, where there is anything to fetch."""
        if self._needed:
            self._state[:] = self._first, 0
            # Forked like the readers, and beside them, for the same reasons.
            process = multiprocessing.get_context("fork").Process(target=self._run, daemon=True)
            process.start()
            self._process = process

    def reached(self, position: int) -> None:
        """The trainer has the batch before a position."""
        self._state[:] = position, 1

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None

    def __del__(self) -> None:  # of a loader that was not read to its end
        self.close()

    def _run(self) -> None:
        # What the trainer answers by saving. SIGTERM may end this process: readers fetch what they need by themselves.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from_parent(signal.SIGKILL)
        quiet = replace(self._cache, notices=None)  # a reader that waits tells why
        urls = "\0".join(shard.url for shards in self._sets for shard in shards)
        name = hashlib.sha256(f"{self._cache.session}\0{urls}".encode()).hexdigest()[:40]
        with locked(self._cache.folder / f"ahead-{name}.lock", None), ThreadPoolExecutor(_AT_ONCE) as pool:
            asked: dict[tuple[int, int], Future[Path]] = {}
            while True:
                self._ask(asked, pool, quiet)
                time.sleep(_LOOK_SECONDS)

    def _ask(self, asked: dict[tuple[int, int], "Future[Path]"], pool: ThreadPoolExecutor, cache: RemoteCache) -> None:
        """Ask for what is wanted and was not asked for; forget what is not wanted any more."""
        position, begun = self._state.tolist()
        now, after = self._order.windows(position)
        places = [(d, s) for d, s in dict.fromkeys(now + after if begun else now) if self._sets[d][s].copied]
        for place in asked.keys() - set(places):
            asked.pop(place).cancel()
        full = [
            p for p, f in asked.items() if f.done() and not f.cancelled() and isinstance(f.exception(), NoRoomError)
        ]
        for place in full[:1]:  # one tries again whether there is room
            del asked[place]
        keep = {path for d, s in places if (path := _path_of(cache, self._sets[d][s])) is not None}
        for dataset, shard in places:
            if (dataset, shard) not in asked:
                one = self._sets[dataset][shard]
                asked[dataset, shard] = pool.submit(cache.local_copy, one.url, one.sha256, one.bytes, keep=keep)


def _path_of(cache: RemoteCache, shard: Shard) -> Path | None:
    try:
        return cache.path_of(shard.url, shard.sha256)
    except OSError:  # a local file that is gone
        return None
