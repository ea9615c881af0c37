"""What is known of a shard before a picture is read: where each sample lies and what its labels are.

A shard's headers and records are read by the first reader of a node that needs them, and stored in the
node's cache as plain arrays; every other reader, and every later epoch, maps those. With a hundred readers
on a node, parsing in each of them would cost as much as decoding.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from hpe.core.errors import UserError
from hpe.core.files import aside, open_regular
from hpe.core.labels import EMOTIONS
from hpe.data.pose_labels import read_labels
from hpe.data.records import Record
from hpe.data.shard_reader import open_tar
from hpe.stream.batch_block import COLUMNS, LABELS, LabelRows
from hpe.stream.remote_cache import Spool, locked
from hpe.stream.shard_sets import Shard

WHOLE_SHARD: Final = -1
"""The row under which damage of the tar itself stands."""
_FORMAT: Final = "3"
_ANGLES: Final = slice(LABELS.index("yaw"), LABELS.index("roll") + 1)
_DIRECTION: Final = LABELS.index("direction")
_NUMBERS: Final = ("valence", "arousal", "yaw", "pitch", "roll")


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where labels come from that a record and a pose table may both hold.

    A dataset that names no pose tables keeps what its records say: measured angles go with estimated ones.

    Attributes:
        angles: ``record`` or ``pose``.
        direction: ``record``, or a direction rule of the pose tables, such as ``ours``.
    """

    angles: str = "record"
    direction: str = "record"

    @property
    def rule(self) -> str | None:
        """The direction rule to read from pose tables."""
        return None if self.direction == "record" else self.direction

    @property
    def needs_pose(self) -> bool:
        """True when pose tables are read at all."""
        return self.angles == "pose" or self.rule is not None


@dataclass(frozen=True, slots=True)
class ShardTable:
    """A shard's samples in order.

    Attributes:
        places: byte offset and size of each picture in the tar; a size of 0 marks a damaged record.
        labels: a row of :data:`hpe.stream.batch_block.LABELS` and the emotion's distribution per sample.
        key_ends, key_bytes: the keys, one after another in UTF-8.
        damage: why the tar ends early, or damaged records, as JSON-able texts by row (:data:`WHOLE_SHARD`: the tar).
    """

    places: Int64[np.ndarray, "rows 2"]
    labels: LabelRows
    key_ends: Int64[np.ndarray, " rows"]
    key_bytes: bytes
    damage: dict[int, str]

    def __len__(self) -> int:
        return len(self.places)

    def key(self, row: int) -> str:
        """The key of a row."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.key_bytes[start : int(self.key_ends[row])].decode("utf-8", "replace")

    @property
    def keys(self) -> list[str]:
        """All keys."""
        return [self.key(row) for row in range(len(self))]


def open_local(shard: Shard, spool: Spool) -> int:
    """A file descriptor of the shard, fetched first where it is remote.

    Raises:
        OSError: it cannot be opened or fetched.
    """
    for _ in range(3):
        path = spool.path(shard.url, shard.sha256) if shard.remote else Path(shard.url)
        try:
            with open_regular(path) as file:
                return os.dup(file.fileno())
        except FileNotFoundError:
            if not shard.remote:  # another reader may have made room of this very file
                raise
    raise OSError("removed from the spool again and again: its limit is too small for one window of shards")


def table_of(shard: Shard, file: int, labels: LabelSource, cache: Path) -> ShardTable:
    """The shard's table, from the node's cache where it is there.

    Args:
        shard: the shard.
        file: descriptor of the open tar.
        labels: where labels come from; pose tables are joined by key.
        cache: the node's folder of tables.

    Raises:
        UserError: the pose table is not the shard's.
        OSError: the tar cannot be read.
    """
    state = os.fstat(file)
    said: list[Any] = [_FORMAT, shard.url, state.st_size, state.st_mtime_ns, shard.sha256]
    if labels.needs_pose and shard.pose is not None:
        try:
            pose = shard.pose.stat()
        except OSError as error:
            raise UserError(
                f"{shard.pose}: no pose table of {shard.name} ({error.strerror}); run `hpe pose`"
            ) from error
        said += [str(shard.pose.resolve()), pose.st_size, pose.st_mtime_ns, labels.angles, labels.direction]
    name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]
    path = cache / f"{name}.table"
    if (table := _load(path)) is not None:
        return table
    with locked(cache / f"{name[:2]}.lock"):
        if (table := _load(path)) is None:
            table = _joined(_parse(file), shard, labels)
            _save(path, table)
    return table


def still_holds(file: int, table: ShardTable) -> bool:
    """Whether an open tar has the samples of its table, at their places: false when it was written over."""
    try:
        now = _parse(file)
    except (OSError, ValueError):
        return False
    return now.key_bytes == table.key_bytes and np.array_equal(now.places, table.places)


def _parse(file: int) -> ShardTable:
    shard = open_tar(file)
    rows = np.full((len(shard), COLUMNS), np.nan, np.float32)
    damage = {WHOLE_SHARD: shard.damage} if shard.damage else {}
    for row in range(len(shard)):
        try:
            rows[row] = label_row(shard.record_bytes(row))
        except (ValueError, RecursionError) as error:
            damage[row] = f"damaged record: {error}"
    return _table(shard.keys, shard.index.images, damage, rows)


def _table(keys: Sequence[str], places: np.ndarray, damage: dict[int, str], rows: LabelRows) -> ShardTable:
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
    return ShardTable(places, rows, ends, b"".join(encoded), damage)


def label_row(record: bytes) -> list[float]:
    """A record's labels as a row, NaN where it says nothing.

    Raises:
        ValueError: not a record, or an impossible one.
    """
    said = Record.from_json(record)
    if problems := said.problems():
        raise ValueError("; ".join(problems))
    row = [np.nan if said.emotion is None else said.emotion, np.nan if said.direction is None else said.direction]
    row += [np.nan if (value := getattr(said, name)) is None else value for name in _NUMBERS]
    votes = said.emotion_votes
    if votes and (total := sum(votes)) > 0:
        return row + [vote / total for vote in votes]
    return row + [float(said.emotion == emotion) for emotion in range(len(EMOTIONS))]


def _joined(table: ShardTable, shard: Shard, labels: LabelSource) -> ShardTable:
    if not labels.needs_pose or shard.pose is None:
        return table
    angles, direction = read_labels(shard.pose, table.keys, rule=labels.rule)
    if labels.angles == "pose":
        table.labels[:, _ANGLES] = angles
    if labels.rule:
        table.labels[:, _DIRECTION] = direction
    return table


def _save(path: Path, table: ShardTable) -> None:
    with aside(path) as part, part.open("wb") as out:
        notes = json.dumps(table.damage).encode()
        for array in (table.places, table.labels, table.key_ends, table.key_bytes, notes):
            if isinstance(array, bytes):
                array = np.frombuffer(array, np.uint8)
            np.lib.format.write_array(out, np.ascontiguousarray(array), allow_pickle=False)


def _load(path: Path) -> ShardTable | None:
    """A stored table; None where there is none, or it is not whole."""
    try:
        with path.open("rb") as stored:
            arrays = [np.lib.format.read_array(stored, allow_pickle=False) for _ in range(5)]
    except (OSError, ValueError, EOFError):
        return None
    places, labels, ends, keys, notes = arrays
    damage = {int(row): reason for row, reason in json.loads(notes.tobytes()).items()}
    return ShardTable(places, labels, ends, keys.tobytes(), damage)
