"""Memory that reader processes fill and the trainer reads, used again and again.

A fresh shared-memory file for each batch costs a page fault for every 4 KiB on both sides and a descriptor
sent through a socket: 5 to 10 % of decoding. This memory is mapped once, before the workers are forked, and a
message only names a slot.

State: a byte for each slot, 1 from :meth:`SharedMemory.take` until the last tensor that views the slot is gone.
Owner: a slot belongs to one worker, which alone sets its byte, and the trainer alone clears it. So neither needs a
lock: a reader that sees a 1 too long takes another slot, or fresh memory.
"""

import itertools
import mmap
import weakref
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

_numbers = itertools.count()
_MEMORIES: Final[weakref.WeakValueDictionary[int, "SharedMemory"]] = weakref.WeakValueDictionary()


class SharedMemory:
    """Slots of shared memory, some for each worker."""

    def __init__(self, workers: int, slots_per_worker: int, slot_bytes: int) -> None:
        self.number = next(_numbers)
        self.slots_per_worker = slots_per_worker
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        slots = workers * slots_per_worker
        self._memory = np.frombuffer(mmap.mmap(-1, max(1, slots * self._slot_bytes)), np.uint8)
        self._taken = np.frombuffer(mmap.mmap(-1, max(1, slots)), np.uint8)
        _MEMORIES[self.number] = self

    def take(self, worker: int) -> int | None:
        """In a worker: one of its free slots, or None when the trainer still holds them all."""
        first = worker * self.slots_per_worker
        free = np.flatnonzero(self._taken[first : first + self.slots_per_worker] == 0)
        if not len(free):
            return None
        slot = first + int(free[0])
        self._taken[slot] = 1
        return slot

    def bytes_of(self, slot: int, size: int) -> UInt8[np.ndarray, " size"]:
        """The first ``size`` bytes of a slot."""
        start = slot * self._slot_bytes
        return self._memory[start : start + size]

    def lease(self, slot: int, size: int) -> Tensor:
        """In the trainer: a slot as a tensor; when it and all its views have died, the slot is free."""
        # A tensor keeps the array that it was made from, so the array is freed with the last view.
        array = np.frombuffer(self.bytes_of(slot, size).data, np.uint8)
        tensor = torch.from_numpy(array)
        weakref.finalize(array, self._free, slot).atexit = False
        return tensor

    def _free(self, slot: int) -> None:
        self._taken[slot] = 0


def memory_of(number: int) -> SharedMemory:
    """The memory with this number, in the process that made it or was forked after."""
    return _MEMORIES[number]
