"""Smoothing: rotations as rotations, judged by SciPy; probabilities stay probabilities."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hpe.data.smoothing import SmoothedRotation, SmoothedValues


def _rotations(angles: np.ndarray) -> Rotation:
    return Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True)


def smoothed(angles: np.ndarray, frames_per_second: float) -> np.ndarray:
    filtered = SmoothedRotation()
    return np.stack([filtered.next(row, frame / frames_per_second) for frame, row in enumerate(angles)])


def _jittered(steady: np.ndarray, degrees: float) -> np.ndarray:
    noise = Rotation.from_rotvec(np.random.default_rng(0).normal(size=(len(steady), 3)) * degrees, degrees=True)
    turned = noise * _rotations(steady)
    return turned.as_euler("ZYX", degrees=True)[:, [1, 2, 0]]


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    turn = _rotations(one).inv() * _rotations(other)
    return np.rad2deg(turn.magnitude())


def test_a_steady_head_stays_where_it_is():
    steady = np.tile((30.0, -20.0, 175.0), (50, 1))
    assert _distance(smoothed(steady, 30), steady).max() < 1e-6


@pytest.mark.parametrize("pose", [(0.0, 0.0, 0.0), (10.0, 5.0, 179.5), (88.0, 0.0, 0.0)])
def test_trembling_is_less_after_smoothing_also_at_180_and_90_degrees(pose):
    steady = np.tile(pose, (300, 1))
    raw = _jittered(steady, 2.0)
    assert _distance(smoothed(raw, 30), steady)[30:].mean() < 0.5 * _distance(raw, steady)[30:].mean()


def test_smoothing_turns_with_the_camera():
    path = _jittered(np.stack((np.linspace(-40, 40, 60), np.zeros(60), np.zeros(60)), 1), 1.0)
    turn = Rotation.from_euler("xyz", (20, -30, 40), degrees=True)
    turned = turn * _rotations(path)
    seen = smoothed(turned.as_euler("ZYX", degrees=True)[:, [1, 2, 0]], 30)
    expected = turn * _rotations(smoothed(path, 30))
    np.testing.assert_allclose(_rotations(seen).as_matrix(), expected.as_matrix(), atol=1e-9)


def test_a_fast_turn_is_followed_with_less_lag_than_a_plain_low_pass():
    path = np.stack((np.linspace(-80, 80, 31), np.zeros(31), np.zeros(31)), 1)
    plain = SmoothedRotation(speed_factor=0.0)
    slow = np.stack([plain.next(row, frame / 30) for frame, row in enumerate(path)])
    assert _distance(smoothed(path, 30), path)[-1] < 0.5 * _distance(slow, path)[-1]


def test_frames_without_a_face_are_passed_over_and_long_gaps_start_afresh():
    one, other = np.array((0.0, 0.0, 0.0)), np.array((60.0, 0.0, 0.0))
    filtered = SmoothedRotation()
    filtered.next(one, 0.0)
    assert np.isnan(filtered.next(np.full(3, np.nan), 0.1)).all()
    near = filtered.next(other, 0.2)
    assert 0 < near[0] < 60
    np.testing.assert_allclose(filtered.next(other, 5.0), other, atol=1e-9)
    with pytest.raises(ValueError, match="times must increase"):
        filtered.next(one, 5.0)


def test_smoothed_probabilities_sum_to_one_and_tremble_less():
    raw = np.random.default_rng(0).dirichlet(np.ones(8), 200)
    values = SmoothedValues(1.0)
    found = np.stack([values.next(row, frame / 30) for frame, row in enumerate(raw)])
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-12)
    assert np.abs(np.diff(found, axis=0)).mean() < 0.3 * np.abs(np.diff(raw, axis=0)).mean()
    np.testing.assert_allclose(found[60:].mean(0), raw.mean(0), atol=0.05)


def test_the_same_time_passes_with_the_same_effect_however_many_frames_there_are():
    ends = []
    for frames in (5, 50):
        values = SmoothedValues(1.0)
        values.next(np.array((1.0, 0.0)), 0.0)
        last = np.zeros(2)
        for frame in range(1, frames + 1):
            last = values.next(np.array((0.0, 1.0)), 0.4 * frame / frames)
        ends.append(last)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)


def test_unknown_values_change_nothing_and_long_gaps_start_afresh():
    values = SmoothedValues(1.0)
    values.next(np.array((1.0, 0.0)), 0.0)
    assert np.isnan(values.next(np.array((np.nan, 1.0)), 0.1)).all()
    assert 0 < values.next(np.array((0.0, 1.0)), 0.2)[0] < 1
    assert values.next(np.array((0.0, 1.0)), 3.0)[0] == 0
    assert SmoothedValues(np.inf).next(np.array((0.3,)), 0.0) == pytest.approx(0.3)
