"""How a head is seen: pose, expression, light, crop, background and camera, drawn from a seed.

Poses are drawn around the five directions, with little mass at the borders where a direction's name changes:
|yaw| = 25° and |pitch| = 20°. In degrees:

=========  ==================================================  ==================================
forward    yaw U(−17, 17)                                      pitch U(−13, 13)
left       yaw U(33, 62); one in ten U(62, 88)                 pitch U(−12, 12)
right      as left, yaw negated                                pitch U(−12, 12)
up         yaw U(−15, 15)                                      pitch U(28, 42); one in ten U(42, 60)
down       yaw U(−15, 15)                                      pitch U(−42, −28); one in ten U(−60, −42)
=========  ==================================================  ==================================

and one shot in twelve leaves the clear pose for the continuum between it and the forward one: its angle is
scaled by U(0, 1), so about 1 % of all shots lie within 3° of a border. Both angles are never large at once.
Roll is N(0, 9) cut at ±40, half as wide for left and right.

Expressions are sets of facial action units after P. Ekman, W. Friesen and J. Hager, "Facial Action Coding
System" (2002), with the emotions' units after EMFACS as printed in P. Lucey et al., "The Extended Cohn-Kanade
Dataset (CK+)", CVPRW 2010, table 1. Here they are exaggerated, as a cartoonist would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hpe.sources.synthetic.people import Colour

Direction = Literal["forward", "left", "right", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "left", "right", "up", "down")
EMOTIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")  # AffectNet's ids
CELLS = len(DIRECTIONS) * len(EMOTIONS)

YAW_BORDER, PITCH_BORDER = 25.0, 20.0  # degrees; where the poses are thin

ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 20, 23, 24, 25, 26, 27, 43)
"""1 inner brow raiser, 2 outer brow raiser, 4 brow lowerer, 5 upper lid raiser, 6 cheek raiser, 7 lid
tightener, 9 nose wrinkler, 10 upper lip raiser, 12 lip corner puller, 14 dimpler, 15 lip corner depressor,
16 lower lip depressor, 17 chin raiser, 20 lip stretcher, 23 lip tightener, 24 lip pressor, 25 lips part,
26 jaw drop, 27 mouth stretch, 43 eyes closing."""

EMOTION_UNITS: tuple[dict[int, float], ...] = (
    {},
    {6: 1.0, 12: 1.0, 25: 0.9, 26: 0.25},
    {1: 1.0, 4: 0.35, 15: 1.0, 17: 0.5, 43: 0.4},
    {1: 0.9, 2: 1.0, 5: 0.9, 25: 1.0, 26: 0.6, 27: 0.8},
    {1: 1.0, 2: 0.35, 4: 0.45, 5: 1.0, 20: 1.0, 25: 0.8, 26: 0.25},
    {4: 0.6, 7: 0.8, 9: 1.0, 10: 1.0, 15: 0.5, 16: 0.5, 17: 0.4, 25: 0.6},
    {4: 1.0, 5: 0.35, 7: 0.55, 17: 0.3, 23: 1.0, 24: 0.8},
    {},  # contempt is one-sided: CONTEMPT_SIDE and CONTEMPT_OTHER
)
CONTEMPT_SIDE: dict[int, float] = {2: 0.9, 1: 0.3, 12: 0.9, 14: 1.0}
CONTEMPT_OTHER: dict[int, float] = {4: 0.35, 7: 0.35, 43: 0.15}

# Where the emotions lie in valence and arousal at full intensity: J. Russell's circumplex (1980), rounded.
VALENCE_AROUSAL: tuple[tuple[float, float], ...] = (
    (0.0, 0.0), (0.8, 0.4), (-0.7, -0.4), (0.2, 0.8), (-0.5, 0.8), (-0.7, 0.4), (-0.6, 0.75), (-0.5, 0.3),
)  # fmt: skip

Units = tuple[tuple[float, float], ...]  # per action unit: image left (the subject's right), image right


@dataclass(frozen=True)
class Shot:
    """One picture of somebody. Angles in degrees; places and widths in parts of the picture's side."""

    yaw: float
    pitch: float
    roll: float
    emotion: int
    intensity: float
    units: Units
    gaze: tuple[float, float]
    light: tuple[float, float, float]
    light_colour: Colour
    ambient: float
    centre: tuple[float, float]
    scale: float
    background: tuple[Colour, Colour]
    background_angle: float
    blobs: float
    blur: float
    noise: float
    grain: int
    near: float = 0.0  # the inverse of the camera's distance, in head units
    tilt: float = 0.0  # what the renderer's pitch is above the labelled one: a data set's zero is its own

    @property
    def turn(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll in the renderer's frame, where a head at 0° looks along the camera's axis."""
        return self.yaw, self.pitch + self.tilt, self.roll

    @property
    def valence(self) -> float:
        return VALENCE_AROUSAL[self.emotion][0] * self.intensity

    @property
    def arousal(self) -> float:
        return VALENCE_AROUSAL[self.emotion][1] * self.intensity


def express(emotion: int, intensity: float, *, side: int = 1, jitter: np.ndarray | None = None) -> Units:
    """The action units of an emotion, in 0..1 for image left and right.

    `side` (−1 image left, 1 image right) is the side that contempt lifts; `jitter` [units, 2] is added.
    """
    values = np.zeros((len(ACTION_UNITS), 2))
    for row, unit in enumerate(ACTION_UNITS):
        values[row] = EMOTION_UNITS[emotion].get(unit, 0.0)
        if EMOTIONS[emotion] == "contempt":
            values[row, int(side > 0)] = CONTEMPT_SIDE.get(unit, 0.0)
            values[row, int(side < 0)] = CONTEMPT_OTHER.get(unit, 0.0)
    values *= intensity
    if jitter is not None:
        values += jitter
    left, right = np.clip(values, 0, 1).T.tolist()
    return tuple(zip(left, right, strict=True))


def pose_towards(direction: Direction, rng: np.random.Generator) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, drawn as the table at the head of this file says."""
    roll = float(np.clip(9 * rng.normal(), -40, 40))
    wide = rng.random() < 0.1
    between = float(rng.uniform()) if rng.random() < 1 / 12 else 1.0
    if direction == "forward":
        return float(rng.uniform(-17, 17)), float(rng.uniform(-13, 13)), roll
    if direction in ("left", "right"):
        yaw = float(rng.uniform(62, 88) if wide else rng.uniform(33, 62)) * between
        return (yaw if direction == "left" else -yaw), float(rng.uniform(-12, 12)), roll / 2
    pitch = float(rng.uniform(42, 60) if wide else rng.uniform(28, 42)) * between
    return float(rng.uniform(-15, 15)), (pitch if direction == "up" else -pitch), roll


def cell(seed: int, index: int) -> tuple[int, Direction]:
    """Emotion and direction of a shot: any 40 shots from a multiple of 40 on hold each pair once."""
    block, place = divmod(index, CELLS)
    order = np.random.default_rng([seed, 2, block]).permutation(CELLS)
    emotion, direction = divmod(int(order[place]), len(DIRECTIONS))
    return emotion, DIRECTIONS[direction]


def shot(seed: int, index: int) -> Shot:
    """The shot with this number. A pure function of both."""
    emotion, direction = cell(seed, index)
    rng = np.random.default_rng([seed, 3, index])
    yaw, pitch, roll = pose_towards(direction, rng)
    intensity = float(rng.uniform(0.7, 1.0)) if emotion else 0.0
    both = np.repeat(rng.normal(0, 0.04, (len(ACTION_UNITS), 1)), 2, axis=1)
    jitter = both + rng.normal(0, 0.02, (len(ACTION_UNITS), 2))
    side = int(rng.choice([-1, 1]))
    if abs(yaw) > YAW_BORDER:
        side = 1 if yaw > 0 else -1  # a smirk on the hidden cheek would be no expression at all
    azimuth, height = np.radians(rng.uniform(-65, 65)), np.radians(rng.uniform(-10, 60))
    light = (np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height))
    warm = float(rng.uniform(-0.07, 0.07))
    first, second = rng.uniform(0.1, 0.9, (2, 3)) * 0.6 + rng.uniform(0.05, 0.35, (2, 1))
    return Shot(
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        emotion=emotion,
        intensity=intensity,
        units=express(emotion, intensity, side=side, jitter=jitter),
        gaze=(float(rng.normal(0, 0.12)), float(rng.normal(0, 0.08))),
        light=(float(light[0]), float(light[1]), float(light[2])),
        light_colour=(1 + warm, 1.0, 1 - warm),
        ambient=float(rng.uniform(0.55, 0.75)),
        centre=(float(rng.uniform(-0.035, 0.035)), float(rng.uniform(-0.035, 0.035))),
        scale=float(rng.uniform(0.40, 0.46)),
        background=((first[0], first[1], first[2]), (second[0], second[1], second[2])),
        background_angle=float(rng.uniform(0, 360)),
        blobs=float(rng.uniform(0, 0.16)),
        blur=float(rng.uniform(0, 0.006)),
        noise=float(rng.uniform(0.002, 0.02)),
        grain=int(rng.integers(2**31)),
    )


def mirrored(seen: Shot) -> Shot:
    """The shot of the mirrored scene: yaw and roll change sign, left and right change places.

    Blobs and noise have no mirror image, so they are left out: the law holds for a shot without them.
    """
    return replace(
        seen,
        yaw=-seen.yaw,
        roll=-seen.roll,
        units=tuple((right, left) for left, right in seen.units),
        gaze=(-seen.gaze[0], seen.gaze[1]),
        light=(-seen.light[0], seen.light[1], seen.light[2]),
        centre=(-seen.centre[0], seen.centre[1]),
        background_angle=180.0 - seen.background_angle,
    )
