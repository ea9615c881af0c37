"""What people's own files say is read as they mean it, or asked for: never taken for something else, never lost.

The cases are those of ``shared/cases``, in small.
"""

import gc
import re
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.sources import Raw, Reject, Source, open_source, readers, recognise


def picture(path: Path, size: tuple[int, int] = (40, 30), **options: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 20, 30)).save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def table(folder: Path, rows: list[str], name: str = "t.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def read(source: Source) -> tuple[list[Raw], list[str]]:
    rows = [*source.read()]
    return [row for row in rows if isinstance(row, Raw)], [row.reason for row in rows if isinstance(row, Reject)]


# Faces


def test_a_face_is_a_picture_and_its_box_and_the_first_has_the_key_of_a_picture_of_one(tmp_path: Path) -> None:
    rows = ["image,x0,y0,x1,y1,emotion"]
    for name in "ab":
        picture(tmp_path / f"{name}.png")
        rows += [f"{name}.png,1,1,9,9,happy", f"{name}.png,20,1,29,9,sad"]
    rows += ["a.png,1,1,9,9,happy", "a.png,20,1,29,9,anger"]
    samples, told = read(open_source("table", table(tmp_path, rows)))
    assert [(raw.key, raw.record.emotion) for raw in samples] == [("a", 1), ("a=face2", 2), ("b", 1), ("b=face2", 2)]
    assert {raw.record.source for raw in samples} == {"a.png", "b.png"}
    assert told == [
        "duplicate row t.csv:6; the first is t.csv:2",
        "a second label for the same face: sad in t.csv:3, anger in t.csv:7; the first counts",
    ]


def test_keys_of_many_faces_of_a_long_name_are_unique_and_fit_a_tar_header(tmp_path: Path) -> None:
    name = "x" * 120
    picture(tmp_path / f"{name}.png")
    rows = [f"{name}.png,{x},1,{x + 2},9" for x in range(30)]
    samples, _ = read(open_source("table", table(tmp_path, ["image,x0,y0,x1,y1", *rows])))
    assert len({raw.key for raw in samples}) == 30
    assert max(len(raw.key) for raw in samples) <= 94


# Units


def angles(folder: Path, values: np.ndarray, **options: str) -> Source:
    picture(folder / "a.png")
    return open_source("table", table(folder, ["image,yaw", *(f"a.png,{v:.4f}" for v in values)]), **options)


def test_radians_are_asked_for_by_the_whole_table_and_become_degrees(tmp_path: Path) -> None:
    degrees = np.random.default_rng(0).normal(0, 30, 400)
    radians = np.radians(degrees)
    radians[:5] = 16.97  # AFLW2000 has an angle of −972°
    with pytest.raises(UserError, match=r"395 of 400 angles lie within ±π .*angles=radians or --option angles=deg"):
        angles(tmp_path, radians)
    source = angles(tmp_path, radians, angles="radians")
    rows = [row for row in source.read() if isinstance(row, Raw)]
    assert rows[0].record.yaw == pytest.approx(np.degrees(16.97), abs=1e-3)
    assert isinstance(angles(tmp_path, radians, angles="degrees"), Source)
    for plain in (degrees, np.random.default_rng(1).normal(0, 4, 400), np.zeros(50)):
        assert isinstance(angles(tmp_path, plain), Source)
    with pytest.raises(UserError, match=r"angles=radians, but .* are beyond ±2π .* use --option angles=degrees"):
        angles(tmp_path, degrees, angles="radians")


def test_two_rows_of_small_angles_are_asked_for_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 angles lie within ±π \(the largest is 2\)"):
        angles(tmp_path, np.array([1.0, 2.0]))


@pytest.mark.real
def test_a_table_of_aflw2000s_radians_gives_the_angles_of_its_own_reader(tmp_path: Path, shared: Path) -> None:
    folder = shared / "data" / "aflw2000"
    right = [raw for raw in read(open_source("aflw2000", folder))[0][:200] if isinstance(raw.image, Path)]
    rows = []
    for raw in right:
        assert isinstance(raw.image, Path)
        pitch, yaw, roll = scipy.io.loadmat(raw.image.with_suffix(".mat"))["Pose_Para"][0][:3]
        rows.append(f"{raw.image},{yaw:.8f},{pitch:.8f},{roll:.8f}")
    table(tmp_path, ["image,yaw,pitch,roll", *rows])
    with pytest.raises(UserError, match="angles=radians"):
        open_source("table", tmp_path, images=str(folder))
    found, told = read(open_source("table", tmp_path, images=str(folder), angles="radians"))
    assert told == []
    for mine, its in zip(found, right, strict=True):
        assert mine.record.source == its.record.source
        assert (mine.record.yaw, mine.record.pitch, mine.record.roll) == pytest.approx(
            (its.record.yaw, its.record.pitch, its.record.roll), abs=1e-3
        )


def fractions(folder: Path) -> Path:
    """A turned and a plain picture; the box is the right half of the upright picture."""
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(folder / "plain.png", (40, 30))
    picture(folder / "turned.jpg", (40, 30), exif=turned.tobytes())
    return table(folder, ["image,xmin,ymin,width,height", *(f"{n},0.5,0,0.5,1" for n in ("plain.png", "turned.jpg"))])


def test_fractions_are_asked_for_and_become_pixels_of_the_upright_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 boxes have sides of 0 to 1 \(such as 0.5, 0, 1, 1\).*boxes=fractions"):
        open_source("table", fractions(tmp_path))
    samples, told = read(open_source("table", tmp_path, boxes="fractions"))
    assert [raw.record.box for raw in samples] == [(20, 0, 40, 30), (15, 0, 30, 40)]
    assert told == []
    assert read(open_source("table", tmp_path, boxes="pixels"))[0][0].record.box == (0.5, 0, 1, 1)
    with pytest.raises(UserError, match=r"boxes=fractions, but 1 of 1 boxes have sides far beyond 1 .* boxes=pixels"):
        open_source("table", table(tmp_path, ["image,x0,y0,x1,y1", "plain.png,1,2,30,20"]), boxes="fractions")


def test_a_box_in_fractions_is_kept_however_large_a_picture_may_be_allowed(tmp_path: Path) -> None:
    for side, box in ((9000, (4500, 0, 9000, 9000)), (14_000, None)):  # 81 megapixels, and more than Pillow reads
        data = bytearray(picture(tmp_path / "large.jpg", (40, 30)).read_bytes())
        size = data.index(b"\xff\xc0") + 5
        data[size : size + 4] = struct.pack(">HH", side, side)
        (tmp_path / "large.jpg").write_bytes(data)
        rows = table(tmp_path, ["image,xmin,ymin,width,height", "large.jpg,0.5,0,0.5,1"])
        ((raw,), _) = read(open_source("table", rows, boxes="fractions"))
        assert raw.record.box == box


def test_the_unit_of_affectnets_boxes_and_of_the_thesis_angles_is_asked_for_too(tmp_path: Path) -> None:
    picture(tmp_path / "net" / "Manually_Annotated_Images" / "1" / "a.jpg", (40, 30))
    names = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    table(tmp_path / "net", [names, "1/a.jpg,0.25,0.2,0.5,0.5,NULL,1,0,0"], "training.csv")
    with pytest.raises(UserError, match="boxes=fractions"):
        open_source("affectnet-2017", tmp_path / "net")
    ((raw,), _) = read(open_source("affectnet-2017", tmp_path / "net", boxes="fractions"))
    assert raw.record.box == pytest.approx((10, 6, 30, 21))
    picture(tmp_path / "thesis" / "Anger" / "1.jpg")
    table(tmp_path / "thesis", ["Filename,Pitch,Yaw,Roll", "1.jpg,0.5,-1,0"])
    with pytest.raises(UserError, match="angles=radians"):
        open_source("thesis", tmp_path / "thesis")
    ((raw,), _) = read(open_source("thesis", tmp_path / "thesis", angles="radians"))
    assert raw.record.yaw == pytest.approx(np.degrees(1))


# Options that match nothing


@pytest.mark.parametrize(
    ("reader", "options", "message"),
    [
        ("folders", {"subject": "^(S[0-9]+)_"}, r"finds no person in any of 4 paths such as 'happy/S0_0.png' and"),
        ("folders", {"classes": "glad=happy"}, r"no folder is named 'glad'; the class folders are happy, sad"),
        ("folders", {"classes": "happy=gladd"}, r"gladd is no emotion or direction; expected one of neutral, happy"),
        ("folders", {"classes": "happy=skip,sad=skip"}, r"skips every folder"),
        ("table", {"columns": "emotion=feeling"}, r"no column 'feeling'; found image, label"),
        ("table", {"angles": "radians"}, r"angles=radians has nothing to apply to: no column yaw, pitch or roll among"),
        ("table", {"boxes": "pixels"}, r"boxes=pixels has nothing to apply to: no column x0, y0 with"),
        ("table", {"emotions": "fer2013"}, r"emotions=fer2013 has nothing to apply to: no emotion is a number"),
        ("table", {"images": "nowhere"}, r"images=nowhere: no such folder"),
        ("table", {"root": "/usr"}, r"root=/usr: .* where the paths start, is not in it"),
        ("table", {"colour": "red"}, r"no option 'colour'; it takes columns, angles"),
    ],
)
def test_an_option_that_matches_nothing_is_refused_with_what_there_is(
    tmp_path: Path, reader: str, options: dict[str, str], message: str
) -> None:
    for word in ("happy", "sad"):
        for n in range(2):
            picture(tmp_path / word / f"S{n}_{n}.png")
    table(tmp_path, ["image,label", "happy/S0_0.png,happy"])
    with pytest.raises(UserError, match=message):
        open_source(reader, tmp_path, **options)


def test_pictures_where_the_expression_finds_no_person_are_counted(tmp_path: Path) -> None:
    for name in ("happy/S1_a.png", "happy/S2_a.png", "sad/S1_b.png", "sad/x.png"):
        picture(tmp_path / "S9_parent" / name)
    source = open_source("folders", tmp_path / "S9_parent", subject=r"(S\d+)_")
    assert [raw.record.subject for raw in read(source)[0]] == ["S1", "S2", "S1", None]
    assert source.notes == (
        "subject: 1 of 4 pictures name no person, such as sad/x.png; each counts as a person of its own",
    )


def test_split_lists_of_aflw2000_that_name_no_picture_are_refused_or_counted(tmp_path: Path) -> None:
    for n in (2, 4, 6):
        (tmp_path / f"image{n:05d}.jpg").write_bytes(b"x")
        scipy.io.savemat(tmp_path / f"image{n:05d}.mat", {"Pose_Para": np.zeros((1, 7))})
    lists = {"train": "image00002.jpg image00009", "val": "image00004", "test": "image00006"}
    for name, text in lists.items():
        table(tmp_path / "splits", text.split(), f"{name}.txt")
    assert open_source("aflw2000", tmp_path, splits="lists").notes[-1] == (
        "splits: 1 lines name no picture, such as image00009"
    )
    table(tmp_path / "splits", ["img4"], "val.txt")
    with pytest.raises(UserError, match=r"no line of val.txt names a picture; its first is 'img4', a picture is"):
        open_source("aflw2000", tmp_path, splits="lists")


# Keys and the folders above


def _folders(home: Path) -> None:
    for part in ("train", "test"):
        picture(home / part / "happy" / "a.png")
        picture(home / part / "sad" / "b.png")


def _raf(home: Path) -> None:
    for label in range(1, 8):
        picture(home / "train" / str(label) / "a.png")


def _yolo(home: Path) -> None:
    picture(home / "train" / "images" / "a.png")
    table(home / "train" / "labels", ["1 .5 .5 .2 .2"], "a.txt")


def _aflw(home: Path) -> None:
    picture(home / "image00002.jpg")
    scipy.io.savemat(home / "image00002.mat", {"Pose_Para": np.zeros((1, 7))})


def _lp(home: Path) -> None:
    for name in ("AFW/AFW_1_1_0", "HELEN/HELEN_2_0"):
        picture(home / f"{name}.jpg")
        scipy.io.savemat(home / f"{name}.mat", {"Pose_Para": np.zeros((1, 7))})


def _pointing(home: Path) -> None:
    picture(home / "Person01" / "person01100+0+0.jpg")
    picture(home / "Person02" / "person02100+0+0.jpg")


def _biwi(home: Path) -> None:
    picture(home / "01" / "frame_00003_rgb.png")
    table(home / "01", ["1 0 0", "0 1 0", "0 0 1", "0 0 900"], "frame_00003_pose.txt")


@pytest.mark.parametrize(
    ("made", "below"),
    [
        (_folders, "unpacked"), (_raf, "DATASET"), (_yolo, "YOLO_format"), (_aflw, "AFLW2000"), (_lp, "300W_LP"),
        (_pointing, "HeadPose"), (_biwi, "hpdb"),
    ],
)  # fmt: skip
def test_keys_are_the_same_wherever_above_its_own_folder_a_dataset_is_opened(
    tmp_path: Path, made: Callable[[Path], None], below: str
) -> None:
    home = tmp_path / "downloads" / below
    made(home)
    (tmp_path / "link").symlink_to(home)
    keys = {
        str(place): [(raw.key, raw.record.source) for raw in read(open_source("auto", place))[0]]
        for place in (home, home.parent, tmp_path / "link")
    }
    first, *others = keys.values()
    assert first
    assert others == [first, first]


def test_a_part_of_pointing04_has_the_keys_of_the_whole(tmp_path: Path) -> None:
    _pointing(tmp_path / "set")
    part = read(open_source("auto", tmp_path / "set" / "Person02"))[0]
    assert [raw.key for raw in part] == ["Person02_person02100+0+0"]


# Paths


def test_paths_as_people_and_other_machines_write_them_lead_to_the_same_samples(
    tmp_path: Path,
) -> None:
    raw = tmp_path / "raw"
    on_disk = [unicodedata.normalize("NFD", f"Zoë_{n}.JPG") for n in range(4)]
    for name in on_disk:
        picture(raw / "img" / name)
    named = [unicodedata.normalize("NFC", name) for name in on_disk]
    styles = {
        "plain": [f"img/{name}" for name in on_disk],
        "absolute": [f"{raw}/img/{name}" for name in on_disk],
        "parents": [f"lists/../img/{name}" for name in on_disk],
        "unicode": [f"img/{name}" for name in named],
        "case": [f"IMG/{name.replace('JPG', 'jpg')}" for name in named],
        "stem": [f"./img/{name.removesuffix('.JPG')}" for name in on_disk],
        "windows": [f"D:\\Zoë\\set\\img\\{name}" for name in on_disk],
        "mac": [f"/Users/zoe/set/img/{name}" for name in on_disk],
    }
    (raw / "lists").mkdir()
    found = {}
    for style, texts in styles.items():
        source = open_source("table", table(raw, ["image,emotion", *(f"{text},happy" for text in texts)]))
        samples, told = read(source)
        assert told == [], style
        found[style] = [(one.key, one.record, one.image) for one in samples]
        assert len(source.late_notes()) == (style not in ("plain", "absolute", "parents")), style
    assert all(rows == found["plain"] for rows in found.values())
    assert len(found["plain"]) == 4


def test_paths_from_a_folder_of_lists_are_refused_with_the_option_that_takes_them(tmp_path: Path) -> None:
    picture(tmp_path / "raw" / "img" / "a.png")
    table(tmp_path / "raw" / "lists", ["image,emotion", "../img/a.png,happy"])
    lists = tmp_path / "raw" / "lists" / "t.csv"
    samples, (told,) = read(open_source("table", lists))
    assert not samples
    assert "leads out of the dataset's folder" in told
    assert "--option root=FOLDER" in told
    ((raw,), told) = read(open_source("table", lists, root=str(tmp_path / "raw")))
    assert (raw.key, raw.record.source, told) == ("img_a", "img/a.png", [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("img/b.png", r"no 'b.png' in .*/raw/img; if the paths start in another folder.*images=FOLDER \(t.csv:2\)"),
        ("img/a.jpg", r"no 'a.jpg' in .*/raw/img \(a.png is there\)"),
        ("pics/a.png", r"no 'pics' in .*/raw;"),
        ("img/both.png", r"several files fit 'both.png': BOTH.PNG, Both.png"),
        ("/nowhere/img/c.png", r"the absolute path '/nowhere/img/c.png' is not on this machine"),
        ("../secret.png", r"'../secret.png' leads out of the dataset's folder .*/raw, where a file is"),
        ("{tmp}/secret.png", r"leads out of the dataset's folder .*/raw, where a file is"),
        ("C:\\..\\secret.png", r"leads out of the dataset's folder"),
        ("", r"the path is empty"),
        (".", r"path '.' is the dataset's folder"),
    ],
)
def test_a_path_that_leads_to_no_picture_says_where_it_looked_and_why(tmp_path: Path, text: str, reason: str) -> None:
    picture(tmp_path / "secret.png")
    for name in ("img/a.png", "img/Both.png", "img/BOTH.PNG"):
        picture(tmp_path / "raw" / name)
    if len([*(tmp_path / "raw" / "img").iterdir()]) < 3:
        pytest.skip("this file system does not tell upper from lower case")
    text = text.replace("{tmp}", str(tmp_path))
    _, (told,) = read(open_source("table", table(tmp_path / "raw", ["image,emotion", f"{text},happy"])))
    assert re.search(reason, told), told


def test_linked_folders_are_followed_and_named_but_a_path_does_not_climb_out_of_them(tmp_path: Path) -> None:
    picture(tmp_path / "pool" / "a.png")
    picture(tmp_path / "secret.png")
    rows = ["img/a.png,happy", "img/../secret.png,sad", "img/../raw/t.csv,sad", "above/secret.png,sad"]
    raw = table(tmp_path / "raw", ["image,emotion", *rows])
    (raw / "img").symlink_to(tmp_path / "pool")
    (raw / "above").symlink_to(tmp_path)
    source = open_source("table", raw)
    samples, told = read(source)
    assert [one.record.source for one in samples] == ["img/a.png", "t.csv"]
    assert [("leads out" in reason, "no folder" in reason) for reason in told] == [(True, False), (False, True)]
    assert source.late_notes() == (
        f"paths: 1 lie behind links that lead out of the dataset's folder, such as {raw}/img → {tmp_path}/pool",
    )


@pytest.mark.filterwarnings("default")
def test_folders_of_hugging_face_are_read_by_class_and_by_metadata(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    for word in ("happy", "sad"):
        for part in ("train", "test"):
            picture(tmp_path / "classes" / part / word / f"{part}.png")
        picture(tmp_path / "meta" / "train" / "images" / f"{word}.png")
    table(
        tmp_path / "meta" / "train",
        ["file_name,emotion,yaw", "images/happy.png,happy,-9", "images/sad.png,sad,7.5"],
        "metadata.csv",
    )
    samples, told = read(open_source("huggingface", tmp_path / "classes"))
    assert told == []
    assert {(one.record.source, EMOTIONS[one.record.emotion or 0], one.record.split) for one in samples} == {
        (f"{part}/{word}/{part}.png", word, part) for word in ("happy", "sad") for part in ("train", "test")
    }
    samples, told = read(open_source("huggingface", tmp_path / "meta"))
    assert [(one.record.source, one.record.yaw) for one in samples] == [
        ("train/images/happy.png", -9), ("train/images/sad.png", 7.5),
    ]  # fmt: skip
    assert told == []
    gc.collect()  # datasets leaves metadata.csv open: the warning belongs to this test


# Tables


def test_tables_of_spreadsheets_are_read_and_how_is_noted(tmp_path: Path) -> None:
    plain = ["image,emotion,yaw,pitch,note", 'a.png,happy,-20.5,1.25,"x, y"', "b.png,sad,30,,"]
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    expected = read(open_source("table", table(tmp_path, plain)))[0]
    commas = ["image;emotion;yaw;pitch;note", "a.png;happy;-20,5;1,25;x, y", "b.png;sad;30;;"]
    tabs = [row.replace(";", "\t").replace(",", ".") for row in commas]
    for text, encoding, note in (
        ("\r\n".join(commas), "utf-8-sig", "t.csv was read as semicolons, UTF-8"),
        ("sep=;\r\n" + "\r\n".join(commas), "utf-16", "t.csv was read as semicolons, UTF-16"),
        ("\n".join(tabs), "cp1252", "t.csv was read as tabs, UTF-8"),
    ):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        assert recognise(tmp_path).name == "table"
        source = open_source("auto", tmp_path)
        assert read(source)[0] == expected
        assert source.notes[0] == note
        assert (source.notes[1:] == ("decimal commas in pitch, yaw",)) == (";" in text)


@pytest.mark.parametrize(("column", "told"), [("emotoin", "emotion"), ("Yaws", "yaw"), ("note", None), ("group", None)])
def test_a_column_that_is_nearly_a_known_one_is_told(tmp_path: Path, column: str, told: str | None) -> None:
    picture(tmp_path / "a.png")
    notes = open_source("table", table(tmp_path, [f"image,{column}", "a.png,1"])).notes
    assert notes == (
        () if told is None else (
            f"WARNING: column {column!r} is not used; if it is {told}, name it with --option columns={told}={column}",
        )
    )  # fmt: skip


def test_a_column_of_points_and_commas_keeps_its_points_and_names_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = ["image;yaw", "a.png;10.5", "a.png;10,5", "a.png;20.5"]
    _, told = read(open_source("table", table(tmp_path, rows)))
    assert told[0] == "yaw '10,5' is not a number (t.csv:3)"


def test_what_is_no_table_is_told_by_what_it_is(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    table(tmp_path, ["id;label", "a;happy"])
    for call in (lambda: open_source("table", tmp_path), lambda: recognise(tmp_path)):
        with pytest.raises(UserError, match=r"\(read as semicolons, UTF-8\): no column of pictures among id, label"):
            call()
    table(tmp_path, ["image,emotion,emotion", "a.png,happy,sad"])
    with pytest.raises(UserError, match="column 'emotion' appears 2 times"):
        open_source("table", tmp_path)
    table(tmp_path, ["image,emotion"], "u.csv")
    for call in (lambda: open_source("table", tmp_path), lambda: recognise(tmp_path)):
        with pytest.raises(UserError, match=r"several tables here \(t.csv, u.csv\); give one of them"):
            call()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data.zip", b"PK\3\4 and so on", "an archive"),
        ("data", b"\x1f\x8b\x08", "an archive"),
        ("labels.csv", b"PK\3\4xl/workbook.xml", "a workbook; unpack it and give the folder, or save the sheet as CSV"),
        ("a.xlsx", b"", "a workbook; save its sheet as CSV"),
        ("coco.json", b"{}", "JSON is not read; write a CSV"),
        ("d.tar", bytes(257) + b"ustar", "an archive"),
    ],
)
def test_a_file_of_another_form_is_told_what_to_do(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    for call in (lambda: recognise(tmp_path / name), lambda: open_source("folders", tmp_path / name)):
        with pytest.raises(UserError, match=message):
            call()


def test_a_word_that_is_no_label_is_shown_with_the_accepted_ones(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [
        "image,emotion,direction,split",
        "a.png,joyous,,",
        "a.png,,sideways,",
        "a.png,nan,,",
        "a.png,9,,",
        "a.png,,,eval",
    ]
    _, told = read(open_source("table", table(tmp_path, rows)))
    assert told == [
        f"emotion 'joyous' is none of {', '.join(EMOTIONS)}, 0..7 (t.csv:2)",
        "direction 'sideways' is none of forward, left, right, up, down, 0..4 (t.csv:3)",
        "emotion is NaN; leave the cell empty where there is no label (t.csv:4)",
        "emotion 9 (uncertain) is none of [0, 1, 2, 3, 4, 5, 6, 7] (t.csv:5)",
        "split 'eval' is not train, val or test (t.csv:6)",
    ]


def test_auto_looks_one_folder_down_and_names_the_class_that_is_none(tmp_path: Path) -> None:
    for word in ("anger", "happy", "sad"):
        picture(tmp_path / "repo" / "CK+48" / word / "a.png")
    with pytest.raises(UserError, match=r"Did you mean \S*/repo/CK\+48 \(folders: one folder per emotion"):
        recognise(tmp_path / "repo")
    picture(tmp_path / "repo" / "CK+48" / "contemptt" / "a.png")
    for place in ("repo", "repo/CK+48"):
        with pytest.raises(
            UserError,
            match=r"CK\+48 has class folders, but contemptt \(did you mean contempt\?\) name no .*classes=contemptt=…",
        ):
            recognise(tmp_path / place)
    picture(tmp_path / "coco" / "images" / "a.png")
    table(tmp_path / "coco" / "annotations", ["{}"], "instances.json")
    with pytest.raises(UserError, match="JSON are not read: write a CSV"):
        recognise(tmp_path / "coco")


def test_a_folder_that_names_no_label_is_shown_with_what_was_meant_or_with_the_folder_to_give(tmp_path: Path) -> None:
    for name in ("own/hapy", "own/sad", "own/x", "photos/sorted/happy", "photos/sorted/sad", "photos/misc"):
        picture(tmp_path / name / "a.png")
    told = (
        rf"folders hapy \(did you mean happy\?\), x name no emotion or direction; expected {', '.join(EMOTIONS)}, "
        r"forward, left, right, up, down\. .*classes=hapy=happy,… or leave them out with hapy=skip$"
    )
    with pytest.raises(UserError, match=told):
        open_source("folders", tmp_path / "own")
    with pytest.raises(
        UserError, match=r"sorted name no .*; the emotion folders are in \S*/photos/sorted: give that folder$"
    ):
        open_source("folders", tmp_path / "photos")
    with pytest.raises(
        UserError, match=r"sadd \(did you mean sad\?\) is no emotion or direction; expected one of neutral"
    ):
        open_source("folders", tmp_path / "own", classes="hapy=sadd,x=skip")


def test_a_folder_that_is_not_there_is_not_found_by_any_reader(tmp_path: Path) -> None:
    for name in set(readers()) - {"huggingface", "synthetic"}:
        with pytest.raises(UserError, match="no such file or folder"):
            open_source(name, tmp_path / "absent")
