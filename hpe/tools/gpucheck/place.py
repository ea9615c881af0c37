"""Where the checks run: a device, a folder of their own, shards of rendered heads, and how much work they do."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

import torch

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import parse, quoted
from hpe.core.devices import cores, device
from hpe.core.files import write_json
from hpe.data.shards import Manifest
from hpe.tools.gpucheck import Row

_PLACE: Final = "place.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work the checks do.

    Attributes:
        heads, people, pixels: of the rendered data set.
        side: pixels of the images that the small trainings learn from.
        backbone: of the small trainings.
        batch, steps: of the small trainings.
        speed_backbone: the network whose speed is measured, in full size.
        speed_batch: its largest batch; less memory takes a smaller one.
        pose_backbone: the network of the pose pass.
        pose_shards: which shards the pose pass reads.
        turn_seconds: about how long one measurement of speed lasts.
        turns: how often each speed is measured; the median is reported.
        reduce_mib: what the all-reduce sums.
        resume_steps: steps of the run that is killed.
    """

    heads: int
    people: int
    pixels: int
    side: int
    backbone: str
    batch: int
    steps: int
    speed_backbone: str
    speed_batch: int
    pose_backbone: str
    pose_shards: str
    turn_seconds: float
    turns: int
    reduce_mib: int
    resume_steps: int


GPU: Final = Sizes(
    heads=2000, people=100, pixels=224, side=64, backbone="resnet18", batch=64, steps=80,
    speed_backbone="resnet50", speed_batch=256, pose_backbone="resnet50", pose_shards="*.tar",
    turn_seconds=3.0, turns=3, reduce_mib=128, resume_steps=1000,
)  # fmt: skip
"""About 50 MiB of data."""
CPU: Final = Sizes(
    heads=512, people=32, pixels=64, side=64, backbone="tiny", batch=32, steps=32,
    speed_backbone="tiny", speed_batch=32, pose_backbone="mobilenet_v3_small", pose_shards="test-*.tar",
    turn_seconds=1.0, turns=1, reduce_mib=8, resume_steps=40,
)  # fmt: skip
"""Enough to see on a machine without a GPU that the checks work."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a check runs.

    Attributes:
        kind: of the device.
        folder: for what the check writes.
        shards: folder of packed heads with the splits train and val.
        sizes: how much work to do.
    """

    kind: Literal["cuda", "cpu"]
    folder: Path
    shards: Path
    sizes: Sizes

    @property
    def device(self) -> torch.device:
        """This process' device."""
        return device() if self.kind == "cuda" else torch.device("cpu")

    @property
    def processes(self) -> int:
        """How many ranks the machine is judged with: one for each GPU, two on a CPU."""
        return torch.cuda.device_count() if self.kind == "cuda" else 2

    @property
    def workers(self) -> int:
        """Reader processes: one core is left to the training."""
        return max(1, min(16, cores() - 1))

    def environment(self) -> dict[str, str]:
        """The variables of a process that runs a check here."""
        variables = os.environ | {
            "HPE_CACHE": str(self.folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),  # so that it compiles here and now
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "HPE_QUIET": "1",
        }
        # A launcher's variables would make each process wait for ranks that do not exist.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            variables.pop(name, None)
        if self.kind == "cpu":
            variables["ACCELERATE_USE_CPU"] = "true"
            # Threads that wait for each other on busy cores are tens of times slower; these networks are small.
            variables.setdefault("OMP_NUM_THREADS", "1")
        return variables

    def save(self) -> None:
        """Write it down for the processes that run the checks."""
        plain = asdict(self) | {"folder": str(self.folder), "shards": str(self.shards)}
        write_json(self.folder / _PLACE, plain)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What :meth:`save` wrote in a folder."""
        plain = json.loads((folder / _PLACE).read_text(encoding="utf-8"))
        return cls(plain["kind"], folder, Path(plain["shards"]), Sizes(**plain["sizes"]))

    def config(self, name: str, *overrides: str, steps: int | None = None) -> RunConfig:
        """The config of a small training that takes ``steps`` steps, in the run folder ``runs/NAME``."""
        sizes = self.sizes
        samples = sum(shard.samples for shard in Manifest.load(self.shards).shards if shard.split == "train")
        epochs = (steps or sizes.steps) * sizes.batch / samples
        shards = quoted(str(self.shards))
        text = f"""\
run: {quoted(str(self.folder / "runs" / name))}
data:
  train: [{{shards: {shards}, split: train}}]
  val: [{{shards: {shards}, split: val}}]
  size: {sizes.side}
  workers: {min(2, self.workers)}
augment: {{flip: 0.5, shift: 0.05, brightness: 0.2}}
model:
  backbone: {sizes.backbone}
  heads: {{emotion: {{}}, direction: {{}}, pose: {{alpha: 0.01}}}}
train:
  batch: {sizes.batch}
  epochs: {epochs!r}
  validate_epochs: {2 * epochs!r}
  learning_rate: 2e-3
  schedule: constant
  log_steps: {max(1, sizes.steps // 4)}
  precision: fp32
"""
        return parse(text, "hpe doctor --gpu", RunConfig, overrides)


def data(place: Place) -> Iterator[Row]:
    """Render and pack the heads of a place."""
    from hpe.pack import pack_source
    from hpe.pack.options import Options

    sizes = place.sizes
    options = [f"count={sizes.heads}", f"people={sizes.people}", f"size={sizes.pixels}"]
    pack_source("synthetic", [str(place.shards)], options, cores(), Options(size=sizes.pixels))
    mebibytes = sum(path.stat().st_size for path in place.shards.rglob("*") if path.is_file()) / 2**20
    text = f"{sizes.heads:,} rendered and packed, {sizes.pixels} pixels, {mebibytes:.0f} MiB"
    yield Row("heads", "ok", text, {"mebibytes": mebibytes})
