"""Direction rules against the thesis' own labels, hand-worked cases and Monte Carlo."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from hpe.core.errors import UserError
from hpe.core.labels import MIRRORED_DIRECTION, Direction, direction_from_word
from hpe.data.directions import (
    ABSTAIN,
    OURS,
    Thresholds,
    direction_rules,
    pointing04_direction,
    pointing04_direction_of_name,
    thesis_tree,
)
from hpe.pose.calibrate import cross_validate, fit, summary, usable

F, L, R, U, D = Direction

# pitch, negated yaw, roll as in the thesis' text, and the branch's answer worked out by hand.
HAND_WORKED = [
    ((5, -20, -3), U), ((2, -20, -3), L), ((-5, -20, -3), L), ((-14, -20, -3), D), ((5, -20, 3), L),
    ((-2, 20, -2), R), ((-8, 20, -2), D), ((10, 20, 2), U), ((-10, 20, 2), D), ((4, 20, -4), R),
    ((16, -5, 3), D), ((14, -5, 3), F), ((-16, -3, -2), D), ((-4, -3, -13), R), ((-4, -11, -2), R), ((-4, -3, -2), F),
    ((-14, 4, 5), D), ((-5, -6, 3), F), ((-1, 4, 6), F), ((11, 2, -1), U), ((-5, 2, 8), D), ((8, 2, -3), U),
    ((0, 0, 0), F),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_nobody_who_is_turned_beyond_the_profile_looks_anywhere_but_to_that_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(90.01, 180, 500) * rng.choice((-1, 1), 500)
    angles = np.stack((yaw, rng.uniform(-90, 90, 500), rng.uniform(-90, 90, 500)), 1)
    sideways = np.where(yaw > 0, L, R)
    found = direction_rules(OURS.never_abstaining()).apply(angles, np.full_like(angles, np.nan))
    assert set(found) == {"thesis_tree", "ours"}
    for name, directions in found.items():
        assert directions.tolist() == sideways.tolist(), name


@pytest.mark.parametrize(("pose", "expected"), HAND_WORKED)
def test_the_thesis_tree_follows_its_text(pose: tuple[float, float, float], expected: Direction) -> None:
    pitch, negated_yaw, roll = pose
    assert thesis_tree(np.array([[-negated_yaw, pitch, roll]], float)).tolist() == [expected]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.real
def test_the_thesis_tree_gives_all_4800_baseline_labels(shared: Path) -> None:
    thesis = shared / "thesis"
    angles = {
        row["Filename"]: [-float(row["Yaw"]), float(row["Pitch"]), float(row["Roll"])]
        for row in _rows(thesis / "FINALDF_Proposed.csv")
    }
    labelled = [
        (angles[row["Filename"]], direction_from_word(row["Direction"]))
        for name in ("train_val_baseline.csv", "test_baseline.csv")
        for row in _rows(thesis / name)
        if row["Filename"] in angles
    ]
    found = thesis_tree(np.array([pose for pose, _ in labelled]))
    assert len(labelled) == 4800
    assert found.tolist() == [label for _, label in labelled]


@pytest.mark.real
def test_the_thesis_labels_of_pointing04_are_a_table_of_pan_and_tilt(shared: Path) -> None:
    rows = _rows(shared / "thesis" / "train_directions.csv")
    found = [pointing04_direction_of_name(row["Filename"]) for row in rows]
    assert len(rows) == 2577
    assert found == [direction_from_word(row["Direction"]) for row in rows]


def test_every_pose_of_pointing04_has_a_direction_and_no_other_has() -> None:
    tilts = (-60, -30, -15, 0, 15, 30, 60)
    poses = [(pan, tilt) for tilt in tilts for pan in range(-90, 91, 15)] + [(0, 90), (0, -90)]
    assert len(poses) == 93
    assert all(pointing04_direction(pan, tilt) is not None for pan, tilt in poses)
    assert [pointing04_direction(pan, tilt) for pan, tilt in ((60, 0), (-60, 0), (0, 60), (0, -60), (0, 0))] == [
        L,
        R,
        U,
        D,
        F,
    ]
    assert [pointing04_direction(*pose) for pose in ((15, 90), (7, 0), (105, 0), (0, 45), (0, 0.5))] == [None] * 5


SYMMETRIC = Thresholds(left=20, right=20, up=15, down=15, spread=1, floor=3, least_confidence=0.7)


def test_our_rule_follows_the_mirror() -> None:
    generator = np.random.default_rng(0)
    angles, deviations = generator.uniform(-90, 90, (500, 3)), generator.uniform(1, 10, (500, 3))
    mirrored = SYMMETRIC(angles * (-1, 1, -1), deviations)
    expected = [ABSTAIN if d == ABSTAIN else MIRRORED_DIRECTION[d] for d in SYMMETRIC(angles, deviations)]
    assert mirrored.tolist() == expected
    assert {*expected} == {-1, 0, 1, 2, 3, 4}


def test_the_confidence_is_the_share_of_the_angles_distribution() -> None:
    generator = np.random.default_rng(1)
    for pose, deviation in (((18, 0, 0), 4.0), ((30, 28, 0), 6.0), ((0, -14, 0), 2.0)):
        drawn = generator.normal(pose, np.hypot(deviation, SYMMETRIC.floor), (40_000, 3))
        chosen = SYMMETRIC.decide(np.array([pose], float))[0]
        expected = (SYMMETRIC.decide(drawn) == chosen).mean()
        found = SYMMETRIC.confidence(np.array([pose], float), np.full((1, 3), deviation))[0]
        assert found == pytest.approx(expected, abs=0.05)


def test_faces_without_angles_get_no_direction() -> None:
    nothing = np.full((2, 3), np.nan)
    rules = direction_rules(OURS).apply(nothing, nothing)
    assert {name: labels.tolist() for name, labels in rules.items()} == {
        "thesis_tree": [ABSTAIN, ABSTAIN], "ours": [ABSTAIN, ABSTAIN],
    }  # fmt: skip


def _people(count: int = 360) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Faces of twelve people whose directions follow thresholds of 30° and 18°, seen with an error of 5°."""
    generator = np.random.default_rng(2)
    angles = generator.uniform(-70, 70, (count, 3))
    law = Thresholds(left=30, right=30, up=18, down=18, spread=0, floor=1, least_confidence=0)
    truth = law.decide(angles).astype(np.int64)
    people = [str(i % 12) for i in range(count)]
    return angles + generator.normal(0, 5, angles.shape), np.full(angles.shape, 5.0), truth, people


def test_calibration_finds_the_thresholds_that_made_the_labels() -> None:
    angles, deviations, truth, people = _people()
    rule = fit(angles, deviations, truth, 0.95)
    assert (rule.left, rule.right, rule.up, rule.down) == pytest.approx((30, 30, 18, 18), abs=5)
    figures = cross_validate(angles, deviations, truth, people, 0.95)
    assert figures["accuracy"] < 0.93 < figures["accuracy_with_abstaining"]
    assert 0.3 < figures["coverage_with_abstaining"] < 1
    assert figures["calibration_error"] < 0.06


def test_the_intervals_of_a_fit_are_over_people_and_end_with_the_next_command(tmp_path: Path) -> None:
    angles, deviations, truth, people = _people()
    hard = np.array([int(person) < 3 for person in people])  # three people whose directions are as good as drawn
    truth = np.where(hard, np.random.default_rng(5).permutation(truth), truth)
    figures = cross_validate(angles, deviations, truth, people, 0.95)
    one = figures["intervals"]["accuracy"]
    assert one["value"] == figures["accuracy"]
    low, high = one["low"], one["high"]
    of_rows = 2 * 1.96 * np.sqrt(one["value"] * (1 - one["value"]) / len(truth))
    assert low < one["value"] < high
    assert high - low > 2 * of_rows  # people differ: faces of one person are no independent draws
    error = figures["intervals"]["calibration_error"]
    assert 0 <= error["low"] <= error["value"] == figures["calibration_error"] <= error["high"]
    text = "\n".join(summary(tmp_path / "ours.json", OURS, figures))
    assert f"accuracy {one['value']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"next: hpe pose SHARDS --estimator ESTIMATOR --rule {tmp_path / 'ours.json'}" in text


def test_five_people_give_no_interval_and_the_reason(tmp_path: Path) -> None:
    angles, deviations, truth, _ = _people(100)
    figures = cross_validate(angles, deviations, truth, [str(i % 5) for i in range(100)], 0.95)
    assert figures["intervals"]["accuracy"]["low"] is None
    text = summary(tmp_path / "ours.json", OURS, figures)
    assert "intervals: none: fewer than 6 people" in text[0]
    assert not any("[" in line for line in text)


def test_calibration_needs_people_and_all_directions() -> None:
    angles, _, truth, people = _people(60)
    with pytest.raises(UserError, match="expected at least 5 people"):
        usable(angles, truth, ["one"] * 60)
    with pytest.raises(UserError, match="all five directions"):
        usable(angles, np.where(truth == U, ABSTAIN, truth), people)


def test_a_rule_comes_back_from_its_file_and_nonsense_does_not(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    SYMMETRIC.save(path, {"accuracy": 0.8})
    assert Thresholds.load(path) == SYMMETRIC
    path.write_text(re.sub('"left": 20', '"left": -20', path.read_text()))
    with pytest.raises(UserError, match="above 0"):
        Thresholds.load(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a direction rule"):
        Thresholds.load(path)
