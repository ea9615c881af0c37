"""Laws of readers: batches are the same for any number of ranks and workers, and memory is used again safely."""

import os
import signal
import warnings
from collections import Counter
from multiprocessing.context import ForkProcess

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.stream.tiny import SAMPLES, SIZE, Made, keys_of, same, stream, taken


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 0), (2, 2), (1, 3)])
def test_once_gives_every_sample_once_in_order_over_ranks_and_workers(made: Made, ranks: int, workers: int) -> None:
    shards = stream(made.folder, workers=workers)
    parts = [list(shards.once(batch=8, rank=rank, ranks=ranks)) for rank in range(ranks)]
    rows = sorted((loaded.first, loaded.batch.keys) for part in parts for loaded in part)
    assert [key for _, keys in rows for key in keys] == made.keys
    assert [len(shards.once(batch=8, rank=rank, ranks=ranks)) for rank in range(ranks)] == [len(p) for p in parts]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_has_ended_or_was_closed_stays_so_until_it_is_started_again(made: Made, workers: int) -> None:
    loader = stream(made.folder, workers=workers).once(batch=20)
    for _ in range(2):
        assert keys_of(list(loader)) == made.keys
        assert [next(loader, None), next(loader, None)] == [None, None]
    assert next(iter(loader)).first == 0
    loader.close()
    assert next(loader, None) is None


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_more_readers_than_cores_are_the_users_own_wish(
    made: Made, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        DataLoader(TensorDataset(torch.zeros(1)), num_workers=3)
        assert len(told) == (cores < 3)  # what torch says by itself: else it counts in another way, unseen here
        with stream(made.folder, workers=3).once(batch=8) as loader:
            assert keys_of(list(loader)) == made.keys
    assert len([warning for warning in told if "worker" in str(warning.message)]) == (cores < 3)


def test_pictures_and_labels_belong_to_their_keys(made: Made) -> None:
    for loaded in stream(made.folder, workers=1).once(batch=8):
        batch = loaded.batch
        numbers = torch.tensor([int(key.rpartition("-")[2]) for key in batch.keys])
        assert batch.images.shape == (len(batch), 3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        levels = batch.images.float().mean((1, 2, 3))
        assert torch.allclose(levels, 4.0 * (numbers % 60), atol=1.5)
        assert torch.equal(batch.emotion, numbers % 8)
        assert torch.equal(batch.emotion_target, torch.eye(8)[numbers % 8])
        assert torch.equal(batch.angles, torch.stack((numbers, 0 * numbers + 1, 0 * numbers - 2), 1).float())
        assert batch.emotion_mask.all()
        assert batch.angles_mask.all()
        assert not batch.direction_mask.any()
        assert not batch.affect_mask.any()


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (3, 1)])
def test_the_global_sequence_is_the_same_for_any_ranks_and_workers(made: Made, ranks: int, workers: int) -> None:
    alone = keys_of(taken(stream(made.folder).endless(seed=7, batch=6, window=2), 14))
    shards = stream(made.folder, workers=workers)
    parts = [taken(shards.endless(seed=7, batch=6, window=2, rank=rank, ranks=ranks), 14) for rank in range(ranks)]
    together = [key for batches in zip(*parts, strict=True) for loaded in batches for key in loaded.batch.keys]
    assert together == alone
    assert Counter(alone[:SAMPLES]) == Counter(made.keys)


def test_resumed_anywhere_equals_never_stopped_also_on_other_ranks(made: Made) -> None:
    shards = stream(made.folder)
    whole = taken(shards.endless(seed=1, batch=6, window=2), 15)
    for stop in (1, 6, 13):
        seen = whole[stop - 1].samples_seen
        rest = taken(shards.endless(seed=1, batch=6, window=2, samples_seen=seen), 15 - stop)
        assert [loaded.first for loaded in rest] == [loaded.first for loaded in whole[stop:]]
        assert all(same(a.batch, b.batch) for a, b in zip(rest, whole[stop:], strict=True))
        half = taken(shards.endless(seed=1, batch=6, window=2, samples_seen=seen, rank=1, ranks=2), 15 - stop)
        assert keys_of(half) == [key for loaded in whole[stop:] for key in loaded.batch.keys[3:]]


def test_a_batch_that_is_kept_is_not_overwritten_by_later_ones(made: Made) -> None:
    """Workers use memory again; what the trainer still holds must not be part of it."""
    with stream(made.folder, workers=2).endless(seed=0, batch=4) as loader:
        kept, copies = [], []
        for loaded, _ in zip(loader, range(40), strict=False):
            kept.append(loaded.batch)
            copies.append(loaded.batch.images.clone())
        assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_memory_of_batches_that_died_is_used_again(made: Made) -> None:
    with stream(made.folder, workers=1).endless(seed=0, batch=4) as loader:
        addresses = set()
        for loaded, _ in zip(loader, range(60), strict=False):
            addresses.add(loaded.batch.images.data_ptr())
        assert loader._reader.together == 2
    assert len(addresses) <= 2 * 3 + 1  # two messages that the reader is at, the trainer's, and a batch that it holds


def test_a_signal_while_readers_start_ends_none_of_them(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    started, start = [], ForkProcess.start

    def signalled(process: ForkProcess) -> None:
        start(process)
        started.append(process.pid)
        for pid in (os.getpid(), process.pid or 0):  # as a signal to the group: before the reader can ignore it
            os.kill(pid, signal.SIGTERM)

    monkeypatch.setattr(ForkProcess, "start", signalled)
    try:
        with stream(made.folder, workers=2).once(batch=7) as loader:
            assert sum(len(loaded.batch) for loaded in loader) == SAMPLES
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(started) == 2
    assert caught  # the trainer itself hears of it
