"""Where the eyes look in the head: small pictures of both, and where iris and lids are between the corners."""

from typing import Final

import numpy as np
from jaxtyping import Float, UInt8

from hpe.images import Picture

Eyes = UInt8[np.ndarray, "2 height width"]

WIDTH: Final = 24
HEIGHT: Final = 16
_CORNERS: Final = ((33, 133), (362, 263))
"""Of the eye at the left of a frontal face's picture and of the other, from left to right."""
_EYES: Final = ((33, 133, 159, 145, 468), (263, 362, 386, 374, 473))
"""Outer and inner corner, middle of the upper and of the lower lid, iris."""
_REACH: Final = 1.5
"""Width of a small picture, in distances between the corners."""
_LEAST_WIDTH: Final = 0.25
"""Of an eye, in root-mean-square radii of the face: eyes seen from the side are enlarged no further."""
_GREY_NOISE: Final = 8.0
"""Grey levels: deviations below are noise and are not enlarged to 1."""


def eyes_of(picture: Picture, points: Float[np.ndarray, "points 3"]) -> Eyes:
    """Both eyes in grey, turned so that the corners lie level, as wide as 1.5 times their distance.

    Args:
        picture: RGB, any size.
        points: a mesh in pixels of the picture.
    """
    import cv2

    flat = points[:, :2]
    radius = float(np.sqrt(np.square(flat - flat.mean(0)).sum(1).mean()))
    found = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for row, (left, right) in enumerate(_CORNERS):
        across = flat[right] - flat[left]
        width = max(float(np.hypot(*across)), _LEAST_WIDTH * radius, 1e-6)
        turn = np.array(((across[0], across[1]), (-across[1], across[0]))) / max(float(np.hypot(*across)), 1e-6)
        there = turn * (WIDTH / (_REACH * width))
        centre = (flat[left] + flat[right]) / 2
        moved = np.array((WIDTH - 1, HEIGHT - 1)) / 2 - there @ centre
        seen = cv2.warpAffine(
            picture, np.c_[there, moved], (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        found[row] = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    return found


def mirrored_eyes(eyes: UInt8[np.ndarray, "faces 2 height width"]) -> UInt8[np.ndarray, "faces 2 height width"]:
    """The eyes of the mirrored faces."""
    return eyes[:, ::-1, :, ::-1]


def eye_columns(heads: Float[np.ndarray, "faces 478 3"]) -> Float[np.ndarray, "faces 24"]:
    """Iris from the middle between the corners, lids from each other and iris from either lid, in widths of the eye."""
    columns = []
    for outer, inner, upper, lower, iris in _EYES:
        width = np.linalg.norm(heads[:, inner] - heads[:, outer], axis=1, keepdims=True) + 1e-6
        middle = (heads[:, outer] + heads[:, inner]) / 2
        pairs = ((iris, None), (upper, lower), (iris, upper), (iris, lower))
        columns += [(heads[:, one] - (middle if other is None else heads[:, other])) / width for one, other in pairs]
    return np.concatenate(columns, 1)


def contrasted(eyes: UInt8[np.ndarray, "faces 2 height width"]) -> Float[np.ndarray, "faces 2 pixels"]:
    """Pixels with the mean of each eye at 0 and its deviation near 1."""
    pixels = eyes.reshape(len(eyes), 2, -1).astype(float)
    centred = pixels - pixels.mean(2, keepdims=True)
    return centred / (pixels.std(2, keepdims=True) + _GREY_NOISE)
