"""Real object stores on loopback: the batches of files, the first window only, each shard once, faults named."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hpe
from hpe.core.errors import UserError
from hpe.data.index import IndexFile, index_shard, write_index
from hpe.data.remote_cache import RemoteCache, _evicted
from hpe.data.shards import IndexInfo, Manifest
from hpe.stream import LabelSource, ShardSet
from tests import warm
from tests.stream.tiny import Made, keys_of, make, pose_tables, same, stream, taken


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts what is asked for; ``allowed`` says whether it still does."""

    asked: Counter[str]
    allowed: threading.Event

    def do_GET(self) -> None:
        self.asked[self.path.rpartition("/")[2]] += 1
        if self.allowed.is_set():
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def indexed(made: Made) -> Made:
    """The same shards with an index beside them, as ``hpe pack`` writes it."""
    rows = [index_shard(made.folder / info.name) for info in made.infos]
    size, digest = write_index(made.folder / "train.arrow", [entry for entry, _ in rows], [batch for _, batch in rows])
    index = IndexInfo("train.arrow", "train", size, digest)
    Manifest("test", "v", "none", True, "none", {}, made.infos, indexes=(index,)).save(made.folder)
    return made


@pytest.fixture
def many(tmp_path: Path) -> Made:
    return indexed(make(tmp_path / "many", (6,) * 24))


@pytest.fixture
def counted(many: Made) -> Iterator[tuple[str, Any]]:
    handler = type("Handler", (Counting,), {"asked": Counter(), "allowed": threading.Event()})
    handler.allowed.set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(many.folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        thread.join()


def tars(asked: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in asked.items() if name.endswith(".tar")}


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def test_only_the_first_window_comes_before_the_first_batch_and_the_next_one_while_it_trains(
    many: Made, counted: tuple[str, Any]
) -> None:
    url, server = counted
    shards = stream(ShardSet(url), workers=2)
    assert sum(shards.label_counts().emotion) == len(many.keys)
    assert not tars(server.asked)
    with shards.endless(seed=1, batch=6, window=6) as loader:
        next(loader)
        first = len(tars(server.asked))
        assert first <= 6
        until(lambda: len(tars(server.asked)) == 12)  # no batch has needed the second window yet
    assert set(tars(server.asked).values()) == {1}


def test_ranks_of_a_node_fetch_each_shard_once(many: Made, counted: tuple[str, Any], tmp_path: Path) -> None:
    url, server = counted
    script = (
        "import sys; from hpe.stream import *; "
        "loader = Stream([ShardSet(sys.argv[1])], Reading(size=16, workers=1)).once(batch=12, "
        "rank=int(sys.argv[2]), ranks=2); print(sum(len(one.batch.keys) for one in loader), loader.damaged_samples)"
    )
    ranks = [warm.Process("-c", script, url, rank, env=os.environ | {"LOCAL_RANK": "0"}) for rank in range(2)]
    assert [rank.communicate(60) for rank in ranks] == [("72 0\n", "")] * 2
    assert tars(server.asked) == {info.name: 1 for info in many.infos}


_RANK = """
import sys
from hpe.data.remote_cache import RemoteCache

print("ready", flush=True)
sys.stdin.readline()
(path,) = RemoteCache.of_node().small_files(sys.argv[1], ["a.parquet"])
print(path.read_text())
"""


def ranks_of_a_command(folder: Path) -> list[str]:
    """What two ranks read, each with a shell of its own as under ``srun bash -c``."""
    env = os.environ | {"LOCAL_RANK": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    rank = [sys.executable, "-c", _RANK, f"file://{folder}"]
    ranks = [subprocess.Popen(rank, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "01"]
    assert [one.stdout.readline() for one in ranks if one.stdout] == ["ready\n"] * 2  # as a rendezvous
    return [one.communicate("\n", 60)[0].strip() for one in ranks]


def test_ranks_of_a_job_share_a_file_without_a_digest_and_the_next_command_fetches_it_again(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    table.write_text("old")
    assert ranks_of_a_command(tmp_path) == ["old", "old"]
    assert len(list(_cache().glob("*.tar"))) == 1
    table.write_text("new")
    assert ranks_of_a_command(tmp_path) == ["new", "new"]
    assert len(list(_cache().glob("*.tar"))) == 2


def test_rights_that_end_in_the_middle_stop_the_run_with_one_message(many: Made, counted: tuple[str, Any]) -> None:
    url, server = counted
    with stream(ShardSet(url), workers=2).endless(seed=1, batch=6, window=2) as loader:
        next(loader)
        server.allowed.clear()
        with pytest.raises(UserError, match=r"train-.*the store refuses access: HTTP Error 403.*same command again"):
            for _ in range(60):
                next(loader)
        assert not loader.damaged_samples


def test_windows_larger_than_the_cache_are_refused_before_anything_is_fetched(
    many: Made, counted: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = counted
    monkeypatch.setenv("HPE_CACHE_LIMIT_GB", str(5 * many.infos[0].bytes / 1e9))
    with pytest.raises(UserError, match=r"a window of 6 shards and the next one need .*HPE_CACHE_LIMIT_GB"):
        stream(ShardSet(url)).endless(seed=1, batch=6, window=6)
    assert not tars(server.asked)
    with stream(ShardSet(url)).endless(seed=1, batch=6, window=2) as loader:
        assert len(set(keys_of(taken(loader, 24)))) == len(many.keys)
    assert RemoteCache.of_node().limit_bytes >= sum(path.stat().st_size for path in _cache().glob("*.tar"))


@pytest.mark.parametrize("open_it", [lambda url: next(iter(stream(ShardSet(url)).once(batch=4))), hpe.tables])
def test_an_index_does_not_make_room_while_it_is_opened(
    counted: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, open_it: Callable[[str], object]
) -> None:
    check, freed = IndexFile.check, []

    def evicted_if_that_can_be(self: IndexFile, path: Path) -> None:
        freed.append(_evicted(path))
        check(self, path)

    monkeypatch.setattr(IndexFile, "check", evicted_if_that_can_be)
    open_it(counted[0])
    assert freed == [0]


def _cache() -> Path:
    return RemoteCache.of_node().folder


@pytest.mark.parametrize("workers", [0, 2])
def test_staged_shards_give_the_batches_of_files_and_a_damaged_copy_is_named(
    made: Made, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(made)
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    staged = taken(stream(made.folder, stage="node", workers=workers).endless(seed=2, batch=6, window=2), 8)
    assert all(same(a.batch, b.batch) for a, b in zip(staged, files, strict=True))
    assert len(list(_cache().glob("*.tar"))) == len(made.infos)
    monkeypatch.setattr("hpe.data.store._FIRST_PAUSE", 0.01)
    monkeypatch.setenv("HPE_CACHE", str(made.folder.parent / "another"))  # or the whole copy would be read again
    tar = made.folder / made.infos[0].name
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8", b"\xff\xd7", 1))
    loader = stream(made.folder, stage="node").once(batch=8)
    list(loader)
    assert loader.damaged_samples == made.infos[0].samples
    assert "sha256" in loader.named_damage[0].reason


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3 server on loopback, whose address and credentials are where the drivers look for them."""
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "verysecret", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            environment.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    server.stop()


@pytest.mark.slow
def test_s3_gives_the_batches_of_files(made: Made, s3: Any, capfd: pytest.CaptureFixture[str]) -> None:
    indexed(made)
    pose_tables(made, made.folder / "pose")
    for path in made.folder.rglob("*.*"):
        s3.upload_file(str(path), "bucket", f"a/{path.relative_to(made.folder)}")
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    for way in ("s3://bucket/a", "s3://bucket/a/train-*.tar"):
        read = taken(stream(ShardSet(way), workers=2).endless(seed=2, batch=6, window=2), 8)
        assert all(same(a.batch, b.batch) for a, b in zip(read, files, strict=True)), way
    labels = LabelSource("pose", "ours")
    posed, there = (
        list(stream(ShardSet(place, None, f"{place}/pose"), labels=labels).once(batch=8))
        for place in (str(made.folder), "s3://bucket/a")
    )
    assert all(same(a.batch, b.batch) for a, b in zip(posed, there, strict=True))
    assert "Traceback" not in capfd.readouterr().err  # of a reader that closes what its parent has opened


def test_s3_faults_are_named_at_once_and_a_missing_shard_is_counted(made: Made, s3: Any) -> None:
    for path in made.folder.iterdir():
        if path.name != made.infos[3].name:
            s3.upload_file(str(path), "bucket", f"b/{path.name}")
    start = time.monotonic()
    for way, told in {
        "s3://nobucket/a": "refuses access: The specified bucket does not exist",
        "s3://bucket/none": "1 try.*key does not exist.*manifest of `hpe pack`",
        "s3://nobucket/*.tar": "names no shards|refuses access|cannot be listed",
    }.items():
        with pytest.raises(UserError, match=told):
            stream(ShardSet(way))
    assert time.monotonic() - start < 5
    loader = stream(ShardSet("s3://bucket/b")).once(batch=8)
    list(loader)
    assert loader.damaged_samples == made.infos[3].samples
    assert "1 try" in loader.named_damage[0].reason


@pytest.fixture
def new_driver(s3: Any) -> Iterator[None]:
    """s3fs keeps a driver with its settings; this test has one of its own."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


class Redirecting(http.server.BaseHTTPRequestHandler):
    """An S3 server that sends every request to another region, and does not name it."""

    def do_GET(self) -> None:
        body = b"<Error><Code>PermanentRedirect</Code><Message>Use the specified endpoint.</Message></Error>"
        self.send_response(301)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_a_redirect_without_a_region_ends_in_one_message_with_the_settings_to_check(
    new_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(
            UserError, match=r"redirects without naming.*AWS_DEFAULT_REGION.*AWS_ENDPOINT_URL_S3"
        ) as end:
            stream(ShardSet("s3://elsewhere/*.tar"))
        server.shutdown()
        thread.join()
    assert "recursion" not in str(end.value)


def test_an_unexpected_error_of_a_driver_is_named_with_the_settings_to_check(
    new_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("ETag")

    monkeypatch.setattr("s3fs.S3FileSystem._get_file", broken)
    monkeypatch.setattr("hpe.data.store._FIRST_PAUSE", 0.0)
    with pytest.raises(
        UserError, match=r"\(5 tries\): KeyError: 'ETag'; check the name, the region \(AWS_DEFAULT_REGION"
    ):
        stream(ShardSet("s3://bucket/a"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://bucket/a", r"the driver of gs:// is not installed; pip install 'hpe\[gs\]'"),
        ("adl://store/a", "the driver of adl:// is not installed"),
        ("nosuch://x/y.tar", "no kind of store"),
        ("s3://bucket/a.tar::file", "chains"),
    ],
)
def test_a_store_without_a_driver_is_named_at_once(url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=told):
        stream(ShardSet(url))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as reading files of a dataset takes."""

    folder: Path

    def do_GET(self) -> None:
        path, name = self.path.partition("?")[0], self.path.partition("?")[0].rpartition("/")[2]
        if "/resolve/" in path and (self.folder / name).is_file():
            self._answer(200, (self.folder / name).read_bytes(), ETag='"x"', **{"X-Repo-Commit": "a" * 40})
        elif path == "/api/datasets/me/faces":
            self._answer(200, json.dumps({"id": "me/faces", "sha": "a" * 40, "siblings": [], "tags": []}).encode())
        elif path.startswith("/api/datasets/me/faces/tree/main/a"):
            files = [
                {"type": "file", "path": f"a/{file.name}", "size": file.stat().st_size, "oid": "0" * 40}
                for file in self.folder.iterdir()
            ]
            self._answer(200, json.dumps(files).encode())
        else:
            self._answer(404, b"{}", **{"X-Error-Code": "EntryNotFound" if "me/faces" in path else "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data)), "Content-Type": "application/json"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_the_hugging_face_hub_gives_the_batches_of_files(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    handler = type("Handler", (Hub,), {"folder": made.folder})
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = {"endpoint": f"http://127.0.0.1:{server.server_address[1]}"}
        monkeypatch.setitem(fsspec.config.conf, "hf", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        read = taken(stream(ShardSet("hf://datasets/me/faces/a"), workers=1).endless(seed=2, batch=6, window=2), 8)
        with pytest.raises(UserError, match=r"hf://datasets/me/none/a/manifest\.json.*1 try"):
            stream(ShardSet("hf://datasets/me/none/a"))
        server.shutdown()
        thread.join()
    assert all(same(a.batch, b.batch) for a, b in zip(read, files, strict=True))


def test_nginx_gives_the_batches_of_files(made: Made, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx here (Debian: apt-get install nginx-light)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(_NGINX.format(folder=tmp_path, port=port, shards=made.folder))
    files = taken(stream(made.folder).endless(seed=2, batch=6, window=2), 8)
    with subprocess.Popen([nginx, "-c", str(config), "-e", str(tmp_path / "error.log")]) as server:
        try:
            until(lambda: _listening(port))
            url = f"http://127.0.0.1:{port}"
            read = taken(stream(ShardSet(url), workers=2).endless(seed=2, batch=6, window=2), 8)
            with pytest.raises(UserError, match="refuses access: HTTP Error 403"):
                stream(ShardSet(f"{url}/denied"))
        finally:
            server.terminate()
    assert all(same(a.batch, b.batch) for a, b in zip(read, files, strict=True))


def _listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


_NGINX = """\
daemon off; pid {folder}/pid; worker_processes 1; master_process off;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {shards}; location /denied/ {{ return 403; }} }}
}}
"""
