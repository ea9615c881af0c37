"""Images per second of ``hpe train``, compared with a bare PyTorch loop; the bottleneck of a run; the cost of resuming.

The loops take turns on copies of one network and on the same batches. A turn's clock runs from the loop's
third request for a batch to its last, so that starting up, validation and the last checkpoint do not count.
"""

import copy
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load, parse, quoted, setting
from hpe.core.devices import cuda
from hpe.core.ranks import Ranks, leave
from hpe.core.signals import Signals
from hpe.data.batch import Batch
from hpe.data.normalise import prepare
from hpe.models.checkpoints import State, find_checkpoint
from hpe.models.multitask import Outputs
from hpe.stream import Damage, Loaded, Loader
from hpe.tools.bench import Figure, Report, Settings, ratio, take_turns
from hpe.tools.bench.stream import made_shards
from hpe.train.log import Log
from hpe.train.losses import geodesic_loss, hopenet_loss
from hpe.train.setup import Job, open_job
from hpe.train.step import Learner
from hpe.train.timetable import Timetable

LOOP: Final = "hpe train, batches in memory"
BARE: Final = "bare PyTorch loop, batches in memory"
TRAIN: Final = "hpe train, from shards"
STREAM: Final = "the stream alone"
_WARM_UP: Final = 2
_KEPT: Final = 8
_NEVER: Final = 1e9
"""Epochs."""
_LATE: Final = 0.9
_REDUCTIONS: Final = 20
_CPU: Final = ("mobilenet_v3_small", 112, 32, 8)
_GPU: Final = ("resnet50", 224, 256, 60)
"""Backbone, pixels, batch and steps of a turn."""
_ROUNDS: Final = 3
"""Turns for each one that is asked for: they are short, so that all loops meet the same neighbours."""


def measure(settings: Settings) -> Report:
    """Measure one rank on this machine's device, with the given run config or a built-in one."""
    config, steps = _config(settings)
    alone = Ranks(0, 1, 0, 1)
    shutil.rmtree(config.run, ignore_errors=True)
    with open_job(config, alone) as job:
        figures = take_turns(contestants(job, steps), _ROUNDS * settings.repeats, "bench step")
        gradient = sum(p.numel() * p.element_size() for p in job.network.parameters() if p.requires_grad)
        device = str(job.accelerator.device)
        precision = job.accelerator.mixed_precision
        batch = job.batch
    ranks = max(2, torch.cuda.device_count()) if cuda() else 2
    seconds = _all_reduce_seconds(gradient, ranks) if not cuda() or torch.cuda.device_count() > 1 else None
    notes = (
        f"{config.model.backbone} at {config.data.size} pixels, heads {', '.join(config.model.heads.on)}, batches of "
        f"{batch}, {config.data.workers} workers, {device}, precision {precision}",
        *_bounds(figures, batch, gradient, ranks, seconds),
        _resume(config, alone, settings.repeats),
    )
    return Report("step", "images/s", figures, (ratio(figures, LOOP, BARE, 0.98),), notes)


def contestants(job: Job, steps: int) -> dict[str, Callable[[], float]]:
    """What takes turns on a job, by name; each call takes so many steps and returns its images a second."""
    loaded = _in_memory(job)
    return {
        LOOP: lambda: _loop(job, steps, itertools.cycle(loaded)),
        BARE: lambda: _bare(job, steps, loaded),
        TRAIN: lambda: _loop(job, steps, job.batches(0)),
        STREAM: lambda: _stream(job, steps),
    }


def _config(settings: Settings) -> tuple[RunConfig, int]:
    """The config to measure, with a run folder of ours; and the steps of a turn."""
    backbone, size, batch, steps = _GPU if cuda() else _CPU
    run = settings.folder / "step-run"
    if settings.config is not None:
        # The bare loop knows no small first epochs, so neither side has any.
        return load(settings.config, RunConfig, (setting("run", str(run)), "train.small_epochs=0")), steps
    paths = [quoted(str(path)) for path in made_shards(settings)]
    steps = min(steps, max(4, settings.samples // batch - _WARM_UP))
    text = f"""\
run: {quoted(str(run))}
data:
  train: [{{shards: [{", ".join(paths)}]}}]
  val: [{{shards: {paths[0]}}}]
  size: {size}
  workers: {settings.workers}
model:
  backbone: {backbone}
  heads: {{emotion: {{}}, pose: {{alpha: 0.01}}}}
train: {{batch: {batch}, epochs: 1}}
"""
    return parse(text, "bench step", RunConfig), steps


def _in_memory(job: Job) -> list[Loaded]:
    with job.batches(0) as loader:
        return [in_own_memory(one) for one in itertools.islice(loader, _KEPT)]


def in_own_memory(loaded: Loaded) -> Loaded:
    """A batch that is kept: the loader's memory is used again. Page-locked beside a GPU, as the loader's is."""
    kept = loaded.batch.clone()
    return replace(loaded, batch=kept.pin_memory() if cuda() else kept)


class _Timed:
    """A loader that notes when batches are asked for."""

    def __init__(self, batches: Iterator[Loaded] | Loader, batch: int, where: torch.device) -> None:
        self._batches, self._batch, self._where = batches, batch, where
        self._asked: list[float] = []

    @property
    def waited_seconds(self) -> float:
        return getattr(self._batches, "waited_seconds", 0.0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Loaded:
        if len(self._asked) == _WARM_UP:
            _finish(self._where)
        self._asked.append(time.perf_counter())
        # Batches in memory repeat; the run does not end with them.
        return replace(next(self._batches), samples_seen=len(self._asked) * self._batch)

    def new_damage(self) -> tuple[list[Damage], int]:
        """What could not be read; batches in memory were read before."""
        return self._batches.new_damage() if isinstance(self._batches, Loader) else ([], 0)

    def rate(self) -> float:
        """Images a second from the third request to the end of the last but one step."""
        return (len(self._asked) - 1 - _WARM_UP) * self._batch / (self._asked[-1] - self._asked[_WARM_UP])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._batches, Loader):
            self._batches.close()


def _finish(where: torch.device) -> None:
    """Wait for what the device has been given."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


@dataclass(frozen=True, kw_only=True)
class _Short(Job):
    """A job of few steps, without a validation worth the name."""

    timed: Any
    steps: int

    @property
    def total_samples(self) -> int:
        return (self.steps + _WARM_UP + 1) * self.batch

    @property
    def timetable(self) -> Timetable:
        """That of the job, with no validation and no checkpoint before the end: the clock would run on."""
        usual = super().timetable
        never = {"validate_epochs": _NEVER, "checkpoint_steps": 0, "patience": 0}
        return replace(usual, settings=usual.settings.model_copy(update=never))

    def batches(self, samples_seen: int) -> Any:
        return self.timed

    def validation(self) -> Any:
        return _Timed(iter(()), self.batch, self.accelerator.device)

    def say(self, text: str) -> None: ...


def _loop(job: Job, steps: int, batches: Iterator[Loaded] | Loader) -> float:
    from hpe.train.loop import loop

    where = job.accelerator.device
    timed = _Timed(batches, job.batch, where)
    known = {field.name: getattr(job, field.name) for field in fields(Job)}
    known["network"] = copy.deepcopy(job.network)
    short = _Short(**known, timed=timed, steps=steps)
    learner = Learner(job.config, short.network, job.losses, job.epoch_samples, job.ranks, job.accelerator)
    start = State(samples_seen=0, step=0)
    with Log(job.run, job.ranks, start) as log:
        loop(short, learner, start, log, Signals())
    return timed.rate()


def _bare(job: Job, steps: int, loaded: list[Loaded]) -> float:
    """What one would write by hand: no masks, no counts over ranks, nothing logged."""
    where = job.accelerator.device
    network = copy.deepcopy(job.network).to(where, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    rate, decay = job.config.train.learning_rate, job.config.train.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    call = torch.compile(network) if job.config.train.compile else network
    batches = itertools.cycle([one.batch for one in loaded])
    begun = 0.0
    for step in range(steps + _WARM_UP):
        if step == _WARM_UP:
            _finish(where)
            begun = time.perf_counter()
        batch = next(batches).to(where)
        with job.accelerator.autocast():
            outputs = call(batch.angles if network.takes_angles else prepare(batch, network.normalisation))
        _plain_loss(outputs, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    _finish(where)
    return steps * job.batch / (time.perf_counter() - begun)


def _plain_loss(outputs: Outputs, batch: Batch) -> Tensor:
    total = torch.zeros((), device=batch.images.device)
    for head, output in outputs.items():
        match head:
            case "emotion":
                total = total + F.cross_entropy(output.float(), batch.emotion_target)
            case "direction":
                total = total + F.cross_entropy(output.float(), batch.direction)
            case "pose" if output.ndim == 3:
                total = total + hopenet_loss(output, batch.angles, 0.01).mean()
            case "pose":
                total = total + geodesic_loss(output, batch.angles).mean()
            case _:
                total = total + nn.functional.mse_loss(output.float(), batch.affect)
    return total


def _stream(job: Job, steps: int) -> float:
    """The batches that a turn takes, read as fast as they come."""
    batches, rows = steps * 2, job.batch
    with job.batches(0) as loader:
        next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * rows / (time.perf_counter() - start)


def _bounds(
    figures: tuple[Figure, ...], batch: int, gradient_bytes: int, ranks: int, seconds: float | None
) -> Iterator[str]:
    """What a run is bound by: the lowest of the limits, and how much of each is reached."""
    medians = {figure.name: figure.median for figure in figures}
    reached = medians[TRAIN]
    limits = {"compute": max(medians[BARE], medians[LOOP]), "data": medians[STREAM]}
    shares = ", ".join(f"{reached / limit:.0%} of {name} ({limit:,.0f}/s)" for name, limit in limits.items())
    yield f"one rank is bound by {min(limits, key=lambda name: limits[name])}: from shards it reaches {shares}"
    if seconds is None:
        yield "communication: one GPU only, nothing to measure"
        return
    step = batch / limits["compute"]
    yield (
        f"communication: an all-reduce of the {gradient_bytes / 2**20:.1f} MiB of gradients over {ranks} ranks takes "
        f"{seconds * 1000:.1f} ms, {seconds / step:.0%} of a step of {step * 1000:.0f} ms: "
        + ("it bounds the run" if seconds > step else "it does not bound the run")
        + f" (limit {ranks * batch / seconds:,.0f}/s)"
    )


def _resume(config: RunConfig, ranks: Ranks, repeats: int) -> str:
    """Seconds until the first step is done: from the start of an epoch, and from late in it."""
    found: dict[str, list[float]] = {"new": [], "late": []}
    for turn in range(repeats):
        for place in ("new", "late") if turn % 2 == 0 else ("late", "new"):
            run = f"{config.run}-{place}"
            found[place].append(_first_step(config.model_copy(update={"run": run}), ranks, late=place == "late"))
    new, late = (statistics.median(found[place]) for place in ("new", "late"))
    return (
        f"to the first step: {new:.2f} s from the epoch's start, {late:.2f} s resumed at {_LATE:.0%} of it "
        "(the config's checks, the network, readers and one step; without importing)"
    )


def _first_step(config: RunConfig, ranks: Ranks, *, late: bool) -> float:
    if late:
        _checkpoint(config, ranks)
    else:
        shutil.rmtree(config.run, ignore_errors=True)
    start = time.perf_counter()
    with open_job(config, ranks) as job:
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
        state = learner.load(job.resume) if job.resume else State(samples_seen=0, step=0)
        with job.batches(state.samples_seen) as loader:
            learner.step(next(loader), state, asked_here=False, measure_gradient=False)
            _finish(job.accelerator.device)
            return time.perf_counter() - start


def _checkpoint(config: RunConfig, ranks: Ranks) -> None:
    """A run that has seen nine tenths of its first epoch."""
    with open_job(config, ranks) as job:
        step = int(_LATE * job.epoch_samples) // job.batch
        if job.resume is None or State.load(find_checkpoint(job.run, "last")).step != step:
            learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
            learner.save(job.run, State(samples_seen=step * job.batch, step=step))


def _all_reduce_seconds(size: int, ranks: int) -> float:
    """The median time of an all-reduce of ``size`` bytes over processes of this machine."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        meet = (Path(folder) / "meet").as_uri()
        running = [context.Process(target=_reduce, args=(rank, ranks, meet, size, theirs)) for rank in range(ranks)]
        for process in running:
            process.start()
        theirs.close()
        seconds = ours.recv()
        for process in running:
            process.join()
    return seconds


def _reduce(rank: int, ranks: int, meet: str, size: int, answer: Connection) -> None:
    import torch.distributed as dist

    where = torch.device("cuda", rank) if cuda() else torch.device("cpu")
    dist.init_process_group("nccl" if cuda() else "gloo", init_method=meet, rank=rank, world_size=ranks)
    values = torch.ones(max(1, size // 4), device=where)
    taken = []
    for _ in range(_REDUCTIONS):
        values.fill_(1.0)
        dist.barrier()
        _finish(where)
        start = time.perf_counter()
        dist.all_reduce(values)
        _finish(where)
        taken.append(time.perf_counter() - start)
    if rank == 0:
        answer.send(statistics.median(taken[_WARM_UP:]))
    leave(0)
