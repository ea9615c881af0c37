"""A study: from shards to the thesis' tables; what is finished is not done again, what cannot work is said first."""

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from hpe.config.strict_yaml import load, parse
from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS, emotion_from_word
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest, write_shard
from hpe.metrics import across_seeds
from hpe.report import report
from hpe.report.cells import read_study
from hpe.stream import LabelSource, Reading, ShardSet
from hpe.study import published as thesis
from hpe.study import rebuild, study
from hpe.study.adaboost import Boosting, boost, hog, hog_features
from hpe.study.config import EMOTION_ALONE, StudyConfig, changes, run_config, seeds_of
from hpe.study.jobs import missing_tests, run_job, run_jobs
from hpe.study.sets import _pose_folder, add_true_directions, pose_tables_from_records, study_data
from tests import browser, made
from tests.study.pool_jobs import Job, Killed, Telling, Waiting

DIRECTIONS_OF = "directions={shards: s, pose: record, networks: "
CONFIGS = Path(__file__).parents[2] / "configs" / "study"


def config(folder: Path, shards: Path, *overrides: str) -> StudyConfig:
    text = f"""\
study: {folder}
shards: {shards}
pose: record
seeds: [0]
sets:
  baseline: {{rule: ours, per_cell: 2/1/1}}
  proposed: {{per_cell: 4/1/1}}
pictures: {{size: 32, grey: false, workers: 0}}
train: {{batch: 40, epochs: 1, learning_rate: 3e-3, precision: fp32}}
networks:
  - {{name: tiny, backbone: tiny, sets: [proposed]}}
boosted:
  - {{name: adaboost, features: hog, size: 32, estimators: 5}}
shown: tiny
replicates: 100
"""
    return parse(text, "study.yaml", StudyConfig, overrides)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of every direction and emotion, turned by 45°: 4 a cell in train, 1 in val, 1 in test."""
    return squares(tmp_path_factory.mktemp("shards") / "squares")


def squares(folder: Path, *, start: int = 0, emotions: Sequence[int] = range(8)) -> Path:
    folder.mkdir(exist_ok=True)
    infos = []
    for split, count, first in (("train", 160, 0), ("val", 40, 10_000), ("test", 40, 20_000)):
        samples = []
        for one in made.samples(count, start=start + first):
            if one.record.emotion not in emotions:
                continue
            yaw, pitch = one.record.yaw, one.record.pitch
            assert yaw is not None
            assert pitch is not None
            samples.append(replace(one, record=replace(one.record, yaw=1.5 * yaw, pitch=1.5 * pitch, split=split)))
        infos.append(write_shard(folder / f"{split}-000000.tar", split, samples))
    Manifest("made", "squares", "none", True, "none", {"size": made.SIDE}, tuple(infos)).save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    """Runs in this process, which has torch already; the pool has a test of its own."""

    def here(jobs, logs, processes, on_end):
        return [run_job(job, logs / "log") for job in jobs if missing_tests(job)], False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "run_jobs", here)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> StudyConfig:
    found = config(tmp_path_factory.mktemp("study") / "one", shards)
    assert study(found, jobs=1, new=False) == 0
    return found


# --- The thesis' figures


@pytest.mark.real
def test_table_3_1_is_that_of_the_thesis_own_rows(shared: Path) -> None:
    rows = csv.read_csv(shared / "thesis" / "FINALDF_Proposed.csv")
    counted = np.zeros((len(DIRECTIONS), len(EMOTIONS)), int)
    for direction, emotion in zip(rows["Direction"].to_pylist(), rows["Emotion"].to_pylist(), strict=True):
        label = emotion_from_word(emotion)
        assert label is not None
        counted[direction, label] += 1
    assert (counted == thesis.IMAGES).all()
    assert counted.sum() == 32_622


def test_the_published_cells_add_up_to_the_published_accuracy() -> None:
    for published in thesis.SETS.values():
        accuracy = published.correct.sum() / (published.correct.size * published.per_cell)
        assert round(accuracy, 2) == published.models["mobilenet_v3_small"][0]
        assert published.correct.size * published.per_cell == published.sizes[2]


# --- HOG and AdaBoost


def test_hog_is_that_of_scikit_image() -> None:
    y, x = np.mgrid[:32, :40]
    picture = ((x * x * 3 + y * 7 * x + y * y) % 251).astype(np.uint8)
    found = hog(picture[None])[0]
    # Of skimage.feature.hog with 9 orientations, cells of 8 × 8, blocks of 2 × 2 and L2-Hys, on this picture.
    expected = [0.061839, 0.051744, 0.038398, 0.0, 0.0, 0.045683, 0.040667]
    assert len(found) == 432
    np.testing.assert_allclose(found[[0, 7, 50, 111, 200, 300, 431]], expected, atol=1e-6)
    assert found.sum() == pytest.approx(56.36775, abs=1e-3)


def test_hog_of_nothing_is_zero_and_brightness_changes_nothing() -> None:
    assert not hog(np.full((1, 16, 16), 90, np.uint8)).any()
    picture = np.random.default_rng(0).integers(0, 100, (1, 32, 32)).astype(np.uint8)
    np.testing.assert_allclose(hog(picture), hog(picture + np.uint8(50)), atol=1e-6)


def test_adaboost_learns_what_hog_shows_and_keeps_it_as_a_network_does(tmp_path: Path, shards: Path) -> None:
    pose = pose_tables_from_records(shards, tmp_path / "pose")
    features = hog_features(Reading(32, "grey", LabelSource("pose", "ours")))
    tests = [("seen", ShardSet(str(shards), "train", str(pose)))]
    train = ShardSet(str(shards), "train", str(pose))
    code = boost(tmp_path / "run", train, tests, features, Boosting(60, 3, 1.0, seed=0), replicates=50)
    assert code == 0
    table = pq.read_table(tmp_path / "run" / "evaluate" / "seen.parquet")
    right = np.array(table["emotion"]) == np.array(table["emotion_hat"])
    figures = json.loads((tmp_path / "run" / "evaluate" / "seen.json").read_text())
    assert figures["emotion"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert right.mean() > 0.5


def test_adaboost_on_hog_is_run_once_with_the_same_seed_whatever_those_of_the_study(tmp_path: Path) -> None:
    deep = "boosted=[{name: adaboost, features: hog}, {name: deep, features: tiny, sets: [proposed]}]"
    found = config(tmp_path, tmp_path, "seeds=[3, 1, 2]", deep)
    assert seeds_of(found, "adaboost") == [3]
    assert seeds_of(found, "deep") == seeds_of(found, "tiny") == [3, 1, 2]
    sets: Any = dict.fromkeys(("baseline", "proposed"), SimpleNamespace(shards="s", pose="p", rule="ours"))
    jobs = rebuild._boost_jobs(found, SimpleNamespace(shards="s", pose="p"), sets)  # pyright: ignore[reportArgumentType]
    assert {job.seed for job in jobs if job.settings.name == "adaboost"} == {0}
    assert [job.seed for job in jobs if job.settings.name == "deep"] == [3, 1, 2]


def test_adaboost_of_one_emotion_is_refused(tmp_path: Path) -> None:
    samples = [s for s in made.samples(40) if s.record.emotion == 3]
    folder = tmp_path / "shards"
    folder.mkdir()
    info = write_shard(folder / "train-000000.tar", "train", samples)
    Manifest("made", "squares", "none", True, "none", {"size": 32}, (info,)).save(folder)
    with pytest.raises(UserError, match="1 emotions to learn from"):
        train, features = ShardSet(str(folder), "train"), hog_features(Reading(32, "grey"))
        boost(tmp_path / "run", train, [], features, Boosting(2, 1, 1.0, seed=0), replicates=50)


# --- Seeds


def predictions(choice: list[int], truth: list[int], direction: list[int | None] | None = None) -> pa.Table:
    columns = {
        "key": [f"face{i}" for i in range(len(truth))],
        "emotion": pa.array(truth, pa.int8()),
        "emotion_hat": pa.array(choice, pa.int8()),
    }
    if direction is not None:
        columns["direction"] = pa.array(direction, pa.int8())
    return pa.table(columns)


def random_choices(n: int, seed: int, skill: float) -> tuple[list[int], list[int]]:
    truth = np.random.default_rng(7).integers(8, size=n)
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < skill, truth, rng.integers(8, size=n)).tolist(), truth.tolist()


def test_the_mean_over_seeds_is_that_of_scikit_learn() -> None:
    tables = {s: predictions(*random_choices(300, s, 0.4)) for s in range(3)}
    judged = across_seeds.judge(tables)
    assert judged is not None
    found = across_seeds.summary(judged, replicates=200)
    f1 = [f1_score(t["emotion"].to_pylist(), t["emotion_hat"].to_pylist(), average="macro") for t in tables.values()]
    assert found["macro_f1"]["value"] == pytest.approx(np.mean(f1))
    assert found["macro_f1"]["sd"] == pytest.approx(np.std(f1, ddof=1))
    assert found["macro_f1"]["low"] < found["macro_f1"]["value"] < found["macro_f1"]["high"]


def test_the_interval_of_one_seed_is_as_wide_as_the_binomial() -> None:
    choice, truth = random_choices(400, 1, 0.5)
    judged = across_seeds.judge({0: predictions(choice, truth)})
    assert judged is not None
    found = across_seeds.summary(judged, replicates=4000)["accuracy"]
    p = found["value"]
    assert (found["high"] - found["low"]) == pytest.approx(2 * 1.96 * (p * (1 - p) / 400) ** 0.5, rel=0.08)
    assert found["sd"] is None


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = {s: predictions(*random_choices(500, s, 0.5)) for s in range(4)}
    apart = {s: predictions(*random_choices(500, s, 0.2 + 0.2 * s)) for s in range(4)}
    widths = []
    for tables in (alike, apart):
        judged = across_seeds.judge(tables)
        assert judged is not None
        found = across_seeds.summary(judged, replicates=500)["accuracy"]
        widths.append(found["high"] - found["low"])
    assert widths[1] > 2 * widths[0]


def test_a_difference_is_found_where_there_is_one_and_not_where_there_is_none() -> None:
    def several(skill: float, start: int) -> across_seeds.Judged:
        judged = across_seeds.judge({s: predictions(*random_choices(400, start + s, skill)) for s in range(3)})
        assert judged is not None
        return judged

    better = across_seeds.difference(several(0.3, 0), several(0.6, 50), replicates=500)
    same = across_seeds.difference(several(0.4, 0), several(0.4, 50), replicates=500)
    assert better["difference"]["accuracy"]["low"] > 0.1
    assert better["difference"]["accuracy"]["p"] < 0.01
    assert same["difference"]["accuracy"]["low"] < 0 < same["difference"]["accuracy"]["high"]
    assert same["difference"]["accuracy"]["p"] > 0.1
    assert len(better["mcnemar"]) == 3


@pytest.mark.parametrize("subjects", [False, True])
def test_a_model_does_not_differ_from_itself_in_another_order_with_a_face_less(subjects: bool) -> None:
    table = predictions(*random_choices(200, 0, 0.4))
    if subjects:
        table = table.append_column("subject", pa.array([f"person{i // 4}" for i in range(200)]))
    other = table.take(np.random.default_rng(1).permutation(200)[1:])
    first, second = across_seeds.judge({0: table}), across_seeds.judge({0: other})
    assert first is not None
    assert second is not None
    found = across_seeds.difference(first, second, replicates=100)
    assert found["n"] == 199
    for metric in found["difference"].values():
        assert (metric["value"], metric["p"], metric["interval_reason"]) == (0, 1, "the same in every draw")


def test_only_common_faces_with_the_same_label_are_compared() -> None:
    first = across_seeds.judge({0: predictions([0, 1, 2, 3], [0, 1, 2, 3])})
    second = across_seeds.judge({0: predictions([0, 0, 0], [0, 1, 5])})
    assert first is not None
    assert second is not None
    found = across_seeds.difference(first, second, replicates=100)
    assert found["n"] == 2
    assert (found["first"]["accuracy"], found["second"]["accuracy"]) == (1.0, 0.5)
    with pytest.raises(UserError, match="no face in common"):
        across_seeds.difference(first, first.at(np.array([], int)))


def test_a_cell_counts_faces_once_however_many_seeds() -> None:
    truth, direction = [0, 0, 1, 1], [0, 0, 1, None]
    chosen = {0: [0, 0, 1, 1], 1: [0, 1, 0, 1]}
    judged = across_seeds.judge({seed: predictions(choice, truth, direction) for seed, choice in chosen.items()})
    assert judged is not None
    found = across_seeds.cells(judged)
    assert found["count"][0][0] == 2
    assert found["correct"][0][0] == 1.5
    assert found["correct"][1][1] == 0.5
    assert np.sum(found["count"]) == 3
    assert found["low"][4][7] is None


# --- Config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_study_config_loads_and_makes_run_configs(path: Path) -> None:
    found = load(path, StudyConfig)
    assert parse(found.dump(), "dump", StudyConfig).plain() == found.plain()
    for network in found.networks:
        one = run_config(
            found,
            network,
            run=Path("x"),
            seed=0,
            shards=Path("s"),
            pose=Path("p"),
            direction="ours",
            heads=EMOTION_ALONE,
        )
        assert one.data.grey == found.pictures.grey
    assert not changes(found, found)


def test_the_thesis_recipe_is_that_of_its_readme() -> None:
    found = load(CONFIGS / "thesis.yaml", StudyConfig)
    train = found.train
    assert (train.optimizer, train.learning_rate, train.batch, train.epochs) == ("adam", 1e-3, 32, 10)
    assert (train.schedule, train.step_epochs, train.step_factor) == ("step", 7, 0.1)
    assert {n.backbone for n in found.networks} | {"adaboost"} == set(thesis.BASELINE.models)
    cells = {name: getattr(found.sets, name).per_cell for name in thesis.SETS}
    for name, published in thesis.SETS.items():
        assert [40 * int(n) for n in cells[name].split("/")] == list(published.sizes)


def test_a_networks_own_settings_replace_the_studys_key_by_key(tmp_path: Path) -> None:
    found = config(tmp_path, tmp_path, "networks.0.train.epochs=7")
    one = run_config(
        found,
        found.networks[0],
        run=tmp_path,
        seed=3,
        shards=tmp_path,
        pose=tmp_path,
        direction="ours",
        heads=EMOTION_ALONE,
    )
    assert (one.train.epochs, one.train.batch, one.seed) == (7, 40, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("shown=nobody", "nobody' is not a model of this study; it has tiny, adaboost"),
        ("networks.0.bakbone=x", "did you mean 'backbone'"),
        ("sets.baseline.per_cell=80/40", "per_cell"),
        ("sets.baseline.per_cell=80/40/0", "per_cell"),
        ("sets.proposed.emotions=[joy]", "emotions"),
        ("boosted.0.features=resnet18", "neither hog nor a network"),
        ("boosted.0.features=tiny", "needs tiny on the sets baseline"),
        ("boosted.0.name=tiny", "two models have one name"),
        ("seeds=[1, 1]", "names a seed twice"),
        ("networks.0.heads={direction: {}}", "no emotion head"),
        ("seeds=[]", "seeds"),
        (
            f"{DIRECTIONS_OF}[{{name: a, backbone: tiny}}, {{name: a, backbone: angles}}]}}",
            "two networks have one name",
        ),
        (
            "train={epochs: 5, small_epochs: 2, small_size: 32}",
            "networks.tiny: train.small_size: 32 is not below pictures.size, 32",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, change: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        config(tmp_path, tmp_path, change)
    assert told in str(caught.value)


def test_a_mistake_of_the_study_itself_is_told_once_and_that_of_a_network_with_its_name(tmp_path: Path) -> None:
    train = "train={epochs: 5, small_epochs: 2, small_size: 16}"
    networks = "networks=[{name: tiny, backbone: tiny}, {name: b, backbone: tiny, train: {epochs: 2}}]"
    own = f"{DIRECTIONS_OF}[{{name: c, backbone: tiny, train: {{epochs: 1}}}}]}}"
    with pytest.raises(UserError) as caught:
        config(tmp_path, tmp_path, train, networks, own)
    told = str(caught.value)
    assert "networks.b: train.small_epochs: 2 epochs of small images leave no epoch at pictures.size" in told
    assert "directions.networks.c: train.small_epochs: 2 epochs" in told
    assert "networks.tiny" not in told
    with pytest.raises(UserError, match=r"networks\.tiny, networks\.b: train\.small_epochs: 2 epochs .* need train\.s"):
        config(tmp_path, tmp_path, "train={epochs: 5, small_epochs: 2}", networks.replace("epochs: 2", "epochs: 3"))


def test_a_network_of_directions_is_added_like_any_other_unless_it_decides_the_sets(tmp_path: Path) -> None:
    def with_networks(*names: str) -> StudyConfig:
        networks = [f"{{name: {name}, backbone: {'angles' if 'angles' in name else 'tiny'}}}" for name in names]
        return config(tmp_path, tmp_path, f"{DIRECTIONS_OF}[{', '.join(networks)}]}}")

    none, first = config(tmp_path, tmp_path), "directions.networks, the first with backbone angles"
    assert changes(none, with_networks("a", "b")) == []
    assert changes(with_networks("a"), with_networks("b", "a")) == []
    assert changes(with_networks("angles"), with_networks("a", "angles", "angles2")) == []
    assert changes(none, with_networks("angles")) == [f'{first}: null -> "angles"']
    assert changes(with_networks("angles", "angles2"), with_networks("angles2", "angles")) == [
        f'{first}: "angles" -> "angles2"'
    ]
    assert changes(with_networks("a", "b"), with_networks("a"))


def test_more_seeds_and_models_change_nothing_and_all_else_does(tmp_path: Path) -> None:
    before = config(tmp_path, tmp_path)
    more = "networks=[{name: tiny, backbone: tiny, sets: [proposed]}, {name: b, backbone: tiny}]"
    assert changes(before, config(tmp_path, tmp_path, more, "seeds=[0, 1]", "replicates=500")) == []
    # The first seed's direction network and AdaBoost stand for all: it must stay the first.
    assert changes(before, config(tmp_path, tmp_path, "seeds=[1, 0]")) == ["seeds: [0] -> [1, 0]"]
    assert changes(before, config(tmp_path, tmp_path, "networks.0.train.epochs=2")) == [
        "networks.tiny.train.epochs: null -> 2.0"
    ]
    assert changes(before, config(tmp_path, tmp_path, "train.batch=8", "seeds=[1]")) == [
        "seeds: [0] -> [1]",
        "train.batch: 40 -> 8",
    ]


# --- The whole


@pytest.mark.slow
def test_a_study_gives_every_table_and_its_rows_are_those_of_the_predictions(finished: StudyConfig) -> None:
    about, tables = read_study(finished.folder)
    numbers = {one.number for one in tables}
    of_chapter_4 = {f"4.{number}" for number in range(1, 9)} - {"4.2"}  # the shown model is on the proposed set only
    assert {"3.1", "3.1 thesis", "3.2", "4.2 thesis", "comparison", *of_chapter_4} <= numbers
    assert "ours" in about["direction rules"]
    assert any("not by the thesis' direction network" in limit for limit in about["limits"])
    by_number = {one.number: one.table for one in tables}
    table = pq.read_table(finished.folder / "runs" / "proposed-tiny-seed0" / "evaluate" / "proposed.parquet")
    chosen = np.array([np.argmax(p) for p in table["emotion_p"].to_pylist()])
    row = next(row for row in by_number["4.5"].rows if row[0].text == "tiny")
    assert row[2].value == pytest.approx((chosen == np.array(table["emotion"])).mean())
    assert [cell.value for cell in by_number["3.1"].rows[0][1:9]] == [6] * 8
    assert by_number["4.1"].rows[0][4].text == "12.0 %"  # the thesis' AdaBoost stands beside ours
    words = (finished.folder / "study.md").read_text()
    assert "| adaboost |" in words
    assert "One run: adaboost has a fixed seed" in words
    assert "Of 240 images 0 are not counted" in words
    json.loads((finished.folder / "study.json").read_text())


def test_what_is_finished_is_not_run_again(finished: StudyConfig) -> None:
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (finished.folder / "runs").rglob("*") if p.is_file()}

    before, words = times(), (finished.folder / "study.md").read_bytes()
    assert study(finished, jobs=1, new=False) == 0
    assert times() == before
    assert (finished.folder / "study.md").read_bytes() == words


def test_a_run_that_was_cut_off_is_done_again_and_gives_the_same(finished: StudyConfig) -> None:
    run = finished.folder / "runs" / "proposed-adaboost-seed0"
    words = (finished.folder / "study.md").read_bytes()
    (run / "done.json").unlink()
    shutil.rmtree(run / "evaluate")
    assert study(finished, jobs=1, new=False) == 0
    assert (run / "done.json").is_file()
    assert (finished.folder / "study.md").read_bytes() == words


def test_a_changed_config_is_refused_with_the_difference(finished: StudyConfig) -> None:
    with pytest.raises(UserError, match=r"--new[^\n]*\n  train.batch: 40 -> 20"):
        study(finished.model_copy(update={"train": finished.train.model_copy(update={"batch": 20})}), jobs=1, new=False)


def test_new_sets_the_earlier_study_aside(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "run_jobs", lambda *a: ([], True))
    found = config(tmp_path / "s", shards)
    assert study(found, jobs=1, new=False) == 75
    changed = config(tmp_path / "s", shards, "train.batch=8")
    assert study(changed, jobs=1, new=True) == 75
    assert (tmp_path / "s.1" / "study.yaml").is_file()
    assert "batch: 8" in (tmp_path / "s" / "study.yaml").read_text()


def test_cells_that_are_too_small_are_named_before_anything_is_trained(tmp_path: Path, shards: Path) -> None:
    found = config(tmp_path / "s", shards, "sets.baseline.per_cell=5/1/1", "sets.proposed.per_cell=4/2/1")
    with pytest.raises(UserError) as caught:
        study(found, jobs=1, new=False)
    told = str(caught.value)
    assert "sets.baseline" in told
    assert "train, forward × neutral: 4 of 5" in told
    assert "sets.proposed" in told
    assert "sets.proposed.per_cell: 4/1/1 works" in told
    assert "--" not in told  # no option of another command
    assert not (tmp_path / "s").exists()


def test_a_cell_without_faces_is_told_with_the_key_that_leaves_it_out(tmp_path: Path, shards: Path) -> None:
    only = "sets.baseline={rule: ours, per_cell: 1/1/1, emotions: [neutral, contempt]}"
    with pytest.raises(UserError, match=r"leave its label out with sets\.baseline\.directions or sets\.baseline\.emo"):
        study(config(tmp_path / "s", squares(tmp_path / "few", emotions=range(7)), only), jobs=1, new=False)
    assert not (tmp_path / "s").exists()


def test_shards_packed_again_make_the_sets_anew_until_a_run_has_learned_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = squares(tmp_path / "few")
    monkeypatch.setattr(rebuild, "run_jobs", lambda *a: ([], True))
    found = config(tmp_path / "s", packed)
    assert study(found, jobs=1, new=False) == 75
    before = Manifest.load(tmp_path / "s" / "sets" / "baseline")
    squares(packed, start=50_000)
    assert study(found, jobs=1, new=False) == 75
    assert Manifest.load(tmp_path / "s" / "sets" / "baseline") != before
    (tmp_path / "s" / "runs").mkdir()
    squares(packed)
    with pytest.raises(UserError, match=r"made from other shards.*--new sets the study aside"):
        study(found, jobs=1, new=False)
    assert (tmp_path / "s" / "sets" / "baseline").is_dir()


def test_a_config_that_was_refused_can_be_mended_in_place(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="too few samples"):
        study(config(tmp_path / "s", shards, "sets.proposed.per_cell=5/1/1"), jobs=1, new=False)
    monkeypatch.setattr(rebuild, "run_jobs", lambda *a: ([], True))
    mended = config(tmp_path / "s", shards, "sets.baseline.per_cell=1/1/1", "sets.proposed.per_cell=3/1/1")
    assert study(mended, jobs=1, new=False) == 75
    counts = {s.split: s.samples for s in Manifest.load(tmp_path / "s" / "sets" / "baseline").shards}
    assert counts["train"] == 40


def test_what_does_not_go_together_is_told_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config(tmp_path, tmp_path, "shown=nobody", "ours=none_such", "seeds=[1, 1]", "boosted.0.features=resnet18")
    for told in ("shown: 'nobody'", "ours: 'none_such'", "names a seed twice", "neither hog nor a network"):
        assert told in str(caught.value)


def test_what_cannot_work_is_told_at_once(tmp_path: Path, shards: Path) -> None:
    given = "{name: a, backbone: resnet19}, {name: b, backbone: alexnet}, {name: c, backbone: tiny, weights: no.pth}"
    given += ", {name: d, backbone: vit_b_32}, {name: e, backbone: regnet_y_400mf}"
    given += ", {name: f, backbone: tiny, train: {schedule: one-cycle, warmup_epochs: 1}}"
    with pytest.raises(UserError) as caught:
        study(config(tmp_path / "s", shards, f"networks=[{given}]", "shown=a"), jobs=1, new=False)
    told = str(caught.value)
    assert "networks.a: model.backbone: unknown backbone 'resnet19'" in told
    assert "networks.b: alexnet cannot take pictures of 32 pixels" in told
    assert "networks.d: vit_b_32 cannot take pictures of 32 pixels (Wrong image height!" in told
    assert "networks.e" not in told
    assert "networks.c.weights: no.pth: no such file" in told
    assert "networks.f: train.warmup_epochs: 1 does not work with train.schedule: one-cycle" in told
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_goes_wrong_in_a_study_is_not_laid_to_its_folder(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(rebuild, "study_data", fails)
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- which one it is is asked next
        study(config(tmp_path / "s", shards), jobs=1, new=False)
    assert caught.value is error


def test_a_study_that_cannot_be_written_is_one_message(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"study: .*file/s: cannot be written"):
        study(config(tmp_path / "file" / "s", shards), jobs=1, new=False)


def test_a_strange_folder_is_left_alone(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "novel.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not a study, but it holds novel\.txt"):
        study(config(tmp_path / "s", shards), jobs=1, new=False)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["novel.txt"]


@pytest.mark.slow
def test_in_the_pool_a_failing_run_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    jobs: list[Any] = [Job(tmp_path / "a", "no such thing; get one"), Job(tmp_path / "b", "")]
    heard = []
    ended, stopped = run_jobs(jobs, tmp_path / "logs", 1, heard.append)
    assert not stopped
    assert [(one.run.name, one.code, one.problem) for one in ended] == [
        ("a", 2, "no such thing; get one"),
        ("b", 0, ""),
    ]
    assert heard == ended
    assert [bool(missing_tests(job)) for job in jobs] == [True, False]
    assert "no such thing" in (tmp_path / "logs" / "a.log").read_text()


@pytest.mark.slow
def test_what_is_left_of_a_stopped_study_is_done_with_as_many_threads_as_the_rest(tmp_path: Path) -> None:
    jobs: list[Any] = [Telling(tmp_path / "a", ""), Telling(tmp_path / "b", "")]
    jobs[0].execute([])
    (tmp_path / "a" / "done.json").write_text('{"tests": ["t"]}')
    assert [bool(missing_tests(job)) for job in jobs] == [False, True]
    run_jobs(jobs, tmp_path / "logs", 2, lambda _: None)
    assert not missing_tests(jobs[1])
    assert (tmp_path / "threads").read_text() == str(max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.mark.slow
def test_a_signal_ends_idle_and_busy_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    jobs: list[Any] = [Job(tmp_path / "a", ""), Job(tmp_path / "b", ""), Waiting(tmp_path / "c", "")]
    ended, stopped = run_jobs(jobs, tmp_path / "logs", 2, lambda _: None)
    assert stopped
    assert {one.run.name for one in ended} <= {"a", "b"}
    assert not any(missing_tests(job) for job in jobs if job.run.name in {one.run.name for one in ended})
    assert missing_tests(jobs[2])
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_process_is_told_with_the_way_out(tmp_path: Path) -> None:
    jobs: list[Any] = [Killed(tmp_path / "a", "")]
    with pytest.raises(UserError, match=r"a process of the study was killed.*fewer --jobs"):
        run_jobs(jobs, tmp_path / "logs", 1, lambda _: None)


# --- Directions


def test_true_directions_become_a_column_that_networks_learn_from(tmp_path: Path, shards: Path) -> None:
    pose = pose_tables_from_records(shards, tmp_path / "pose")
    out = add_true_directions(shards, pose, tmp_path / "labelled")
    rows = pq.read_table(out / "test-000000.parquet")
    truth = [s.record.direction for s in read_samples(shards / "test-000000.tar")]
    assert rows["direction_labelled"].to_pylist() == truth
    assert json.loads(rows.schema.metadata[b"hpe.rules"])["labelled"]


def test_a_column_is_added_again_where_the_tables_below_it_have_changed(tmp_path: Path, shards: Path) -> None:
    pose = pose_tables_from_records(shards, tmp_path / "pose")
    made = add_true_directions(shards, pose, tmp_path / "labelled") / "test-000000.parquet"
    written = made.stat().st_mtime_ns
    add_true_directions(shards, pose, tmp_path / "labelled")
    assert made.stat().st_mtime_ns == written
    table = pq.read_table(pose / made.name)
    pq.write_table(table.set_column(table.column_names.index("yaw"), "yaw", table["pitch"]), pose / made.name)
    add_true_directions(shards, pose, tmp_path / "labelled")
    assert pq.read_table(made)["yaw"].equals(table["pitch"])


def test_a_rule_that_the_tables_lack_is_told(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"sets\.baseline\.rule: thesis_network: .* have thesis_tree, ours"):
        study_data(config(tmp_path, shards, "sets.baseline.rule=thesis_network"), None)


@pytest.mark.slow
def test_the_study_trains_the_direction_network_that_the_proposed_set_needs(tmp_path: Path, shards: Path) -> None:
    network = "{name: network, backbone: angles, train: {epochs: 12, validate_epochs: 12, learning_rate: 1e-2}}"
    found = config(
        tmp_path / "s", shards, "boosted=[]", "sets.proposed.per_cell=3/1/1", "natural_test=false",
        f"directions={{shards: {shards}, pose: record, networks: [{network}]}}",
    )  # fmt: skip
    assert study(found, jobs=1, new=False) == 0
    about, tables = read_study(found.folder)
    assert "proposed: thesis_network" in about["direction rules"]
    row = next(one for one in tables if one.number == "3.4").table.rows[0]
    assert row[2].value is not None
    assert float(row[2].value) > 0.9  # squares tell their direction by their angles without fail
    assert row[4].text == "85.0 %"


# --- The page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.found() is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_quietly_and_fits_its_window(finished: StudyConfig, page: browser.Page, width: int) -> None:
    assert report([finished.folder]) == [finished.folder / "report" / "index.html"]
    page.problems.clear()
    page.open(finished.folder / "report" / "index.html", width=width)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.problems == []
    assert page.run("document.querySelectorAll('table.data').length") > 12
    assert page.run("document.querySelectorAll('svg').length") >= 2
    maps = page.run("[...document.querySelectorAll('.map')].map(m => m.querySelectorAll('td').length)")
    assert len(maps) >= 4
    assert set(maps) == {len(DIRECTIONS) * len(EMOTIONS)}
    dark = "document.querySelector('.map td.strong').textContent"
    assert page.run(dark) == page.run("document.querySelector('.map td').textContent")  # all cells hold as many
    linked = page.run("[...document.querySelectorAll('.runs a')].map(a => a.href)")
    assert len(linked) == len(list((finished.folder / "runs").iterdir())) == 3
    assert all(Path(unquote(urlsplit(link).path)).is_file() for link in linked)


def test_damaged_tables_are_one_message(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"about": {}, "tables": [{"number": 1}]}', "[1]"):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(UserError, match="run `hpe study` again"):
            report([tmp_path])


@pytest.mark.parametrize("name", ["shards", "pose"])
def test_a_study_of_remote_shards_is_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    named = load(Path("configs/study/tiny.yaml"), StudyConfig)
    remote = named.model_copy(update={name: "s3://bucket/faces", "study": str(tmp_path / "study")})
    with pytest.raises(UserError, match=r"s3://bucket/faces: is remote.*`hpe balance` makes local sets"):
        study(remote, jobs=1, new=False)
    assert not (tmp_path / "study").exists()


def test_pose_tables_that_are_not_there_name_the_setting_and_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "pose" / "lwpose66").mkdir(parents=True)
    (tmp_path / "pose" / "lwpose66" / "train-000000.parquet").touch()
    study = SimpleNamespace(pose=str(tmp_path / "pose" / "lwpose"))
    with pytest.raises(UserError, match=r"^pose: \S*pose/lwpose: no such folder; .*did you mean \S*pose/lwpose66\?$"):
        _pose_folder(study)  # pyright: ignore[reportArgumentType]
