"""Angles of a head: Euler angles, rotation matrices, 6D, errors, the mirror and projection.

Conventions (checked on the 3D points of AFLW2000-3D in ``tests/core/test_geometry.py``):

- Angles come in the order yaw, pitch, roll, in degrees. Pitch positive looks up; yaw positive turns the
  face to the left edge of the picture.
- ``R = Rz(roll) · Ry(yaw) · Rx(pitch)`` (6DRepNet). The head's frame has x to the right edge of the picture
  for a frontal face, y up, z towards the viewer; a head point X lies in the picture at ``F Rᵀ X``, with
  ``F = diag(1, -1, 1)`` because picture rows count downwards.
"""

from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SINGULAR: Final = 1e-6


def rotation_from_euler(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """``Rz(roll) · Ry(yaw) · Rx(pitch)`` of yaw, pitch, roll in degrees."""
    yaw, pitch, roll = torch.deg2rad(angles).unbind(-1)
    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    rows = (
        (cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp),
        (sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp),
        (-sy, cy * sp, cy * cp),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def euler_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Yaw, pitch, roll in degrees of an upright head: of the two triples that every rotation has, the one with less
    pitch and roll, so that a head turned to yaw 121° stays upright and is not one of yaw 59° upside down.

    Yaw is within ±180°. Where it is ±90° (gimbal lock), roll is 0 by choice.
    """
    sy = torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    singular = sy < _SINGULAR
    yaw = torch.atan2(-rotation[..., 2, 0], sy)
    pitch = torch.where(
        singular,
        torch.atan2(-rotation[..., 1, 2], rotation[..., 1, 1]),
        torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2]),
    )
    roll = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    roll = torch.where(singular, torch.zeros_like(roll), roll)
    angles = torch.rad2deg(torch.stack((yaw, pitch, roll), -1))
    # Whichever of |pitch| + |roll|, and the larger of the two, is compared: both mean that their sum is above 180°.
    upside_down = angles[..., 1:].abs().sum(-1) > 180.0
    return torch.where(upside_down[..., None], other_euler(angles), angles)


def other_euler(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The other yaw, pitch, roll of the same rotation, (180° - yaw, pitch ± 180°, roll ± 180°), within ±180°."""
    yaw, pitch, roll = angles.unbind(-1)
    return wrapped(torch.stack((180.0 - yaw, pitch + 180.0, roll + 180.0), -1))


def nearest_euler(angles: Float[Tensor, "*batch 3"], to: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Of the two triples of the rotation of ``angles``, the one whose angles differ less from those of ``to``.

    ``angles`` themselves, bit for bit, unless the other triple is nearer.
    """
    other = other_euler(angles)
    nearer = _apart(other, to).sum(-1) < _apart(angles, to).sum(-1)
    return torch.where(nearer[..., None], other, angles)


def rotation_from_6d(six: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation whose first two columns are the Gram-Schmidt of ``six[:3]``, ``six[3:]``.

    Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", 2019.
    """
    first = F.normalize(six[..., :3], dim=-1)
    second = six[..., 3:]
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second, dim=-1)), -1)


def geodesic_degrees(
    predicted: Float[Tensor, "*batch 3 3"], target: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """The angle of the rotation between two rotations: ``acos((tr(PᵀT) - 1) / 2)``, degrees, 0..180.

    Computed with atan2 of the rotation's sine and cosine, which keeps small angles exact where acos loses
    half of its digits.
    """
    relative = predicted.transpose(-1, -2) @ target
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    axis = torch.stack(
        (
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ),
        -1,
    )
    return torch.rad2deg(torch.atan2(axis.norm(dim=-1) / 2, cosine))


def maev_degrees(
    predicted: Float[Tensor, "*batch 3 3"], target: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Mean angle between corresponding columns, degrees (MAEV; Cao et al., "A Vector-based ...", 2021)."""
    cosine = (predicted * target).sum(-2)
    sine = torch.linalg.cross(predicted, target, dim=-2).norm(dim=-2)
    return torch.rad2deg(torch.atan2(sine, cosine)).mean(-1)


def angle_errors(predicted: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Absolute difference of yaw, pitch and roll in degrees, 0..180, on the branch of the target.

    Two triples of angles are one rotation (:func:`nearest_euler`): the prediction counts by the one that is nearer to
    the target. Differences wrap at 360 (359° and 1° differ by 2°); a single angle that is off by 180° stays so.
    """
    return _apart(nearest_euler(predicted, target), target)


def _apart(one: Float[Tensor, "*batch 3"], other: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    return wrapped(one - other).abs()


def wrapped(degrees: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Angles within -180° .. 180°."""
    return (degrees + 180.0).remainder(360.0) - 180.0


def mirror_angles(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Angles of the horizontally flipped picture: yaw and roll change sign."""
    yaw, pitch, roll = angles.unbind(-1)
    return torch.stack((-yaw, pitch, -roll), -1)  # signs made from Python numbers would be copied to the device


def mean_rotation(angles: Float[Tensor, "*batch 3"], others: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Angles of the rotation nearest to two (chordal mean; Markley et al., "Averaging Quaternions", 2007).

    Near a profile the three angles of one head may be far from those of its neighbour: their means are of no head.
    NaN where an angle is not finite.
    """
    summed = rotation_from_euler(angles.float()) + rotation_from_euler(others.float())
    finite = summed.isfinite().all(-1).all(-1)[..., None, None]
    left, _, right = torch.linalg.svd(torch.where(finite, summed, torch.eye(3, device=summed.device)))
    sign = torch.ones_like(summed[..., 0])
    sign[..., 2] = torch.linalg.det(left @ right)
    nearest = euler_from_rotation(left @ torch.diag_embed(sign) @ right)
    return torch.where(finite[..., 0], nearest, torch.full_like(nearest, torch.nan))


def mixed_deviations(
    angles: Float[Tensor, "*batch 3"],
    deviations: Float[Tensor, "*batch 3"],
    others: Float[Tensor, "*batch 3"],
    their_deviations: Float[Tensor, "*batch 3"],
) -> Float[Tensor, "*batch 3"]:
    """Standard deviations of two readings of one head mixed evenly: the means of their variances and of what they
    differ by (law of total variance)."""
    spread = ((angles - others) / 2).square()
    return ((deviations.square() + their_deviations.square()) / 2 + spread).sqrt()


def project(
    points: Float[Tensor, "*batch points 3"], rotation: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch points 3"]:
    """Head points in picture axes (x right, y down, z towards the viewer), orthographic, same unit."""
    seen = points @ rotation  # rows are (Rᵀ X)ᵀ
    return seen * seen.new_tensor((1.0, -1.0, 1.0))


def axes_in_picture(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 2"]:
    """Ends (x, y in picture axes, unit length in 3D) of the axes that Hopenet's ``draw_axis`` draws.

    In order: right-hand picture side (red), down (green), out of the face (blue).
    """
    axes = angles.new_tensor(((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)))
    return project(axes, rotation_from_euler(angles))[..., :2]
