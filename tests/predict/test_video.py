"""Videos in ``hpe predict``: faces keep their numbers, smoothing is judged against known angles, nothing is lost."""

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data import detect
from hpe.data.detect import Face as Detected
from hpe.data.images import RGBImage
from hpe.data.video import Video
from hpe.predict import face_finders, predict, video
from hpe.predict.faces import Face
from hpe.predict.options import PredictOptions
from hpe.predict.tracks import FaceTracks
from tests import made, made_video, warm


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return made.untrained(folder / "run", made.shards(folder / "shards", counts=(8,), val=4))


@pytest.fixture(scope="module")
def two_heads() -> list[tuple[RGBImage, list[made_video.Seen]]]:
    return made_video.moving_heads(24, width=160, height=128, heads=2)


class _Bright:
    """A detector of what is not the background's grey, by halves of the picture: the heads of ``moving_heads``."""

    name = "bright"

    def detect(self, images: list[RGBImage]) -> list[list[Detected]]:
        return [[box for half in (0, 1) if (box := self._box(image, half))] for image in images]

    def _box(self, image: RGBImage, half: int) -> Detected | None:
        top = half * image.shape[0] // 2
        part = np.abs(image[top : top + image.shape[0] // 2].astype(int) - 90).max(2) > 30
        rows, columns = np.nonzero(part)
        if len(rows) < 50:
            return None
        box = (float(columns.min()), float(top + rows.min()), float(columns.max() + 1), float(top + rows.max() + 1))
        return box, 0.9


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_finders, "open_detector", lambda *_, **__: _Bright())
    monkeypatch.setattr(video, "installed", lambda: ("mtcnn",))


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def skipped(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("bright")
def test_each_head_keeps_its_track_and_every_frame_its_time(run: Path, two_heads, tmp_path: Path) -> None:
    source = made_video.write(tmp_path / "two heads.mp4", [one for one, _ in two_heads], options={"crf": "10"})
    out = tmp_path / "out"
    assert predict(run, [str(source)], PredictOptions(out=out)) == 0
    found = rows(out)
    assert len(found) == 2 * len(two_heads)
    for row in found:
        truth = two_heads[row["frame"]][1][row["track"]].box
        assert np.abs(np.subtract([row[side] for side in ("x0", "y0", "x1", "y1")], truth)).max() < 14
        assert row["seconds"] == pytest.approx(row["frame"] / 10, abs=1e-3)
        assert row["source"] == str(source)
    with Video(out / "drawn" / "two heads.mp4") as drawn:
        frames = list(drawn)
    assert [one.seconds for one in frames] == pytest.approx([at / 10 for at in range(24)], abs=1e-3)
    assert max(frames[0].picture.shape[:2]) == 800
    assert (out / "skipped.jsonl").read_text() == ""
    assert sorted(path.name for path in out.iterdir()) == ["drawn", "predictions.jsonl", "skipped.jsonl"]


@pytest.mark.usefixtures("bright")
def test_raw_values_are_those_of_the_frames_as_images(run: Path, two_heads, tmp_path: Path) -> None:
    import hpe

    source = made_video.write(tmp_path / "v.mp4", [one for one, _ in two_heads[:6]])
    assert predict(run, [str(source)], PredictOptions(out=tmp_path, form="parquet", draw="none")) == 0
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert not (tmp_path / "drawn").exists()
    reader = hpe.load(run, faces="mtcnn", device="cpu")
    with Video(source) as read:
        expected = [face for faces in reader.each(frame.picture for frame in read) for face in faces.faces]
    for row, face in zip(table.to_pylist(), expected, strict=True):
        for name, value in face.to_dict().items():
            assert row[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    smooth = {name for name in table.column_names if name.endswith("_smooth")}
    assert {f"{name}_smooth" for name in (*ANGLES, "emotion", "direction", "valence", "arousal")} <= smooth
    assert {f"emotion_{name}_smooth" for name in EMOTIONS} <= smooth
    first = table.to_pylist()[0]
    assert first["yaw_smooth"] == pytest.approx(first["yaw"], abs=1e-3)
    assert sum(first[f"emotion_{name}_smooth"] for name in EMOTIONS) == pytest.approx(1, abs=1e-5)


def _face(angles: np.ndarray, x: float = 0.0, happy: float = 0.5) -> Face:
    yaw, pitch, roll = map(float, angles)
    shares = dict.fromkeys(EMOTIONS, (1 - happy) / 7) | {"happy": happy}
    return Face(
        box=(x, 0.0, x + 80, 80.0), heads=("emotion", "pose"), yaw=yaw, pitch=pitch, roll=roll,
        emotion=max(shares, key=lambda name: shares[name]), probabilities=shares, direction="forward",
    )  # fmt: skip


def _turns(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    turns = [Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True) for angles in (one, other)]
    return np.rad2deg((turns[0].inv() * turns[1]).magnitude())


@pytest.mark.slow
def test_smoothed_angles_are_nearer_to_the_truth_than_raw_ones() -> None:
    rng, at = np.random.default_rng(0), np.arange(240) / 30
    truth = np.stack((45 * np.sin(at), 15 * np.cos(1.3 * at), 8 * np.sin(0.7 * at)), 1)
    noise = Rotation.from_rotvec(rng.normal(0, 5, truth.shape), degrees=True)
    noisy = (noise * Rotation.from_euler("ZYX", truth[:, [2, 0, 1]], degrees=True)).as_euler("ZYX", degrees=True)
    noisy = noisy[:, [1, 2, 0]]
    tracks = FaceTracks()
    found = [tracks.next([_face(angles, 2.0 * number)], at[number])[0] for number, angles in enumerate(noisy)]
    assert {one.track for one in found} == {0}
    smooth = np.array([one.smooth.angles for one in found])
    assert [one.raw.angles for one in found] == [tuple(map(float, angles)) for angles in noisy]
    assert _turns(smooth, truth)[15:].mean() < 0.7 * _turns(noisy, truth)[15:].mean()
    as_seen = FaceTracks(np.inf)
    seen = [as_seen.next([_face(angles, 2.0 * number)], at[number])[0].smooth for number, angles in enumerate(noisy)]
    directions, flickering = ([face.direction for face in faces] for faces in ([one.smooth for one in found], seen))
    assert {"left", "right", "forward"} <= set(directions)
    assert _changes(directions) < 0.6 * _changes(flickering)


def _changes(directions: list[str | None]) -> int:
    return sum(one != other for one, other in pairwise(directions))


def test_smoothed_emotions_follow_their_probabilities_and_not_the_most_frequent_name() -> None:
    tracks = FaceTracks()
    flicker = [_face(np.zeros(3), happy=0.9 if number % 2 else 0.1) for number in range(60)]
    found = [tracks.next([face], number / 30)[0].smooth for number, face in enumerate(flicker)]
    assert {face.emotion for face in found[10:]} == {"happy"}
    assert all(sum(face.probabilities.values()) == pytest.approx(1, abs=1e-6) for face in found if face.probabilities)
    steady = FaceTracks(np.inf)
    assert [steady.next([face], number / 30)[0].smooth.probabilities for number, face in enumerate(flicker)] == [
        pytest.approx(face.probabilities) for face in flicker
    ]


def test_a_face_that_the_network_cannot_read_in_one_frame_is_unknown_there_alone() -> None:
    tracks = FaceTracks()
    lost = Face(box=(0.0, 0.0, 80.0, 80.0), heads=("emotion", "pose"))
    found = [tracks.next([face], at / 30)[0] for at, face in enumerate((_face(np.ones(3)), lost, _face(np.ones(3))))]
    assert [one.track for one in found] == [0, 0, 0]
    assert found[1].smooth.angles is None
    assert found[2].smooth.angles == pytest.approx((1, 1, 1), abs=1e-4)


def test_a_video_of_one_cropped_face_needs_no_detector(run: Path, tmp_path: Path) -> None:
    faces = [made_video.head(0, (2.0 * at, 0.0, 0.0), 48)[0] for at in range(5)]
    source = made_video.write(tmp_path / "v.mp4", faces, sound="aac")
    assert predict(run, [str(source)], PredictOptions(out=tmp_path / "out", faces="given", draw="cube")) == 0
    found = rows(tmp_path / "out")
    assert [(row["frame"], row["track"], row["x0"], row["x1"]) for row in found] == [(at, 0, 0, 48) for at in range(5)]
    with Video(tmp_path / "out" / "drawn" / "v.mp4") as drawn:
        assert drawn.has_sound
        assert len(list(drawn)) == 5


@pytest.mark.usefixtures("bright")
def test_frames_without_a_face_are_counted_and_named_by_stretches(
    run: Path, two_heads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = np.full_like(two_heads[0][0], 90)
    pictures = [*(one for one, _ in two_heads[:4]), *[empty] * 12, *(one for one, _ in two_heads[4:6]), empty]
    source = made_video.write(tmp_path / "v.mp4", pictures)
    assert predict(run, [str(source)], PredictOptions(out=tmp_path / "out")) == 0
    assert skipped(tmp_path / "out") == [
        "no face found in frames 4 to 15 (0.40 to 1.50 s)",
        "no face found in frames 18 to 18 (1.80 to 1.80 s)",
    ]
    assert {row["track"] for row in rows(tmp_path / "out")} == {0, 1, 2, 3}
    told = capsys.readouterr().err
    assert "12 faces in 19 frames of 1 video; 13 frames without a face" in told
    assert f"; written to {tmp_path}/out/predictions.jsonl and {tmp_path}/out/drawn\n" in told
    nothing = made_video.write(tmp_path / "n.mp4", [empty] * 3)
    assert predict(run, [str(nothing)], PredictOptions(out=tmp_path / "none")) == 0
    assert rows(tmp_path / "none") == []
    with Video(tmp_path / "none" / "drawn" / "n.mp4") as drawn:
        assert len(list(drawn)) == 3


def test_a_truncated_video_keeps_what_could_be_read_and_ends_with_1(run: Path, tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (30, 48, 48, 3)).astype(np.uint8))
    source = made_video.write(tmp_path / "v.mkv", noise)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    assert predict(run, [str(source)], PredictOptions(out=tmp_path / "out", faces="given")) == 1
    assert 5 < len(rows(tmp_path / "out")) < 25
    assert len(skipped(tmp_path / "out")) >= 1


def test_of_several_videos_one_that_cannot_be_read_is_named_and_the_others_are_read(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for name in ("b", "c/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        made_video.write(folder / f"{name}.mp4", made_video.shades(3, 48, 48))
    (folder / "a.mp4").write_bytes(b"no video")
    assert predict(run, [str(folder)], PredictOptions(out=tmp_path / "out", faces="given")) == 1
    assert [row["frame"] for row in rows(tmp_path / "out")] == [0, 1, 2, 0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "out" / "drawn").iterdir()) == ["b-2.mp4", "b.mp4"]
    (reason,) = skipped(tmp_path / "out")
    assert "a.mp4: cannot be read as a video" in reason


def test_mistakes_get_one_message_and_write_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(2, 48, 48))
    (tmp_path / "a.png").write_bytes(b"")
    out = tmp_path / "out"
    monkeypatch.setattr(video, "installed", tuple)
    for inputs, options, message in (
        ([source, tmp_path / "a.png"], {}, "use one command for each"),
        ([tmp_path / "no.mp4"], {}, "no such file"),
        (["9"], {}, "camera 9: cannot be opened"),
        ([source], {}, "no face detector is installed"),
        ([source], {"faces": "given", "steady": 0.0}, "--steady 0: expected a number above 0"),
        ([source], {"faces": "given", "draw": "lines"}, "--draw lines"),
        ([source], {"faces": "given", "crop": "square-1.2@detector"}, "given faces are not cropped"),
        ([source], {"faces": "given", "split": "val"}, "--split, --centre and --batch are not for videos"),
        ([source], {"faces": "given", "max_megapixels": 0.001}, "--max-megapixels"),
    ):
        with pytest.raises(UserError, match=message):
            predict(run, [str(one) for one in inputs], PredictOptions(out=out, **options))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="matches nothing"):
        predict(run, [str(tmp_path / "x*.mp4")], PredictOptions(out=out, faces="given"))
    assert not out.exists()
    (tmp_path / "films").mkdir()
    made_video.write(tmp_path / "films/a.mp4", made_video.shades(2, 48, 48))
    with pytest.raises(UserError, match="lies in the input folder"):
        predict(run, [str(tmp_path / "films")], PredictOptions(out=tmp_path / "films/read", faces="given"))
    Image.fromarray(made_video.shades(1, 48, 48)[0]).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="--steady 3: only for videos"):
        predict(run, [str(tmp_path / "b.png")], PredictOptions(out=out, steady=3.0))
    again = made_video.write(tmp_path / "w.mp4", made_video.shades(2, 48, 48))
    (out / "drawn").mkdir(parents=True)
    again.rename(out / "drawn" / "w.mp4")
    with pytest.raises(UserError, match="is the input"):
        predict(run, [str(out / "drawn" / "w.mp4")], PredictOptions(out=out, faces="given"))


def test_rows_are_printed_without_a_folder(run: Path, tmp_path: Path) -> None:
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(3, 48, 48))
    done = CliRunner().invoke(app, ["predict", str(run), str(source), "--faces", "given", "--format", "csv"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("source,frame,seconds,track,face,x0,")
    assert len(lines) == 4


def test_the_same_command_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(6, 48, 48))
    for name in ("a", "b"):
        assert predict(run, [str(source)], PredictOptions(out=tmp_path / name, faces="given")) == 0
    for part in ("predictions.jsonl", "skipped.jsonl", "drawn/v.mp4"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()


def _endless(path: Path) -> warm.Process:
    """Write a video into a pipe, frame after frame, until nobody reads it."""
    code = f"""
import time
import av, numpy as np
with open({str(path)!r}, "wb") as pipe, av.open(pipe, "w", format="mpegts") as made:
    stream = made.add_stream("mpeg2video", rate=25)
    stream.width = stream.height = 48
    for number in range(10 ** 6):
        made.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 48, 3), number % 255, np.uint8))))
        time.sleep(0.02)
"""
    return warm.Process("-c", code)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(run: Path, tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "v.ts")
    writer = _endless(tmp_path / "v.ts")
    out = tmp_path / "out"
    reading = warm.Process("-m", "hpe", "predict", run, tmp_path / "v.ts", "--faces", "given", "-o", out)
    try:
        until = time.monotonic() + 60
        while not list((out / "drawn").glob(".v.mp4*")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # a few frames
        reading.send_signal(number)
        _, said = reading.communicate(timeout=60)
    finally:
        for one in (writer, reading):
            one.send_signal(signal.SIGKILL)
            one.wait()
    assert reading.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    assert "Traceback" not in said
    assert not (out / "drawn" / "v.mp4").exists()
    assert not (out / "predictions.jsonl").exists()
    if number != signal.SIGKILL:
        assert list(out.rglob("*.part")) == []


def test_a_camera_is_read_until_a_signal_and_everything_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(40, 48, 48))

    class Camera(Video):
        def __init__(self, *given: object, **options: object) -> None:
            super().__init__(source)
            self.live, self.frames, self.name = True, None, "0"

        def __iter__(self):
            for frame in super().__iter__():
                if frame.number == 30:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.2)
                yield frame

    monkeypatch.setattr(video, "Video", Camera)
    assert predict(run, ["0"], PredictOptions(out=tmp_path / "out", faces="given")) == 0
    assert len(rows(tmp_path / "out")) == 30
    assert "ended by SIGINT; everything until then is kept" in capsys.readouterr().err
    with Video(tmp_path / "out" / "drawn" / "camera0.mp4") as drawn:
        assert len(list(drawn)) == 30


def test_a_full_disk_is_one_error_and_leaves_no_video(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made_video.write(tmp_path / "v.mp4", made_video.shades(6, 48, 48))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "v.mp4")

    monkeypatch.setattr("hpe.data.video.VideoWriter.write", full)
    with pytest.raises(OSError, match="No space left"):
        predict(run, [str(source)], PredictOptions(out=tmp_path / "out", faces="given"))
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["drawn"]


@pytest.mark.skipif("mtcnn" not in detect.installed(), reason="facenet-pytorch is not installed")
def test_mtcnn_finds_the_heads_of_a_video(run: Path, tmp_path: Path) -> None:
    frames = made_video.moving_heads(6, width=320, height=240, size=200)
    source = made_video.write(tmp_path / "v.mp4", [one for one, _ in frames], options={"crf": "10"})
    assert predict(run, [str(source)], PredictOptions(out=tmp_path / "out")) == 0
    assert {row["track"] for row in rows(tmp_path / "out")} == {0}
    assert set(DIRECTIONS) >= {row["direction_smooth"] for row in rows(tmp_path / "out")}
