"""``train.batch: auto``: memory is a fake, since there may be no GPU; the trial's steps are real."""

from pathlib import Path

import pytest
import torch

from hpe.core.errors import UserError
from hpe.core.ranks import Ranks
from hpe.models import checkpoints, run_folder
from hpe.train import setup, train
from hpe.train.auto_batch import largest_that_fits, where_doubling_stops_paying
from tests import made


def memory_for(samples: int) -> tuple[list[int], object]:
    tried: list[int] = []

    def step(batch: int) -> None:
        tried.append(batch)
        if batch > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return tried, step


@pytest.mark.parametrize(
    ("room", "largest", "found"), [(100, 10_000, 64), (64, 10_000, 64), (1e9, 300, 256), (4, 9, 4)]
)
def test_it_doubles_until_memory_is_out_and_takes_the_last_that_went_through(
    room: int, largest: int, found: int
) -> None:
    tried, step = memory_for(room)
    assert largest_that_fits(step, largest=largest) == found  # type: ignore[arg-type]
    assert tried == [4 << turn for turn in range(len(tried))]
    assert max(tried) <= max(2 * room, 4)


def test_a_network_that_never_fits_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch: auto: a step on 4 samples does not fit"):
        largest_that_fits(memory_for(3)[1], largest=100)  # type: ignore[arg-type]


def test_other_errors_of_a_step_are_not_taken_for_lack_of_memory() -> None:
    def step(batch: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(step, largest=100)


def test_a_processor_stops_where_doubling_brings_nothing() -> None:
    # A step costs 10 ms, and each sample 1 ms: 4 → 286/s, …, 128 → 928/s, 256 → 962/s (under 5 % more).
    assert where_doubling_stops_paying(lambda batch: 0.010 + 0.001 * batch, largest=100_000) == 128
    assert where_doubling_stops_paying(lambda batch: 0.010 + 0.001 * batch, largest=40) == 32
    assert where_doubling_stops_paying(lambda batch: 0.001 * batch, largest=1000) == 4


def test_what_was_found_stands_in_the_run_and_a_resumed_run_does_not_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    folder = made.shards(tmp_path / "shards", counts=(100, 100))
    config = made.config(folder, tmp_path / "run", "train.batch=auto")
    assert train(config) == 0
    found = run_folder.load_config(tmp_path / "run").train.batch
    assert found in (4, 8)  # 200 samples, and an epoch keeps 20 steps
    seen = checkpoints.State.load(checkpoints.find_checkpoint(tmp_path / "run", "last"))
    assert seen.samples_seen == seen.step * found
    monkeypatch.setattr(setup, "find_batch", lambda *_, **__: pytest.fail("asked again"))
    assert train(config) == 0
    assert run_folder.load_config(tmp_path / "run").train.batch == found
    with pytest.raises(UserError, match=r"train\.batch: "):  # a number in its place is another config
        train(made.config(folder, tmp_path / "run", f"train.batch={found * 2}"))


def test_auto_with_micro_batches_contradicts_itself(tmp_path: Path) -> None:
    folder = made.shards(tmp_path / "shards", counts=(8,))
    with pytest.raises(UserError, match=r"leave train\.micro_batch out"):
        train(made.config(folder, tmp_path / "run", "train.batch=auto", "train.micro_batch=2"))


def test_rank_0_decides_whether_a_batch_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node may not see the run's config yet, and would be alone in the collective call."""
    agreed: list[str] = []

    def rank_0_has(text: str) -> str:
        agreed.append(text)
        return "24"

    def alone(*_: object, **__: object) -> int:
        raise AssertionError("rank 0 knows the batch, and would not come")

    monkeypatch.setattr("hpe.train.setup.agree", rank_0_has)
    monkeypatch.setattr("hpe.train.setup.find_batch", alone)
    config = made.config(made.shards(tmp_path / "shards"), tmp_path / "run", "train.batch=auto")
    assert setup.prepare_job(config, Ranks(1, 2, 0, 1)).batch == 24
    assert agreed == ['"auto"']
