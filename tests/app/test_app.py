"""``hpe app``, in a real browser too: photos, a camera and a video are read; other pages may not ask."""

import base64
import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from hpe.app import videos
from hpe.app.server import HOST, AppOptions, Handler, Server, State, app
from hpe.core.errors import UserError
from hpe.predict.face_reader import FaceReader, load
from tests import browser, made, made_video

REAL = pytest.mark.skipif(browser.found() is None, reason="no chromium in this environment")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return made.untrained(folder / "run", made.shards(folder / "shards", counts=(8,), val=4))


@contextmanager
def serving(run: Path, folder: Path, **options: int) -> Iterator[int]:
    """The port of a server on this run."""
    with Server((HOST, 0), Handler) as server:
        server.state = State(load(run, device="cpu"), folder, options.get("pixels", 10**7), options.get("bytes", 10**7))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.state.close()


@pytest.fixture
def port(run: Path, tmp_path: Path) -> Iterator[int]:
    (tmp_path / "served").mkdir()
    with serving(run, tmp_path / "served", bytes=100_000) as number:
        yield number


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def photo(path: Path) -> Path:
    Image.fromarray(made_video.head(0, (20.0, 0.0, 0.0), 96)[0]).save(path)
    return path


def watched(port: int) -> dict:
    until = time.monotonic() + 60
    while not (state := json.loads(ask(port, "GET", "/video")[1]))["done"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return state


def test_a_photo_gives_what_the_reader_gives(port: int, run: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    status, data = ask(port, "POST", "/photo", path.read_bytes())
    assert status == 200
    answer = json.loads(data)
    face = load(run, device="cpu").read(path)[0]
    (found,) = answer["faces"]
    assert found["emotion"] == face.emotion
    assert found["angles"] == pytest.approx(face.angles)
    assert found["probabilities"] == pytest.approx(face.probabilities)
    assert len(found["axes"]) == 3
    assert base64.b64decode(answer["picture"].partition(",")[2]).startswith(b"\xff\xd8")


def test_frames_of_a_camera_are_one_track_and_an_earlier_time_starts_afresh(port: int, tmp_path: Path) -> None:
    data = photo(tmp_path / "a.png").read_bytes()
    tracks = [
        json.loads(ask(port, "POST", f"/frame?{seconds}", data)[1])["faces"][0]["track"]
        for seconds in (1.0, 1.1, 1.2, 9.0, 0.5, 0.6)
    ]
    assert tracks == [0, 0, 0, 0, 0, 0]
    assert ask(port, "POST", "/frame?now", data)[0] == 422


def test_a_video_is_read_annotated_and_given_back(port: int, tmp_path: Path) -> None:
    assert ask(port, "GET", "/video")[0] == 404
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(6, 48, 48))
    assert ask(port, "POST", "/video", source.read_bytes())[0] == 200
    state = watched(port)
    assert (state["frames"], state["with_face"], state["tracks"], state["error"]) == (6, 6, 1, None)
    status, data = ask(port, "GET", "/video.mp4")
    assert status == 200
    (tmp_path / "back.mp4").write_bytes(data)
    with module_video(tmp_path / "back.mp4") as video:
        assert len(list(video)) == 6
    assert len(ask(port, "GET", "/predictions.jsonl")[1].splitlines()) == 6
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == ["annotated.mp4", "predictions.jsonl"]


def module_video(path: Path):
    from hpe.data.video import Video

    return Video(path)


def test_a_video_that_cannot_be_read_says_so_without_a_path(port: int, tmp_path: Path) -> None:
    assert ask(port, "POST", "/video", b"no video")[0] == 200
    state = watched(port)
    assert state["error"].startswith("this file: cannot be read as a video")
    assert str(tmp_path) not in json.dumps(state)
    assert ask(port, "GET", "/video.mp4")[0] == 404


def test_bad_uploads_get_a_reason(port: int) -> None:
    for path, body, status, reason in (
        ("/photo", b"no picture", 422, "this file: not a picture"),
        ("/photo", b"", 422, "empty file"),
        ("/video", bytes(100_001), 413, "more than the"),
        ("/else", b"x", 404, "nothing here"),
    ):
        found, data = ask(port, "POST", path, body)
        assert found == status
        assert reason in json.loads(data)["error"]
    assert ask(port, "GET", "/../pyproject.toml")[0] == 404


def test_a_network_that_fails_says_why(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory\n with much more")

    monkeypatch.setattr(FaceReader, "read", fails)
    monkeypatch.setattr(videos, "seen", fails)
    told = "CUDA out of memory with much more"
    status, data = ask(port, "POST", "/photo", photo(tmp_path / "a.png").read_bytes())
    assert (status, json.loads(data)["error"]) == (500, told)
    upload = made_video.write(tmp_path / "v.mp4", made_video.shades(2, 48, 48)).read_bytes()
    assert ask(port, "POST", "/video", upload)[0] == 200
    assert watched(port)["error"] == told


def test_other_pages_and_other_names_are_refused(port: int, tmp_path: Path) -> None:
    data = photo(tmp_path / "a.png").read_bytes()
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert ask(port, "POST", "/photo", data, **headers)[0] == 403
        assert ask(port, "GET", "/", None, **headers)[0] == 403
    assert ask(port, "POST", "/photo", data, Origin=f"http://localhost:{port}")[0] == 200


def test_a_hostile_name_of_a_run_stays_text(run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<script>alert(1)<"
    shutil.copytree(run, hostile)
    with serving(hostile, tmp_path) as number:
        page = ask(number, "GET", "/")[1].decode()
    assert "<script>alert" not in page
    assert page.count("<script") == 1


def test_mistakes_get_one_message(run: Path, tmp_path: Path) -> None:
    with Server((HOST, 0), Handler) as taken, pytest.raises(UserError, match=r"--port \d+: cannot be used"):
        app(run, AppOptions(port=taken.server_port, faces="given"))
    with pytest.raises(UserError):
        app(tmp_path / "no", AppOptions(port=0, faces="given"))
    with pytest.raises(UserError, match="only with a face detector; given faces"):
        app(run, AppOptions(port=0, faces="given", crop="square-1.2@detector"))
    with pytest.raises(UserError, match="faces='face'"):
        app(run, AppOptions(port=0, faces="face"))


@REAL
def test_the_page_works_in_a_browser(port: int, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    made_video.write(tmp_path / "v.mp4", made_video.shades(6, 96, 96))
    with browser.browser(
        tmp_path / "profile", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    ) as page:
        page.visit(f"http://{HOST}:{port}/")
        page.choose_file("#photo-file", tmp_path / "a.png")
        page.wait("document.querySelectorAll('#faces .card').length === 1")
        assert page.run("document.querySelectorAll('.bar').length") == 8
        assert page.run("document.querySelector('#message').textContent") == "1 face"
        assert page.run("document.querySelector('#picture').width") == 96
        page.choose_file("#photo-file", tmp_path / "v.mp4")
        page.wait("document.querySelector('#message').classList.contains('bad')")
        page.run("document.querySelector('#tab-camera').click()")
        page.run("document.querySelector('#camera-button').click()")
        page.wait("/frames.s/.test(document.querySelector('#message').textContent)")
        page.run("document.querySelector('#camera-button').click()")
        page.run("document.querySelector('#tab-video').click()")
        page.choose_file("#video-file", tmp_path / "v.mp4")
        page.wait("!document.querySelector('#player').hidden")
        assert "6 frames, 6 with a face, 1 face followed" in page.run("document.querySelector('#message').textContent")
        page.wait("document.querySelector('#player').readyState >= 2")
        assert all(url.startswith((f"http://{HOST}:{port}/", "blob:", "data:")) for url in page.requests)
        assert [one for one in page.problems if "422" not in one] == []
