"""A sample's record (contract C1): the labels that its raw dataset has."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Final

import numpy as np

from hpe.core.labels import DIRECTIONS, EMOTIONS

LARGEST_DEGREES: Final = 1e6
"""AFLW2000 has −972°; what is larger than this would not be exact in the float32 of a batch."""
FARTHEST_PIXEL: Final = 1e7
"""A box or a landmark lies no further from the picture's corner."""
IMAGE_EXTENSIONS: Final = ("jpg", "png", "webp")
"""Extensions of the image member of a sample in a shard."""


@dataclass(frozen=True, slots=True)
class Record:
    """The json member of a sample: the labels of the raw dataset, nothing guessed; None: it has none.

    Attributes:
        emotion: AffectNet's integer, 0..7.
        emotion_votes: votes (or probabilities) per emotion in AffectNet's order, 8 numbers.
        valence, arousal: -1..1.
        yaw, pitch, roll: degrees, our signs (see ``hpe.core.geometry``).
        direction: 0..4, where the raw dataset itself names a direction.
        box: face box in pixels of the *stored* picture: x0, y0, x1, y1.
        landmarks: face points in pixels of the stored picture, (x, y) pairs.
        subject: person, or photo, that must not be in two splits.
        source: path inside the raw dataset.
        split: train, val or test.
        groups: further columns to report figures by (such as ``{"age": "adult"}``).
    """

    emotion: int | None = None
    emotion_votes: tuple[float, ...] | None = None
    valence: float | None = None
    arousal: float | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    direction: int | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    subject: str | None = None
    source: str | None = None
    split: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What is impossible in this record (empty: nothing), one phrase each."""
        found = []
        if self.emotion is not None and not 0 <= self.emotion < len(EMOTIONS):
            found.append(f"emotion {self.emotion} is not 0..{len(EMOTIONS) - 1}")
        if self.direction is not None and not 0 <= self.direction < len(DIRECTIONS):
            found.append(f"direction {self.direction} is not 0..{len(DIRECTIONS) - 1}")
        if self.emotion_votes is not None:
            votes = self.emotion_votes
            if len(votes) != len(EMOTIONS) or not all(math.isfinite(v) and v >= 0 for v in votes):
                found.append(f"emotion_votes {list(votes)} are not {len(EMOTIONS)} counts")
        for name in ("valence", "arousal"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                found.append(f"{name} {value} is not within -1..1")
        for name in ("yaw", "pitch", "roll"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= LARGEST_DEGREES:
                found.append(f"{name} {value} is not an angle in degrees")
        if self.box is not None and not all(abs(side) <= FARTHEST_PIXEL for side in self.box):
            found.append(f"box {list(self.box)} is not four places in a picture")
        if self.landmarks is not None and not all(
            abs(side) <= FARTHEST_PIXEL for point in self.landmarks for side in point
        ):
            found.append("landmarks are not all places in a picture")
        texts = {name: getattr(self, name) for name in ("subject", "source", "split")}
        texts["groups"] = "".join(chain(*self.groups.items()))
        found += [f"{name} is not Unicode text" for name, text in texts.items() if text and not _is_utf8(text)]
        return found

    def __reduce__(self) -> tuple[type["Record"], tuple[Any, ...]]:
        return Record, tuple(
            getattr(self, name) for name in _ORDER
        )  # a dataclass's own pickling takes four times as long

    def to_json(self) -> bytes:
        """Canonical bytes: fields in order, no spaces, UTF-8; without fields that are None."""
        fields = {name: value for name in _ORDER if (value := getattr(self, name)) is not None and value != {}}
        return _CANONICAL.encode(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """The record of a json member; unknown fields are left out.

        Raises:
            ValueError: not a JSON object, or a field of a wrong type.
        """
        try:
            raw = json.loads(data)
        except RecursionError:
            raise ValueError("the record's brackets are nested too deep") from None
        if not isinstance(raw, dict):
            raise ValueError("the record is not a JSON object")
        return cls(**{name: _checked(name, raw[name]) for name in raw.keys() & _FIELDS})


_CANONICAL: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ORDER: Final = tuple(f.name for f in fields(Record))
_FIELDS: Final = frozenset(_ORDER)
_INTEGERS: Final = frozenset(("emotion", "direction"))
_NUMBERS: Final = frozenset(("valence", "arousal", "yaw", "pitch", "roll"))
_TEXTS: Final = frozenset(("subject", "source", "split"))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(name: str, value: Any) -> Any:
    try:
        return _field(name, value)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: not valid in a record: {error}") from None


def _field(name: str, value: Any) -> Any:
    match name, value:
        case _, None:
            return {} if name == "groups" else None
        case _, bool():
            pass
        case n, int() if n in _INTEGERS:
            return value
        case n, int() | float() if n in _NUMBERS:
            return float(value)
        case n, str() if n in _TEXTS:
            return value
        case "groups", dict():
            return {str(k): str(v) for k, v in value.items()}
        case "landmarks", list():
            points = np.asarray(value, float)
            if points.ndim == 2 and points.shape[1] == 2:
                return tuple((float(x), float(y)) for x, y in points)
        case "emotion_votes" | "box", list():
            if name != "box" or len(value) == 4:
                return tuple(float(v) for v in value)
    raise ValueError(f"{name}: {str(value)[:80]!r} is not valid in a record")
