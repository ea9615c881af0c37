"""One pixel path: ``hpe predict`` on raw pictures and ``hpe evaluate`` on their shards see and say the same."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from hpe.core.files import write_text
from hpe.core.labels import ANGLES, EMOTIONS
from hpe.core.precision import Precision
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.models import inference
from hpe.models.build import build_network
from hpe.models.run_folder import recipes
from hpe.models.views import PLAIN
from hpe.pack import pack_source
from hpe.pack.options import Options
from hpe.predict import predict
from hpe.predict.network import RunPredictor, open_predictor
from hpe.predict.options import PredictOptions
from hpe.sources.synthetic.heads import head_at
from hpe.stream import ShardSet
from tests import made

CPU = torch.device("cpu")


def heads(folder: Path, count: int = 24) -> Path:
    """Rendered heads of several sizes and formats, in folders by emotion, as ``hpe pack folders`` reads them."""
    for number in range(count):
        _, head, _ = head_at(number, seed=4, people=9, size=(48, 90, 130)[number % 3])
        path = folder / ("happy", "sad")[number % 2] / f"{number:03d}.{('png', 'jpg')[number % 5 > 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(head[: 40 + number]).save(path)
    return folder


def run_on(run: Path, shards: Path, *overrides: str) -> Path:
    """A run folder with random weights whose answers differ from face to face, made for these shards."""
    split = Manifest.load(shards).splits[0]
    sets = [f"data.{part}=[{{shards: {shards}, split: {split}}}]" for part in ("train", "val")]
    return made.untrained(run, shards, *sets, *overrides)


def said(run: Path, raw: Path, shards: Path, out: Path) -> tuple[Mapping[str, dict], Mapping[str, dict]]:
    """What predict and evaluate say, by the picture's path inside the raw dataset (without the suffix)."""
    for split in Manifest.load(shards).splits:
        assert evaluate(run, [ShardSet(str(shards), split)], EvaluateOptions(name=split, workers=0, replicates=20)) == 0
    tables = [pq.read_table(run / f"evaluate/{split}.parquet").to_pylist() for split in Manifest.load(shards).splits]
    judged = {str(Path(row["source"]).with_suffix("")): row for table in tables for row in table}
    assert predict(run, [str(raw)], PredictOptions(out=out, form="parquet")) == 0
    predicted = {row["key"]: row for row in pq.read_table(out / "predictions.parquet").to_pylist()}
    assert predicted.keys() >= judged.keys()
    return predicted, judged


def agree(predicted: Mapping[str, dict], judged: Mapping[str, dict]) -> None:
    """The same classes, and angles within 0.05°, as the product promises."""
    classes = [np.argmax(judged[key]["emotion_p"]) for key in judged if "emotion_p" in judged[key]]
    if classes:
        assert len(set(classes)) > 1, "faces that all look alike to the network prove nothing"
        same = [predicted[key]["emotion"] == EMOTIONS[c] for key, c in zip(judged, classes, strict=True)]
        assert np.mean(same) >= 0.999
    if "yaw_hat" in next(iter(judged.values())):
        ours = np.array([[predicted[key][name] for name in ANGLES] for key in judged])
        theirs = np.array([[judged[key][f"{name}_hat"] for name in ANGLES] for key in judged])
        assert np.ptp(theirs, 0).max() > 1
        assert np.abs(ours - theirs).max() <= 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        Options(size=64, quality=60),
        Options(size=64, grey=True, quality=80),
        Options(crop="keep"),
    ],
    ids=["colour", "grey", "keep"],
)
def test_raw_pictures_give_what_their_shards_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    raw, shards = heads(tmp_path / "raw"), tmp_path / "shards"
    pack_source("folders", [str(raw), str(shards)], [], 1, options)
    run = run_on(tmp_path / "run", shards, f"train.precision={precision}")
    predicted, judged = said(run, raw, shards, tmp_path / "out")
    assert len(judged) == 24
    agree(predicted, judged)
    # Bit for bit the pixels of the shards, too.
    predictor = open_predictor(run, CPU)
    stored = {sample.record.source: sample.image for tar in shards.glob("*.tar") for sample in read_samples(tar)}
    for name, data in stored.items():
        assert np.array_equal(predictor.whole((raw / str(name)).read_bytes()), predictor.stored(data))


def test_pictures_of_a_dataset_are_cropped_by_its_own_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    raw.mkdir()
    draw = np.random.default_rng(0)
    for number in range(2, 42, 2):
        _, head, _ = head_at(number, seed=4, people=9, size=80)
        photo = Image.new("RGB", (200, 180), (90, 60, 30))
        x, y = int(draw.integers(0, 110)), int(draw.integers(0, 90))
        photo.paste(Image.fromarray(head), (x, y))
        photo.save(raw / f"image{number:05d}.jpg", quality=97)
        points = np.stack((draw.uniform(x + 20, x + 60, 68), draw.uniform(y + 20, y + 60, 68), np.zeros(68)))
        pose = np.array([[0.1, -0.2 + number / 100, 0.05, 10, 20, 0, 1e-3]])
        savemat(raw / f"image{number:05d}.mat", {"Pose_Para": pose, "pt3d_68": points})
    Image.new("RGB", (64, 64), (120, 90, 90)).save(raw / "stranger.jpg")
    pack_source("aflw2000", [str(raw), str(shards)], [], 1, Options(size=96, crop="square-1.4@landmarks"))
    run = run_on(tmp_path / "run", shards, "model.heads={pose: {}}")
    predicted, judged = said(run, raw, shards, tmp_path / "out")
    assert "dataset aflw2000: 20 images cropped by the dataset's own labels (square-1.4@landmarks)" in (
        told := capsys.readouterr().err
    )
    assert "images are used whole" in told  # the stranger
    agree(predicted, judged)
    boxes = [tuple(row[side] for side in ("x0", "y0", "x1", "y1")) for row in predicted.values()]
    assert sum(box == (0, 0, 64, 64) for box in boxes) == 1
    assert all(15 < x1 - x0 < 41 and 15 < y1 - y0 < 41 for x0, y0, x1, y1 in boxes if (x0, y0) != (0, 0))


def test_what_older_runs_have_not_recorded_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, shards = heads(tmp_path / "raw", 4), tmp_path / "shards"
    pack_source("folders", [str(raw), str(shards)], [], 1, Options(size=64))
    run = run_on(tmp_path / "run", shards)
    assert [(r.size, r.quality, r.grey) for r in recipes(run)] == [(64, 95, False)]
    record = json.loads((run / "shards.json").read_text())
    write_text(run / "shards.json", json.dumps({k: {"crop": v["crop"]} for k, v in record.items()}))
    assert recipes(run) == frozenset()
    assert predict(run, [str(raw)], PredictOptions(out=tmp_path / "out")) == 0
    assert "run has no size in its shards.json: image files are scaled straight to 32 px" in capsys.readouterr().err
    assert predict(run, [str(shards)], PredictOptions(out=tmp_path / "out")) == 0  # what is packed needs no recipe
    assert "image files are scaled" not in capsys.readouterr().err


def test_the_arithmetic_depends_on_neither_the_batch_nor_the_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the network has rows of one number, the last one filled up."""
    raw, shards = heads(tmp_path / "raw", 20), tmp_path / "shards"
    pack_source("folders", [str(raw), str(shards)], [], 1, Options(size=32))
    predictor = open_predictor(run_on(tmp_path / "run", shards), CPU)
    assert isinstance(predictor, RunPredictor)
    shapes: list[int] = []
    predictor._network.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    faces = np.stack([predictor.whole(path.read_bytes()) for path in sorted(raw.rglob("*.*"))])
    whole = predictor.answer(faces)
    alone = [predictor.answer(faces[row : row + 1]) for row in (0, 7, 19)]
    assert set(shapes) == {inference.CPU_PIECE}
    assert whole.emotion_p is not None
    assert whole.angles is not None
    for row, one in zip((0, 7, 19), alone, strict=True):
        assert one.emotion_p is not None
        assert one.angles is not None
        assert np.array_equal(one.emotion_p[0], whole.emotion_p[row])
        assert np.array_equal(one.angles[0], whole.angles[row])


def test_a_smaller_batch_than_a_piece_is_kept_to(tmp_path: Path) -> None:
    """Who asks for fewer faces at a time is short of memory."""
    config = made.config(tmp_path, tmp_path / "run")
    network, shapes = build_network(config.model).eval(), list[int]()
    network.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    found = inference.judge(network, torch.zeros(11, 3, 32, 32), PLAIN, Precision("fp32", ""), 4)
    assert shapes == [4, 4, 4]
    assert found.angles is not None
    assert len(found.angles) == 11


@pytest.mark.real
@pytest.mark.parametrize("crop", ["none", "square-1.4@landmarks"])
def test_real_photos_of_aflw2000_give_what_their_shards_give(shared: Path, tmp_path: Path, crop: str) -> None:
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    raw.mkdir()
    for path in sorted((shared / "data/aflw2000").glob("image*.*"))[:80]:
        shutil.copy(path, raw)
    pack_source("aflw2000", [str(raw), str(shards)], [], 1, Options(crop=crop))
    run = run_on(tmp_path / "run", shards, "model.heads={pose: {}}", "data.size=48")
    predicted, judged = said(run, raw, shards, tmp_path / "out")
    assert len(judged) == 40
    agree(predicted, judged)


@pytest.mark.real
@pytest.mark.parametrize("crop", ["none", "keep"])
def test_real_faces_of_ferplus_give_what_their_shards_give(shared: Path, tmp_path: Path, crop: str) -> None:
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    (raw / "FER2013Test").mkdir(parents=True)
    lines = (shared / "data/ferplus/FER2013Test/label.csv").read_text().splitlines()[:150]
    write_text(raw / "FER2013Test/label.csv", "\n".join(lines))
    for line in lines:
        shutil.copy(shared / "data/ferplus/FER2013Test" / line.partition(",")[0], raw / "FER2013Test")
    pack_source("ferplus", [str(raw), str(shards)], [], 1, Options(crop=crop))
    run = run_on(tmp_path / "run", shards, "model.heads={emotion: {}}", "data.size=32")
    predicted, judged = said(run, raw, shards, tmp_path / "out")
    assert len(judged) > 140
    agree(predicted, judged)
