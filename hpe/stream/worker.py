"""What runs in a reader process: a batch's number in, its pictures and labels in one block of memory out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hpe.core.errors import UserError
from hpe.data.decode import Colour, decode_into
from hpe.data.gpu_decode import hand_on
from hpe.data.images import DecodeError
from hpe.stream.batch_block import COLUMNS, BatchBlock, Damage, LabelRows, Slot, layout, write_labels
from hpe.stream.index import WHOLE_SHARD, LabelSource
from hpe.stream.open_files import Unreadable
from hpe.stream.open_tables import OpenTable, OpenTables
from hpe.stream.order import Order, Plan
from hpe.stream.shard_sets import Shard
from hpe.stream.shared_memory import SharedMemory


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples are read: everything that does not change their order.

    Attributes:
        size: side of the pictures in pixels.
        colour: ``rgb``, or ``grey`` (luma in three channels).
        labels: where angles and directions come from.
        decoder: ``cpu`` (the readers), or ``gpu``: plain JPEGs are decoded by this rank's device.
        damaged: ``skip`` (a black row with false masks, named in ``Loaded.damage``) or ``fail``.
        workers: reader processes of this rank; 0 reads in this process.
        prefetch: batches that each worker keeps ready.
        remote_cache_bytes: disk space of this node for fetched shards; None: half of what is free.
    """

    size: int
    colour: Colour = "rgb"
    labels: LabelSource = field(default_factory=LabelSource)
    decoder: Literal["cpu", "gpu"] = "cpu"
    damaged: Literal["skip", "fail"] = "skip"
    workers: int = 0
    prefetch: int = 2
    remote_cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of a worker that the main process raises as its own."""

    message: str


class Batches(Dataset[BatchBlock | Refusal]):
    """Batch number → batch: what runs inside a worker."""

    def __init__(
        self, sets: Sequence[Sequence[Shard]], order: Order, plan: Plan, reading: Reading, tables: OpenTables
    ) -> None:
        self._sets, self._order, self._plan, self._reading, self._tables = sets, order, plan, reading, tables
        self.memory: SharedMemory | None = None

    def __getitem__(self, number: int) -> BatchBlock | Refusal:
        try:
            return self._read(number)
        except UserError as error:  # torch would hand on an exception as a traceback of the worker
            return Refusal(str(error))

    def _read(self, number: int) -> BatchBlock:
        """A batch: where its samples lie, their bytes on their way, decoded, damaged ones masked, sealed."""
        places = self._locate(*self._plan.part(number))
        self._advise(places)
        block, memory, images = self._allocate(len(places))
        lengths = [self._decode(place, image) for place, image in zip(places, images, strict=True)]
        labels, damage = self._mask_damaged(places, lengths, images)
        if damage and self._reading.damaged == "fail":
            raise UserError(f"{damage[0]}; repair it or pack again, or read with damaged: skip")
        write_labels(memory, labels, self._reading.size, self._reading.size)
        return self._seal(block, number, places, lengths, damage)

    def _locate(self, start: int, stop: int) -> list["_Place | Damage"]:
        """The samples at positions start … stop - 1, or why one has no place."""
        picks = self._order.at(start, stop).tolist()
        shards = {(dataset, shard) for dataset, shard, _ in picks}
        # Once for each shard of a batch, not for each sample. Without it the pixels of a file that was written over
        # would go with the labels of the old one.
        overwritten = {shard for shard in shards if self._tables.overwritten(*shard)}
        return [self._place(dataset, shard, row, (dataset, shard) in overwritten) for dataset, shard, row in picks]

    def _place(self, dataset: int, shard: int, row: int, overwritten: bool) -> "_Place | Damage":
        name = self._sets[dataset][shard].name
        opened = self._tables.open(dataset, shard)
        if isinstance(opened, Unreadable):
            return Damage(name, f"row-{row}", opened.reason)
        table = opened.table
        if row >= len(table):
            why = table.damage.get(WHOLE_SHARD) or f"the shard has {len(table)} samples, its manifest lists more"
            return Damage(name, f"row-{row}", why)
        if overwritten or row in table.damage:
            return Damage(name, table.key(row), table.damage.get(row) or "the shard was written over while in use")
        at, size = table.places[row].tolist()
        return _Place(name, table.key(row), opened, at, size, table.labels[row])

    def _advise(self, places: Sequence["_Place | Damage"]) -> None:
        """Ask the kernel for the bytes of the whole batch at once.

        Samples of a batch lie at random places of many files. Without this, each ``pread`` waits for the disk before
        the next one is asked for; with it, the disk answers while the first samples are decoded.
        """
        for place in places:
            if isinstance(place, _Place):
                os.posix_fadvise(place.opened.file, place.at, place.size, os.POSIX_FADV_WILLNEED)

    def _allocate(self, rows: int) -> tuple[torch.Tensor | Slot, np.ndarray, np.ndarray]:
        """A block for a batch, its bytes, and the part that holds the images.

        A slot of the shared memory, or fresh memory where the trainer holds all slots: a reader that waited for a
        slot would stop a consumer that collects batches, such as ``list(loader)``, for ever.
        """
        size = self._reading.size
        fields, total = layout(rows, size, size)
        worker = torch.utils.data.get_worker_info()
        if worker and self.memory and (slot := self.memory.take(worker.id)) is not None:
            block = Slot(self.memory.number, slot, total)
            memory = self.memory.bytes_of(slot, total)
        else:
            block = torch.empty(total, dtype=torch.uint8)
            memory = block.numpy()
        return block, memory, memory[: fields["images"][1]].reshape(rows, size, size, 3)

    def _decode(self, place: "_Place | Damage", out: np.ndarray) -> int | Damage:
        """Pixels into a row (0), or a JPEG for the device to decode (how many bytes)."""
        if isinstance(place, Damage):
            return place
        try:
            data = os.pread(place.opened.file, place.size, place.at)
            if self._reading.decoder == "gpu" and (length := hand_on(data, out)):
                return length
            decode_into(data, out, self._reading.colour)
        except (DecodeError, OSError) as error:
            return Damage(place.shard, place.key, str(error))
        return 0

    def _mask_damaged(
        self, places: Sequence["_Place | Damage"], lengths: Sequence[int | Damage], images: np.ndarray
    ) -> tuple[LabelRows, tuple[Damage, ...]]:
        """The labels, and what is damaged: such a row is black without labels, so no other sample moves its place."""
        labels = np.empty((len(places), COLUMNS), np.float32)
        damage: list[Damage] = []
        for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
            if isinstance(place, _Place) and not isinstance(length, Damage):
                labels[row] = place.labels
                continue
            assert isinstance(length, Damage)
            images[row], labels[row] = 0, np.nan
            damage.append(length)
        return labels, tuple(damage)

    def _seal(
        self,
        block: torch.Tensor | Slot,
        number: int,
        places: Sequence["_Place | Damage"],
        lengths: Sequence[int | Damage],
        damage: tuple[Damage, ...],
    ) -> BatchBlock:
        """The batch as it travels to the trainer."""
        encoded = tuple(
            (place.shard, 0 if isinstance(length, Damage) else length)
            for place, length in zip(places, lengths, strict=True)
        )
        seen = self._plan.first + (number + 1) * self._plan.batch
        return BatchBlock(
            block,
            tuple(place.key for place in places),
            height=self._reading.size,
            width=self._reading.size,
            first=self._plan.part(number)[0],
            samples_seen=seen if self._plan.length is None else min(seen, self._plan.length),
            damage=damage,
            encoded=encoded if any(length for _, length in encoded) else (),
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a sample lies, and its labels. Holding ``opened`` keeps the descriptor open until it is read."""

    shard: str
    key: str
    opened: OpenTable
    at: int
    size: int
    labels: np.ndarray
