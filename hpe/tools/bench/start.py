"""``hpe bench start``: the time until a million samples are opened, counted and planned, and the first batch is there.

The shards are one tar under many names (hard links), so that ten million samples need 3 MB of disk and 2 GB of index.
Each measurement is a process of its own; the first has an empty cache, as on a node that sees the shards for the
first time.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.progress import progress
from hpe.data.index import index_shard, write_index
from hpe.data.records import Record
from hpe.data.shards import MANIFEST, IndexInfo, Manifest, Sample, write_shard
from hpe.tools.bench import Figure, Ratio, Report, Settings

_PER_SHARD: Final = 1000
_PICTURE: Final = 8
_LARGE: Final = 10_000_000
_LIMITS: Final = {
    1_000_000: {"opened first": 1500, "opened again": 300, "first batch": 500, "first batch at 90 %": 500, "MB": 500},
    _LARGE: {"opened first": 10_000, "opened again": 10_000, "MB": 2000},
}
"""Milliseconds and megabytes that a start may take; for other numbers of samples there is no limit."""


def measure(settings: Settings) -> Report:
    """Milliseconds and memory of a start on 1,000,000 and 10,000,000 samples, or on as many as ``--samples`` names."""
    sizes = tuple(_LIMITS) if settings.samples == Settings(settings.folder).samples else (settings.samples,)
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for samples in sizes:
        found = _of_size(settings.folder / f"start-{samples}", samples, settings.repeats)
        figures += [Figure(f"{samples:,}: {name}", values) for name, values in found.items()]
        for name, limit in _LIMITS.get(samples, {}).items():
            ratios.append(Ratio(f"{samples:,}: limit / {name}", limit / float(np.median(found[name])), 1.0))
    return Report(
        part="start",
        unit="ms and MB",
        figures=tuple(figures),
        ratios=tuple(ratios),
        notes=(
            "opened: Stream, label counts, endless batches, balanced batches; first: with an empty cache",
            "MB: the most memory that the start has taken, beside what the imports (torch) have",
        ),
    )


def _of_size(folder: Path, samples: int, repeats: int) -> dict[str, tuple[float, ...]]:
    _shards(folder, samples)
    cache = folder / "cache"
    turns: list[dict[str, float]] = []
    with progress(f"start on {samples:,} samples", 2 * repeats, unit="starts") as bar:
        for _ in range(repeats):
            shutil.rmtree(cache, ignore_errors=True)
            first = _started(folder, cache)
            bar.advance()
            again = _started(folder, cache)
            bar.advance()
            # The larger memory is that of the first start, which looks at all of the index.
            turns.append({"opened first": first["opened"], "opened again": again["opened"]})
            turns[-1] |= {name: again[name] for name in ("first batch", "first batch at 90 %")}
            turns[-1] |= {name: first[name] for name in ("MB", "MB in all")}
    return {name: tuple(turn[name] for turn in turns) for name in turns[0]}


def _started(folder: Path, cache: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)], env=os.environ | {"HPE_CACHE": str(cache)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _shards(folder: Path, samples: int) -> None:
    """Shards of so many samples: one tar under many names, the index and the manifest."""
    import simplejpeg

    if (folder / MANIFEST).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    picture = simplejpeg.encode_jpeg(rng.integers(0, 256, (_PICTURE, _PICTURE, 3), np.uint8), 90)
    emotions, angles = rng.integers(0, 8, _PER_SHARD).tolist(), rng.normal(0, 30, (_PER_SHARD, 3)).tolist()
    rows = [
        Sample(f"face-{row:012d}", picture, "jpg", _record(row, emotion, pose))
        for row, (emotion, pose) in enumerate(zip(emotions, angles, strict=True))
    ]
    one = write_shard(folder / "one.tar", "train", rows)
    entry, batch = index_shard(folder / "one.tar")
    names = [f"train-{number:06d}.tar" for number in range(-(-samples // _PER_SHARD))]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(folder / "one.tar")
    entries = [replace(entry, name=name) for name in names]
    size, sha256 = write_index(folder / "train.arrow", entries, (batch for _ in names))
    shards = tuple(replace(one, name=name) for name in names)
    index = IndexInfo("train.arrow", "train", size, sha256)
    Manifest("start", "bench", "none", True, "none", {}, shards, indexes=(index,)).save(folder)


def _record(row: int, emotion: int, pose: list[float]) -> Record:
    yaw, pitch, roll = (round(angle, 2) for angle in pose)
    source = f"Manually_Annotated_Images/{row % 100}/face-{row:012d}.jpg"
    return Record(
        emotion=emotion, valence=0.1, arousal=-0.1, yaw=yaw, pitch=pitch, roll=roll, direction=row % 5,
        box=(10.0, 10.0, 200.0, 200.0), subject=f"person-{row % 97}", source=source, split="train",
    )  # fmt: skip


def start(folder: str) -> dict[str, float]:
    """Open, count and plan the shards of a folder, and read two batches; the seconds and the memory that it took."""
    from hpe.stream import Balance, Reading, ShardSet, Stream  # imports torch, which is no part of the start

    before, begun = _resident(), time.perf_counter()
    stream = Stream([ShardSet(folder, "train")], Reading(size=_PICTURE))
    stream.label_counts()
    loader = stream.endless(seed=0, batch=256)
    stream.endless(seed=0, batch=256, balance=Balance())
    planned = time.perf_counter()
    memory = _resident()
    with loader:
        next(loader)
    first = time.perf_counter()
    with stream.endless(seed=0, batch=256, samples_seen=int(0.9 * stream.samples)) as resumed:
        next(resumed)
    late = time.perf_counter()
    return {
        "opened": 1000 * (planned - begun),
        "first batch": 1000 * (first - planned),
        "first batch at 90 %": 1000 * (late - first),
        "MB": memory - before,
        "MB in all": memory,
    }


def _resident() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1])))
