"""``hpe pose --check`` on heads that are turned far; the judge is SciPy's rotation."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hpe.core.errors import UserError
from hpe.pose.check import JoinedRows, check, to_markdown


def joined(predicted: np.ndarray, truth: np.ndarray) -> JoinedRows:
    count = len(truth)
    return JoinedRows(
        predicted, np.full((count, 3), np.nan), truth, {}, np.full(count, -1), np.arange(count)
    )  # fmt: skip


@pytest.fixture
def truth() -> np.ndarray:
    yaw = np.arange(-150.0, 151.0, 5.3)
    return np.stack((yaw, 20 * np.sin(yaw), 15 * np.cos(yaw)), 1)


def test_an_exact_rotation_has_no_error_in_any_of_its_angles(truth: np.ndarray) -> None:
    turns = Rotation.from_euler("xyz", truth[:, [1, 0, 2]], degrees=True)
    predicted = turns.as_euler("xyz", degrees=True)[:, [1, 0, 2]]  # SciPy keeps yaw within ±90
    assert np.abs(predicted - truth).mean() > 50, "the triples are those of the other branch"
    found = check(joined(predicted, truth))
    for measure in ("mae", "yaw", "pitch", "roll", "geodesic"):
        assert found["pose"]["all"][measure]["value"] == pytest.approx(0, abs=1e-3)
    assert found["bias_degrees"] == pytest.approx({"yaw": 0, "pitch": 0, "roll": 0}, abs=1e-3)


def test_labelled_faces_without_an_estimate_are_refused_with_their_numbers(truth: np.ndarray) -> None:
    known, lost = truth.copy(), truth.copy()
    known[:40], lost[40:] = np.nan, np.nan
    with pytest.raises(UserError, match=f"of {len(truth)} faces {len(truth) - 40} have true ones and 40 estimated"):
        check(joined(lost, known))
    with pytest.raises(UserError, match="and 0 estimated ones; see the `problem` column"):
        check(joined(np.full_like(truth, np.nan), truth))


def test_an_estimator_that_never_leaves_the_range_of_66_bins_is_named(truth: np.ndarray) -> None:
    wide = int((np.abs(truth) >= 99).any(1).sum())
    found = check(joined(np.clip(truth, -98, 98), truth))
    assert any(f"{wide} of {len(truth)} faces have a true angle of 99°" in one for one in found["mistakes"])
    assert "66 bins cannot" in to_markdown("x", found)
    inside = np.abs(truth).max(1) < 99
    assert not any("range" in one for one in check(joined(truth[inside], truth[inside]))["mistakes"])
