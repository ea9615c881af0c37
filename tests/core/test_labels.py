"""The vocabulary of labels, against the orders that the datasets' papers and files state."""

import pytest

from hpe.core import labels
from hpe.core.labels import Direction, Emotion


def test_emotions_are_in_affectnets_order() -> None:
    assert labels.EMOTIONS == ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")


def test_alphabetical_ids_are_the_sorted_words() -> None:
    words = sorted(["Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger", "Contempt"])
    assert [labels.emotion_from_word(word) for word in words] == list(labels.ALPHABETICAL)
    assert [int(emotion) for emotion in labels.ALPHABETICAL] == [6, 7, 5, 4, 1, 0, 2, 3]


def test_raf_db_fer2013_and_ferplus_maps_are_the_stated_ones() -> None:
    assert [int(labels.RAF_DB[i]) for i in range(1, 8)] == [3, 4, 5, 1, 2, 6, 0]
    assert [int(e) for e in labels.FERPLUS] == [0, 1, 3, 2, 6, 5, 4, 7]
    assert [labels.emotion_from_word(w) for w in labels.FERPLUS_COLUMNS[:8]] == list(labels.FERPLUS)
    assert [e.name for e in labels.FER2013] == [
        "ANGER",
        "DISGUST",
        "FEAR",
        "HAPPY",
        "SAD",
        "SURPRISE",
        "NEUTRAL",
    ]


def test_mirroring_twice_is_nothing_and_swaps_left_and_right() -> None:
    mirrored = labels.MIRRORED_DIRECTION
    assert [mirrored[mirrored[d]] for d in Direction] == list(Direction)
    assert mirrored[Direction.LEFT] is Direction.RIGHT


@pytest.mark.parametrize(("word", "emotion"), [("Happiness", Emotion.HAPPY), (" ANGRY ", Emotion.ANGER), ("x", None)])
def test_words_name_emotions(word: str, emotion: Emotion | None) -> None:
    assert labels.emotion_from_word(word) is emotion


def test_the_thesis_gaze_words_name_directions() -> None:
    assert labels.direction_from_word("gaze-up") is Direction.UP
    assert labels.direction_from_word("Forward") is Direction.FORWARD


def test_every_label_has_a_colour_of_its_own() -> None:
    assert len(set(labels.EMOTION_COLOURS)) == len(labels.EMOTIONS)
    assert len(set(labels.DIRECTION_COLOURS)) == len(labels.DIRECTIONS)
