"""``hpe.tables``: what is known of the samples of shards, as one Hugging Face Dataset (contract C2).

Labels, places in the tars and pose tables stand side by side, a row per sample in the order of the shards. Nothing is
decoded. Commands that count, filter, join or choose samples read this table too.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.core.progress import progress
from hpe.data.directions import ABSTAIN, pointing04_direction_of_name
from hpe.data.index import SCHEMA, IndexedShard, IndexFile, index_open_shard, open_index
from hpe.data.pose_labels import read_poses
from hpe.data.pose_tables import DIRECTION_PREFIX, POSE_FOLDER, no_folder, read_metadata, table_of_shard, tables_meant
from hpe.data.remote_cache import RemoteCache
from hpe.data.shard_files import ShardFile, find_shards
from hpe.data.shard_reader import utf8
from hpe.data.store import FetchError, below, is_remote

if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.features.features import FeatureType

RECORD: Final = "record"
"""The direction that the raw dataset states."""
PREDICTED: Final = "_hat"
"""Ends the names of estimated angles, as in the predictions of ``hpe evaluate``: ``yaw_hat`` beside a true ``yaw``."""
GROUP: Final = "group_"


def tables(
    shards: str | Path | Sequence[str | Path],
    *,
    split: str | Sequence[str] | None = None,
    pose: str | Path | Sequence[str | Path] | None = None,
    direction: str = RECORD,
) -> "Dataset":
    """Labels and pose tables of shards as one ``datasets.Dataset``, a row per sample in the order of the shards.

    Columns (null: not known): ``key``, ``shard`` (path or URL of the tar), ``row`` (in it), ``split``; ``emotion`` and
    ``direction`` (ClassLabel), ``emotion_votes`` (8 numbers), ``valence``, ``arousal`` (-1..1), ``yaw``, ``pitch``,
    ``roll`` (true angles, degrees), ``box`` (x0, y0, x1, y1 in pixels of the stored picture), ``subject``,
    ``source``, ``group_<name>``; ``extension``, ``image_offset``, ``image_bytes``, ``record_offset``,
    ``record_bytes`` (the picture and the json in the tar); ``damage`` (why the record cannot be read). With ``pose``
    also ``yaw_hat`` … (estimated angles) and ``yaw_sd`` … (degrees), ``direction_<rule>`` (ClassLabel), and
    ``problem`` (why a face has no angles).

    The labels are those of the index beside the shards, mapped into memory: no tar is opened. Shards without an index
    are read. Nothing is written: what ``filter`` and ``map`` make is kept in memory.

    Args:
        shards: folders that ``hpe pack`` wrote, or their URLs in any store that fsspec reads (of which only the
            manifest, the index and the pose tables are fetched); local tars, or globs of tars.
        split: of the folders, one or several; None: all.
        pose: an estimator, whose tables lie in ``pose/<estimator>/`` beside the shards, or a folder of tables. Of
            several, the names of all their columns begin with the name of their folder: ``lwpose66_yaw_hat``.
        direction: what the column ``direction`` contains: ``record``, the raw dataset's own, or a rule of the pose
            tables (of the first of several), such as ``ours``.

    Raises:
        UserError: no such shards or pose tables, damaged ones, or tables that do not belong to their shards.
    """
    names = [shards] if isinstance(shards, str | Path) else shards
    splits = [split] if split is None or isinstance(split, str) else split
    found = {str(shard): shard for one in splits for shard in find_shards(names, one)}
    folders = [pose] if isinstance(pose, str | Path) else list(pose or ())
    estimators = ["" if len(folders) == 1 else f"{Path(folder).name}_" for folder in folders]
    if double := next((name for name, count in Counter(estimators).items() if count > 1), None):
        raise UserError(f"pose: two folders named {double.removesuffix('_')} would give columns of the same names")
    of_each = [pose_files(list(found.values()), folder) for folder in folders]
    return dataset_of(list(found.values()), dict(zip(estimators, of_each, strict=True)), direction)


def pose_files(shards: Sequence[ShardFile], pose: str | Path) -> list[Path]:
    """The pose table of each shard.

    Args:
        shards: the shards.
        pose: an estimator, whose tables lie beside the shards, or a folder of tables.

    Raises:
        UserError: no such tables, a shard without one, or two shards that would share one.
    """
    beside = isinstance(pose, str) and Path(pose).name == pose
    if beside and shards and shards[0].url and not Path(pose).is_dir():
        pose = below(shards[0].folder, f"{POSE_FOLDER}/{pose}")
    if isinstance(pose, str) and is_remote(pose):
        found = RemoteCache.of_node().small_files(pose, [table_of_shard(Path(), s.path.name).name for s in shards])
        return _complete(shards, found, pose)
    folders = [shard.path.parent / POSE_FOLDER / pose if beside else Path(pose) for shard in shards]
    try:
        if beside and not any(folder.is_dir() for folder in folders) and Path(pose).is_dir():
            folders = [Path(pose)] * len(shards)
        absent = next((folder for folder in folders if not folder.is_dir()), None)
    except OSError as error:
        raise UserError(f"{pose}: cannot be read: {error.strerror}; expected a folder of pose tables") from error
    if absent is not None:
        raise no_folder(absent)
    paths = [table_of_shard(folder, shard.path.name) for folder, shard in zip(folders, shards, strict=True)]
    return _complete(shards, paths, pose)


def _complete(shards: Sequence[ShardFile], paths: list[Path], pose: str | Path) -> list[Path]:
    """The paths, if each shard has a table of its own there."""
    try:
        without = [shard.path.name for path, shard in zip(paths, shards, strict=True) if not path.is_file()]
    except OSError as error:
        raise UserError(f"{pose}: cannot be read: {error.strerror}; expected a folder of pose tables") from error
    if without:
        near = tables_meant(paths[0].parent) if len(without) == len(shards) else None
        raise UserError(
            f"{pose}: no table for {len(without):,} of {len(shards):,} shards, such as {without[0]}; "
            f"{near or 'run `hpe pose` on them first'}"
        )
    if double := next((path for path, count in Counter(paths).items() if count > 1), None):
        raise UserError(f"{double}: two shards of this name cannot share a pose table; read them one by one")
    return paths


def dataset_of(
    shards: Sequence[ShardFile], poses: Mapping[str, Sequence[Path]] | None = None, direction: str = RECORD
) -> "Dataset":
    """The Dataset of :func:`tables` for resolved files.

    Args:
        shards: the shards.
        poses: by prefix of the columns' names, a pose table per shard.
        direction: see :func:`tables`.

    Raises:
        UserError: a shard or table is damaged, or they do not belong together.
    """
    # Here, because it loads pandas, and takes longer than what most commands do.
    import datasets
    from datasets.table import InMemoryTable

    poses = poses or {}
    table = sample_table(shards, poses, direction)
    features = datasets.Features({name: _feature(name, table.field(name).type) for name in table.column_names})
    # A table of memory that is mapped, but no MemoryMappedTable: beside the file of that one, datasets would
    # store the result of every filter and map in the user's folder of shards.
    return datasets.Dataset(
        InMemoryTable(table.cast(features.arrow_schema)),
        info=datasets.DatasetInfo(features=features),
        fingerprint=_fingerprint(shards, poses, direction),
    )


def _feature(name: str, kind: pa.DataType) -> "FeatureType":
    from datasets import ClassLabel
    from datasets.features.features import generate_from_arrow_type

    if name == "emotion":
        return ClassLabel(names=list(EMOTIONS))
    if name == "direction" or (DIRECTION_PREFIX in name and pa.types.is_integer(kind)):
        return ClassLabel(names=list(DIRECTIONS))
    return generate_from_arrow_type(kind)


def _fingerprint(shards: Sequence[ShardFile], poses: Mapping[str, Sequence[Path]], direction: str) -> str:
    """Identifies the table's content to datasets: the same for the same files, and found without reading the rows."""
    identity: list[object] = [direction]
    identity += [[str(shard), shard.sha256 or _written(shard.path)] for shard in shards]
    identity += [[prefix, str(path), _written(path)] for prefix, paths in poses.items() for path in paths]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _written(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def sample_table(
    shards: Sequence[ShardFile], poses: Mapping[str, Sequence[Path]] | None = None, direction: str = RECORD
) -> pa.Table:
    """The Arrow table of :func:`dataset_of`, for code that must not wait for ``import datasets``; labels are integers.

    Raises:
        UserError: see :func:`dataset_of`.
    """
    if not shards:
        raise UserError("no shards are named; expected at least one")
    if direction != RECORD and not poses:
        raise UserError(f"direction {direction!r} is a rule of pose tables, and none are named; expected pose=…")
    batches = _batches(shards)
    columns = _label_columns(shards, batches)
    for number, (prefix, paths) in enumerate((poses or {}).items()):
        rule = None if number or direction == RECORD else direction
        found = _poses(shards, paths, [batch.column("key") for batch in batches], rule)
        for name in found.column_names:
            columns[prefix + (name + PREDICTED if name in ANGLES else name)] = found[name]
        if rule:
            columns["direction"] = found[DIRECTION_PREFIX + rule].cast(pa.int64())
    return pa.table(columns)


def _batches(shards: Sequence[ShardFile]) -> list[pa.RecordBatch]:
    """The rows of each shard as an index has them: from the index, or from the tar where there is none."""
    opened = {file: _open(file) for file in {shard.index for shard in shards if shard.index}}
    read: dict[str, tuple[IndexedShard, pa.RecordBatch]] = {}
    if tars := [shard for shard in shards if shard.index is None]:
        with progress("labels", len(tars), unit="shards") as bar:
            for tar in tars:
                read[str(tar)] = _read(tar)
                bar.advance()
    found = [opened[s.index].get(s.path.name, (None, None)) if s.index else read[str(s)] for s in shards]
    return [_fitting(shard, *rows) for shard, rows in zip(shards, found, strict=True)]


def _fitting(shard: ShardFile, entry: IndexedShard | None, rows: pa.RecordBatch | None) -> pa.RecordBatch:
    """The rows, if they are all of this shard.

    Raises:
        UserError: they are not, or the tar is damaged.
    """
    if entry is None or rows is None:
        assert shard.index
        raise UserError(f"{shard.index.url}: does not list {shard.path.name}; {shard.index.way_out}")
    problem = entry.damage
    # The tar itself may be elsewhere; one that is here must be the one that was indexed.
    size = shard.path.stat().st_size if not shard.url and shard.path.is_file() else None
    for what, count, expected in (
        ("samples", entry.samples, shard.samples), ("bytes", entry.bytes, shard.bytes), ("bytes", size, entry.bytes),
    ):  # fmt: skip
        if None not in (count, expected) and count != expected:
            problem = problem or f"{count:,} {what}, expected {expected:,}"
    if problem:
        raise UserError(f"{shard}: {problem}; see `hpe verify {shard.folder}`")
    for line in entry.missing:
        say(f"hpe: {line}")
    return rows


def _open(file: IndexFile) -> dict[str, tuple[IndexedShard, pa.RecordBatch]]:
    """The shards of an index by name.

    Raises:
        UserError: it is damaged, or not the one that the manifest names; it cannot be fetched.
    """
    try:
        held = RemoteCache.of_node().held(file.url, file.sha256) if file.remote else nullcontext(Path(file.url))
        with held as path:
            file.check(path)
            index = open_index(path)
    except (FetchError, ValueError) as error:
        raise UserError(f"{file.url}: {error}; {file.way_out}") from error
    return {one.name: (one, rows) for one, rows in zip(index.shards, index.batches, strict=True)}


def _read(shard: ShardFile) -> tuple[IndexedShard, pa.RecordBatch]:
    try:
        return index_open_shard(shard.path.name, shard.open())
    except ValueError as error:
        raise UserError(f"{shard}: {error}; see `hpe verify {shard.folder}`") from error


def _label_columns(shards: Sequence[ShardFile], batches: Sequence[pa.RecordBatch]) -> dict[str, pa.ChunkedArray]:
    """The columns of an index, with the path of each tar instead of its number, and a column per group."""
    table = pa.Table.from_batches(batches, SCHEMA)
    samples = [len(batch) for batch in batches]
    paths = pa.array([utf8(str(shard)) for shard in shards], pa.string())
    columns: dict[str, Any] = {
        "key": table["key"],
        "shard": paths.take(pa.array(np.repeat(np.arange(len(samples)), samples))),
        "row": np.concatenate([np.arange(count) for count in samples]),
        "split": table["split"],
    }
    columns |= {name: table[name] for name in table.column_names if name not in ("shard", "groups", "problem")}
    columns |= _groups(table["groups"])
    return columns | {"damage": table["problem"]}


def _groups(column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """A column of texts for each name in a column of JSON objects."""
    # Few different ones among many rows: each is parsed once.
    encoded = column.combine_chunks().dictionary_encode()
    objects = [json.loads(text) for text in encoded.dictionary.to_pylist()]
    names = sorted({name for one in objects for name in one})
    return {
        GROUP + name: pa.chunked_array(
            [pa.array([one.get(name) for one in objects], pa.string()).take(encoded.indices)]
        )
        for name in names
    }


def _poses(
    shards: Sequence[ShardFile], paths: Sequence[Path], keys: Sequence[pa.StringArray], rule: str | None
) -> pa.Table:
    """The pose tables of all shards, one after the other."""
    parts: list[pa.Table] = []
    columns: dict[Path, pa.Schema] = {}
    for shard, path, of_shard in zip(shards, paths, keys, strict=True):
        parts.append(read_poses(path, of_shard, shard=shard.path.name, sha256=shard.sha256, rule=rule))
        found = read_metadata(path).schema
        before = columns.setdefault(path.parent, found)
        if other := sorted({f"{field.name} ({field.type})" for field in {*found} ^ {*before}}):
            raise UserError(
                f"{path}: its columns are not those of the tables before it: {', '.join(other)}; "
                "remove the tables and run `hpe pose` again"
            )
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


def arrow(faces: "Dataset") -> pa.Table:
    """The columns of a Dataset, in the order of its rows; not copied unless rows were selected."""
    table = faces.with_format("arrow")[:]
    assert isinstance(table, pa.Table)
    return table


def refuse_damaged(faces: "Dataset") -> None:
    """Refuse samples of :func:`tables` whose record cannot be read, for jobs that must not pass over them.

    Raises:
        UserError: the first of them, and how many there are.
    """
    table = arrow(faces).select(["key", "shard", "damage"])
    damaged = table.filter(table["damage"].is_valid())
    if count := len(damaged):
        key, shard, problem = damaged.slice(0, 1).to_pylist()[0].values()
        more = f" and {count - 1:,} more" if count > 1 else ""
        raise UserError(f"{shard}: {key}{more}: {problem}; see `hpe verify {Path(shard).parent}`")


def numbers(faces: pa.Table, names: Sequence[str]) -> Float[np.ndarray, "faces columns"]:
    """Columns of numbers side by side; NaN where null."""
    return np.stack([faces[name].cast(pa.float64()).to_numpy() for name in names], 1)


def true_directions(faces: pa.Table) -> Int64[np.ndarray, " faces"]:
    """The direction that the raw dataset states, or that of a Pointing'04 pose by the thesis; else ``ABSTAIN``."""
    stated, sources = faces["direction"].to_pylist(), faces["source"].to_pylist()
    found = [
        pointing04_direction_of_name(source or "") if label is None else label
        for label, source in zip(stated, sources, strict=True)
    ]
    return np.array([ABSTAIN if label is None else label for label in found], np.int64)
