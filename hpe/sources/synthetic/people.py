"""Who is seen: the measures and colours of one invented person, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0..1
Split = Literal["train", "val", "test"]
HairStyle = Literal["bald", "cropped", "short", "fringe", "bob", "long", "bun", "curly"]

SKIN: tuple[Colour, ...] = (
    (0.98, 0.85, 0.76), (0.95, 0.78, 0.66), (0.90, 0.70, 0.55), (0.82, 0.62, 0.46),
    (0.72, 0.51, 0.37), (0.61, 0.42, 0.30), (0.50, 0.34, 0.25),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (0.10, 0.08, 0.08), (0.17, 0.12, 0.10), (0.30, 0.19, 0.12), (0.42, 0.27, 0.16), (0.62, 0.30, 0.14),
    (0.78, 0.60, 0.34), (0.88, 0.76, 0.52), (0.62, 0.62, 0.63),
)  # fmt: skip
IRIS: tuple[Colour, ...] = (
    (0.25, 0.14, 0.08), (0.38, 0.22, 0.10), (0.30, 0.45, 0.25), (0.24, 0.44, 0.65), (0.42, 0.52, 0.56),
)  # fmt: skip
CLOTH: tuple[Colour, ...] = (
    (0.20, 0.30, 0.50), (0.60, 0.20, 0.22), (0.25, 0.42, 0.32), (0.85, 0.84, 0.80), (0.18, 0.18, 0.20),
    (0.80, 0.60, 0.25), (0.45, 0.35, 0.55),
)  # fmt: skip

# 70 / 15 / 15 per hundred people, and every split is met early, so that seven people already fill all three.
SPLIT_PATTERN: tuple[Split, ...] = tuple(
    {"t": "train", "v": "val", "e": "test"}[letter]  # type: ignore[misc]
    for letter in "tttvttetttvttetttvte"
)


@dataclass(frozen=True)
class Head:
    """One person. Lengths in head units (half of a head's height); factors are 1 for the mean person."""

    width: float
    length: float
    jaw: float
    chin: float
    cheeks: float
    crown: float
    nose_length: float
    nose_width: float
    nose_depth: float
    ears: float
    eye_size: float
    eye_gap: float
    eye_slant: float
    brow_thickness: float
    brow_height: float
    mouth_width: float
    lips: float
    skin: Colour
    lip: Colour
    iris: Colour
    hair: Colour
    brow: Colour
    cloth: Colour
    hair_style: HairStyle
    hairline: float
    parting: float
    glasses: bool
    beard: float
    wide: float = 1.0  # stretches all of the head along its x axis


@lru_cache(maxsize=4096)  # a data set draws its people again and again
def person(seed: int, person_id: int) -> Head:
    """The person with this number in the population of this seed. A pure function of both."""
    rng = np.random.default_rng([seed, 1, person_id])

    def about(mean: float, spread: float) -> float:
        return float(mean * (1 + spread * np.clip(rng.normal(), -1.8, 1.8)))

    tone = (len(SKIN) - 1) * rng.uniform() ** 1.4
    low = int(tone)
    skin = np.array(SKIN[low]) + (tone - low) * (np.array(SKIN[low + 1]) - np.array(SKIN[low]))
    skin = np.clip(skin * rng.uniform(0.96, 1.04, 3), 0, 1)
    lip = skin * 0.55 + 0.45 * np.array([0.72, 0.26, 0.27]) * (0.55 + 0.45 * skin[0])
    # dark skin with pale blond hair is left out; the rest is free
    hair = np.array(HAIR[rng.integers(len(HAIR) if tone < 3 else 4)]) * rng.uniform(0.9, 1.1)
    brow = np.minimum(hair * 0.7, skin * 0.55)
    bearded = rng.random() < 0.22
    styles = get_args(HairStyle)
    chances = [0.07, 0.14, 0.23, 0.15, 0.12, 0.13, 0.06, 0.10]
    if bearded:
        chances = [0.16, 0.26, 0.36, 0.07, 0.0, 0.05, 0.0, 0.10]
    style: HairStyle = styles[int(rng.choice(len(styles), p=chances))]

    def colour(rgb: np.ndarray) -> Colour:
        red, green, blue = np.clip(rgb, 0, 1).tolist()
        return red, green, blue

    return Head(
        width=about(1, 0.05),
        length=about(1, 0.04),
        jaw=about(1, 0.09),
        chin=about(1, 0.08),
        cheeks=about(1, 0.12),
        crown=about(1, 0.04),
        nose_length=about(1, 0.08),
        nose_width=about(1, 0.14),
        nose_depth=about(1, 0.12),
        ears=about(1, 0.12),
        eye_size=about(1, 0.07),
        eye_gap=about(1, 0.05),
        eye_slant=0.012 * float(np.clip(rng.normal(), -2, 2)),
        brow_thickness=about(1, 0.18),
        brow_height=about(1, 0.05),
        mouth_width=about(1, 0.07),
        lips=about(1, 0.2),
        skin=colour(skin),
        lip=colour(lip),
        iris=colour(np.array(IRIS[rng.integers(len(IRIS) if tone < 3.5 else 2)])),
        hair=colour(hair),
        brow=colour(brow),
        cloth=colour(np.array(CLOTH[rng.integers(len(CLOTH))]) * rng.uniform(0.8, 1.1)),
        hair_style=style,
        hairline=float(rng.uniform(-0.05, 0.05)),
        parting=float(rng.uniform(-1, 1)),
        glasses=bool(rng.random() < 0.18),
        beard=float(rng.uniform(0.35, 0.9)) if bearded else 0.0,
    )


def split_of(person_id: int) -> Split:
    """The split a person belongs to, whole: 70 % train, 15 % val, 15 % test, the same under every seed."""
    return SPLIT_PATTERN[person_id % len(SPLIT_PATTERN)]
