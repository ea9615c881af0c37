"""Small things that tests make: shards of coloured squares with every label, and configs that train on them."""

from pathlib import Path

import numpy as np
import torch

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import parse
from hpe.data.images import encode_jpeg
from hpe.data.records import Record
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.models.build import build_network
from hpe.models.checkpoints import State, save_checkpoint
from hpe.models.run_folder import TrainedOn, record

SIDE = 32


def picture(emotion: int, direction: int, seed: int) -> np.ndarray:
    """A square whose colour tells the emotion and whose bright half tells the direction, with some noise."""
    noise = np.random.default_rng(seed).integers(0, 40, (SIDE, SIDE, 3))
    image = noise + np.asarray([emotion & 1, emotion >> 1 & 1, emotion >> 2 & 1]) * 120
    half = [slice(None), slice(0, SIDE // 2), slice(SIDE // 2, None)][min(direction, 2)]
    rows = {3: slice(0, SIDE // 2), 4: slice(SIDE // 2, None)}.get(direction, slice(None))
    image[rows, half] += 80
    return image.clip(0, 255).astype(np.uint8)


def samples(count: int, *, start: int = 0, unlabelled: int = 0) -> list[Sample]:
    """``count`` samples; every ``unlabelled``-th has no emotion and no angles."""
    made = []
    for number in range(start, start + count):
        emotion, direction = number % 8, number // 8 % 5
        bare = unlabelled and number % unlabelled == 0
        record = Record(
            emotion=None if bare else emotion,
            yaw=None if bare else 30.0 * ((direction == 1) - (direction == 2)),
            pitch=None if bare else 30.0 * ((direction == 3) - (direction == 4)),
            roll=None if bare else float(number % 7 - 3),
            direction=direction,
            valence=None if number % 3 else 0.5,
            arousal=None if number % 3 else -0.25,
            subject=f"person{number % 11}",
            source=f"raw/{number}.jpg",
            split="train",
        )
        image = encode_jpeg(picture(emotion, direction, number), 95)
        made.append(Sample(f"sample{number:05d}", image, "jpg", record))
    return made


def shards(folder: Path, counts: tuple[int, ...] = (40, 17, 30), val: int = 24, unlabelled: int = 0) -> Path:
    """A folder of shards as ``hpe pack`` writes it: uneven train shards and one val shard."""
    folder.mkdir(parents=True)
    infos, start = [], 0
    for number, count in enumerate(counts):
        made = samples(count, start=start, unlabelled=unlabelled)
        infos.append(write_shard(folder / f"train-{number:06d}.tar", "train", made))
        start += count
    infos.append(write_shard(folder / "val-000000.tar", "val", samples(val, start=10_000)))
    Manifest("made", "squares", "none", True, "none", {"size": SIDE}, tuple(infos)).save(folder)
    return folder


def config(folder: Path, run: Path, *overrides: str) -> RunConfig:
    """A config with every head on a tiny network; one epoch in batches of eight."""
    text = f"""\
run: {run}
data:
  train: [{{shards: {folder}, split: train}}]
  val: [{{shards: {folder}, split: val}}]
  size: {SIDE}
  workers: 0
augment: {{flip: 0.5, shift: 0.1, brightness: 0.2}}
model:
  backbone: tiny
  heads: {{emotion: {{dropout: 0.2}}, direction: {{}}, pose: {{alpha: 0.01}}, affect: {{}}}}
train: {{batch: 8, epochs: 1, learning_rate: 2e-3, log_steps: 3, precision: fp32}}
"""
    return parse(text, "made.yaml", RunConfig, overrides)


def untrained(run: Path, shards: Path, *overrides: str) -> Path:
    """A run folder with random weights, whose answers differ from face to face."""
    settings = config(shards, run, *overrides)
    run.mkdir()
    record(run, settings, lambda: TrainedOn({}, {}))
    torch.manual_seed(3)
    network = build_network(settings.model)
    for layer in network.heads.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=1.0)
    save_checkpoint(run, State(8, 1), network, {}, ema=None, keep=1, best=True)
    return run
