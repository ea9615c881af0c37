"""What a shard's json holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe.data.records import Record

numbers = st.none() | st.floats(-1e6, 1e6)
records = st.builds(
    Record,
    emotion=st.none() | st.integers(0, 7),
    emotion_votes=st.none() | st.tuples(*[st.floats(0, 10)] * 8),
    valence=st.none() | st.floats(-1, 1),
    yaw=numbers,
    pitch=numbers,
    box=st.none() | st.tuples(*[st.floats(-1e4, 1e4)] * 4),
    landmarks=st.none() | st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=3).map(tuple),
    subject=st.none() | st.text(max_size=5),
    groups=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


@given(records)
def test_a_record_comes_back_from_its_json(record: Record) -> None:
    if record.landmarks == ():
        return
    assert Record.from_json(record.to_json()) == record


def test_only_what_is_said_is_written() -> None:
    assert json.loads(Record(emotion=0, yaw=-3.0).to_json()) == {"emotion": 0, "yaw": -3.0}


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{",
        b'{"emotion": "3"}',
        b'{"emotion": true}',
        b'{"yaw": "left"}',
        b'{"box": [1, 2]}',
        b'{"subject": 7}',
    ],
)
def test_a_wrong_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (json's own and ours)
        Record.from_json(data)


def test_problems_name_the_impossible() -> None:
    record = Record(emotion=9, valence=-2.0, yaw=float("nan"), emotion_votes=(1.0,), box=(0, 0, float("inf"), 1))
    assert len(record.problems()) == 5
    assert not Record(emotion=7, valence=-1.0, yaw=-972.0).problems()


@pytest.mark.parametrize(
    "data",
    [
        b'{"box":[null,1,2,3]}',
        b'{"landmarks":[{},{}]}',
        b'{"yaw":' + b"9" * 400 + b"}",
        b'{"emotion":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_hostile_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Record.from_json(data)


def test_text_that_cannot_be_written_and_points_that_are_no_numbers_are_problems() -> None:
    record = Record(subject="\udcff", groups={"age": "\udcff"}, landmarks=((1.0, float("inf")),), yaw=1e300)
    assert len(record.problems()) == 4
