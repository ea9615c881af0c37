"""Every layout in which AffectNet goes round, from a tree on disk through the command to shards."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.data.images import decode_rgb
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest
from hpe.pack.verify import verify

WORDS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
LANDMARKS = ";".join(f"{30 + i % 17};{30 + i // 4}" for i in range(68))
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
RELEASE_2017 = (
    ("training.csv", f"1/happy.jpg,10,10,60,60,{LANDMARKS},1,0.5,0.1"),
    ("training.csv", f"1/unlabelled.jpg,10,10,60,60,{LANDMARKS},3,-2,-2"),
    ("training.csv", f"2/contempt.jpg,-5,-5,60,60,{LANDMARKS},7,-0.5,0.6"),
    ("training.csv", f"2/nobox.jpg,NULL,NULL,NULL,NULL,{LANDMARKS},0,0,0"),
    ("training.csv", f"2/none.jpg,10,10,60,60,{LANDMARKS},8,0,0"),
    ("training.csv", f"2/uncertain.jpg,10,10,60,60,{LANDMARKS},9,0,0"),
    ("training.csv", f"2/noface.jpg,10,10,60,60,{LANDMARKS},10,0,0"),
    ("training.csv", f"1/happy.jpg,10,10,60,60,{LANDMARKS},1,0.5,0.1"),
    ("training.csv", f"3/absent.jpg,10,10,60,60,{LANDMARKS},1,0.5,0.1"),
    ("training.csv", f"3/broken.jpg,10,10,60,60,{LANDMARKS},2,0.5,0.1"),
    ("training.csv", f"3/far.jpg,500,500,60,60,{LANDMARKS},2,0.5,0.1"),
    ("training.csv", f"3/loud.jpg,10,10,60,60,{LANDMARKS},2,0.5,1.5"),
    ("validation.csv", f"4/anger.jpg,10,10,60,60,{LANDMARKS},6,-0.4,0.8"),
)


def picture(path: Path, number: int = 0, side: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([number, *path.name.encode()]).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(path, quality=90)


def packed(reader: str, raw: Path, out: Path, *arguments: str) -> tuple[Manifest, dict[str, str], str]:
    """The manifest, the quarantine as {source: reason} and what the command said."""
    told = CliRunner().invoke(
        app, ["pack", reader, str(raw), str(out), "--size", "32", "--workers", "1", "--val-share", "0", *arguments]
    )
    assert told.exit_code == 0, told.output
    assert not verify(out)
    manifest = Manifest.load(out)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert manifest.counts["read"] == manifest.counts["samples"] + len(lines)
    assert not manifest.publishable
    return manifest, {line["source"]: line["reason"] for line in lines}, told.output


def emotions(out: Path) -> dict[str, tuple[str, str | None]]:
    """By the name of the raw picture: split and emotion in words."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        for sample in read_samples(path):
            record = sample.record
            word = None if record.emotion is None else WORDS[record.emotion]
            found[Path(record.source or "").name] = (record.split, word)
            assert Image.open(io.BytesIO(sample.image)).size == (32, 32)
    return found


@pytest.mark.parametrize("header", [True, False])
def test_the_release_of_2017(tmp_path: Path, header: bool) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for table in ("training.csv", "validation.csv"):
        rows = [row for name, row in RELEASE_2017 if name == table]
        raw.mkdir(exist_ok=True)
        (raw / table).write_text("\n".join([HEADER] * header + rows) + "\n")
        for number, row in enumerate(rows):
            if "absent" not in row:
                picture(raw / "Manually_Annotated_Images" / row.partition(",")[0], number)
    broken = raw / "Manually_Annotated_Images/3/broken.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    manifest, refused, told = packed("auto", raw, out)
    assert "affectnet-2017 (AffectNet's release of 2017: training.csv and validation.csv" in told
    assert manifest.crop == "square-1.2@box"
    assert manifest.counts["splits"] == {"train": 3, "test": 1}
    assert emotions(out) == {
        "happy.jpg": ("train", "happy"),
        "unlabelled.jpg": ("train", "surprise"),
        "contempt.jpg": ("train", "contempt"),
        "anger.jpg": ("test", "anger"),
    }
    reasons = {Path(source).name: reason for source, reason in refused.items()}
    assert reasons.pop("happy.jpg").startswith("duplicate row training.csv:")
    assert reasons.pop("broken.jpg").startswith("damaged or truncated")
    assert reasons.pop("far.jpg").startswith("box 500, 500, 560, 560 lies outside the picture")
    assert {name: reason.partition(" (training")[0] for name, reason in reasons.items()} == {
        "none.jpg": "expression 8 (none) is no emotion",
        "uncertain.jpg": "expression 9 (uncertain) is no emotion",
        "noface.jpg": "expression 10 (no-face) is no emotion",
        "nobox.jpg": "no box: the crop rule square-1.2@box needs one",
        "absent.jpg": f"no 'absent.jpg' in {raw}/Manually_Annotated_Images/3",
        "loud.jpg": "arousal 1.5 is not within -1..1",
    }
    records = {s.record.source: s.record for path in out.glob("*.tar") for s in read_samples(path)}
    unlabelled = records["Manually_Annotated_Images/1/unlabelled.jpg"]
    assert (unlabelled.valence, unlabelled.arousal) == (None, None)
    assert records["Manually_Annotated_Images/4/anger.jpg"].arousal == 0.8


def test_the_release_of_2021(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    train, val = [(1, "0"), (2, "7"), (3, "8")], [(1, "6"), (9, "2")]
    for part, number, expression in [("train_set", *row) for row in train] + [("val_set", *row) for row in val]:
        picture(raw / part / "images" / f"{number}.jpg", number, 64)
        folder = raw / part / "annotations"
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{number}_exp.npy", np.array(expression))
        np.save(folder / f"{number}_val.npy", np.array("-0.25"))
        np.save(folder / f"{number}_aro.npy", np.array(-2.0))
        np.save(folder / f"{number}_lnd.npy", np.full(136, 10.0))
    (raw / "val_set/annotations/9_exp.npy").unlink()
    np.save(raw / "train_set/annotations/2_val.npy", np.array([None, {}], object), allow_pickle=True)
    manifest, refused, told = packed("auto", raw, out)
    assert "eight-label release of 2021" in told
    assert manifest.counts["splits"] == {"train": 1, "test": 1}
    assert manifest.counts["emotion"] == {"train": {"neutral": 1}, "test": {"anger": 1}}
    assert refused["train_set/images/3.jpg"] == "expression 8 (none) is no emotion"
    assert refused["val_set/images/9.jpg"] == "missing annotations/9_exp.npy"
    assert "2_val.npy" in refused["train_set/images/2.jpg"]
    (record,) = (sample.record for sample in read_samples(out / "train-000000.tar"))
    assert (record.valence, record.arousal, record.landmarks is not None) == (-0.25, None, True)


@pytest.mark.parametrize(
    "named", [str, lambda e: WORDS[e].capitalize(), lambda e: f"{e}_{WORDS[e]}"], ids=["number", "word", "both"]
)
def test_class_folders(tmp_path: Path, named: Callable[[int], str]) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for part, each in (("train_class", 3), ("val_class", 1)):
        for emotion in range(8):
            for i in range(each + emotion % 2):
                picture(raw / part / named(emotion) / f"{part}{emotion}{i}.jpg", i)
    (raw / "train_class" / named(4) / "train_class40.jpg").write_bytes(b"")
    manifest, refused, told = packed("auto", raw, out)
    assert "affectnet-folders" in told
    official = [name for name in manifest.counts["splits"] if name != "train"]
    assert len(official) == 1
    found = manifest.counts["emotion"]
    assert found["train"] == {word: 3 + i % 2 - (word == "fear") for i, word in enumerate(WORDS)}
    assert found[official[0]] == {word: 1 + i % 2 for i, word in enumerate(WORDS)}
    assert [(Path(source).name, why) for source, why in refused.items()] == [
        ("train_class40.jpg", "cannot be read: empty file (0 bytes)")
    ]


def test_the_copy_in_yolos_format(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    alphabetical = ("anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    for part in ("train", "valid", "test"):
        for number, word in enumerate(alphabetical):
            picture(raw / "YOLO_format" / part / "images" / f"{part}-{word}.jpg", number, 96)
            label = raw / "YOLO_format" / part / "labels" / f"{part}-{word}.txt"
            label.parent.mkdir(exist_ok=True)
            label.write_text(f"{number} 0.5 0.5 0.5 0.5\n")
    labels = raw / "YOLO_format/train/labels"
    (labels / "train-sad.txt").unlink()
    (labels / "train-fear.txt").write_text("8 0.5 0.5 0.5 0.5\n")
    (labels / "train-happy.txt").write_text("4 .5 .5 .5 .5\n4 .2 .2 .1 .1\n")
    told = CliRunner().invoke(app, ["pack", "auto", str(raw), str(out)])
    assert "several faces with a box each in 1 picture" in str(told.exception)
    assert not out.exists()
    manifest, refused, told = packed("auto", raw, out, "--crop", "margin-0@box")
    assert "YOLO's format" in told
    assert manifest.counts["splits"] == {"train": 7, "val": 8, "test": 8}
    assert emotions(out) == {
        f"{part}-{word}.jpg": (split, word)
        for part, split in (("train", "train"), ("valid", "val"), ("test", "test"))
        for word in alphabetical
        if part != "train" or word not in ("sad", "fear")
    }
    reasons = {Path(source).name: reason for source, reason in refused.items()}
    assert reasons["train-sad.jpg"] == "missing labels/train-sad.txt"
    assert reasons["train-fear.jpg"].endswith("is no class of 0..7 and four numbers")
    (record, *_) = (sample.record for sample in read_samples(out / "val-000000.tar"))
    assert record.box == (0, 0, 32, 32)


def test_the_thesis_folders_joined_with_its_tables(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for word in WORDS:
        for i in range(3):
            picture(raw / word.capitalize() / f"{WORDS.index(word)}{i}.jpg", i)
    (raw / "poses.csv").write_text(
        "Filename,Pitch,Yaw,Roll,Direction\n00.jpg,1.5,-40.0,2.0,left\n10.jpg,-3.0,12.0,0.0,forward\n"
        "11.jpg,a,1,2,left\n99.jpg,1,2,3,up\n"
    )
    (raw / "test_set.csv").write_text("Filename,Emotion\n20.jpg,Sad\n30.jpg,Anger\n40.jpg,Fear\n")
    manifest, refused, told = packed("auto", raw, out)
    assert "thesis" in told
    assert manifest.counts["splits"] == {"train": 21, "test": 2}
    found = emotions(out)
    assert Counter(found.values()) == Counter(
        [("train", word) for word in WORDS for _ in range(3 - (word in ("sad", "surprise", "fear")))]
        + [("test", "sad"), ("test", "fear")]
    )
    assert refused["Surprise/30.jpg"] == "the table has anger, the folder is Surprise"
    assert refused["99.jpg"] == "a row in the tables (poses.csv:5) without a picture"
    assert refused["11.jpg"] == "Pitch 'a' is not a number (poses.csv:4)"
    assert len(refused) == 3
    records = [sample.record for path in out.glob("train*.tar") for sample in read_samples(path)]
    (turned,) = (record for record in records if record.source == "Neutral/00.jpg")
    assert (turned.yaw, turned.pitch, turned.roll, turned.direction) == (40.0, 1.5, 2.0, 1)


def test_splits_drawn_anew_leave_the_official_ones_and_a_share_of_those_is_refused(tmp_path: Path) -> None:
    for number in range(12):
        folder = "train_set" if number < 8 else "val_set"
        picture(tmp_path / "raw" / folder / "images" / f"{number}.jpg", number)
        notes = tmp_path / "raw" / folder / "annotations"
        notes.mkdir(exist_ok=True)
        np.save(notes / f"{number}_exp.npy", np.array(str(number % 2)))
    options = ("--val-share", "0.25", "--test-share", "0.25")
    refused = CliRunner().invoke(app, ["pack", "affectnet-2021", str(tmp_path / "raw"), str(tmp_path / "x"), *options])
    assert isinstance(refused.exception, UserError)
    assert "--test-share: affectnet-2021 has its own splits (train, test)" in str(refused.exception)
    assert "--splits drawn" in str(refused.exception)
    assert not (tmp_path / "x").exists()
    manifest, _, told = packed("affectnet-2021", tmp_path / "raw", tmp_path / "out", "--splits", "drawn", *options)
    assert {split: sum(s.samples for s in manifest.shards if s.split == split) for split in manifest.splits} == {
        "train": 6, "val": 4, "test": 2,
    }  # fmt: skip
    assert "official validation set is the split" not in told + (tmp_path / "out" / "summary.md").read_text()


def test_a_box_in_fractions_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    """The green square in the box fills every crop, however the picture is stored; Pillow's turn is the judge."""
    upright = Image.new("RGB", (80, 120), (200, 30, 30))
    ImageDraw.Draw(upright).rectangle((10, 80, 30, 100), fill=(20, 200, 20))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose that undoes the viewer's turn
    for kind in ("jpg", "png", "webp", "tiff"):
        for orientation in range(1, 9):
            tags = Image.Exif()
            tags[0x0112] = orientation
            name = f"{kind}{orientation}"
            folder = tmp_path / "raw" / ("test" if orientation == 1 else "train")
            image, label = folder / "images" / f"{name}.{kind}", folder / "labels" / f"{name}.txt"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
            stored.save(image, exif=tags.tobytes())
            with Image.open(image) as opened:
                turned = ImageOps.exif_transpose(opened).convert("RGB")
            assert turned.size == (80, 120)
            assert np.asarray(turned)[90, 20, 1] > 150
            label.write_text("4 0.25 0.75 0.25 0.166667\n")
    manifest, refused, _ = packed("auto", tmp_path / "raw", tmp_path / "out", "--crop", "margin-0.0@box")
    assert (manifest.counts["samples"], refused) == (32, {})
    for shard in manifest.shards:
        for sample in read_samples(tmp_path / "out" / shard.name):
            red, green, _ = decode_rgb(sample.image).reshape(-1, 3).mean(0)
            assert green > 150 > red, sample.record.source
