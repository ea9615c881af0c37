"""What runs in a reader process: a batch's number in, its pictures and labels in one block of memory out."""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hpe.core.errors import UserError
from hpe.data.decode import Colour, decode_into
from hpe.data.gpu_decode import hand_on
from hpe.data.images import DecodeError
from hpe.stream.batch_block import COLUMNS, Damage, Packed, Slot, layout, write_labels
from hpe.stream.index import WHOLE_SHARD, LabelSource, ShardTable, open_local, still_holds, table_of
from hpe.stream.order import Order, Plan
from hpe.stream.remote_cache import Spool
from hpe.stream.shard_sets import Shard
from hpe.stream.shared_memory import Pool

_OPEN_SHARDS: Final = 192
"""Shards that a reader holds open: three default windows; more than this is opened again."""
_TRY_AGAIN_SECONDS: Final = 600.0
"""After which a shard that could not be had is tried again: servers come back."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples are read: everything that does not change their order.

    Attributes:
        size: pictures come as size × size pixels.
        colour: ``rgb``, or ``grey`` (luma in three channels).
        labels: where angles and directions come from.
        decoder: ``cpu`` (the readers), or ``gpu``: plain JPEGs are decoded by this rank's device.
        damaged: ``skip`` (a black row with false masks, named in ``Loaded.damage``) or ``fail``.
        workers: reader processes of this rank; 0 reads in this process.
        prefetch: batches that each worker keeps ready.
        spool_bytes: what fetched shards may take on this node's disk; None: half of what is free.
    """

    size: int
    colour: Colour = "rgb"
    labels: LabelSource = field(default_factory=LabelSource)
    decoder: Literal["cpu", "gpu"] = "cpu"
    damaged: Literal["skip", "fail"] = "skip"
    workers: int = 0
    prefetch: int = 2
    spool_bytes: int | None = None


class Shelf:
    """Open shards of one process: the least recently used are closed."""

    def __init__(self, sets: Sequence[Sequence[Shard]], labels: LabelSource, spool: Spool, cache: Path) -> None:
        self._sets, self._labels, self._spool, self._cache = sets, labels, spool, cache
        self._open: OrderedDict[tuple[int, int], tuple[int, ShardTable] | str] = OrderedDict()
        self._failed: dict[tuple[int, int], float] = {}
        self._written: dict[int, tuple[int, int]] = {}

    def open(self, dataset: int, shard: int) -> tuple[int, ShardTable] | str:
        """Descriptor and table of a shard, or why there is none."""
        place = dataset, shard
        known = self._open.get(place)
        waiting = time.monotonic() < self._failed.get(place, 0.0) + _TRY_AGAIN_SECONDS
        if known is not None and (waiting or not isinstance(known, str)):
            self._open.move_to_end(place)
            return known
        wanted = self._sets[dataset][shard]
        try:
            file = open_local(wanted, self._spool)
            self._written[file] = _written(file)
            try:
                opened: tuple[int, ShardTable] | str = (file, table_of(wanted, file, self._labels, self._cache))
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            opened = f"{error.strerror or error}"
            self._failed[place] = time.monotonic()
        self._open[place] = opened
        if len(self._open) > _OPEN_SHARDS:
            _, closed = self._open.popitem(last=False)
            if not isinstance(closed, str):
                os.close(closed[0])
        return opened

    def overwritten(self, dataset: int, shard: int) -> bool:
        """Whether somebody has written into an open shard so that other samples lie in it now."""
        opened = self._open.get((dataset, shard))
        if opened is None or isinstance(opened, str) or self._sets[dataset][shard].remote:
            return False
        file, table = opened
        if (now := _written(file)) == self._written[file]:
            return False
        if not still_holds(file, table):
            return True
        self._written[file] = now  # touched only
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _written(file: int) -> tuple[int, int]:
    state = os.fstat(file)
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of a worker that the main process raises as its own."""

    message: str


class Batches(Dataset[Packed | Refusal]):
    """Batch number → batch: what runs inside a worker."""

    def __init__(
        self, sets: Sequence[Sequence[Shard]], order: Order, plan: Plan, reading: Reading, shelf: Shelf
    ) -> None:
        self._sets, self._order, self._plan, self._reading, self._shelf = sets, order, plan, reading, shelf
        self.pool: Pool | None = None

    def __getitem__(self, number: int) -> Packed | Refusal:
        try:
            return self._read(number)
        except UserError as error:
            return Refusal(str(error))

    def _read(self, number: int) -> Packed:
        start, stop = self._plan.part(number)
        size, rows = self._reading.size, stop - start
        picks = self._order.at(start, stop).tolist()
        places, total = layout(rows, size, size)
        block, bytes_of_block = self._block(total)
        images = bytes_of_block[: places["images"][1]].reshape(rows, size, size, 3)
        labels = np.empty((rows, COLUMNS), np.float32)
        damage: list[Damage] = []
        shards = {(dataset, shard) for dataset, shard, _ in picks}
        overwritten = {place for place in shards if self._shelf.overwritten(*place)}
        wanted = [self._place(dataset, shard, row, (dataset, shard) in overwritten) for dataset, shard, row in picks]
        for place in wanted:
            if not isinstance(place, Damage):
                os.posix_fadvise(place.file, place.at, place.size, os.POSIX_FADV_WILLNEED)
        keys, encoded = [], []
        for row, place in enumerate(wanted):
            filled = place if isinstance(place, Damage) else self._fill(place, images[row])
            keys.append(place.key)
            encoded.append((place.shard, 0 if isinstance(filled, Damage) else filled))
            if not isinstance(filled, Damage) and not isinstance(place, Damage):
                labels[row] = place.labels
                continue
            assert isinstance(filled, Damage)
            images[row] = 0
            labels[row] = np.nan
            damage.append(filled)
        if damage and self._reading.damaged == "fail":
            raise UserError(f"{damage[0]}; mend or pack again, or read with damaged: skip")
        write_labels(bytes_of_block, labels, size, size)
        seen = self._plan.first + (number + 1) * self._plan.batch
        seen = seen if self._plan.length is None else min(seen, self._plan.length)
        handed_on = tuple(encoded) if any(length for _, length in encoded) else ()
        return Packed(block, tuple(keys), size, size, start, seen, tuple(damage), handed_on)

    def _block(self, size: int) -> tuple[torch.Tensor | Slot, np.ndarray]:
        """Memory for a batch: a slot of the pool, or fresh memory where the trainer holds all slots."""
        worker = torch.utils.data.get_worker_info()
        if worker and self.pool and (slot := self.pool.take(worker.id)) is not None:
            return Slot(self.pool.number, slot, size), self.pool.bytes_of(slot, size)
        block = torch.empty(size, dtype=torch.uint8)
        return block, block.numpy()

    def _place(self, dataset: int, shard: int, row: int, overwritten: bool) -> "_Place | Damage":
        name = self._sets[dataset][shard].name
        opened = self._shelf.open(dataset, shard)
        if isinstance(opened, str):
            return Damage(name, f"row-{row}", opened)
        file, table = opened
        if row >= len(table):
            why = table.damage.get(WHOLE_SHARD) or f"the shard has {len(table)} samples, its manifest says more"
            return Damage(name, f"row-{row}", why)
        if overwritten or row in table.damage:
            return Damage(name, table.key(row), table.damage.get(row) or "the shard was written over while in use")
        at, size = table.places[row].tolist()
        return _Place(name, table.key(row), file, at, size, table.labels[row])

    def _fill(self, place: "_Place", out: np.ndarray) -> Damage | int:
        """Pixels into a row; or a JPEG for the device to decode, and then how many bytes."""
        try:
            data = os.pread(place.file, place.size, place.at)
            if self._reading.decoder == "gpu" and (length := hand_on(data, out)):
                return length
            decode_into(data, out, self._reading.colour)
        except (DecodeError, OSError) as error:
            return Damage(place.shard, place.key, str(error))
        return 0


@dataclass(slots=True)
class _Place:
    shard: str
    key: str
    file: int
    at: int
    size: int
    labels: np.ndarray
