"""``hpe landmarks`` where pictures come and go, files are damaged, and the mesh or OUT cannot be used."""

import errno
import json
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import skops.io
from PIL import Image
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.landmarks import extract as extraction
from hpe.landmarks.compare import CompareOptions, compare
from hpe.landmarks.estimator import LandmarkEstimator
from hpe.landmarks.extract import extract
from hpe.landmarks.mesh import MeshPool, group_detector
from hpe.landmarks.model import ABOUT, MODEL, LandmarkModel
from hpe.landmarks.regress import SoftScaler, regressor
from hpe.landmarks.table import Faces, read_faces, read_mat_faces, unfinished

WORKER = """
import struct, sys
import numpy as np
mesh = np.random.default_rng(5).uniform(10, 40, (468, 3)).astype("float32").tobytes()
while len(header := sys.stdin.buffer.read(6)) == 6:
    width, height, faces, views = struct.unpack("<HHBB", header)
    shade = sys.stdin.buffer.read(width * height * 3)[0]
    sys.stdout.buffer.write(struct.pack("<BB", 1, 1) + mesh if shade else struct.pack("<B", 0))
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def fake(stand_in):
    """An interpreter whose mesh sees a face in every picture that is not black."""
    return stand_in(WORKER)


def _save(folder: Path, name: str, shade: int = 9) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16), (shade,) * 3).save(folder / name)


def _rows(out: Path) -> Counter[str]:
    return Counter(key for part in out.glob("faces-*.parquet") for key in pq.read_table(part)["key"].to_pylist())


def _extract(source: Path, out: Path, python: Path) -> dict:
    return extract(source, out, python=python, views="plain", workers=2)


def test_pictures_that_come_go_and_change_between_starts_leave_one_row_each(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("hpe.landmarks.extract._PART", 3)
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for name in "bcdefgh":
        _save(pictures, f"{name}.png")
    _extract(pictures, out, fake)
    (out / "faces-000001.parquet").unlink()  # as killed
    _save(pictures, "a.png", 0)
    done = _extract(pictures, out, fake)
    assert _rows(out) == Counter("abcdefgh")
    assert (done["images"], done["images_with_a_face"], done["failed"]) == (8, 7, {"a": "no face"})
    for name in "bcde":
        (pictures / f"{name}.png").unlink()
    (pictures / "f.png").rename(pictures / "z.png")
    _save(pictures, "a.png", 9)
    done = _extract(pictures, out, fake)
    assert _rows(out) == Counter("aghz")
    assert (done["images"], done["images_with_a_face"], done["failed"]) == (4, 4, {})
    kept = {part: part.stat().st_mtime_ns for part in out.glob("faces-*")}
    _extract(pictures, out, Path("/none"))
    assert {part: part.stat().st_mtime_ns for part in out.glob("faces-*")} == kept


def test_pictures_with_one_stem_have_keys_of_their_own(fake, tmp_path):
    pictures = tmp_path / "pictures"
    for name in ("a.jpg", "a.png", "a.jpg.png", "b.png"):
        _save(pictures, name)
    assert _extract(pictures, tmp_path / "out", fake)["images"] == 4
    assert _rows(tmp_path / "out") == Counter(("a.jpg", "a.png", "a.jpg.png", "b"))


def test_damaged_shards_are_named_and_skipped_and_done_when_mended(fake, tmp_path):
    _save(tmp_path, "x.png")
    image, shards, out = (tmp_path / "x.png").read_bytes(), tmp_path / "shards", tmp_path / "out"
    shards.mkdir()
    infos = [
        write_shard(shards / f"test-{row:06d}.tar", "test", [Sample(f"k{row}", image, "png", Record())])
        for row in range(4)
    ]
    Manifest("d", "v", "l", True, "none", {}, tuple(infos)).save(shards)
    whole = {shard.name: shard.read_bytes() for shard in shards.glob("*.tar")}
    (shards / "test-000000.tar").write_bytes(whole["test-000000.tar"][:700])
    (shards / "test-000001.tar").write_bytes(b"\xff" * 5000)
    (shards / "test-000002.tar").unlink()
    arguments = ["landmarks", "extract", str(shards), str(out), "--python", str(fake), "--views", "plain"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert all(
        name in done.stdout for name in ("test-000000.tar: trunc", "test-000001.tar: damaged", "shards skipped: 3")
    )
    assert "test-000002.tar: cannot be read (No such file" in done.stdout
    assert _rows(out) == Counter(["k3"])
    assert len(json.loads((out / "extract.json").read_text())["skipped_shards"]) == 3
    for name, data in whole.items():
        (shards / name).write_bytes(data)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert _rows(out) == Counter(["k0", "k1", "k2", "k3"])


def test_a_mesh_that_does_not_start_is_one_message_and_nothing_is_written(stand_in, tmp_path):
    _save(tmp_path / "pictures", "a.png")
    python = tmp_path / "python"
    python.write_text("no program")
    with pytest.raises(UserError, match="cannot be run"):
        _extract(tmp_path / "pictures", tmp_path / "out", python)
    with pytest.raises(UserError, match="ended with code 3"):
        _extract(tmp_path / "pictures", tmp_path / "out", stand_in("raise SystemExit(3)"))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_links_goes_when_the_worker_crashes(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = tmp_path / "own.tflite"
    model.write_bytes(b"\0\0\0\0TFL3")
    worker = "import os, sys; open(sys.argv[-1] + '/link', 'w'); os.kill(os.getpid(), 11)"
    with pytest.raises(UserError, match="code -11"):
        MeshPool(stand_in(worker), "plain", model=model)
    assert not list(tmp_path.glob("hpe-mesh-*"))


def test_an_out_that_cannot_be_written_to_is_one_message(fake, tmp_path, monkeypatch):
    _save(tmp_path / "pictures", "a.png")
    with pytest.raises(UserError, match="cannot be made"):
        _extract(tmp_path / "pictures", fake, fake)
    with pytest.raises(UserError, match="cannot be made"):
        compare(_faces(), fake, CompareOptions(models=["ridge"], features=["six"]))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space"):
        _extract(tmp_path / "pictures", tmp_path / "out", fake)


def _faces() -> Faces:
    rng = np.random.default_rng(0)
    return Faces(tuple(map(str, range(120))), rng.normal(size=(120, 68, 3)), rng.uniform(-20, 20, (120, 3)))


def test_damaged_settings_are_one_message(fake, tmp_path):
    _save(tmp_path / "pictures", "a.png")
    for name in ("extract.json", "folds/settings.json"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text('{"for')
    with pytest.raises(UserError, match=r"extract\.json: damaged"):
        _extract(tmp_path / "pictures", tmp_path / "out", fake)
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        compare(_faces(), tmp_path / "out", CompareOptions(models=["ridge"], features=["six"]))
    compared = CliRunner().invoke(app, ["landmarks", "compare", str(tmp_path), str(fake), "--picture-width", "0"])
    assert "--picture-width 0" in str(compared.exception)


def test_tables_with_damage_are_one_message_each(tmp_path):
    np.savez(tmp_path / "whole.npz", stems=np.array(["a"]), points=np.ones((1, 468, 3)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:3000])
    np.savez(tmp_path / "flat.npz", stems=np.array("a"), points=np.zeros(3))
    for name, found in (("cut.npz", "not an .npz"), ("flat.npz", "stems of shape")):
        with pytest.raises(UserError, match=found):
            read_faces(tmp_path / name)
    numbers = [[1.0] * 1404]
    for row, points in enumerate(([None, *numbers], ["x", "y"], [*numbers, [1.0] * 300])):
        folder = tmp_path / str(row)
        folder.mkdir()
        columns = {name: [0.0, 0.0] for name in ("yaw", "pitch", "roll")}
        table = pa.table({"key": ["a", "b"], "status": ["ok", "ok"], "points": points, **columns})
        pq.write_table(table, folder / "faces-000000.parquet")
        with pytest.raises(UserError, match="not a table"):
            read_faces(folder)
    scipy.io.savemat(tmp_path / "a.mat", {"Pose_Para": np.zeros((1, 2)), "pt3d_68": np.zeros((3, 68))})
    with pytest.raises(UserError, match=r"a\.mat: no Pose_Para of at least three"):
        read_mat_faces(tmp_path)


def test_model_folders_that_were_tampered_with_are_refused_when_opened(tmp_path):
    rng = np.random.default_rng(1)
    points, angles = rng.normal(size=(40, 468, 3)), rng.uniform(-20, 20, (40, 3))
    fitted = regressor("aligned", "ridge", {"alpha": 1.0}).fit(points, angles)
    LandmarkModel(fitted, "mesh468", "aligned", "ridge", "plain", None).save(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    LandmarkModel.load(tmp_path)
    for name, value in (("views", ["many"]), ("topology", 5), ("name", "../evil"), ("features", {})):
        (tmp_path / ABOUT).write_text(json.dumps({**about, name: value}))
        with pytest.raises(UserError, match=f"{name} is"):
            LandmarkEstimator(tmp_path)
    (tmp_path / ABOUT).write_text(json.dumps(about))
    skops.io.dump(SoftScaler(), tmp_path / MODEL)
    with pytest.raises(UserError, match="SoftScaler"):
        LandmarkModel.load(tmp_path)
    for shape in (fitted.features_.shape_ * np.nan, fitted.features_.shape_[:, :1]):
        fitted.features_.shape_ = shape
        skops.io.dump(fitted, tmp_path / MODEL)
        with pytest.raises(UserError, match="not a model"):
            LandmarkModel.load(tmp_path)


def test_an_extraction_that_was_stopped_is_refused_with_counts_or_accepted_by_name(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("hpe.landmarks.extract._PART", 3)
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for name in "abcdefgh":
        _save(pictures, f"{name}.png", 0 if name == "b" else 9)

    def stopped(path, part, *_):
        if part.name == "000001":
            raise KeyboardInterrupt
        return real(path, part, *_)

    real = extraction._write_part
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("hpe.landmarks.extract._write_part", stopped)
        _extract(pictures, out, fake)
    assert unfinished(out) == "3 of 8 images"
    compare = ["landmarks", "compare", str(out), str(tmp_path / "compared")]
    refused = CliRunner().invoke(app, compare)
    assert isinstance(refused.exception, UserError)
    assert "unfinished, 3 of 8 images; run the same `hpe landmarks extract` again" in str(refused.exception)
    accepted = CliRunner().invoke(app, [*compare, "--unfinished"])
    assert "WARNING" in accepted.stderr
    assert "3 of 8 images" in accepted.stderr
    assert "unfinished" not in str(accepted.exception)  # there are too few faces to compare
    _extract(pictures, out, fake)
    assert unfinished(out) is None
    (pictures / "i.png").write_bytes((pictures / "a.png").read_bytes())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("hpe.landmarks.extract._write_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        _extract(pictures, out, fake)
    assert unfinished(out) == "8 of 9 images"  # also a finished one to which pictures were added


def test_every_file_of_a_folder_is_a_row_or_is_counted_by_kind(fake, tmp_path):
    raw = tmp_path / "raw"
    _save(raw, "a.png")
    _save(raw, "b.png", 0)
    (raw / "c").write_bytes((raw / "a.png").read_bytes())
    (tmp_path / "pool").mkdir()
    _save(tmp_path / "pool", "d.png")
    (raw / "linked").symlink_to(tmp_path / "pool")
    (raw / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (raw / "e.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name in ("a.mat", "b.mat", "notes.txt"):
        (raw / name).write_text("")
    done = _extract(raw, tmp_path / "out", fake)
    assert _rows(tmp_path / "out") == Counter(("a", "b", "c", "linked/d", "gone", "e"))
    assert (done["images"], done["images_unreadable"]) == (6, 2)
    assert done["passed_over"] == {".mat": 2, ".txt": 1}
    assert done["failed"]["gone"] == "not a picture: broken link (No such file or directory)"
    assert "HEIC" in done["failed"]["e"]


def test_a_picture_beyond_the_limit_is_named_with_the_option(fake, tmp_path):
    _save(tmp_path / "raw", "a.png")
    arguments = ["landmarks", "extract", str(tmp_path / "raw"), "--python", str(fake), "--views", "plain"]
    small = CliRunner().invoke(app, [*arguments, str(tmp_path / "small"), "--max-megapixels", "0.0001"])
    assert small.exit_code == 1
    assert "16 × 16 pixels, more than the 0.0001 megapixels allowed" in small.stderr
    assert "--max-megapixels" in small.stderr
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "large"), "--max-megapixels", "1"]).exit_code == 0


GROUP = """
import struct, sys
import numpy as np
while len(header := sys.stdin.buffer.read(6)) == 6:
    width, height, faces, views = struct.unpack("<HHBB", header)
    picture = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
    down, across = np.nonzero(picture[..., 0] > 150)
    found = len(across) and np.ptp(across) > width / 6 and width < 100
    sys.stdout.buffer.write(struct.pack("<B", int(found)))
    if found:
        corners = np.random.default_rng(3).uniform(0, 1, (468, 3))
        corners[:2] = ((0, 0, 0), (1, 1, 0))
        points = corners * (np.ptp(across), np.ptp(down), 9) + (across.min(), down.min(), 0)
        sys.stdout.buffer.write(struct.pack("<B", 1) + points.astype("float32").tobytes())
    sys.stdout.buffer.flush()
"""
"""A mesh that finds a face only where it is a good part of the picture, as the real one in photos of groups."""


class _Told:
    """A detector that finds these faces, one of which is none."""

    faces: ClassVar = [((x, y, x + 20.0, y + 24.0), 0.9) for x in (30, 130, 230, 330) for y in (40, 140)]
    nothing: ClassVar = ((400.0, 0.0, 420.0, 24.0), 0.5)

    def detect(self, images):
        return [[*self.faces, self.nothing] for _ in images]


def test_all_faces_of_a_group_are_found_by_the_detector_first(stand_in, tmp_path, monkeypatch, capsys):
    group = np.full((200, 440, 3), 90, np.uint8)
    for (x0, y0, x1, y1), _ in _Told.faces:
        group[int(y0) : int(y1), int(x0) : int(x1)] = 200
    python = stand_in(GROUP)
    monkeypatch.setattr("hpe.landmarks.mesh.installed", tuple)
    assert group_detector() is None
    warned = capsys.readouterr().err
    assert "no face detector is installed" in warned
    assert "pip install" in warned
    with closing(MeshPool(python, "plain", "all")) as alone:
        assert alone.find(group) == []
    monkeypatch.setattr("hpe.landmarks.mesh.installed", lambda: ("mtcnn", "hog"))
    monkeypatch.setattr("hpe.landmarks.mesh.open_detector", lambda name: _Told())
    assert group_detector() == "mtcnn"
    with closing(MeshPool(python, "plain", "all", detector="mtcnn")) as mesh:
        found = mesh.find(group)
        assert mesh.without_points == 1
    boxes = sorted(tuple(map(round, face.box)) for face in found)
    assert boxes == sorted((x, y, x + 19, y + 23) for (x, y, _, _), _ in _Told.faces)


def test_an_extraction_records_its_detector(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("hpe.landmarks.mesh.open_detector", lambda name: _Told())
    monkeypatch.setattr("hpe.landmarks.extract.group_detector", lambda: "mtcnn")
    _save(tmp_path / "raw", "a.png")
    python = stand_in(GROUP)
    done = extract(tmp_path / "raw", tmp_path / "out", python=python, views="plain", which="all", workers=1)
    assert done["detector"] == "mtcnn"
    monkeypatch.setattr("hpe.landmarks.extract.group_detector", lambda: "hog")
    with pytest.raises(UserError, match="detector was 'mtcnn', is 'hog'"):
        extract(tmp_path / "raw", tmp_path / "out", python=python, views="plain", which="all")
