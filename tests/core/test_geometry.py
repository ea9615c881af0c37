"""Angles, judged by SciPy's rotations and by the annotated 3D points of AFLW2000-3D."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hpe.core import geometry

degrees = st.tuples(st.floats(-89, 89), st.floats(-179, 179), st.floats(-179, 179))
turned = st.floats(-179, 179).filter(lambda yaw: abs(abs(yaw) - 90) > 0.01)
anywhere = st.tuples(turned, st.floats(-179, 179), st.floats(-179, 179))


def scipy_rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    return Rotation.from_euler("xyz", [pitch, yaw, roll], degrees=True).as_matrix()


@given(degrees)
def test_rotation_agrees_with_scipy(angles: tuple[float, float, float]) -> None:
    ours = geometry.rotation_from_euler(torch.tensor(angles, dtype=torch.float64))
    np.testing.assert_allclose(ours.numpy(), scipy_rotation(*angles), atol=1e-12)


@given(anywhere)
def test_every_rotation_becomes_the_upright_one_of_its_two_triples(angles: tuple[float, float, float]) -> None:
    rotation = scipy_rotation(*angles)
    found = geometry.euler_from_rotation(torch.from_numpy(rotation)).numpy()
    np.testing.assert_allclose(scipy_rotation(*found), rotation, atol=1e-9)
    pitch, yaw, roll = Rotation.from_matrix(rotation).as_euler("xyz", degrees=True)
    other = (180 - yaw, pitch - np.copysign(180, pitch), roll - np.copysign(180, roll))
    np.testing.assert_allclose(scipy_rotation(*other), rotation, atol=1e-9)
    least = min(abs(pitch) + abs(roll), abs(other[1]) + abs(other[2]))
    assert abs(found[1]) + abs(found[2]) == pytest.approx(least, abs=1e-5)


@given(st.tuples(turned, st.floats(-89, 89), st.floats(-89, 89)))
def test_an_upright_head_gets_its_angles_back_however_far_it_is_turned(angles: tuple[float, float, float]) -> None:
    back = geometry.euler_from_rotation(torch.from_numpy(scipy_rotation(*angles)))
    np.testing.assert_allclose(back.numpy(), angles, atol=1e-5)


@given(anywhere)
def test_a_right_rotation_has_no_error_whichever_angles_state_it(angles: tuple[float, float, float]) -> None:
    pitch, yaw, roll = Rotation.from_matrix(scipy_rotation(*angles)).as_euler("xyz", degrees=True)
    found = geometry.angle_errors(
        torch.tensor([yaw, pitch, roll], dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
    )
    np.testing.assert_allclose(found.numpy(), 0, atol=1e-5)


@given(anywhere, anywhere)
def test_errors_are_those_of_the_triple_nearer_to_the_truth(
    predicted: tuple[float, float, float], truth: tuple[float, float, float]
) -> None:
    yaw, pitch, roll = predicted
    triples = [np.array(one) - truth for one in (predicted, (180 - yaw, pitch + 180, roll + 180))]
    errors = [np.abs(np.rad2deg(np.angle(np.exp(1j * np.deg2rad(one))))) for one in triples]
    found = geometry.angle_errors(
        torch.tensor(predicted, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
    )
    assert float(found.sum()) == pytest.approx(min(one.sum() for one in errors), abs=1e-6)


@pytest.mark.parametrize("yaw", [90.0, -90.0])
def test_gimbal_lock_keeps_the_rotation(yaw: float) -> None:
    rotation = torch.from_numpy(scipy_rotation(yaw, 20.0, -35.0))
    again = geometry.rotation_from_euler(geometry.euler_from_rotation(rotation))
    np.testing.assert_allclose(again.numpy(), rotation.numpy(), atol=1e-6)


@given(degrees)
def test_six_numbers_hold_a_rotation(angles: tuple[float, float, float]) -> None:
    rotation = torch.from_numpy(scipy_rotation(*angles))
    six = torch.cat((rotation[..., 0], rotation[..., 1]), -1)
    np.testing.assert_allclose(geometry.rotation_from_6d(six * 3).numpy(), rotation.numpy(), atol=1e-9)


def test_any_six_numbers_give_a_rotation() -> None:
    rotation = geometry.rotation_from_6d(torch.randn(100, 6, dtype=torch.float64))
    identity = rotation @ rotation.transpose(-1, -2)
    np.testing.assert_allclose(identity.numpy(), np.broadcast_to(np.eye(3), (100, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(torch.linalg.det(rotation).numpy(), 1.0, atol=1e-9)


@given(degrees, degrees)
def test_geodesic_distance_is_scipys_magnitude(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    first, second = Rotation.from_matrix(scipy_rotation(*a)), Rotation.from_matrix(scipy_rotation(*b))  # type: ignore[arg-type]
    ours = geometry.geodesic_degrees(torch.from_numpy(first.as_matrix()), torch.from_numpy(second.as_matrix()))
    assert float(ours) == pytest.approx(np.rad2deg((first.inv() * second).magnitude()), abs=1e-5)


def test_a_tiny_rotation_has_its_own_length() -> None:
    small = torch.from_numpy(scipy_rotation(1e-4, 0, 0))
    assert float(geometry.geodesic_degrees(torch.eye(3).double(), small)) == pytest.approx(1e-4, rel=1e-6)


def test_maev_of_a_turn_about_z_is_two_thirds_of_it() -> None:
    turn = torch.from_numpy(scipy_rotation(0, 0, 30))
    assert float(geometry.maev_degrees(torch.eye(3).double(), turn)) == pytest.approx(20.0)


@pytest.mark.parametrize(("a", "b", "error"), [(359.0, 1.0, 2.0), (0.0, 180.0, 180.0), (-170.0, 170.0, 20.0)])
@pytest.mark.parametrize("angle", range(3))
def test_errors_wrap_at_a_full_turn_and_never_at_half(a: float, b: float, error: float, angle: int) -> None:
    predicted, truth, expected = torch.zeros(3), torch.zeros(3), [0.0] * 3
    predicted[angle], truth[angle], expected[angle] = a, b, error
    assert geometry.angle_errors(predicted, truth).tolist() == pytest.approx(expected)


@given(degrees)
def test_mirror_negates_yaw_and_roll(angles: tuple[float, float, float]) -> None:
    mirror = np.diag([-1.0, 1.0, 1.0])
    mirrored = geometry.mirror_angles(torch.tensor(angles, dtype=torch.float64))
    expected = mirror @ scipy_rotation(*angles) @ mirror
    np.testing.assert_allclose(geometry.rotation_from_euler(mirrored).numpy(), expected, atol=1e-12)


@given(degrees)
def test_axes_are_those_that_hopenet_draws(angles: tuple[float, float, float]) -> None:
    yaw, pitch, roll = np.deg2rad(angles)
    yaw = -yaw  # utils.draw_axis of natanielruiz/deep-head-pose negates yaw
    x = [
        np.cos(yaw) * np.cos(roll),
        np.cos(pitch) * np.sin(roll) + np.cos(roll) * np.sin(pitch) * np.sin(yaw),
    ]
    y = [
        -np.cos(yaw) * np.sin(roll),
        np.cos(pitch) * np.cos(roll) - np.sin(pitch) * np.sin(yaw) * np.sin(roll),
    ]
    z = [np.sin(yaw), -np.cos(yaw) * np.sin(pitch)]
    ours = geometry.axes_in_picture(torch.tensor(angles, dtype=torch.float64))
    np.testing.assert_allclose(ours.numpy(), [x, y, z], atol=1e-12)


def test_positive_yaw_looks_to_the_left_edge_and_positive_pitch_up() -> None:
    nose = torch.tensor([[0.0, 0.0, 1.0]])
    turned = geometry.project(nose, geometry.rotation_from_euler(torch.tensor([30.0, 0.0, 0.0])))
    raised = geometry.project(nose, geometry.rotation_from_euler(torch.tensor([0.0, 30.0, 0.0])))
    assert turned[0, 0] < 0
    assert raised[0, 1] < 0  # picture rows count downwards


@pytest.mark.real
def test_projection_is_that_of_aflw2000s_points(shared: Path) -> None:
    """With the right convention, all heads turned back to the front are one shape; with a wrong one, not."""
    from scipy.io import loadmat

    points, angles = [], []
    for path in sorted((shared / "data/aflw2000").glob("*.mat"))[::8]:
        mat = loadmat(path)
        pitch, yaw, roll = np.rad2deg(np.asarray(mat["Pose_Para"], float)[0, :3])
        if max(abs(pitch), abs(yaw), abs(roll)) < 99:
            points.append(np.asarray(mat["pt3d_68"], float).T)
            angles.append((yaw, pitch, roll))
    shape = np.array(points)
    shape -= shape.mean(1, keepdims=True)
    shape /= np.linalg.norm(shape, axis=(1, 2), keepdims=True)
    rotation = geometry.rotation_from_euler(torch.tensor(angles, dtype=torch.float64)).numpy()

    def spread(turn: np.ndarray) -> float:
        front = (shape * [1, -1, 1]) @ turn
        return float(np.linalg.norm(front - front.mean(0), axis=(1, 2)).mean())

    right = spread(rotation.swapaxes(1, 2))
    assert right < 0.1
    assert spread(rotation) > 3 * right


def test_two_readings_mixed_spread_like_draws_of_both() -> None:
    one, other = (10.0, 2.0), (13.0, 5.0)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.normal(mean, deviation, 200_000) for mean, deviation in (one, other)])
    told = geometry.mixed_deviations(*(torch.full((1, 3), value) for value in (*one, *other)))
    np.testing.assert_allclose(told, drawn.std(), rtol=0.01)
