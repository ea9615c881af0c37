"""Files that are either whole or absent."""

import errno
import fcntl
import functools
import glob
import hashlib
import itertools
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from hpe.core.console import say
from hpe.core.errors import DISK_FULL, UserError, unwritable, way_out

_POLL_SECONDS: Final = 0.05
_TAKEN: Final = frozenset((errno.EWOULDBLOCK, errno.EAGAIN))
NO_LOCKS: Final = frozenset((errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK))
"""What ``flock`` answers on Lustre that is mounted without it, on NFS without its lock service, on some FUSE mounts."""


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


def short_name(name: str, most: int = 255) -> str:
    """A file's name in at most so many bytes: a longer one is cut, and ends in a hash of all of it.

    The same name always gives the same, and two names do not share one.

    Args:
        name: without folders.
        most: bytes of UTF-8; most file systems allow 255.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= most:
        return name
    end = f"-{hashlib.blake2b(encoded, digest_size=6).hexdigest()}"
    return encoded[: most - len(end)].decode("utf-8", "ignore") + end


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
        raise UserError(
            f"{told}: cannot be made ({error.strerror}); {way_out(error) or 'give another folder'}"
        ) from error


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


def read_soon(file: int, start: int, size: int) -> None:
    """Tell the kernel that a part of an open file will be read. macOS has no such call, and reads it when asked."""
    if sys.platform == "linux":
        os.posix_fadvise(file, start, size, os.POSIX_FADV_WILLNEED)


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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{short_name(path.name, 200)}-"):
            pass
    except OSError as error:
        raise unwritable(told, error) from error


@contextmanager
def locked(path: Path, taken: str | None, waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hold a lock file, which no other process holds; the kernel releases it when the process ends.

    Where the file system has no locks, a lock on this machine's own disk stands in: it still keeps out this user's
    other processes here, but none on another machine, and a warning says so. A lock made of a file's mere existence
    would reach the others, but outlives a killed process, and the same command must go on at once after a kill.

    Args:
        path: the file, made where it is missing.
        taken: the message when another process holds it; None: wait until it is free. Who waits does so for a process
            of the same machine, so the stand-in serves as well, without a warning.
        waiting: called about twenty times a second with the seconds waited so far; it may raise.

    Raises:
        OSError: the file cannot be made.
        UserError: another process holds it, or the file system fails to say.
    """
    with path.open("a") as lock:
        if _flock(lock.fileno(), path, taken, waiting):
            yield
            return
        if taken is not None:
            _warn_of_no_locks(path.parent)
        state = os.fstat(lock.fileno())  # one file has one number, whatever path leads to it
        name = f"hpe-{os.getuid()}-{state.st_dev:x}-{state.st_ino:x}.lock"
        local = Path(tempfile.gettempdir()) / name
        # Others can write to the temporary folder: no link of theirs is followed, and nothing is overwritten.
        descriptor = os.open(local, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _flock(descriptor, local, taken, waiting)
            yield
        finally:
            os.close(descriptor)


def _flock(descriptor: int, path: Path, taken: str | None, waiting: Callable[[float], None] | None) -> bool:
    """Lock an open file; False where its file system has no locks.

    Raises:
        UserError: another process holds it, or the file system fails to say.
    """
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            if error.errno not in _TAKEN:
                raise UserError(
                    f"{path}: cannot be locked ({error.strerror}); the file system has a fault: try again, or use a "
                    "folder on another disk"
                ) from error
            if taken is not None:
                raise UserError(taken) from error
        if waiting is not None:
            waiting(time.monotonic() - start)
        time.sleep(_POLL_SECONDS)


@functools.cache
def _warn_of_no_locks(folder: Path) -> None:
    say(
        f"hpe: WARNING: {folder}: this file system has no file locks, so a second command that writes here from "
        "another machine goes unnoticed and would damage the results; start only one at a time, or use a folder on "
        "another disk"
    )


Place = Callable[[Path], AbstractContextManager[Path]]
""":func:`aside` or :func:`aside_unsynced`: what leads a file to its name."""


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed on an error.

    Whole after a power cut, too, or after the crash of a node on a network file system: see :func:`sync`.
    """
    with aside_unsynced(path) as part:
        yield part
        sync(part)
    sync(path.parent)


@contextmanager
def aside_unsynced(path: Path) -> Iterator[Path]:
    """As :func:`aside`, but whole only while the machine has power: for the many small files of one result."""
    # Containers on several nodes often have the same process numbers.
    part = path.with_name(f"{_part_name(path)}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        # A write to a full disk names no file, a copy its source, and all others the temporary one: none of them is
        # what the user knows.
        written = error.filename2 or error.filename
        if written == str(part) or (written is None and error.errno in DISK_FULL):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        part.unlink(missing_ok=True)


def _part_name(path: Path) -> str:
    # Its own additions must not make a name too long that is not.
    return f".{short_name(path.name, 200)}"


def leftovers(path: Path) -> Iterator[Path]:
    """The temporary files that :func:`aside` of a killed process left beside ``path``."""
    return path.parent.glob(f"{glob.escape(_part_name(path))}.*.part")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk.

    A rename may reach the disk before the content of what it renames. Without this a power cut could leave a file of
    the right name that is empty.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not sync folders
            raise
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
