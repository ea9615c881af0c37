"""Looks from head and eyes: the eyes' pictures, the features, the marks, and the command with a person left out."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hpe.cli import app
from hpe.directions import pointing04_direction
from hpe.errors import UserError
from hpe.landmarks.extract import extract
from hpe.landmarks.eyes import HEIGHT, WIDTH, contrasted, eye_columns, eyes_of, mirrored_eyes
from hpe.landmarks.look import look, read_marked
from hpe.landmarks.look_regress import LookRegressor, Looks, Marks
from hpe.landmarks.mesh import MeshPool
from hpe.landmarks.table import read_faces
from hpe.landmarks.topology import MESH478
from hpe.records import Record
from hpe.shards import Manifest, Sample, read_samples, write_shard

RNG = np.random.default_rng(3)
EYES = ((33, 133, 159, 145, 468), (263, 362, 386, 374, 473))


def _head() -> np.ndarray:
    """A mesh of 478 points, symmetric about x = 0, whose eyes are where eyes are; y down, z towards the viewer."""
    some = RNG.normal(size=(478, 3)) * (30, 40, 15)
    head = (some + some[MESH478.mirror] * (-1, 1, 1)) / 2
    for outer, inner, upper, lower, iris in EYES:
        side = -1 if outer == 33 else 1
        for point, place in (
            (outer, (28, -12)),
            (inner, (10, -12)),
            (upper, (19, -15)),
            (lower, (19, -9)),
            (iris, (19, -12)),
        ):
            head[point] = (side * place[0], place[1], 12.0)
    return head


HEAD = _head()


def _people(count: int, each: int) -> tuple[Looks, np.ndarray, list[str]]:
    """People who look at marks; each does a share of his own with the head, the rest with the eyes."""
    points, eyes, angles, names = [], [], [], []
    for person in range(count):
        share = 0.4 + 0.6 * person / (count - 1)
        for _ in range(each):
            mark = RNG.uniform((-60, -40), (60, 40))
            turned = Rotation.from_euler("YX", (mark * share) * (1, 1), degrees=True).as_matrix()
            face = (HEAD * (1, -1, 1) @ turned.T + RNG.normal(size=HEAD.shape) * 0.2) * (1, -1, 1)
            points.append(face + np.array((100, 100, 0)))
            x, y = np.array((WIDTH, HEIGHT)) / 2 + mark * (1 - share) * (0.2, -0.1)
            across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
            iris = 200 - 150 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / 8)
            eyes.append(np.stack((iris, iris)).astype(np.uint8))
            angles.append((*mark, 0.0))
            names.append(f"p{person:02d}")
    return Looks(np.array(points), np.array(eyes), np.empty((len(points), 0))), np.array(angles), names


def test_the_pictures_of_the_eyes_lie_level_and_hold_the_iris_in_the_middle():
    picture = np.full((200, 200, 3), 220, np.uint8)
    turned = HEAD[:, :2] @ Rotation.from_euler("z", 25, degrees=True).as_matrix()[:2, :2].T
    points = np.c_[turned * 1.5 + 100, HEAD[:, 2]]
    for *_, iris in EYES:
        x, y = points[iris, :2].round().astype(int)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 10
    eyes = eyes_of(picture, points)
    assert eyes.shape == (2, HEIGHT, WIDTH)
    for eye in eyes:
        row, column = np.unravel_index(eye.argmin(), eye.shape)
        assert abs(row - HEIGHT / 2) <= 2
        assert abs(column - WIDTH / 2) <= 2
        assert eye[0].min() > 200


def test_mirrored_eyes_are_the_eyes_of_the_mirrored_picture():
    coarse = Image.fromarray(RNG.integers(0, 255, (12, 16, 3), np.uint8))
    picture = np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC))
    points = HEAD + np.array((80, 60, 0))
    flipped = points[MESH478.mirror] * (-1, 1, 1) + np.array((159, 0, 0))
    there = eyes_of(np.ascontiguousarray(picture[:, ::-1]), flipped).astype(int)
    here = eyes_of(picture, points)
    assert np.abs(mirrored_eyes(here[None])[0] - there).mean() < 0.05 * np.abs(here - there).mean()


def test_a_face_without_width_and_a_black_picture_give_numbers():
    eyes = eyes_of(np.zeros((50, 50, 3), np.uint8), np.full((478, 3), 25.0))
    assert np.isfinite(contrasted(eyes[None])).all()
    assert np.isfinite(eye_columns(np.zeros((1, 478, 3)))).all()


def test_eyes_tell_what_the_head_alone_does_not_of_people_never_seen():
    looks, angles, names = _people(6, 60)
    asked = np.array(names) == "p01"
    regressor = LookRegressor(20).fit(looks.take(~asked), angles[~asked])
    errors = np.abs(regressor.predict(looks.take(asked)) - angles[asked, :2]).mean()
    blind = replace(looks, eyes=RNG.permutation(looks.eyes))
    headed = LookRegressor(20).fit(blind.take(~asked), angles[~asked])
    assert errors < 8
    assert np.abs(headed.predict(blind.take(asked)) - angles[asked, :2]).mean() > 1.5 * errors


def test_the_answer_for_a_mirror_image_is_the_mirrored_answer():
    looks, angles, _ = _people(5, 20)
    regressor = LookRegressor(10).fit(looks, angles)
    straight, mirrored = np.split(regressor.predict(looks.with_mirrored()), 2)
    np.testing.assert_allclose(mirrored, straight * (-1, 1), atol=1e-6)


def test_marks_have_their_own_direction_and_what_lies_beyond_the_nearest_ones():
    poses = [(pan, tilt) for pan in range(-90, 91, 15) for tilt in (-60, -30, -15, 0, 15, 30, 60)]
    directions = np.array([pointing04_direction(pan, tilt) for pan, tilt in poses], np.int8)
    regular = np.array([abs(tilt) != 30 for _, tilt in poses])
    marks = Marks.of(np.array(poses, float), directions)
    assert (marks.directions_of(np.array(poses, float)) == directions)[regular].all()
    assert marks.directions_of(np.array([(0.0, 400.0), (0.0, -400.0), (900.0, 0.0)])).tolist() == [3, 4, 1]


FAKE = """
import struct, sys
import numpy as np
meshes = np.load({meshes!r})
while len(header := sys.stdin.buffer.read(6)) == 6:
    width, height, faces, views = struct.unpack("<HHBB", header)
    picture = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
    number = int(picture[0, 0, 0]) * 16 + int(picture[0, 0, 1])
    found = number < len(meshes) and number % 19 > 0
    sys.stdout.buffer.write(struct.pack("<B", found))
    if found:
        sys.stdout.buffer.write(struct.pack("<B", 1) + (meshes[number] * (1, 1, -1)).astype("float32").tobytes())
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def marked(tmp_path, stand_in):
    """Shards of five people, of whom every nineteenth face is not found, and the interpreter that finds the others."""
    looks, angles, names = _people(5, 30)
    np.save(tmp_path / "meshes.npy", looks.points)
    python = stand_in(FAKE.format(meshes=str(tmp_path / "meshes.npy")))
    samples = []
    for row, name in enumerate(names):
        picture = np.full((16, 16, 3), 90, np.uint8)
        picture[0, 0, :2] = divmod(row, 16)
        Image.fromarray(picture).save(tmp_path / "x.png")
        yaw, pitch, _ = angles[row].tolist()
        direction = 1 if yaw > 20 else 2 if yaw < -20 else 3 if pitch > 15 else 4 if pitch < -15 else 0
        record = Record(yaw=yaw, pitch=pitch, direction=direction, subject=name)
        samples.append(Sample(f"face{row:03d}", (tmp_path / "x.png").read_bytes(), "png", record))
    return _packed(tmp_path / "shards", samples), python


def _packed(shards: Path, samples: list[Sample]) -> Path:
    shards.mkdir()
    half = len(samples) // 2
    infos = tuple(
        write_shard(shards / f"{split}-000000.tar", split, part)
        for split, part in (("train", samples[:half]), ("test", samples[half:]))
    )
    Manifest("d", "v", "l", True, "none", {}, infos).save(shards)
    return shards


def _poses(shards: Path, told: Mapping[str, Sequence[float]]) -> Path:
    folder = shards / "pose" / "other"
    folder.mkdir(parents=True)
    for shard in sorted(shards.glob("*.tar")):
        keys = [sample.key for sample in read_samples(shard)]
        columns = {
            "key": keys,
            "yaw": pa.array([told[key][0] for key in keys], pa.float32()),
            "pitch": pa.array([told[key][1] for key in keys], pa.float32()),
            "roll": pa.array([0.0] * len(keys), pa.float32()),
        }
        pq.write_table(pa.table(columns), folder / f"{shard.stem}.parquet")
    return folder


@pytest.mark.slow
def test_every_person_is_left_out_and_every_face_counts(marked, tmp_path):
    shards, python = marked
    points, out = tmp_path / "points", tmp_path / "out"
    extract(shards, points, python=python, views="plain", workers=2, eyes=True, insist=True)
    eyes = read_faces(points).eyes
    assert eyes is not None
    assert eyes.shape[1:] == (2, HEIGHT, WIDTH)
    done = CliRunner().invoke(app, ["landmarks", "look", str(points), str(out)])
    assert done.exit_code == 0, done.output
    assert "direction, all faces" in done.stdout
    summary = json.loads((out / "look.json").read_text())
    assert (summary["faces"], summary["faces_found"], summary["faces_without_answer"]) == (150, 142, 8)
    answers = pq.read_table(out / "look.parquet").to_pydict()
    right = np.array(answers["direction"]) == np.array(answers["predicted_direction"])
    assert summary["accuracy"]["value"] == pytest.approx(right.mean())
    assert summary["accuracy_found"]["value"] == pytest.approx(right[np.array(answers["mesh"])].mean())
    assert not right[~np.array(answers["mesh"])].any()
    assert summary["accuracy"]["low"] <= summary["accuracy"]["value"] <= summary["accuracy"]["high"]
    before = (out / "look.parquet").read_bytes()
    look(points, out)
    assert (out / "look.parquet").read_bytes() == before


@pytest.mark.slow
def test_a_pose_table_answers_for_faces_without_a_mesh(marked, tmp_path):
    shards, python = marked
    points = tmp_path / "points"
    extract(shards, points, python=python, views="plain", workers=2, eyes=True)
    told = {
        key: tuple(angle)
        for key, angle in zip(read_marked(points).keys, read_marked(points).angles[:, :2], strict=True)
    }
    poses = _poses(shards, told)
    alone, beside = look(points, tmp_path / "a"), look(points, tmp_path / "b", poses)
    assert (beside["faces_without_answer"], beside["faces_by_angles_alone"]) == (0, 8)
    assert beside["mae_yaw"]["value"] < alone["mae_yaw"]["value"]
    (poses / "test-000000.parquet").unlink()
    with pytest.raises(UserError, match=r"test-000000\.parquet"):
        look(points, tmp_path / "c", poses)


def test_a_person_left_out_is_not_learned_from(marked, tmp_path, monkeypatch):
    shards, python = marked
    extract(shards, tmp_path / "points", python=python, views="plain", eyes=True)
    seen = []
    fit = LookRegressor.fit
    monkeypatch.setattr(
        LookRegressor, "fit", lambda self, looks, angles: (seen.append(angles), fit(self, looks, angles))[1]
    )
    look(tmp_path / "points", tmp_path / "out")
    marked_faces = read_marked(tmp_path / "points")
    people = np.array(marked_faces.people)
    for name, angles in zip(sorted(set(people)), seen, strict=True):
        own = {tuple(row) for row in marked_faces.angles[people == name]}
        assert not own & {tuple(row) for row in angles}


def test_what_cannot_be_judged_is_refused_with_the_way_out(marked, stand_in, tmp_path):
    shards, python = marked
    np.save(tmp_path / "meshes468.npy", np.load(tmp_path / "meshes.npy")[:, :468])
    blind = stand_in(FAKE.format(meshes=str(tmp_path / "meshes468.npy")))
    extract(shards, tmp_path / "blind", python=blind, views="plain")
    with pytest.raises(UserError, match="--eyes"):
        look(tmp_path / "blind", tmp_path / "out")
    plain = [Sample(f"f{k}", _png(tmp_path, k), "png", Record(yaw=1.0, pitch=2.0)) for k in range(1, 5)]
    extract(_packed(tmp_path / "plain", plain), tmp_path / "unknown", python=python, views="plain", eyes=True)
    with pytest.raises(UserError, match=r"f\d: direction, subject not known"):
        look(tmp_path / "unknown", tmp_path / "out")
    record = Record(yaw=1.0, pitch=2.0, direction=0, subject="one")
    few = [Sample(f"f{k}", _png(tmp_path, k), "png", record) for k in range(1, 5)]
    extract(_packed(tmp_path / "few", few), tmp_path / "alone", python=python, views="plain", eyes=True)
    with pytest.raises(UserError, match="1 people; expected 5"):
        look(tmp_path / "alone", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        look(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _edited(points: Path, part: str, edit) -> Path:
    table = points / f"faces-{part}.parquet"
    rows = pq.read_table(table)
    pq.write_table(pa.Table.from_pylist([edit(dict(row)) for row in rows.to_pylist()], rows.schema), table)
    return points


def _without_mesh(row: dict) -> dict:
    if row["subject"] == "p00":
        row.update(status="no face", points=None, eyes=None)
    return row


def test_a_person_whose_face_is_never_found_counts_as_wrong(marked, tmp_path):
    shards, python = marked
    extract(shards, tmp_path / "points", python=python, views="plain", eyes=True)
    summary = look(_edited(tmp_path / "points", "train-000000", _without_mesh), tmp_path / "out")
    assert summary["people"]["p00"]["accuracy"] == 0
    assert summary["faces_without_answer"] > 30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"yaw": float("nan")}, "are none"),
        ({"direction": 9}, "are none"),
        ({"points": [0.0] * 1434}, "are no face"),
        ({"points": [float("nan")] * 1434}, "are no face"),
        ({"eyes": [0] * 700}, "another size"),
        ({"eyes": None}, "of some faces only"),
    ],
)
def test_damaged_tables_are_named_with_the_way_out(marked, tmp_path, change, told):
    shards, python = marked
    extract(shards, tmp_path / "points", python=python, views="plain", eyes=True)

    def damaged(row):
        return {**row, **change} if row["key"] == "face004" else row

    with pytest.raises(UserError, match=told) as caught:
        look(_edited(tmp_path / "points", "train-000000", damaged), tmp_path / "out")
    assert "extract again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_extraction_that_misses_a_part_is_refused(marked, tmp_path):
    shards, python = marked
    extract(shards, tmp_path / "points", python=python, views="plain", eyes=True)
    (tmp_path / "points" / "faces-test-000000.parquet").unlink()
    with pytest.raises(UserError, match="75 of 150 pictures"):
        look(tmp_path / "points", tmp_path / "out")


def _png(folder: Path, number: int) -> bytes:
    picture = np.full((16, 16, 3), 90, np.uint8)
    picture[0, 0, :2] = divmod(number, 16)
    Image.fromarray(picture).save(folder / "y.png")
    return (folder / "y.png").read_bytes()


def test_another_mesh_has_no_eyes(tmp_path, monkeypatch):
    model = tmp_path / "own.tflite"
    model.write_bytes(b"\0\0\0\0TFL3")
    monkeypatch.setenv("HPE_FACE_MESH_MODEL", str(model))
    with pytest.raises(UserError, match="without eyes"):
        MeshPool(Path(sys.executable), "plain", eyes=True)


def test_predict_is_there_without_the_extra_of_landmarks():
    without = "import sys; sys.modules.update(dict.fromkeys(('cv2', 'skops', 'xgboost'))); import hpe.predict"
    subprocess.run([sys.executable, "-c", without], check=True)


@pytest.mark.real
def test_the_real_mesh_finds_irises_and_insists_on_profiles(shared, mesh_python):
    def picture(name: str) -> np.ndarray:
        with Image.open(shared / "data/pointing04/Person01" / name) as opened:
            return np.asarray(opened.convert("RGB"))

    front = sorted((shared / "data/pointing04/Person01").glob("*+0+0.jpg"))[0].name
    with closing(MeshPool(mesh_python, "mirror", eyes=True, insist=True)) as mesh:
        (face,) = mesh.find(picture(front))
        assert face.points.shape == (478, 3)
        assert face.eyes is not None
        for outer, inner, *_, iris in EYES:
            middle = (face.points[outer] + face.points[inner])[:2] / 2
            width = np.linalg.norm(face.points[outer] - face.points[inner])
            assert np.linalg.norm(face.points[iris, :2] - middle) < 0.35 * width
        assert mesh.find(np.zeros((200, 200, 3), np.uint8)) == []
    profiles = [path.name for path in sorted((shared / "data/pointing04/Person01").glob("*[+-]90.jpg"))]
    found = []
    for insist in (False, True):
        with closing(MeshPool(mesh_python, "plain", insist=insist)) as mesh:
            found.append(sum(bool(mesh.find(picture(name))) for name in profiles))
    assert found[1] > found[0]
