"""Laws of the stream, most of them on tars with tiny pictures whose level says which sample it is."""

import http.server
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from hpe.core.errors import UserError
from hpe.data.batch import Batch
from hpe.data.records import Record
from hpe.data.shards import Manifest, Sample, ShardInfo, write_shard
from hpe.stream import Balance, LabelSource, Loaded, Loader, Reading, ShardSet, Stream
from hpe.stream.order import BLOCK, InOrder, Mixed, Plan, Shuffled, balanced, shares_of
from hpe.stream.remote_cache import Spool

SIZE = 16
COUNTS = (7, 1, 12, 5, 9)
SAMPLES = sum(COUNTS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Made:
    folder: Path
    infos: tuple[ShardInfo, ...]
    keys: list[str]


def picture(level: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((SIZE, SIZE, 3), level, np.uint8), 95)


def make(folder: Path, counts: tuple[int, ...] = COUNTS, emotion: Any = lambda n: n % 8) -> Made:
    folder.mkdir()
    infos, keys, number = [], [], 0
    for shard, count in enumerate(counts):
        samples = []
        for _ in range(count):
            record = Record(emotion=emotion(number), yaw=float(number), pitch=1.0, roll=-2.0)
            samples.append(Sample(f"{folder.name}-{number:04d}", picture(4 * (number % 60)), "jpg", record))
            keys.append(samples[-1].key)
            number += 1
        infos.append(write_shard(folder / f"train-{shard:06d}.tar", "train", samples))
    Manifest("test", "v", "none", True, "none", {}, tuple(infos)).save(folder)
    return Made(folder, tuple(infos), keys)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "shards")


def stream(*sets: ShardSet | Path, **reading: Any) -> Stream:
    named = [one if isinstance(one, ShardSet) else ShardSet(str(one)) for one in sets]
    return Stream(named, Reading(size=SIZE, **reading))


def taken(loader: Loader, batches: int) -> list[Loaded]:
    with loader:
        return [loaded for loaded, _ in zip(loader, range(batches), strict=False)]


def keys_of(batches: list[Loaded]) -> list[str]:
    return [key for loaded in batches for key in loaded.batch.keys]


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in Batch.__slots__ if name != "keys"
    )


shard_counts = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(sum)


@given(shard_counts, st.integers(0, 2**63), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_sample_exactly_once(counts: list[int], seed: int, window: int, epoch: int) -> None:
    order, samples = Shuffled(counts, seed=seed, window=window), sum(counts)
    seen = Counter(map(tuple, order.at(epoch * samples, (epoch + 1) * samples).tolist()))
    assert seen == Counter((0, shard, row) for shard, count in enumerate(counts) for row in range(count))


@given(shard_counts, st.integers(0, 99), st.integers(1, 5), st.integers(0, 60), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_the_order_at_a_position_does_not_depend_on_where_reading_began(
    counts: list[int], seed: int, window: int, start: int, one: int, two: int
) -> None:
    order = Shuffled(counts, seed=seed, window=window)
    whole = order.at(start, start + one + two)
    parts = (order.at(start, start + one), order.at(start + one, start + one + two))
    assert np.array_equal(whole, np.concatenate(parts))


@given(st.one_of(st.none(), st.integers(0, 100)), st.integers(1, 40), st.integers(1, 7), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_ranks_together_hold_each_position_once(length: int | None, batch: int, ranks: int, first: int) -> None:
    first = first if length is None else min(first, length)
    batch = max(batch, ranks)
    plans = [Plan(batch, rank, ranks, first, length) for rank in range(ranks)]
    batches = 6 if length is None else -(-(length - first) // batch)
    parts = [plan.part(number) for number in range(batches) for plan in plans]
    end = first + batches * batch if length is None else length
    assert [p for start, stop in parts for p in range(start, stop)] == list(range(first, end))
    for plan in plans:
        filled = [number for number in range(batches) if plan.part(number)[1] > plan.part(number)[0]]
        if length is not None:
            assert plan.batches == len(filled)


def test_the_order_of_a_seed_never_changes_between_versions() -> None:
    """Written down on 2026-11-21: a run that was started by an older version must see the same samples."""
    rows = Shuffled((3, 4, 2), seed=5, window=2).at(0, 9)
    assert ["".join(map(str, row)) for row in rows[:, 1:].tolist()] == PINNED


PINNED = ["13", "11", "21", "12", "20", "10", "02", "00", "01"]


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_shares_are_whole_and_within_one_of_the_weights(weights: list[float]) -> None:
    shares = shares_of(weights, BLOCK)
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    assert sum(shares) == BLOCK
    assert min(shares) >= 1
    if min(exact) >= 1:
        assert all(abs(share - e) < 1 for share, e in zip(shares, exact, strict=True))


def test_more_datasets_than_a_mix_has_places_are_refused() -> None:
    parts = [Shuffled((2,), seed=1, window=1, dataset=d) for d in range(BLOCK + 1)]
    picks = Mixed(parts[:BLOCK], [1.0] * BLOCK, seed=1).at(0, BLOCK)
    assert sorted(picks[:, 0].tolist()) == list(range(BLOCK))
    with pytest.raises(UserError, match="1,001 datasets"):
        Mixed(parts, [1.0] * len(parts), seed=1)
    with pytest.raises(UserError, match="1,001 datasets"):
        balanced([[np.zeros(2, np.int64)]] * (BLOCK + 1), seed=1, window=1)


def test_a_mix_has_its_exact_shares_in_every_block_and_epochs_of_each_part_stay_whole() -> None:
    parts = [Shuffled((30, 20), seed=1, window=2), Shuffled((7,), seed=2, window=2, dataset=1)]
    picks = Mixed(parts, (3.0, 1.0), seed=9).at(0, 3 * BLOCK)
    for block in range(3):
        assert Counter(picks[block * BLOCK : (block + 1) * BLOCK, 0].tolist()) == {0: 750, 1: 250}
    small = picks[picks[:, 0] == 1]
    for epoch in range(100):
        assert sorted(small[epoch * 7 : epoch * 7 + 7, 2].tolist()) == list(range(7))
    middle = Mixed(parts, (3.0, 1.0), seed=9).at(1234, 2345)
    assert np.array_equal(middle, picks[1234:2345])


def test_balanced_classes_come_equally_often_and_unlabelled_samples_never() -> None:
    labels = [np.asarray([0] * 90 + [1] * 9 + [-1]), np.asarray([1, -1, 2, 0])]
    picks = balanced([labels], seed=3, window=1).at(0, 3 * BLOCK)
    drawn = [int(labels[shard][row]) for _, shard, row in picks.tolist()]
    counts = Counter(drawn[:BLOCK])
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1
    natural = balanced([labels], seed=3, window=1, power=0.0).at(0, BLOCK)
    found = Counter(int(labels[shard][row]) for _, shard, row in natural.tolist())
    assert found[0] == pytest.approx(1000 * 91 / 102, abs=1)


def test_in_order_is_the_order_of_the_shards() -> None:
    order = InOrder([(2, 0, 1), (1,)])
    assert order.length == 4
    assert order.at(0, 4).tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 0], [1, 0, 0]]


def test_a_class_sorted_dataset_gives_batches_as_mixed_as_a_shuffled_one() -> None:
    """200 shards of 100, sorted by 8 classes: the classes' entropy in batches of 64 as under a full shuffle."""
    classes = np.repeat(np.arange(8), 2500).reshape(200, 100)
    order = Shuffled([100] * 200, seed=0, window=64)
    picks = order.at(0, 20000)
    streamed = classes[picks[:, 1], picks[:, 2]]
    shuffled = np.random.default_rng(0).permutation(classes.reshape(-1))

    def entropy(labels: np.ndarray) -> float:
        shares = np.stack([(labels[: 312 * 64].reshape(312, 64) == c).mean(1) for c in range(8)])
        return float(-(shares * np.log(np.maximum(shares, 1e-9))).sum(0).mean())

    assert entropy(streamed) > 0.995 * entropy(shuffled)
    assert entropy(np.sort(classes.reshape(-1))) < 0.1


SORTED_SHARDS, EACH, STEP = 160, 100, 64
OF_CLASS = np.arange(SORTED_SHARDS * EACH) * 8 // (SORTED_SHARDS * EACH)
"""Eight classes, one after another, each in 20 of 160 shards: ten windows of 16."""


def rows_of(order: Shuffled | InOrder, count: int) -> np.ndarray:
    picks = order.at(0, count)
    return picks[:, 1] * EACH + picks[:, 2]


def test_class_counts_of_batches_vary_as_if_drawn_from_the_whole_class_sorted_dataset() -> None:
    every = len(OF_CLASS)
    counts = np.stack(
        [
            np.bincount(OF_CLASS[batch], minlength=8)
            for seed in range(4)
            for batch in rows_of(Shuffled([EACH] * SORTED_SHARDS, seed=seed, window=16), every).reshape(-1, STEP)
        ]
    )
    law = scipy.stats.hypergeom(every, every // 8, STEP)
    assert counts.mean() == pytest.approx(law.mean())
    # 1,000 batches: a variance is known within some 5 %; of stored order it is 64 times as large.
    assert np.allclose(counts.var(0), law.var(), rtol=0.2)
    assert counts.var() == pytest.approx(law.var(), rel=0.06)


def test_a_class_sorted_dataset_trains_as_well_as_a_shuffled_one_and_in_its_stored_order_far_worse() -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(8, 12))
    features = centres[OF_CLASS] + generator.normal(size=(len(OF_CLASS), 12))
    mixed = generator.permutation(len(OF_CLASS))
    asked = generator.integers(0, 8, 4000)
    questions = torch.tensor(centres[asked] + generator.normal(size=(4000, 12)), dtype=torch.float32)

    def learned(stored: np.ndarray, order: Shuffled | InOrder) -> float:
        """Accuracy on new samples of a softmax regression after one epoch over a dataset as it is stored."""
        torch.manual_seed(0)
        network = torch.nn.Linear(12, 8)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for batch in stored[rows_of(order, len(OF_CLASS))].reshape(-1, STEP):
            optimizer.zero_grad()
            seen = torch.tensor(features[batch], dtype=torch.float32)
            torch.nn.functional.cross_entropy(network(seen), torch.tensor(OF_CLASS[batch])).backward()
            optimizer.step()
        return float((network(questions).argmax(1).numpy() == asked).mean())

    by_class, counts = np.arange(len(OF_CLASS)), [EACH] * SORTED_SHARDS
    streamed = [learned(by_class, Shuffled(counts, seed=seed, window=16)) for seed in range(3)]
    shuffled = [learned(mixed, Shuffled(counts, seed=seed, window=16)) for seed in range(3)]
    stored = learned(by_class, InOrder([counts]))
    assert min(shuffled) > 0.8
    assert np.mean(streamed) == pytest.approx(np.mean(shuffled), abs=0.01)
    assert stored < np.mean(streamed) - 0.2


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 0), (2, 2), (1, 3)])
def test_once_gives_every_sample_once_in_order_over_ranks_and_workers(made: Made, ranks: int, workers: int) -> None:
    shards = stream(made.folder, workers=workers)
    parts = [list(shards.once(batch=8, rank=rank, ranks=ranks)) for rank in range(ranks)]
    rows = sorted((loaded.first, loaded.batch.keys) for part in parts for loaded in part)
    assert [key for _, keys in rows for key in keys] == made.keys
    assert [len(shards.once(batch=8, rank=rank, ranks=ranks)) for rank in range(ranks)] == [len(p) for p in parts]


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
    assert len(addresses) <= 4


def test_a_folder_a_glob_a_brace_pattern_and_a_list_name_the_same_shards(made: Made) -> None:
    folder = str(made.folder)
    ways = [
        f"{folder}/train-*.tar",
        f"{folder}/train-{{000000..000004}}.tar",
        sorted(map(str, made.folder.glob("*.tar"))),
    ]
    for way in ways:
        assert stream(ShardSet(way)).counts == (COUNTS,)
    assert stream(ShardSet(folder, "train")).counts == (COUNTS,)


@pytest.fixture
def served(made: Made) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(made.folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_http_and_pipe_give_the_batches_of_files(made: Made, served: str) -> None:
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    names = "{000000..000004}"
    ways = [served, f"{served}/train-{names}.tar", f"pipe:cat {made.folder}/train-{names}.tar"]
    for way in ways:
        read = taken(stream(ShardSet(way), workers=2).endless(seed=2, batch=6, window=2), 8)
        assert all(same(a.batch, b.batch) for a, b in zip(read, files, strict=True)), way


class Unsteady(http.server.BaseHTTPRequestHandler):
    """``/<fault>-<times>/<file>``: answers with a fault so many times, then with the file."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: Counter[str]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        fault, _, times = self.path.split("/")[1].partition("-")
        self.asked[self.path] += 1
        data = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        half, self.close_connection = data[: len(data) // 2], True
        if self.asked[self.path] > int(times):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        match fault:
            case "error":
                self.send_error(500)
            case "gone":
                self.send_error(404)
            case "short":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(half)
            case "chunked":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n" % len(data) + half)
            case "unsized":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(half)
            case "garbage":
                self.wfile.write(b"no http at all\r\n\r\n")
            case "other":
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"error")


@pytest.fixture
def unsteady(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("hpe.stream.remote_cache.time.sleep", lambda _: None)
    handler = type("Handler", (Unsteady,), {"folder": made.folder, "asked": Counter()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("fault", ["error", "short", "chunked", "unsized", "garbage", "silent", "other"])
def test_a_server_that_fails_for_a_while_loses_nothing(made: Made, unsteady: str, fault: str) -> None:
    """With a manifest (whose digests tell) and without one; the manifest itself comes from such a server too."""
    balance = Balance()
    files = keys_of(taken(stream(made.folder).endless(seed=2, batch=6, window=2, balance=balance), 8))
    ways = [f"{unsteady}/{fault}-2"]
    if fault != "other":  # five bytes that say they are all: only a digest can tell
        ways.append(f"{unsteady}/{fault}-3/train-{{000000..000004}}.tar")
    for way in ways:
        shards = stream(ShardSet(way))
        assert shards.counts == (COUNTS,)
        assert keys_of(list(shards.once(batch=8))) == made.keys
        assert keys_of(taken(shards.endless(seed=2, batch=6, window=2, balance=balance), 8)) == files


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("error", "5 tries.*500"),
        ("gone", "1 try.*404"),
        ("short", "5 tries.*ended after .* bytes"),
        ("chunked", "5 tries.*IncompleteRead"),
        ("garbage", "5 tries.*no http"),
        ("silent", "5 tries"),
    ],
)
def test_a_server_that_fails_for_good_is_named_with_its_answer(unsteady: str, fault: str, told: str) -> None:
    for way in (f"{unsteady}/{fault}-99/train-000000.tar", f"{unsteady}/{fault}-99"):
        with pytest.raises(UserError, match=rf"127\.0\.0\.1.*{fault}-99.*{told}"):
            stream(ShardSet(way, "train"))


def test_a_server_whose_first_shard_fails_for_good_is_told_before_all_others_are_tried(
    made: Made, unsteady: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = stream(ShardSet(f"{unsteady}/error-0"))
    tried: list[str] = []

    def refused(url: str) -> Iterator[bytes]:
        tried.append(url)
        raise OSError("refused")
        yield b""

    monkeypatch.setattr("hpe.stream.remote_cache._chunks", refused)
    with pytest.raises(UserError, match=r"train-000000\.tar: cannot be fetched \(5 tries\): refused"):
        shards.label_counts()
    assert len(set(tried)) == 1


def test_a_shard_that_cannot_be_fetched_in_the_middle_is_counted_and_masked(made: Made, unsteady: str) -> None:
    shards = stream(ShardSet(f"{unsteady}/error-0"))
    made.folder.joinpath(made.infos[2].name).write_bytes(b"replaced meanwhile")
    loader = shards.once(batch=8)
    keys = keys_of(list(loader))
    lost = range(8, 20)
    assert [key for n, key in enumerate(keys) if n not in lost] == [k for n, k in enumerate(made.keys) if n not in lost]
    assert loader.damaged == len(lost)
    assert all("5 tries" in damage.reason and "sha256" in damage.reason for damage in loader.damage)


@pytest.mark.parametrize("command", ["exit 3", "cat {}; exit 3", "head -c 3000 {}; exit 141", "cat {}.not"])
def test_a_pipe_that_fails_is_a_mistake_also_when_bytes_came(
    made: Made, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("hpe.stream.remote_cache.time.sleep", lambda _: None)
    named = "pipe:" + command.format(made.folder / "train-000002.tar")
    with pytest.raises(UserError, match=r"pipe:.*5 tries.*exit status [1-9]"):
        stream(ShardSet([named]))


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_what_a_tar_without_a_manifest_has_lost_is_named(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("hpe.stream.remote_cache.time.sleep", lambda _: None)
    cut = tmp_path / "cut.tar"
    cut.write_bytes((made.folder / "train-000002.tar").read_bytes()[:7000])
    loader = stream(ShardSet(str(cut) if way == "file" else f"pipe:head -c 9999 {cut}")).once(batch=8)
    keys = keys_of(list(loader))
    assert 0 < len(keys) - 1 < COUNTS[2]
    assert keys[:-1] == made.keys[8 : 8 + len(keys) - 1]
    assert loader.damaged == 1
    assert "truncated" in loader.damage[0].reason
    with pytest.raises(UserError, match=r"truncated.*damaged: skip"):
        list(stream(cut, damaged="fail").once(batch=8))
    cut.write_bytes(b"")
    with pytest.raises(UserError, match="no sample in these shards"):
        stream(cut)


def test_the_spool_keeps_within_its_bound(made: Made, served: str, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    size = max(info.bytes for info in made.infos)
    spool = Spool(folder, 2 * size, "test")
    for info in made.infos:
        assert spool.path(f"{served}/{info.name}", info.sha256).read_bytes() == (made.folder / info.name).read_bytes()
        assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= 2 * size


def test_a_truncated_shard_is_named_counted_and_masked_and_the_order_stays(made: Made) -> None:
    whole = keys_of(taken(stream(made.folder).endless(seed=3, batch=6, window=2), 6))
    shard = made.folder / made.infos[2].name
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    loader = stream(made.folder).endless(seed=3, batch=6, window=2)
    batches = taken(loader, 6)
    lost = {f"{made.folder.name}-{n:04d}" for n in range(8, 20)}
    for key, place in zip(whole, range(36), strict=True):
        batch, row = batches[place // 6].batch, place % 6
        assert batch.keys[row] == key or (key in lost and batch.keys[row].startswith("row-"))
        if batch.keys[row].startswith("row-"):
            assert not batch.emotion_mask[row]
            assert not batch.angles_mask[row]
            assert not batch.images[row].any()
    assert loader.damaged == sum(key.startswith("row-") for key in keys_of(batches)) > 0
    assert all(damage.shard == shard.name and "truncated" in damage.reason for damage in loader.damage)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_fatal_where_that_is_asked_for(made: Made, workers: int) -> None:
    shard = made.folder / made.infos[0].name
    data = bytearray(shard.read_bytes())
    scan = data.index(b"\xff\xda", 512)
    data[scan : scan + 12] = bytes(12)
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard.name}, {made.keys[0]}: damaged.*damaged: skip"):
        list(stream(made.folder, damaged="fail", workers=workers).once(batch=8))


def test_a_shard_that_is_replaced_gives_the_old_samples_and_one_written_over_is_named(made: Made) -> None:
    shard, other = (made.folder / made.infos[n].name for n in (2, 4))
    loader = stream(ShardSet(str(shard)), workers=0).once(batch=4)
    first = next(loader)
    shard.touch()
    other.rename(shard)
    assert keys_of([first, next(loader)]) == made.keys[8:16]
    assert not loader.damaged
    loader = stream(ShardSet([str(shard)])).once(batch=4)
    assert keys_of([next(loader)]) == made.keys[25:29]
    shard.touch()
    assert keys_of([next(loader)]) == made.keys[29:33]
    assert not loader.damaged
    shard.write_bytes((made.folder / made.infos[0].name).read_bytes())
    assert not next(loader).batch.emotion_mask.any()
    assert "written over" in loader.damage[0].reason


def pose_table(folder: Path, info: ShardInfo, keys: list[str], **metadata: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = len(keys)
    columns = {
        "key": pa.array(keys), "yaw": pa.array([10.0 + r for r in range(rows)], pa.float32()),
        "pitch": pa.array([None] + [2.0] * (rows - 1), pa.float32()), "roll": pa.array([3.0] * rows, pa.float32()),
        "direction_ours": pa.array([None if r % 2 else r % 5 for r in range(rows)], pa.int8()),
    }  # fmt: skip
    said = {"hpe.shard": info.name, "hpe.shard_sha256": info.sha256} | metadata
    pq.write_table(pa.table(columns).replace_schema_metadata(said), folder / f"{info.name[:-4]}.parquet")


def pose_tables(made: Made, folder: Path) -> None:
    ends = np.cumsum(COUNTS)
    for info, end in zip(made.infos, ends, strict=True):
        pose_table(folder, info, made.keys[end - info.samples : end])


def test_angles_and_directions_are_joined_from_pose_tables(made: Made, tmp_path: Path) -> None:
    pose_tables(made, tmp_path / "pose")
    one = ShardSet(str(made.folder), pose=str(tmp_path / "pose"))
    batch = next(iter(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))).batch
    assert batch.angles_mask.tolist() == [False] + [True] * 6
    assert batch.angles[1:, 0].tolist() == [11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    assert batch.direction_mask.tolist() == [True, False] * 3 + [True]
    assert batch.direction[batch.direction_mask].tolist() == [0, 2, 4, 1]
    record = next(iter(stream(one, labels=LabelSource("record", "ours")).once(batch=7))).batch
    assert record.angles[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_dataset_without_pose_tables_keeps_its_own_angles_beside_one_that_has_them(
    made: Made, tmp_path: Path
) -> None:
    pose_tables(made, tmp_path / "pose")
    sets = ShardSet(str(made.folder), pose=str(tmp_path / "pose")), ShardSet(str(made.folder))
    labels = LabelSource("pose", "ours")
    yaws = [made_of.tolist() for made_of in _first_yaws(stream(*sets, labels=labels), len(made.keys), 7)]
    assert yaws == [[11.0, 12.0, 13.0, 14.0, 15.0, 16.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]


def _first_yaws(both: Stream, samples: int, rows: int) -> list[torch.Tensor]:
    """Of each of two datasets of so many samples: the yaws of the first rows that have them."""
    batches = [loaded.batch for loaded in both.once(batch=rows)]
    angles = torch.cat([batch.angles for batch in batches])
    mask = torch.cat([batch.angles_mask for batch in batches])
    return [angles[start : start + rows, 0][mask[start : start + rows]] for start in (0, samples)]


def test_a_pose_table_that_does_not_match_its_shard_is_refused(made: Made, tmp_path: Path) -> None:
    labels = LabelSource("pose")

    def opened(name: str) -> Stream:
        return stream(ShardSet(str(made.folder), pose=str(tmp_path / name)), labels=labels)

    pose_tables(made, tmp_path / "other")
    pose_table(tmp_path / "other", made.infos[0], made.keys[:7], **{"hpe.shard_sha256": "0" * 64})
    pose_table(tmp_path / "other", made.infos[4], made.keys[:3])
    with pytest.raises(UserError, match=r"sha256 0{12}(.|\n)*3 rows, but train-000004.tar has 9"):
        opened("other")
    pose_tables(made, tmp_path / "keys")
    pose_table(tmp_path / "keys", made.infos[0], made.keys[1:7] + made.keys[:1])
    with pytest.raises(UserError, match=r"its keys are not the shard's: row 0"):
        list(opened("keys").once(batch=8))
    pose_tables(made, tmp_path / "rule")
    with pytest.raises(UserError, match=r"no column direction_thesis; direction rules in it: ours"):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "rule")), labels=LabelSource("record", "thesis"))
    (tmp_path / "rule" / "train-000001.parquet").unlink()
    with pytest.raises(UserError, match=r"train-000001.parquet: no pose table"):
        opened("rule")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"yaw": ["x"] * 7}, "not a pose table"),
        ({"direction_ours": [[1.0]] * 7}, "not a pose table"),
        ({"key": [1] * 7}, "its keys are not"),
        ({"yaw": [float("nan"), float("inf")] + [5.0] * 5, "direction_ours": [-3.0, 9.0, 1e30] + [1.0] * 4}, None),
    ],
)
def test_what_no_pose_table_says_is_masked_or_refused(
    made: Made, tmp_path: Path, changed: dict[str, list[Any]], told: str | None
) -> None:
    pose_tables(made, tmp_path / "pose")
    path = tmp_path / "pose" / "train-000000.parquet"
    table = pq.read_table(path)
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    one = ShardSet(str(made.folder / "train-000000.tar"), pose=str(tmp_path / "pose"))
    if told:
        with pytest.raises(UserError, match=rf"train-000000\.parquet: {told}"):
            stream(one, labels=LabelSource("pose", "ours"))
            list(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))
        return
    batch = next(iter(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))).batch
    assert batch.angles_mask.tolist() == [False] * 2 + [True] * 5
    assert batch.direction_mask.tolist() == [False] * 3 + [True] * 4
    assert torch.isfinite(batch.angles).all()


def test_labels_are_counted_and_balanced_batches_follow(tmp_path: Path) -> None:
    made = make(tmp_path / "sorted", (40, 40), emotion=lambda n: 3 if n < 70 else 6)
    shards = stream(made.folder)
    assert shards.label_counts().emotion == (0, 0, 0, 70, 0, 0, 10, 0)
    batches = taken(shards.endless(seed=0, batch=100, balance=Balance()), 10)
    emotions = torch.cat([loaded.batch.emotion for loaded in batches])
    assert Counter(emotions.tolist()) == {3: 500, 6: 500}
    with pytest.raises(UserError, match="no sample of these shards has this label"):
        shards.endless(seed=0, batch=10, balance=Balance(by="direction"))


def test_votes_become_shares_and_the_cache_gives_the_same_labels_again(tmp_path: Path) -> None:
    record = Record(emotion=2, emotion_votes=(1, 0, 3, 0, 0, 0, 0, 0), valence=0.5, arousal=-0.5, direction=4)
    (tmp_path / "s").mkdir()
    write_shard(tmp_path / "s" / "a.tar", "train", [Sample("k", picture(9), "jpg", record)])
    for _ in range(2):
        batch = next(iter(stream(tmp_path / "s").once(batch=4))).batch
        assert batch.emotion_target.tolist() == [[0.25, 0, 0.75, 0, 0, 0, 0, 0]]
        assert batch.affect.tolist() == [[0.5, -0.5]]
        assert batch.direction.tolist() == [4]


def test_a_folder_without_pose_tables_is_told_also_where_no_label_comes_from_them(made: Made, tmp_path: Path) -> None:
    (tmp_path / "pose").mkdir()
    with pytest.raises(UserError, match=r"holds no pose table of these shards, expected train-000000\.parquet"):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "pose")))


def test_a_shard_that_becomes_a_pipe_is_named_and_nobody_waits_for_it(made: Made) -> None:
    reading = stream(made.folder)
    reading._shelf._open.clear()  # as after many other shards
    (made.folder / made.infos[2].name).unlink()
    os.mkfifo(made.folder / made.infos[2].name)
    with reading.once(batch=7) as loader:
        assert sum(len(loaded.batch) for loaded in loader) == SAMPLES
    assert loader.damaged == COUNTS[2]
    assert "not a regular file" in str(loader.damage[0])


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


def test_what_names_no_shards_is_refused_with_a_way_out(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for named, words in (
        (ShardSet(str(tmp_path / "no")), "no such file or folder"),
        (ShardSet(str(tmp_path / "empty")), "names no shards"),
        (ShardSet(str(made.folder), "val"), "expected one of train"),
        (ShardSet(str(made.folder), weight=0.0), "expected more than 0"),
    ):
        with pytest.raises(UserError, match=words):
            stream(named)
