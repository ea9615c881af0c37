"""Shards that are not read in place: fetched from a store, or copied from a network file system, once per node.

All readers of a node share a bounded folder. Who needs a file first fetches it (under a file lock, aside, then renamed)
while the others wait for that lock. Who has a file open holds a shared lock on it, and only what nobody has open makes
room for others. File names are digests, so no text of a server or a tar becomes a path.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from hpe.core.errors import UserError
from hpe.core.files import NO_LOCKS, aside, locked, open_regular
from hpe.core.notices import Notices, node_folder, session
from hpe.data.store import FetchError, StoreError, Waiting, below, fetch, is_remote, require_driver

_TEXT_LIMIT: Final = 1 << 28
_TAR_END: Final = bytes(512)
_FOLDER: Final = "spool"
"""Below :func:`node_folder`."""
_ROOM_SECONDS: Final = 20.0
"""For so long a reader waits until others close what they have open."""
_STALE_SECONDS: Final = 300.0
_UNUSED_SECONDS: Final = 30 * 86_400.0
_BETWEEN_SEARCHES: Final = 86_400.0
_OPENINGS: Final = 5
_FETCHES: Final = 16
"""Small files fetched at the same time: it is the answers that are waited for."""

T = TypeVar("T")


class NoRoomError(UserError):
    """Everything in the cache is in use, and one more file does not fit."""


def tables_folder() -> Path:
    """The node's folder of tables: those of shards without an index, and pose tables of a store.

    What no process has used for a month is removed.

    Raises:
        UserError: it cannot be made.
    """
    folder = node_folder() / "tables"
    folder.mkdir(exist_ok=True)
    searched = folder / "searched"
    if not searched.exists() or time.time() - searched.stat().st_mtime > _BETWEEN_SEARCHES:
        searched.touch()
        for path in folder.iterdir():
            if path.suffix != ".lock" and _unused(path):
                with lock_of_table(folder, path.name.lstrip(".")):
                    _remove_unused(path)
    return folder


def lock_of_table(folder: Path, name: str) -> AbstractContextManager[None]:
    """Hold the lock of a table while it is made, taken or removed; 256 files serve all tables."""
    return locked(folder / f"{name[:2]}.lock", None)


def _unused(path: Path) -> bool:
    """Whether a table, or everything in a folder of tables, was last used a month ago."""
    end = time.time() - _UNUSED_SECONDS
    with contextlib.suppress(FileNotFoundError):
        files = list(path.iterdir()) if path.is_dir() else [path]
        return all(max(state.st_atime, state.st_mtime) < end for state in (file.stat() for file in files))
    return False


def _remove_unused(path: Path) -> None:
    """Remove a table, unless somebody has taken it since it was looked at."""
    if _unused(path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RemoteCache:
    """The folder of fetched shards.

    Attributes:
        folder: node-local.
        limit_bytes: what it may hold.
        session: tells a job from later ones: a file without a known digest is fetched again by each job.
        notices: what the user reads while he waits; None: nothing, as nobody waits.
    """

    folder: Path
    limit_bytes: int
    session: str
    notices: Notices | None = field(default=None, compare=False)

    @classmethod
    def of_node(cls) -> "RemoteCache":
        """The cache below :func:`node_folder`, of ``$HPE_CACHE_LIMIT_GB``; by default half of what the disk has for it.

        Raises:
            UserError: it cannot be made, or the limit is no number.
        """
        folder = node_folder() / _FOLDER
        folder.mkdir(exist_ok=True)
        text = os.environ.get("HPE_CACHE_LIMIT_GB")
        try:
            limit = (shutil.disk_usage(folder).free + _held_bytes(folder)) // 2 if not text else int(float(text) * 1e9)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise UserError(f"HPE_CACHE_LIMIT_GB is {text!r}; expected gigabytes, such as 200")
        return cls(folder, limit, session(), Notices(folder, session()))

    def path_of(self, url: str, sha256: str | None) -> Path:
        """Where the copy of a file lies, or will lie."""
        version = sha256
        if version is None and not is_remote(url):
            state = os.stat(url)  # noqa: PTH116 (a path as the user named it)
            version = f"{state.st_size}-{state.st_mtime_ns}"
        digest = hashlib.sha256(f"{url}\0{version or self.session}".encode()).hexdigest()[:40]
        return self.folder / f"{digest}.tar"

    def local_copy(
        self, url: str, sha256: str | None = None, size: int | None = None, *, keep: Collection[Path] = ()
    ) -> Path:
        """A local copy of a file, fetched when there is none.

        It may make room for another one at any time: to read it, see :meth:`opened` and :meth:`held`.

        Args:
            url: or the path of a local file.
            sha256, size: what its manifest lists, if there is one.
            keep: other copies that must not make room for this one.

        Raises:
            FetchError: it is missing, or not what its manifest lists.
            StoreError: the store refuses, or does not answer.
            NoRoomError: the rest of the cache is in use.
        """
        path = self.path_of(url, sha256)
        if not used_now(path):
            start, lock = time.time(), path.with_suffix(".lock")

            def waiting(seconds: float) -> None:
                if self.notices:
                    self.notices.tell(_status_of(lock).get("waiting") or f"waiting for {url}", seconds)

            with locked(lock, None, waiting):
                if used_now(path):
                    return path
                _raise_failure_since(start, lock)
                self._fetch(url, sha256, size, path, keep)
        return path

    @contextmanager
    def opened(self, url: str, sha256: str | None = None, size: int | None = None) -> Iterator[int]:
        """A descriptor of the local copy, which stays where it is while any process has this descriptor open.

        Raises:
            FetchError, StoreError, NoRoomError: as for :meth:`local_copy`.
            UserError: there are no file locks here.
            OSError: it cannot be opened.
        """
        for _ in range(_OPENINGS):
            try:
                with open_regular(self.local_copy(url, sha256, size)) as file:
                    self._mark_used(file.fileno())
                    if os.fstat(file.fileno()).st_nlink:
                        yield file.fileno()
                        return
            except FileNotFoundError:  # another process has removed this very file, before it was open here
                continue
        raise NoRoomError(self.too_small("the shards in use need more"))

    @contextmanager
    def held(self, url: str, sha256: str | None = None) -> Iterator[Path]:
        """The path of the local copy, for what opens a path itself; the copy is there as long as this context.

        Raises:
            FetchError, StoreError, NoRoomError, UserError, OSError: as for :meth:`opened`.
        """
        with self.opened(url, sha256):
            yield self.path_of(url, sha256)

    def refuse_without_locks(self) -> None:
        """See that the folder's file system has locks: by them processes know what others read.

        Without them a shard could be removed while it is read, and every node that shares the folder would fetch it.

        Raises:
            UserError: it has none.
        """
        with (self.folder / "room.lock").open("a+") as file:
            self._mark_used(file.fileno())

    def _mark_used(self, descriptor: int) -> None:
        """Lock an open file for as long as it, or a copy of its descriptor, is open.

        Raises:
            UserError: there are no locks here.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"{self.folder}: has no file locks ({error.strerror}), and so no protection of shards that are in use; "
                "set HPE_CACHE to a folder on a disk of this machine"
            ) from error

    def text(self, url: str, parse: Callable[[str], T]) -> T:
        """A small text, parsed; a text that does not parse may have ended early and is fetched again.

        Raises:
            UserError: it cannot be fetched, or ``parse`` raises ValueError on it.
        """
        parsed: list[T] = []

        def check(part: Path, _: bool) -> None:
            try:
                parsed[:] = [parse(part.read_text("utf-8"))]
            except ValueError as error:
                raise FetchError(str(error)) from error

        part = self.folder / f".{hashlib.sha256(url.encode()).hexdigest()[:40]}.{os.getpid()}.part"
        try:
            fetch(url, part, check=check, tell=self.tell, most=_TEXT_LIMIT)
        except FetchError as error:
            raise UserError(f"{url}: {error}; expected the manifest of `hpe pack` there") from error
        finally:
            part.unlink(missing_ok=True)
        return parsed[0]

    def small_files(self, folder: str, names: Sequence[str]) -> list[Path]:
        """Copies of small files of a remote folder, such as pose tables; of a missing one, a path where nothing is.

        Raises:
            UserError: the store refuses, or does not answer.
        """
        require_driver(folder)
        place = tables_folder()

        def fetched(name: str) -> Path:
            url = below(folder, name)
            try:
                with self.opened(url) as descriptor, open(descriptor, "rb", closefd=False) as source:
                    data = source.read()
            except FetchError:
                return Path(url)
            # By its contents: a table that `hpe pose` has written again is another file, and no reader loses its own.
            path = place / hashlib.sha256(data).hexdigest()[:40] / name
            with lock_of_table(place, path.parent.name):
                if not used_now(path):
                    path.parent.mkdir(exist_ok=True)
                    with aside(path) as part:
                        part.write_bytes(data)
            return path

        with ThreadPoolExecutor(_FETCHES) as pool:
            return list(pool.map(fetched, names))

    def tell(self, waiting: Waiting) -> None:
        """Let the user know what is waited for, if it is time."""
        if self.notices:
            self.notices.tell(str(waiting), time.monotonic() - waiting.begun)

    def _fetch(self, url: str, sha256: str | None, size: int | None, path: Path, keep: Collection[Path]) -> None:
        """Fetch into place; whoever waits for the lock reads in it how far this is, or why it failed."""
        lock, wanted = path.with_suffix(".lock"), path.with_suffix(".want")
        told = time.monotonic()

        def note(waiting: Waiting) -> None:
            nonlocal told
            self.tell(waiting)
            if time.monotonic() - told > 1:
                told = time.monotonic()
                lock.write_text(json.dumps({"waiting": str(waiting)}))
                os.utime(wanted)  # or it would be taken for one that a killed process has left

        def check(part: Path, last: bool) -> None:
            if sha256:
                with part.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    raise FetchError(f"sha256 is {found[:12]}…, expected {sha256[:12]}… (manifest)")
            # Without a digest or a length, an early end shows in the tar only. The last try's is kept: a tar may lack
            # its end at the source, and its readers name what they miss.
            elif not last and ".tar" in url and not _ended(part):
                raise FetchError("the tar has no end")

        try:
            self._make_room(size or 0, wanted, keep)
            with aside(path) as part:
                fetch(url, part, check=check, tell=note, most=size)
                if not is_remote(url):  # an index is compared with its tar by their dates
                    os.utime(part, ns=(time.time_ns(), os.stat(url).st_mtime_ns))  # noqa: PTH116
        except (FetchError, StoreError) as error:
            kind = "store" if isinstance(error, StoreError) else "file"
            lock.write_text(json.dumps({"failed": time.time(), "kind": kind, "message": str(error)}))
            raise
        finally:
            wanted.unlink(missing_ok=True)
        lock.write_text("")

    def _make_room(self, size: int, wanted: Path, keep: Collection[Path]) -> None:
        """Set bytes aside for a file: the least recently used ones that nobody has open make room.

        Raises:
            NoRoomError: there are too few of those.
        """
        end = time.monotonic() + (_ROOM_SECONDS if self.notices else 0)
        while True:
            with locked(self.folder / "room.lock", None):
                over = _held_bytes(self.folder) + size - self.limit_bytes
                for _, path in sorted(_candidates(self.folder, keep)) if over > 0 else ():
                    over -= _evicted(path)
                    if over <= 0:
                        break
                if over <= 0:
                    with wanted.open("wb") as file:
                        file.truncate(size)  # the size counts; it takes no disk space
                    return
            if time.monotonic() > end:
                raise NoRoomError(self.too_small("the shards in use need more"))
            time.sleep(0.2)

    def too_small(self, needed: str) -> str:
        """The message that this cache cannot hold what is needed."""
        return (
            f"{self.folder}: {needed} at the same time, but this cache may hold {self.limit_bytes / 1e9:,.3g} GB; "
            "raise HPE_CACHE_LIMIT_GB (or free some space), set HPE_CACHE to a folder on a larger disk, or lower "
            "data.window in a new run"
        )


def used_now(path: Path) -> bool:
    """Whether a file is there; it is marked as used now, by its date of access, whatever the disk's own policy."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _status_of(lock: Path) -> dict[str, str]:
    """What the process that holds a lock has written there."""
    try:
        found = json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _raise_failure_since(start: float, lock: Path) -> None:
    """Raise what another process has met while this one waited for it: to wait again would double the limit."""
    status = _status_of(lock)
    if float(status.get("failed", 0)) >= start:
        raise (StoreError if status["kind"] == "store" else FetchError)(status["message"])


def _held_bytes(folder: Path) -> int:
    """Bytes of what is here, and of what is on its way; what killed processes have left is removed."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            state, kind = entry.stat(), entry.name.rpartition(".")[2]
            if kind in ("want", "part") and time.time() - state.st_mtime > _STALE_SECONDS:
                Path(entry.path).unlink()
            elif kind in ("tar", "want"):
                total += state.st_size
    return total


def _candidates(folder: Path, keep: Collection[Path]) -> Iterator[tuple[float, Path]]:
    """When each copy was last used, without those to keep."""
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if path.suffix == ".tar" and path not in keep:
            with contextlib.suppress(FileNotFoundError):
                yield entry.stat().st_atime, path


def _evicted(path: Path) -> int:
    """Remove a copy that no process has open; how many bytes that freed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(file.fileno()).st_size
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)
            return size
    except OSError:  # in use, or already gone
        return 0


def _ended(tar: Path) -> bool:
    with tar.open("rb") as file:
        file.seek(max(0, tar.stat().st_size - len(_TAR_END)))
        return file.read() == _TAR_END
