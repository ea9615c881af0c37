"""Shards that are not local files, fetched once a node into a bounded folder.

All readers of a node share the folder: who needs a shard first fetches it (under a file lock, aside and then
renamed), the others wait. The least recently used shards make room when the folder reaches its bound. File
names are digests, so nothing that a server or a tar says becomes a path.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from hpe.errors import UserError
from hpe.files import aside

_CHUNK: Final = 1 << 20
_TIMEOUT_SECONDS: Final = 60.0
_TRIES: Final = 5
_TEXT_LIMIT: Final = 1 << 28


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file of this node; released also when the process dies."""
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of fetched shards.

    Attributes:
        folder: node-local.
        limit_bytes: what it may hold.
        session: tells one job from another: a shard without a known digest is fetched again by each job.
    """

    folder: Path
    limit_bytes: int
    session: str

    @classmethod
    def of_node(cls, limit_bytes: int | None = None) -> "Spool":
        """The spool below :func:`node_folder`, by default half of the free disk."""
        folder = node_folder() / "spool"
        folder.mkdir(exist_ok=True)
        # Ranks of one launcher share their parent, and with it what they fetch.
        session = os.getppid() if "LOCAL_RANK" in os.environ else os.getpid()
        return cls(folder, limit_bytes or shutil.disk_usage(folder).free // 2, f"{session}-{int(time.time())}"
                   if "LOCAL_RANK" not in os.environ else str(session))  # fmt: skip

    def path(self, url: str, sha256: str | None) -> Path:
        """A local copy of the shard, fetched when there is none; it may be removed once it is open.

        Raises:
            FetchError: it could not be fetched, or is not what the manifest says.
        """
        digest = hashlib.sha256(f"{url}\0{sha256 or self.session}".encode()).hexdigest()[:40]
        path = self.folder / f"{digest}.tar"
        with locked(self.folder / f"{digest}.lock"):
            if path.is_file():
                os.utime(path)
                return path
            self._fetch(url, sha256, path)
        self._make_room(keep=path)
        return path

    def _fetch(self, url: str, sha256: str | None, path: Path) -> None:
        reasons = []
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(0.25 * 4**attempt, 30))
            try:
                with aside(path) as part:
                    found = _copy(url, part)
                    if sha256 and found != sha256:
                        raise FetchError(f"sha256 is {found[:12]}…, the manifest says {sha256[:12]}…")
                return
            except (OSError, urllib.error.URLError, ValueError) as error:
                reasons.append(str(error))
                if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                    break
        raise FetchError(f"cannot be fetched ({len(reasons)} tries): {reasons[-1]}")

    def _make_room(self, keep: Path) -> None:
        with locked(self.folder / "room.lock"):
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


def _copy(url: str, part: Path) -> str:
    digest, size = hashlib.sha256(), 0
    with part.open("wb") as out, _open(url) as source:
        expected = getattr(source, "headers", {}).get("Content-Length")
        while chunk := source.read(_CHUNK):
            out.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if expected is not None and size != int(expected):
        raise FetchError(f"the connection ended after {size:,} of {int(expected):,} bytes")
    return digest.hexdigest()


@contextmanager
def _open(url: str) -> Iterator[BinaryIO | Any]:
    if url.startswith(("http://", "https://")):
        # Not WebDataset's opener: it hands the URL to a shell.
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
            yield response
    else:
        from webdataset.gopen import gopen

        stream = gopen(url, "rb")
        try:
            yield stream
        finally:
            stream.close()


def fetch_text(url: str) -> str:
    """A small text from the web.

    Raises:
        UserError: it cannot be fetched.
    """
    try:
        with _open(url) as response:
            return response.read(_TEXT_LIMIT).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({error}); expected the manifest of `hpe pack` there") from error
