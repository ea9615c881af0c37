"""Rotations from points: the mean head, the rotation that fits it best, and angles in numpy.

Points here are ``heads``: centred, of unit root-mean-square radius, in axes x right, y up, z towards the viewer,
so that a head shape ``X`` (rows) appears in the picture as ``X @ R`` (``hpe.core.geometry``: ``Rᵀ X``).
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from hpe.core.geometry import euler_from_rotation


def heads_of(points: Float[np.ndarray, "faces points 3"]) -> Float[np.ndarray, "faces points 3"]:
    """Points in picture axes, centred, scaled and with y up."""
    centred = (points - points.mean(1, keepdims=True)) * (1.0, -1.0, 1.0)
    radius = np.sqrt(np.square(centred).sum(2).mean(1))
    return centred / np.maximum(radius, 1e-12)[:, None, None]


def rotations_of(angles: Float[np.ndarray, "faces 3"]) -> Float[np.ndarray, "faces 3 3"]:
    """``Rz(roll) · Ry(yaw) · Rx(pitch)`` of yaw, pitch, roll in degrees."""
    return Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True).as_matrix()


def angles_of(rotations: Float[np.ndarray, "faces 3 3"]) -> Float[np.ndarray, "faces 3"]:
    """Yaw, pitch, roll in degrees of an upright head (:func:`hpe.core.geometry.euler_from_rotation`)."""
    return euler_from_rotation(torch.from_numpy(np.asarray(rotations, float))).numpy()


def mean_head(
    heads: Float[np.ndarray, "faces points 3"], rotations: Float[np.ndarray, "faces 3 3"]
) -> Float[np.ndarray, "points 3"]:
    """The mean of the heads turned to the front by their known rotations."""
    return (heads @ rotations.transpose(0, 2, 1)).mean(0)


def fitted_rotations(
    shape: Float[np.ndarray, "points 3"], heads: Float[np.ndarray, "faces points 3"]
) -> Float[np.ndarray, "faces 3 3"]:
    """The rotations R for which ``shape @ R`` lies nearest to the heads (Kabsch, 1976)."""
    left, _, right = np.linalg.svd(shape.T @ heads)
    signs = np.ones((len(heads), 3))
    signs[:, 2] = np.linalg.det(left @ right)
    return (left * signs[:, None, :]) @ right


def lifted(
    shape: Float[np.ndarray, "points 3"], flat: Float[np.ndarray, "faces points 3"]
) -> Float[np.ndarray, "faces points 3"]:
    """Heads whose z is unknown (0), with the z of ``shape`` turned so that it fits x and y.

    Scaled orthographic projection: the nearest two orthonormal rows to the least-squares affine map from the
    shape to the picture, and their cross product. x and y are only scaled.
    """
    affine = np.linalg.pinv(shape) @ flat[..., :2]
    left, values, right = np.linalg.svd(affine, full_matrices=False)
    two = left @ right
    third = np.cross(two[..., 0], two[..., 1])
    rotation = np.concatenate((two, third[..., None]), 2)
    scale = values.mean(1)[:, None, None]
    return np.concatenate((flat[..., :2] / scale, (shape @ rotation)[..., 2:]), 2)
