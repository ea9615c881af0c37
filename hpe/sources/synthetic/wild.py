"""Heads as photographers find them: ``look=wild`` of the source, for networks that are to read photos.

It draws from wider distributions than :mod:`shots` and :mod:`people`, which show clear poses and expressions before
plain backgrounds. A network that learns from a renderer takes whatever all its pictures share for a law of the world:
here everything but the head's pose changes as widely as possible (domain randomisation; Tobin et al., 2017), realistic
or not: faces, hair, hats, hands, light, backgrounds, cameras. Pictures are framed by the face's landmarks, as
``square-1.4@landmarks`` frames AFLW2000's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from hpe.sources.synthetic import anatomy
from hpe.sources.synthetic.people import Colour, Head, person
from hpe.sources.synthetic.shots import ACTION_UNITS, EMOTIONS, Shot, express
from hpe.sources.synthetic.solids import Cut, Solid, ellipsoid, nearer, rotation, spindle

Picture = Float[np.ndarray, "size size 3"]
Look = Literal["studio", "wild"]
CHANCES: Final = (0.3, 0.28, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07)
"""Of the emotions: people who are photographed are calm, or smile."""
TILT: Final = 7.0
"""Degrees: a head that looks along the camera's axis has a pitch of about -7° in 300W-LP, whose zero these labels
share. Measured as the offset of a network of rendered heads on 60 images of 300W-LP (median 6.3°, mean 7.5°)."""
CROP: Final = 1.4
"""Side of the picture through the longer side of the box around the landmarks."""


@dataclass(frozen=True)
class Part:
    """Something in the picture besides the head of :mod:`anatomy`: hair, a hat, a hand.

    Attributes:
        solids: what it is made of.
        cut: as of ``Screen.add``.
        colour: of all of it.
        turns: it moves with the head; otherwise it stands in the view frame.
    """

    solids: tuple[Solid, ...]
    cut: Cut | None
    colour: Colour
    turns: bool


@dataclass(frozen=True)
class Scene:
    """What surrounds a head and what the camera makes of it.

    Attributes:
        parts: other things to render.
        body_yaw: of the shoulders, degrees.
        shoulders: radii of the ellipsoid that they are.
        fill: direction of a second light, and its colour.
        fill_colour: see ``fill``.
        wrap: how far the main light reaches around an edge, 0..1.
        shadow: strength of the main light beside the ambient one.
        seed: of textures, background and camera.
        shades: how dark the glasses are, 0..1; below 0 there are none.
    """

    parts: tuple[Part, ...]
    body_yaw: float
    shoulders: tuple[float, float, float]
    fill: tuple[float, float, float]
    fill_colour: Colour
    wrap: float
    shadow: float
    seed: tuple[int, int]
    shades: float


def wild_person(seed: int, person_id: int) -> Head:
    """A person of a wider population than :func:`people.person` has. A pure function of both."""
    return _person(seed, person_id)


@lru_cache(maxsize=1024)
def _person(seed: int, person_id: int) -> Head:
    rng = np.random.default_rng([seed, 11, person_id])
    head = person(seed, person_id)

    def wider(value: float, spread: float) -> float:
        return float(value * np.exp(spread * np.clip(rng.normal(), -2, 2)))

    skin = np.array(head.skin) * rng.uniform(0.75, 1.1) * rng.uniform(0.93, 1.07, 3)
    lip = np.array(head.lip)
    if rng.random() < 0.35:  # make-up
        lip = np.array([rng.uniform(0.4, 0.95), rng.uniform(0.05, 0.4), rng.uniform(0.1, 0.45)])
    else:
        lip = skin + (lip - skin) * rng.uniform(0.3, 1.1)
    hair = np.array(head.hair) * rng.uniform(0.7, 1.4) * rng.uniform(0.85, 1.15, 3)
    if rng.random() < 0.05:
        hair = rng.uniform(0, 1, 3)
    return replace(
        head,
        width=wider(head.width, 0.05), length=wider(head.length, 0.05), jaw=wider(head.jaw, 0.12),
        chin=wider(head.chin, 0.12), cheeks=wider(head.cheeks, 0.12), crown=wider(head.crown, 0.05),
        nose_length=wider(head.nose_length, 0.1), nose_width=wider(head.nose_width, 0.15),
        nose_depth=wider(head.nose_depth, 0.2), ears=wider(head.ears, 0.15), eye_size=wider(head.eye_size * 0.8, 0.15),
        eye_gap=wider(head.eye_gap, 0.04), brow_thickness=wider(head.brow_thickness * 0.8, 0.35),
        brow_height=wider(head.brow_height, 0.06), mouth_width=wider(head.mouth_width, 0.1),
        lips=wider(head.lips, 0.25),
        skin=_colour(skin), lip=_colour(lip), hair=_colour(hair),
        brow=_colour(np.minimum(hair * rng.uniform(0.5, 1.0), skin * rng.uniform(0.4, 0.85))),
        cloth=_colour(rng.uniform(0, 1, 3) * rng.uniform(0.3, 1)),
        beard=head.beard * float(rng.uniform(0.2, 1.1)),
        glasses=False, wide=wider(0.85, 0.045),
    )  # fmt: skip


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = np.clip(rgb, 0, 1).tolist()
    return red, green, blue


def _pose(rng: np.random.Generator) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees: half near the frontal pose, as in photos, half anywhere within reach."""
    if rng.random() < 0.5:
        yaw, pitch, roll = 28 * rng.normal(), 14 * rng.normal(), 10 * rng.normal()
    else:
        yaw, pitch, roll = rng.uniform(-92, 92), 22 * rng.normal(), 16 * rng.normal()
    if rng.random() < 0.12:
        pitch = rng.uniform(-70, 60)
    return float(np.clip(yaw, -95, 95)), float(np.clip(pitch, -75, 65)), float(np.clip(roll, -60, 60))


def wild_shot(seed: int, index: int, head: Head) -> Shot:
    """The shot with this number of a person, framed by the face's landmarks. A pure function of its arguments."""
    rng = np.random.default_rng([seed, 12, index])
    yaw, pitch, roll = _pose(rng)
    emotion = int(rng.choice(len(EMOTIONS), p=CHANCES))
    intensity = float(rng.uniform(0.2, 0.85)) if emotion else 0.0
    both = np.repeat(rng.normal(0, 0.07, (len(ACTION_UNITS), 1)), 2, axis=1)
    jitter = both + rng.normal(0, 0.04, (len(ACTION_UNITS), 2))
    if rng.random() < 0.25:  # lids down, jaw open: whatever the emotion
        jitter[ACTION_UNITS.index(43)] += rng.uniform(0, 0.9)
    if rng.random() < 0.15:
        jitter[ACTION_UNITS.index(25)] += rng.uniform(0, 0.9)
        jitter[ACTION_UNITS.index(26)] += rng.uniform(0, 0.9)
    side = int(rng.choice([-1, 1]))
    if abs(yaw) > 25:
        side = 1 if yaw > 0 else -1
    units = express(emotion, intensity, side=side, jitter=jitter)
    azimuth, height = np.radians(rng.uniform(-110, 110)), np.radians(rng.uniform(-35, 75))
    warm = rng.normal(0, 0.08)
    near = float(rng.uniform(0, 0.2)) if rng.random() < 0.7 else 0.0  # from a passport photo to a selfie
    half, centre = _frame(head, units, (yaw, pitch, roll), near)
    scale = 0.5 / (CROP * half)
    return Shot(
        yaw=yaw,
        pitch=pitch - TILT,
        roll=roll,
        emotion=emotion,
        intensity=intensity,
        units=units,
        gaze=(float(rng.normal(0, 0.25)), float(rng.normal(0, 0.12))),
        light=(
            float(np.sin(azimuth) * np.cos(height)),
            float(np.sin(height)),
            float(np.cos(azimuth) * np.cos(height)),
        ),
        light_colour=(float(1 + warm), 1.0, float(1 - warm)),
        ambient=float(rng.uniform(0.15, 0.95)),
        centre=(float(-scale * centre[0]), float(-scale * centre[1])),
        scale=scale,
        background=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        background_angle=0.0,
        blobs=0.0,
        blur=0.0,
        noise=0.0,
        grain=int(rng.integers(2**31)),
        near=near,
        tilt=TILT,
    )


def outline(head: Head, seen: Shot) -> Float[np.ndarray, "points 3"]:
    """The points of the head frame that span the box around a face's landmarks as data sets mark them: from the brows
    to the chin, and from ear to ear."""
    return _outline(head, seen.units)


def _outline(head: Head, units: tuple[tuple[float, float], ...]) -> Float[np.ndarray, "points 3"]:
    face = anatomy.face_of(head, units)
    points = anatomy.model_points(face)
    kept = [row for row, name in enumerate(anatomy.LANDMARKS) if name != "forehead"]
    ears = [row for row, name in enumerate(anatomy.LANDMARKS) if name.endswith("ear")]
    points[ears] *= [0.95, 1, 1]  # the border of the face, before the ear
    high = points[[row for row, name in enumerate(anatomy.LANDMARKS) if "brow" in name]]
    high[:, 1] += max(brow.arch for brow in face.brows)
    return np.concatenate([points[kept], high]) * [head.wide, 1, 1]


def _frame(
    head: Head, units: tuple[tuple[float, float], ...], pose: tuple[float, float, float], near: float
) -> tuple[float, np.ndarray]:
    """Half of the longer side of the box around the landmarks, and its centre [2] (x right, y down), in head units."""
    turned = nearer(_outline(head, units) @ rotation(*pose), near) @ np.diag([1.0, -1.0, 1.0])
    low, high = turned[:, :2].min(axis=0), turned[:, :2].max(axis=0)
    return float((high - low).max() / 2), (low + high) / 2


def scene(seed: int, index: int, head: Head, seen: Shot) -> Scene:
    """What surrounds this shot. A pure function of its arguments."""
    rng = np.random.default_rng([seed, 13, index])
    parts: list[Part] = []
    parts += _more_hair(rng, head)
    if rng.random() < 0.18:
        parts += _hat(rng, head)
    if rng.random() < 0.35:
        parts += _hands(rng, head, seen)
    azimuth, height = np.radians(rng.uniform(-180, 180)), np.radians(rng.uniform(-60, 60))
    strength = rng.uniform(0, 0.6) * (rng.random() < 0.6)
    shades = -1.0
    if rng.random() < 0.25:
        shades = float(rng.uniform(0, 1) if rng.random() < 0.45 else rng.uniform(0, 0.1))
    return Scene(
        parts=tuple(parts),
        body_yaw=float(0.4 * seen.yaw + 25 * rng.normal()),
        shoulders=(float(rng.uniform(0.8, 1.5)), float(rng.uniform(0.4, 0.7)), float(rng.uniform(0.4, 0.7))),
        fill=(
            float(np.sin(azimuth) * np.cos(height)),
            float(np.sin(height)),
            float(np.cos(azimuth) * np.cos(height)),
        ),
        fill_colour=_colour(strength * (1 + 0.3 * rng.normal(size=3))),
        wrap=float(rng.uniform(0, 0.5)),
        shadow=float(rng.uniform(0.6, 1.5)),
        seed=(seed, index),
        shades=shades,
    )


def _more_hair(rng: np.random.Generator, head: Head) -> list[Part]:
    """Volumes of hair around the head: beside the face, behind it, above it, and strands over the forehead."""
    if head.hair_style in ("bald", "cropped") or rng.random() < 0.25:
        return []
    solids = []
    for _ in range(rng.integers(1, 6)):
        around = np.radians(rng.uniform(55, 180)) * rng.choice([-1, 1])
        low = rng.uniform(-0.9, 0.9) if rng.random() < 0.6 else rng.uniform(0.3, 0.95)
        far = rng.uniform(0.6, 0.8)
        place = (far * np.sin(around) * head.width, low, far * np.cos(around) - 0.15)
        radii = (rng.uniform(0.1, 0.35), rng.uniform(0.2, 0.75), rng.uniform(0.1, 0.4))
        solids.append(ellipsoid(place, radii, turn=float(rng.uniform(-90, 90)), tilt=float(rng.uniform(-25, 25))))
    if rng.random() < 0.4:  # over the forehead
        x = rng.uniform(-0.4, 0.4)
        for _ in range(rng.integers(1, 5)):
            top = np.array([x + rng.normal(0, 0.1), 0.75, 0.45])
            bottom = np.array([x + rng.normal(0, 0.25), rng.uniform(0.0, 0.45), rng.uniform(0.52, 0.66)])
            solids.append(spindle(top, bottom, float(rng.uniform(0.03, 0.15)), melt=0.05))
    return [Part(tuple(solids), None, _colour(np.array(head.hair) * rng.uniform(0.8, 1.2)), turns=True)]


def _hat(rng: np.random.Generator, head: Head) -> list[Part]:
    colour = _colour(rng.uniform(0, 1, 3))
    more = float(rng.uniform(0.05, 0.2))
    high = float(rng.uniform(0.32, 0.62))
    if rng.random() < 0.3:  # a scarf around the face
        wide, tall = float(rng.uniform(0.42, 0.6)), float(rng.uniform(0.6, 0.8))

        def around_face(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            return ((x / wide) ** 2 + ((y + 0.05) / tall) ** 2 > 1) | (z < 0.05)

        scarf = ellipsoid((0, -0.05, -0.08), (0.72 * head.width + more, 1.0 * head.length + more, 0.82))
        return [Part((scarf,), around_face, colour, turns=True)]
    slope = float(rng.uniform(-0.3, 0.3))

    def above(_x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return y > high + slope * z

    crown = ellipsoid(
        (0, 0.27, -0.14),
        (0.70 * head.width + more, 0.70 * head.crown + more + rng.uniform(0, 0.2), 0.80 + more),
    )
    parts = [Part((crown,), above, colour, turns=True)]
    kind = rng.random()
    if kind < 0.4:  # the peak of a cap
        peak = ellipsoid((0, high + 0.02, 0.75), (0.5, 0.05, rng.uniform(0.3, 0.55)), tilt=float(rng.uniform(-20, 15)))
        parts.append(Part((peak,), None, _colour(np.array(colour) * rng.uniform(0.5, 1.2)), turns=True))
    elif kind < 0.7:  # a brim
        wide = float(rng.uniform(1.0, 1.5))
        brim = ellipsoid((0, high + 0.03, -0.1), (wide, 0.05, wide), tilt=float(rng.uniform(-15, 15)))
        parts.append(Part((brim,), None, colour, turns=True))
    return parts


def _hands(rng: np.random.Generator, head: Head, seen: Shot) -> list[Part]:
    """Hands, or things of any colour, before the lower face or beside it."""
    points = anatomy.model_points(anatomy.face_of(head, seen.units)) * [head.wide, 1, 1]
    points = points @ rotation(*seen.turn)
    names = ("chin", "left mouth corner", "right mouth corner", "left ear", "right ear", "nose tip", "forehead")
    chances = np.array([4, 3, 3, 2, 2, 1, 1]) / 16
    parts = []
    for _ in range(rng.integers(1, 3)):
        where = points[anatomy.LANDMARKS.index(str(rng.choice(names, p=chances)))]
        place = where + np.array([rng.normal(0, 0.25), rng.normal(0, 0.2) - 0.15, 0])
        place[2] = max(place[2], 0.3) + rng.uniform(0.1, 0.4)
        colour = _colour(np.array(head.skin) * rng.uniform(0.85, 1.1))
        if rng.random() < 0.35:
            colour = _colour(rng.uniform(0, 1, 3))
        lean = rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(lean), np.sin(lean), 0.0])
        across = np.array([-along[1], along[0], 0.0])
        size = rng.uniform(0.5, 1.1)
        solids = []
        fingers = int(rng.integers(1, 6))
        for finger in range(fingers):
            off = (finger - (fingers - 1) / 2) * 0.13 * size * across
            tip = place + off + size * rng.uniform(0.25, 0.5) * along + 0.06 * rng.normal(size=3) * across
            solids.append(spindle(tip, place + off - 0.3 * size * along, 0.075 * size, melt=0.03))
        palm = place - 0.4 * size * along
        solids.append(spindle(palm + 0.3 * size * along, palm - 1.2 * size * along, 0.28 * size, melt=0.05))
        parts.append(Part(tuple(solids), None, colour, turns=False))
    return parts


def textured(place: Float[np.ndarray, "3 n"], rng: np.random.Generator, strength: float) -> Float[np.ndarray, "n 1"]:
    """Factors about 1 on a material's colour: waves of random direction and length through the head frame."""
    count = 6
    length = np.exp(rng.uniform(np.log(2.0), np.log(30.0), count))
    waves = rng.normal(size=(count, 3)) * length[:, None]
    phase = rng.uniform(0, 2 * np.pi, count)
    total = np.zeros(place.shape[1], np.float32)
    for wave, start in zip(waves.astype(np.float32), phase.astype(np.float32), strict=True):
        total += np.cos(wave @ place + start)
    return np.maximum(1 + np.float32(strength / np.sqrt(count)) * total, 0.1)[:, None]


def background(rng: np.random.Generator, size: int) -> Picture:
    """Anything: a gradient, clouds of several sizes, stripes, shapes with soft or hard edges."""
    first, second = rng.uniform(0, 1, (2, 3))
    if rng.random() < 0.5:  # two shades of much the same
        second = np.clip(first + rng.normal(0, 0.15, 3), 0, 1)
    if rng.random() < 0.4:  # little colour
        first, second = (0.25 * one + 0.75 * one.mean() for one in (first, second))
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.7 * (np.cos(angle) * x + np.sin(angle) * y)
    picture = (first + ramp[..., None] * (second - first)).astype(np.float32)
    for cells in (3, 6, 12, 24):
        if rng.random() < 0.5:
            clouds = rng.normal(size=(cells + 1, cells + 1, 3)) * rng.uniform(0, 0.25)
            clouds = 0.3 * clouds + 0.7 * clouds[..., :1]
            share = _shares(cells, size)
            picture += np.einsum("ri,ijc,kj->rkc", share, clouds.astype(np.float32), share, optimize=True)
    for _ in range(rng.integers(0, 9)):
        turn = rng.uniform(0, np.pi)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        u, v = u - rng.uniform(-0.6, 0.6), v - rng.uniform(-0.6, 0.6)
        wide, tall = rng.uniform(0.02, 0.4, 2)
        kind = rng.random()
        if kind < 0.5:
            inside = np.minimum(wide - np.abs(u), tall - np.abs(v))
        elif kind < 0.8:
            inside = min(wide, tall) * (1 - np.sqrt((u / wide) ** 2 + (v / tall) ** 2))
        else:
            inside = 0.5 * wide * np.cos(u * rng.uniform(10, 60)) + 0 * v
        soft = np.exp(rng.uniform(np.log(0.01), np.log(0.1)))
        cover = np.clip(inside / soft + 0.5, 0, 1)[..., None] * rng.uniform(0.3, 1)
        picture += cover * (rng.uniform(0, 1, 3) - picture)
    if rng.random() < 0.5:  # out of focus
        deep = rng.uniform(0, 0.06) * size
        picture = ndimage.gaussian_filter(picture, (deep, deep, 0))
    return np.clip(picture, 0, 1)


@lru_cache(maxsize=16)
def _shares(cells: int, size: int) -> Float[np.ndarray, "size knots"]:
    """How much of each of ``cells`` + 1 knots a row of pixels shows, in linear interpolation."""
    place = np.linspace(0, cells, size, dtype=np.float32)[:, None]
    return np.maximum(1 - np.abs(place - np.arange(cells + 1, dtype=np.float32)), 0)


def camera(picture: Picture, rng: np.random.Generator) -> Picture:
    """Exposure, tones, colour cast, blur, few pixels, noise, compression, a black border: as photos have them."""
    size = len(picture)
    picture = np.clip(picture, 0, 4)
    if rng.random() < 0.5:
        picture = picture * np.exp(rng.normal(0, 0.3))
    picture = np.clip(picture, 0, 1) ** np.exp(rng.normal(0, 0.25))
    if rng.random() < 0.4:
        picture = picture * np.exp(rng.normal(0, 0.1, 3))
    if rng.random() < 0.5:
        mean = picture.mean()
        picture = mean + (picture - mean) * np.exp(rng.normal(0, 0.3))
    kind = rng.random()
    if kind < 0.12:  # grey, or toned
        grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        picture = grey[..., None] * (np.array([1.0, 1.0, 1.0]) if kind < 0.09 else np.array([1.1, 0.95, 0.75]))
    picture = np.clip(picture, 0, 1)
    if rng.random() < 0.4:
        deep = rng.uniform(0.1, 1.2) * size / 64
        long = deep * (rng.uniform(0, 1) if rng.random() < 0.3 else 1)
        picture = ndimage.gaussian_filter(picture, (long, deep, 0))
    if rng.random() < 0.7:
        noise = rng.standard_normal((size, size, 3)).astype(np.float32)
        if rng.random() < 0.5:
            noise = ndimage.gaussian_filter(noise, (0.6, 0.6, 0)) * 1.8
        picture = picture + noise * rng.uniform(0, 0.05) * rng.uniform(0, 1)
    if rng.random() < 0.06:  # the photo ends here
        edge = int(size * rng.uniform(0.02, 0.2))
        picture = picture.copy()
        match int(rng.integers(4)):
            case 0:
                picture[:edge] = 0
            case 1:
                picture[-edge:] = 0
            case 2:
                picture[:, :edge] = 0
            case _:
                picture[:, -edge:] = 0
    return np.clip(picture, 0, 1)


def compressed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What JPEG leaves of a picture of bytes [size, size, 3]."""
    from PIL import Image

    if rng.random() < 0.5:
        return picture
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=int(rng.integers(25, 96)))
    return np.asarray(Image.open(out).convert("RGB"))
