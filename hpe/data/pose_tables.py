"""Pose tables on disk (contract C2): one Parquet file per shard, the same bytes for the same poses.

:func:`read_metadata` reads what a file is, :func:`read_pose_table` its rows as they are. Who takes labels from them
reads through :func:`hpe.data.pose_labels.read_poses`, which checks that they belong to a shard.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int8

from hpe.core.errors import UserError
from hpe.core.files import aside, open_regular, short_name
from hpe.core.labels import ANGLES
from hpe.data.directions import ABSTAIN
from hpe.data.shard_reader import utf8

POSE_FOLDER: Final = "pose"
"""The folder beside shards that has a folder of pose tables per estimator."""
DIRECTION_PREFIX: Final = "direction_"
_PREFIX: Final = "hpe."
_BATCH: Final = _PREFIX + "batch"
_ROWS_A_GROUP: Final = 1 << 16
_MOST_MEANT: Final = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """What a table was made from; two tables with the same identity hold the same poses (on one kind of
    device).

    Attributes:
        crop: the crop rule of the pictures that the network saw.
        estimator_crop: the crop rule that it was made for (differs under ``--force``).
        flips: ``none``, or ``averaged`` with the mirror image.
        rules: per direction rule its definition.
        batch: faces that went through the network together, which moves the angles' last bits.
    """

    estimator: str
    weights_sha256: str
    crop: str
    estimator_crop: str
    precision: str
    flips: str
    rules: Mapping[str, str]
    shard: str
    shard_sha256: str
    batch: int | None = None

    def metadata(self) -> dict[str, str]:
        """Names and texts as the table's schema holds them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["rules"] = json.dumps(dict(self.rules), sort_keys=True, separators=(",", ":"))
        return {_PREFIX + name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ShardPoses:
    """The rows of a table, in shard order; NaN angles and a problem where there is no face."""

    keys: tuple[str, ...]
    angles: Float[np.ndarray, "faces 3"]
    deviations: Float[np.ndarray, "faces 3"]
    directions: Mapping[str, Int8[np.ndarray, " faces"]]
    problems: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class PoseMetadata:
    """The footer of a pose table."""

    rows: int
    schema: pa.Schema
    entries: dict[str, str]

    @classmethod
    def of(cls, rows: int, schema: pa.Schema) -> Self:
        """What a schema, and the number of rows, state."""
        entries = (schema.metadata or {}).items()
        texts = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in entries}
        return cls(rows, schema.remove_metadata(), texts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.schema.names)

    @property
    def rules(self) -> tuple[str, ...]:
        """Direction rules that the table holds."""
        return tuple(c.removeprefix(DIRECTION_PREFIX) for c in self.columns if c.startswith(DIRECTION_PREFIX))


def table_of_shard(folder: Path, shard: str) -> Path:
    """The pose table of a shard, by the shard's file name."""
    return folder / f"{short_name(shard.removesuffix('.tar'), 240)}.parquet"


def no_folder(folder: Path) -> UserError:
    """The refusal of a folder of pose tables that does not exist."""
    way = tables_meant(folder) or "`hpe pose SHARDS` writes them"
    return UserError(f"{folder}: no such folder; expected pose tables; {way}")


def tables_meant(folder: Path) -> str | None:
    """The folders of pose tables in and beside a folder without any, those of a similar name first; None: none."""
    found: dict[Path, str] = {}
    for home in (folder, folder.parent, folder.parent / POSE_FOLDER):
        with suppress(OSError):
            for one in sorted(home.iterdir()):
                if one != folder and next(one.glob("*.parquet"), None):
                    found[one] = one.name
    near = difflib.get_close_matches(folder.name, found.values())
    meant = [one for one in found if one.name in near] or list(found)
    return f"did you mean {' or '.join(map(str, meant[:_MOST_MEANT]))}?" if meant else None


def read_metadata(path: Path) -> PoseMetadata:
    """The footer of a pose table.

    Raises:
        UserError: the table does not exist, or is not one.
    """
    with _named(path):
        footer = pq.read_metadata(path)
        return PoseMetadata.of(footer.num_rows, footer.schema.to_arrow_schema())


def read_pose_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a pose table.

    Args:
        path: the table.
        columns: those to read; None: all.

    Raises:
        UserError: the table does not exist, is not one, or lacks a column.
    """
    with _named(path), pq.ParquetFile(path, memory_map=False) as file:
        table = file.read(columns, use_threads=False)
    if absent := [name for name in columns or () if name not in table.column_names]:
        raise UserError(f"{path}: no column {', '.join(absent)}; remove it and run `hpe pose` again")
    return table


def digest_of_tables(paths: Iterable[Path]) -> str:
    """A sha256 of pose tables in their order: what was made from them is outdated when it has changed.

    Raises:
        UserError: a table does not exist, or cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with _named(path), open_regular(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a message that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no pose table of this shard; run `hpe pose` on these shards first") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a pose table: {error}; remove it and run `hpe pose` again") from error


def write_table(path: Path, poses: ShardPoses, identity: Identity) -> None:
    """Write a table, aside and then renamed. NaN and :data:`ABSTAIN` become null; keys are those of an index."""
    columns: dict[str, pa.Array] = {"key": pa.array([utf8(key) for key in poses.keys], pa.string())}
    for name, values in (("", poses.angles), ("_sd", poses.deviations)):
        for angle, column in zip(ANGLES, np.asarray(values, np.float32).T, strict=True):
            columns[angle + name] = pa.array(column, pa.float32(), from_pandas=True)
    for rule, labels in poses.directions.items():
        columns[DIRECTION_PREFIX + rule] = pa.array(labels, pa.int8(), mask=labels == ABSTAIN)
    columns["problem"] = pa.array([poses.problems.get(row) for row in range(len(poses.keys))], pa.string())
    table = pa.table(columns).replace_schema_metadata(identity.metadata())
    with aside(path) as part:
        pq.write_table(table, part, compression="zstd", compression_level=3, row_group_size=_ROWS_A_GROUP)


def differences(path: Path, identity: Identity) -> list[str] | None:
    """What an existing table was made from otherwise (empty: nothing), or None where there is no table.

    A file that cannot be read counts as a table made from something else.
    """
    try:
        found = pq.read_schema(path).metadata or {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (pa.ArrowException, OSError) as error:
        return [f"it cannot be read ({str(error)[:80]})"]
    different = []
    for name, expected in identity.metadata().items():
        if name == _BATCH and name.encode() not in found:
            continue  # written before tables recorded their batch
        had = found.get(name.encode(), b"(absent)").decode("utf-8", "replace")
        if had != expected:
            different += _differing(name.removeprefix(_PREFIX), had, expected)
    return different


def _differing(name: str, had: str, expected: str) -> list[str]:
    """What differs between two values: of JSON objects only the entries that differ, at any depth."""
    one, other = _object(had), _object(expected)
    if one is None or other is None:
        shown = _short(had), _short(expected)
        if shown[0] == shown[1]:
            alike = next(
                (i for i, (a, b) in enumerate(zip(had, expected, strict=False)) if a != b), len(min(had, expected))
            )
            shown = f"…{_short(had[alike:])}", f"…{_short(expected[alike:])}"
        return [f"{name} is {shown[0]}, expected {shown[1]}"]
    return [
        text
        for key in dict.fromkeys([*one, *other])
        if (was := one.get(key, "(absent)")) != (now := other.get(key, "(absent)"))
        for text in _differing(f"{name}.{key}", was, now)
    ]


def _object(text: str) -> dict[str, str] | None:
    """The entries of a JSON object as text; None: it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:20]}…{text[-12:]}"
