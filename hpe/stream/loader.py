"""The trainer's side of the stream: worker processes, their memory, and batches in the order of the plan."""

import itertools
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from hpe.core.distributed import cuda, device, from_parent
from hpe.core.errors import UserError
from hpe.stream.batch_block import BatchBlock, Damage, Loaded, layout
from hpe.stream.decoding import DeviceDecoder
from hpe.stream.order import Plan
from hpe.stream.shared_memory import SharedMemory
from hpe.stream.worker import Batches, Reading, Refusal

_NAMED_DAMAGE: Final = 1000
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Loader:
    """An iterator of batches (once through, or endless), with what happened while reading.

    Attributes:
        samples: samples of all datasets together: an epoch.
        waited_seconds: time that the consumer has waited for batches, to be read and to be decoded.
        named_damage: what could not be read so far: the first thousand samples.
        damaged_samples: how many samples could not be read so far.
    """

    def __init__(self, batches: Batches, plan: Plan, reading: Reading, samples: int) -> None:
        self._plan, self._reading, self._dataset, self.samples = plan, reading, batches, samples
        self.waited_seconds = 0.0
        self.named_damage: list[Damage] = []
        self.damaged_samples = 0
        self._reported = 0, 0
        numbers = range(plan.batches) if plan.batches is not None else _Endless()
        self._batches = len(numbers) if isinstance(numbers, range) else None
        self._loader = _Readers(
            batches,
            batch_size=None,
            sampler=numbers,  # pyright: ignore[reportArgumentType] (any iterable of indices)
            num_workers=reading.workers,
            prefetch_factor=reading.prefetch if reading.workers else None,
            pin_memory=cuda(),
            worker_init_fn=_start_worker,
            # Forked readers inherit the shared memory (an anonymous map, which no other process could open), the tables
            # and the open shards, and need not import torch again. They never touch the device, which a forked process
            # could not use.
            multiprocessing_context="fork" if reading.workers else None,
            collate_fn=_unchanged,  # pyright: ignore[reportArgumentType] (one batch, not a list)
        )
        self._iterator: Iterator[Any] | None = None
        self._decoder: DeviceDecoder | None = None

    def __len__(self) -> int:
        if self._batches is None:
            raise TypeError("an endless stream has no length")
        return self._batches

    def __iter__(self) -> "Loader":
        """Start (again) from the first batch of the plan."""
        self.close()
        self._iterator = self._start()
        return self

    def _start(self) -> Iterator[Any]:
        workers, size = self._reading.workers, self._reading.size
        if workers:
            rows = -(-self._plan.batch // self._plan.ranks)
            # What waits in the queue, and two that the trainer may hold.
            self._dataset.memory = SharedMemory(workers, self._reading.prefetch + 2, layout(rows, size, size)[1])
        if self._loader.pin_memory:
            # Memory is page-locked for the device that is current in the thread that asks: DataLoader's takes over
            # what is current here. Before Accelerate starts that is GPU 0 for every rank.
            torch.cuda.set_device(device())
        if self._reading.decoder == "gpu":
            self._decoder = DeviceDecoder(self._read, self._reading, device())
        with warnings.catch_warnings(), _signals_wait():  # Python 3.12 warns of any fork beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            return iter(self._loader)

    def __next__(self) -> Loaded:
        if self._iterator is None:
            self._iterator = self._start()
        start = time.perf_counter()
        try:
            loaded = self._decoder.next() if self._decoder else self._read().unpack()
        except UserError:
            self.close()
            raise
        self.waited_seconds += time.perf_counter() - start
        self.damaged_samples += len(loaded.damage)
        self.named_damage += loaded.damage[: _NAMED_DAMAGE - len(self.named_damage)]
        return loaded

    def _read(self) -> BatchBlock:
        """The readers' next batch.

        Raises:
            UserError: a reader has refused it.
        """
        assert self._iterator is not None
        block = next(self._iterator)
        if isinstance(block, Refusal):
            raise UserError(block.message)
        return block

    def new_damage(self) -> tuple[list[Damage], int]:
        """What could not be read since this was last asked: as far as it is named, and how many samples."""
        named, count = self._reported
        self._reported = len(self.named_damage), self.damaged_samples
        return self.named_damage[named:], self.damaged_samples - count

    def close(self) -> None:
        """End the workers."""
        if self._decoder is not None:
            self._decoder.close()
        iterator: Any = self._iterator
        self._iterator = self._decoder = None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold signals back while workers are forked: one that comes before a worker ignores it would end that worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Readers(DataLoader):
    def check_worker_number_rationality(self) -> None:
        """Do without torch's warning of more readers than cores.

        ``data.workers`` is the user's own number, and right where readers wait for a network or a disk. The log
        of a training shows how long it has waited for its readers.
        """


class _Endless:
    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __len__(self) -> int:
        return 1 << 62


def _unchanged(block: BatchBlock) -> BatchBlock:
    return block


def _start_worker(_: int) -> None:
    """Signals are the trainer's to answer; a worker ends when its parent does (torch's own watchdog).

    A signal often reaches the whole process group: a worker that died of it would take the trainer's last
    batches, and its chance to save, with it.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)
    from_parent(signal.SIGKILL)
