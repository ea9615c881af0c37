"""Pose tables on disk (contract C2): one Parquet file a shard, the same bytes for the same poses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int8

from hpe.core.files import aside
from hpe.core.labels import ANGLES
from hpe.data.directions import ABSTAIN

SUFFIX: Final = ".parquet"
_PREFIX: Final = "hpe."
_BATCH: Final = _PREFIX + "batch"
_ROWS_A_GROUP: Final = 1 << 16


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


def write_table(path: Path, poses: ShardPoses, identity: Identity) -> None:
    """Write a table, aside and then renamed. NaN and :data:`ABSTAIN` become null."""
    columns: dict[str, pa.Array] = {"key": pa.array(poses.keys, pa.string())}
    for name, values in (("", poses.angles), ("_sd", poses.deviations)):
        for angle, column in zip(ANGLES, np.asarray(values, np.float32).T, strict=True):
            columns[angle + name] = pa.array(column, pa.float32(), from_pandas=True)
    for rule, labels in poses.directions.items():
        columns[f"direction_{rule}"] = pa.array(labels, pa.int8(), mask=labels == ABSTAIN)
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
            continue  # an older table, without this entry
        had = found.get(name.encode(), b"(absent)").decode("utf-8", "replace")
        if had != expected:
            different += _value_differences(name.removeprefix(_PREFIX), had, expected)
    return different


def _value_differences(name: str, had: str, expected: str) -> list[str]:
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
        line
        for key in dict.fromkeys([*one, *other])
        if (was := one.get(key, "(absent)")) != (now := other.get(key, "(absent)"))
        for line in _value_differences(f"{name}.{key}", was, now)
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
