"""The face mesh behind its pipe, extraction, the estimator and the smoothing of video frames."""

import json
import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shard_reader import OpenShard, open_tar
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.data.video import Video
from hpe.estimators.landmarks import as_pose_estimator
from hpe.landmarks.draw import Drawn, _evenly, _lines, draw_pictures, sheet
from hpe.landmarks.estimator import LandmarkEstimator, PosedFace
from hpe.landmarks.extract import DamagedError, Part, extract, input_images
from hpe.landmarks.mesh import MeshFace, MeshPool, chosen, install, interpreter, merged
from hpe.landmarks.model import LandmarkModel
from hpe.landmarks.regress import regressor
from hpe.landmarks.table import read_faces
from hpe.landmarks.topology import MESH468
from hpe.landmarks.video import SmoothedHeads, draw_video
from hpe.predict import predict
from hpe.predict.options import PredictOptions
from tests import made_video

RNG = np.random.default_rng(5)
FAKE = """
import struct, sys
import numpy as np
mesh = np.load({mesh!r})
while len(header := sys.stdin.buffer.read(6)) == 6:
    width, height, faces, views = struct.unpack("<HHBB", header)
    picture = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
    shade = int(picture[0, 0, 0])          # 0: no face; 250 and more: dies; else so many faces of 10 each
    if shade >= 250:
        sys.exit(3)
    found = shade // 10
    sys.stdout.buffer.write(struct.pack("<B", found))
    for k in range(found):
        sys.stdout.buffer.write(struct.pack("<B", 1))
        sys.stdout.buffer.write((mesh * (k + 1)).astype("float32").tobytes())
    sys.stdout.buffer.flush()
"""
MESH = RNG.uniform(10, 40, (468, 3))


@pytest.fixture
def fake(tmp_path, stand_in):
    """An interpreter whose mesh is a stand-in that counts faces by the shade of the first pixel."""
    np.save(tmp_path / "mesh.npy", MESH)
    return stand_in(FAKE.format(mesh=str(tmp_path / "mesh.npy")))


def _picture(shade: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), shade, np.uint8)


def _save(folder: Path, name: str, shade: int) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(_picture(shade)).save(folder / f"{name}.png")


def test_points_come_in_picture_axes_with_z_towards_the_viewer(fake):
    with closing(MeshPool(fake, "plain")) as mesh:
        (face,) = mesh.find(_picture(10))
    np.testing.assert_allclose(face.points[:, :2], MESH[:, :2], atol=1e-4)
    np.testing.assert_allclose(face.points[:, 2], MESH[:, 2].mean() - MESH[:, 2], atol=1e-4)
    assert (face.views, face.spread) == (1, 0.0)


def test_a_large_picture_is_thinned_and_its_points_scaled_back(fake):
    with closing(MeshPool(fake, "plain")) as mesh:
        (face,) = mesh.find(_picture(10, 4100))
    np.testing.assert_allclose(face.points[:, :2], 3 * MESH[:, :2], atol=1e-3)


@pytest.mark.parametrize(("which", "count"), [("all", 3), ("largest", 1), ("centre", 1)])
def test_which_of_several_faces_is_stated(fake, which, count):
    with closing(MeshPool(fake, "plain", which)) as mesh:
        assert len(mesh.find(_picture(30))) == count
        assert mesh.find(_picture(0)) == []


def test_the_largest_and_the_most_central_face_can_differ():
    def face(x, y, size):
        return MeshFace(MESH / 30 * size * (1, 1, 0) + (x, y, 0), 1, 0.0)

    small, large = face(90, 90, 10), face(0, 0, 60)
    assert chosen([small, large], "largest", (200, 200)) == [large]
    assert chosen([large, small], "centre", (200, 200)) == [small]


def test_views_are_averaged_after_the_mirrored_one_is_put_in_order():
    flipped = MESH[np.argsort(MESH468.mirror)]
    absent = np.full((468, 3), np.nan)
    face = merged(np.stack((MESH, flipped, absent, MESH + np.array((0, 0, 7)))))
    np.testing.assert_allclose(face.points[:, :2], MESH[:, :2], atol=1e-9)
    assert face.views == 3
    assert face.spread < 1e-9
    assert merged(np.stack((MESH, flipped + np.array((2, 0, 0))))).spread > 0.01


def test_a_mesh_that_dies_and_one_that_is_absent_are_named(fake, tmp_path, monkeypatch):
    with closing(MeshPool(fake, "plain")) as mesh, pytest.raises(UserError, match="ended with code 3"):
        mesh.find(_picture(255))
    monkeypatch.delenv("HPE_FACE_MESH_PYTHON", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="hpe landmarks install"):
        interpreter()
    with pytest.raises(UserError, match="views"):
        MeshPool(fake, "eleven")


def test_an_environment_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="failed"):
        install(tmp_path / "file" / "here")


def test_extraction_lists_failures_resumes_and_keeps_its_bytes(fake, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for name, shade in (("a", 10), ("b", 0), ("c", 20)):
        _save(pictures, name, shade)
    (pictures / "d.jpg").write_bytes(b"no picture")
    done = extract(pictures, out, python=fake, views="plain", workers=2)
    assert (done["images"], done["images_with_a_face"]) == (4, 2)
    assert (done["images_without_a_face"], done["images_unreadable"]) == (1, 1)
    assert done["failed"]["b"] == "no face"
    assert done["failed"]["d"].startswith("not a picture")
    part = out / "faces-000000.parquet"
    before = part.read_bytes()
    assert "images_per_second" not in extract(pictures, out, python=Path("/none"), views="plain")
    part.unlink()
    extract(pictures, out, python=fake, views="plain", workers=1)
    assert part.read_bytes() == before
    faces = read_faces(out)
    assert faces.keys == ("a", "c")
    assert np.isnan(faces.angles).all()
    np.testing.assert_allclose(faces.points[1, :, :2], 2 * MESH[:, :2], atol=1e-3)
    with pytest.raises(UserError, match="views was 'plain'"):
        extract(pictures, out, python=fake, views="mirror")


def test_shards_give_keys_and_angles(fake, tmp_path):
    image = tmp_path / "x.png"
    Image.fromarray(_picture(10)).save(image)
    shards = tmp_path / "shards"
    shards.mkdir()
    record = Record(yaw=10.0, pitch=-5.0, roll=2.0)
    info = write_shard(shards / "test-000000.tar", "test", [Sample("one", image.read_bytes(), "png", record)])
    Manifest("d", "v", "l", True, "none", {}, (info,)).save(shards)
    extract(shards, tmp_path / "out", python=fake, views="plain", workers=1)
    faces = read_faces(tmp_path / "out")
    assert faces.keys == ("one",)
    np.testing.assert_allclose(faces.angles, [[10.0, -5.0, 2.0]])
    assert pq.read_table(tmp_path / "out/faces-test-000000.parquet").num_rows == 1


def _shards(folder: Path, tars: list[list[Sample]]) -> Path:
    folder.mkdir()
    infos = [write_shard(folder / f"test-{row:06d}.tar", "test", samples) for row, samples in enumerate(tars)]
    Manifest("d", "v", "l", True, "none", {}, tuple(infos)).save(folder)
    return folder


def test_of_all_faces_only_the_labelled_one_has_the_labels_of_its_picture(fake, tmp_path):
    _save(tmp_path, "two", 20)  # the stand-in's second face lies at twice the places, and is the larger one
    image, small = (tmp_path / "two.png").read_bytes(), ((12.0, 12.0), (36.0, 36.0))
    labels = {"yaw": 40.0, "pitch": 1.0, "roll": 2.0, "subject": "she"}
    records = {
        "box": Record(**labels, box=(5.0, 5.0, 45.0, 45.0)),
        "head": Record(**labels, box=(-60.0, -60.0, 160.0, 160.0)),  # much larger than either face
        "landmarks": Record(**labels, landmarks=small, box=(20.0, 20.0, 80.0, 80.0)),
        "cropped": Record(**labels, landmarks=((-3.0, 2.0), (30.0, -1.0))),
        "elsewhere": Record(**labels, box=(500.0, 500.0, 600.0, 600.0)),
        "first": Record(**labels),
    }
    shards = _shards(tmp_path / "shards", [[Sample(key, image, "png", one) for key, one in records.items()]])
    extract(shards, tmp_path / "out", python=fake, views="plain", which="all", workers=1)
    faces = read_faces(tmp_path / "out")
    sizes = np.ptp(faces.points[:, :, 0], axis=1)
    assert faces.labelled is not None
    whose: dict[str, list[int]] = {key: [] for key in records}
    for row in np.flatnonzero(faces.labelled):
        whose[faces.keys[row]].append(round(sizes[row] / np.ptp(MESH[:, 0])))
    assert whose == {"box": [1], "head": [2], "landmarks": [1], "cropped": [2], "elsewhere": [], "first": [2]}
    assert (np.isfinite(faces.angles).all(1) == faces.labelled).all()
    table = pq.read_table(tmp_path / "out/faces-test-000000.parquet").to_pylist()
    assert all((row["subject"] == "she") == (row["yaw"] == 40.0) == row["labelled"] for row in table)
    mats = tmp_path / "mats"
    mats.mkdir()
    for key in records.keys() - {"elsewhere"}:
        scipy.io.savemat(mats / f"{key}.mat", {"Pose_Para": np.deg2rad([[1.0, 30.0, 2.0]])})
    given = read_faces(tmp_path / "out", mats)
    np.testing.assert_allclose(given.angles[:, 0], np.where(faces.labelled, 30.0, np.nan))


def test_tables_of_older_versions_have_the_angles_of_a_picture_for_its_first_face(fake, tmp_path):
    _save(tmp_path / "pictures", "two", 20)
    extract(tmp_path / "pictures", tmp_path / "out", python=fake, views="plain", which="all", workers=1)
    path = tmp_path / "out/faces-000000.parquet"
    table = pq.read_table(path).drop_columns("labelled")
    for name in ("yaw", "pitch", "roll"):
        table = table.set_column(table.column_names.index(name), name, [[40.0, 40.0]])
    pq.write_table(table, path)
    np.testing.assert_array_equal(read_faces(tmp_path / "out").angles, [[40.0] * 3, [np.nan] * 3])


def test_pictures_of_300w_lp_beside_their_angles_have_their_photo_as_subject(fake, tmp_path):
    raw, stems = tmp_path / "raw", ("AFW_134212_1_0", "AFW_134212_1_1", "image00002")
    for stem in stems:
        _save(raw, stem, 10)
        scipy.io.savemat(raw / f"{stem}.mat", {"Pose_Para": np.deg2rad([[1.0, 30.0, 2.0]])})
    extract(raw, tmp_path / "out", python=fake, views="plain", workers=1)
    table = pq.read_table(tmp_path / "out/faces-000000.parquet")
    assert table["subject"].to_pylist() == ["AFW_134212", "AFW_134212", None]
    np.testing.assert_allclose(table["yaw"].to_numpy(), 30.0, atol=1e-4)


def test_settings_that_go_back_to_their_defaults_are_noticed(fake, tmp_path, monkeypatch):
    _save(tmp_path / "pictures", "a", 10)
    source, out = tmp_path / "pictures", tmp_path / "out"
    extract(source, out, python=fake, views="plain", workers=1, max_pixels=1_000_000)
    with pytest.raises(UserError, match="max_pixels was 1000000, is 64000000"):
        extract(source, out, python=fake, views="plain", workers=1)
    monkeypatch.setattr("hpe.landmarks.extract.group_detector", lambda: "mtcnn")
    monkeypatch.setattr("hpe.landmarks.mesh.open_detector", lambda name: None)
    extract(source / "a.png", tmp_path / "all", python=fake, which="largest", workers=1)
    settings = json.loads((tmp_path / "all/extract.json").read_text())
    (tmp_path / "all/extract.json").write_text(json.dumps({**settings, "which": "all", "detector": "mtcnn"}))
    monkeypatch.setattr("hpe.landmarks.extract.group_detector", lambda: None)
    with pytest.raises(UserError, match="detector was 'mtcnn', is None"):
        extract(source / "a.png", tmp_path / "all", python=fake, which="all", workers=1)
    (tmp_path / "all/extract.json").write_text(json.dumps({**settings, "format": "hpe-landmarks/3"}))
    with pytest.raises(UserError, match=r"another version of hpe \(hpe-landmarks/3"):
        extract(source / "a.png", tmp_path / "all", python=fake, workers=1)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        input_images(tmp_path)


@pytest.fixture
def model(tmp_path):
    """A ridge that has learned nothing of value from 40 random meshes."""
    points = MESH + RNG.normal(size=(40, 468, 3))
    fitted = regressor("aligned", "ridge", {"alpha": 1.0}).fit(points, RNG.uniform(-20, 20, (40, 3)))
    LandmarkModel(fitted, "mesh468", "aligned", "ridge", "plain", None).save(tmp_path / "model")
    return tmp_path / "model"


def test_pictures_without_a_face_have_no_angles(fake, model):
    with closing(LandmarkEstimator(model, python=fake)) as estimator:
        angles = estimator.estimate([_picture(10), _picture(0)])
        faces = estimator.faces(_picture(10))
    assert np.isfinite(angles[0]).all()
    assert np.isnan(angles[1]).all()
    np.testing.assert_allclose(faces[0].box[:2], MESH[:, :2].min(0), atol=1e-4)


def test_the_pose_pass_can_use_it_as_an_estimator(fake, model):
    estimator = as_pose_estimator(model, python=fake)
    images = torch.stack([torch.full((3, 320, 320), shade, dtype=torch.uint8) for shade in (10, 0)])
    poses = estimator.predict(images)
    with closing(LandmarkEstimator(model, python=fake)) as direct:
        expected = direct.estimate([_picture(10, 320), _picture(0, 320)])
    np.testing.assert_allclose(poses.angles.numpy(), expected, atol=1e-4)
    assert len(estimator.weights_sha256) == 64


def test_axes_change_the_pictures_of_faces_only(fake, model, tmp_path):
    pictures, sheet = tmp_path / "pictures", tmp_path / "sheet.png"
    _save(pictures, "a", 10)
    _save(pictures, "b", 0)
    drawn = draw_pictures(model, pictures, sheet, python=fake)
    assert (drawn.read, drawn.with_a_face, drawn.unread) == (2, 1, [])
    pixels = np.asarray(Image.open(sheet))
    assert (pixels[:400, 60:400] != 10).any()
    assert (pixels[60:400, 460:880] == 0).all()
    with pytest.raises(UserError, match=r"\.png"):
        draw_pictures(model, pictures, tmp_path / "sheet.gif", python=fake)


@pytest.mark.parametrize(("count", "columns", "rows"), [(2, 2, 1), (5, 5, 1), (7, 4, 2), (13, 5, 3)])
def test_a_sheet_has_no_empty_column_and_at_most_one_row_that_is_not_full(count, columns, rows):
    red = Image.new("RGB", (30, 30), "red")
    page = np.asarray(sheet([(red, ["name"])] * count))
    side = page.shape[1] // columns
    assert page.shape[:2] == (rows * (side + 16), columns * side)
    middles = page[side // 2 :: side + 16, side // 2 :: side]
    assert ((middles == (255, 0, 0)).all(2)).sum() == count


def test_one_picture_is_drawn_at_a_size_to_look_at_with_axes_and_figures_of_every_face(fake, model, tmp_path):
    _save(tmp_path / "pictures", "group", 30)  # three faces of the stand-in
    sides, changed = {}, {}
    for which in ("largest", "all"):
        out = tmp_path / f"{which}.png"
        drawn = draw_pictures(model, tmp_path / "pictures/group.png", out, which=which, python=fake)
        assert (drawn.read, drawn.with_a_face) == (1, 1)
        pixels = np.asarray(Image.open(out))
        sides[which], changed[which] = pixels.shape, (pixels != 30).any(2).mean()
    assert set(sides.values()) == {(800, 800, 3)}
    assert changed["all"] > 1.5 * changed["largest"] > 0
    told = _lines("group", [_posed(200.0, 5.0), _posed(0.0, -30.0)])
    assert told == ["group: 2 faces, left to right", "-30 +0 +0", "+5 +0 +0"]
    assert len(_lines("crowd", [_posed(200.0 * k, 5.0) for k in range(30)])) == 7


def test_drawing_names_what_it_cannot_read_and_ends_with_1(fake, model, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "sheet.png"
    _save(pictures, "a", 10)
    (pictures / "bro\nken.jpg").write_bytes(b"no picture")
    arguments = ["landmarks", "draw", str(model), str(pictures), str(out), "--python", str(fake)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "1 of 2 pictures have a face" in done.stdout
    assert "landmarks: bro\nken: " in done.stderr
    (pictures / "bro\nken.jpg").unlink()
    _save(pictures, "b", 0)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    out.unlink()
    (tmp_path / "alone.jpg").write_bytes(b"no picture")
    alone = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "alone.jpg"), *arguments[4:]])
    assert alone.exit_code == 1
    assert not out.exists()


def test_a_damaged_shard_is_named_and_the_others_are_drawn(fake, model, tmp_path):
    _save(tmp_path, "x", 10)
    shards, image = tmp_path / "shards", (tmp_path / "x.png").read_bytes()
    shards.mkdir()
    infos = [
        write_shard(shards / f"test-{row:06d}.tar", "test", [Sample(f"k{row}", image, "png", Record())])
        for row in range(2)
    ]
    Manifest("d", "v", "l", True, "none", {}, tuple(infos)).save(shards)
    (shards / "test-000000.tar").write_bytes(b"\xff" * 5000)
    drawn = draw_pictures(model, shards, tmp_path / "sheet.png", python=fake)
    assert (drawn.read, drawn.with_a_face, len(drawn.unread)) == (1, 1, 1)
    assert "test-000000.tar" in drawn.unread[0]


def test_a_sheet_reads_no_other_pictures_than_it_shows(fake, model, tmp_path, monkeypatch):
    _save(tmp_path, "x", 10)
    image = (tmp_path / "x.png").read_bytes()
    tars = [[Sample(f"k{row}{at}", image, "png", Record()) for at in range(4)] for row in range(5)]
    shards, opened, read = _shards(tmp_path / "shards", tars), [], []

    def opens(path):
        opened.append(path.name)
        return open_tar(path)

    def reads(shard, row):
        read.append(shard.keys[row])
        return image_of(shard, row)

    image_of = OpenShard.image
    monkeypatch.setattr("hpe.landmarks.extract.open_tar", opens)
    monkeypatch.setattr(OpenShard, "image", reads)
    assert draw_pictures(model, shards, tmp_path / "sheet.png", count=2, python=fake).read == 2
    assert (opened, read) == (["test-000000.tar", "test-000002.tar"], ["k00", "k22"])
    (shards / "test-000000.tar").write_bytes(b"\xff" * 5000)
    drawn = draw_pictures(model, shards, tmp_path / "sheet.png", count=1, python=fake)
    assert (drawn.read, len(drawn.unread), read[2:]) == (1, 1, ["k10"])
    write_shard(shards / "test-000004.tar", "test", tars[4][:1])
    drawn = draw_pictures(model, shards, tmp_path / "sheet.png", count=16, python=fake)
    assert drawn.read == 12
    assert "1 samples; its manifest lists" in drawn.unread[1]


def test_of_very_many_damaged_shards_each_is_named(tmp_path):
    def damaged(number):
        def read(rows=None):
            raise DamagedError(f"shard {number}")

        return Part(f"{number}", "", 1, read)

    drawn = Drawn()
    assert _evenly([damaged(number) for number in range(1500)], 1, drawn) == []
    assert len(drawn.unread) == 1500


def test_the_commands_tell_what_they_did(fake, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    _save(pictures, "a", 10)
    _save(pictures, "b", 0)
    arguments = ["landmarks", "extract", str(pictures), str(out), "--python", str(fake), "--views", "plain"]
    done = CliRunner().invoke(app, [*arguments, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "1 of 2 pictures have a face" in done.stdout
    assert "1 have none" in done.stdout
    assert json.loads((out / "extract.json").read_text())["failed"] == {"b": "no face"}
    (pictures / "c.jpg").write_bytes(b"no picture")
    damaged = CliRunner().invoke(app, [*arguments, "--workers", "1"])
    assert damaged.exit_code == 1
    assert "1 of 3 pictures have a face" in damaged.stdout
    assert "landmarks: c: not a picture" in damaged.stderr
    refused = CliRunner().invoke(app, ["landmarks", "compare", str(out), str(tmp_path / "compared")])
    assert isinstance(refused.exception, UserError)


def _posed(x: float, yaw: float) -> PosedFace:
    return PosedFace(np.array((yaw, 0.0, 0.0)), (x, 0.0, x + 100.0, 100.0), 0.0)


def test_each_of_two_heads_has_a_filter_of_its_own_whatever_their_order():
    heads = SmoothedHeads()
    for frame in range(20):
        pair = [_posed(0.0 + frame, 30.0), _posed(300.0 - frame, -50.0)]
        found = heads.next(pair if frame % 2 else pair[::-1], frame / 25)
        assert sorted(round(float(face.angles[0]), 6) for face in found) == [-50.0, 30.0]


def test_a_video_has_axes_where_there_are_faces_and_as_many_frames(fake, model, tmp_path):
    pictures = [np.full((64, 96, 3), shade, np.uint8) for shade in (14, 14, 0, 14)]
    source = made_video.write(tmp_path / "in.mp4", pictures, options={"crf": "0"})
    out = tmp_path / "out.mp4"
    assert draw_video(model, source, out, python=fake, workers=2) == (3, 4, [])
    with Video(out) as video:
        frames = list(video)
    assert [frame.seconds for frame in frames] == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=1e-3)
    assert [bool(frame.picture.max() > 60) for frame in frames] == [True, True, False, True]
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(UserError, match=r"ends with \.mp4"):
        draw_video(model, source, tmp_path / "out.png", python=fake)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        draw_video(model, tmp_path / "no.mp4", out, python=fake)


def test_predict_takes_the_models_folder_and_finds_one_face_or_all(fake, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_FACE_MESH_PYTHON", str(fake))
    pictures = tmp_path / "pictures"
    for name, shade in (("a", 20), ("b", 0)):
        _save(pictures, name, shade)
    for faces, count in (("given", 1), ("all", 2)):
        out = tmp_path / faces
        assert predict(model, [str(pictures)], PredictOptions(out=out, faces=faces, draw="axes")) == 0
        rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert [(row["key"], row["face"]) for row in rows] == [("a", number) for number in range(count)]
        assert json.loads((out / "skipped.jsonl").read_text())["key"] == "b"
        with closing(LandmarkEstimator(model, python=fake)) as direct:
            (face,) = direct.faces(_picture(20))
        np.testing.assert_allclose([rows[0][name] for name in ("yaw", "pitch", "roll")], face.angles, atol=1e-4)
    with pytest.raises(UserError, match="largest or centre or all"):
        predict(model, [str(pictures)], PredictOptions(faces="mtcnn"))


def test_pose_takes_the_models_folder_and_any_crop(fake, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_FACE_MESH_PYTHON", str(fake))
    pictures, shards = tmp_path / "pictures", tmp_path / "shards"
    shards.mkdir()
    samples = []
    for name, shade in (("one", 10), ("two", 0)):
        _save(pictures, name, shade)
        samples.append(Sample(name, (pictures / f"{name}.png").read_bytes(), "png", Record()))
    info = write_shard(shards / "test-000000.tar", "test", samples)
    Manifest("d", "v", "l", True, "square-1.4@landmarks", {}, (info,)).save(shards)
    done = CliRunner().invoke(app, ["pose", str(shards), "-e", str(model), "--threads", "2"])
    assert done.exit_code == 0, done.output
    assert "no angles for 1 face; 1 of them: no face found by the mesh" in done.stderr
    assert "without a face 1; unreadable 0" in done.stdout
    table = pq.read_table(shards / "pose/landmarks-ridge/test-000000.parquet").to_pylist()
    assert [row["yaw"] is None or math.isnan(row["yaw"]) for row in table] == [False, True]
    assert [row["problem"] for row in table] == [None, "no face found by the mesh"]
    info = write_shard(shards / "test-000000.tar", "test", [*samples, Sample("text", b"hello", "png", Record())])
    Manifest("d", "v", "l", True, "square-1.4@landmarks", {}, (info,)).save(shards)
    done = CliRunner().invoke(app, ["pose", str(shards), "-e", str(model), "--threads", "2", "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert "without a face 1; unreadable 1" in done.stdout


def test_a_mesh_model_that_is_none_is_refused(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_FACE_MESH_MODEL", str(tmp_path / "own.tflite"))
    for data in (None, b"no model"):
        if data:
            (tmp_path / "own.tflite").write_bytes(data)
        with pytest.raises(UserError, match="HPE_FACE_MESH_MODEL"):
            MeshPool(fake, "plain")


def test_predict_is_there_without_the_extra_of_landmarks():
    without = (
        "import sys; sys.modules.update(dict.fromkeys(('cv2', 'skops', 'xgboost'))); import hpe.predict.read_faces"
    )
    subprocess.run([sys.executable, "-c", without], check=True)


@pytest.mark.real
def test_the_real_mesh_gives_the_reference_points(shared, mesh_python):
    reference = read_faces(shared / "data/aflw2000_mediapipe468.npz")
    keys = reference.keys[:12]
    with closing(MeshPool(mesh_python, "plain")) as mesh:
        for row, key in enumerate(keys):
            (face,) = mesh.find(np.asarray(Image.open(shared / f"data/aflw2000/{key}.jpg").convert("RGB")))
            gaps = np.linalg.norm((face.points - reference.points[row])[:, :2], axis=1)
            assert gaps.max() < 0.02 * np.ptp(face.points[:, 0])  # decoders differ by a grey level
        assert mesh.find(np.zeros((200, 200, 3), np.uint8)) == []
