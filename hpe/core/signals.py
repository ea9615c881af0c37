"""Stop signals: before a command catches them they end the process; then they ask it to stop at the next safe point."""

import atexit
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_GRACE_SECONDS: Final = 5.0
_KILLED: Final = 128
"""Exit code of a process that a signal ended, less the signal's number, as in shells."""


class Interrupted(Exception):  # noqa: N818 (no error: a signal asked for it)
    """A signal has ended a wait.

    Attributes:
        waiting: whether it came during the wait, not before.
    """

    def __init__(self, *, waiting: bool) -> None:
        super().__init__()
        self.waiting = waiting


class Signals:
    """SIGTERM, SIGUSR1 (of Slurm, before the time limit) and SIGINT as a request to stop, checked between steps."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._ends_wait_at = math.inf

    @property
    def received(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.number is not None

    def __call__(self, number: int, _frame: object) -> None:
        _answered[number] += 1
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if time.monotonic() >= self._ends_wait_at:
            raise Interrupted(waiting=True)

    @contextmanager
    def ending_wait(self, *, after_seconds: float) -> Iterator[None]:
        """While the block runs, a signal ends it, once it has run for some seconds.

        Raises:
            Interrupted: a signal has come; with 0 seconds also one that came before.
        """
        if self.received and not after_seconds:
            raise Interrupted(waiting=False)
        self._ends_wait_at = time.monotonic() + after_seconds
        try:
            yield
        finally:
            self._ends_wait_at = math.inf


@contextmanager
def signals() -> Iterator[Signals]:
    """Catch the stop signals inside the block; a second Ctrl-C stops at once."""
    caught = Signals()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before: dict[int, Callable[..., object] | int | None] = {n: signal.signal(n, caught) for n in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            # Who stops on request ends with its own exit code. A launcher may send a second signal meanwhile, because
            # another rank has ended first.
            signal.signal(number, _late if caught.received and handler is _end else handler)


def end_on_signals() -> None:
    """Outside of :func:`signals`, let SIGTERM and SIGUSR1 end this process with a message and exit code 128 + number.

    To be called first: a signal may come while modules load, which takes seconds. A handler in Python runs only when
    the main thread runs Python, but a rank may wait in C for other ranks, for minutes; so a thread, which the kernel's
    handler wakes through a pipe, ends the process where the main thread does not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in _ENDING:
        signal.signal(number, _end)
    atexit.register(_ignore_at_last)  # the first to be registered is the last to be called
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_end_in_time, args=(reader,), name="signals", daemon=True).start()


_ENDING: Final = (signal.SIGTERM, signal.SIGUSR1)
_ended = threading.Event()
_answered: Counter[int] = Counter()
"""How often a handler of ours has run for each signal."""


def _end(number: int, _frame: object) -> None:
    _answered[number] += 1
    for one in _ENDING:
        signal.signal(one, _late)
    _tell(number)
    sys.exit(_KILLED + number)


def _late(_number: int, _frame: object) -> None:
    """A second signal: it must neither cut short the cleaning up nor change the exit code."""


def _ignore_at_last() -> None:
    """Python ends with the kernel's own handlers, which would end it with another exit code."""
    for number in _ENDING:
        if signal.getsignal(number) is _late:
            signal.signal(number, signal.SIG_IGN)


def _end_in_time(reader: int) -> None:
    before = _answered.copy()
    while numbers := os.read(reader, 1):
        number = numbers[0]
        if _ended.is_set() or signal.getsignal(number) is _end:
            time.sleep(_GRACE_SECONDS)
            # A signal that :func:`signals` has answered ends nothing, also where its block is over since: this thread
            # may come to read the pipe only then.
            stuck = _answered[number] == before[number] and signal.getsignal(number) is _end
            if _ended.is_set() or stuck:
                _tell(number)
                os._exit(_KILLED + number)
        before = _answered.copy()


def _tell(number: int) -> None:
    if not _ended.is_set() and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        # Not `print`: the signal may have come in the midst of one.
        os.write(2, f"hpe: stopped by {signal.Signals(number).name}; run the same command again\n".encode())
    _ended.set()


def _forget() -> None:
    """In a forked process: its signals are its own, and not its parent's."""
    signal.set_wakeup_fd(-1)
    for number in _ENDING:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)
