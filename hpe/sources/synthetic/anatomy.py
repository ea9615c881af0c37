"""A person's head under an expression: its solids, and where the features lie on the skin.

Places on the skin are (u, y): y is the head frame's height, u = SPREAD · atan2(x, z) the way around the head,
so that features wrap around the face and a profile shows them as a profile should.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpe.sources.synthetic.people import Head
from hpe.sources.synthetic.shots import ACTION_UNITS, Units
from hpe.sources.synthetic.solids import Solid, ellipsoid, reach, spindle

SPREAD = 0.62  # head units per radian, about the radius of a face
SIDES = (-1, 1)  # image left, image right of a frontal face
Pair = tuple[float, float]


@dataclass(frozen=True)
class Eye:
    """Place and half sizes in head units; the lids stand `upper` above and `lower` below the eye's centre."""

    u: float
    y: float
    half: float
    upper: float
    lower: float
    slant: float


@dataclass(frozen=True)
class Brow:
    """A stroke from `inner` to `outer` (away from the nose is positive) whose middle stands `arch` higher."""

    inner: Pair
    outer: Pair
    arch: float
    thickness: float


@dataclass(frozen=True)
class Mouth:
    """`half` and `corner` per side; `rise` and `fall` are how far the lips part up and down from `y`."""

    y: float
    half: Pair
    corner: Pair
    rise: float
    fall: float
    square: float
    upper_lip: float
    lower_lip: float
    upper_teeth: float
    lower_teeth: float


@dataclass(frozen=True)
class Face:
    """Everything about a face that depends on its expression. Pairs are (image left, image right)."""

    units: dict[int, np.ndarray]
    jaw_drop: float
    eyes: tuple[Eye, Eye]
    brows: tuple[Brow, Brow]
    mouth: Mouth
    skin: list[Solid]
    ears: list[Solid]


@lru_cache(maxsize=1)  # the picture and its box ask for the same face
def face_of(head: Head, units: Units) -> Face:
    """The face that these action units make of this head."""
    au = {unit: np.array(values) for unit, values in zip(ACTION_UNITS, units, strict=True)}
    mean = {unit: (left + right) / 2 for unit, (left, right) in zip(ACTION_UNITS, units, strict=True)}
    one = [{unit: values[side] for unit, values in zip(ACTION_UNITS, units, strict=True)} for side in (0, 1)]
    drop = 0.09 * mean[26] + 0.17 * mean[27]
    eyes = tuple(_eye(head, one[side]) for side in (0, 1))
    brows = tuple(_brow(head, one[side]) for side in (0, 1))
    mouth = _mouth(head, au, mean)
    return Face(
        units=au,
        jaw_drop=drop,
        eyes=(eyes[0], eyes[1]),
        brows=(brows[0], brows[1]),
        mouth=mouth,
        skin=_skin(head, au, mean, drop, mouth),
        ears=_ears(head),
    )


def _eye(head: Head, au: dict[int, float]) -> Eye:
    size = head.eye_size
    upper = 0.092 + 0.065 * au[5] - 0.03 * au[7] - 0.085 * au[43] - 0.015 * au[6] - 0.015 * au[9]
    lower = 0.066 + 0.018 * au[5] - 0.04 * au[7] - 0.05 * au[6] - 0.02 * au[43] - 0.025 * au[9]
    slant = head.eye_slant + 0.025 * (au[4] - au[1]) - 0.02 * au[15] * au[1]
    return Eye(0.27 * head.eye_gap, 0.03, 0.165 * size, size * max(upper, 0.016), size * max(lower, 0.008), slant)


def _brow(head: Head, au: dict[int, float]) -> Brow:
    y = 0.245 * head.brow_height
    low = 0.02 * au[9] + 0.01 * au[7]
    inner = (0.105 - 0.03 * au[4] + 0.01 * au[2], y + 0.155 * au[1] - 0.13 * au[4] + 0.01 * au[2] - low)
    grief = au[1] * (0.03 * au[4] + 0.02 * au[15])
    outer = (0.45, y - 0.025 + 0.1 * au[2] - grief + 0.02 * au[4] * (1 - au[1]))
    arch = 0.035 + 0.045 * au[2] + 0.01 * au[1] - 0.035 * au[4]
    return Brow(inner, outer, arch, 0.058 * head.brow_thickness)


def _mouth(head: Head, au: dict[int, np.ndarray], mean: dict[int, float]) -> Mouth:
    wide = 1 + 0.22 * au[12] + 0.26 * au[20] + 0.05 * au[14] - 0.14 * au[23] - 0.06 * au[24] - 0.1 * au[10]
    half = 0.26 * head.mouth_width * (wide - 0.2 * mean[27] - 0.06 * au[17])
    corner = 0.13 * au[12] + 0.07 * au[14] - 0.16 * au[15] - 0.035 * au[20]
    smile = mean[12] * mean[25]
    thin = 1 - 0.6 * mean[23] - 0.25 * mean[24] - 0.3 * mean[12] - 0.35 * mean[20]
    y = -0.47 * head.length - 0.02 * mean[12] + 0.055 * mean[15] + 0.025 * mean[17] + 0.02 * mean[9]
    return Mouth(
        y=y,
        half=(float(half[0]), float(half[1])),
        corner=(float(corner[0]), float(corner[1])),
        rise=0.018 * mean[25] + 0.025 * mean[27] + 0.085 * mean[10] + 0.018 * mean[20],
        fall=mean[25] * (0.03 + 0.02 * mean[20] + 0.03 * mean[16]) + 0.09 * smile + 0.08 * mean[26] + 0.17 * mean[27],
        square=float(np.clip(mean[20] + 0.5 * mean[10] + 0.1 * mean[12], 0, 1)),
        upper_lip=0.05 * head.lips * thin,
        lower_lip=0.06 * head.lips * thin + 0.012 * mean[17] + 0.015 * mean[16],
        upper_teeth=0.025 + 0.05 * smile + 0.04 * mean[20] + 0.045 * mean[10],
        lower_teeth=0.055 * mean[20] + 0.02 * mean[16],
    )


def _skin(head: Head, au: dict[int, np.ndarray], mean: dict[int, float], drop: float, mouth: Mouth) -> list[Solid]:
    length, nose, wing = head.length, head.nose_depth, head.nose_width
    wrinkle = 0.025 * mean[9] + 0.01 * mean[10]
    tip_y = -0.235 * head.nose_length + wrinkle
    tip_z = 0.655 + 0.135 * nose
    solids = [
        ellipsoid((0, 0.27, -0.14), (0.70 * head.width, 0.70 * head.crown, 0.80), melt=0.02),
        ellipsoid(
            (0, -0.12 * length - 0.3 * drop, 0.06),
            (0.605 * head.width, 0.70 * length + 0.3 * drop, 0.60),
            melt=0.1,
        ),
        ellipsoid((0, -0.52 * length - 0.7 * drop, 0.10), (0.45 * head.jaw, 0.30, 0.44), melt=0.12),
        ellipsoid((0, -0.685 * length - drop, 0.33), (0.22 * head.chin, 0.17, 0.20 + 0.02 * mean[17]), melt=0.2),
        ellipsoid((0, mouth.y - 0.35 * drop, 0.40), (0.31, 0.20 + 0.4 * drop, 0.255), melt=0.1),
        ellipsoid((0, 0.20, 0.42), (0.46, 0.11, 0.215), melt=0.08),
    ]
    for side, raised, pulled in zip(SIDES, au[6], au[12], strict=True):
        puff = head.cheeks * (1 + 0.15 * float(pulled))
        place = (side * 0.315 * head.width, -0.235 + 0.045 * float(raised), 0.38)
        solids.append(ellipsoid(place, (0.20 * puff, 0.18, 0.185 * puff), melt=0.16))
        solids.append(ellipsoid((side * 0.265 * head.eye_gap, 0.03, 0.49), (0.16, 0.13, 0.135), melt=0.04))
    solids += [
        spindle(np.array([0, 0.22, 0.56]), np.array([0, tip_y - 0.02, tip_z - 0.02]), 0.085 * wing**0.5, melt=0.07),
        ellipsoid((0, tip_y, tip_z - 0.01), (0.105 * wing, 0.088, 0.115), melt=0.06),
    ]
    for side in SIDES:
        solids.append(ellipsoid((side * 0.095 * wing, tip_y - 0.02, tip_z - 0.09), (0.066, 0.062, 0.09), melt=0.05))
    up, down = mouth.y + mouth.rise + 0.02, mouth.y - mouth.fall - 0.03
    solids.append(ellipsoid((0, up, 0.585), (0.75 * sum(mouth.half) / 2, 0.05, 0.10), melt=0.04))
    solids.append(ellipsoid((0, down, 0.575), (0.65 * sum(mouth.half) / 2, 0.055, 0.105), melt=0.04))
    return solids


def _ears(head: Head) -> list[Solid]:
    size = head.ears
    return [
        ellipsoid(
            (side * 0.655 * head.width, -0.02, -0.10),
            (0.055, 0.19 * size, 0.125 * size),
            melt=0.02,
            turn=-side * 28,
            tilt=-10,
        )
        for side in SIDES
    ]


def on_skin(face: Face, places: list[Pair]) -> np.ndarray:
    """The head-frame points [points, 3] of the skin at places (u, y), seams between solids taken as sharp."""
    u, y = np.array(places).T
    return reach(face.skin, y, u / SPREAD)


LANDMARKS = (
    "nose tip", "nose bridge", "chin", "forehead",
    "left eye", "left eye inner", "left eye outer", "left brow inner", "left brow outer",
    "left mouth corner", "left ear",
    "right eye", "right eye inner", "right eye outer", "right brow inner", "right brow outer",
    "right mouth corner", "right ear",
    "upper lip", "lower lip",
)  # fmt: skip
"""Names of the landmarks, in order; left and right are the picture's, of a frontal face."""


def model_points(face: Face) -> np.ndarray:
    """The landmarks [20, 3] in the head frame, head units."""
    tip, chin = face.skin[11], face.skin[3]
    mouth = face.mouth
    places = [(0.0, 0.06), (0.0, 0.45)]
    for side, eye, brow, half, corner in zip(SIDES, face.eyes, face.brows, mouth.half, mouth.corner, strict=True):
        places += [
            (side * eye.u, eye.y),
            (side * (eye.u - eye.half), eye.y - eye.slant),
            (side * (eye.u + eye.half), eye.y + eye.slant),
            (side * brow.inner[0], brow.inner[1]),
            (side * brow.outer[0], brow.outer[1]),
            (side * half, mouth.y + corner),
        ]
    places += [(0.0, mouth.y + mouth.rise), (0.0, mouth.y - mouth.fall)]
    skin = on_skin(face, places)
    left, right = face.ears
    return np.stack(
        [
            tip.centre + tip.axes[:, 2],
            skin[0],
            chin.centre + chin.axes[:, 2] * 0.8 - [0, 0.1, 0],
            skin[1],
            *skin[2:8],
            left.centre,
            *skin[8:14],
            right.centre,
            *skin[14:],
        ]
    )
