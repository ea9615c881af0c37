"""Heartbeats on a store in this process: who is silent is named, and who is busy, suspended or done is not."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from hpe.core.errors import UserError
from hpe.core.heartbeats import Heartbeats, silent_seconds

SECONDS = 0.6


class Ended(list[tuple[int, str]]):
    """Which rank has ended, and why."""

    def beats(self, store: dist.Store, rank: int, *watched: int) -> Heartbeats:
        return Heartbeats(store, rank, watched, SECONDS, lambda reason: self.append((rank, reason)))


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
def started() -> Iterator[list[Heartbeats]]:
    beats: list[Heartbeats] = []
    yield beats
    for one in beats:
        one.close()


def test_all_ranks_end_when_one_falls_silent_and_name_it(ended: Ended, started: list[Heartbeats]) -> None:
    store = dist.HashStore()
    started += [ended.beats(store, 0, 0, 1, 2), ended.beats(store, 1, 0)]
    for one in started:
        one.start()
    store.set("host/2", "node7")  # rank 2 has met the others, and beats no more
    time.sleep(SECONDS * 2)
    assert sorted(ended) == [(rank, "rank 2 on node7 has been silent for 1 s") for rank in (0, 1)]


def test_rank_0_is_watched_too(ended: Ended, started: list[Heartbeats]) -> None:
    store = dist.HashStore()
    store.set("host/0", "node0")
    started += [ended.beats(store, 1, 0)]
    started[0].start()
    time.sleep(SECONDS * 2)
    assert ended == [(1, "rank 0 on node0 has been silent for 1 s")]


def test_ranks_that_work_for_long_and_ranks_that_are_done_end_nobody(ended: Ended, started: list[Heartbeats]) -> None:
    store = dist.HashStore()
    started += [ended.beats(store, 0, 0, 1, 2), ended.beats(store, 1, 0), ended.beats(store, 2, 0)]
    for one in started:
        one.start()
    started[2].close()  # done, while the others go on
    end = time.monotonic() + SECONDS * 2.5
    while time.monotonic() < end:  # the main thread keeps Python busy
        sum(range(10_000))
    assert ended == []


class Stuck(dist.HashStore):
    """A store whose host is gone: TCP waits for an answer, a quarter of an hour."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = threading.Event()
        self.over = threading.Event()

    def add(self, key: str, value: int) -> int:
        if self.gone.is_set():
            self.over.wait(30)
        return super().add(key, value)


def test_a_store_that_does_not_answer_ends_its_client(
    ended: Ended, started: list[Heartbeats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node0")
    store = Stuck()
    started += [ended.beats(store, 1, 0)]
    started[0].start()
    store.gone.set()
    time.sleep(SECONDS * 2)
    store.over.set()
    assert len(ended) == 1
    assert ended[0][1].startswith("rank 0 on node0 has not answered for")


@pytest.mark.parametrize(("given", "seconds"), [(None, 120.0), ("30", 30.0), ("0", None)])
def test_the_time_limit_is_two_minutes_or_what_the_user_sets(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: float | None
) -> None:
    monkeypatch.delenv("HPE_RANK_TIMEOUT", raising=False)
    if given is not None:
        monkeypatch.setenv("HPE_RANK_TIMEOUT", given)
    assert silent_seconds() == seconds


@pytest.mark.parametrize("given", ["3", "-1", "two", "1e3"])
def test_an_impossible_time_limit_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HPE_RANK_TIMEOUT", given)
    with pytest.raises(UserError, match=r"HPE_RANK_TIMEOUT is .*: expected whole seconds, 10 or more; or 0 for never"):
        silent_seconds()
