"""The trainer's side of the stream: worker processes, their memory, and batches in the order of the plan."""

import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from hpe.core.console import say
from hpe.core.devices import cuda, device
from hpe.core.errors import UserError
from hpe.core.ranks import from_parent
from hpe.stream.ahead import Ahead
from hpe.stream.batch_block import BatchBlock, Damage, Loaded, layout
from hpe.stream.decoding import DeviceDecoder
from hpe.stream.order import Plan
from hpe.stream.shared_memory import SharedMemory
from hpe.stream.worker import BatchReader, Reading, Refusal, Stage

if TYPE_CHECKING:
    from webdataset.pipeline import DataPipeline

_NAMED_DAMAGE: Final = 1000
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Loader:
    """An iterator of batches (once through, or endless), with what happened while reading.

    Attributes:
        samples: samples of all datasets together: an epoch.
        stages: what the readers do, by name, in this order; see :mod:`hpe.stream.worker` and :meth:`insert`.
        waited_seconds: time that the consumer has waited for batches, to be read and to be decoded.
        named_damage: what could not be read so far: the first thousand samples.
        damaged_samples: how many samples could not be read so far.
    """

    def __init__(self, reader: BatchReader, plan: Plan, reading: Reading, samples: int, ahead: Ahead) -> None:
        self._reader, self._plan, self._reading, self.samples, self._ahead = reader, plan, reading, samples, ahead
        self.stages = reader.stages
        self.waited_seconds = 0.0
        self.named_damage: list[Damage] = []
        self.damaged_samples = 0
        self._reported = 0, 0
        self._workers = _readers(reading.workers)
        self._iterator: Iterator[Any] | None = None
        self._ended = False
        self._message: deque[BatchBlock | Refusal] = deque()
        self._decoder: DeviceDecoder | None = None

    def insert(self, stage: Stage, *, after: str) -> Self:
        """Put a stage behind another one: a function of a whole batch (:class:`hpe.stream.worker.Draft`).

        It runs in the readers, and is named as its function is. It must be a function of the draft alone, or a resumed
        run will differ; ``draft.start + row`` is the place of a row in the global sequence, to seed what is random.

        Raises:
            UserError: there is no such stage, it is the last one, or the new one's name is taken.
        """
        names = list(self.stages)
        if after not in names[:-1]:
            raise UserError(f"insert: after {after!r}: expected one of {', '.join(names[:-1])}")
        if stage.__name__ in names:
            raise UserError(f"insert: a stage {stage.__name__!r} is there already; give the function another name")
        at = names.index(after) + 1
        both = [*self.stages.items()]
        self.stages = dict([*both[:at], (stage.__name__, stage), *both[at:]])
        return self

    def pipeline(self, until: str | None = None) -> "DataPipeline":
        """The stages as a WebDataset pipeline, all or up to one: its items are drafts; of all stages, batches.

        Raises:
            UserError: there is no such stage.
        """
        from webdataset import filters
        from webdataset.pipeline import DataPipeline

        names = list(self.stages)
        if until is not None and until not in names:
            raise UserError(f"pipeline: until {until!r}: expected one of {', '.join(names)}")
        first, *others = list(self.stages.values())[: len(names) if until is None else names.index(until) + 1]
        return DataPipeline(first, *map(filters.map, others))

    def __len__(self) -> int:
        if self._plan.batches is None:
            raise TypeError("an endless stream has no length")
        return self._plan.batches

    def __iter__(self) -> "Loader":
        """Start (again) from the first batch of the plan."""
        self.close()
        self._iterator = self._start()
        self._ended = False
        return self

    def _start(self) -> Iterator[Any]:
        import webdataset.compat as wds

        workers, size = self._workers, self._reading.size
        if workers:
            rows = -(-self._plan.batch // self._plan.ranks)
            # What waits in the queue, the message that the trainer is at, and one more batch that it may hold.
            slots = self._reader.together * (self._reading.prefetch + 1) + 1
            self._reader.memory = SharedMemory(workers, slots, layout(rows, size, size)[1])
        if cuda():
            # Memory is page-locked for the device that is current in the thread that asks: DataLoader's takes over
            # what is current here. Before Accelerate starts that is GPU 0 for every rank.
            torch.cuda.set_device(device())
        if self._reading.decoder == "gpu":
            self._decoder = DeviceDecoder(self._read, self._reading, device())
        with warnings.catch_warnings(), _signals_wait():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
            # `data.workers` is the user's own number, and right where readers wait for a network or a disk. The log of
            # a training shows how long it has waited for its readers.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = wds.WebLoader(
                self.pipeline().compose(self._reader.messages),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=self._reading.prefetch if workers else None,
                pin_memory=cuda(),
                worker_init_fn=_start_worker,
                # Forked readers inherit the shared memory (an anonymous map, which no other process could open), the
                # tables and the open shards, and need not import torch again. They never touch the device, which a
                # forked process could not use.
                multiprocessing_context="fork" if workers else None,
            )
            if _forks():
                self._ahead.start()
            # Not `iter`, which forks the readers at the first batch, when signals no longer wait.
            return loader.iterator1()

    def __next__(self) -> Loaded:
        if self._ended:  # as of every iterator: a first batch here would be taken for the next one
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._start()
        start = time.perf_counter()
        try:
            loaded = self._decoder.next() if self._decoder else self._read().unpack()
        except (UserError, StopIteration):
            self.close()
            raise
        self._ahead.reached(loaded.samples_seen)
        self.waited_seconds += time.perf_counter() - start
        self.damaged_samples += len(loaded.damage)
        self.named_damage += loaded.damage[: _NAMED_DAMAGE - len(self.named_damage)]
        return loaded

    def _read(self) -> BatchBlock:
        """The readers' next batch.

        Raises:
            UserError: a reader has refused it.
        """
        if not self._message:
            assert self._iterator is not None
            self._message.extend(next(self._iterator))
        block = self._message.popleft()
        if isinstance(block, Refusal):
            raise UserError(block.message)
        return block

    def new_damage(self) -> tuple[list[Damage], int]:
        """What could not be read since this was last asked: as far as it is named, and how many samples."""
        named, count = self._reported
        self._reported = len(self.named_damage), self.damaged_samples
        return self.named_damage[named:], self.damaged_samples - count

    def close(self) -> None:
        """End the workers, and the batches until ``iter`` starts them again."""
        self._ended = True
        if self._decoder is not None:
            self._decoder.close()
        self._ahead.close()
        iterator: Any = self._iterator
        self._iterator = self._decoder = None
        self._message.clear()
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forks() -> bool:
    """Whether processes can be forked: macOS ends a forked process that uses its frameworks, as its BLAS does."""
    return sys.platform == "linux"


@cache
def _readers(asked: int) -> int:
    """How many processes read: those that ``data.workers`` asks for; none where they cannot be forked."""
    if asked and not _forks():
        say("hpe: reads in this process, and not in the processes of data.workers: these need Linux")
        return 0
    return asked


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold signals back while workers are forked: one that comes before a worker ignores it would end that worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
