"""The vocabulary of labels: emotions in AffectNet's order, directions, colours, maps from every dataset.

Sources: AffectNet (Mollahosseini et al., 2017) for the integers; Barsoum et al., 2016 for the order of
FER+ votes; RAF-DB's readme for 1..7; the directions are those of the thesis, named as the *viewer* sees
them (``left``: the face turns to the left edge of the picture).
"""

import difflib
from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class Emotion(IntEnum):
    """AffectNet's eight emotions, by AffectNet's integers."""

    NEUTRAL = 0
    HAPPY = 1
    SAD = 2
    SURPRISE = 3
    FEAR = 4
    DISGUST = 5
    ANGER = 6
    CONTEMPT = 7


class Direction(IntEnum):
    """Where a face looks, as the viewer of the picture sees it."""

    FORWARD = 0
    LEFT = 1
    RIGHT = 2
    UP = 3
    DOWN = 4


EMOTIONS: Final = tuple(emotion.name.lower() for emotion in Emotion)
DIRECTIONS: Final = tuple(direction.name.lower() for direction in Direction)
ANGLES: Final = ("yaw", "pitch", "roll")
LARGEST_DEGREES: Final = 360.0
"""No head is turned further: an angle beyond it, either way, is a network's nonsense."""
BINS_REACH_DEGREES: Final = 99.0
"""Hopenet's bins hold the angles below this, either way."""

EMOTION_COLOURS: Final = (
    "#8d99ae", "#f4b400", "#4378bf", "#f2784b", "#8e5bb5", "#5b9a4b", "#d64550", "#a0785a",
)  # fmt: skip
DIRECTION_COLOURS: Final = ("#6c757d", "#2a9d8f", "#e76f51", "#3a86ff", "#b5838d")
AXIS_COLOURS: Final = ("#e5484d", "#30a46c", "#3b82f6")
"""x (to the face's left-hand image side) red, y (down) green, z (out of the face) blue, as Hopenet draws."""

MIRRORED_DIRECTION: Final = (Direction.FORWARD, Direction.RIGHT, Direction.LEFT, Direction.UP, Direction.DOWN)
"""``MIRRORED_DIRECTION[d]`` is the direction of the mirrored picture."""

AFFECTNET_NOT_EMOTIONS: Final[Mapping[int, str]] = {8: "none", 9: "uncertain", 10: "no-face"}
AFFECTNET_UNLABELLED_VALENCE: Final = -2.0
"""AffectNet's mark for a missing valence or arousal; ours is a mask."""

ALPHABETICAL: Final = (
    Emotion.ANGER, Emotion.CONTEMPT, Emotion.DISGUST, Emotion.FEAR,
    Emotion.HAPPY, Emotion.NEUTRAL, Emotion.SAD, Emotion.SURPRISE,
)  # fmt: skip
"""Class ids 0..7 of copies whose class folders were sorted by name (the YOLO-format Kaggle copy)."""

RAF_DB: Final[Mapping[int, Emotion]] = {
    1: Emotion.SURPRISE, 2: Emotion.FEAR, 3: Emotion.DISGUST, 4: Emotion.HAPPY,
    5: Emotion.SAD, 6: Emotion.ANGER, 7: Emotion.NEUTRAL,
}  # fmt: skip

FERPLUS_COLUMNS: Final = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF",
)  # fmt: skip
FERPLUS: Final = (
    Emotion.NEUTRAL, Emotion.HAPPY, Emotion.SURPRISE, Emotion.SAD,
    Emotion.ANGER, Emotion.DISGUST, Emotion.FEAR, Emotion.CONTEMPT,
)  # fmt: skip
"""Emotion of each of the first eight vote columns of FER+'s ``label.csv``."""

FER2013: Final = (
    Emotion.ANGER, Emotion.DISGUST, Emotion.FEAR, Emotion.HAPPY,
    Emotion.SAD, Emotion.SURPRISE, Emotion.NEUTRAL,
)  # fmt: skip
"""Emotion of FER2013's own 0..6."""

_EMOTION_WORDS: Final[Mapping[str, Emotion]] = {
    **{name: Emotion(index) for index, name in enumerate(EMOTIONS)},
    "happiness": Emotion.HAPPY, "happily": Emotion.HAPPY, "joy": Emotion.HAPPY,
    "sadness": Emotion.SAD, "surprised": Emotion.SURPRISE, "fearful": Emotion.FEAR, "afraid": Emotion.FEAR,
    "disgusted": Emotion.DISGUST, "angry": Emotion.ANGER, "contemptuous": Emotion.CONTEMPT,
}  # fmt: skip
_DIRECTION_WORDS: Final[Mapping[str, Direction]] = {
    **{name: Direction(index) for index, name in enumerate(DIRECTIONS)},
    "front": Direction.FORWARD, "frontal": Direction.FORWARD, "straight": Direction.FORWARD,
}  # fmt: skip


def emotion_from_word(word: str) -> Emotion | None:
    """The emotion that a folder or column value names (any case, usual synonyms), or None."""
    return _EMOTION_WORDS.get(word.strip().lower())


def direction_from_word(word: str) -> Direction | None:
    """The direction that a word names; ``gaze-up`` is ``up`` as in the thesis' tables; None if none."""
    return _DIRECTION_WORDS.get(word.strip().lower().removeprefix("gaze-").removeprefix("look-"))


SPLITS: Final = ("train", "val", "test")
SPLIT_WORDS: Final[Mapping[str, str]] = {
    "train": "train", "training": "train", "train_set": "train", "train_class": "train",
    "val": "val", "valid": "val", "validation": "val", "val_set": "val", "val_class": "val", "dev": "val",
    "publictest": "val",
    "test": "test", "testing": "test", "test_set": "test", "privatetest": "test",
}  # fmt: skip
"""The split that a folder, or a cell in lower case, names."""


def split_from_word(word: str) -> str | None:
    """The split (train, val or test) that a word names in any case, or None."""
    return SPLIT_WORDS.get(word.strip().lower())


_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    "emotion": {word: EMOTIONS[emotion] for word, emotion in _EMOTION_WORDS.items()},
    "direction": {word: DIRECTIONS[direction] for word, direction in _DIRECTION_WORDS.items()},
    "split": SPLIT_WORDS,
}


def nearest_label(word: str, *kinds: str) -> str | None:
    """The label that a misspelt word probably means, such as ``happy`` for ``hapy``; None: none is near.

    Args:
        kinds: of labels: ``emotion``, ``direction``, ``split``; others have no words.
    """
    known = {name: label for kind in kinds for name, label in _LABELS.get(kind, {}).items()}
    near = difflib.get_close_matches(word.strip().lower(), known, 1)
    return known[near[0]] if near else None


def with_nearest(word: str, *kinds: str) -> str:
    """The word for a message, with what it probably means: ``hapy (did you mean happy?)``."""
    near = nearest_label(word, *kinds)
    return f"{word} (did you mean {near}?)" if near else word
