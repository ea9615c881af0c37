"""Messages on stderr, and in the log file of a run while one is open."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

_logs: list[TextIO] = []


def say(text: str) -> None:
    """Print a line to stderr, and append it with the time to the log file that is open."""
    print(text, file=sys.stderr, flush=True)
    _write(text)


def count_of(number: int, what: str) -> str:
    """A number and what it counts: ``1 shard``, ``1,200 shards``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what :func:`say` prints to a file, and the error that ends the block.

    The terminal of a job is often gone when somebody asks why it ended.
    """
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        _logs.append(file)
        try:
            yield
        except BaseException as error:
            _write(f"{type(error).__name__}: {error}")
            raise
        finally:
            _logs.remove(file)


def _write(text: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    for file in _logs:
        with suppress(OSError):  # a full disk must not end a training that could go on until its next checkpoint
            file.write(f"{now} {text}\n")
            file.flush()
