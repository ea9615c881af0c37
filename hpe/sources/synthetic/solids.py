"""Ellipsoids seen by an orthographic camera: depth and normals per pixel, in closed form.

The head is a handful of ellipsoids melted into one skin. An ellipsoid with centre c and shape matrix
S = A·Aᵀ (the columns of A are its semi-axes) is met by the ray through (x, y) at

    z = c_z + S_z·S_xy⁻¹·d + sqrt(S_zz − S_z·S_xy⁻¹·S_zᵀ) · sqrt(1 − dᵀ·S_xy⁻¹·d),   d = (x, y) − c_xy

which is the formula of a conditional normal distribution, with the ellipsoid for the density's contour.
Melting is the polynomial smooth maximum of Inigo Quilez ("smooth minimum", iquilezles.org) on the depths.

Frames. Head frame: x to the image right of a frontal face, y up, z towards the viewer. View frame: the same
axes fixed to the camera; V = Rᵀ·X. Image: x right, y down, so F·V with F = diag(1, −1, 1). Lengths are in head
units: one unit is about half of a head's height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FAR = -9.0  # depth of the background, head units
Matrix = Float[np.ndarray, "3 3"]


def rotation(yaw: float, pitch: float, roll: float) -> Matrix:
    """R = Rz(roll)·Ry(yaw)·Rx(pitch), angles in degrees (6DRepNet's frame)."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class Solid:
    """An ellipsoid in the head frame; `melt` is the width, in head units, of its seam with what lies below."""

    centre: Float[np.ndarray, "3"]
    axes: Matrix
    melt: float


def ellipsoid(
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    *,
    melt: float = 0.06,
    tilt: float = 0.0,
    turn: float = 0.0,
) -> Solid:
    """An ellipsoid along the axes, then tilted about x and turned about y (degrees)."""
    return Solid(np.array(centre), rotation(turn, tilt, 0.0) @ np.diag(radii), melt)


def spindle(
    top: Float[np.ndarray, "3"], bottom: Float[np.ndarray, "3"], radius: float, *, melt: float
) -> Solid:
    """An ellipsoid whose long axis runs from `top` to `bottom`."""
    along = (top - bottom) / 2
    side = np.cross(along, [0.0, 0.0, 1.0])
    side *= radius / np.linalg.norm(side)
    front = np.cross(side, along)
    front *= radius / np.linalg.norm(front)
    return Solid((top + bottom) / 2, np.stack([side, along, front], axis=1), melt)


class Screen:
    """Pixel centres in view units, and a depth and normal buffer for one material."""

    def __init__(self, x: Float[np.ndarray, "width"], y: Float[np.ndarray, "height"]) -> None:
        self.x = x.astype(np.float32)
        self.y = y.astype(np.float32)
        self.depth = np.full((len(y), len(x)), FAR, np.float32)
        self.normal = np.zeros((3, len(y), len(x)), np.float32)

    def add(self, solid: Solid, matrix: Matrix, keep: Callable[..., np.ndarray] | None = None) -> None:
        """Melts a solid into the buffer; `keep(x, y, z)` cuts it by the hit's place in the head frame."""
        centre = matrix.T @ solid.centre
        axes = matrix.T @ solid.axes
        shape = axes @ axes.T
        half = np.sqrt(np.diag(shape))
        left, right = np.searchsorted(self.x, [centre[0] - half[0], centre[0] + half[0]])
        # y falls from row to row
        top, bottom = np.searchsorted(-self.y, [-centre[1] - half[1], -centre[1] + half[1]])
        if left >= right or top >= bottom:
            return
        x = (self.x[left:right] - np.float32(centre[0]))[None, :]
        y = (self.y[top:bottom] - np.float32(centre[1]))[:, None]
        flat = np.linalg.inv(shape[:2, :2])
        slope = (flat @ shape[2, :2]).astype(np.float32)
        thick = np.float32(np.sqrt(shape[2, 2] - shape[2, :2] @ flat @ shape[2, :2]))
        flat = flat.astype(np.float32)
        inside = 1 - flat[0, 0] * x * x - y * (2 * flat[0, 1] * x + flat[1, 1] * y)
        hit = inside > 0
        z = slope[0] * x + slope[1] * y + thick * np.sqrt(np.maximum(inside, 0))
        gradient = np.linalg.inv(shape).astype(np.float32)
        normal = np.stack([row[0] * x + row[1] * y + row[2] * z for row in gradient])
        normal /= np.sqrt(np.square(normal).sum(axis=0)) + np.float32(1e-9)
        z += np.float32(centre[2])
        if keep is not None:
            view = (x + np.float32(centre[0]), y + np.float32(centre[1]), z)
            rows = matrix.astype(np.float32)
            hit &= keep(*(row[0] * view[0] + row[1] * view[1] + row[2] * view[2] for row in rows))
        window = (slice(top, bottom), slice(left, right))
        old = self.depth[window]
        melt = np.float32(solid.melt)
        share = np.where(hit, np.clip(0.5 + 0.5 * (z - old) / melt, 0, 1), 0)
        fresh = share >= 1
        z = np.where(fresh, z, old + share * (z - old) + melt * share * (1 - share))
        self.depth[window] = z
        self.normal[(slice(None), *window)] += share * (normal - self.normal[(slice(None), *window)])


def reach(solids: list[Solid], height: float, angle: float) -> Float[np.ndarray, "3"]:
    """The outermost point of the solids at a height and an angle (radians from z towards x) of the head."""
    direction = np.array([np.sin(angle), 0.0, np.cos(angle)])
    start = np.array([0.0, height, 0.0])
    far = 0.0
    for solid in solids:
        inverse = np.linalg.inv(solid.axes)
        a, b = inverse @ direction, inverse @ (start - solid.centre)
        root = (a @ b) ** 2 - (a @ a) * (b @ b - 1)
        if root > 0:
            far = max(far, (-(a @ b) + np.sqrt(root)) / (a @ a))
    return start + far * direction
