"""Faces keep their numbers over the frames of a video."""

import numpy as np
import pytest

from hpe.data.tracks import Tracker, overlap

torchvision_ops = pytest.importorskip("torchvision.ops")


def box(x: float, y: float = 0.0, side: float = 100.0) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def test_overlaps_are_those_of_torchvision() -> None:
    import torch

    boxes = np.random.default_rng(0).uniform(0, 100, (2, 20, 4))
    boxes[..., 2:] += boxes[..., :2]
    expected = torchvision_ops.box_iou(torch.from_numpy(boxes[0]), torch.from_numpy(boxes[1])).numpy()
    np.testing.assert_allclose(overlap(boxes[0], boxes[1]), expected, atol=1e-12)
    assert overlap(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_two_faces_keep_their_numbers_whatever_their_order() -> None:
    tracker = Tracker()
    for frame in range(30):
        pair = [box(4.0 * frame), box(600.0 - 4 * frame, 150.0)]
        numbers = tracker.next(pair if frame % 2 else pair[::-1], frame / 25)
        assert (numbers if frame % 2 else numbers[::-1]) == ([1, 0] if tracker.count == 2 else [0, 1])
    assert tracker.count == 2


def test_faces_that_pass_each_other_keep_their_direction() -> None:
    tracker = Tracker()
    last = first = tracker.next([box(0.0), box(400.0, 60.0)], 0.0)
    for frame in range(1, 41):
        last = tracker.next([box(10.0 * frame), box(400.0 - 10 * frame, 60.0)], frame / 25)
    assert first == last == [0, 1]
    assert tracker.count == 2


def test_a_fast_face_is_followed_by_its_speed() -> None:
    tracker = Tracker()
    places = np.cumsum([0, 20, 40, 60, 80, 90, 95, 95, 95])
    assert {tracker.next([box(float(x))], frame / 10)[0] for frame, x in enumerate(places)} == {0}


def test_a_short_gap_keeps_the_number_and_a_long_one_gives_another() -> None:
    tracker = Tracker()
    assert tracker.next([box(0.0)], 0.0) == [0]
    assert tracker.next([], 0.2) == []
    assert tracker.next([box(5.0)], 0.4) == [0]
    assert tracker.next([box(5.0)], 1.0) == [1]


def test_a_face_elsewhere_is_another_face() -> None:
    tracker = Tracker()
    assert tracker.next([box(0.0)], 0.0) == [0]
    assert tracker.next([box(300.0), box(2.0)], 0.04) == [1, 0]
