"""All ranks of the machine: does an all-reduce give the sum, and do N ranks have the gradient of one?

The ranks run ``python -m hpe.tools.gpucheck.processes FOLDER`` under torch's launcher, as ``hpe train -p N`` runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hpe.config.run import RunConfig
from hpe.core.files import write_json
from hpe.core.ranks import Ranks, end_with_parent, leave
from hpe.models.build import build_network
from hpe.models.checkpoints import State
from hpe.tools.gpucheck import Row, attempt
from hpe.tools.gpucheck.place import Place
from hpe.tools.gpucheck.training import exact_products, finish, flat
from hpe.train.setup import open_job
from hpe.train.step import Learner

_TURNS: Final = 10
_WARM_UP: Final = 3
_PATTERN: Final = 7
_EQUAL: Final = 1e-3
"""How far the gradients may differ, as a share of their length: rounding gives 1e-6 to 1e-5, a lost rank 0.5."""
_EQUAL_NORMS: Final = 1e-2
"""Where batch norms compute their statistics over ranks, in another order of sums."""
_FOUND: Final = "ranks.json"
_NORMS: Final = "batch norms over ranks"


def processes(place: Place) -> Iterator[Row]:
    """Check 5: one process for each GPU; on a CPU two."""
    world = place.processes
    (place.folder / _FOUND).unlink(missing_ok=True)
    found = _launched(place, world)
    yield attempt("all-reduce", lambda: _reduced(found, world))
    name = "gradient of all ranks"
    if world == 1:
        yield Row(name, "skip", "world size 1: this machine shows one GPU, there is nothing to compare")
        return
    yield attempt(name, lambda: _compared(place, "frozen", world, _EQUAL, name))
    if place.kind == "cuda":
        yield attempt(_NORMS, lambda: _compared(place, "norms", world, _EQUAL_NORMS, _NORMS))
    else:
        yield Row(_NORMS, "skip", "train.sync_batch_norm works on GPUs only")


def _launched(place: Place, world: int) -> dict[str, Any]:
    """What the ranks have found.

    Raises:
        RuntimeError: they ended with an error, with the last line of one of them.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--master_port", "0"]
    command += ["-m", "hpe.tools.gpucheck.processes", str(place.folder)]
    threads = {} if place.kind == "cuda" else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=place.environment() | threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(end_with_parent, signal.SIGTERM),
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
        raise RuntimeError(f"{world} ranks: {told[0] if told else f'exit code {done.returncode}'}")
    return json.loads((place.folder / _FOUND).read_text(encoding="utf-8"))


def _reduced(found: dict[str, Any], world: int) -> Row:
    backend, wrong = found["backend"], found["wrong"]
    text = f"{backend} over {world} ranks" if world > 1 else f"{backend}, world size 1 (one GPU)"
    if wrong:
        return Row("all-reduce", "bad", f"{text}: {wrong:,} numbers are not the sum", found)
    if world == 1:
        return Row("all-reduce", "ok", text, found)
    speed = f"{found['gigabytes_per_second']:.1f} GB/s for each rank (bus bandwidth, {found['mib']} MiB)"
    return Row("all-reduce", "ok", f"{text}: the right sum, {speed}", found)


def _compared(place: Place, kind: str, world: int, tolerance: float, name: str) -> Row:
    ranks = torch.load(_gradient_file(place, kind), weights_only=True)
    with exact_products():
        alone = gradient(place, kind, Ranks(0, 1, 0, 1))
    return judged(name, ranks, alone, world, tolerance)


def judged(name: str, ranks: Tensor, alone: Tensor, world: int, tolerance: float) -> Row:
    """Whether the gradient of all ranks is that of one process on the same global batch."""
    if ranks.shape != alone.shape:
        return Row(name, "bad", f"{ranks.numel():,} numbers on {world} ranks, {alone.numel():,} on one")
    difference = float((ranks - alone).norm() / alone.norm())
    text = f"{world} ranks differ from one process by {difference:.1g} of the gradient's length"
    values = {"difference": difference, "ranks": world}
    if not difference <= tolerance:
        return Row(name, "bad", f"{text}; rounding explains at most {tolerance:g}", values)
    return Row(name, "ok", text, values)


def gradient(place: Place, kind: str, ranks: Ranks) -> Tensor:
    """The gradient of the first global batch, as the optimizer gets it, from a real step of this rank."""
    found: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not found:  # Accelerate's optimizer calls torch's: both have the same gradients
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            found.append(flat(gradients))

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    with open_job(_config(place, kind, ranks), ranks) as job:
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
        hook = register_optimizer_step_pre_hook(note)
        try:
            with job.batches(0) as loader:
                learner.step(next(loader), State(samples_seen=0, step=0), asked_here=False, measure_gradient=False)
        finally:
            hook.remove()
        job.accelerator.wait_for_everyone()
    return found[0]


def _config(place: Place, kind: str, ranks: Ranks) -> RunConfig:
    """A step without chance. Batch norms see a rank's part of a batch only, so they are frozen or share statistics."""
    batch = place.sizes.batch // place.processes * place.processes
    options = ["train.optimizer=sgd", "augment.flip=0", "augment.shift=0", "augment.brightness=0", "data.workers=0"]
    options += [f"train.batch={batch}", f"train.sync_batch_norm={str(kind == 'norms').lower()}"]
    config = place.config(f"ranks-{kind}-{ranks.world}", *options)
    if kind == "norms":
        return config
    layers = build_network(config.model).backbone.named_modules()
    frozen = [name for name, layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return config.model_copy(update={"model": config.model.model_copy(update={"freeze": frozen})})


def _gradient_file(place: Place, kind: str) -> Path:
    return place.folder / f"gradient-{kind}.pt"


def reduce_all(place: Place, ranks: Ranks, all_reduce: Callable[[Tensor], Any]) -> dict[str, Any]:
    """How many numbers of an all-reduce are not the sum, and its speed.

    The bandwidth is that of NCCL's own tests: bytes · 2 (N - 1) / N / seconds, which does not depend on N.
    """
    count = place.sizes.reduce_mib * 2**20 // 4
    # Whole numbers, small enough for fp32 to sum exactly; they differ by place, so that shifted parts are seen.
    pattern = (torch.arange(count, device=place.device) % _PATTERN + 1).float()
    values = pattern * (ranks.rank + 1)
    all_reduce(values)
    expected = pattern * (ranks.world * (ranks.world + 1) // 2)
    wrong = int((values != expected).sum())
    taken = []
    for _ in range(_WARM_UP + _TURNS):
        finish(place)
        start = time.perf_counter()
        all_reduce(values)
        finish(place)
        taken.append(time.perf_counter() - start)
        values.copy_(pattern)
    seconds = sorted(taken[_WARM_UP:])[_TURNS // 2]
    moved = 4 * count * 2 * (ranks.world - 1) / ranks.world
    return {
        "wrong": wrong,
        "seconds": seconds,
        "mib": place.sizes.reduce_mib,
        "gigabytes_per_second": moved / seconds / 1e9,
    }


def _rank(place: Place) -> None:
    """One rank: sum, then a step; rank 0 writes what was found."""
    import torch.distributed as dist

    from hpe.core.distributed import accelerator

    ranks = Ranks.from_environment()
    accelerator("no")  # makes the process group and sets the device, as a training does
    found = reduce_all(place, ranks, lambda values: dist.all_reduce(values))
    wrong: list[Any] = [None] * ranks.world
    dist.all_gather_object(wrong, found["wrong"])
    found |= {"wrong": sum(wrong), "backend": dist.get_backend(), "ranks": ranks.world}
    if ranks.world > 1:
        kinds = ("frozen", "norms") if place.kind == "cuda" else ("frozen",)
        for kind in kinds:
            with exact_products():
                summed = gradient(place, kind, ranks)
            if ranks.main:
                torch.save(summed, _gradient_file(place, kind))
    if ranks.main:
        write_json(place.folder / _FOUND, found)
    dist.barrier()


if __name__ == "__main__":
    try:
        _rank(Place.load(Path(sys.argv[1])))
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"rank {os.environ.get('RANK')}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        leave(1)
    leave(0)
