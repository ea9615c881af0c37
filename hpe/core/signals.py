"""Stop signals, taken as a request to stop at the next safe point."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Signals:
    """SIGTERM, SIGUSR1 (Slurm's pre-emption) and SIGINT as a request to stop, which is checked between two steps."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def received(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.number is not None

    def __call__(self, number: int, _frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


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
            signal.signal(number, handler)
