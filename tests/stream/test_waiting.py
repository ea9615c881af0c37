"""Stores that do not answer: the user reads what is waited for, and it ends."""

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpe.core.errors import UserError, redacted
from hpe.data.remote_cache import RemoteCache
from hpe.data.store import StoreError
from hpe.stream import ShardSet
from tests.stream.tiny import Made, keys_of, stream


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_STORE_TIMEOUT", "1.5")
    monkeypatch.setattr("hpe.core.notices._FIRST_WORD_SECONDS", 0.3)


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server with one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def dropping() -> Iterator[str]:
    """A port that drops every SYN, as its queue of connections is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(server.getsockname())
            yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def stalling() -> Iterator[str]:
    """A server that sends half of what it announces, and then nothing."""
    done = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 20))
        handler.end_headers()
        handler.wfile.write(bytes(1 << 19))
        handler.wfile.flush()
        done.wait(10)

    with serving(answer) as url:
        yield url
        done.set()


@pytest.mark.parametrize(
    ("store", "told", "end"),
    [
        (refusing, "no byte yet", "0 bytes so far, .*refused"),
        (dropping, "no byte yet", "0 bytes so far"),
        (stalling, r"0\.5 MB so far", "[1-9][0-9,]+ bytes so far, .*no byte for"),
    ],
)
def test_a_store_that_does_not_answer_is_named_soon_and_given_up(
    store: Callable[[], contextlib.AbstractContextManager[str]],
    told: str,
    end: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with store() as url:
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"train-0\.tar: given up after [23] s without a new byte \({end}"):
            stream(ShardSet(f"{url}/train-0.tar"))
        assert time.monotonic() - start < 5
    (line,) = capfd.readouterr().err.splitlines()
    assert pytest.approx(1.5, abs=1) == float(line.rsplit("gives up in ", 1)[1].removesuffix(" s"))
    for part in (f"hpe: waiting for {url}/train-0.tar: ", told, "try 1"):
        assert part.replace("\\", "") in line


def test_who_waits_for_another_process_reads_what_it_meets_and_gives_up_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of ten readers would wait for ten minutes, one after another."""
    monkeypatch.setattr("hpe.core.notices._NEXT_WORD_SECONDS", 0.0)
    cache = RemoteCache.of_node()
    ends: list[tuple[float, str]] = []

    def wait() -> None:
        with pytest.raises(StoreError) as error:
            cache.local_copy(f"{url}/train-0.tar", "0" * 64)
        ends.append((time.monotonic() - start, str(error.value)))

    with stalling() as url:
        start = time.monotonic()
        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(seconds for seconds, _ in ends) < 3.5
    assert len({message for _, message in ends}) == 1
    assert "0.5 MB so far" in capfd.readouterr().err


def test_a_server_that_is_killed_while_it_sends_and_comes_back_loses_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPE_STORE_TIMEOUT", "60")  # a new interpreter may take long on a machine with other work
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-c", _SLOW, str(made.folder), str(port)]
    url, first = f"http://127.0.0.1:{port}", subprocess.Popen([*serve, "0.2"])
    second: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        first.kill()
        first.wait()
        second.append(subprocess.Popen([*serve, "0"]))

    timer = threading.Timer(0.8, restart)
    try:
        timer.start()
        assert keys_of(list(stream(ShardSet(url)).once(batch=8))) == made.keys
    finally:
        timer.join()
        for process in (first, *second):
            process.kill()
            process.wait()


_SLOW = """
import http.server, pathlib, sys, time
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        data = (pathlib.Path(sys.argv[1]) / self.path[1:]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for at in range(0, len(data), 1024):
            self.wfile.write(data[at:at + 1024])
            time.sleep(float(sys.argv[3]))
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/a?X-Sig=abc: no", "https://***@host/a?…: no"),
        ("https://me:p@ss@host/a@b: no", "https://***@host/a@b: no"),
        ("curl 'https://me:p'ss?@host/a'", "curl 'https://***@host/a'"),
        ("s3://bucket/a@b/c.tar, hf://datasets/a@main/x", "s3://bucket/a@b/c.tar, hf://datasets/a@main/x"),
        ("pipe:curl 'https://h/x?sig=1' (5 tries)", "pipe:curl 'https://h/x?…' (5 tries)"),
        ("no url? at all", "no url? at all"),
    ],
)
def test_no_message_shows_a_password_or_a_signature(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert str(UserError(text)) == shown


def test_a_password_goes_to_the_server_and_nowhere_else(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(f"{handler.path} {handler.headers['Authorization']}")
        name = handler.path.partition("?")[0]
        if name.endswith("2.tar"):
            handler.send_error(404)
            return
        data = (made.folder / name[1:]).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with serving(answer) as url:
        loader = stream(ShardSet(url.replace("//", "//me:p%40ss@") + "?sig=secret")).once(batch=8)
        list(loader)
    assert {line.partition(" ")[2] for line in asked} == {"Basic bWU6cEBzcw=="}
    assert all("?sig=secret " in line for line in asked)
    assert loader.damaged_samples == made.infos[2].samples
    shown = "".join(map(str, loader.named_damage)) + capfd.readouterr().err
    assert "404" in shown
    assert "secret" not in shown
    assert "ss@" not in shown
