"""Shards that are not local files, fetched once per node into a bounded folder.

All readers of a node share the folder: the first that needs a shard fetches it (under a file lock, aside and then
renamed) while the others wait. The least recently used shards make room when the folder reaches its bound. File
names are digests, so no text of a server or a tar becomes a path.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from hpe.core.errors import UserError
from hpe.core.files import NO_LOCKS, aside

_CHUNK: Final = 1 << 20
_TIMEOUT_SECONDS: Final = 60.0
_TRIES: Final = 5
_TEXT_LIMIT: Final = 1 << 28
_PERMANENT_STATUSES: Final = (400, 401, 403, 404, 410)
_TAR_END: Final = bytes(512)
_FOLDER: Final = "spool"
"""Below :func:`node_folder`; an older version's fetched shards are found there."""

T = TypeVar("T")


class FetchError(OSError):
    """A shard could not be fetched, after every try."""


def node_folder() -> Path:
    """This user's folder on this node: ``$HPE_CACHE``, else below the temporary folder; others cannot write.

    Raises:
        UserError: it cannot be made, or belongs to somebody else.
    """
    folder = Path(os.environ.get("HPE_CACHE") or Path(tempfile.gettempdir()) / f"hpe-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror}); set HPE_CACHE") from error
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set HPE_CACHE to a folder of your own")
    return folder


def _session() -> str:
    if "LOCAL_RANK" in os.environ:  # ranks of one launcher share their parent, and with it what they fetch
        return str(os.getppid())
    return f"{os.getpid()}-{int(time.time())}"  # process numbers come again


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock file of this node; released also when the process dies.

    Without locks on ``$HPE_CACHE``'s file system readers may do the same work twice: each file is renamed to its
    place whole, so nothing is damaged.
    """
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


@dataclass(frozen=True, slots=True)
class RemoteCache:
    """The folder of fetched shards.

    Attributes:
        folder: node-local.
        limit_bytes: what it may hold.
        session: distinguishes jobs: a shard without a known digest is fetched again by each job.
    """

    folder: Path
    limit_bytes: int
    session: str

    @classmethod
    def of_node(cls, limit_bytes: int | None = None) -> "RemoteCache":
        """The cache below :func:`node_folder`, by default half of the free disk."""
        folder = node_folder() / _FOLDER
        folder.mkdir(exist_ok=True)
        return cls(folder, limit_bytes or shutil.disk_usage(folder).free // 2, _session())

    def local_copy(self, url: str, sha256: str | None) -> Path:
        """A local copy of the shard, fetched when there is none; it may be removed once it is open.

        Raises:
            FetchError: it could not be fetched, or its digest is not the manifest's.
        """
        digest = hashlib.sha256(f"{url}\0{sha256 or self.session}".encode()).hexdigest()[:40]
        path = self.folder / f"{digest}.tar"
        with waiting_lock(self.folder / f"{digest}.lock"):
            if path.is_file():
                os.utime(path)
                return path
            self._fetch(url, sha256, path)
        self._make_room(keep=path)
        return path

    def _fetch(self, url: str, sha256: str | None, path: Path) -> None:
        def attempt(last: bool) -> None:
            with aside(path) as part:
                found = _copy(url, part)
                if sha256 and found != sha256:
                    raise FetchError(f"sha256 is {found[:12]}…, expected {sha256[:12]}… (manifest)")
                # Without a digest or a length, an early end shows in the tar only. The last try's is kept:
                # a tar may lack its end at the source, and its readers name what they miss.
                if not sha256 and not last and not _ended(part):
                    raise FetchError("the tar has no end")

        _with_retries(attempt)

    def _make_room(self, keep: Path) -> None:
        with waiting_lock(self.folder / "room.lock"):
            held = []
            for entry in os.scandir(self.folder):
                if entry.name.endswith(".tar"):
                    with contextlib.suppress(FileNotFoundError):
                        held.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
            over = sum(size for _, size, _ in held) - self.limit_bytes
            for _, size, path in sorted(held):
                if over <= 0:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    over -= size


def _with_retries(attempt: Callable[[bool], T]) -> T:
    """The result of ``attempt(last)``, tried again after a while; ``last`` is true for the last try.

    Raises:
        FetchError: no try worked, or the server's status rules every other try out.
    """
    for number in range(1, _TRIES + 1):
        try:
            return attempt(number == _TRIES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if number == _TRIES or getattr(error, "code", None) in _PERMANENT_STATUSES:
                tries = "1 try" if number == 1 else f"{number} tries"
                raise FetchError(f"cannot be fetched ({tries}): {error or type(error).__name__}") from error
        time.sleep(min(0.25 * 4**number, 30))
    raise AssertionError("unreachable")


def _copy(url: str, part: Path) -> str:
    digest = hashlib.sha256()
    with part.open("wb") as out:
        for chunk in _chunks(url):
            out.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def _ended(tar: Path) -> bool:
    with tar.open("rb") as file:
        file.seek(max(0, tar.stat().st_size - len(_TAR_END)))
        return file.read() == _TAR_END


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes behind a URL.

    Raises:
        FetchError: there are fewer than the server announced, or the command of a pipe fails.
    """
    size = 0
    with _open(url) as source:
        expected = getattr(source, "headers", {}).get("Content-Length")
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            yield chunk
    if expected is not None and size != int(expected):
        raise FetchError(f"the connection ended after {size:,} of {int(expected):,} bytes")


@contextmanager
def _open(url: str) -> Iterator[BinaryIO | Any]:
    if url.startswith(("http://", "https://")):
        # Not WebDataset's opener: it hands the URL to a shell.
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
            yield response
        return
    from webdataset.gopen import Pipe, gopen

    stream: Any = gopen(url, "rb")
    if isinstance(stream, Pipe):
        # WebDataset passes over a broken pipe (141), as it may stop reading early; here every byte is read.
        # The exit status is looked at once, after the last byte.
        stream.ignore_errors = True
    try:
        yield stream
    finally:
        stream.close()
    if getattr(stream, "status", 0):
        raise FetchError(f"the command ended with exit status {stream.status}")


def fetch_parsed(url: str, parse: Callable[[str], T]) -> T:
    """A small text from the web, parsed; a text that does not parse may have ended early and is fetched again.

    Raises:
        UserError: it cannot be fetched, or ``parse`` raises ValueError on it.
    """

    def attempt(_: bool) -> T:
        data = bytearray()
        for chunk in _chunks(url):
            data += chunk
            if len(data) > _TEXT_LIMIT:
                raise FetchError(f"more than {_TEXT_LIMIT:,} bytes")
        return parse(data.decode("utf-8"))

    try:
        return _with_retries(attempt)
    except FetchError as error:
        raise UserError(f"{url}: {error}; expected the manifest of `hpe pack` there") from error
