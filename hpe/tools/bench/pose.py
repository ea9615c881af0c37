"""Faces per second of ``hpe pose``, compared with its network alone and with one image at a time, as in the thesis.

Two networks with three 66-bin heads and random weights (their speed is that of trained ones): Hopenet's
ResNet-50, which bounds the pass on a CPU, and MobileNetV3-small, so light that decoding takes part of the
cores: there no pass reaches its network's rate, and the limit is the decoder and the network together.
Every turn of the pass decodes, computes and writes its tables anew.
"""

import io
import math
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hpe.config.run import HeadsConfig, ModelConfig, PoseHead
from hpe.core.console import say
from hpe.core.devices import cores, device
from hpe.core.errors import UserError
from hpe.core.ranks import Ranks
from hpe.data.crops import CropRule
from hpe.data.directions import OURS, direction_rules
from hpe.data.faces import read_faces
from hpe.data.images import encode_jpeg
from hpe.data.prefetch import one_thread
from hpe.data.records import Record
from hpe.data.shard_files import find_shards
from hpe.data.shard_reader import OpenShard, open_shard
from hpe.data.shards import MANIFEST, Manifest, Sample, write_shard
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute
from hpe.estimators.spec import InputSpec, OutputSpec
from hpe.models.build import build_network
from hpe.pose.passes import Task, pose_pass
from hpe.pose.plan import CPU_BATCH, GPU_BATCH, tasks_of
from hpe.tools.bench import Figure, Ratio, Report, Settings, ratio, take_turns

_PER_SHARD: Final = 250
_DISTINCT: Final = 100
_SIZE: Final = 224
_IN_MEMORY: Final = 1024
_MOST: Final = 2000  # more would not make the figures steadier
_PROCESSES: Final = (1, 2, 4)
_HOPENET: Final = "resnet50"
_LIGHT: Final = "mobilenet_v3_small"
_TURN_SECONDS: Final = 3.0
"""A turn has as many faces as the network alone does in so long. On a CPU it has at most those there are, so that the
whole bench takes a minute or two on a slow or busy machine, too. A GPU does 2,000 faces in a third of a second, and a
pass has hardly started then: there the shards come again and again."""
_ONE_AT_A_TIME_SECONDS: Final = 1.5
_TARGETS: Final = {_HOPENET: 0.95, _LIGHT: 0.9}
"""Of the pass over its network alone on a CPU: to decode a face takes 0.3 ms, MobileNetV3-small 4.5 ms, ResNet-50 90 ms
(one core of a Xeon with AMX), so that 0.94 is the most that the light one can reach."""


def measure(settings: Settings) -> Report:
    """Measure the pass, its network, and one picture at a time, on the machine's device."""
    where = device()
    out = settings.folder / "pose-tables"
    figures: tuple[Figure, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    samples = settings.samples
    for backbone in (_HOPENET, _LIGHT):
        samples = min(settings.samples, _MOST)
        if where.type == "cpu":
            samples = min(samples, _faces_for(_estimator(where, backbone), settings.workers))
        folder = Path(settings.shards) if settings.shards else _made(settings.folder / f"pose-{samples}", samples)
        found, compared = turns(backbone, folder, out, where, settings)
        figures, ratios = figures + found, ratios + compared
    if where.type == "cpu":
        scaling = _scaling(_equal_shards(settings.folder, samples), out)
        figures += tuple(scaling.values())
        ratios += tuple(Ratio(f"{n} processes over 1", scaling[n].median / scaling[1].median) for n in scaling if n > 1)
    notes = (
        f"{where}, batches of {_batch(where)}, {settings.workers} workers, {_SIZE} pixels, fp32",
        f"scaling with {_LIGHT} on shards of equal size, which hpe bench makes",
    )
    return Report("pose", "faces/s", figures, ratios, notes)


def turns(
    backbone: str, folder: Path, out: Path, where: torch.device, settings: Settings
) -> tuple[tuple[Figure, ...], tuple[Ratio, ...]]:
    """The pass with a backbone over a folder of shards, and what it is compared with; our ratios.

    Compared with: its network alone; the decoder and the network, without tables; and one picture at a time.
    """
    batch, estimator = _batch(where), _estimator(where, backbone)
    tasks = tasks_of(
        find_shards([str(folder)]), estimator, direction_rules(OURS),
        out=out, on_mismatch="force", precision="fp32", flips="none",
    )  # fmt: skip
    on_cpu = where.type == "cpu"
    tasks = _counted(tasks)
    tasks = (_first if on_cpu else _repeated)(tasks, _faces_for(estimator, settings.workers))
    batches = _decoded(tasks, batch)
    ours, network, limit, one = (
        f"{backbone}: {what}"
        for what in (
            "hpe pose", "network alone, batches in memory", "decoder and network, no tables", "one picture at a time"
        )
    )  # fmt: skip
    figures = take_turns(
        {
            ours: lambda: _pass(tasks, estimator, out, batch, settings.workers),
            network: lambda: _network(batches, estimator, settings.workers),
            **({limit: lambda: _decoder_and_network(tasks, estimator, batch, settings.workers)} if on_cpu else {}),
            one: lambda: _one_at_a_time(tasks[0], estimator),
        },
        settings.repeats,
        f"bench pose {backbone}, {sum(task.shard.samples or 0 for task in tasks):,} faces",
    )
    ratios = [ratio(figures, ours, network, _TARGETS[backbone] if on_cpu else 0.95), ratio(figures, ours, one, 1.0)]
    if on_cpu:  # a device computes while the cores decode: there the network alone is the limit
        ratios.insert(1, ratio(figures, ours, limit, 0.95))
    return figures, tuple(ratios)


def _faces_for(estimator: Estimator, workers: int) -> int:
    """How many faces a turn has: what the network alone does in its time, rounded down to a power of two."""
    batch = _batch(estimator.device)
    batches = [torch.zeros((batch, 3, _SIZE, _SIZE), dtype=torch.uint8)] * workers
    _network(batches, estimator, workers)  # pays for what torch builds lazily
    faces = _network(batches, estimator, workers) * _TURN_SECONDS
    return max(1 << int(np.log2(max(faces, 1))), batch * workers)


def _counted(tasks: list[Task]) -> list[Task]:
    """The tasks with the number of faces of each shard, which tars without a manifest do not have."""
    try:
        return [replace(task, shard=replace(task.shard, samples=len(open_shard(task.shard.path)))) for task in tasks]
    except (OSError, ValueError) as error:
        raise UserError(f"--shards: {error}; give shards without damage (`hpe verify` finds it)") from error


def _first(tasks: list[Task], faces: int) -> list[Task]:
    """The first tasks that have so many faces together, or all."""
    known = np.cumsum([task.shard.samples or 0 for task in tasks])
    return tasks[: int(np.searchsorted(known, faces)) + 1]


def _repeated(tasks: list[Task], faces: int) -> list[Task]:
    """The tasks again and again, each with a table of its own, until they have so many faces together."""
    rounds = -(-faces // sum(task.shard.samples or 1 for task in tasks))
    again = [
        replace(task, table=task.table.with_name(f"{number}-{task.table.name}"))
        for number in range(rounds)
        for task in tasks
    ]
    return _first(again, faces)


def _batch(where: torch.device) -> int:
    return CPU_BATCH if where.type == "cpu" else GPU_BATCH


def _equal_shards(folder: Path, samples: int) -> Path:
    """Shards of about so many faces that every number of processes divides evenly.

    A rank takes whole shards: of 250 and 6 faces, two ranks would show the speed of one.
    """
    shards = math.lcm(*_PROCESSES)
    each = max(1, samples // shards // CPU_BATCH) * CPU_BATCH
    return _made(folder / f"pose-scaling-{shards}x{each}", shards * each, each)


def _scaling(folder: Path, out: Path) -> dict[int, Figure]:
    """Faces a second of ranks of one thread each on the same shards; starting them is not counted."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[int, Figure] = {}
    for world in (world for world in _PROCESSES if world <= cores()):
        say(f"bench pose: {world} of one thread each")
        shutil.rmtree(out, ignore_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ready, seconds = spawn.Barrier(world), spawn.SimpleQueue()
        ranks = [spawn.Process(target=_rank, args=(r, world, port, folder, out, ready, seconds)) for r in range(world)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise RuntimeError(f"bench pose: a rank of {world} ended with {[rank.exitcode for rank in ranks]}")
        faces, took = seconds.get()
        found[world] = Figure(f"hpe pose, {world} process{'es' if world > 1 else ''} of one thread", (faces / took,))
    return found


def _rank(rank: int, world: int, port: int, folder: Path, out: Path, ready: Any, seconds: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    estimator = _estimator(torch.device("cpu"), _LIGHT)
    tasks = tasks_of(
        find_shards([str(folder)]), estimator, direction_rules(OURS),
        out=out, on_mismatch="force", precision="fp32", flips="none",
    )  # fmt: skip
    estimator.predict(torch.zeros((CPU_BATCH, 3, _SIZE, _SIZE), dtype=torch.uint8))  # pays for what torch builds lazily
    ready.wait()
    start = time.perf_counter()
    pose_pass(
        tasks, estimator, direction_rules(OURS),
        flips="none", batch=CPU_BATCH, threads=1, ranks=Ranks(rank, world, rank, world),
    )  # fmt: skip
    ready.wait()
    if rank == 0:
        seconds.put((sum(task.shard.samples or 0 for task in tasks), time.perf_counter() - start))


def _estimator(where: torch.device, backbone: str) -> Estimator:
    torch.manual_seed(0)
    heads = HeadsConfig(pose=PoseHead())
    module = build_network(ModelConfig(backbone=backbone, heads=heads)).eval()
    return Estimator(
        name="bench",
        weights_sha256="0" * 64,
        crops=frozenset((CropRule(),)),
        input=InputSpec(size=_SIZE),
        output=OutputSpec(kind="bins66-lower"),
        network=Compute(where).network(module),
        device=where,
        channels_last=True,
    )


def _made(folder: Path, samples: int, per_shard: int = _PER_SHARD) -> Path:
    """Shards of smooth noise, about as large in JPEG as faces are."""
    if (folder / MANIFEST).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(_DISTINCT):
        small = torch.from_numpy(generator.integers(0, 256, (1, 3, 28, 28), dtype=np.uint8)).float()
        large = torch.nn.functional.interpolate(small, (_SIZE, _SIZE), mode="bicubic").clamp(0, 255)
        pictures.append(encode_jpeg(large[0].permute(1, 2, 0).byte().contiguous().numpy(), 95))

    def rows(start: int) -> Iterator[Sample]:
        for row in range(start, min(start + per_shard, samples)):
            yield Sample(f"{row:07d}", pictures[row % _DISTINCT], "jpg", Record())

    infos = [
        write_shard(folder / f"test-{number:06d}.tar", "test", rows(start))
        for number, start in enumerate(range(0, samples, per_shard))
    ]
    Manifest("bench", "noise", "none", True, "none", {}, tuple(infos)).save(folder)
    return folder


def _pass(tasks: list[Task], estimator: Estimator, out: Path, batch: int, threads: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    pose_pass(
        tasks, estimator, direction_rules(OURS),
        flips="none", batch=batch, threads=threads, ranks=Ranks(0, 1, 0, 1),
    )  # fmt: skip
    return sum(task.shard.samples or 0 for task in tasks) / (time.perf_counter() - start)


def _decoded(tasks: list[Task], batch: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for task in tasks:
        shard = open_shard(task.shard.path)
        for start in range(0, len(shard), batch):  # as the pass cuts a shard
            if sum(map(len, found)) >= _IN_MEMORY:
                return found
            rows = range(start, min(start + batch, len(shard)))
            pixels = np.empty((len(rows), _SIZE, _SIZE, 3), np.uint8)
            read_faces(shard, rows, CropRule(), pixels)
            found.append(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return found


def _network(batches: list[torch.Tensor], estimator: Estimator, threads: int) -> float:
    """As the pass computes: side by side on a CPU, one after another on a device."""
    start = time.perf_counter()
    if estimator.device.type == "cpu":
        with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
            list(pool.map(estimator.predict, batches))
    else:
        for batch in batches:
            estimator.predict(batch.pin_memory())
        torch.cuda.synchronize()
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _decoder_and_network(tasks: list[Task], estimator: Estimator, batch: int, threads: int) -> float:
    """The least that a pass does: threads that each decode a batch and compute it."""
    shards = [open_shard(task.shard.path) for task in tasks]
    batches = [
        (shard, range(start, min(start + batch, len(shard))))
        for shard in shards
        for start in range(0, len(shard), batch)
    ]

    def one(shard: OpenShard, rows: range) -> None:
        pixels = np.empty((len(rows), _SIZE, _SIZE, 3), np.uint8)
        read_faces(shard, rows, CropRule(), pixels)
        estimator.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    start = time.perf_counter()
    with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
        list(pool.map(one, *zip(*batches, strict=True)))
    return sum(map(len, shards)) / (time.perf_counter() - start)


def _one_at_a_time(task: Task, estimator: Estimator) -> float:
    from PIL import Image

    shard = open_shard(task.shard.path)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < _ONE_AT_A_TIME_SECONDS:
        encoded = io.BytesIO(bytes(shard.image(count % len(shard))))
        picture = Image.open(encoded).convert("RGB").resize((_SIZE, _SIZE))
        estimator.predict(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]).angles.cpu()
        count += 1
    return count / (time.perf_counter() - start)
