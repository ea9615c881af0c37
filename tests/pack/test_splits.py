"""Splits: nobody in two of them, every emotion in each, and the same whatever the order of the rows."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe.core.errors import UserError
from hpe.pack.splits import Lists, Row, draw, shared, together

SHARES: dict[str, Any] = {"seed": 3, "val_share": 0.1, "test_share": 0.2, "official": ()}


def singles(count: int) -> list[Row]:
    return [Row(f"k{i}", None, i % 7 if i % 3 else 0, None, f"a/k{i}.jpg") for i in range(count)]


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.one_of(st.none(), st.integers(0, 7))), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 5))
def test_no_subject_stands_in_two_splits(rows: list[tuple[str, int | None]], seed: int):
    made = [Row(f"k{i}", subject, emotion, None) for i, (subject, emotion) in enumerate(rows)]
    found = draw(made, **{**SHARES, "seed": seed})
    for subject in {row.subject for row in made}:
        assert len({split for row, split in zip(made, found, strict=True) if row.subject == subject}) == 1
    if len({row.subject for row in made}) >= 3:
        assert set(found) == {"train", "val", "test"}


def test_the_order_of_rows_changes_nothing():
    rows = singles(500)
    forward = dict(zip((r.key for r in rows), draw(rows, **SHARES), strict=True))
    backward = dict(zip((r.key for r in rows[::-1]), draw(rows[::-1], **SHARES), strict=True))
    assert forward == backward
    assert forward != dict(zip(forward, draw(rows, **{**SHARES, "seed": 4}), strict=True))


def test_every_emotion_has_its_share_in_each_split():
    rows = singles(3000)
    found = draw(rows, **SHARES)
    totals = Counter(row.emotion for row in rows)
    for split, share in (("test", 0.2), ("val", 0.1), ("train", 0.7)):
        part = Counter(row.emotion for row, its in zip(rows, found, strict=True) if its == split)
        for emotion, total in totals.items():
            assert abs(part[emotion] - share * total) <= 1


def test_official_splits_stay_and_val_is_cut_from_train_alone():
    rows = [Row(f"k{i}", None, i % 8, "test" if i < 100 else "train") for i in range(1000)]
    found = draw(rows, **{**SHARES, "official": ("train", "test")})
    assert all(split == "test" for split in found[:100])
    counted = Counter(found[100:])
    assert set(counted) == {"train", "val"}
    assert abs(counted["val"] - 90) <= 8  # at most one for each emotion
    assert draw(rows, **{**SHARES, "official": ("train", "val", "test")}) == [row.split for row in rows]


def test_lists_name_keys_paths_stems_and_unique_names(tmp_path):
    rows = [
        Row("key-one", None, None, None, "x/one.jpg"),
        Row("k2", None, None, None, "x/two.jpg"),
        Row("k3", None, None, None, "y/three.png"),
        Row("k4", None, None, None, "y/four.png"),
        Row("k5", None, None, None, "y/same.png"),
        Row("k6", None, None, None, "z/same.png"),
    ]
    (tmp_path / "train.txt").write_text("key-one\nx/two.jpg\nsame.png\n")
    (tmp_path / "test.txt").write_text("y/three\n\nfour\n")
    assert Lists(tmp_path).assign(rows) == ["train", "train", "test", "test", None, None]


def test_faces_of_a_picture_and_pictures_of_a_person_are_one_group_whatever_the_order():
    rows = [
        Row("a", "Ada", 1, None, "1.png", "1.png"), Row("b", "Bob", 2, None, "1.png", "1.png"),  # Ada with Bob
        Row("c", "Bob", 1, None, "2.png", "2.png"), Row("d", "Cyd", 2, None, "2.png", "2.png"),  # Bob with Cyd
        Row("e", None, 1, None, "3.png", "3.png"), Row("f", None, 2, None, "3.png", "3.png"),
        Row("g", None, 1, None, "4.png", "4.png"), Row("h", "Eve", 1, None, "5.png", "5.png"),
    ]  # fmt: skip
    names = ["subject Ada"] * 4 + ["key e"] * 2 + ["key g", "subject Eve"]
    assert together(rows) == names
    assert together(rows[::-1]) == names[::-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, *"abcdef"])), max_size=60), st.integers(0, 3))
def test_no_picture_stands_in_two_splits(faces: list[tuple[int, str | None]], seed: int):
    rows = [Row(f"k{i}", who, i % 8, None, f"{photo}.png", f"{photo}.png") for i, (photo, who) in enumerate(faces)]
    found = draw(rows, **{**SHARES, "seed": seed})
    assert not shared([row.photo for row in rows], found)
    assert not shared([row.subject for row in rows], found)


def test_pictures_of_one_face_are_drawn_as_if_nobody_had_asked_for_pictures():
    rows = singles(300)
    assert draw([replace(row, photo=f"{row.key}.png") for row in rows], **SHARES) == draw(rows, **SHARES)


def test_lists_name_all_faces_of_a_picture_and_lines_without_one_are_kept(tmp_path):
    rows = [Row(key, None, 1, None, f"x/{key[0]}.png") for key in ("a", "a=face2", "b")]
    (tmp_path / "train.txt").write_text("a.png\nabsent.png\n")
    (tmp_path / "test.txt").write_bytes("b.png\r\n".encode("utf-16"))
    lists = Lists(tmp_path)
    assert lists.assign(rows) == ["train", "train", "test"]
    assert lists.unused == ["absent.png"]
    (tmp_path / "test.txt").write_text("c.png\nd.png\n")
    with pytest.raises(
        UserError, match=r"none of the 2 lines of test.txt names a sample; its first line is 'c.png', the"
    ):
        Lists(tmp_path).assign(rows)


def test_lists_that_contradict_or_name_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected train\.txt"):
        Lists(tmp_path)
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match="names a sample"):
        Lists(tmp_path).assign(singles(3))
    (tmp_path / "val.txt").write_text("b\na\n")
    with pytest.raises(UserError, match="one split"):
        Lists(tmp_path)


def test_a_subject_in_two_splits_is_found():
    people = ["Ada", "Ada", "Bob", None, None]
    assert shared(people, ["train", "test", "test", "train", "test"]) == {"Ada": ("train", "test")}
    assert not shared(people, ["train", "train", "test", "train", "test"])


@pytest.mark.parametrize("seed", range(5))
def test_fifteen_people_are_at_least_two_in_each_split(seed):
    rows = [Row(f"p{person}-{i}", f"p{person}", None, None) for person in range(15) for i in range(4)]
    split = draw(rows, seed=seed, val_share=0.1, test_share=0.1, official=())
    people = Counter({(row.subject, name) for row, name in zip(rows, split, strict=True)})
    assert len(people) == 15  # nobody in two
    held = Counter(name for _, name in people)
    assert held["test"] == 2
    assert held["val"] == 2


def test_a_list_with_a_byte_order_mark_keeps_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfhappy/0.jpg\r\nhappy/1.jpg\r\n")
    rows = [Row(f"k{i}", None, 1, None, f"happy/{i}.jpg") for i in range(2)]
    assert Lists(tmp_path).assign(rows) == ["train", "train"]
