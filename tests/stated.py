"""Datasets of any size that are only stated: manifest, indexes and pose tables of shards of which no tar exists.

Who reads one must open no tar. ``python -m tests.stated FOLDER 1000000`` makes one to try scale with.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpe.data.directions import OURS, direction_rules
from hpe.data.index import SCHEMA, IndexedShard, write_index
from hpe.data.pose_tables import Identity, ShardPoses, table_of_shard, write_table
from hpe.data.shards import IndexInfo, Manifest, ShardInfo

ESTIMATOR = "stated"
_TAR_BYTES = 10_000
"""Of one sample."""


def dataset(folder: Path, samples: dict[str, int], per_shard: int = 1000, unlabelled: float = 0.1) -> Path:
    """Write shards without tars to ``folder``, with pose tables at ``pose/stated``.

    Args:
        folder: a new one.
        samples: how many, by split.
        per_shard: of a shard; the last may have fewer.
        unlabelled: share of samples without an emotion, and of faces without angles.
    """
    poses = folder / "pose" / ESTIMATOR
    poses.mkdir(parents=True)
    infos: list[ShardInfo] = []
    indexes: list[IndexInfo] = []
    for split, count in samples.items():
        rng = np.random.default_rng([count, len(split)])
        batches = [
            _batch(split, number, min(per_shard, count - number * per_shard), unlabelled, rng)
            for number in range(-(-count // per_shard))
        ]
        names = [f"{split}-{number:06d}.tar" for number in range(len(batches))]
        entries = [IndexedShard(n, _TAR_BYTES * len(b), len(b)) for n, b in zip(names, batches, strict=True)]
        path = folder / f"{split}.arrow"
        indexes.append(IndexInfo(path.name, split, *write_index(path, entries, batches)))
        for number, (entry, batch) in enumerate(zip(entries, batches, strict=True)):
            infos.append(ShardInfo(entry.name, split, entry.samples, entry.bytes, f"{number:064x}"))
            _write_poses(poses, infos[-1], batch.column("key").to_pylist(), unlabelled, rng)
    manifest = Manifest("stated", "no tars", "none", True, "none", {}, tuple(infos), indexes=tuple(indexes))
    manifest.save(folder)
    return folder


def _batch(split: str, shard: int, rows: int, unlabelled: float, rng: np.random.Generator) -> pa.RecordBatch:
    starts = np.arange(rows) * _TAR_BYTES
    columns = {name: pa.nulls(rows, kind) for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
    columns |= {
        "shard": pa.array(np.full(rows, shard, np.int32)),
        "key": pa.array([f"{split}{shard:05d}x{row:05d}" for row in range(rows)]),
        "extension": pa.array(["jpg"] * rows),
        "image_offset": pa.array(starts + 512),
        "image_bytes": pa.array(np.full(rows, 8000)),
        "record_offset": pa.array(starts + 9216),
        "record_bytes": pa.array(np.full(rows, 60)),
        "emotion": pa.array(rng.integers(0, 8, rows), mask=rng.random(rows) < unlabelled),
        "subject": pa.array([f"person{person}" for person in rng.integers(0, 1000, rows)]),
        "split": pa.array([split] * rows),
        "groups": pa.array(np.array(['{"age": "adult"}', '{"age": "child"}'])[rng.integers(0, 2, rows)]),
    }
    return pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _write_poses(folder: Path, shard: ShardInfo, keys: list[str], unlabelled: float, rng: np.random.Generator) -> None:
    angles = rng.normal(0, 25, (len(keys), 3)).astype(np.float32)
    absent = rng.random(len(keys)) < unlabelled
    angles[absent] = np.nan
    deviations = np.where(np.isnan(angles), np.nan, np.float32(5))
    rules = direction_rules(OURS)
    identity = Identity(
        estimator=ESTIMATOR, weights_sha256="none", crop="none", estimator_crop="none", precision="none", flips="none",
        rules=rules.definitions, shard=shard.name, shard_sha256=shard.sha256,
    )  # fmt: skip
    problems = {int(row): "no face" for row in np.flatnonzero(absent)}
    directions = rules.apply(angles.astype(float), deviations)
    write_table(
        table_of_shard(folder, shard.name), ShardPoses(tuple(keys), angles, deviations, directions, problems), identity
    )


if __name__ == "__main__":
    many = int(sys.argv[2])
    print(dataset(Path(sys.argv[1]), {"train": many - many // 10, "val": many // 10}))
