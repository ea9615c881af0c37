"""Laws of the order: which sample comes at which position."""

from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe.core.errors import UserError
from hpe.stream.order import BLOCK, InOrder, Mixed, Plan, Shuffled, Together, balanced, shares_of

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


def test_without_weights_each_sample_of_all_datasets_comes_exactly_once_an_epoch() -> None:
    counts = [(500, 286), (4000, 4000, 3045)]  # CK+ and RAF-DB
    order = Together(counts, seed=5, window=3)
    picks = order.at(0, 2 * 11_831)
    whole = [[d, s, row] for d, shards in enumerate(counts) for s, rows in enumerate(shards) for row in range(rows)]
    for epoch in np.split(picks, 2):
        assert sorted(epoch.tolist()) == whole
    assert np.array_equal(order.at(9_000, 15_000), picks[9_000:15_000])


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


def test_windows_of_many_classes_together_have_no_more_shards_than_can_be_open() -> None:
    labels = [np.arange(40) % 8 for _ in range(300)]
    order = balanced([labels], seed=3, window=64)
    for position in range(0, 50 * BLOCK, 7 * BLOCK):
        now, after = order.windows(position)
        assert len(now) <= 96
        assert len(after) <= 96
    shards = {int(shard) for shard in order.at(0, 20 * BLOCK)[:, 1]}
    assert len(shards) == 300  # every class still comes from every shard
