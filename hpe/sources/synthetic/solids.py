"""Ellipsoids seen by an orthographic camera: depth and normals per pixel, in closed form.

The head is a handful of ellipsoids melted into one skin. An ellipsoid with centre c and shape matrix
S = A·Aᵀ (the columns of A are its semi-axes) is met by the ray through (x, y) at

    z = c_z + S_z·S_xy⁻¹·d + sqrt(S_zz − S_z·S_xy⁻¹·S_zᵀ) · sqrt(1 − dᵀ·S_xy⁻¹·d),   d = (x, y) − c_xy

which is the formula of a conditional normal distribution, with the ellipsoid for the density's contour.
A near camera shows what is near larger: (x, y, z) → (x, y, z) / (1 − near · z), with `near` the inverse of its
distance. That map turns ellipsoids into ellipsoids (R. Hartley, A. Zisserman, "Multiple View Geometry", 2004, on
dual quadrics), so the orthographic formula serves for it too.

Melting is the polynomial smooth maximum of Inigo Quilez ("smooth minimum", iquilezles.org) on the depths.

Frames. Head frame: x to the image right of a frontal face, y up, z towards the viewer. View frame: the same
axes fixed to the camera; V = Rᵀ·X. Image: x right, y down, so F·V with F = diag(1, −1, 1). Lengths are in
head units: one unit is about half of a head's height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FAR = -9.0  # depth of the background, head units
Matrix = Float[np.ndarray, "3 3"]
Cut = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rotation(yaw: float, pitch: float, roll: float) -> Matrix:
    """R = Rz(roll)·Ry(yaw)·Rx(pitch), angles in degrees (6DRepNet's frame)."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in map(math.radians, (yaw, pitch, roll)))
    return np.array(
        [
            [cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp],
            [sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp],
            [-sy, cy * sp, cy * cp],
        ]
    )


def stretched(matrix: Matrix, wide: float) -> tuple[Matrix, Matrix]:
    """For a head `wide` times as wide as its solids: X·first is a place of the head in view, second·V one back."""
    along = np.array([[wide], [1.0], [1.0]])
    return matrix * along, matrix / along


@dataclass(frozen=True)
class Solid:
    """An ellipsoid in the head frame. `axes` holds its orthogonal semi-axes as columns; `melt` is the width, in
    head units, of its seam with what lies below."""

    centre: Float[np.ndarray, " 3"]
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
    return Solid(np.array(centre), rotation(turn, tilt, 0.0) * np.array(radii), melt)


def spindle(top: Float[np.ndarray, " 3"], bottom: Float[np.ndarray, " 3"], radius: float, *, melt: float) -> Solid:
    """An ellipsoid whose long axis runs from `top` to `bottom`."""
    along = (top - bottom) / 2
    side = np.array([along[1], -along[0], 0.0])
    side *= radius / math.hypot(*side)
    front = np.array([side[1] * along[2], -side[0] * along[2], side[0] * along[1] - side[1] * along[0]])
    front *= radius / math.hypot(*front)
    return Solid((top + bottom) / 2, np.stack([side, along, front], axis=1), melt)


def clipped(values: np.ndarray) -> np.ndarray:
    """Into 0..1, as a new array; np.clip takes longer to look at its arguments than at this much data."""
    return np.minimum(np.maximum(values, 0), 1)


class Screen:
    """Pixel centres in view units, and a depth and normal buffer for one material."""

    def __init__(self, x: Float[np.ndarray, " width"], y: Float[np.ndarray, " height"]) -> None:
        self.x = x.astype(np.float32)
        self.y = y.astype(np.float32)
        self.depth = np.full((len(y), len(x)), FAR, np.float32)
        self.normal = np.zeros((3, len(y), len(x)), np.float32)
        self.touched = (slice(0, 0), slice(0, 0))  # rows and columns outside of which nothing was drawn

    def add(
        self,
        solids: Sequence[Solid],
        matrix: Matrix,
        keep: Cut | None = None,
        *,
        wide: float = 1.0,
        near: float = 0.0,
    ) -> None:
        """Melts solids into the buffer in order; `keep(x, y, z)` cuts by a hit's place in the head frame.

        `matrix` turns the view frame into the head's; `wide` stretches the head along its x axis; `near` is the inverse
        of the camera's distance.
        """
        # all the small algebra at once: a picture has some twenty solids, and calls cost more than sums
        into, back = stretched(matrix, wide)
        centres = np.stack([solid.centre for solid in solids]) @ into
        axes = into.T @ np.stack([solid.axes for solid in solids])
        shapes = axes @ axes.transpose(0, 2, 1)
        if near:
            centres, shapes = _nearer(centres, shapes, near)
        if wide == 1.0 and not near:
            axes = axes / np.square(axes).sum(axis=1, keepdims=True)  # orthogonal: axes·axesᵀ is now shape⁻¹
            gradients = (axes @ axes.transpose(0, 2, 1)).tolist()
        else:
            gradients = np.linalg.inv(shapes).tolist()
        halves = np.sqrt(shapes[:, (0, 1, 2), (0, 1, 2)])
        low, high = (centres - halves)[:, :2].T, (centres + halves)[:, :2].T
        columns = np.searchsorted(self.x, [low[0], high[0]])
        rows = np.searchsorted(-self.y, [-high[1], -low[1]])
        bounds = np.stack([*rows, *columns], axis=1).tolist()
        self.touched = (slice(rows.min(), rows.max()), slice(columns.min(), columns.max()))
        for number, solid in enumerate(solids):
            top, bottom, left, right = bounds[number]
            if top < bottom and left < right:
                window = (slice(top, bottom), slice(left, right))
                front = float(centres[number, 2] + halves[number, 2])
                if front > self.depth[window].min() - solid.melt:
                    shape = (shapes[number].tolist(), gradients[number])
                    self._melt(window, centres[number].tolist(), *shape, solid.melt, back, near, keep)

    def _melt(
        self,
        window: tuple[slice, slice],
        centre: list[float],
        shape: list[list[float]],
        gradient: list[list[float]],
        melt: float,
        matrix: Matrix,
        near: float,
        keep: Cut | None,
    ) -> None:
        (xx, xy, xz), (_, yy, yz), (_, _, zz) = shape
        area = xx * yy - xy * xy
        slope_x, slope_y = (yy * xz - xy * yz) / area, (xx * yz - xy * xz) / area
        thick = math.sqrt(max(zz - slope_x * xz - slope_y * yz, 0.0))
        x = (self.x[window[1]] - centre[0])[None, :]
        y = (self.y[window[0]] - centre[1])[:, None]
        inside = (1 - yy / area * x * x) - xx / area * y * y
        inside += (2 * xy / area * y) * x
        hit = inside > 0
        bulge = np.sqrt(np.maximum(inside, 0, out=inside), out=inside)
        bulge *= thick
        middle = slope_x * x + slope_y * y
        z = middle + bulge
        if keep is not None:
            kept = keep(*_turned(matrix, near, x + centre[0], y + centre[1], z + centre[2]))
            # where the near wall is cut away, the hollow's far wall shows
            row, column = np.nonzero(hit & ~kept)
            far = middle[row, column] - bulge[row, column]
            hollow = keep(*_turned(matrix, near, x[0, column] + centre[0], y[row, 0] + centre[1], far + centre[2]))
            z[row, column] = far
            hit[row, column] = hollow
        old = self.depth[window]
        share = (z - old) * (0.5 / melt)
        share += 0.5 + 0.5 * centre[2] / melt
        np.minimum(np.maximum(share, 0, out=share), 1, out=share)
        share *= hit
        normal = [(row[0] * x + row[1] * y) + row[2] * z for row in gradient]
        length = normal[0] * normal[0]
        length += normal[1] * normal[1]
        length += normal[2] * normal[2]
        length = share / np.sqrt(length + 1e-12)
        z += centre[2]
        rest = 1 - share
        covered = rest <= 0
        blend = melt * rest
        blend -= old
        blend += z
        blend *= share
        old += blend
        np.copyto(old, z, where=covered)  # a wholly new depth must not carry the rounding of the old one
        for plane, component in zip(self.normal, normal, strict=True):
            seen = plane[window]
            seen *= rest
            component *= length
            seen += component


def nearer(points: Float[np.ndarray, "*points 3"], near: float) -> Float[np.ndarray, "*points 3"]:
    """Points of the view frame as a camera at the distance 1 / `near` sees them."""
    return points / (1 - near * points[..., 2:])


def _nearer(
    centres: Float[np.ndarray, "solids 3"], shapes: Float[np.ndarray, "solids 3 3"], near: float
) -> tuple[Float[np.ndarray, "solids 3"], Float[np.ndarray, "solids 3 3"]]:
    """Centres and shape matrices of the ellipsoids that a near camera makes of these, by their dual quadrics."""
    dual = np.full((len(centres), 4, 4), -1.0)
    dual[:, :3, :3] = shapes - centres[:, :, None] * centres[:, None, :]
    dual[:, :3, 3] = dual[:, 3, :3] = -centres
    camera = np.eye(4)
    camera[3, 2] = -near
    dual = camera @ dual @ camera.T
    dual /= -dual[:, 3:, 3:]
    centres = -dual[:, :3, 3]
    return centres, dual[:, :3, :3] + centres[:, :, None] * centres[:, None, :]


def _turned(matrix: Matrix, near: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> list[np.ndarray]:
    if near:  # back from what the camera made of them
        part = 1 / (1 + near * z)
        x, y, z = x * part, y * part, z * part
    return [(row[0] * x + row[1] * y) + row[2] * z for row in matrix.tolist()]


def reach(
    solids: list[Solid], heights: Float[np.ndarray, " points"], angles: Float[np.ndarray, " points"]
) -> Float[np.ndarray, "points 3"]:
    """The outermost points of the solids at heights and angles (radians from z towards x) of the head."""
    directions = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], axis=1)
    starts = np.stack([np.zeros_like(heights), heights, np.zeros_like(heights)], axis=1)
    axes = np.stack([solid.axes for solid in solids])
    inverse = (axes / np.square(axes).sum(axis=1, keepdims=True)).transpose(0, 2, 1)  # its columns are orthogonal
    a = directions @ inverse.transpose(0, 2, 1)
    b = (starts - np.stack([solid.centre for solid in solids])[:, None]) @ inverse.transpose(0, 2, 1)
    aa, ab, bb = (np.einsum("spi,spi->sp", one, other) for one, other in ((a, a), (a, b), (b, b)))
    root = ab**2 - aa * (bb - 1)
    far = np.where(root > 0, (np.sqrt(np.maximum(root, 0)) - ab) / aa, 0)
    return starts + np.maximum(far.max(axis=0), 0)[:, None] * directions
