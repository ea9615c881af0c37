"""``hpe evaluate``: every sample once whatever the ranks; its figures are scikit-learn's of what the network said."""

import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hpe.cli import app
from hpe.config.run import ShardsConfig
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.evaluate import EvaluateOptions, evaluate, measure
from hpe.evaluate import judged as judging
from hpe.evaluate.warnings import seen_in_training
from hpe.models.build import build_network, load_run
from hpe.models.checkpoints import State, not_at_its_end, save_checkpoint, saved
from hpe.models.run_folder import load_config
from hpe.stream import Reading, ShardSet, Stream
from hpe.stream.shard_sets import Shard, resolve
from hpe.study.adaboost import _read, hog_of
from tests import made, warm
from tests.stream.tiny import pose_table

ROOT = Path(__file__).parents[2]
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Change = Callable[[int, Sample], Sample]


def pack(folder: Path, change: Change, counts: Sequence[int] = (40, 7, 33), first: int = 0) -> Path:
    """Uneven test shards of coloured squares whose records a test changes."""
    folder.mkdir(parents=True)
    infos, start = [], first
    for number, count in enumerate(counts):
        batch = [change(start + i, one) for i, one in enumerate(made.samples(count, start=start))]
        infos.append(write_shard(folder / f"test-{number:06d}.tar", "test", batch))
        start += count
    Manifest("made", "squares", "none", True, "none", {"size": made.SIDE}, tuple(infos)).save(folder)
    return folder


def said(**fields: Any) -> Change:
    """The same change of every record."""
    return lambda _, one: replace(one, record=replace(one.record, **fields))


def _varied(number: int, one: Sample) -> Sample:
    """Some unlabelled, some beyond ±99°, three ages of which one is not told."""
    record = replace(
        one.record,
        yaw=None if number % 13 == 0 else -120.0 if number % 10 == 3 else one.record.yaw,
        emotion=None if number % 9 == 0 else one.record.emotion,
        groups={"age": ("child", "adult")[number % 2]} if number % 5 else {},
    )
    return replace(one, record=record)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("shards") / "squares", _varied)


def untrained(folder: Path, *overrides: str) -> Path:
    """A run folder with a network that has learned nothing: what it says is as good as any for these laws."""
    config = made.config(folder.parent / "none", folder, *overrides)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
    torch.manual_seed(3)
    network = build_network(config.model).eval()
    for name, parameter in network.named_parameters():  # so that it does not say the same of everything
        if name.startswith("heads") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=3.0)
    save_checkpoint(folder, State(0, 0), network, {}, ema=None, keep=1, best=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "run")


def judged(run: Path, shards: Path, *, name: str = "test", batch: int = 16) -> tuple[pa.Table, dict[str, Any]]:
    one = [ShardSet(str(shards), "test")]
    assert evaluate(run, one, EvaluateOptions(name=name, batch=batch, workers=0, precision="fp32", replicates=100)) == 0
    return result(run, name)


def result(run: Path, name: str = "test") -> tuple[pa.Table, dict[str, Any]]:
    table = pq.read_table(run / "evaluate" / f"{name}.parquet")
    return table, json.loads((run / "evaluate" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(run: Path, shards: Path) -> tuple[pa.Table, dict[str, Any]]:
    return judged(run, shards)


def column(table: pa.Table, name: str) -> np.ndarray:
    """Numbers, NaN where there is none."""
    return np.array([np.nan if value is None else value for value in table[name].to_pylist()], float)


# --- What is predicted


def test_predictions_are_those_of_the_network_fed_by_hand(run: Path, shards: Path, whole: Any) -> None:
    table, _ = whole
    network, _, _ = load_run(run)
    pictures = []
    for sample in made.samples(80):
        pixels = np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"), float) / 255
        pictures.append(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1))
    with torch.no_grad():
        outputs = network(torch.tensor(np.stack(pictures), dtype=torch.float32))
        shares = outputs["emotion"].softmax(1).numpy()
        bins = outputs["pose"].softmax(-1).numpy()
    theirs = np.array(table["emotion_p"].to_pylist())
    assert len(np.unique(theirs.argmax(1))) > 3, "the network says too little to tell rows apart"
    np.testing.assert_allclose(theirs, shares, atol=2e-3)
    angles = (bins * (np.arange(66) * 3 - 99)).sum(-1)
    np.testing.assert_allclose(np.stack([column(table, f"{a}_hat") for a in ANGLES], 1), angles, atol=0.1)


def test_every_sample_is_there_once_in_order_with_what_its_record_says(whole: Any) -> None:
    table, figures = whole
    wanted = [_varied(i, one) for i, one in enumerate(made.samples(80))]
    assert table["key"].to_pylist() == [one.key for one in wanted]
    for name in ("emotion", "direction", "subject", "source", "split", "valence"):
        assert table[name].to_pylist() == [getattr(one.record, name) for one in wanted], name
    assert table["group_age"].to_pylist() == [one.record.groups.get("age") for one in wanted]
    assert table["shard"].to_pylist() == [f"test-{n:06d}.tar" for n, k in enumerate((40, 7, 33)) for _ in range(k)]
    assert figures["rows"] == figures["about"]["samples"] == 80


@pytest.mark.parametrize("batch", [1, 7, 80, 999])
def test_the_size_of_the_batch_changes_nothing_but_rounding(run: Path, shards: Path, whole: Any, batch: int) -> None:
    table, _ = judged(run, shards, name=f"batch{batch}", batch=batch)
    assert table["key"].equals(whole[0]["key"])
    for name in ("emotion_p", "direction_p"):
        np.testing.assert_allclose(table[name].to_pylist(), whole[0][name].to_pylist(), atol=1e-4)


@pytest.mark.slow
def test_ranks_together_write_what_one_writes(run: Path, shards: Path, whole: Any) -> None:
    name, ranks = "ranks", 3
    # 80 samples in batches of 11: the last is short, and for the last rank smaller still.
    options = ("--name", name, "--workers", "0", "--batch", "11")
    done = warm.run_ranks(ranks, "-m", "hpe", "evaluate", run, shards, *options, env=os.environ | {"HPE_QUIET": ""})
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^evaluate .*: (\d+) of 80 images", done.stderr, re.MULTILINE)[-1] == "80", done.stderr
    table, figures = result(run, name)
    alone, of_one = whole
    assert table.drop_columns([c for c in table.column_names if c.endswith(("_p", "_hat", "_sd"))]).equals(
        alone.drop_columns([c for c in alone.column_names if c.endswith(("_p", "_hat", "_sd"))])
    )
    np.testing.assert_allclose(table["emotion_p"].to_pylist(), alone["emotion_p"].to_pylist(), atol=0.02)
    assert figures["emotion"]["n"] == of_one["emotion"]["n"]
    assert figures["pose"]["all"]["n"] == of_one["pose"]["all"]["n"]
    assert sorted(p.name for p in (run / "evaluate").glob(f"*{name}*")) == [
        f"{name}.{end}" for end in ("faces.parquet", "json", "md", "parquet")
    ]


# --- Figures


def choices(table: pa.Table, head: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, choice and probabilities of the labelled rows, read from the file as a stranger would."""
    truth, p = column(table, head), np.array(table[f"{head}_p"].to_pylist())
    rows = np.isfinite(truth)
    return truth[rows].astype(int), p[rows].argmax(1), p[rows]


def test_class_figures_are_scikit_learns_of_the_predictions_file(whole: Any) -> None:
    table, figures = whole
    for head, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        truth, choice, p = choices(table, head)
        made_of = figures[head]
        every = range(len(names))
        assert made_of["n"] == len(truth)
        assert made_of["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, choice))
        assert made_of["macro_f1"]["value"] == pytest.approx(sk.f1_score(truth, choice, average="macro"))
        assert made_of["weighted_f1"]["value"] == pytest.approx(sk.f1_score(truth, choice, average="weighted"))
        assert made_of["confusion"] == sk.confusion_matrix(truth, choice, labels=every).tolist()
        assert made_of["top_2"]["value"] == pytest.approx(sk.top_k_accuracy_score(truth, p, k=2, labels=every))
    emotions = [one for one in table["emotion"].to_pylist() if one is not None]
    assert figures["emotion"]["left_out"] == {"no emotion label": 80 - len(emotions)}


def test_the_two_protocols_differ_by_contempt(whole: Any) -> None:
    table, figures = whole
    truth, choice, p = choices(table, "emotion")
    eight, seven = figures["protocols"]["affectnet_8"], figures["protocols"]["affectnet_7"]
    assert eight["n"] == len(truth)
    assert eight["accuracy"]["value"] == pytest.approx(np.mean(choice == truth))
    kept = truth != EMOTIONS.index("contempt")
    among = p[kept][:, :7].argmax(1)
    assert seven["n"] == kept.sum() < len(truth)
    assert seven["accuracy"]["value"] == pytest.approx(np.mean(among == truth[kept]))


def test_pose_errors_are_scipys_with_and_without_what_lies_beyond_99_degrees(whole: Any) -> None:
    table, figures = whole
    truth = np.stack([column(table, name) for name in ANGLES], 1)
    guess = np.stack([column(table, f"{name}_hat") for name in ANGLES], 1)
    known = np.isfinite(truth).all(1)
    truth, guess = truth[known], guess[known]
    turned = [Rotation.from_euler("ZYX", a[:, [2, 0, 1]], degrees=True) for a in (guess, truth)]
    geodesic = np.rad2deg((turned[0].inv() * turned[1]).magnitude())
    off = np.abs(guess - truth)
    off = np.minimum(off, 360 - off)
    inside = (np.abs(truth) <= 99).all(1)
    for name, rows in (("all", np.ones(len(truth), bool)), ("within_99", inside)):
        found = figures["pose"][name]
        assert found["n"] == rows.sum()
        assert found["mae"]["value"] == pytest.approx(off[rows].mean(), rel=1e-4)
        assert found["geodesic"]["value"] == pytest.approx(geodesic[rows].mean(), rel=1e-4)
        for index, angle in enumerate(ANGLES):
            assert found[angle]["value"] == pytest.approx(off[rows, index].mean(), rel=1e-4)
    assert figures["pose"]["within_99"]["dropped"] == (~inside).sum() > 0


def test_figures_by_direction_by_yaw_and_by_group_are_those_of_their_rows(whole: Any) -> None:
    table, figures = whole
    truth, p = column(table, "emotion"), np.array(table["emotion_p"].to_pylist())
    yaw, pitch, roll = (column(table, name) for name in ANGLES)
    ages = np.array(table["group_age"].to_pylist(), object)
    labelled = np.isfinite(truth)
    whole_pose = np.isfinite(yaw) & np.isfinite(pitch) & np.isfinite(roll)
    parts = {("group_age", age): ages == age for age in ("child", "adult")}
    parts |= {("direction", name): column(table, "direction") == i for i, name in enumerate(DIRECTIONS)}
    parts |= {("yaw", "below -75°"): whole_pose & (yaw < -75), ("yaw", "15° to 45°"): whole_pose & (yaw >= 15)}
    for (what, value), rows in parts.items():
        found = figures["by"][what][value]
        assert found["rows"] == rows.sum() > 0, (what, value)
        right = p[rows & labelled].argmax(1) == truth[rows & labelled]
        assert found["emotion"]["accuracy"]["n"] == len(right)
        assert found["emotion"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert list(figures["by"]["group_age"]) == ["adult", "child"]


def test_intervals_draw_people_because_pictures_of_one_person_are_no_independent_samples(whole: Any) -> None:
    table, figures = whole
    assert figures["interval"]["unit"] == "subject"
    assert figures["interval"]["units"] == len(set(table["subject"].to_pylist())) == 11
    one = figures["emotion"]["accuracy"]
    assert one["low"] <= one["value"] <= one["high"]
    assert one["low"] < one["high"]


def test_one_person_gives_no_interval_but_the_reason(run: Path, tmp_path: Path) -> None:
    folder = pack(tmp_path / "one", said(subject="only one"), (24,))
    _, figures = judged(run, folder, name="one_person")
    for figure in (figures["emotion"]["accuracy"], figures["pose"]["all"]["mae"], figures["direction"]["macro_f1"]):
        assert figure["low"] is None
        assert "fewer than 6" in figure["interval_reason"]


def test_one_sample_gives_figures_and_says_how_little_they_are(run: Path, tmp_path: Path) -> None:
    folder = pack(tmp_path / "one", said(subject=None), (1,))
    table, figures = judged(run, folder, name="one_sample")
    assert table.num_rows == figures["rows"] == 1
    assert figures["emotion"]["accuracy"]["n"] == 1
    assert figures["emotion"]["accuracy"]["high"] - figures["emotion"]["accuracy"]["low"] > 0.7
    assert "fewer than 6" in figures["pose"]["all"]["mae"]["interval_reason"]


def test_a_single_class_has_no_macro_f1_by_group_and_names_the_absent_ones(run: Path, tmp_path: Path) -> None:
    folder = pack(tmp_path / "happy", said(emotion=1, groups={"age": "adult"}), (24,))
    _, figures = judged(run, folder, name="happy")
    assert figures["emotion"]["absent_classes"] == [name for name in EMOTIONS if name != "happy"]
    assert figures["emotion"]["chance"]["value"] == 1.0
    recall = figures["emotion"]["per_class"]["sad"]["recall"]
    assert recall["value"] is None
    assert recall["reason"] == "no sample of this class"
    brief = figures["by"]["group_age"]["adult"]["emotion"]["macro_f1"]
    assert brief["value"] is None
    assert "one true emotion only" in brief["reason"]


def test_a_head_that_the_run_lacks_and_a_label_that_the_shards_lack_are_absent_with_their_reason(
    tmp_path: Path, run: Path, shards: Path
) -> None:
    alone = untrained(tmp_path / "alone", "model.heads={direction: {}}")
    _, figures = judged(alone, shards)
    assert figures["emotion"] == {"value": None, "n": 0, "reason": "the run has no emotion predictions"}
    assert figures["pose"]["reason"] == "the run has no pose predictions"
    assert figures["direction"]["accuracy"]["n"] == 80
    bare = pack(tmp_path / "bare", said(emotion=None), (9,))
    _, figures = judged(run, bare, name="bare")
    assert figures["emotion"]["reason"] == "no sample has a label of emotion"
    assert figures["cells"]["value"] is None


# --- What cannot work


NOTHING = {"emotion": None, "direction": None, "yaw": None, "valence": None, "arousal": None}


def test_shards_without_a_label_of_any_head_are_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    bare = pack(tmp_path / "bare", said(**NOTHING), (9,))
    with pytest.raises(UserError, match=r"no sample has a label of this network's heads \(emotion.*hpe predict"):
        judged(run, bare, name="never")
    assert not list((run / "evaluate").glob("*never*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN", "FILE"], "no sample"),
        (["RUN", "/nowhere"], "/nowhere"),
        (["RUN", "SHARDS", "--split", "exam"], "exam"),
        (["RUN", "SHARDS", "--which", "step-00000007"], "step-00000000"),
        (["RUN", "SHARDS", "--pose", "/nowhere"], "/nowhere"),
        (["RUN", "SHARDS", "--name", "a/b"], "plain file name"),
        (["SHARDS", "SHARDS"], "Were two arguments swapped?"),
    ],
)
def test_a_mistake_is_one_message(run: Path, shards: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "file.yaml").write_text("run: x\n", encoding="utf-8")
    places = {"RUN": run, "SHARDS": shards, "FILE": tmp_path / "file.yaml"}
    before = sorted(run.rglob("*"))
    done = CliRunner().invoke(app, ["evaluate", *(str(places.get(word, word)) for word in arguments)])
    assert isinstance(done.exception, UserError), done.exception
    assert told in str(done.exception)
    assert sorted(run.rglob("*")) == before


def test_a_damaged_picture_is_named_and_counted_and_the_rest_is_judged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack(tmp_path / "damaged", said(), (12,))
    tar = folder / "test-000000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\xff\xd8\xff", 4096)
    data[at : at + 64] = bytes(64)
    tar.write_bytes(data)
    one = [ShardSet(str(folder), "test")]
    assert evaluate(run, one, EvaluateOptions(name="damaged", workers=0, precision="fp32", replicates=50)) == 1
    assert "damaged: could not read test-000000.tar" in capsys.readouterr().err
    table, figures = result(run, "damaged")
    assert table.num_rows == figures["rows"] == 11
    assert figures["about"]["unreadable"] == 1
    assert "11 samples, 1 more could not be read" in (run / "evaluate" / "damaged.md").read_text()


@pytest.mark.parametrize(("broken", "kept"), [(5, True), (12, False)], ids=["pictures", "a shard"])
def test_more_broken_pictures_than_are_named_leave_no_predictions(
    run: Path, tmp_path: Path, broken: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpe.stream.loader._NAMED_DAMAGE", 1)
    folder = pack(tmp_path / "broken", said(), (12, 6))
    tar = folder / "test-000000.tar"
    data = bytearray(tar.read_bytes())
    for _ in range(broken):
        at = data.index(b"\xff\xd8\xff")
        data[at : at + 64] = bytes(64)
    tar.write_bytes(data if kept else b"no tar")
    one = ShardSet(str(folder), "test")
    assert (
        evaluate(run, [one], EvaluateOptions(name="broken", batch=4, workers=0, precision="fp32", replicates=50)) == 1
    )
    table, figures = result(run, "broken")
    assert table.num_rows == 18 - broken
    assert figures["about"]["unreadable"] == broken
    rows, features, lost = _read(Stream([one], Reading(made.SIDE, "grey")), hog_of)
    assert rows["key"].to_pylist() == table["key"].to_pylist()
    assert (len(features), lost) == (18 - broken, broken)


def test_a_network_that_gives_no_numbers_and_tables_that_are_not_named_are_told(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = judging.prepare
    monkeypatch.setattr(judging, "prepare", lambda batch, by: prepared(batch, by) * float("nan"))
    table, _ = judged(run, shards, name="nan")
    told = capsys.readouterr().err
    assert f"for {table.num_rows} of {table.num_rows} samples the network gave NaN" in told


def test_angles_of_the_records_in_place_of_pose_tables_are_told(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(untrained(tmp_path / "run", "data.angles=pose"), shards, name="bare")
    assert "bare: no pose tables (--pose)" in capsys.readouterr().err


def test_labels_that_an_estimator_gave_are_not_called_true(tmp_path: Path) -> None:
    folder = pack(tmp_path / "shards", said(), (9,))
    (info,) = Manifest.load(folder).shards
    pose_table(folder / "some", info, [one.key for one in made.samples(9)])
    tables = str(folder / "some")
    told = {}
    for name, given in (("measured", ()), ("estimated", ("data.angles=pose", "data.direction=ours"))):
        run = untrained(tmp_path / name, *given)
        assert (
            evaluate(run, [ShardSet(str(folder), "test", tables)], EvaluateOptions(name=name, workers=0, replicates=20))
            == 0
        )
        told[name] = (run / "evaluate" / f"{name}.md").read_text()
        about = result(run, name)[1]["about"]
        assert about.get("estimated") == (f"angles and directions of {tables}" if given else None)
    assert "agreement and not accuracy" in told["estimated"]
    assert "agreement and not accuracy" not in told["measured"]


def test_the_terminal_shows_the_headline_and_the_page_every_table(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvaluateOptions(workers=0, replicates=20, name="headline")
    assert evaluate(run, [ShardSet(str(shards), "test")], options) == 0
    told, page = capsys.readouterr().out.strip(), (run / "evaluate/headline.md").read_text()
    assert page.startswith(told)
    assert told.endswith("|")
    assert "| Emotion accuracy |" in told
    assert "Confusion" in page.removeprefix(told)
    assert "Confusion" not in told


def test_a_training_that_has_not_ended_is_told(run: Path, shards: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    shutil.copytree(run, early, symlinks=True)
    shutil.rmtree(early / "evaluate", ignore_errors=True)
    (early / "checkpoints/best").unlink()
    (early / "metrics.jsonl").write_text('{"split": "train", "epoch": 0.5}\n{"split": "train", "epo')
    wanted = load_config(run).train.epochs
    assert (
        evaluate(early, [ShardSet(str(shards), "test")], EvaluateOptions(workers=0, replicates=20, name="early")) == 0
    )
    found = json.loads((early / "evaluate/early.json").read_text())["about"]["warnings"]
    newest = saved(early)[-1].name
    assert found[:2] == [
        f"No validation has chosen a best checkpoint yet: {newest}, the newest, is taken",
        f"The training is at epoch 0.5 of {wanted:g}, {newest} is taken: the same `hpe train` goes on",
    ]


@pytest.mark.parametrize(
    ("reached", "best", "patience", "small", "ended"),
    [
        (4.02, 1.0, 3, 0.0, True),
        (4.02, 2.5, 3, 0.0, False),
        (5.6, 5.0, 1, 0.0, False),  # a signal between two validations
        (3.0, 1.0, 2, 1.6, True),  # counted from where images grow
        (6.0, 5.6, 1, 0.0, True),  # the best one fell on a batch far behind its place
    ],
)
def test_of_a_training_with_patience_it_is_told_whether_that_has_ended_it(
    run: Path, tmp_path: Path, reached: float, best: float, patience: int, small: float, ended: bool
) -> None:
    patient = tmp_path / "patient"
    shutil.copytree(run, patient, symlinks=True)
    seen = round(1000 * reached)
    (patient / "metrics.jsonl").write_text(f'{{"split": "train", "samples": {seen}, "epoch": {reached}}}\n')
    state = {"samples_seen": seen, "step": 4, "best": 0.5, "best_samples": round(1000 * best)}
    for checkpoint in saved(patient):
        (checkpoint / "state.json").write_text(json.dumps(state))
    config = load_config(run)
    waiting = {"epochs": 9.0, "patience": patience, "validate_epochs": 1.0, "small_epochs": small}
    config = config.model_copy(update={"train": config.train.model_copy(update=waiting)})
    assert (list(not_at_its_end(patient, config, "best")) == []) is ended


@pytest.mark.parametrize(
    "trained_on",
    [
        "squares",
        "squares/train-000001.tar",
        "squares/train-*.tar",
        "squares/train-{000000..000002}.tar",
        "pipe:cat squares/train-{000000..000002}.tar",
        ["elsewhere", "squares/train-00000[01].tar"],
        "{squares,others}/train-*.tar",
        "square{a..z}/train-000000.tar",
    ],
)
def test_shards_that_were_trained_on_are_recognised_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_on: str | list[str]
) -> None:
    folder = made.shards(tmp_path / "squares", counts=(2, 2, 2), val=2)
    monkeypatch.chdir(tmp_path)
    sets = [ShardsConfig(shards=trained_on, split="train")]
    train, val = resolve([ShardSet(str(folder), split) for split in ("train", "val")])
    piped = [Shard(f"pipe:cat {shard.url}", shard.name) for shard in train]
    for shards in (train, piped):
        (told,) = seen_in_training(sets, [*val, *shards])
        assert "of 4 shards were trained on" in told
    assert seen_in_training(sets, val) == []


@pytest.mark.parametrize(
    "trained_on",
    [
        "/**/*.tar",
        "a-{0..99999999999}.tar",
        "{a,b}{0..9999}{0..9999}.tar",
        "{{0,1},2,3,4,5,6,7,8,9}" * 16,
        "a\0b.tar",
        "n" * 9999,
    ],
)
def test_no_disk_is_searched_and_no_endless_list_made_for_the_sake_of_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_on: str
) -> None:
    (shards,) = resolve([ShardSet(str(made.shards(tmp_path / "squares", counts=(2,), val=2)), "train")])
    monkeypatch.setattr("hpe.evaluate.warnings.resolve", lambda _: pytest.fail("was resolved"))
    found = seen_in_training([ShardsConfig(shards=trained_on, split="train")], shards)
    assert bool(found) == (trained_on == "/**/*.tar")


def test_shards_that_were_trained_on_are_recognised_in_a_folder_that_was_damaged_since(tmp_path: Path) -> None:
    folder = made.shards(tmp_path / "squares", counts=(2,), val=2)
    train, val = resolve([ShardSet(str(folder), split) for split in ("train", "val")])
    (folder / "manifest.json").write_text("{")
    sets = [ShardsConfig(shards=str(folder), split="train")]
    assert seen_in_training(sets, train)
    assert not seen_in_training(sets, val)


@pytest.mark.parametrize(
    "trained_on",
    [
        "https://host/a",
        "https://host/a/train-*.tar",
        "https://host/a/train-{0..3}.tar",
        "https://host/a/{train,test}-*.tar",
    ],
)
def test_remote_shards_that_were_trained_on_are_recognised_without_asking_their_store(trained_on: str) -> None:
    sets = [ShardsConfig(shards=trained_on, split="train")]
    train, val = (Shard(f"https://host/a/{name}-1.tar", f"{name}-1.tar") for name in ("train", "val"))
    (told,) = seen_in_training(sets, [train, val])
    assert told.startswith("1 of 2 shards")


@pytest.mark.parametrize("trained_on", ["https://h/{000..003}.tar?x=1", "pipe:curl -s https://h/{000..003}.tar?x=1"])
def test_in_a_url_a_question_mark_is_no_wildcard(trained_on: str) -> None:
    shards = [Shard(trained_on.replace("{000..003}", f"00{number}"), f"00{number}.tar") for number in range(5)]
    (told,) = seen_in_training([ShardsConfig(shards=trained_on)], shards)
    assert told.startswith("4 of 5 shards")


def test_keys_that_occur_twice_are_refused(run: Path, tmp_path: Path) -> None:
    folder = pack(tmp_path / "twice", lambda _, one: replace(one, key="same"), (1, 1))
    with pytest.raises(UserError, match="1 keys of these shards occur twice"):
        judged(run, folder, name="twice")


def test_a_place_that_cannot_be_written_is_refused_before_any_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = made.shards(tmp_path / "shards", counts=(8,), val=8)
    run = made.untrained(tmp_path / "run", shards)

    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", read_only)
    monkeypatch.delattr(measure, "_predict")
    with pytest.raises(UserError, match=r"--out .*run: cannot be written \(Read-only file system\)"):
        evaluate(run, [ShardSet(str(shards), "val")], EvaluateOptions(workers=0))
