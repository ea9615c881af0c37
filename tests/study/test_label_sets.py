"""Sets of other emotions in one study: they are compared on the emotions that both have, or not at all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpe.core.labels import EMOTIONS
from hpe.metrics.across_seeds import judge
from hpe.report.cells import StudyTable
from hpe.study.compare import comparison
from hpe.study.config import StudyConfig, run_folder
from hpe.study.results import Results
from hpe.study.sets import StudyData
from tests.study.test_study import config

FOUR, THREE = (0, 1, 2, 3), (0, 1, 2)


def table(truth: np.ndarray, p: np.ndarray) -> pa.Table:
    keys = [f"face{n}" for n in range(len(truth))]
    return pa.table({"key": keys, "emotion": pa.array(truth, pa.int8()), "emotion_p": list(p)})


def among(p: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """The probabilities of a network that was trained on some classes and knows no other."""
    limited = np.where(np.isin(np.arange(8), kept), p, 0.0)
    return limited / limited.sum(1, keepdims=True)


def written(study: StudyConfig, baseline: np.ndarray, proposed: np.ndarray, truth: np.ndarray) -> Results:
    """The predictions of one network per set, on a test set that both have judged."""
    for name, p in (("baseline", baseline), ("proposed", proposed)):
        for test in ("baseline", "proposed"):
            folder = run_folder(study, name, "tiny", 0) / "evaluate"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(truth, p), folder / f"{test}.parquet")
    data = StudyData(Path("shards"), Path("pose"), {"baseline": "ours", "proposed": "ours"})
    return Results(study, data, "made", {"baseline": FOUR, "proposed": THREE})


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return config(tmp_path / "study", tmp_path, "networks.0.sets=[baseline, proposed]", "boosted=[]")


def by_number(results: Results) -> dict[str, StudyTable]:
    return {one.number: one for one in comparison(results)}


def test_the_same_knowledge_of_four_and_of_three_emotions_differs_by_nothing(study: StudyConfig) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=400)
    knowledge = rng.dirichlet(np.ones(8), 400)
    knowledge[np.arange(400), truth] += 0.3
    results = written(study, among(knowledge, FOUR), among(knowledge, THREE), truth)
    kept = truth < 3
    right = [float((among(knowledge, k)[kept].argmax(1) == truth[kept]).mean()) for k in (FOUR, THREE)]
    assert right[1] > right[0] + 0.03, "with fewer answers to choose from, the same network is right more often"
    found = by_number(results)
    for row in found["comparison"].table.rows:
        assert row[3].value == kept.sum()
        assert row[4].value == row[5].value == pytest.approx(right[1])
        assert row[6].value == 0
    notes = " ".join(found["comparison"].notes)
    assert "4 (baseline) and 3 (proposed) emotions" in notes
    assert "compared on the 3 that both have (neutral, happy, sad)" in notes
    assert any("do not compare a row of one set with a row of the other" in one for one in found["all tests"].notes)


def test_sets_that_share_one_emotion_are_not_compared_and_that_is_told(study: StudyConfig) -> None:
    truth = np.arange(40) % 4
    results = written(study, np.eye(8)[truth], np.eye(8)[truth], truth)
    results.emotions["proposed"] = (3, 6)
    found = by_number(results)
    assert "comparison" not in found
    assert any("share 1: models of the two sets are not compared" in one for one in found["all tests"].notes)


def test_faces_and_answers_are_limited_alike() -> None:
    rng = np.random.default_rng(2)
    truth, p = rng.integers(8, size=200), rng.dirichlet(np.ones(8), 200)
    judged = judge({0: table(truth, p)}, among={1, 5})
    assert judged is not None
    kept = np.isin(truth, (1, 5))
    assert judged.truth.tolist() == truth[kept].tolist()
    assert judged.choice[0].tolist() == np.where(p[kept, 1] >= p[kept, 5], 1, 5).tolist()
    assert EMOTIONS[5] == "disgust"
