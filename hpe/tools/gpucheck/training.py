"""Checks of training itself, through the package's own loop: precisions, torch.compile, and waits of the host."""

import itertools
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hpe.config.run import RunConfig
from hpe.core.precision import lacks_precision
from hpe.core.ranks import Ranks
from hpe.models.checkpoints import State
from hpe.models.run_folder import METRICS
from hpe.stream import Loaded
from hpe.tools.bench.step import in_own_memory
from hpe.tools.gpucheck import Row, attempt
from hpe.tools.gpucheck.place import Place
from hpe.tools.gpucheck.waiting import Watch
from hpe.train.setup import open_job
from hpe.train.step import Learner

ALONE: Final = Ranks(0, 1, 0, 1)
_PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FALL: Final = 0.8
"""A loss that has fallen is at most this share of the first step's: it comes to about a half."""
_COMPARED_STEPS: Final = 4
_TIMED_STEPS: Final = 8
_SMALL_RATE: Final = 1e-5
"""The first steps of an untrained ResNet are chaotic. At a rate of 1e-3, two trainings whose weights differ by 1e-7 end
0.35 apart (share of what four steps changed; on a CPU), and two equal ones 0.18 on an H200, which adds in any order."""
_CLOSE: Final = 0.1
"""How far compiled and eager training may end apart, as a share of how far they went. At the small rate a ResNet-18
whose weights differ by 1e-7 ends 0.03 apart, and one with a gradient half too large in one block 0.4 (on a CPU)."""
_WARM_UP: Final = 3
_WATCHED_STEPS: Final = 4


def precision(place: Place) -> Iterator[Row]:
    """Check 2: a small network learns from rendered heads in each precision, and really computes in it."""
    for name in _PRECISIONS:
        if why := lacks_precision(name, place.device):
            yield Row(name, "skip", why)
        else:
            yield attempt(name, lambda name=name: _trains(place, name))


def _trains(place: Place, name: str) -> Row:
    from hpe.train import train

    config = place.config(f"precision-{name}", f"train.precision={name}")
    forget_peak(place)
    with _computed_in(place.kind) as dtypes:
        code = train(config)
    logged = _logged(config)
    first, last = logged[0]["loss"], logged[-1]["loss"]  # of the first step, and the mean of the last ones
    speed = logged[-1]["speed/images_per_second"]
    values = {"first_loss": first, "last_loss": last, "images_per_second": speed, "code": code}
    values |= peak(place)
    text = f"loss {first:.3g} → {last:.3g} in {logged[-1]['step']} steps, {speed:,.0f} images/s"
    if code:
        return Row(name, "bad", f"hpe train ended with {code}", values)
    if dtypes != {_PRECISIONS[name]}:
        seen = ", ".join(sorted(str(dtype) for dtype in dtypes)) or "nothing"
        return Row(name, "bad", f"convolutions computed in {seen}, expected {_PRECISIONS[name]}", values)
    if not last <= _FALL * first:
        return Row(name, "bad", f"{text}: it did not fall below {_FALL:.0%} of the first step's", values)
    return Row(name, "ok", text, values)


@contextmanager
def _computed_in(kind: str) -> Iterator[set[torch.dtype]]:
    """The types that convolutions of networks in training give, as they are seen from outside."""
    found: set[torch.dtype] = set()

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.training and output.device.type == kind:
            found.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def _logged(config: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(config.run) / METRICS).read_text(encoding="utf-8").splitlines()
    found = [row for row in map(json.loads, lines) if row["split"] == "train"]
    if len(found) < 2 or "loss" not in found[0] or "loss" not in found[-1]:
        raise RuntimeError(f"{config.run}: no two finite losses were logged")
    return found


def forget_peak(place: Place) -> None:
    """Begin anew to look for the most memory that the device holds."""
    if place.kind == "cuda":
        torch.cuda.init()  # without it there is nothing to forget, and torch says so by an error
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def peak(place: Place) -> dict[str, float]:
    """The most memory that tensors took on the device; of a CPU nothing."""
    if place.kind == "cpu":
        return {}
    return {"peak_memory_mib": round(torch.cuda.max_memory_allocated(place.device) / 2**20)}


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a few steps have made, and how long they took."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    first_seconds: float
    step_seconds: float


def compiled(place: Place) -> Iterator[Row]:
    """Check 3: a few steps through torch.compile give the network that eager steps give; what a step takes."""
    yield attempt("compile", lambda: _compiled(place))


def _compiled(place: Place) -> Row:
    from torch._dynamo.utils import counters

    with exact_products():
        eager = _stepped(place, "eager", "train.compile=false")
        counters.clear()
        compiled = _stepped(place, "compiled", "train.compile=true")
    graphs = int(counters["stats"]["unique_graphs"])
    shares = {
        part: float((compiled.after[part] - eager.after[part]).norm() / (eager.after[part] - eager.before[part]).norm())
        for part in eager.after
    }
    worst = max(shares, key=lambda part: -1.0 if shares[part] <= _CLOSE else shares[part])  # NaN is not close
    largest = max(shares.values())
    values = {
        "difference": shares,
        "graphs": graphs,
        "eager_ms": 1000 * eager.step_seconds,
        "compiled_ms": 1000 * compiled.step_seconds,
        "compile_seconds": compiled.first_seconds,
    }
    if not all(share <= _CLOSE for share in shares.values()):
        far = f"differ by {shares[worst]:.2g} of what {_COMPARED_STEPS} steps changed (at most {_CLOSE:g})"
        return Row("compile", "bad", f"{worst} {far}", values)
    if not graphs:
        return Row("compile", "bad", "train.compile: true compiled nothing", values)
    text = (
        f"weights and norms differ by at most {largest:.1g} of what {_COMPARED_STEPS} steps changed; a step takes "
        f"{1000 * compiled.step_seconds:.1f} ms, eager {1000 * eager.step_seconds:.1f} ms; "
        f"the first step, which compiles, {compiled.first_seconds:.0f} s"
    )
    return Row("compile", "ok", text, values)


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of fp32 numbers in fp32: TF32's rounding would hide small faults."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    with warnings.catch_warnings(action="ignore"):  # newer versions speak of another way to say this
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = False
        try:
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.allow_tf32 = value


def _stepped(place: Place, name: str, *overrides: str) -> _Trained:
    # Plain gradient steps are linear in the gradient; Adam would make much of a rounding near zero.
    options = ("train.optimizer=sgd", f"train.learning_rate={_SMALL_RATE}", *overrides)
    with open_job(place.config(name, *options), ALONE) as job:
        with job.batches(0) as loader:
            batches = [in_own_memory(one) for one in itertools.islice(loader, _COMPARED_STEPS)]
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ALONE, job.accelerator)
        steps = _Steps(learner, batches, place)
        before = _learned(learner)
        first = steps.seconds(1)
        steps.seconds(_COMPARED_STEPS - 1)
        after = _learned(learner)
        return _Trained(before, after, first, steps.seconds(_TIMED_STEPS) / _TIMED_STEPS)


def _learned(learner: Learner) -> dict[str, Tensor]:
    """What steps change in a network: its weights, and the running statistics of its batch norms."""
    floats = [buffer for buffer in learner.network.buffers() if buffer.is_floating_point()]
    return {"weights": flat(list(learner.network.parameters())), "statistics of batch norms": flat(floats)}


class _Steps:
    """Training steps on batches in memory, again and again."""

    def __init__(self, learner: Learner, batches: Sequence[Loaded], place: Place) -> None:
        self.learner, self.batches, self.place = learner, batches, place
        self.state = State(samples_seen=0, step=0)

    def seconds(self, count: int) -> float:
        """Take so many steps; how long they took."""
        finish(self.place)
        start = time.perf_counter()
        for _ in range(count):
            loaded = self.batches[self.state.step % len(self.batches)]
            self.learner.step(loaded, self.state, asked_here=False, measure_gradient=False)
            seen = self.state.samples_seen + len(loaded.batch)
            self.state = replace(self.state, samples_seen=seen, step=self.state.step + 1)
        finish(self.place)
        return time.perf_counter() - start


def finish(place: Place) -> None:
    """Wait for what the device was given."""
    if place.kind == "cuda":
        torch.cuda.synchronize(place.device)


_EVERYTHING: Final = (
    "augment.rotate=10", "augment.crop_scale=[0.8, 1.1]", "augment.contrast=0.2", "augment.saturation=0.2",
    "augment.grey=0.1", "augment.blur=0.2", "augment.erase=0.2", "augment.randaugment=3", "augment.mixup=0.2",
    "model.heads.emotion.imbalance=logit-adjustment", "model.heads.direction.imbalance=weights",
    "train.clip=1.0", "train.ema=0.99", "train.precision=auto",
)  # fmt: skip
"""Every augmentation, both corrections of imbalance, clipping and averaging: what may read from the device."""


def waits(place: Place) -> Iterator[Row]:
    """Check 4: steps of the real loop leave the host free to prepare the next ones."""
    for name, options in (("plain step", ()), ("step with everything", _EVERYTHING)):
        yield attempt(name, lambda name=name, options=options: _waits(place, name, options))


def _waits(place: Place, name: str, options: Sequence[str]) -> Row:
    """The first steps build what later ones use; the next are watched, and the last may not wait at all."""
    watch = Watch(place.kind)
    with open_job(place.config(name.replace(" ", "-"), *options), ALONE) as job, job.batches(0) as loader:
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ALONE, job.accelerator)
        state = State(samples_seen=0, step=0)
        for number, loaded in enumerate(itertools.islice(loader, _WARM_UP + 2 * _WATCHED_STEPS)):
            if number >= _WARM_UP + _WATCHED_STEPS and watch.lines:
                break  # a wait is an error from here on
            mode = "off" if number < _WARM_UP else "note" if number < _WARM_UP + _WATCHED_STEPS else "refuse"
            with watch.during(mode):
                learner.step(loaded, state, asked_here=False, measure_gradient=number % 2 == 1)
            state = replace(state, samples_seen=loaded.samples_seen, step=state.step + 1)
    return watch.row(name, _WATCHED_STEPS)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector of doubles on the host."""
    return torch.cat([one.detach().double().cpu().flatten() for one in tensors])
