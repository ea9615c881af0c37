"""Other label sets, other framing, one answer for all: what is measured then, and what is told."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk

from hpe.core.files import write_json
from hpe.core.labels import EMOTIONS
from hpe.data.face_sizes import face_shares
from hpe.data.shards import Manifest, write_shard
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.evaluate.warnings import one_answer
from hpe.metrics.paired import paired
from hpe.models.run_folder import TRAINED_ON, TrainedOn
from hpe.predict import predict
from hpe.predict.options import PredictOptions
from hpe.report.load import read_run
from hpe.report.model_card import model_card
from hpe.report.page import report
from hpe.stream import ShardSet
from hpe.train import train
from tests import made
from tests.evaluate.test_evaluate import untrained

CK = (1, 2, 3, 4, 5, 6, 7)
"""The emotions of CK+, which has no neutral."""


def packed(
    folder: Path, emotions: Sequence[int], *, crop: str = "none", box: float | None = None, n: int = 120
) -> Path:
    """Test shards of these emotions, where ``box`` is the face's side as a fraction of the picture's."""
    folder.mkdir(parents=True)
    half = None if box is None else box * made.SIDE / 2
    middle = made.SIDE / 2
    around = None if half is None else (middle - half, middle - half, middle + half, middle + half)
    samples = [
        replace(one, record=replace(one.record, emotion=emotions[number % len(emotions)], box=around, subject=None))
        for number, one in enumerate(made.samples(n))
    ]
    info = write_shard(folder / "test-000000.tar", "test", samples)
    Manifest("folders", "squares", "none", True, crop, {"size": made.SIDE}, (info,)).save(folder)
    return folder


def judged(run: Path, shards: Path) -> dict[str, Any]:
    assert (
        evaluate(run, [ShardSet(str(shards), "test")], EvaluateOptions(workers=0, precision="fp32", replicates=100))
        == 0
    )
    return json.loads((run / "evaluate" / f"{shards.name}-test.json").read_text(encoding="utf-8"))


def trained_on(run: Path, emotions: Sequence[int], faces: float | None = None) -> Path:
    """A run with random weights that says it was trained on these emotions."""
    untrained(run, "model.heads={emotion: {}}")
    counts = tuple(100 * (index in emotions) for index in range(len(EMOTIONS)))
    known = TrainedOn({"emotion": counts}, {} if faces is None else {"box": faces})
    write_json(run / TRAINED_ON, known.dump())
    return run


def test_on_shared_labels_answers_are_limited_to_them_as_scikit_learn_has_it(tmp_path: Path) -> None:
    run = trained_on(tmp_path / "run", range(7))  # without contempt
    figures = judged(run, packed(tmp_path / "ck", CK))
    table = pq.read_table(tmp_path / "run/evaluate/ck-test.parquet")
    truth, p = np.array(table["emotion"].to_pylist()), np.array(table["emotion_p"].to_pylist())
    shared = [1, 2, 3, 4, 5, 6]
    kept = np.isin(truth, shared)
    choice = np.array(shared)[p[kept][:, shared].argmax(1)]
    found = figures["shared"]["emotion"]
    assert found["names"] == [EMOTIONS[index] for index in shared]
    assert found["n"] == kept.sum()
    assert found["left_out"] == {"emotion that the run was not trained on": int((~kept).sum())}
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth[kept], choice))
    assert found["macro_f1"]["value"] == pytest.approx(sk.f1_score(truth[kept], choice, labels=shared, average="macro"))
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert sum(one["chosen"] for one in found["per_class"].values()) == kept.sum()
    plain = figures["emotion"]
    assert plain["accuracy"]["value"] == pytest.approx(np.mean(p.argmax(1) == truth))
    assert plain["macro_f1"]["classes"] == 7, "neutral, which CK+ lacks, does not enter the mean"


def test_what_was_not_learned_or_is_not_there_is_told_where_the_metrics_are(tmp_path: Path) -> None:
    run = trained_on(tmp_path / "run", range(7))
    said = judged(run, packed(tmp_path / "ck", CK))["about"]["warnings"]
    assert any("not trained on contempt, the emotion of 17 of 120 samples" in one for one in said)
    assert any("has no neutral, which the run was trained on" in one for one in said)
    (page,) = report([run])
    text, card = page.read_text(encoding="utf-8"), (page.parent / "model_card.md").read_text(encoding="utf-8")
    assert "Emotion accuracy, 6 shared labels" in text
    assert "not trained on contempt" in text
    assert "not trained on contempt" in card.partition("## Limits")[2]
    assert "never trained on contempt" in card
    assert "AffectNet" not in text + card


def test_copies_across_splits_limit_a_result_unless_they_were_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shards = trained_on(tmp_path / "run", range(8)), packed(tmp_path / "faces", range(8))
    manifest, found = Manifest.load(shards), {"exact": 9, "across_splits": 5, "dropped": 0}
    replace(manifest, counts={"duplicates": found}).save(shards)
    judged(run, shards)
    words = "faces: copies of 5 images lie in another split: "
    assert f"WARNING: {words}" in capsys.readouterr().err
    assert words in (run / "evaluate" / "faces-test.md").read_text(encoding="utf-8")
    card = model_card(read_run(run)).partition("## Limits")[2]
    assert words in card
    assert "(--drop-duplicates exact, or near)" in card
    replace(manifest, counts={"duplicates": found | {"dropped": 9}}).save(shards)
    assert not any("copies" in one for one in judged(run, shards)["about"]["warnings"])
    assert f"next: hpe report {run}\n" in capsys.readouterr().err


def test_where_the_training_is_not_known_that_is_told_in_place_of_shared_labels(tmp_path: Path) -> None:
    figures = judged(untrained(tmp_path / "run", "model.heads={emotion: {}}"), packed(tmp_path / "ck", CK))
    assert "accuracy" not in figures["shared"]["emotion"]
    assert any("7 of 8 emotions, and it is not recorded" in one for one in figures["about"]["warnings"])


def test_a_run_that_knows_all_labels_of_a_whole_dataset_has_no_metrics_of_their_own_for_them(tmp_path: Path) -> None:
    figures = judged(trained_on(tmp_path / "run", range(8)), packed(tmp_path / "all", range(8)))
    assert figures["shared"]["emotion"]["reason"] == "all 8 emotions are shared"
    assert not any("trained" in one for one in figures["about"]["warnings"])


def test_a_training_records_its_classes(tmp_path: Path) -> None:
    shards = made.shards(tmp_path / "shards", (16,), val=16)
    config = made.config(shards, tmp_path / "run")
    assert train(config) == 0
    known = TrainedOn.load(tmp_path / "run")
    assert known.classes == {"emotion": tuple(range(8)), "direction": (0, 1)}


def predictions(truth: np.ndarray, p: np.ndarray) -> pa.Table:
    columns = {"key": [f"k{n}" for n in range(len(truth))], "emotion": pa.array(truth, pa.int8()), "emotion_p": list(p)}
    return pa.table(columns)


def test_two_networks_of_other_label_sets_are_compared_on_the_labels_that_both_know() -> None:
    rng = np.random.default_rng(5)
    truth, first, second = rng.integers(8, size=600), rng.dirichlet(np.ones(8), 600), rng.dirichlet(np.ones(8), 600)
    known = {0, 1, 4}
    found = paired(predictions(truth, first), predictions(truth, second), known=known, replicates=50)
    kept, columns = np.isin(truth, list(known)), sorted(known)
    assert found["labels"] == [EMOTIONS[index] for index in columns]
    assert (found["n"], found["label_not_shared"]) == (kept.sum(), (~kept).sum())
    for number, p in enumerate((first, second)):
        choice = np.array(columns)[p[kept][:, columns].argmax(1)]
        assert found["accuracy"][number] == pytest.approx(np.mean(choice == truth[kept]))
    none = paired(predictions(truth, first), predictions(truth, second), known={3})
    assert none["reason"] == "the two networks and the dataset share 1 emotions; two or more are needed"


def test_a_comparison_of_runs_of_other_label_sets_says_so_and_marks_no_best_emotion(tmp_path: Path) -> None:
    shards = packed(tmp_path / "ck", CK)
    runs = [trained_on(tmp_path / "four", (1, 2, 3, 4)), trained_on(tmp_path / "three", (2, 3, 6))]
    for run in runs:
        judged(run, shards)
    text = report(runs, tmp_path / "all")[-1].read_text(encoding="utf-8")
    assert "four: happy, sad, surprise, fear; three: sad, surprise, anger" in text
    assert ">sad, surprise<" in text, "the labels of the paired test"
    assert 'class="best"' not in text
    assert [one.trained_emotions for run in runs for one in read_run(run).evaluations] == [{1, 2, 3, 4}, {2, 3, 6}]


def test_another_crop_rule_than_that_of_the_training_is_told(tmp_path: Path) -> None:
    run = trained_on(tmp_path / "run", range(8))
    recorded = {"shards/x": {"dataset": "x", "crop": "square-1.4@box"}}
    (run / "shards.json").write_text(json.dumps(recorded), encoding="utf-8")
    said = judged(run, packed(tmp_path / "whole", range(8)))["about"]["warnings"]
    assert said[0].startswith("The images are cropped by none, the network was trained on square-1.4@box")
    said = judged(run, packed(tmp_path / "same", range(8), crop="square-1.4@box"))["about"]["warnings"]
    assert not any("cropped" in one for one in said)


def test_faces_of_another_size_are_told_where_the_crop_rules_cannot_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_on(tmp_path / "run", range(8), faces=0.9)
    far, near = packed(tmp_path / "far", range(8), box=0.4), packed(tmp_path / "near", range(8), box=0.85)
    assert face_shares([far / "test-000000.tar"]) == {"box": 0.4}
    said = judged(run, far)["about"]["warnings"]
    assert said[0].startswith("The framing differs")
    assert "fills 40% of the picture's side; in training it filled 90%" in said[0]
    assert not any("framing" in one for one in judged(run, near)["about"]["warnings"])
    capsys.readouterr()
    predict(run, [str(far)], PredictOptions())
    assert "in training it filled 90%" in capsys.readouterr().err


def test_one_answer_for_faces_of_several_classes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained_on(tmp_path / "run", range(8))
    from hpe.evaluate import judged as judging

    prepared = judging.prepare
    monkeypatch.setattr(judging, "prepare", lambda batch, by: prepared(batch, by) * 0)  # all pictures look alike
    several = judged(run, packed(tmp_path / "several", range(8)))
    assert any("120 of 120 faces get the answer" in one for one in several["about"]["warnings"])
    alike = judged(run, packed(tmp_path / "alike", (1,)))
    assert not any("get the answer" in one for one in alike["about"]["warnings"]), "all may well be happy"


@pytest.mark.parametrize(("counts", "told"), [((95, 5), True), ((94, 6), False), ((49, 0), False), ((50, 0), True)])
def test_one_answer_is_95_percent_of_50_faces_or_more(counts: tuple[int, int], told: bool) -> None:
    found = one_answer({"sad": counts[0], "happy": counts[1]}, sum(counts))
    assert (found is not None and "the answer sad" in found) == told
