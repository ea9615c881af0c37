"""Pose tables (contract C2): one Parquet file per shard, rows in shard order, joined to shards by key.

Columns: ``key``, ``yaw``, ``pitch``, ``roll`` (degrees), ``yaw_sd``, ``pitch_sd``, ``roll_sd``, and
``direction_<rule>`` (0..4; -1 or null where the rule abstains). The schema's metadata name the estimator, the
sha256 of its weights, the crop rule, and the shard with its sha256.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.data.pose_tables import DIRECTION_PREFIX, read_metadata, read_pose_table

_PREFIX: Final = "hpe."


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
    way_out = "run `hpe pose` on these shards again"
    of_sha256, of_shard = (footer.entries.get(_PREFIX + name) for name in ("shard_sha256", "shard"))
    if samples is not None and footer.rows != samples:
        return f"{path}: {footer.rows} rows, but {shard} has {samples} samples; {way_out}"
    if of_shard and of_shard.removesuffix(".tar") != shard.removesuffix(".tar"):
        return f"{path}: made for the shard {of_shard}, not for {shard}; {way_out}"
    if sha256 and of_sha256 and of_sha256 != sha256:
        return f"{path}: made for a shard with sha256 {of_sha256[:12]}…, {shard} has {sha256[:12]}…; {way_out}"
    wanted = ["key", *ANGLES] + ([DIRECTION_PREFIX + rule] if rule else [])
    if absent := [name for name in wanted if name not in footer.columns]:
        rules = ", ".join(footer.rules) or "none"
        return f"{path}: no column {', '.join(absent)}; direction rules in it: {rules}; {way_out}"
    return None


def read_labels(
    path: Path, keys: Sequence[str], *, rule: str | None
) -> tuple[Float32[np.ndarray, "rows 3"], Float32[np.ndarray, " rows"]]:
    """Yaw, pitch, roll and the direction by ``rule`` of a shard's samples; NaN where there is none.

    Args:
        path: the table.
        keys: the shard's keys in order.
        rule: such as ``ours``, or None: every direction NaN.

    Raises:
        UserError: the table's keys are not the shard's, or it is damaged, or its columns hold no numbers.
    """
    import pyarrow as pa

    try:
        return _read_labels(path, keys, rule)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a pose table: {error}; remove it and run `hpe pose` again") from error


def _read_labels(
    path: Path, keys: Sequence[str], rule: str | None
) -> tuple[Float32[np.ndarray, "rows 3"], Float32[np.ndarray, " rows"]]:
    if problem := mismatch(path, shard=path.stem, sha256=None, samples=None, rule=rule):
        raise UserError(problem)
    columns = ["key", *ANGLES] + ([DIRECTION_PREFIX + rule] if rule else [])
    table = read_pose_table(path, columns)
    found = table["key"].to_pylist()
    if found != list(keys):
        at = next((i for i, (a, b) in enumerate(zip(found, keys, strict=False)) if a != b), min(len(found), len(keys)))
        raise UserError(
            f"{path}: its keys are not the shard's: row {at} is {found[at] if at < len(found) else 'missing'!r}, "
            f"expected {keys[at] if at < len(keys) else 'the end'!r}; run `hpe pose` on these shards again"
        )
    angles = np.stack([_floats(table[name]) for name in ANGLES], 1)
    direction = np.full(len(found), np.nan, np.float32)
    if rule:
        direction = _floats(table[DIRECTION_PREFIX + rule])
        direction[direction < 0] = np.nan
    return angles, direction


def _floats(column) -> Float32[np.ndarray, " rows"]:
    import pyarrow as pa

    values = column.combine_chunks().cast(pa.float32()).to_numpy(zero_copy_only=False)
    return np.array(values, np.float32)
