"""The rendered heads as a data set: any count, any part of it, split by person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hpe.sources.synthetic.people import SPLIT_PATTERN, Head, Split, person, split_of
from hpe.sources.synthetic.render import Image, face_box, render
from hpe.sources.synthetic.shots import Shot, shot
from hpe.sources.synthetic.wild import Look, scene, wild_person, wild_shot

# Each split draws from its own range of shots. A multiple of the 40 pairs of emotion and direction, so that
# any 40 pictures of a split from a multiple of 40 on hold every pair once.
SHOTS_PER_SPLIT = 10**9
SPLIT_ORDER: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Labels:
    """Yaw, pitch and roll in degrees; emotion as AffectNet's id; box x0, y0, x1, y1 in pixels."""

    yaw: float
    pitch: float
    roll: float
    emotion: int
    intensity: float
    valence: float
    arousal: float
    subject: str
    box: tuple[float, float, float, float]
    split: Split


@lru_cache(maxsize=4096)
def _rank(person_id: int, people: int) -> tuple[int, int]:
    """The person's place among the people of the same split, and how many these are."""
    split, period = split_of(person_id), len(SPLIT_PATTERN)
    each = SPLIT_PATTERN.count(split)

    def alike(until: int) -> int:
        whole, rest = divmod(until, period)
        return whole * each + SPLIT_PATTERN[:rest].count(split)

    return alike(person_id), alike(people)


@dataclass(frozen=True)
class Cast:
    """Who is seen, and how."""

    person_id: int
    head: Head
    seen: Shot


def cast(index: int, *, seed: int, people: int, look: Look = "studio") -> Cast:
    """What a picture shows: person index mod `people`, with shots dealt evenly within the split."""
    turn, person_id = divmod(index, people)
    if look == "wild":
        head = wild_person(seed, person_id)
        return Cast(person_id, head, wild_shot(seed, index, head))
    place, alike = _rank(person_id, people)
    start = SPLIT_ORDER.index(split_of(person_id)) * SHOTS_PER_SPLIT
    return Cast(person_id, person(seed, person_id), shot(seed, start + turn * alike + place))


def head_at(index: int, *, seed: int, people: int, size: int, look: Look = "studio") -> tuple[str, Image, Labels]:
    """Key, picture and labels of one index, whatever else is rendered."""
    shown = cast(index, seed=seed, people=people, look=look)
    seen = shown.seen
    labels = Labels(
        yaw=seen.yaw,
        pitch=seen.pitch,
        roll=seen.roll,
        emotion=seen.emotion,
        intensity=seen.intensity,
        valence=seen.valence,
        arousal=seen.arousal,
        subject=f"head{shown.person_id:04d}",
        box=face_box(shown.head, seen, size),
        split=split_of(shown.person_id),
    )
    around = scene(seed, index, shown.head, seen) if look == "wild" else None
    return f"{labels.subject}-{index:07d}", render(shown.head, seen, size, around), labels


def heads(
    count: int, *, seed: int, people: int, size: int, look: Look = "studio"
) -> Iterator[tuple[str, Image, Labels]]:
    """`count` pictures of `people` people, `size` pixels square, lazily and in order."""
    return (head_at(index, seed=seed, people=people, size=size, look=look) for index in range(count))
