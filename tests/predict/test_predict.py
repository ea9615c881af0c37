"""``hpe predict``: the numbers of ``hpe evaluate``, every face a row, nothing dropped silently, hostile files."""

import csv
import io
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.crops import CropRule
from hpe.data.decode import decode_into
from hpe.data.detect import Face
from hpe.data.images import RGBImage, decode_rgb, image_size
from hpe.data.normalise import normalised
from hpe.data.records import Record
from hpe.data.shards import Sample, write_shard
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.predict import face_finders, predict, whole_photos
from hpe.predict import read_faces as module
from hpe.predict.face_reader import load
from hpe.predict.inputs import Item, find_inputs, items, safe_place
from hpe.predict.network import open_predictor
from hpe.predict.options import PredictOptions
from hpe.sources.synthetic.heads import head_at
from hpe.stream import ShardSet
from tests import made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards")


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.untrained(tmp_path_factory.mktemp("runs") / "run", shards)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def skipped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]


def photo(path: Path, index: int = 0, size: int = 80, side: int = 80, form: str = "JPEG") -> Path:
    """A rendered head somewhere on a grey photo."""
    _, head, _ = head_at(index, seed=1, people=5, size=size)
    picture = Image.new("RGB", (side, side), (90, 90, 90))
    picture.paste(Image.fromarray(head), ((side - size) // 2, (side - size) // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, form)
    return path


def test_the_numbers_are_those_of_evaluate(run: Path, shards: Path, tmp_path: Path) -> None:
    assert evaluate(run, [ShardSet(str(shards), "train")], EvaluateOptions(name="train", workers=0, replicates=20)) == 0
    judged = pq.read_table(run / "evaluate" / "train.parquet").to_pylist()
    seen = json.loads((run / "evaluate" / "train.json").read_text())["about"]["warnings"]
    assert any("shards were trained on: the metrics show what the network remembers" in one for one in seen)
    assert predict(run, [str(shards)], PredictOptions(out=tmp_path, form="parquet", split="train", batch=13)) == 0
    table = pq.read_table(tmp_path / "predictions.parquet")
    said = table.to_pylist()
    assert [row["key"] for row in said] == [row["key"] for row in judged]
    assert [Path(row["source"]).name for row in said] == [row["shard"] for row in judged]
    for head, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        shares = np.array([[row[f"{head}_{name}"] for name in names] for row in said])
        assert np.ptp(shares, 0).max() > 0.05, "faces that all look alike to the network prove nothing"
        np.testing.assert_allclose(shares, [row[f"{head}_p"] for row in judged], atol=2e-6)
        assert [row[head] for row in said] == [names[np.argmax(row[f"{head}_p"])] for row in judged]
    for ours, theirs in (
        *((angle, f"{angle}_hat") for angle in ANGLES),
        *((f"{angle}_sd", f"{angle}_sd") for angle in ANGLES),
        *((name, f"{name}_hat") for name in ("valence", "arousal")),
    ):
        np.testing.assert_allclose([row[ours] for row in said], [row[theirs] for row in judged], rtol=1e-5, atol=1e-4)


def test_evaluate_keeps_the_faces_as_the_network_saw_them(run: Path, shards: Path) -> None:
    assert evaluate(run, [ShardSet(str(shards), "val")], EvaluateOptions(name="val", workers=0, replicates=20)) == 0
    kept = pq.read_table(run / "evaluate" / "val.faces.parquet").to_pylist()
    stored = {sample.key: sample.image for sample in made.samples(24, start=10_000)}
    assert kept
    for face in kept:
        original, seen = decode_rgb(stored[face["key"]]), decode_rgb(face["jpeg"])
        assert np.abs(original.astype(int) - seen).mean() < 12
        others = np.abs(decode_rgb(stored["sample10000"]).astype(int) - seen).mean()
        assert face["key"] == "sample10000" or others > 12
    about = json.loads((run / "evaluate" / "val.json").read_text())["about"]
    assert not any("remembers" in one for one in about["warnings"])
    assert (about["dataset"], about["variant"], about["licence"]) == (["made"], ["squares"], ["none"])
    assert about["hpe"]
    assert "commit" in about


def test_the_three_formats_hold_the_same_numbers_and_older_ones_are_told(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = str(shards / "val-000000.tar")
    for form in ("jsonl", "csv", "parquet"):
        assert predict(run, [tar], PredictOptions(out=tmp_path, form=form)) == 0
    told = f"predict: {tmp_path} holds an earlier result: predictions.jsonl stays, predictions.csv "
    seen = [line for line in capsys.readouterr().err.splitlines() if "earlier result" in line]
    assert [line.split(";")[0] for line in seen] == [told.replace(", predictions.csv ", ""), f"{told}stays"]
    assert predict(run, [tar], PredictOptions(out=tmp_path, form="csv")) == 0
    assert f"{told}is replaced, predictions.parquet stays; another --out" in capsys.readouterr().err
    lines, table = rows(tmp_path), pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        commas = list(csv.DictReader(stream))
    assert len(lines) == len(table) == len(commas) == 24
    for one, two, three in zip(lines, table, commas, strict=True):
        assert list(one) == list(two) == list(three)
        for name, value in one.items():
            number = isinstance(value, float)
            assert (np.float32(value) == np.float32(two[name])) if number else (value == two[name])
            assert three[name] == ("" if value is None else str(value))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_rows_do_not_depend_on_the_batch(run: Path, shards: Path, tmp_path: Path, batch: int) -> None:
    predict(run, [str(shards / "train-000001.tar")], PredictOptions(out=tmp_path, batch=batch))
    said = rows(tmp_path)
    assert [row["key"] for row in said] == [sample.key for sample in made.samples(17, start=40)]
    alone = open_predictor(run, torch.device("cpu"))
    for row, sample in zip(said, made.samples(17, start=40), strict=True):
        angles = alone.answer(alone.whole(sample.image)[None]).angles
        assert angles is not None
        assert [row[angle] for angle in ANGLES] == pytest.approx(angles[0].tolist(), abs=1e-4)


def test_pictures_folders_and_globs_each_once_in_order(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate(("b.jpg", "a/x.png", "a/x.jpg", ".hidden.jpg", "a/.dir/z.jpg")):
        photo(folder / name, number, form="PNG" if name.endswith("png") else "JPEG")
    (folder / "notes.txt").write_text("no picture")
    predict(run, [str(folder), str(folder / "*.jpg"), str(folder / "a/x.png")], PredictOptions(out=tmp_path / "out"))
    said = rows(tmp_path / "out")
    assert [(row["source"], row["key"]) for row in said] == [
        (str(folder / "a/x.jpg"), "a/x"), (str(folder / "a/x.png"), "a/x"), (str(folder / "b.jpg"), "b")
    ]  # fmt: skip
    assert [[row[side] for side in ("x0", "y0", "x1", "y1")] for row in said] == [[0, 0, 80, 80]] * 3


def test_hostile_files_are_named_and_the_rest_is_read(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    good = photo(folder / "good.jpg")
    whole = good.read_bytes()
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("#!/bin/sh")
    bomb = bytearray(photo(tmp_path / "bomb.png", form="PNG").read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.tar").write_bytes(b"not a tar" * 200)
    weird = os.fsencode(folder) + b"/\xff\xfe.jpg"
    with open(weird, "wb") as stream:  # noqa: PTH123 (a name that is no text)
        stream.write(whole)
    assert predict(run, [str(folder)], PredictOptions(out=tmp_path / "out", draw="axes")) == 1
    assert sorted(Path(row["source"]).name for row in rows(tmp_path / "out")) == sorted(
        ["\\udcff\\udcfe.jpg", "good.jpg"]
    )
    named = {Path(one["source"]).name: one["reason"] for one in skipped(tmp_path / "out")}
    assert named.keys() == {"empty.jpg", "cut.jpg", "text.png", "bomb.png", "broken.tar", "dangling.jpg", "pipe.jpg"}
    assert "allowed" in named["bomb.png"]
    assert all(named.values())


def test_of_a_damaged_shard_what_lies_before_the_damage_is_read(run: Path, shards: Path, tmp_path: Path) -> None:
    data = (shards / "val-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    assert predict(run, [str(tmp_path / "cut.tar")], PredictOptions(out=tmp_path / "out")) == 1
    keys = [row["key"] for row in rows(tmp_path / "out")]
    assert 5 < len(keys) < 20
    assert keys == [sample.key for sample in made.samples(len(keys), start=10_000)]
    assert "truncated" in skipped(tmp_path / "out")[0]["reason"]


def test_drawings_stay_in_their_folder_and_none_overwrites_another(run: Path, tmp_path: Path) -> None:
    sample = made.samples(1)[0]
    evil = tmp_path / "evil.tar"
    write_shard(evil, "test", [Sample("key", sample.image, "jpg", Record())])
    raw = evil.read_bytes().replace(b"key.jpg" + bytes(13), b"../../up/key.jpg" + bytes(4))
    raw = raw.replace(b"key.json" + bytes(13), b"../../up/key.json" + bytes(4))
    fixed = bytearray(raw)
    for at in range(0, len(raw), 512):  # the changed headers' checksums
        if raw[at + 257 : at + 262] == b"ustar":
            head = bytes(raw[at : at + 148]) + b" " * 8 + bytes(raw[at + 156 : at + 512])
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(head)
    evil.write_bytes(fixed)
    for folder in ("a", "b"):
        photo(tmp_path / folder / "same.jpg")
    inputs = [str(evil), str(tmp_path / "a/same.jpg"), str(tmp_path / "b/same.jpg")]
    assert predict(run, inputs, PredictOptions(out=tmp_path / "out", draw="cube")) == 0
    assert rows(tmp_path / "out")[0]["key"] == "../../up/key"
    drawn = sorted(path.relative_to(tmp_path / "out/drawn").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert drawn == ["evil/_.._up_key.jpg", "same-2.jpg", "same.jpg"]
    assert len([path for path in tmp_path.rglob("*.jpg") if "drawn" not in path.parts]) == 2


@pytest.mark.parametrize("text", ["../../etc/passwd", "/abs/olute", "a/../b", "..", "", "CON\0\n", "é/ü", "x" * 4000])
def test_a_safe_place_never_leaves_its_folder(text: str) -> None:
    place = safe_place(text)
    assert not Path(place).is_absolute()
    assert not {"..", ".", ""} & set(place.split("/"))
    assert len(place) < 1100
    assert (Path("/root/of") / place).resolve().is_relative_to("/root/of")


class TwoFaces:
    """A detector that finds what the test has told it, by the width of the picture."""

    name = "told"

    def detect(self, images: Sequence[RGBImage]) -> list[list[Face]]:
        known: dict[int, list[Face]] = {
            120: [((10.0, 10.0, 70.0, 70.0), 0.9), ((80.0, 20.0, 110.0, 50.0), 0.8)],
            100: [],
            90: [((500.0, 500.0, 520.0, 520.0), 0.7)],
        }
        return [known[image.shape[1]] for image in images]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_finders, "open_detector", lambda name, device: TwoFaces())


def test_every_face_is_a_row_and_pictures_without_one_are_named(
    run: Path, tmp_path: Path, told: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, side in enumerate((120, 100, 90)):
        photo(tmp_path / "in" / f"{number}.png", number, side=side, form="PNG")
    out = tmp_path / "out"
    code = predict(
        run, [str(tmp_path / "in")], PredictOptions(out=out, faces="mtcnn", crop="square-1.0@detector", draw="axes")
    )
    assert code == 0  # nothing was unreadable
    said = rows(out)
    assert [(row["key"], row["face"], row["score"], row["x0"], row["y1"]) for row in said] == [
        ("0", 0, 0.9, 10.0, 70.0), ("0", 1, 0.8, 80.0, 50.0)
    ]  # fmt: skip
    reasons = {one["key"]: one["reason"] for one in skipped(out)}
    assert reasons.keys() == {"1", "2"}
    assert reasons["1"] == face_finders.NO_FACE
    assert "outside the picture" in reasons["2"]
    printed = capsys.readouterr().err
    assert "2 faces in 3 images; 1 without a face, 0 could not be read" in printed
    assert f"; written to {out}/predictions.jsonl and {out}/drawn\n" in printed
    assert [path.name for path in (out / "drawn").iterdir()] == ["0.jpg"]
    # The second face, cut out with Pillow, gives the same angles.
    picture = Image.open(tmp_path / "in" / "0.png").crop((80, 20, 110, 50))
    cut = picture.resize((made.SIDE, made.SIDE), Image.Resampling.BILINEAR)
    answers = open_predictor(run, torch.device("cpu")).answer(np.asarray(cut)[None].copy())
    assert answers.angles is not None
    assert [said[1][angle] for angle in ANGLES] == pytest.approx(answers.angles[0].tolist(), abs=1.0)


def test_detected_faces_are_cropped_as_the_training_shards_were(tmp_path: Path, shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    copy = tmp_path / "cropped"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"crop": "square-1.4@landmarks"}))
    predictor = open_predictor(made.untrained(tmp_path / "run", copy), torch.device("cpu"))
    assert module.detector_rule(None, predictor) == (CropRule("square", 1.4, "detector"), [])
    assert module.detector_rule("margin-0.2@detector", predictor) == (CropRule("margin", 0.2, "detector"), [])


def test_shards_of_another_crop_than_the_network_was_made_for_are_told(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"crop": "square-1.4@landmarks"}))
    run = made.untrained(tmp_path / "run", shards)
    told = f"predict: {other} is cropped by square-1.4@landmarks, run was trained on none: expect larger errors"
    assert predict(run, [str(other)], PredictOptions(out=tmp_path / "a", split="val")) == 0
    assert told in capsys.readouterr().err
    assert predict(run, [str(shards)], PredictOptions(out=tmp_path / "b", split="val")) == 0
    assert "is cropped by" not in capsys.readouterr().err


@pytest.mark.parametrize(("dataset", "told"), [("synthetic", True), ("made", False)])
def test_a_network_that_knows_rendered_heads_only_says_so_of_photos(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str], dataset: str, told: bool
) -> None:
    run = made.untrained(tmp_path / "run", shards)
    known = json.loads((run / "shards.json").read_text())
    (run / "shards.json").write_text(json.dumps({at: one | {"dataset": dataset} for at, one in known.items()}))
    assert predict(run, [str(photo(tmp_path / "face.jpg"))], PredictOptions()) == 0
    assert ("run knows rendered heads only" in capsys.readouterr().err) is told


def test_a_run_whose_training_has_not_ended_says_so(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made.untrained(tmp_path / "run", shards)
    (run / "metrics.jsonl").write_text('{"split": "train", "epoch": 0.25}\n')
    assert predict(run, [str(photo(tmp_path / "face.jpg"))], PredictOptions()) == 0
    assert "run: The training is at epoch 0.25 of" in capsys.readouterr().err


def test_a_grey_run_sees_grey_pictures(tmp_path: Path, shards: Path) -> None:
    predictor = open_predictor(made.untrained(tmp_path / "run", shards, "data.grey=true"), torch.device("cpu"))
    colourful = made.picture(5, 1, 0)
    for face in (predictor.cut(colourful, (0, 0, made.SIDE, made.SIDE)), predictor.whole(encoded(colourful))):
        assert np.ptp(face, axis=2).max() == 0
        luma = np.asarray(Image.fromarray(colourful).convert("L")).astype(int)
        assert np.abs(face[..., 0] - luma).max() <= 1


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def test_a_picture_turned_by_exif_has_the_size_that_people_see(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    assert image_size(data) == (40, 60)
    assert decode_rgb(data).shape == (60, 40, 3)


def test_pictures_that_are_nearly_a_line_are_drawn(run: Path, tmp_path: Path) -> None:
    for name, size in (("wide", (3000, 1)), ("high", (1, 3000))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    assert predict(run, [str(tmp_path)], PredictOptions(out=tmp_path.with_name("drawn_lines"), draw="cube")) == 0
    assert len(rows(tmp_path.with_name("drawn_lines"))) == 2


def test_results_are_not_written_among_the_pictures(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="lies in the input folder"):
        predict(run, [str(tmp_path)], PredictOptions(out=tmp_path / "read", draw="axes"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_split_of_what_has_none_is_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--split val: only folders"):
        predict(run, [str(shards / "val-000000.tar"), str(photo(tmp_path / "a.jpg"))], PredictOptions(split="val"))


def test_a_run_without_a_head_has_no_columns_of_it_and_no_axes(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("model.heads.direction=null", "model.heads.pose=null", "model.heads.affect=null")
    run = made.untrained(tmp_path / "run", shards, *only)
    predict(run, [str(shards / "val-000000.tar")], PredictOptions(out=tmp_path / "out"))
    assert list(rows(tmp_path / "out")[0]) == [
        "source", "key", "face", "x0", "y0", "x1", "y1", "score", "emotion", *(f"emotion_{e}" for e in EMOTIONS)
    ]  # fmt: skip
    assert "reads no angles" not in capsys.readouterr().err
    predict(run, [str(shards / "val-000000.tar")], PredictOptions(out=tmp_path / "drawn", draw="axes"))
    assert "reads no angles" in capsys.readouterr().err


def test_a_network_that_gives_no_numbers_gives_empty_cells(
    run: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hpe.predict.network.normalised", lambda images, by: normalised(images, by) * float("nan"))
    predict(run, [str(shards / "val-000000.tar")], PredictOptions(out=tmp_path, draw="axes"))
    assert f"for {len(rows(tmp_path))} faces the network gave NaN" in capsys.readouterr().err
    for row in rows(tmp_path):
        assert {row[name] for name in ("emotion", "direction", "yaw", "emotion_happy", "valence")} == {None}


def test_an_interrupted_prediction_leaves_what_was_there_before(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = str(shards / "train-000000.tar")
    predict(run, [tar], PredictOptions(out=tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    left = iter(range(2))

    def dying(*_: object) -> dict:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_row", dying)
        predict(run, [tar], PredictOptions(out=tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "parquet"}, "cannot be printed"),
        ({"draw": "axes"}, "needs a folder"),
        ({"draw": "lines"}, "expected none, axes, cube"),
        ({"form": "xml"}, "expected jsonl, csv, parquet"),
        ({"faces": "yolo"}, "expected given, mtcnn or hog"),
        ({"crop": "none"}, "given faces are not cropped"),
        ({"device": "gpu7"}, "expected auto, cpu"),
        ({"weights": Path("x")}, "a run has its own weights"),
        ({"which": "step-00000099"}, "no checkpoint"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Path, shards: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        predict(run, [str(shards / "val-000000.tar")], PredictOptions(**options))


def test_every_input_that_is_not_there_is_named_at_once(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "nothing").mkdir()
    wrong = [str(tmp_path / "no.jpg"), str(tmp_path / "*.jpg"), str(tmp_path / "nothing")]
    with pytest.raises(UserError) as refused:
        find_inputs([str(shards), *wrong])
    assert all(name in str(refused.value) for name in wrong)
    with pytest.raises(UserError, match="expected one of train, val"):
        find_inputs([str(shards)], "test")


def test_a_missing_shard_of_a_manifest_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text((shards / "manifest.json").read_text())
    found = list(items(find_inputs([str(tmp_path)], "val")))
    assert not any(isinstance(one, Item) for one in found)
    assert "No such file" in str(found[0])


def test_rows_are_printed_where_there_is_no_folder(run: Path, shards: Path) -> None:
    asked = ["predict", str(run), str(shards / "val-000000.tar"), "--format", "csv"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 24


def test_the_whole_picture_is_read_as_the_stream_reads_it(run: Path) -> None:
    _, head, _ = head_at(0, seed=1, people=5, size=200)
    stream = io.BytesIO()
    Image.fromarray(head[:150]).save(stream, "JPEG")
    row = np.empty((made.SIDE, made.SIDE, 3), np.uint8)
    decode_into(stream.getvalue(), row)
    assert np.array_equal(open_predictor(run, torch.device("cpu")).whole(stream.getvalue()), row)


@pytest.mark.real
def test_an_estimator_reads_real_faces_as_annotated(shared: Path, tmp_path: Path) -> None:
    """AFLW2000 image00078 looks to the picture's left (yaw +40.8 in its annotation); cropped by its landmarks."""
    from scipy.io import loadmat

    stem = shared / "data/aflw2000/image00078"
    points = loadmat(stem.with_suffix(".mat"))["pt3d_68"][:2]
    (x0, y0), (x1, y1) = points.min(1), points.max(1)
    half, x, y = 0.7 * max(x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2
    face = Image.open(stem.with_suffix(".jpg")).crop((int(x - half), int(y - half), int(x + half), int(y + half)))
    face.save(tmp_path / "face.png")
    yaml = Path(__file__).parents[2] / "configs/estimators/lwpose66.yaml"
    weights = shared / "weights/lwpose66.onnx"
    options = PredictOptions(out=tmp_path / "out", weights=weights, draw="axes")
    assert predict(yaml, [str(tmp_path / "face.png")], options) == 0
    row = rows(tmp_path / "out")[0]
    assert row["yaw"] == pytest.approx(40.8, abs=12)
    assert row["direction"] == "left"
    assert row["yaw_sd"] > 0
    assert "emotion" not in row


def test_whole_photos_for_a_network_of_crops_are_told_with_the_way_out(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_photos, "installed", tuple)
    copy = tmp_path / "cropped"
    shutil.copytree(shards, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    photos = [module.ImageFile(tmp_path / "a.jpg", "a"), module.ImageFile(tmp_path / "b.jpg", "b")]
    for crop, count in (("none", 0), ("keep", 0), ("square-1.4@landmarks", 1)):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"crop": crop}))
        predictor = open_predictor(made.untrained(tmp_path / crop, copy), torch.device("cpu"))
        told = module.whole_photos(photos, predictor)
        assert len(told) == count
        assert all("--faces mtcnn or hog (pip install" in line and crop in line for line in told)
        assert not module.whole_photos([module.ShardFile(copy / "test-000000.tar", None)], predictor)
    monkeypatch.setattr(whole_photos, "installed", lambda: ("hog",))
    for head, angles in (("pose", True), ("emotion", False)):
        other = ("direction", "affect", "emotion" if angles else "pose")
        network = made.untrained(tmp_path / head, copy, *(f"model.heads.{name}=null" for name in other))
        (told,) = module.whole_photos(photos, open_predictor(network, torch.device("cpu")))
        assert ("its angles are wrong by 20°" in told) == angles
        assert ("landmark model" in told) == angles
        assert "Detect the faces with --faces hog" in told
        assert "pip install" not in told


def test_every_file_of_a_folder_is_a_row_a_reason_or_is_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    good = photo(raw / "a.jfif")
    for name in ("b", "c.JPEG", "d.jpg_large", "sub/Zoë.png"):
        (raw / name).parent.mkdir(exist_ok=True)
        shutil.copy(good, raw / name)
    photo(tmp_path / "pool/e.webp", 1, form="WEBP")
    (raw / "linked").symlink_to(tmp_path / "pool")
    (raw / "linked again").symlink_to(tmp_path / "pool")
    (raw / "gone.png").symlink_to(tmp_path / "nowhere")
    (raw / "f.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (raw / "empty.jpg").touch()
    for name in ("a.txt", "b.txt", "poses.mat", ".hidden"):
        (raw / name).touch()
    assert predict(run, [str(raw)], PredictOptions(out=tmp_path / "out")) == 1
    assert {Path(row["source"]).name for row in rows(tmp_path / "out")} == {
        "a.jfif", "b", "c.JPEG", "d.jpg_large", "Zoë.png", "e.webp"
    }  # fmt: skip
    named = {Path(one["source"]).name: one["reason"] for one in skipped(tmp_path / "out")}
    assert named.keys() == {"gone.png", "f.HEIC", "empty.jpg"}
    assert "HEIC" in named["f.HEIC"]
    said = capsys.readouterr().err
    assert "5 other files passed over: 2 × .txt, 1 × .mat, 1 × hidden" in said
    assert "1 × link to a folder that is read anyway" in said
    assert "6 faces in 9 images; 0 without a face, 3 could not be read; 5 other files passed over" in said


def test_long_names_are_drawn_under_names_of_their_own(run: Path, tmp_path: Path) -> None:
    names = [
        f"{letters}{number:05d}.png" for number in range(3) for letters in ("x" * 245, "顔" * 80, "\U0001f600" * 60)
    ]
    photo(tmp_path / "in" / names[0], form="PNG")
    for name in names[1:]:
        shutil.copy(tmp_path / "in" / names[0], tmp_path / "in" / name)
    assert predict(run, [str(tmp_path / "in")], PredictOptions(out=tmp_path / "out", draw="axes")) == 0
    drawn = {path.name for path in (tmp_path / "out/drawn").iterdir()}
    assert len(drawn) == len(rows(tmp_path / "out")) == 9
    assert max(len(os.fsencode(name)) for name in drawn) <= 143  # where file names are encrypted
    assert predict(run, [str(tmp_path / "in")], PredictOptions(out=tmp_path / "again", draw="axes", batch=2)) == 0
    assert {path.name for path in (tmp_path / "again/drawn").iterdir()} == drawn


def test_a_drawing_that_fails_is_named_and_the_others_are_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("abc"):
        photo(tmp_path / "in" / f"{name}.jpg", number)
    (tmp_path / "out/drawn/b.jpg").mkdir(parents=True)
    assert predict(run, [str(tmp_path / "in")], PredictOptions(out=tmp_path / "out", draw="axes")) == 1
    assert len(rows(tmp_path / "out")) == 3
    assert sorted(path.name for path in (tmp_path / "out/drawn").iterdir() if path.is_file()) == ["a.jpg", "c.jpg"]
    (one,) = skipped(tmp_path / "out")
    assert (one["key"], one["reason"]) == ("b", "drawn/b.jpg cannot be written: Is a directory")
    assert "0 could not be read, 1 could not be drawn" in capsys.readouterr().err


@pytest.fixture
def of_whole_images(tmp_path: Path, shards: Path) -> Path:
    """A run whose training images are known to be used whole."""
    copy = tmp_path / "whole"
    shutil.copytree(shards, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"crop": "none"}))
    return made.untrained(tmp_path / "run of whole images", copy)


@pytest.mark.parametrize(
    ("width", "height", "faces", "told"),
    [
        (100, 100, None, None), (110, 80, None, None), (160, 100, None, "has 160 × 100 pixels"),
        (1400, 1300, None, "has 1,400 × 1,300 pixels"), (100, 100, 1, None),
        (100, 100, 8, "mtcnn finds 8 faces in a.jpg"),
    ],
)  # fmt: skip
def test_images_that_look_like_whole_photos_are_told_before_they_are_used_as_one_face(
    of_whole_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    width: int, height: int, faces: int | None, told: str | None,
) -> None:  # fmt: skip
    class Several:
        def detect(self, images: Sequence[RGBImage]) -> list[list[Face]]:
            return [[((5.0, 5.0, 85.0, 95.0), 0.9)] * (faces or 0) for _ in images]

    monkeypatch.setattr(whole_photos, "installed", lambda: () if faces is None else ("mtcnn", "hog"))
    monkeypatch.setattr(whole_photos, "open_detector", lambda name: Several())
    (tmp_path / "in").mkdir()
    Image.new("RGB", (width, height), (90, 90, 90)).save(tmp_path / "in/a.jpg")
    assert predict(of_whole_images, [str(tmp_path / "in")], PredictOptions(out=tmp_path / "out")) == 0
    said = capsys.readouterr().err
    assert ("WARNING: each image is used whole, as one face" in said) == (told is not None)
    if told is not None:
        assert told in said
        assert ("--faces mtcnn or hog (pip install" in said) == (faces is None)
        assert "--faces mtcnn or hog" in said


def test_the_limit_of_megapixels_is_an_option_that_the_message_names(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/large.png", size=80, side=100, form="PNG")
    photo(tmp_path / "in/small.jpg", size=40, side=50)
    small = PredictOptions(out=tmp_path / "out", max_megapixels=0.005)
    assert predict(run, [str(tmp_path / "in")], small) == 1
    assert [row["key"] for row in rows(tmp_path / "out")] == ["small"]
    (one,) = skipped(tmp_path / "out")
    assert one["reason"].startswith("100 × 100 pixels, more than the 0.005 megapixels allowed")
    assert "--max-megapixels" in one["reason"]
    assert load(run).read(tmp_path / "in/large.png")[0].emotion in EMOTIONS
    for wrong in (0, -1, 179, float("nan")):
        with pytest.raises(UserError, match=f"--max-megapixels {wrong:g}: expected more than 0 and at most 178"):
            predict(run, [str(tmp_path / "in")], PredictOptions(max_megapixels=wrong))


def test_shards_of_a_pack_that_was_stopped_are_refused_with_counts(run: Path, shards: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    (half / ".pack").mkdir(parents=True)
    shutil.copy(shards / "train-000000.tar", half)
    (half / ".pack/plan.json").write_text('{"shards": 7, "rows": 300}')
    with pytest.raises(UserError, match=r"half: unfinished, 1 of 7 shards so far; run the same `hpe pack` again"):
        predict(run, [str(half)], PredictOptions())
    with pytest.raises(UserError, match="unfinished, 1 of 7 shards"):
        evaluate(run, [ShardSet(str(half))], EvaluateOptions(name="half", workers=0))
    assert predict(run, [str(half / "*.tar")], PredictOptions(out=tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out")) == 40
