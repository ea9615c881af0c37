"""Images per second, and what share of its limit each stage reaches: ``hpe bench`` on rendered heads."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import nn

from hpe.config.run import RunConfig
from hpe.tools.bench import Figure, Settings, take_turns
from hpe.tools.bench.pose import turns
from hpe.tools.bench.step import BARE, LOOP, STREAM, TRAIN, contestants
from hpe.tools.gpucheck import Row, failed
from hpe.tools.gpucheck.place import Place
from hpe.tools.gpucheck.training import ALONE, finish, forget_peak, peak
from hpe.train.setup import Job, open_job

_ALONE: Final = "network alone"
_TRIAL_STEPS: Final = 4
_FEWEST_STEPS: Final = 6
_MOST_STEPS: Final = 60
_MIB_PER_IMAGE: Final = 110
"""Of ResNet-50 at 224 pixels in training, in fp32 (about half of it in bf16)."""
_SMALLEST_BATCH: Final = 8
_WANTED: Final = 0.9
"""A share of its limit below which a row says so."""


def speed(place: Place) -> Iterator[Row]:
    """Check 8: the network alone, training from memory, training while streaming, the pose pass."""
    for part in (_training, _pose):
        try:
            yield from part(place)
        except Exception as error:
            yield failed(part.__name__.strip("_"), error)


def _training(place: Place) -> Iterator[Row]:
    config = _config(place)
    peaks: dict[str, float] = {}
    with open_job(config, ALONE) as job:
        network = job.network.to(place.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        trial = alone(job, network, _TRIAL_STEPS, place)
        steps = int(min(_MOST_STEPS, max(_FEWEST_STEPS, place.sizes.turn_seconds * trial / job.batch)))
        runners = {_ALONE: lambda: alone(job, network, steps, place), **contestants(job, steps)}
        watched = {name: _with_peak(name, run, peaks, place) for name, run in runners.items()}
        figures = {one.name: one for one in take_turns(watched, place.sizes.turns, "images per second")}
        precision = job.accelerator.mixed_precision
        about = f"{config.model.backbone}, {config.data.size} pixels, batch {job.batch}, {config.data.workers} workers"
    yield from rows(figures, peaks, f"{about}, precision {precision}")


def rows(figures: dict[str, Figure], peaks: dict[str, float], about: str) -> Iterator[Row]:
    """A row for each speed: its share of the limit, which is what it would do if all else took no time."""
    medians = {name: figure.median for name, figure in figures.items()}
    limits = {
        _ALONE: None,
        LOOP: ("the network alone", medians[_ALONE]),
        TRAIN: ("the slower of network and stream", min(medians[_ALONE], medians[STREAM])),
        STREAM: None,
        BARE: ("the network alone", medians[_ALONE]),
    }
    for name, limit in limits.items():
        values = {"images_per_second": medians[name], "turns": figures[name].values, "about": about}
        text = f"{medians[name]:,.0f} images/s"
        state = "ok"
        if limit is not None:
            share = medians[name] / limit[1]
            values["share_of_limit"] = share
            text += f", {share:.0%} of {limit[0]}"
            state = "note" if share < _WANTED and name in (LOOP, TRAIN) else "ok"
        if peaks.get(name):
            values["peak_memory_mib"] = peaks[name]
            text += f", {peaks[name]:,.0f} MiB on the device"
        yield Row(name, state, f"{text} ({about})" if name == _ALONE else text, values)


def alone(job: Job, network: nn.Module, steps: int, place: Place) -> float:
    """Images a second of forward and backward alone, from one batch that stays on the device."""
    size = job.config.data.size
    images = torch.randn((job.batch, 3, size, size), device=place.device).to(memory_format=torch.channels_last)
    call = torch.compile(network) if job.config.train.compile else network
    network.train()
    begun = 0.0
    for step in range(steps + 2):
        if step == 2:  # the first steps choose kernels and take memory
            finish(place)
            begun = time.perf_counter()
        with job.accelerator.autocast():
            outputs = call(images)
        torch.stack([output.float().square().mean() for output in outputs.values()]).sum().backward()
        network.zero_grad()
    finish(place)
    return steps * job.batch / (time.perf_counter() - begun)


def _with_peak(name: str, run: Callable[[], float], peaks: dict[str, float], place: Place) -> Callable[[], float]:
    """The same, noting the most memory of the device that it has held."""

    def measured() -> float:
        forget_peak(place)
        rate = run()
        peaks[name] = max(peaks.get(name, 0.0), peak(place).get("peak_memory_mib", 0.0))
        return rate

    return measured


def _config(place: Place) -> RunConfig:
    sizes = place.sizes
    return place.config(
        "speed", f"model.backbone={sizes.speed_backbone}", f"data.size={sizes.pixels}",
        f"data.workers={place.workers}", f"train.batch={_batch(place)}", "train.precision=auto", "train.log_steps=20",
    )  # fmt: skip


def _batch(place: Place) -> int:
    """The full batch, halved until it takes half of the free memory at most."""
    batch = place.sizes.speed_batch
    if place.kind == "cpu":
        return batch
    free = torch.cuda.mem_get_info(place.device)[0] / 2**20
    while batch > _SMALLEST_BATCH and batch * _MIB_PER_IMAGE > free / 2:
        batch //= 2
    return batch


def _pose(place: Place) -> Iterator[Row]:
    """The pose pass with random weights, whose speed is that of trained ones."""
    forget_peak(place)
    backbone, folder = place.sizes.pose_backbone, place.folder / "pose-tables"
    settings = Settings(Path(place.folder), workers=place.workers, repeats=place.sizes.turns)
    figures, ratios = turns(backbone, place.shards / place.sizes.pose_shards, folder, place.device, settings)
    ours, network = figures[0], figures[1]
    share = ratios[0].value
    values = {"images_per_second": ours.median, "network_alone": network.median, "share_of_limit": share, **peak(place)}
    text = f"{ours.median:,.0f} images/s, {share:.0%} of the network alone ({network.median:,.0f}/s)"
    if "peak_memory_mib" in values:
        text += f", {values['peak_memory_mib']:,.0f} MiB on the device"
    about = f"{backbone}, 224 pixels, fp32, {place.workers} workers"
    yield Row("pose pass", "ok" if share >= _WANTED else "note", f"{text} ({about})", {**values, "about": about})
