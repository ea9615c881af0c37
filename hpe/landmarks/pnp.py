"""Head pose by geometry alone: solve-PnP on six points of a generic face."""

from typing import Final

import numpy as np
from jaxtyping import Float

from hpe.landmarks.align import angles_of
from hpe.landmarks.topology import topology_of

GENERIC_SIX: Final = np.asarray(
    ((0, 0, 0), (0, -72, -22), (-45, 36, -34), (45, 36, -34), (-26, -34, -20), (26, -34, -20)), float
)
"""Nose tip, chin, outer eye corners, corners of the mouth in millimetres from the nose tip, written by hand from
usual proportions of an adult face: x to the picture's right, y up, z towards the viewer."""
_TO_CAMERA: Final = np.diag((1.0, -1.0, -1.0))


def solve_pnp(
    points: Float[np.ndarray, "faces points 3"], width: Float[np.ndarray, " faces"] | float
) -> Float[np.ndarray, "faces 3"]:
    """Yaw, pitch, roll in degrees by OpenCV's ``solvePnP`` on x and y of six points; NaN where it fails.

    The camera is the usual assumption: focal length = picture width, centre in the middle of a square picture.

    Args:
        points: faces in picture axes, pixels.
        width: of the pictures.
    """
    import cv2

    six = list(topology_of(points.shape[1]).six)
    widths = np.broadcast_to(np.asarray(width, float), len(points))
    rotations = np.full((len(points), 3, 3), np.nan)
    for row, (face, side) in enumerate(zip(np.ascontiguousarray(points[:, six, :2]), widths.tolist(), strict=True)):
        camera = np.array(((side, 0, side / 2), (0, side, side / 2), (0, 0, 1)))
        try:
            good, turn, _ = _solved(cv2, face, camera)
        except cv2.error:
            continue
        if good:
            # Camera axes are x right, y down, z away: seen = diag(1,-1,-1) Rᵀ X.
            rotations[row] = (_TO_CAMERA @ cv2.Rodrigues(turn)[0]).T
    return angles_of(rotations)


def _solved(cv2, face: Float[np.ndarray, "6 2"], camera: Float[np.ndarray, "3 3"]):
    # EPnP first: without a starting point the iterative solver often ends in mirrored solutions behind the camera.
    good, turn, shift = cv2.solvePnP(GENERIC_SIX, face, camera, None, flags=cv2.SOLVEPNP_EPNP)
    if not good:
        return good, turn, shift
    if shift[2] <= 0:
        turn, shift = np.array(((np.pi,), (0.0,), (0.0,))), np.array(((0.0,), (0.0,), (1000.0,)))
    return cv2.solvePnP(GENERIC_SIX, face, camera, None, turn, shift, True, cv2.SOLVEPNP_ITERATIVE)
