"""Heartbeats: a rank whose host is gone is noticed within minutes, and named.

Where a link is lost, no packet says so: the ranks wait for each other until TCP gives up, a quarter of an hour later.
A short time limit for collectives would notice it sooner, but also end a job whose rank 0 writes a checkpoint for long.
So a thread of each rank beats, whatever the rank is doing: in torch's key-value store, over a connection of its own,
because a rank that waits in the store holds its connection. Rank 0 watches all ranks, and tells the others of a silent
one; they watch rank 0, and whether the store, which lies on its host, still answers.
"""

import atexit
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import torch.distributed as dist

from hpe.core.console import say
from hpe.core.errors import EXIT_AGAIN, UserError

VARIABLE: Final = "HPE_RANK_TIMEOUT"
_SILENT_SECONDS: Final = 120.0
_SHORTEST_SECONDS: Final = 10
_BEATS: Final = 20
"""Beats within the time limit: the network may lose many."""


def silent_seconds() -> float | None:
    """After how many seconds without a beat a rank is given up: HPE_RANK_TIMEOUT, or 120; None for 0, which is never.

    Raises:
        UserError: HPE_RANK_TIMEOUT is neither 0 nor a number of seconds.
    """
    given = os.environ.get(VARIABLE, f"{_SILENT_SECONDS:g}")
    try:
        seconds = int(given)
    except ValueError:
        seconds = -1
    if seconds != 0 and seconds < _SHORTEST_SECONDS:
        raise UserError(f"{VARIABLE} is {given!r}: expected whole seconds, {_SHORTEST_SECONDS} or more; or 0 for never")
    return float(seconds) or None


class Heartbeats:
    """The beats of this rank, and a watch over those of others.

    Args:
        store: shared by the ranks, over a connection that nothing else uses.
        rank: this process.
        watched: the ranks that this one watches.
        seconds: after which a silent rank is given up.
        end: called once, with the reason, when a rank is given up.
    """

    def __init__(
        self, store: dist.Store, rank: int, watched: Iterable[int], seconds: float, end: Callable[[str], None]
    ) -> None:
        self._store, self._rank, self._seconds, self._end = store, rank, seconds, end
        self._pause = seconds / _BEATS
        self._closed = threading.Event()
        now = time.monotonic()
        self._answered = now
        self._heard = {other: (0, now) for other in watched if other != rank}
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    def start(self) -> None:
        """Begin to beat and to watch."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave: no longer watch, and tell the others not to expect another beat."""
        if not self._closed.is_set():
            self._closed.set()
            with suppress(RuntimeError):  # rank 0 has left before, and the store with it
                self._store.set(f"left/{self._rank}", "")

    def _beat(self) -> None:
        """Beat and look for the beats of others, until the store is gone: the launcher sees that process end."""
        with suppress(RuntimeError):
            self._store.set(f"host/{self._rank}", socket.gethostname())
            before = time.monotonic()
            while not self._closed.wait(self._pause):
                self._store.add(f"beat/{self._rank}", 1)
                now = time.monotonic()
                paused, before, self._answered = self._paused(before, now), now, now
                self._look(paused)
        self._closed.set()

    def _paused(self, before: float, now: float) -> float:
        """Seconds in which this process did not run, as Slurm may suspend a job: no beat was due in them."""
        return max(0.0, now - before - 3 * self._pause)

    def _look(self, paused: float) -> None:
        """See who has beaten, and give up the rank that has been silent for longest, if that is too long."""
        if self._store.check(["silent"]):
            self._give_up(self._store.get("silent").decode())
            return
        for rank, (beats, at) in list(self._heard.items()):
            if self._store.check([f"left/{rank}"]):
                del self._heard[rank]
            elif (now := self._store.add(f"beat/{rank}", 0)) != beats:
                self._heard[rank] = now, time.monotonic()
            else:
                self._heard[rank] = beats, at + paused
        if not self._heard:
            return
        rank, (_, at) = min(self._heard.items(), key=lambda one: one[1][1])
        if time.monotonic() - at > self._seconds:
            host = self._store.get(f"host/{rank}").decode() if self._store.check([f"host/{rank}"]) else "its host"
            reason = f"rank {rank} on {host} has been silent for {self._seconds:.0f} s"
            self._store.set("silent", reason)
            self._closed.wait(3 * self._pause)  # the store may end with this process: the others read the reason first
            self._give_up(reason)

    def _watch(self) -> None:
        """Give rank 0 up if its store leaves a beat unanswered: then the thread that beats is stuck."""
        before = time.monotonic()
        while not self._closed.wait(self._pause / 4):
            now = time.monotonic()
            self._answered += self._paused(before, now)
            before = now
            if now - self._answered > self._seconds + 5 * self._pause:  # later than rank 0, which can tell more
                host = os.environ.get("MASTER_ADDR", "its host")
                self._give_up(f"rank 0 on {host} has not answered for {now - self._answered:.0f} s")

    def _give_up(self, reason: str) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._end(reason)


def start_heartbeats(store: dist.Store, rank: int, watched: Iterable[int]) -> None:
    """Beat and watch until this process ends; a silent rank ends it with exit code 75. Further calls do nothing.

    Args:
        store: where the ranks have met.
        rank: this process.
        watched: the ranks that it watches: all for rank 0, rank 0 for the others.

    Raises:
        UserError: see :func:`silent_seconds`.
    """
    global _started
    seconds = silent_seconds()
    if seconds is None or _started:
        return
    _started = True
    # A launcher that restarts its ranks may keep the store: each start counts from nothing.
    place = dist.PrefixStore(f"hpe-heartbeats/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store.clone())

    def end(reason: str) -> None:
        say(
            f"hpe: rank {rank} on {socket.gethostname()} stops: {reason}; that host or the network to it is down, or "
            f"the process is frozen ({VARIABLE} sets the time limit): run the same command again to resume"
        )
        os._exit(EXIT_AGAIN)  # the main thread waits in a collective, out of Python's reach

    beats = Heartbeats(place, rank, watched, seconds, end)
    beats.start()
    atexit.register(beats.close)


_started = False
