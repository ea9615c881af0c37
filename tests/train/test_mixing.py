"""Several datasets in one training: how often each is drawn, and what the log says of it."""

from collections import Counter
from pathlib import Path

import pytest

from hpe.config.run import RunConfig
from hpe.core.errors import UserError
from hpe.stream import Balance, Reading, ShardSet, Stream
from hpe.stream.stream import Stream as Opened
from hpe.train import train
from tests import made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mixing")
    return made.shards(folder / "small", (5, 4)), made.shards(folder / "large", (40, 50, 30))


def opened(folders: tuple[Path, Path], *weights: float | None) -> Opened:
    sets = [ShardSet(str(folder), "train", weight=w) for folder, w in zip(folders, weights, strict=True)]
    return Stream(sets, Reading(made.SIDE, workers=0))


def drawn(stream: Opened, positions: int, balance: Balance | None = None) -> Counter[int]:
    """Positions of each dataset among the first ones."""
    return Counter(stream._order(balance, seed=3, window=4).at(0, positions)[:, 0].tolist())


def test_a_dataset_counts_by_its_samples_unless_it_has_a_weight(folders: tuple[Path, Path]) -> None:
    stream = opened(folders, None, None)
    assert stream.draws_per_epoch() == (1.0, 1.0)
    assert drawn(stream, 10 * stream.samples) == {0: 90, 1: 1200}


@pytest.mark.parametrize("balance", [None, Balance()])
def test_the_draws_that_are_told_are_those_of_the_sequence(folders: tuple[Path, Path], balance: Balance | None) -> None:
    stream = opened(folders, 2.0, 1.0)
    positions = 1000 * stream.samples  # whole blocks, and whole epochs
    found = drawn(stream, positions, balance)
    counted = tuple(found[d] / 1000 / sum(counts) for d, counts in enumerate(stream.counts))
    assert stream.draws_per_epoch(balance) == pytest.approx(counted)


def test_a_weight_for_some_datasets_only_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="2 datasets, 1 with a weight; give one to all of them, or to none"):
        opened(folders, None, 2.0).draws_per_epoch()


def config(folders: tuple[Path, Path], run: Path, *weights: str) -> RunConfig:
    sets = [f"{{shards: {f}, split: train{w}}}" for f, w in zip(folders, weights, strict=True)]
    return made.config(folders[0], run, f"data.train=[{', '.join(sets)}]")


def test_a_config_with_some_weights_is_refused_with_the_way_out(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights none, 2; give a weight to all of them, or to none"):
        config(folders, tmp_path / "run", "", ", weight: 2")


def test_the_start_tells_how_often_each_dataset_is_drawn(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config(folders, tmp_path / "plain", "", "")) == 0
    lines = capsys.readouterr()
    assert "9 samples, each 1 × per epoch" in lines.err + lines.out
    assert "120 samples, each 1 × per epoch" in lines.err + lines.out
    assert train(config(folders, tmp_path / "half", ", weight: 1", ", weight: 1")) == 0
    lines = capsys.readouterr()
    assert "9 samples, each 7.17 × per epoch" in lines.err + lines.out
    assert "120 samples, each 0.537 × per epoch" in lines.err + lines.out
