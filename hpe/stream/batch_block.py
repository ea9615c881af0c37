"""A batch in one block of memory: what travels from a worker to the trainer and on to the device.

One block costs one shared-memory file, one pinned copy and one copy to the device, where the ten tensors
of a :class:`hpe.data.batch.Batch` would cost ten of each.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.batch import Batch
from hpe.stream.shared_memory import memory_of

LABELS: Final = ("emotion", "direction", "valence", "arousal", "yaw", "pitch", "roll")
"""Columns of a label row, NaN where a label is missing; the emotion's distribution follows."""
COLUMNS: Final = len(LABELS) + len(EMOTIONS)
_CLASSES: Final = np.asarray((len(EMOTIONS), len(DIRECTIONS)), np.float32)
LabelRows = Float32[np.ndarray, "rows columns"]
_ALIGN: Final = 64
"""Bytes: a field starts on a cache line, and so where every dtype may be viewed."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample (or, without a key, a whole shard) that could not be read, and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}{f', {self.key}' if self.key else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch and its place in the global sequence.

    Attributes:
        batch: this rank's part of the global batch.
        first: position of its first row in the global sequence: the seed of its augmentation.
        samples_seen: position after the *global* batch: what to store and to resume from.
        damage: what could not be read; such a row is black with every mask false.
        lost: the row of each damage: a key may appear in the batch again, of another shard or dataset.
    """

    batch: Batch
    first: int
    samples_seen: int
    damage: tuple[Damage, ...] = ()
    lost: tuple[int, ...] = ()

    @property
    def readable(self) -> list[bool]:
        """By row: whether it is a sample, and not the black place of one that could not be read."""
        return [row not in self.lost for row in range(len(self.batch))]


class Slot(NamedTuple):
    """A block in shared memory: of which memory, its number there, and how many bytes are used."""

    memory: int
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class BatchBlock:
    """A batch as one block of bytes: pictures, then the fields of :func:`layout`.

    ``encoded``: by row, the shard's name and how many bytes of a JPEG lie in the place of its pixels (0: pixels);
    empty where every row is pixels.
    """

    block: UInt8[Tensor, " bytes"] | Slot
    keys: tuple[str, ...]
    height: int
    width: int
    first: int
    samples_seen: int
    damage: tuple[Damage, ...] = ()
    lost: tuple[int, ...] = ()
    encoded: tuple[tuple[str, int], ...] = ()

    def pin_memory(self) -> "BatchBlock":
        """The same in page-locked memory (called by torch's DataLoader)."""
        return replace(self, block=self._memory().pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:  # a frozen dataclass's own way takes three times as long
        return BatchBlock, tuple(getattr(self, name) for name in self.__slots__)

    def _memory(self) -> UInt8[Tensor, " bytes"]:
        if isinstance(self.block, Slot):
            return memory_of(self.block.memory).lease(self.block.number, self.block.size)
        return self.block

    def unpack(self) -> Loaded:
        """The batch as views of the block: images in channels-last memory, nothing copied."""
        fields, _ = layout(len(self.keys), self.height, self.width)
        block = self._memory()
        # One view by type and one by field: a tensor more costs as much as reading a small file, for every batch.
        typed = {dtype: block.view(dtype) for dtype in (torch.uint8, torch.int64, torch.float32, torch.bool)}
        views = {
            name: typed[field.dtype].as_strided(field.shape, field.strides, field.start // field.dtype.itemsize)
            for name, field in fields.items()
        }
        views["images"] = views["images"].permute(0, 3, 1, 2)
        return Loaded(Batch(self.keys, **views), self.first, self.samples_seen, self.damage, self.lost)


class Field(NamedTuple):
    """Where a field of a batch lies in its block: bytes, type, shape and strides in elements."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@cache
def layout(rows: int, height: int, width: int) -> tuple[dict[str, Field], int]:
    """The fields of a block, and its bytes."""
    shapes = {
        "images": (torch.uint8, (rows, height, width, 3)),
        "emotion": (torch.int64, (rows,)),
        "direction": (torch.int64, (rows,)),
        "emotion_target": (torch.float32, (rows, len(EMOTIONS))),
        "angles": (torch.float32, (rows, 3)),
        "affect": (torch.float32, (rows, 2)),
        "emotion_mask": (torch.bool, (rows,)),
        "direction_mask": (torch.bool, (rows,)),
        "angles_mask": (torch.bool, (rows,)),
        "affect_mask": (torch.bool, (rows,)),
    }
    fields, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        fields[name] = Field(at, at + size, dtype, shape, strides)
        at += -(-size // _ALIGN) * _ALIGN
    return fields, at


def write_labels(block: UInt8[np.ndarray, " bytes"], labels: LabelRows, height: int, width: int) -> None:
    """Write label rows (see :data:`LABELS`) into a block's fields and masks."""
    fields, _ = layout(len(labels), height, width)

    def field(name: str, dtype: type) -> np.ndarray:
        return np.ndarray(fields[name].shape, dtype, block, fields[name].start)

    known: Any = np.isfinite(labels)
    named = (labels[:, :2] >= 0) & (labels[:, :2] < _CLASSES)  # false where there is none
    classes = np.where(named, labels[:, :2], 0)
    for column, name in enumerate(("emotion", "direction")):
        field(name, np.int64)[:] = classes[:, column]
        field(f"{name}_mask", np.bool_)[:] = named[:, column]
    for name, columns in (("affect", slice(2, 4)), ("angles", slice(4, 7))):
        here = known[:, columns].all(1)
        field(name, np.float32)[:] = np.where(here[:, None], labels[:, columns], 0)
        field(f"{name}_mask", np.bool_)[:] = here
    field("emotion_target", np.float32)[:] = np.where(known[:, :1], labels[:, len(LABELS) :], 0)
