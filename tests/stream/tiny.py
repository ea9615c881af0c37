"""Shards of tiny pictures whose grey level says which sample each is, and what tests read from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch

from hpe.data.batch import Batch
from hpe.data.pose_tables import table_of_shard
from hpe.data.records import Record
from hpe.data.shards import Manifest, Sample, ShardInfo, write_shard
from hpe.stream import Loaded, Loader, Reading, ShardSet, Stream

SIZE = 16


COUNTS = (7, 1, 12, 5, 9)


SAMPLES = sum(COUNTS)


@dataclass(frozen=True)
class Made:
    folder: Path
    infos: tuple[ShardInfo, ...]
    keys: list[str]


def picture(level: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((SIZE, SIZE, 3), level, np.uint8), 95)


def make(folder: Path, counts: tuple[int, ...] = COUNTS, emotion: Any = lambda n: n % 8) -> Made:
    folder.mkdir()
    infos, keys, number = [], [], 0
    for shard, count in enumerate(counts):
        samples = []
        for _ in range(count):
            record = Record(emotion=emotion(number), yaw=float(number), pitch=1.0, roll=-2.0)
            samples.append(Sample(f"{folder.name}-{number:04d}", picture(4 * (number % 60)), "jpg", record))
            keys.append(samples[-1].key)
            number += 1
        infos.append(write_shard(folder / f"train-{shard:06d}.tar", "train", samples))
    Manifest("test", "v", "none", True, "none", {}, tuple(infos)).save(folder)
    return Made(folder, tuple(infos), keys)


def stream(*sets: ShardSet | Path, **reading: Any) -> Stream:
    named = [one if isinstance(one, ShardSet) else ShardSet(str(one)) for one in sets]
    return Stream(named, Reading(size=SIZE, **reading))


def taken(loader: Loader, batches: int) -> list[Loaded]:
    with loader:
        return [loaded for loaded, _ in zip(loader, range(batches), strict=False)]


def keys_of(batches: list[Loaded]) -> list[str]:
    return [key for loaded in batches for key in loaded.batch.keys]


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in Batch.__slots__ if name != "keys"
    )


def pose_table(folder: Path, info: ShardInfo, keys: list[str], **metadata: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = len(keys)
    columns = {
        "key": pa.array(keys), "yaw": pa.array([10.0 + r for r in range(rows)], pa.float32()),
        "pitch": pa.array([None] + [2.0] * (rows - 1), pa.float32()), "roll": pa.array([3.0] * rows, pa.float32()),
        "direction_ours": pa.array([None if r % 2 else r % 5 for r in range(rows)], pa.int8()),
    }  # fmt: skip
    said = {"hpe.shard": info.name, "hpe.shard_sha256": info.sha256} | metadata
    pq.write_table(pa.table(columns).replace_schema_metadata(said), table_of_shard(folder, info.name))


def pose_tables(made: Made, folder: Path) -> None:
    ends = np.cumsum(COUNTS)
    for info, end in zip(made.infos, ends, strict=True):
        pose_table(folder, info, made.keys[end - info.samples : end])
