"""The stages of the stream, which run in reader processes: each fills in one thing of a whole batch.

::

    positions   which samples come next: from (seed, position); readers take turns
    places      where they lie, and their labels: from the index
    data        their bytes; all are asked for before the first is read
    pixels      decoded, straight into the batch's block of memory
    batch       what could not be read is masked; labels go into the block

A stage is a function of a whole batch, so that a sample costs no more Python than one step of a loop.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from hpe.core.errors import UserError
from hpe.core.files import read_soon
from hpe.data.decode import Colour, decode_rows
from hpe.data.gpu_decode import hand_on
from hpe.data.images import Encoded
from hpe.data.shard_reader import is_image_of
from hpe.data.shards import BLOCK
from hpe.stream.batch_block import COLUMNS, BatchBlock, Damage, Slot, layout, write_labels
from hpe.stream.open_files import Unreadable
from hpe.stream.open_tables import OpenTable, OpenTables
from hpe.stream.order import Order, Plan
from hpe.stream.shard_sets import Shard
from hpe.stream.shard_table import WHOLE_SHARD, LabelSource, ShardTable
from hpe.stream.shared_memory import SharedMemory

_ELSEWHERE: Final = (
    "not at its place in the tar: the tar or its index was changed; see `hpe verify`, or run `hpe index`"
)
_ROWS_OF_MESSAGE: Final = 256
"""Samples that travel to the trainer together: a message costs it 500 to 1,000 µs, and each batch in it 40."""


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
        stage: ``node``: local shards are copied to this node first, as those of a network file system should be.
    """

    size: int
    colour: Colour = "rgb"
    labels: LabelSource = field(default_factory=LabelSource)
    decoder: Literal["cpu", "gpu"] = "cpu"
    damaged: Literal["skip", "fail"] = "skip"
    workers: int = 0
    prefetch: int = 2
    stage: Literal["none", "node"] = "none"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of a worker that the main process raises as its own."""

    message: str


@dataclass(slots=True, repr=False)
class Draft:
    """A batch in the making: this rank's part of a global batch, and what each stage fills in.

    A stage between two others may change all of it, except how many samples there are. Sample ``at`` has position
    ``start + at`` in the global sequence: with a seed, the one source of chance that a resumed run repeats.

    Attributes:
        number: *positions*: of the global batch.
        start, stop: this rank's positions.
        shards, rows: *places*: dataset and shard of each sample, and its row in the shard.
        keys: of each sample.
        places: offset and size of the encoded picture in its tar.
        labels: a row of :data:`hpe.stream.batch_block.LABELS` and the emotion's distribution; NaN: no label.
        data: *data*: the bytes of the encoded pictures; empty for what is damaged.
        images: *pixels*: decoded; with decoder ``gpu`` the bytes of a JPEG where ``encoded`` is not 0.
        encoded: by sample: how many bytes of a JPEG lie in the place of its pixels.
        block, memory: where the batch lies, as the trainer finds it and as bytes here.
        in_block: the pixels there, which ``images`` is unless a stage has put another array in its place.
        damage: by sample: what could not be read, whichever stage has found it. Later stages pass over it.
    """

    number: int
    start: int
    stop: int
    shards: list[tuple[int, int]] = field(init=False)
    rows: list[int] = field(init=False)
    keys: list[str] = field(init=False)
    places: Int64[np.ndarray, "rows 2"] = field(init=False)
    labels: Float32[np.ndarray, "rows columns"] = field(init=False)
    data: list[Encoded] = field(init=False)
    images: UInt8[np.ndarray, "rows size size 3"] = field(init=False)
    encoded: list[int] = field(init=False)
    block: UInt8[Tensor, " bytes"] | Slot = field(init=False)
    memory: UInt8[np.ndarray, " bytes"] = field(init=False)
    in_block: UInt8[np.ndarray, "rows size size 3"] = field(init=False)
    damage: dict[int, Damage] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"Draft of batch {self.number}: positions {self.start:,} to {self.stop - 1:,}"


Stage = Callable[[Draft], Draft]
"""What may be put between two stages."""


class BatchReader:
    """The stages, for one rank of one plan.

    Attributes:
        together: batches that travel in one message.
        memory: shared with the trainer, in its readers.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[Shard]],
        order: Order,
        plan: Plan,
        reading: Reading,
        tables: OpenTables,
        together: int = 1,
    ) -> None:
        self._sets, self._order, self._plan, self._reading, self._tables = sets, order, plan, reading, tables
        self.together = together
        self.memory: SharedMemory | None = None

    @property
    def stages(self) -> dict[str, Callable[..., Any]]:
        """All stages by name, in their order."""
        return {stage.__name__: stage for stage in (self.positions, self.places, self.data, self.pixels, self.batch)}

    def read(self, number: int) -> BatchBlock:
        """One batch: all stages after the first.

        Raises:
            UserError: as of :meth:`batch`.
        """
        return self.batch(self.pixels(self.data(self.places(Draft(number, *self._plan.part(number))))))

    def positions(self) -> Iterator[Draft]:
        """This reader's batches. The trainer asks its readers in turn, so together they keep the global order."""
        worker = torch.utils.data.get_worker_info()
        first, readers = (worker.id, worker.num_workers) if worker else (0, 1)
        for message in itertools.count(first, readers):
            for number in range(message * self.together, (message + 1) * self.together):
                draft = Draft(number, *self._plan.part(number))
                if not len(draft):
                    return
                yield draft

    def messages(self, batches: Iterator[BatchBlock]) -> "Iterator[list[BatchBlock | Refusal]]":
        """What travels to the trainer at once: ``together`` batches, or those before an error and then the error."""
        message: list[BatchBlock | Refusal] = []
        try:
            for batch in batches:
                message.append(batch)
                if len(message) == self.together:
                    yield message
                    message = []
        except UserError as error:  # torch would hand on an exception as a traceback of the reader
            message.append(Refusal(str(error)))
        if message:
            yield message

    def places(self, draft: Draft) -> Draft:
        """Where the samples lie, and their labels; what has no place is damaged. No tar is opened for it."""
        self._tables.leave_windows(self._order.windows(draft.start))
        picks = self._order.at(draft.start, draft.stop).tolist()
        draft.shards = [(dataset, shard) for dataset, shard, _ in picks]
        draft.rows = [row for _, _, row in picks]
        draft.keys, draft.places = [], np.zeros((len(draft), 2), np.int64)
        draft.labels = np.full((len(draft), COLUMNS), np.nan, np.float32)
        tables = {shard: self._tables.table(*shard) for shard in set(draft.shards)}
        lengths = {shard: 0 if isinstance(table, Unreadable) else len(table) for shard, table in tables.items()}
        for at, (shard, row) in enumerate(zip(draft.shards, draft.rows, strict=True)):
            table = tables[shard]
            if isinstance(table, Unreadable) or row >= lengths[shard]:
                draft.keys.append(f"row-{row}")
                self._lose(draft, at, table.reason if isinstance(table, Unreadable) else _end(table))
                continue
            draft.keys.append(table.key(row))
            draft.places[at], draft.labels[at] = table.places[row], table.labels[row]
            if row in table.damage:
                self._lose(draft, at, table.damage[row])
        return draft

    def data(self, draft: Draft) -> Draft:
        """The encoded pictures.

        Samples of a batch lie at random places of many files. The kernel is asked for all of them first: without that,
        each read would wait for the disk before the next one is asked for.
        """
        draft.data = list[Encoded](itertools.repeat(b"", len(draft)))
        places = draft.places.tolist()
        members: dict[tuple[int, int], list[int]] = {}
        for at, shard in enumerate(draft.shards):
            if at not in draft.damage:
                members.setdefault(shard, []).append(at)
        # Shard by shard, and each file opened again for the second time, so that few need be open at once.
        for shard, here in members.items():
            if not isinstance(opened := self._tables.open(*shard), Unreadable):
                for at in here:
                    start, size = places[at]
                    read_soon(opened.file, start, size)
        for shard, here in members.items():
            opened = self._tables.open(*shard)
            if isinstance(opened, Unreadable):
                self._lose_all(draft, here, opened.reason)
            # Once for each shard of a batch, not for each sample. Without it the pixels of a file that was written over
            # would go with the labels of the old one.
            elif self._tables.overwritten(*shard):
                self._lose_all(draft, here, "the shard was written over while in use")
            else:
                self._read(draft, here, opened, places)
        return draft

    def _read(self, draft: Draft, here: Sequence[int], opened: OpenTable, places: Sequence[Sequence[int]]) -> None:
        """The pictures of some samples, all of one shard."""
        file, rows = opened.file, len(opened.table)
        for at in here:
            if draft.rows[at] >= rows:  # the file was truncated since its index was made
                self._lose(draft, at, _end(opened.table))
                continue
            start, size = places[at]
            try:
                member = os.pread(file, BLOCK + size, start - BLOCK)
            except OSError as error:
                self._lose(draft, at, str(error))
                continue
            # Decoding finds no fault with the picture of another sample.
            if is_image_of(member[:BLOCK], draft.keys[at], size):
                draft.data[at] = memoryview(member)[BLOCK:]  # nothing is copied
            else:
                self._lose(draft, at, _ELSEWHERE)

    def pixels(self, draft: Draft) -> Draft:
        """Decoded into a block of memory; with decoder ``gpu`` a plain JPEG's bytes, for the device to decode."""
        self._allocate(draft)
        draft.encoded = [0] * len(draft)
        rows = [at for at in range(len(draft)) if at not in draft.damage]
        if self._reading.decoder == "gpu":
            for at in rows:
                draft.encoded[at] = hand_on(draft.data[at], draft.images[at])
            rows = [at for at in rows if not draft.encoded[at]]
        for at, why in decode_rows(draft.data, rows, draft.images, self._reading.colour).items():
            self._lose(draft, at, why)
        draft.data = []
        return draft

    def batch(self, draft: Draft) -> BatchBlock:
        """The batch as it travels to the trainer. A damaged row is black without labels: no other moves its place.

        Raises:
            UserError: a sample is damaged, and ``Reading.damaged`` is ``fail``.
        """
        plan, size = self._plan, self._reading.size
        lost = tuple(sorted(draft.damage))
        damage = tuple(draft.damage[at] for at in lost)
        if damage and self._reading.damaged == "fail":
            raise UserError(f"{damage[0]}; repair it or pack again, or read with damaged: skip")
        for at in draft.damage:
            draft.images[at], draft.labels[at], draft.encoded[at] = 0, np.nan, 0
        if draft.images is not draft.in_block:  # a stage has put other pixels in their place
            draft.memory[: draft.images.size] = draft.images.reshape(-1)
        write_labels(draft.memory, draft.labels, size, size)
        names = (self._sets[dataset][shard].name for dataset, shard in draft.shards)
        seen = plan.first + (draft.number + 1) * plan.batch
        return BatchBlock(
            draft.block,
            tuple(draft.keys),
            height=size,
            width=size,
            first=draft.start,
            samples_seen=seen if plan.length is None else min(seen, plan.length),
            damage=damage,
            lost=lost,
            encoded=tuple(zip(names, draft.encoded, strict=True)) if any(draft.encoded) else (),
        )

    def _allocate(self, draft: Draft) -> None:
        """A slot of the shared memory, or fresh memory where the trainer holds all slots.

        A reader that waited for a slot would stop a consumer that collects batches, such as ``list(loader)``, for ever.
        """
        rows, size = len(draft), self._reading.size
        fields, total = layout(rows, size, size)
        worker = torch.utils.data.get_worker_info()
        if worker and self.memory and (slot := self.memory.take(worker.id)) is not None:
            draft.block = Slot(self.memory.number, slot, total)
            draft.memory = self.memory.bytes_of(slot, total)
        else:
            draft.block = torch.empty(total, dtype=torch.uint8)
            draft.memory = draft.block.numpy()
        draft.images = draft.in_block = draft.memory[: fields["images"].stop].reshape(rows, size, size, 3)

    def _lose_all(self, draft: Draft, these: Sequence[int], why: str) -> None:
        for at in these:
            self._lose(draft, at, why)

    def _lose(self, draft: Draft, at: int, why: str) -> None:
        dataset, shard = draft.shards[at]
        draft.damage[at] = Damage(self._sets[dataset][shard].name, draft.keys[at], why)


def together(plan: Plan, reading: Reading, window: int) -> int:
    """How many batches travel in one message: of small ones several.

    No reader is left without work, and what all have ready is no more than a window of samples: the shards of the next
    window may not be here yet.
    """
    if not reading.workers:
        return 1
    most = min(_ROWS_OF_MESSAGE // -(-plan.batch // plan.ranks), window // plan.batch // in_flight(reading))
    return max(1, most if plan.batches is None else min(most, plan.batches // reading.workers))


def in_flight(reading: Reading) -> int:
    """How many messages the readers of a rank have ready or in the making, with the one that the trainer is at."""
    return reading.workers * (reading.prefetch + 1)


def _end(table: ShardTable) -> str:
    """Why a shard has no more rows."""
    return table.damage.get(WHOLE_SHARD) or f"the shard has {len(table)} samples, its manifest lists more"
