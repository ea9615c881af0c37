"""Files that are either whole or absent."""

import errno
import fcntl
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from hpe.errors import UserError


def rename_aside(folder: Path) -> Path:
    """Rename a folder to the first of ``NAME.1``, ``NAME.2`` … that is free; where it is now."""
    free = (p for n in itertools.count(1) if not (p := folder.with_name(f"{folder.name}.{n}")).exists())
    return folder.rename(next(free))


def resolved(path: Path) -> Path:
    """The absolute path without links, whether or not something is there; what ``Path.resolve`` is to be.

    Of links in a circle that raises RuntimeError up to Python 3.12 and says nothing from 3.13 on; of a name that is too
    long it says nothing from 3.13 on.

    Raises:
        OSError: links in a circle, or a name that is too long.
    """
    try:
        place = path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    try:
        place.stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
    return place


def make_folder(path: Path, told: str) -> None:
    """Make a folder that a user named, with those above it.

    Args:
        path: the folder.
        told: how the user named it, for the message: ``--out results``.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{told}: cannot be made ({error.strerror}); give another folder") from error


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened to read its bytes; a FIFO or device is refused, where ``open`` would wait for it.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(f"{path.name}: not a regular file")
    return os.fdopen(number, "rb")


def refuse_unwritable(path: Path, told: str) -> None:
    """See that a file can be written, before the work whose result it is to hold; makes its folder.

    Args:
        path: the file.
        told: how the user named it, for the message.

    Raises:
        UserError: it is a folder, or cannot be written.
    """
    make_folder(path.parent, told)
    try:
        if path.is_dir():
            raise UserError(f"{told}: {path} is a folder; expected a file's name")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-"):
            pass
    except OSError as error:
        raise UserError(f"{told}: cannot be written ({error.strerror}); give another place") from error


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, which no other process holds; the kernel lets it go with the process.

    Args:
        path: the file, made where it is missing.
        taken: the message when another process holds it.

    Raises:
        OSError: the file cannot be made.
        UserError: another process holds it.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(taken) from error
        yield


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed on an error."""
    # Containers on several nodes often have the same process numbers.
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
