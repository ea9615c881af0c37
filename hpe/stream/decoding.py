"""Batches whose JPEGs this rank's device decodes, each while the trainer is busy with the batch before it."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import torch

from hpe.core.errors import UserError
from hpe.data.gpu_decode import decode_rows
from hpe.stream.batch_block import BatchBlock, Damage, Loaded
from hpe.stream.worker import Reading

_AHEAD: Final = 2
"""The batch that is asked for, and the one after it."""
_MASKS: Final = ("emotion_mask", "direction_mask", "angles_mask", "affect_mask")


class DeviceDecoder:
    """Decodes batches in their order, one ahead of the trainer.

    In a thread, because nvJPEG returns to its caller only when a batch is done, and what it refuses the processor
    decodes; and on a CUDA stream of that thread, because on the trainer's stream a batch would wait for the step
    that it is to overlap.

    Args:
        read: the next batch of the readers; what it raises is raised in that batch's turn.
        reading: how samples are read.
        device: where to decode, and where the pictures lie.
    """

    def __init__(self, read: Callable[[], BatchBlock], reading: Reading, device: torch.device) -> None:
        self._read, self._reading, self._device = read, reading, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "decode", initializer=self._begin)
        self._coming: deque[Future[tuple[Loaded, torch.cuda.Event | None]]] = deque()

    def next(self) -> Loaded:
        """The next batch; the one after it is on its way.

        Raises:
            UserError: a picture cannot be decoded, and ``reading.damaged`` is ``fail``.
        """
        while len(self._coming) < _AHEAD:
            self._coming.append(self._submitted())
        loaded, decoded = self._coming.popleft().result()
        if decoded is not None:
            trainer = torch.cuda.current_stream(self._device)
            trainer.wait_event(decoded)
            # The memory belongs to the decoding's stream, which must not use it again before the step is over.
            loaded.batch.images.record_stream(trainer)
        return loaded

    def close(self) -> None:
        """End the thread, when it is done with the batch that it decodes."""
        self._coming.clear()
        self._thread.shutdown(cancel_futures=True)

    def _submitted(self) -> "Future[tuple[Loaded, torch.cuda.Event | None]]":
        try:
            return self._thread.submit(self._decoded, self._read())
        except Exception as error:  # the end of the stream, too: the batches before it come first
            failed: Future[tuple[Loaded, torch.cuda.Event | None]] = Future()
            failed.set_exception(error)
            return failed

    def _begin(self) -> None:
        torch.set_num_threads(1)
        if self._stream is not None:
            torch.cuda.set_device(self._device)  # of a new thread it is GPU 0, whatever rank this is
            torch.cuda.set_stream(self._stream)

    def _decoded(self, block: BatchBlock) -> tuple[Loaded, torch.cuda.Event | None]:
        """A batch, and the event after which its pictures are there; what cannot be decoded is damage."""
        loaded = block.unpack()
        if not block.encoded:
            return loaded, None
        rows, lengths = loaded.batch.images.permute(0, 2, 3, 1), [length for _, length in block.encoded]
        images, refused = decode_rows(rows, lengths, self._reading.colour, self._device)
        damage = [Damage(block.encoded[row][0], block.keys[row], why) for row, why in refused.items()]
        if damage and self._reading.damaged == "fail":
            raise UserError(f"{damage[0]}; repair it or pack again, or read with damaged: skip")
        for row in refused:
            for name in _MASKS:
                getattr(loaded.batch, name)[row] = False
        found = replace(
            loaded,
            batch=replace(loaded.batch, images=images),
            damage=(*loaded.damage, *damage),
            lost=(*loaded.lost, *refused),
        )
        if self._stream is None:
            return found, None
        there = torch.cuda.Event()
        there.record(self._stream)
        return found, there
