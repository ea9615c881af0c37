"""Who does which item, over all ranks of a job, without collectives: a counter in torch's key-value store.

A rank takes the next item when it is ready for one, so that a slow rank holds nobody up. Each rank beats;
rank 0, which keeps the store, waits for all and hears of ranks that have died, to do their items itself.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch.distributed as dist

from hpe.core.distributed import await_name, said_while_meeting, take_place
from hpe.core.heartbeats import start_heartbeats
from hpe.core.notices import said_while_waiting
from hpe.core.ranks import Ranks

BEAT_SECONDS: Final = 2.0
DEAD_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2
_MEET: Final = timedelta(minutes=10)


class Claims:
    """This rank's view of the job's items, numbered 0 to ``total - 1``.

    Args:
        store: shared by the ranks, empty at the start.
        ranks: this process among them.
        total: number of items.
        dead_seconds: without a beat for so long, a rank is dead.
    """

    def __init__(self, store: "dist.Store", ranks: Ranks, total: int, *, dead_seconds: float = DEAD_SECONDS) -> None:
        self.store, self.ranks, self.total, self.dead_seconds = store, ranks, total, dead_seconds
        self.stopped = threading.Event()
        self.beating = threading.Thread(target=self._beat, name="beat", daemon=True)

    def __iter__(self) -> Iterator[int]:
        """The items that this rank is to do; each is handed to one rank only."""
        # The store adds in one step, so no two ranks get the same number, and none asks another for its turn.
        while not self.stopped.is_set() and (item := self.store.add("next", 1) - 1) < self.total:
            self.store.set(f"owner/{item}", str(self.ranks.rank))
            yield item

    def start_together(self) -> None:
        """Wait until rank 0 is ready, so that what it saw of earlier work is not what others have just done."""
        if self.ranks.main:
            self.store.set("started", "")
        else:
            with said_while_waiting(lambda: f"rank {self.ranks.rank} waits for rank 0 to start the work"):
                self.store.wait(["started"], _MEET)

    def finish(self, item: int, problem: str | None = None) -> None:
        """Report an item as done, or as damaged with a problem that rank 0 shows."""
        self.store.set(f"done/{item}", problem or "")

    def count(self, amount: int = 0) -> int:
        """Add to the job's count of images and return it, over all ranks."""
        return self.store.add("count", amount)

    def abandoned(self) -> Iterator[int | None]:
        """On rank 0, after its own items: None while it waits for others, or an item of a rank that has died.

        Ends when every item is done.
        """
        beats: dict[int, tuple[int, float]] = {}
        dead: set[int] = set()
        items = [f"done/{item}" for item in range(self.total)]
        while items and not self.store.check(items) and not self.stopped.is_set():
            for rank in range(1, self.ranks.world):
                # A count that has not moved, timed by rank 0's own clock: clocks of nodes may differ by minutes.
                beat, now = self.store.add(f"beat/{rank}", 0), time.monotonic()
                if beats.get(rank, (-1, 0.0))[0] != beat:
                    beats[rank] = beat, now
                elif rank not in dead and now - beats[rank][1] > self.dead_seconds:
                    dead.add(rank)
                    yield from self._left_by(rank)
            yield None
            time.sleep(_POLL_SECONDS)

    def _left_by(self, rank: int) -> Iterator[int]:
        """What a dead rank had taken and not finished, and what nobody says to have taken: it may have died before.

        An item that is done twice, because its rank lives after all, is done alike.
        """
        for item in range(min(self.store.add("next", 0), self.total)):
            others = self.store.check([f"owner/{item}"]) and int(self.store.get(f"owner/{item}")) != rank
            if not others and not self.store.check([f"done/{item}"]):
                yield item

    def problems(self) -> dict[int, str]:
        """The items reported as damaged, and why (on rank 0, at the end)."""
        reported = {
            item: self.store.get(f"done/{item}").decode()
            for item in range(self.total)
            if self.store.check([f"done/{item}"])
        }
        return {item: problem for item, problem in reported.items() if problem}

    def stop(self) -> None:
        """Take no more items."""
        self.stopped.set()

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # rank 0, and its store, is gone: nobody listens
            while not self.stopped.wait(BEAT_SECONDS):
                self.store.add(f"beat/{self.ranks.rank}", 1)


@contextmanager
def claims(ranks: Ranks, total: int) -> Iterator[Claims]:
    """The claims of a job that this process belongs to, as its launcher says."""
    store = _store(ranks)
    if not ranks.main:  # rank 0 does the items of others that are gone; they cannot do without rank 0
        start_heartbeats(store, ranks.rank, ())
    mine = Claims(store, ranks, total)
    mine.beating.start()
    try:
        yield mine
    finally:
        mine.stop()
        mine.beating.join()
        _leave_together(mine)


def _store(ranks: Ranks) -> "dist.Store":
    if ranks.world == 1:
        return dist.HashStore()
    await_name(ranks)
    rendezvous = dist.rendezvous(f"env://?rank={ranks.rank}&world_size={ranks.world}", timeout=_MEET)
    with said_while_meeting(ranks, _MEET):
        store, _, _ = next(rendezvous)
        take_place(store, ranks)
    # A launcher that restarts its ranks may keep the store: each start counts from nothing.
    return dist.PrefixStore(f"hpe-claims/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _leave_together(mine: Claims) -> None:
    """Rank 0 may be the store: it leaves last, waiting a moment for ranks that are on their way out."""
    with contextlib.suppress(RuntimeError):
        left = mine.store.add("left", 1)
        end = time.monotonic() + BEAT_SECONDS * 2
        while mine.ranks.main and left < mine.ranks.world and time.monotonic() < end:
            time.sleep(_POLL_SECONDS / 4)
            left = mine.store.add("left", 0)
