"""What a URL names, copied to a local file: whole or not at all, tried again, never waited for in silence.

Commands (``pipe:``), http(s) and local files are read here; every other scheme (``s3://``, ``gs://``, ``hf://`` …) is
one of fsspec's drivers, each of which finds credentials in its own configuration.
"""

import contextlib
import errno
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hpe.core.errors import UserError, redacted
from hpe.core.files import open_regular

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_WEB: Final = ("http://", "https://")
_CHUNK: Final = 1 << 20
_SOCKET_SECONDS: Final = 60.0
"""Without a byte for so long, a try is given up and another connection tried."""
_DEFAULT_LIMIT: Final = 600.0
_TRIES: Final = 5
"""Of a file that comes, but is not what it should be."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_TICK_SECONDS: Final = 0.25
_LONGEST_REASON: Final = 200

# Names, because their packages need not be installed. The first are botocore's, aiohttp's, httpx', requests'.
_BROKEN: Final = frozenset(
    ("HTTPClientError", "ClientConnectionError", "ClientPayloadError", "TransportError", "RequestException")
)
_NO_CREDENTIALS: Final = frozenset(
    (
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
        "SSOError", "ProfileNotFound", "GoogleAuthError", "LocalTokenNotFoundError", "GatedRepoError",
        "OfflineModeIsEnabled",
    )
)  # fmt: skip
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_S3_SETTINGS: Final = "the region (AWS_DEFAULT_REGION), the endpoint (AWS_ENDPOINT_URL_S3)"


class FetchError(OSError):
    """One file cannot be had: it is missing, or is not what its manifest lists."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class StoreError(UserError):
    """The store refuses, or does not answer: what is wrong with one file is wrong with all."""


@dataclass(slots=True)
class Waiting:
    """A file that is being fetched.

    Attributes:
        url: which.
        limit: seconds without a new byte after which it is given up.
        tries: so far, with the one that goes on.
        bytes: the most that a try has brought.
        begun, since: when it was first tried, and when the last new byte came (monotonic).
        reason: why the last try failed.
    """

    url: str
    limit: float
    tries: int = 0
    bytes: int = 0
    begun: float = 0.0
    since: float = 0.0
    reason: str = ""

    @property
    def tried(self) -> str:
        """How often it was tried, in words."""
        return "1 try" if self.tries == 1 else f"{self.tries} tries"

    def __str__(self) -> str:
        quiet = time.monotonic() - self.since
        come = f"{self.bytes / 1e6:,.1f} MB so far, the last byte" if self.bytes else "no byte yet, first asked"
        failed = f" (the last: {self.reason})" if self.reason else ""
        return redacted(
            f"waiting for {self.url}: {come} {quiet:.0f} s ago, try {self.tries}{failed}; "
            f"gives up in {max(0, self.limit - quiet):.0f} s"
        )


def is_remote(url: str) -> bool:
    """True for a URL or ``pipe:``, False for a path."""
    return bool(_SCHEME.match(url)) and not Path(url).exists()


def is_web(url: str) -> bool:
    """True for http and https."""
    return url.lower().startswith(_WEB)


def limit_seconds() -> float:
    """How long a store may stay silent: ``$HPE_STORE_TIMEOUT``, by default ten minutes.

    Raises:
        UserError: it is no number of seconds.
    """
    text = os.environ.get("HPE_STORE_TIMEOUT") or str(_DEFAULT_LIMIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise UserError(f"HPE_STORE_TIMEOUT is {text!r}; expected a number of seconds, such as 600")
    return seconds


def below(folder: str, name: str) -> str:
    """The URL of a file in a folder; a query stays at the end."""
    place, mark, query = folder.partition("?") if is_web(folder) else (folder, "", "")
    return f"{place.rstrip('/')}/{urllib.parse.quote(name) if is_web(folder) else name}{mark}{query}"


def require_driver(url: str) -> None:
    """See that a URL can be read at all, before anything is tried.

    Raises:
        UserError: no driver of its scheme is installed, or there is no such scheme.
    """
    if url.startswith("pipe:") or is_web(url):
        return
    import fsspec

    scheme = url.partition(":")[0].lower()
    # gcsfs would ask through gRPC what kind of bucket this is, for features that are not used here; gRPC does not
    # survive the fork of the readers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if "::" in url:
        raise UserError(f"{url}: chains of URLs (::) are not read; name the store itself")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        way_out = f"pip install 'hpe[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: the driver of {scheme}:// is not installed; {way_out}") from error
    except ValueError as error:
        raise UserError(f"{url}: {scheme}: is no kind of store that hpe or fsspec reads") from error


def matching(pattern: str, tell: Callable[[Waiting], None]) -> list[str]:
    """The URLs that match a pattern with ``*``, sorted, by a listing of the store.

    Raises:
        UserError: the store does not list, gives no rights to, or does not answer.
    """
    if is_web(pattern):
        raise UserError(f"{pattern}: http has no listing; expected a folder with a manifest, or a pattern with braces")
    found: list[str] = []

    def attempt(waiting: Waiting, _: bool) -> None:
        def listed(_: _Try) -> None:
            filesystem, path = _client(pattern)
            found[:] = sorted(filesystem.unstrip_protocol(name) for name in filesystem.glob(path))

        _watched(_Try(listed), waiting, tell)

    try:
        _persist(pattern, attempt, tell)
    except FetchError as error:
        raise UserError(f"{pattern}: {error}") from error
    return found


def fetch(
    url: str,
    part: Path,
    *,
    check: Callable[[Path, bool], None],
    tell: Callable[[Waiting], None],
    most: int | None = None,
) -> None:
    """Copy what a URL names into a file, in as many tries as it takes.

    Args:
        url: or a local path.
        part: written to; what is there after an error is to be removed.
        check: raises :class:`FetchError` where the copy is not what it should be; told whether it is the last try.
        tell: called several times a second while this takes.
        most: bytes above which it cannot be what it should be.

    Raises:
        FetchError: it is missing, or no try was what it should be.
        StoreError: the store refuses, or nothing came for :func:`limit_seconds`.
    """

    def attempt(waiting: Waiting, last: bool) -> None:
        # A thread that was left behind may write on, so that each try has a file of its own.
        own = part.with_name(f"{part.name.removesuffix('.part')}.{waiting.tries}.part")

        def come() -> int:
            size = _bytes_of(own)
            if most is not None and size > most + _CHUNK:
                raise FetchError(f"more than the {most:,} bytes that its manifest lists")
            return size

        try:
            _watched(_Try(lambda one: _copy(url, own, one)), waiting, tell, come)
            own.replace(part)
        finally:
            own.unlink(missing_ok=True)
        check(part, last)

    _persist(url, attempt, tell)


def _persist(url: str, attempt: Callable[[Waiting, bool], None], tell: Callable[[Waiting], None]) -> None:
    """Try until it works, or cannot work any more; an attempt is told whether it is the last of its kind.

    Raises:
        FetchError, StoreError: as of :func:`fetch`.
    """
    start = time.monotonic()
    waiting = Waiting(url, limit_seconds(), begun=start, since=start)
    failures = 0
    while True:
        waiting.tries += 1
        try:
            attempt(waiting, failures == _TRIES - 1)
            return
        except StoreError:
            raise
        except Exception as error:  # whatever a driver raises
            waiting.reason, verdict = _reason(error), _verdict(error)
            failures += verdict == "wrong"
            if verdict == "refused":
                raise StoreError(
                    f"{url}: the store refuses access: {waiting.reason}; {_settings(url)}, "
                    "then run the same command again to resume"
                ) from error
            if verdict == "missing" or failures == _TRIES:
                way_out = f"; {_settings(url)}" if _unexpected(error) else ""
                raise FetchError(f"cannot be fetched ({waiting.tried}): {waiting.reason}{way_out}") from error
        _pause(waiting, tell)


def _settings(url: str) -> str:
    """What to check where a store, or its driver, does not take a request."""
    s3 = _EXTRAS.get(url.partition(":")[0].lower()) == "s3"
    return f"check the name, {_S3_SETTINGS if s3 else 'the region'} and your credentials"


def _pause(waiting: Waiting, tell: Callable[[Waiting], None]) -> None:
    end = time.monotonic() + min(_FIRST_PAUSE * 2 ** (waiting.tries - 1), _LONGEST_PAUSE, waiting.limit / 4)
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _TICK_SECONDS))
        _tick(waiting, tell)


def _tick(waiting: Waiting, tell: Callable[[Waiting], None]) -> None:
    """Tell that it takes time, and give up after too much of it."""
    quiet = time.monotonic() - waiting.since
    if quiet >= waiting.limit:
        reason = f", the last: {waiting.reason}" if waiting.reason else ""
        raise StoreError(
            f"{waiting.url}: given up after {quiet:.0f} s without a new byte ({waiting.bytes:,} bytes so far, "
            f"{waiting.tried}{reason}); check the store and the network, then run the same command again to resume; "
            "HPE_STORE_TIMEOUT sets how long to wait"
        )
    tell(waiting)


class _Try(threading.Thread):
    """One try, in a thread: no driver's own time limit can be relied on, and a thread can be left behind."""

    def __init__(self, work: "Callable[[_Try], None]") -> None:
        super().__init__(name="fetch", daemon=True)
        self.error: Exception | None = None
        self.stop: Callable[[], None] = lambda: None
        self._work = work

    def run(self) -> None:
        try:
            self._work(self)
        except Exception as error:  # raised where it is waited for
            self.error = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection


def _watched(one: _Try, waiting: Waiting, tell: Callable[[Waiting], None], come: Callable[[], int] = lambda: 0) -> None:
    """Wait for one try; it is left behind when it brings nothing for a while. ``come``: bytes so far.

    Raises:
        Exception: whatever ended it.
    """
    moved, size = time.monotonic(), 0
    try:
        one.start()
        while True:
            one.join(_TICK_SECONDS)
            now, grown = time.monotonic(), come()
            if grown > size:
                size, moved = grown, now
            if size > waiting.bytes:
                waiting.bytes, waiting.since = size, now
            if not one.is_alive():
                break
            if now - moved > min(_SOCKET_SECONDS, waiting.limit / 2):
                raise TimeoutError(f"no byte for {now - moved:.0f} s")
            _tick(waiting, tell)
        while Path(f"/proc/self/task/{one.native_id}").exists():
            # Python's part of the thread has ended, but what it frees in C may still hold a lock of OpenSSL, which a
            # reader that is forked now would find locked for ever.
            time.sleep(0.001)
        if one.error is not None:
            raise one.error
    finally:
        one.stop()


def _bytes_of(part: Path) -> int:
    """Bytes that have come: a driver may set the file's size before they do, and XFS allocates blocks ahead of it."""
    with contextlib.suppress(FileNotFoundError):
        state = part.stat()
        return min(state.st_size, state.st_blocks * 512)
    return 0


_CLIENTS: Final[list[Any]] = []
"""The drivers that were used, also by the process that this one was forked from. A forked process that dropped its
parent's would close their connections, which belong to the event loop of the parent: s3fs then prints tracebacks."""


def _client(url: str) -> tuple[Any, str]:
    """The driver of a URL, and the path that it knows it by."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    if not any(filesystem is one for one in _CLIENTS):
        _CLIENTS.append(filesystem)
    return filesystem, path


def _copy(url: str, part: Path, one: _Try) -> None:
    if is_remote(url) and not url.startswith("pipe:") and not is_web(url):
        filesystem, path = _client(url)
        if "hf" in filesystem.protocol:
            # Its get_file draws a bar of tqdm, whose lock all forked processes share: who is killed may hold it.
            with filesystem.open(path, "rb", block_size=0) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK)
        else:
            filesystem.get_file(path, str(part))
        return
    size = 0
    with part.open("wb") as out, _opened(url, one) as (read, expected):
        while chunk := read(_CHUNK):
            size += out.write(chunk)
    if expected is not None and size != expected:
        raise ConnectionError(f"the connection ended after {size:,} of {expected:,} bytes")


@contextmanager
def _opened(url: str, one: _Try) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    """What reads the next bytes, and how many there are in all where that is announced."""
    if url.startswith("pipe:"):
        # As WebDataset does, in a shell; in a group of its own, so that all of it can be stopped.
        with subprocess.Popen(url[5:], shell=True, stdout=subprocess.PIPE, start_new_session=True) as command:  # noqa: S602
            assert command.stdout is not None

            def stop() -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)

            one.stop = stop
            yield command.stdout.read1, None  # pyright: ignore[reportAttributeAccessIssue] (a BufferedReader)
            command.wait()
            one.stop = lambda: None
        if command.returncode:
            raise FetchError(f"the command ended with exit status {command.returncode}")
    elif is_web(url):
        with urllib.request.urlopen(_request(url), timeout=_SOCKET_SECONDS) as response:  # noqa: S310
            length = response.headers.get("Content-Length")
            yield response.read1, None if length is None else int(length)
    else:
        with open_regular(Path(url)) as file:
            if sys.platform == "linux":  # read once from start to end: the kernel may read far ahead
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield file.read, os.fstat(file.fileno()).st_size


def _request(url: str) -> urllib.request.Request:
    """A request whose ``user:password@``, which urllib takes for a port, is a header."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))  # noqa: S310
    if at:
        request.add_unredirected_header(
            "Authorization", f"Basic {b64encode(urllib.parse.unquote(user).encode()).decode()}"
        )
    return request


def _verdict(error: BaseException) -> Literal["missing", "refused", "again", "wrong"]:
    """What an error means for the next try: none, none of any file, one until the limit, or a few."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status, code = _status(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
    if names & _NO_CREDENTIALS or isinstance(error, PermissionError) or code == "NoSuchBucket" or full:
        return "refused"
    if _endless(error):
        return "refused"
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "missing"
    if status is not None:
        return "again" if status >= 500 or status in (408, 425, 429) else "refused"
    if str(error).startswith("Forbidden"):  # gcsfs, without a status
        return "refused"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, (FetchError, socket.gaierror)):
        return "wrong"
    broken = isinstance(inner, (OSError, EOFError, http.client.IncompleteRead))
    return "again" if broken or names & _BROKEN else "wrong"


def _status(error: Any) -> tuple[int | None, str]:
    """The HTTP status in an error of urllib, botocore (behind s3fs'), requests, httpx, aiohttp or gcsfs; S3's code."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, str(response.get("Error", {}).get("Code"))
    for value in (getattr(response, "status_code", None), getattr(error, "status", None), getattr(error, "code", None)):
        if str(value).isdecimal() and 300 <= int(str(value)) < 600:
            return int(str(value)), ""
    return None, ""


def _endless(error: BaseException) -> bool:
    """Whether a driver has called itself without end.

    Redirected by a store that does not name the region, botocore asks for the region, and follows the redirect of that
    request in the same way.
    """
    inner = error.__cause__ or error.__context__
    return isinstance(error, RecursionError) or (inner is not None and _endless(inner))


def _unexpected(error: BaseException) -> bool:
    """Whether an error is neither the store's answer nor the network's: a setting, or a mistake in the driver."""
    return _verdict(error) == "wrong" and not isinstance(error, OSError)


def _reason(error: BaseException) -> str:
    """The first line of an error, without what must not be shown."""
    if _endless(error):
        return "the driver asks without end, as it does when the store redirects without naming the bucket's region"
    first, *rest = redacted(str(error)).strip().splitlines() or [""]
    line = f"{first} {rest[0]}" if first.endswith(":") and rest else first
    if not line or _unexpected(error):
        line = f"{type(error).__name__}: {line}".rstrip(": ")
    return line[:_LONGEST_REASON].rstrip(" .")
