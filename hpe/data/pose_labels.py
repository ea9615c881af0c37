"""Pose tables as labels (contract C2): the one reader that joins them to shards, and its checks.

Whoever takes labels from a pose table reads it here, so that a table that does not belong to its shard gives the same
message in every command. :mod:`hpe.data.pose_tables` describes and writes the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS
from hpe.data.index import utf8
from hpe.data.pose_tables import DIRECTION_PREFIX, PoseMetadata, read_metadata, read_pose_table, table_of_shard

DEVIATIONS: Final = tuple(f"{angle}_sd" for angle in ANGLES)
PROBLEM: Final = "problem"
_OURS: Final = "ours"
"""The direction rule that is used where tables have several and none is named."""
_PREFIX: Final = "hpe."
_AGAIN: Final = "run `hpe pose` on these shards again"


def mismatch(path: Path, *, shard: str, sha256: str | None, samples: int | None, rule: str | None = None) -> str | None:
    """Why a pose table does not belong to a shard, by its footer alone; None when it does.

    Args:
        path: the table.
        shard, sha256, samples: the shard's file name, and its digest and count where a manifest lists them.
        rule: a direction rule that the table must hold.
    """
    try:
        footer = read_metadata(path)
    except UserError as error:
        return str(error)
    return _misfit(path, footer, shard, sha256, samples, rule)


def _misfit(
    path: Path, footer: PoseMetadata, shard: str, sha256: str | None, samples: int | None, rule: str | None
) -> str | None:
    of_sha256, of_shard = (footer.entries.get(_PREFIX + name) for name in ("shard_sha256", "shard"))
    if samples is not None and footer.rows != samples:
        return f"{path}: {footer.rows} rows, but {shard} has {samples} samples; {_AGAIN}"
    if of_shard and table_of_shard(path.parent, of_shard) != table_of_shard(path.parent, shard):
        return f"{path}: made for the shard {of_shard}, not for {shard}; {_AGAIN}"
    if sha256 and of_sha256 and of_sha256 != sha256:
        return f"{path}: made for a shard with sha256 {of_sha256[:12]}…, {shard} has {sha256[:12]}…; {_AGAIN}"
    wanted = ["key", *ANGLES] + ([DIRECTION_PREFIX + rule] if rule else [])
    if absent := [name for name in wanted if name not in footer.columns]:
        rules = ", ".join(footer.rules) or "none"
        return f"{path}: no column {', '.join(absent)}; direction rules in it: {rules}; {_AGAIN}"
    if twice := next((name for name in footer.columns if footer.columns.count(name) > 1), None):
        return f"{path}: more than one column {twice}; {_AGAIN}"
    return None


def chosen_rule(table: Path, rule: str | None) -> str:
    """The direction rule to use: the one that is named, else the only one of a table, else ``ours``.

    Raises:
        UserError: the table lacks it, or has several and none is ``ours``.
    """
    rules = read_metadata(table).rules
    listed = ", ".join(rules) or "none"
    if rule is None and len(rules) != 1 and _OURS not in rules:
        raise UserError(f"{table.parent}: direction rules {listed}; name one with --rule")
    chosen = rule or (rules[0] if len(rules) == 1 else _OURS)
    if chosen not in rules:
        raise UserError(f"--rule {chosen}: the tables in {table.parent} have {listed}")
    return chosen


def read_poses(
    path: Path, keys: pa.StringArray, *, shard: str, sha256: str | None = None, rule: str | None = None
) -> pa.Table:
    """A shard's pose table, in shard order and without any mark for a missing value but null.

    Args:
        path: the table.
        keys: the shard's keys in order.
        shard, sha256: the shard's file name, and its digest where a manifest lists it.
        rule: a direction rule that the table must hold.

    Returns:
        ``yaw``, ``pitch``, ``roll`` and ``yaw_sd`` … (degrees, float32), ``direction_<rule>`` (int8, 0..4) for every
        rule, and ``problem`` (text). Deviations and problems that a table of another origin lacks are null.

    Raises:
        UserError: the table does not exist, is damaged, or does not belong to the shard.
    """
    table = read_pose_table(path)
    footer = PoseMetadata.of(table.num_rows, table.schema)
    if problem := _misfit(path, footer, shard, sha256, len(keys), rule):
        raise UserError(problem)
    directions = [DIRECTION_PREFIX + name for name in footer.rules]
    for names, fits, wanted in (
        (("key",), _is_text, "text"),
        ((*ANGLES, *DEVIATIONS), _is_number, "numbers"),
        (directions, _is_number, "whole numbers of 0..4"),
    ):
        for name in names:
            if name in footer.columns and not (fits(kind := table.field(name).type) or pa.types.is_null(kind)):
                raise UserError(f"{path}: column {name} holds {kind}, expected {wanted}; {_AGAIN}")
    _refuse_other_keys(path, table["key"].cast(pa.string()), keys)
    unknown = pa.chunked_array([pa.nulls(len(table))])
    columns = {name: table[name] if name in footer.columns else unknown for name in (*ANGLES, *DEVIATIONS)}
    return pa.table(
        {name: _degrees(column) for name, column in columns.items()}
        | {name: _directions(path, name, table[name]) for name in directions}
        | {PROBLEM: (table[PROBLEM] if PROBLEM in footer.columns else unknown).cast(pa.string())}
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _degrees(column: pa.ChunkedArray) -> pa.Array:
    """The finite numbers of a column, others null."""
    values = column.cast(pa.float32(), safe=False).to_numpy()
    return pa.array(values, mask=~np.isfinite(values))


def _directions(path: Path, name: str, column: pa.ChunkedArray) -> pa.Array:
    """The directions of a column, what is none of them null.

    Raises:
        UserError: a number that is not whole.
    """
    # Floats are accepted: pandas writes whole numbers as floats where one of them is missing.
    values = column.cast(pa.float64(), safe=False).to_numpy()
    broken = values[np.isfinite(values) & (values != np.floor(values))]
    if len(broken):
        raise UserError(f"{path}: column {name} holds {broken[0]}, expected whole numbers of 0..4; {_AGAIN}")
    known = (values >= 0) & (values < len(DIRECTIONS))
    return pa.array(np.where(known, values, 0).astype(np.int8), mask=~known)


def _refuse_other_keys(path: Path, found: pa.ChunkedArray, keys: pa.StringArray) -> None:
    if found.equals(pa.chunked_array([keys], pa.string())):
        return
    pairs = enumerate(zip(found.to_pylist(), keys.to_pylist(), strict=True))
    row, (key, expected) = next(one for one in pairs if one[1][0] != one[1][1])
    raise UserError(f"{path}: its keys are not the shard's: row {row} is {key!r}, expected {expected!r}; {_AGAIN}")


def read_labels(
    path: Path, keys: Sequence[str], *, rule: str | None
) -> tuple[Float32[np.ndarray, "rows 3"], Float32[np.ndarray, " rows"]]:
    """Yaw, pitch, roll and the direction by ``rule`` of a shard's samples; NaN where there is none.

    Args:
        path: the table.
        keys: the shard's keys in order.
        rule: such as ``ours``, or None: every direction NaN.

    Raises:
        UserError: see :func:`read_poses`.
    """
    table = read_poses(path, pa.array(map(utf8, keys), pa.string()), shard=f"{path.stem}.tar", rule=rule)
    direction = floats(table[DIRECTION_PREFIX + rule]) if rule else np.full(len(keys), np.nan, np.float32)
    return np.stack([floats(table[name]) for name in ANGLES], 1), direction


def floats(column: pa.ChunkedArray) -> Float32[np.ndarray, " rows"]:
    """A column of numbers; NaN where null."""
    return column.cast(pa.float32()).to_numpy()
