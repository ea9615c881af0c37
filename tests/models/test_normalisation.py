"""A run keeps the numbers that its pixels are normalised by, and every command uses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from hpe.config.run import RunConfig
from hpe.core.errors import UserError
from hpe.data.normalise import MEAN, STD
from hpe.estimators.load import Compute, load_estimator
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.models import checkpoints, run_folder
from hpe.models.backbones import Tiny
from hpe.models.build import build_network, load_run
from hpe.models.run_folder import load_config
from hpe.predict.network import open_predictor
from hpe.stream import ShardSet, Stream
from hpe.study.adaboost import features_of_run
from hpe.train import train
from hpe.train.resume import recall
from tests import made

CPU = torch.device("cpu")
HALF = ("model.mean=[0.5, 0.5, 0.5]", "model.std=[0.5, 0.5, 0.5]")
ONE_STEP = ("train.epochs=0.1", "augment={}")
ANOTHER = ("model.mean=[0.4, 0.4, 0.4]", "model.std=[0.2, 0.2, 0.2]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards", counts=(40,), val=16)


def numbers(config: RunConfig) -> tuple:
    return config.model.mean, config.model.std


def test_every_command_brings_the_bytes_to_where_the_run_has_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean and a deviation of a half bring 0..255 to -1..1; ImageNet's reach from -2.1 to 2.6."""
    seen: list[tuple[float, float]] = []
    original = Tiny.forward

    def forward(self: Tiny, images: Tensor) -> Tensor:
        if images.device.type != "meta" and images.any():
            seen.append((float(images.min()), float(images.max())))
        return original(self, images)

    def reach() -> tuple[float, float]:
        assert seen
        low, high = (min(low for low, _ in seen), max(high for _, high in seen))
        seen.clear()
        return low, high

    monkeypatch.setattr(Tiny, "forward", forward)
    run, val = tmp_path / "run", [ShardSet(str(folder), "val")]
    faces = np.stack([np.full((made.SIDE, made.SIDE, 3), value, np.uint8) for value in (0, 255)])
    assert train(made.config(folder, run, *HALF, *ONE_STEP)) == 0
    assert -1 <= (ends := reach())[0] < 0.6 < ends[1] <= 1  # with ImageNet's the brightest would be at 2.3
    evaluate(run, val, EvaluateOptions(name="test", batch=8, workers=0, precision="fp32", replicates=10))
    assert -1 <= (ends := reach())[0] < 0.6 < ends[1] <= 1
    open_predictor(run, CPU).answer(faces)
    assert reach() == (-1, 1)
    load_estimator(run, Compute(CPU), crop="none").predict(torch.from_numpy(faces).permute(0, 3, 1, 2))
    assert reach() == (-1, 1)
    features = features_of_run(run)
    with Stream(val, features.reading).once(batch=8) as loader:
        features.of_batch(next(loader).batch)
    assert -1 <= (ends := reach())[0] < 0.6 < ends[1] <= 1


def test_a_run_holds_its_numbers_and_its_weights_hold_none(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(made.config(folder, run, *ONE_STEP)) == 0
    told = yaml.safe_load((run / run_folder.CONFIG).read_text())["model"]
    assert (tuple(told["mean"]), tuple(told["std"])) == (MEAN, STD)
    with safe_open(checkpoints.weights_of(run), "pt") as file:
        assert not {"mean", "std"} & set(file.keys())


def test_a_run_goes_on_with_its_own_numbers_alone(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(made.config(folder, run, *ONE_STEP)) == 0
    with pytest.raises(UserError, match=r"model.mean: \[0.485, 0.456, 0.406\] -> \[0.5, 0.5, 0.5\]"):
        train(made.config(folder, run, *HALF, *ONE_STEP))


def test_a_new_run_takes_the_numbers_of_its_backbone_and_an_earlier_one_keeps_its_own(tmp_path: Path) -> None:
    config = made.config(tmp_path, tmp_path / "run", "model.backbone=timm/vit_tiny_patch16_224")
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    resolved = recall(config)[0]
    assert numbers(resolved) == half
    (tmp_path / "run").mkdir()
    own = made.config(tmp_path, tmp_path / "run", "model.backbone=timm/vit_tiny_patch16_224", *ANOTHER)
    (tmp_path / "run" / run_folder.CONFIG).write_text(own.dump())
    assert numbers(load_config(tmp_path / "run")) == numbers(recall(config)[0]) == numbers(own)


def test_a_network_that_starts_from_a_run_sees_what_that_run_saw(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(made.config(folder, run, *HALF, *ONE_STEP)) == 0
    network = build_network(recall(made.config(folder, tmp_path / "next", f"model.weights={run}"))[0].model)
    assert network.mean.tolist() == network.std.tolist() == [0.5] * 3
    assert load_run(run)[0].mean.tolist() == [0.5] * 3


def test_mean_and_std_belong_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model: mean and std belong together: give both, or neither"):
        made.config(tmp_path, tmp_path / "run", HALF[0])
