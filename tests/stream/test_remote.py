"""Laws of shards behind a server or a command: the same batches as from files, and failures named."""

import ctypes
import errno
import http.server
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpe.core.errors import UserError
from hpe.data.remote_cache import RemoteCache
from hpe.data.store import fetch
from hpe.stream import Balance, ShardSet
from tests.served import served as serve
from tests.stream.tiny import COUNTS, Made, keys_of, same, stream, taken


@pytest.fixture
def served(made: Made) -> Iterator[str]:
    with serve(made.folder) as server:
        yield server.url


def test_http_and_pipe_give_the_batches_of_files(made: Made, served: str) -> None:
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    names = "{000000..000004}"
    ways = [served, f"{served}/train-{names}.tar", f"pipe:cat {made.folder}/train-{names}.tar"]
    for way in ways:
        read = taken(stream(ShardSet(way), workers=2).endless(seed=2, batch=6, window=2), 8)
        assert all(same(a.batch, b.batch) for a, b in zip(read, files, strict=True)), way


class Unsteady(http.server.BaseHTTPRequestHandler):
    """``/<fault>-<times>/<file>``: answers with a fault so many times, then with the file."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: Counter[str]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        fault, _, times = self.path.split("/")[1].partition("-")
        self.asked[self.path] += 1
        data = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        half, self.close_connection = data[: len(data) // 2], True
        if self.asked[self.path] > int(times):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        match fault:
            case "error":
                self.send_error(500)
            case "gone":
                self.send_error(404)
            case "denied":
                self.send_error(403)
            case "short":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(half)
            case "chunked":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n" % len(data) + half)
            case "unsized":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(half)
            case "garbage":
                self.wfile.write(b"no http at all\r\n\r\n")
            case "other":
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"error")


@pytest.fixture
def unsteady(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("hpe.data.store._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("hpe.data.store._TICK_SECONDS", 0.01)
    monkeypatch.setattr("hpe.data.store._LONGEST_PAUSE", 0.01)
    monkeypatch.setenv("HPE_STORE_TIMEOUT", "0.7")
    handler = type("Handler", (Unsteady,), {"folder": made.folder, "asked": Counter()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("fault", ["error", "short", "chunked", "unsized", "garbage", "silent", "other"])
def test_a_server_that_fails_for_a_while_loses_nothing(made: Made, unsteady: str, fault: str) -> None:
    """With a manifest (whose digests tell) and without one; the manifest itself comes from such a server too."""
    balance = Balance()
    files = keys_of(taken(stream(made.folder).endless(seed=2, batch=6, window=2, balance=balance), 8))
    ways = [f"{unsteady}/{fault}-2"]
    if fault != "other":  # five bytes that say they are all: only a digest can tell
        ways.append(f"{unsteady}/{fault}-3/train-{{000000..000004}}.tar")
    for way in ways:
        shards = stream(ShardSet(way))
        assert shards.counts == (COUNTS,)
        assert keys_of(list(shards.once(batch=8))) == made.keys
        assert keys_of(taken(shards.endless(seed=2, batch=6, window=2, balance=balance), 8)) == files


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("error", "given up after 1 s.*HTTP Error 500"),
        ("gone", "1 try.*404"),
        ("short", "given up after 1 s without a new byte .*the connection ended after .* bytes"),
        ("chunked", "given up after 1 s.*IncompleteRead"),
        ("garbage", "5 tries.*no http"),
        ("silent", "given up after 1 s.*closed connection"),
        ("denied", "refuses access: HTTP Error 403"),
    ],
)
def test_a_server_that_fails_for_good_is_named_with_its_answer(unsteady: str, fault: str, told: str) -> None:
    for way in (f"{unsteady}/{fault}-99/train-000000.tar", f"{unsteady}/{fault}-99"):
        with pytest.raises(UserError, match=rf"127\.0\.0\.1.*{fault}-99.*{told}"):
            stream(ShardSet(way, "train"))


def test_a_shard_that_cannot_be_fetched_in_the_middle_is_counted_and_masked(made: Made, unsteady: str) -> None:
    shards = stream(ShardSet(f"{unsteady}/error-0"))
    made.folder.joinpath(made.infos[2].name).write_bytes(b"replaced meanwhile")
    loader = shards.once(batch=8)
    keys = keys_of(list(loader))
    lost = range(8, 20)
    assert [key for n, key in enumerate(keys) if n not in lost] == [k for n, k in enumerate(made.keys) if n not in lost]
    assert loader.damaged_samples == len(lost)
    assert all("5 tries" in damage.reason and "sha256" in damage.reason for damage in loader.named_damage)


@pytest.mark.parametrize("command", ["exit 3", "cat {}; exit 3", "head -c 3000 {}; exit 141", "cat {}.not"])
def test_a_pipe_that_fails_is_a_mistake_also_when_bytes_came(
    made: Made, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("hpe.data.store._FIRST_PAUSE", 0.01)
    named = "pipe:" + command.format(made.folder / "train-000002.tar")
    with pytest.raises(UserError, match=r"pipe:.*5 tries.*exit status [1-9]"):
        stream(ShardSet([named]))


@pytest.mark.skipif(sys.platform != "linux", reason="fallocate is Linux's")
def test_a_file_system_that_allocates_ahead_of_the_end_does_not_make_a_file_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocated(path: Path) -> bool:
        """A megabyte in the file, and room for three more behind its end; False: not on this file system."""
        with path.open("wb") as out:
            out.write(bytes(1 << 20))
            out.flush()
            keep_size = 1
            start, size = ctypes.c_long(0), ctypes.c_long(4 << 20)
            return not ctypes.CDLL(None).fallocate(out.fileno(), keep_size, start, size)

    def copied(_: str, part: Path, __: object) -> None:
        allocated(part)
        while len(sizes) < 3:
            time.sleep(0.01)

    if not allocated(tmp_path / "probe"):
        pytest.skip("this file system does not allocate ahead")
    sizes: list[int] = []
    monkeypatch.setattr("hpe.data.store._TICK_SECONDS", 0.01)
    monkeypatch.setattr("hpe.data.store._copy", copied)
    part = tmp_path / "a.part"
    fetch("a.tar", part, check=lambda *_: None, tell=lambda waiting: sizes.append(waiting.bytes), most=1 << 20)
    assert part.stat().st_size == sizes[-1] == 1 << 20


def test_the_cache_keeps_within_its_bound_and_what_is_open_in_it(made: Made, served: str, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    folder.mkdir()
    size = max(info.bytes for info in made.infos)
    cache = RemoteCache(folder, 2 * size, "test")
    first, *others = made.infos
    with cache.opened(f"{served}/{first.name}", first.sha256, first.bytes):
        for info in others:
            path = cache.local_copy(f"{served}/{info.name}", info.sha256, info.bytes)
            assert path.read_bytes() == (made.folder / info.name).read_bytes()
            assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= 2 * size
        assert cache.path_of(f"{served}/{first.name}", first.sha256).exists()
    assert not list(folder.glob("*.want"))
    assert not list(folder.glob(".*.part"))


def test_a_cache_without_file_locks_is_refused(made: Made, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    remote, local = stream(ShardSet(served)), stream(made.folder)
    monkeypatch.setattr("hpe.data.remote_cache.fcntl", SimpleNamespace(flock=no_locks, LOCK_SH=1, LOCK_EX=2, LOCK_NB=4))
    with pytest.raises(UserError, match=r"has no file locks .*set HPE_CACHE to a folder on a disk of this machine"):
        remote.endless(seed=0, batch=4)
    assert taken(local.endless(seed=0, batch=4), 1)  # nothing is copied, so nothing needs protection
