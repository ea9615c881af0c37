"""Step 1 of packing: every row of the raw dataset is read, checked and kept on disk until its shard is made."""

import hashlib
import itertools
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from hpe.core.errors import UserError
from hpe.core.labels import SPLITS
from hpe.core.process_pool import Stopped, Workers
from hpe.core.progress import progress
from hpe.core.signals import Signals
from hpe.pack.not_taken import TakenFiles
from hpe.pack.splits import Row
from hpe.sources.base import Raw, Reject, Source, Unread, read_labels

_READ_AT_ONCE: Final = 128
"""Rows per message to a worker: reading a small label file is so quick that a message per row would cost more."""


class Rows:
    """The rows of a raw dataset in order of reading: those that may become samples, and those refused.

    The rows themselves, with box, landmarks and votes, lie pickled in ``file``. Only what splitting and duplicate
    search need stays in memory, so that a dataset of millions fits.

    Attributes:
        rows: one for each row that may become a sample; all indices refer to this list.
        numbers: for each of these, its place among all rows that were read.
        refused: place, source and reason of each row that cannot become a sample.
        read: how many rows were read.
        has: how many rows have a box, and how many landmarks.
        boxes: how many rows with a box each picture has.
        kinds: how many rows the reader itself rejected, by :attr:`Reject.kind`.
        files: the picture files of the rows that may become samples.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = [0]
        self.rows: list[Row] = []
        self.numbers: list[int] = []
        self.refused: list[tuple[int, str, str]] = []
        self.read = 0
        self.has: Counter[str] = Counter()
        self.boxes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.files = TakenFiles()

    def add(self, number: int, raw: Raw) -> None:
        """Keep a row that may become a sample."""
        data = pickle.dumps((number, raw), pickle.HIGHEST_PROTOCOL)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        record = raw.record
        if isinstance(raw.image, Path):
            self.files.add(raw.image)
        self.has.update(name for name in ("box", "landmarks") if getattr(record, name) is not None)
        photo = record.source
        if isinstance(raw.image, bytes) and record.box is not None:
            photo = hashlib.blake2b(raw.image, digest_size=16).hexdigest()  # rows of one picture with a face each
        self.rows.append(Row(raw.key, record.subject, record.emotion, record.split, record.source, photo))
        if record.box is not None and photo is not None:
            self.boxes[photo] += 1
        self.numbers.append(number)

    def refuse(self, index: int, reason: str) -> None:
        """Refuse a row that was kept."""
        row = self.rows[index]
        self.refused.append((self.numbers[index], row.source or row.key, reason))

    def pickled(self, indices: Sequence[int]) -> tuple[bytes, ...]:
        """These rows, each a pickled pair of its number and its :class:`Raw`."""
        found = []
        for index in indices:
            self._file.seek(self._ends[index])
            found.append(self._file.read(self._ends[index + 1] - self._ends[index]))
        return tuple(found)


def read(source: Source, file: IO[bytes], workers: Workers, stop: Signals) -> Rows:
    """Every row of ``source``.

    Args:
        file: where to keep the rows; empty.
        workers: read the rows whose labels lie in files of their own.

    Raises:
        Stopped: a signal was caught.
        UserError: the raw dataset cannot be read to its end.
    """
    found, keys = Rows(file), set[str]()
    with progress("read", source.total, unit="rows") as bar:
        for number, row in enumerate(_rows(source, workers)):
            found.read += 1
            bar.advance()
            if stop.received:
                raise Stopped
            if isinstance(row, Reject):
                found.kinds[row.kind] += 1
                found.refused.append((number, row.source, row.reason))
                continue
            record = row.record
            problems = record.problems()
            if row.key in keys:
                problems.append(f"an earlier row has this key: {row.key}")
            if record.split is not None and record.split not in SPLITS:
                problems.append(f"split {record.split!r} is none of {', '.join(SPLITS)}")
            if problems:
                found.refused.append((number, record.source or row.key, "; ".join(problems)))
                continue
            keys.add(row.key)
            found.add(number, row)
    return found


def _rows(source: Source, workers: Workers) -> Iterator[Raw | Reject]:
    rows = source.rows()
    portions = iter(lambda: tuple(itertools.islice(rows, _READ_AT_ONCE)), ())
    try:
        first = next(portions, ())
        portions = itertools.chain((first,), portions)
        if any(isinstance(row, Unread) for row in first):
            portions = workers.run(read_rows, portions)
        for row in itertools.chain.from_iterable(portions):
            # A reader whose first portion has no Unread may still yield one later: it is read here.
            yield from read_labels((row,))
    except OSError as error:
        raise UserError(
            f"{source.name}: reading the raw dataset stopped: {error}; nothing is lost: remove the cause and "
            "run the same command again"
        ) from error
    except (UserError, Stopped):
        raise
    except Exception as error:
        raise UserError(
            f"{source.name}: reading the raw dataset stopped at a row that its reader does not understand: "
            f"{type(error).__name__}: {error}"
        ) from error


def read_rows(rows: Sequence[Raw | Reject | Unread]) -> tuple[Raw | Reject, ...]:
    """Rows with their labels read, in a worker process."""
    return tuple(read_labels(rows))
