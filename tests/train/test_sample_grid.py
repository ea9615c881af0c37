"""The grid of validation faces: what lies where, and that training writes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpe.data.batch import Batch
from hpe.data.normalise import prepare
from hpe.models.build import build_network
from hpe.models.multitask import Outputs
from hpe.stream import Reading, ShardSet, Stream
from hpe.train import train
from hpe.train.sample_grid import SHOWN, sample_grid
from tests import made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards", counts=(24,))


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[tuple[Batch, Outputs]]:
    """Three batches of eight, without axes, so that the faces stay as they are."""
    torch.set_num_threads(1)
    network = build_network(made.config(folder, folder, "model.heads.pose=null").model).eval()
    stream = Stream([ShardSet(str(folder), "train")], Reading(size=made.SIDE))
    with torch.no_grad():
        return [
            (loaded.batch, network(prepare(loaded.batch, network.normalisation))) for loaded in stream.once(batch=8)
        ]


def test_the_first_sixteen_faces_stand_in_four_rows(seen: list[tuple[Batch, Outputs]]) -> None:
    grid = sample_grid(seen)
    assert grid is not None
    height, width = grid.shape[0] // 4, grid.shape[1] // 4
    faces = torch.cat([batch.images for batch, _ in seen]).permute(0, 2, 3, 1).numpy()
    for place in range(SHOWN):
        top, left = place // 4 * height, place % 4 * width
        shown = grid[top : top + height, left : left + height].astype(float)
        away = [np.abs(shown.mean((0, 1)) - face.mean((0, 1))).max() for face in faces[:SHOWN]]
        assert away[place] < 3
        assert away[place] == min(away)


def test_few_faces_and_none(seen: list[tuple[Batch, Outputs]]) -> None:
    batch, outputs = seen[0]
    few = sample_grid([(batch[:2], {head: values[:2] for head, values in outputs.items()})])
    whole = sample_grid(seen)
    assert few is not None
    assert whole is not None
    assert few.shape == (whole.shape[0] // 4, whole.shape[1] // 2, 3)
    assert sample_grid([]) is None


def test_training_writes_a_grid_at_every_validation(folder: Path, tmp_path: Path) -> None:
    config = made.config(folder, tmp_path / "run", "train.epochs=2")
    assert train(config) == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("faces/val")] == [24, 48]
