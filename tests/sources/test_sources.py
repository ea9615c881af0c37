"""Readers of emotion datasets, on trees built in the documented formats."""

import io
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.data.crops import CropRule, box_around
from hpe.data.images import decode_rgb
from hpe.sources import Raw, Reject, Source, open_source, readers, recognise
from hpe.sources.base import Keys, Unread

COLUMNS = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
POINTS = ";".join(f"{n}.5" for n in range(136))


def picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 20, 30)).save(path)
    return path


def samples(source: Source) -> dict[str, Raw]:
    return {raw.record.source or "": raw for raw in source.read() if isinstance(raw, Raw)}


def rejects(source: Source) -> dict[str, str]:
    return {row.source: row.reason for row in source.read() if isinstance(row, Reject)}


def emotions(source: Source) -> dict[str, int | None]:
    return {name: raw.record.emotion for name, raw in samples(source).items()}


def splits(source: Source) -> dict[str, str | None]:
    return {name: raw.record.split for name, raw in samples(source).items()}


# What holds for every reader


def test_every_reader_has_its_own_name_and_says_what_it_looks_for(tmp_path: Path) -> None:
    known = readers()
    assert {name for name, reader in known.items() if reader.name != name} == set()
    with pytest.raises(UserError) as caught:
        recognise(tmp_path)
    for reader in known.values():
        assert reader.looks_for in str(caught.value)


@pytest.mark.parametrize("name", [name for name in readers() if name not in ("synthetic", "huggingface")])
def test_a_reader_that_finds_nothing_says_where_and_what_it_expected(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "holiday" / "beach.jpg")
    with pytest.raises(UserError, match=rf"(?s)^{tmp_path}.*(expected|name no emotion|nor class)"):
        open_source(name, tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"), [("raw", "raw/set"), ("raw/set/FER2013Valid", "raw/set"), ("raw/other", "")]
)
def test_a_folder_above_or_below_the_dataset_names_the_one_that_was_meant(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ferplus(tmp_path / "raw" / "set", {"x": "1,0,0,0,0,0,0,0,0,0"})
    (tmp_path / "raw" / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"^{given}: no FER2013Train.*{f'; did you mean {meant}[?]' if meant else 'pictures'}$"
    ):
        open_source("ferplus", Path(given))
    monkeypatch.chdir(tmp_path / "raw" / "set" / "FER2013Valid")
    with pytest.raises(UserError, match=r"did you mean \.\.\?$"):
        open_source("ferplus", Path())


def test_an_unknown_source_or_option_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown reader 'affectnet'; did you mean affectnet-2021, affectnet-2017.*\? `hpe pack list`"
    ):
        open_source("affectnet", tmp_path)
    with pytest.raises(UserError, match=r"no option 'tie'; it takes ties"):
        open_source("ferplus", tmp_path, tie="first")
    with pytest.raises(UserError, match="no such file or folder"):
        recognise(tmp_path / "absent")


def test_a_label_file_of_each_picture_can_be_read_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "Person01"
    folder.mkdir()
    for i in range(3):
        (folder / f"person0110{i}+0+0.jpg").write_bytes(b"x")
        (folder / f"person0110{i}+0+0.txt").write_text("person\n\nFace\n10\n10\n8\n8\n")
    source = open_source("pointing04", tmp_path)
    sent = [pickle.loads(pickle.dumps(row)) for row in source.rows()]
    assert all(isinstance(row, Unread) for row in sent)
    assert [row for unread in sent if isinstance(unread, Unread) for row in unread.read()] == [*source.read()]


def test_keys_are_plain_and_never_clash() -> None:
    names = [
        "a/b.jpg",
        "a_b.jpg",
        "a/b.png",
        "ä.jpg",
        "ö.jpg",
        "a b.jpg",
        "x" * 300 + ".jpg",
        "x" * 299 + ".jpg",
        ".jpg",
    ]
    keys = [*map(Keys(), names)]
    assert keys[0] == "a_b"
    assert len(set(keys)) == len(names)
    for key in keys:
        assert not set(key) & set("./\\ ")
        assert len(key) < 120
        assert key.isascii()
    assert [*map(Keys(), names)] == [*map(Keys(), names)]


def test_a_name_that_is_not_utf8_is_read_and_its_record_is_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        picture(tmp_path / "happy" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    picture(tmp_path / "sad" / "b.png")
    raw = samples(open_source("auto", tmp_path))["happy/caf\\xe9.png"]
    assert b"caf" in raw.record.to_json()
    assert decode_rgb(raw.read()).shape == (30, 40, 3)


# AffectNet, 2017


def affectnet_2017(folder: Path, rows: list[str], *, header: bool = True, name: str = "training.csv") -> Path:
    images = folder / "Manually_Annotated_Images"
    for n in range(3):
        picture(images / "1" / f"p{n}.jpg")
    (folder / name).write_text("\n".join([COLUMNS] * header + rows) + "\n")
    return folder


ROW = f"1/p0.jpg,3,4,20,22,{POINTS},6,-0.5,0.25"


@pytest.mark.parametrize("header", [True, False])
def test_a_row_of_2017_is_read_with_and_without_a_header(tmp_path: Path, header: bool) -> None:
    affectnet_2017(tmp_path, [ROW], header=header)
    affectnet_2017(tmp_path, [ROW.replace("p0", "p1")], header=header, name="validation.csv")
    assert recognise(tmp_path).name == "affectnet-2017"
    source = open_source("auto", tmp_path)
    assert not source.publishable
    assert source.splits == ("train", "test")  # the official validation set is kept for the end
    assert splits(source) == {
        "Manually_Annotated_Images/1/p0.jpg": "train",
        "Manually_Annotated_Images/1/p1.jpg": "test",
    }
    raw = samples(source)["Manually_Annotated_Images/1/p0.jpg"]
    record = raw.record
    assert (record.emotion, record.valence, record.arousal) == (6, -0.5, 0.25)
    assert record.box == (3, 4, 23, 26)
    assert record.landmarks is not None
    assert len(record.landmarks) == 68
    assert record.landmarks[1] == (2.5, 3.5)
    assert decode_rgb(raw.read()).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW.replace(",6,", ",8,"), r"expression 8 \(none\)"),
        (ROW.replace(",6,", ",9,"), r"expression 9 \(uncertain\)"),
        (ROW.replace(",6,", ",10,"), r"expression 10 \(no-face\)"),
        (ROW.replace(",6,", ",11,"), r"expression 11 is not 0..10"),
        (ROW.replace(",6,", ",-1,"), r"expression -1 is not 0..10"),
        (ROW.replace(",6,", ",happy,"), r"'happy' is not a number"),
        (ROW.replace("-0.5", "-1.5"), r"valence -1.5 is not within"),
        (ROW.replace("0.25", "inf"), r"not a finite number"),
        (ROW.replace(";7.5", ""), r"landmarks of 135 numbers, expected 136"),
        (ROW.replace("1/p0.jpg", "../../etc/passwd"), r"leads out of"),
        (ROW.replace("1/p0.jpg", "/etc/passwd"), r"leads out of"),
        (ROW.replace("1/p0.jpg", ""), r"is empty"),
        ("1/p0.jpg,3", r"2 columns, expected 9"),
    ],
)
def test_a_bad_row_of_2017_is_rejected_with_its_reason(tmp_path: Path, row: str, reason: str) -> None:
    source = open_source("affectnet-2017", affectnet_2017(tmp_path, [row, ROW.replace("p0", "p1")]))
    assert [*samples(source)] == ["Manually_Annotated_Images/1/p1.jpg"]
    (said,) = rejects(source).values()
    assert re.search(reason, said), said


def test_null_boxes_and_minus_two_are_not_said_and_nan_and_boxes_without_a_size_are_rejected(tmp_path: Path) -> None:
    rows = [
        f"1/p0.jpg,NULL,NULL,NULL,NULL,{POINTS},1,-2,-2",
        f"1/p1.jpg,5,5,-1,20,{POINTS},1,0.1,0.2",
        "1/p2.jpg,-7,-3,30,30,NULL,,NULL,",
        "1/p3.jpg,5,5,9,0,NULL,1,0,0",
        "1/p4.jpg,5,NULL,9,9,NULL,1,0,0",
        "1/p5.jpg,NaN,5,9,9,NULL,1,0,0",
        "1/p6.jpg,5,5,9,9,NULL,nan,0,0",
        "1/p7.jpg,5,5,9,9,NULL,1,NaN,0",
        f"1/p8.jpg,5,5,9,9,{';'.join(['nan'] * 136)},1,0,0",
    ]
    for n in range(3, 9):
        picture(tmp_path / "Manually_Annotated_Images" / "1" / f"p{n}.jpg")
    source = open_source("affectnet-2017", affectnet_2017(tmp_path, rows))
    told = {Path(name).stem: reason.partition(" (")[0] for name, reason in rejects(source).items()}
    assert told == {
        "p1": "box 5, 5, 4, 25 has no positive width and height",
        "p3": "box 5, 5, 14, 5 has no positive width and height",
        "p4": "half a box: x0 5.0, y0 None, x1 9.0, y1 9.0",
        "p5": "face_x is NaN; leave the cell empty where there is no label",
        "p6": "expression is NaN; leave the cell empty where there is no label",
        "p7": "valence is NaN; leave the cell empty where there is no label",
        "p8": "landmarks are not all places in a picture",
    }
    first, third = (raw.record for raw in samples(source).values())
    assert (first.box, first.valence, first.arousal) == (None, None, None)
    assert third.box == (-7, -3, 23, 27)  # reaches over the border, which a crop fills with black
    assert (third.emotion, third.landmarks, third.valence) == (None, None, None)


def test_a_second_row_for_a_face_is_rejected_by_what_it_says_and_a_missing_picture_is_named(tmp_path: Path) -> None:
    rows = [ROW, ROW.replace(",6,", ",1,"), ROW, ROW.replace("p0", "absent"), ROW.replace(",3,4,20,22,", ",9,4,20,22,")]
    source = open_source("affectnet-2017", affectnet_2017(tmp_path, rows))
    told = [row.reason for row in source.read() if isinstance(row, Reject)]
    assert told == [
        "a second label for the same face: anger in training.csv:2, happy in training.csv:3; the first counts",
        "duplicate row training.csv:4; the first is training.csv:2",
        f"no 'absent.jpg' in {tmp_path}/Manually_Annotated_Images/1 (training.csv:5)",
    ]
    keys = [raw.key for raw in source.read() if isinstance(raw, Raw)]
    assert keys == ["Manually_Annotated_Images_1_p0", "Manually_Annotated_Images_1_p0=face2"]


def test_a_column_that_is_missing_ends_the_whole_job_in_one_message(tmp_path: Path) -> None:
    affectnet_2017(tmp_path, ["1/p0.jpg,6"], header=False)
    (tmp_path / "training.csv").write_text("subDirectory_filePath,label\n1/p0.jpg,6\n")
    with pytest.raises(UserError, match=r"no column 'expression'; found subDirectory_filePath, label; expected"):
        open_source("affectnet-2017", tmp_path)


# AffectNet, 2021


def affectnet_2021(folder: Path, *, text: bool) -> Path:
    def number(value: float) -> np.ndarray:
        return np.array(str(value)) if text else np.array(value)

    for part, identity, expression in (("train_set", 5, 3), ("train_set", 12, 0), ("val_set", 7, 7)):
        picture(folder / part / "images" / f"{identity}.jpg")
        at = folder / part / "annotations"
        at.mkdir(parents=True, exist_ok=True)
        np.save(at / f"{identity}_exp.npy", number(expression))
        np.save(at / f"{identity}_val.npy", number(-0.25))
        np.save(at / f"{identity}_aro.npy", number(-2))
        points = np.arange(136.0)
        np.save(at / f"{identity}_lnd.npy", points.astype(str) if text else points)
    return folder


@pytest.mark.parametrize("text", [True, False])
def test_2021_is_read_with_numbers_and_with_texts(tmp_path: Path, text: bool) -> None:
    affectnet_2021(tmp_path, text=text)
    assert recognise(tmp_path).name == "affectnet-2021"
    source = open_source("auto", tmp_path)
    assert emotions(source) == {
        "train_set/images/12.jpg": 0, "train_set/images/5.jpg": 3, "val_set/images/7.jpg": 7,
    }  # fmt: skip
    assert splits(source)["val_set/images/7.jpg"] == "test"
    record = samples(source)["train_set/images/5.jpg"].record
    assert (record.valence, record.arousal) == (-0.25, None)
    assert record.landmarks is not None
    assert record.landmarks[67] == (134.0, 135.0)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def test_a_hostile_npy_is_rejected_and_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    at = affectnet_2021(tmp_path / "set", text=False) / "train_set" / "annotations"
    np.save(at / "5_exp.npy", np.array([Bomb()], object), allow_pickle=True)
    (at / "12_exp.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117)
        + b"\n"
    )
    (tmp_path / "set/val_set/annotations/7_exp.npy").unlink()
    said = rejects(open_source("affectnet-2021", tmp_path / "set"))
    assert not (tmp_path / "pickle-was-run").exists()
    assert "object" in said["train_set/images/5.jpg"]
    assert "header of float64 (10000000000000,)" in said["train_set/images/12.jpg"]
    assert said["val_set/images/7.jpg"] == "missing annotations/7_exp.npy"


# AffectNet, copies


@pytest.mark.parametrize("style", ["number", "word", "both"])
def test_class_folders_by_number_and_word_mean_the_same(tmp_path: Path, style: str) -> None:
    names = {"number": "{n}", "word": "{word}", "both": "{n}_{word}"}[style]
    for part in ("train", "val"):
        for n, word in enumerate(EMOTIONS):
            picture(tmp_path / part / names.format(n=n, word=word.title()) / f"{n}.png")
    assert recognise(tmp_path).name == "affectnet-folders"
    source = open_source("auto", tmp_path)
    assert all(Path(name).stem == str(emotion) for name, emotion in emotions(source).items())
    assert len(samples(source)) == 16
    assert not source.publishable
    assert set(splits(source).values()) == {"train", "test"}  # a val beside train is the official one


def test_a_copy_with_its_own_test_keeps_its_names(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        for word in EMOTIONS:
            picture(tmp_path / part / word / "a.png")
    source = open_source("affectnet-folders", tmp_path)
    assert source.splits == ("train", "val", "test")
    assert splits(source)["valid/anger/a.png"] == "val"


def test_a_folder_whose_number_and_word_disagree_is_no_emotion(tmp_path: Path) -> None:
    for n, word in enumerate(EMOTIONS):
        picture(tmp_path / f"{n}_{'sad' if n == 1 else word}" / "a.png")
    with pytest.raises(UserError, match="1_sad"):
        open_source("affectnet-folders", tmp_path)


def test_yolos_alphabetical_ids_and_fractions_are_understood(tmp_path: Path) -> None:
    for part, n in (("train", 0), ("train", 5), ("valid", 7)):
        picture(tmp_path / part / "images" / f"{n}.png")
        (tmp_path / part / "labels").mkdir(exist_ok=True)
        (tmp_path / part / "labels" / f"{n}.txt").write_text(f"{n} 0.5 0.5 0.5 0.4\n")
    for name, text in (
        ("a", "9 .5 .5 .5 .5"),
        ("b", "1 0.5"),
        ("c", "1 .5 .5 .1 .1\n2 .3 .5 .1 .1\n3 .3 .5 .1 .1"),
        ("d", "x y z"),
    ):
        picture(tmp_path / "train" / "images" / f"{name}.png")
        (tmp_path / "train" / "labels" / f"{name}.txt").write_text(text)
    picture(tmp_path / "train" / "images" / "e.png")
    assert recognise(tmp_path).name == "affectnet-yolo"
    source = open_source("auto", tmp_path)
    # Anger, Contempt, Disgust, Fear, Happy, Neutral, Sad, Surprise
    found = [(raw.key, raw.record.emotion) for raw in source.read() if isinstance(raw, Raw)]
    assert found == [
        ("train_images_0", 6), ("train_images_5", 0), ("train_images_c", 7), ("train_images_c=face2", 5),
        ("valid_images_7", 3),
    ]  # fmt: skip
    assert splits(source)["valid/images/7.png"] == "val"
    assert samples(source)["train/images/0.png"].record.box == pytest.approx((10, 9, 30, 21))
    assert {Path(k).stem: v.split(" ")[0] for k, v in rejects(source).items()}.keys() == set("abcde")
    (tmp_path / "data.yaml").write_text("names: [sad, happy, fear, disgust, anger, surprise, neutral, contempt]\n")
    assert emotions(open_source("auto", tmp_path))["train/images/0.png"] == 2


def test_the_thesis_yaw_is_negated_at_the_door_and_its_tables_are_joined_by_name(tmp_path: Path) -> None:
    for name in ("Anger/1.jpg", "Anger/2.jpg", "Happy/3.jpg", "Happy/4.jpg", "Sad/5.jpg"):
        picture(tmp_path / name)
    (tmp_path / "FINALDF.csv").write_text(
        ",Filename,Pitch,Yaw,Roll,Direction,Emotion\n"
        "0,1.jpg,-9.5,-40.25,0.5,1,Anger\n1,2.jpg,1,2,3,0,Anger\n2,3.jpg,1,2,3,4,Sad\n3,9.jpg,1,2,3,4,Sad\n"
        "4,4.jpg,1,2,3,9,Happy\n5,8.jpg\n"
    )
    (tmp_path / "TEST.csv").write_text("Filename,Direction,Emotion\n2.jpg,gaze-up,anger\n")
    assert recognise(tmp_path).name == "thesis"
    source = open_source("auto", tmp_path)
    found = samples(source)
    one = found["Anger/1.jpg"].record
    # `left` in the thesis has negative yaw; ours has positive yaw to the viewer's left.
    assert (one.yaw, one.pitch, one.roll, one.direction) == (40.25, -9.5, 0.5, 1)
    assert one.split == "train"
    assert found["Anger/2.jpg"].record.split == "test"
    assert found["Sad/5.jpg"].record.yaw is None
    assert found["Sad/5.jpg"].record.emotion == 2
    said = rejects(source)
    assert said["Happy/3.jpg"] == "the table has sad, the folder is Happy"
    assert "without a picture" in said["9.jpg"]
    assert "direction '9' is not 0..4" in said["4.jpg"]
    assert "2 columns, expected 7" in said["FINALDF.csv:7"]


def test_the_thesis_copy_keeps_the_splits_of_its_folders_where_no_table_names_a_test(tmp_path: Path) -> None:
    for name in ("train/Anger/1.jpg", "test/Anger/2.jpg", "test/Happy/3.jpg", "val/not a class/4.jpg"):
        picture(tmp_path / name)
    (tmp_path / "angles.csv").write_text("Filename,Pitch,Yaw,Roll\n1.jpg,1,20.5,3\n2.jpg,1,20.5,3\n3.jpg,1,20.5,3\n")
    source = open_source("auto", tmp_path)
    assert (source.name, source.splits) == ("thesis", ("train", "test"))
    assert splits(source) == {"train/Anger/1.jpg": "train", "test/Anger/2.jpg": "test", "test/Happy/3.jpg": "test"}
    # A table of the test pictures beside them is the thesis' own split.
    (tmp_path / "TEST.csv").write_text("Filename,Emotion\n1.jpg,anger\n")
    source = open_source("auto", tmp_path)
    assert source.splits == ("train", "test")
    assert splits(source)["train/Anger/1.jpg"] == "test"


@pytest.mark.real
def test_left_in_the_thesis_own_tables_has_positive_yaw_here(shared: Path, tmp_path: Path) -> None:
    import csv

    table = shared / "thesis" / "FINALDF_Proposed.csv"
    with table.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["Direction"] in "12"][:600]
    for row in rows:
        (tmp_path / row["Emotion"]).mkdir(exist_ok=True)
        (tmp_path / row["Emotion"] / row["Filename"]).touch()
    found = samples(open_source("thesis", tmp_path, tables=str(table.parent)))
    yaws = {d: [r.record.yaw or 0 for r in found.values() if r.record.direction == d] for d in (1, 2)}
    assert np.mean(yaws[1]) > 10
    assert np.mean(yaws[2]) < -10


# FER+ and FER2013


def ferplus(folder: Path, votes: dict[str, str]) -> Path:
    for name in votes:
        picture(folder / "FER2013Valid" / f"{name}.png")
    lines = [f'{name}.png,"(0, 0, 48, 48)",{v}' for name, v in votes.items()]
    (folder / "FER2013Valid" / "label.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_only_what_claims_to_be_the_whole_set_has_a_documented_size(tmp_path: Path) -> None:
    votes = {"fer0.png": "10,0,0,0,0,0,0,0,0,0"}
    part = open_source("ferplus", ferplus(tmp_path / "part", votes))
    for name in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "label.csv").write_text("fer0.png,,10,0,0,0,0,0,0,0,0,0\n")
    whole = open_source("ferplus", tmp_path / "all")
    assert part.expected == {}
    assert whole.expected == {"train": 28558, "val": 3579, "test": 3573}


def test_votes_of_ferplus_come_in_affectnets_order_and_the_most_win(tmp_path: Path) -> None:
    # columns: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF
    ferplus(tmp_path, {
        "surprise": "0,0,7,1,0,0,2,0,0,0", "sad": "0,0,1,6,0,0,0,0,3,0", "contempt": "1,0,0,0,0,0,0,9,0,0",
        "fear": "0,0,3,0,0,0,4,0,3,0", "tied": "0,0,0,5,5,0,0,0,0,0", "half": "0,5,0,0,0,0,0,0,5,0",
        "unknown": "0,4,0,0,0,0,0,0,6,0", "nf": "0,0,0,0,0,0,0,0,0,10", "none": "0,0,0,0,0,0,0,0,0,0",
        "singles": "1,3,1,1,1,1,1,0,1,0", "short": "1,2", "words": "a,0,0,0,0,0,0,0,0,0",
    })  # fmt: skip
    assert recognise(tmp_path).name == "ferplus"
    source = open_source("auto", tmp_path)
    found = {Path(name).stem: raw.record for name, raw in samples(source).items()}
    assert {name: record.emotion for name, record in found.items()} == {
        "surprise": 3, "sad": 2, "contempt": 7, "fear": 4, "tied": 2, "half": 1, "singles": 1,
    }  # fmt: skip
    assert found["surprise"].emotion_votes == (0, 0, 1, 7, 2, 0, 0, 0)
    assert found["contempt"].emotion_votes == (1, 0, 0, 0, 0, 0, 0, 9)
    assert {name: record.groups["votes"] for name, record in found.items()} == {
        "surprise": "majority", "sad": "majority", "contempt": "majority", "fear": "plurality", "tied": "tied",
        "half": "tied", "singles": "majority",
    }  # fmt: skip
    assert all(record.split == "val" for record in found.values())
    assert {"no votes", "winner NF", "winner unknown"} < set(rejects(source).values())
    assert len(rejects(source)) == 5
    unsaid = {Path(n).stem: e for n, e in emotions(open_source("ferplus", tmp_path, ties="none")).items()}
    assert (unsaid["tied"], unsaid["half"], unsaid["fear"]) == (None, None, 4)


def test_the_pixels_of_fer2013_become_pictures(tmp_path: Path) -> None:
    pixels = np.arange(2304) % 256
    text = " ".join(map(str, pixels))
    rows = [
        f"3,{text},Training", f"0,{text},PublicTest", f"6,{text},PrivateTest", f"7,{text},Training",
        f"3,{text},Sometimes", "3,1 2 3,Training", "3",
    ]  # fmt: skip
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n" + "\n".join(rows) + "\n")
    assert recognise(tmp_path).name == "fer2013-csv"
    source = open_source("auto", tmp_path)
    found = [*samples(source).values()]
    assert [raw.record.emotion for raw in found] == [1, 6, 0, 1]
    assert [raw.record.split for raw in found] == ["train", "val", "test", "train"]
    assert np.array_equal(decode_rgb(found[0].read())[..., 1], pixels.reshape(48, 48))
    with pytest.raises(ValueError, match="3 pixels, expected 2304"):
        found[3].read()
    assert len(rejects(source)) == 3


def test_fer2013s_folders_are_recognised_by_their_words(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for word in ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"):
            picture(tmp_path / part / word / "a.jpg")
    source = open_source("auto", tmp_path)
    assert (source.name, source.splits) == ("folders", ("train", "test"))
    assert "FER2013" in source.variant
    assert emotions(source)["train/angry/a.jpg"] == 6


# RAF-DB


def test_both_layouts_of_raf_db_give_the_same_labels(tmp_path: Path) -> None:
    expected = [3, 4, 5, 1, 2, 6, 0]  # surprise, fear, disgust, happy, sad, anger, neutral
    listed, foldered = tmp_path / "listed", tmp_path / "foldered"
    lines = ["train_9.jpg 8", "../x.jpg 1", "train_1.jpg 1", "test_3.jpg"]
    for n in range(1, 8):
        lines.append(f"train_{n:05d}.jpg {n}")
        picture(listed / "Image" / "aligned" / f"train_{n:05d}_aligned.jpg")
        picture(foldered / "DATASET" / "train" / str(n) / "a.jpg")
    (listed / "EmoLabel").mkdir()
    (listed / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines))
    for folder in (listed, foldered):
        assert recognise(folder).name == "raf-db"
        source = open_source("auto", folder)
        labels = [emotion for name, emotion in emotions(source).items() if "train_1.jpg" not in name]
        assert [e for e in labels if e is not None][-7:] == expected
        assert set(splits(source).values()) == {"train"}
        assert not source.publishable
    assert len(rejects(open_source("raf-db", listed))) == 3


# Folders and tables


def test_anybodys_folders_take_words_mappings_and_people(tmp_path: Path) -> None:
    for name in ("AN/KA.AN1.png", "HA/KA.HA1.png", "HA/YM.HA2.png", "junk/x.png"):
        picture(tmp_path / name)
    with pytest.raises(UserError, match=r"AN, HA, junk name no emotion"):
        open_source("folders", tmp_path)
    source = open_source("folders", tmp_path, classes="AN=anger,HA=happy,junk=skip", subject=r"/(\w\w)\.")
    assert emotions(source) == {"AN/KA.AN1.png": 6, "HA/KA.HA1.png": 1, "HA/YM.HA2.png": 1}
    assert [raw.record.subject for raw in samples(source).values()] == ["KA", "KA", "YM"]
    with pytest.raises(UserError, match="not a regular expression"):
        open_source("folders", tmp_path, classes="AN=anger,HA=happy,junk=skip", subject="(")


def test_folders_may_name_directions(tmp_path: Path) -> None:
    for word in ("Forward", "left", "gaze-up"):
        picture(tmp_path / word / "a.png")
    source = open_source("auto", tmp_path)
    assert {n: r.record.direction for n, r in samples(source).items()} == {
        "Forward/a.png": 0, "gaze-up/a.png": 3, "left/a.png": 1,
    }  # fmt: skip


def test_a_csv_is_read_by_its_mapping_with_units_and_signs(tmp_path: Path) -> None:
    for name in "abcdefgh":
        picture(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "where,pan,tilt,what,age,part,x,y,w,h\n"
        "pictures/a.png,0.5,-0.25,Joy,adult,train,1,2,3,4\n"
        "pictures/b.png,NULL,,4,child,valid,,NULL,,\n"
        "pictures/b.png,1,1,4,child,valid,,,,\n"
        "../out.png,1,1,4,child,valid,1,2,3,4\n"
        "pictures/c.png,1,1,8,child,valid,1,2,3,4\n"
        "pictures/d.png,1,1,1,child,never,1,2,3,4\n"
        "pictures/e.png,1\n"
        "pictures/f.png,nan,1,4,child,valid,1,2,3,4\n"
        "pictures/g.png,1,1,4,child,valid,1,2,,4\n"
        "pictures/h.png,1,1,4,child,valid,1,2,-3,4\n"
    )
    columns = "image=where,yaw=-pan,pitch=tilt,emotion=what,group.age=age,split=part,x0=x,y0=y,width=w,height=h"
    source = open_source("table", tmp_path, columns=columns, angles="radians", emotions="fer2013")
    a, b = (raw.record for raw in samples(source).values())
    assert a.yaw == pytest.approx(-28.6479, abs=1e-4)
    assert a.pitch == pytest.approx(-14.3239, abs=1e-4)
    assert (a.emotion, a.box, a.groups, a.split) == (1, (1, 2, 4, 6), {"age": "adult"}, "train")
    assert (b.yaw, b.pitch, b.emotion, b.box, b.split) == (None, None, 2, None, "val")  # FER2013's 4 is sad
    assert source.splits == ("train", "val")
    told = [*rejects(source).values()]
    assert len(told) == 8
    assert told[-3:] == [
        "yaw is NaN; leave the cell empty where there is no label (t.csv:9)",
        "half a box: x0 1.0, y0 2.0, x1 None, y1 6.0 (t.csv:10)",
        "box 1, 2, -2, 6 has no positive width and height (t.csv:11)",
    ]
    with pytest.raises(UserError, match=r"no column 'wher'; found where, pan"):
        open_source("table", tmp_path, columns="image=wher")
    with pytest.raises(UserError, match=r"'colour' is none of image, emotion"):
        open_source("table", tmp_path, columns="image=where,colour=pan")
    with pytest.raises(UserError, match="no column of pictures"):
        open_source("table", tmp_path)


def test_parquet_holds_pictures_themselves(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    out = io.BytesIO()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(out, "PNG")
    rows = [{"image": {"bytes": out.getvalue(), "path": None}, "label": 5}, {"image": None, "label": 1}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert recognise(tmp_path).name == "table"
    source = open_source("auto", tmp_path)
    (raw,) = samples(source).values()
    assert raw.record.emotion == 5
    assert decode_rgb(raw.read())[0, 0].tolist() == [1, 2, 3]
    assert [*rejects(source).values()] == ["no picture"]


@pytest.mark.filterwarnings("default")
def test_a_saved_hugging_face_dataset_is_read_without_decoding(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["happy", "anger"]),
            "pan": datasets.Value("float32"),
        }
    )
    rows = {"image": [Image.new("RGB", (8, 6), (n, n, n)) for n in (10, 20)], "label": [1, 0], "pan": [15.0, -30.0]}
    parts = {"train": rows, "validation": {name: values[:1] for name, values in rows.items()}}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(part, features=features) for name, part in parts.items()}
    ).save_to_disk(str(tmp_path / "saved"))
    assert recognise(tmp_path / "saved").name == "huggingface"
    source = open_source("auto", tmp_path / "saved", columns="yaw=pan")
    found = [*samples(source).values()]
    assert [(r.record.emotion, r.record.yaw, r.record.split) for r in found] == [
        (6, 15, "train"), (1, -30, "train"), (6, 15, "val"),
    ]  # fmt: skip
    assert source.splits == ("train", "val")
    assert source.total == 3
    assert decode_rgb(found[1].read())[0, 0].tolist() == [20, 20, 20]
    with pytest.raises(UserError, match="cannot load it"):
        open_source("huggingface", tmp_path / "absent")


def test_rendered_heads_are_the_same_in_any_process_and_split_by_person() -> None:
    source = open_source("synthetic", Path("-"), count="40", people="20", size="48")
    found = [*samples(source).values()]
    assert len(found) == source.total == 40
    people: dict[str | None, set[str | None]] = {}
    for raw in found:
        people.setdefault(raw.record.subject, set()).add(raw.record.split)
    assert all(len(parts) == 1 for parts in people.values())
    import pickle

    copy = pickle.loads(pickle.dumps(found[3]))
    assert copy.read() == found[3].read()
    assert decode_rgb(copy.read()).shape == (48, 48, 3)
    with pytest.raises(UserError, match="count is 'many'"):
        open_source("synthetic", Path("-"), count="many")


def test_rendered_heads_of_the_wild_look_name_the_crop_that_frames_them() -> None:
    source = open_source("synthetic", Path("-"), count="3", people="3", size="48", look="wild")
    assert source.default_crop == "square-1.4@landmarks"
    for raw in samples(source).values():
        assert decode_rgb(raw.read()).shape == (48, 48, 3)
        box = CropRule.parse(source.default_crop).apply(box_around(np.array(raw.record.landmarks)))
        np.testing.assert_allclose(box, (0, 0, 48, 48), atol=0.1)
    assert open_source("synthetic", Path("-")).default_crop == "none"
    with pytest.raises(UserError, match="look is 'rough'; expected studio or wild"):
        open_source("synthetic", Path("-"), look="rough")


def all_sources(folder: Path) -> Iterator[Source]:
    yield open_source("auto", affectnet_2017(folder / "a", [ROW, ROW.replace("p0", "p1")]))
    yield open_source("auto", affectnet_2021(folder / "b", text=False))
    yield open_source("auto", ferplus(folder / "c", {"x": "1,0,0,0,0,0,0,0,0,0"}))


def test_reading_twice_gives_the_same_rows_and_crop_rules_are_rules(tmp_path: Path) -> None:
    for source in all_sources(tmp_path):
        assert [*source.read()] == [*source.read()]
        CropRule.parse(source.default_crop)
