"""Copies of AffectNet in circulation: in YOLO's format, and the thesis' class folders joined with its tables.

On disk, YOLO's format (perhaps below a folder YOLO_format):

    data.yaml                               names of the classes; without it the eight emotions in alphabetical order
    train/images/a.jpg, train/labels/a.txt  class, then the face box as fractions of the picture; valid/, test/ too

On disk, the thesis' copy:

    Anger/123.jpg … Surprise/               a folder per emotion
    *.csv                                   Filename and any of Pitch, Yaw, Roll, Direction, Emotion

Labels: emotion of the class or folder. The thesis' tables add angles in degrees (predicted by Hopenet, not measured;
their yaw has the opposite sign and is negated here) and a direction.
Splits: those of the copy, which are not AffectNet's.
Licence and paper: see :mod:`hpe.sources.affectnet`.
Where: YOLO's format among the datasets of Kaggle; the thesis' copy from its author, its tables with the thesis.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import ALPHABETICAL, Emotion, direction_from_word, emotion_from_word
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.sources.affectnet import LICENCE
from hpe.sources.base import (
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    Unread,
    box_of,
    entries,
    keyed,
    number,
    pictures,
    sample,
    shown,
    subfolders,
    table_rows,
    whole,
)  # fmt: skip
from hpe.sources.folders import SPLIT_WORDS, affectnet_emotion, class_folders

# YOLO's format

_LARGEST_TEXT_BYTES: Final = 100_000


def _yolo_parts(folder: Path) -> list[Path]:
    home = folder / "YOLO_format" if (folder / "YOLO_format").is_dir() else folder
    return [
        part
        for part in subfolders(home)
        if part.name.lower() in SPLIT_WORDS and (part / "images").is_dir() and (part / "labels").is_dir()
    ]


def _recognise_yolo(folder: Path) -> str | None:
    if parts := _yolo_parts(folder):
        return f"YOLO's format: images/ and labels/ in {', '.join(p.name for p in parts)}"
    return None


def open_yolo(folder: Path) -> Source:
    """The copy in YOLO's format: ``train|valid|test/images/x.jpg`` and ``labels/x.txt`` (class and box).

    Classes are those of ``data.yaml``, or the eight emotions in alphabetical order.

    Raises:
        UserError: no such folders, or classes in ``data.yaml`` that are no emotions.
    """
    parts = _yolo_parts(folder)
    if not parts:
        raise UserError(f"{folder}: no train/ (valid/, test/) with images/ and labels/ in it; expected YOLO's format")
    emotions, order = _classes(parts[0].parent / "data.yaml")

    def rows() -> Iterator[Unread]:
        keys = Keys()
        for part in parts:
            for path in pictures(part / "images"):
                yield Unread(_yolo_row, (keys(shown(path.relative_to(folder))), folder, part, path, emotions))

    return Source(
        name="affectnet-yolo",
        variant=f"YOLO's format, classes {order}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(dict.fromkeys(SPLIT_WORDS[p.name.lower()] for p in parts)),
        rows=rows,
        splits_notes=("the copy's own splits, not AffectNet's",),
    )


def _classes(path: Path) -> tuple[tuple[Emotion, ...], str]:
    if not path.is_file():
        return ALPHABETICAL, "in alphabetical order"
    try:
        raw: Any = yaml.safe_load(_start(path))
        names = raw["names"]
        names = [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else list(map(str, names))
    except (yaml.YAMLError, KeyError, TypeError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no names of classes in it: {error}") from error
    emotions = [emotion_from_word(name) for name in names]
    known = tuple(emotion for emotion in emotions if emotion is not None)
    if len(known) < len(emotions) or not known:
        raise UserError(f"{path}: classes {', '.join(names)[:200]}; expected words for emotions")
    return known, f"of data.yaml ({', '.join(names)})"


def _start(path: Path) -> bytes:
    with open_regular(path) as stream:
        return stream.read(_LARGEST_TEXT_BYTES)


def _yolo_row(key: str, folder: Path, part: Path, path: Path, emotions: tuple[Emotion, ...]) -> Raw | Reject:
    source = shown(path.relative_to(folder))
    label = part / "labels" / path.relative_to(part / "images").with_suffix(".txt")
    try:
        lines = _start(label).decode("ascii", "replace").split("\n")
        lines = [line.split() for line in lines if line.strip()]
    except FileNotFoundError:
        return Reject(source, f"missing labels/{shown(label.name)}")
    except OSError as error:
        return Reject(source, f"labels/{shown(label.name)}: {error.strerror or error}")
    if len(lines) != 1:
        return Reject(source, f"{len(lines)} faces in {shown(label.name)}, expected one")
    try:
        kind, *sides = [number("label", word) for word in lines[0]]
        if kind is None or kind not in range(len(emotions)) or len(sides) != 4 or None in sides:
            raise ValueError(f"{' '.join(lines[0])[:80]!r} is no class of 0..{len(emotions) - 1} and four numbers")
        x, y, width, height = (side for side in sides if side is not None)
        box_of(0, 0, width, height)
    except ValueError as error:
        return Reject(source, f"labels/{shown(label.name)}: {error}")
    record = Record(
        emotion=int(emotions[int(kind)]), box=_pixels(path, x, y, width, height),
        source=source, split=SPLIT_WORDS[part.name.lower()],
    )  # fmt: skip
    return keyed(key, path, record)


def _pixels(path: Path, x: float, y: float, width: float, height: float) -> Box | None:
    """A box of fractions in pixels; None where the picture's size cannot be read (decoding will report why)."""
    from hpe.data.images import DecodeError, picture_size  # late: it imports torch, which worker processes have

    try:
        across, down = picture_size(path)
    except (DecodeError, OSError):  # a damaged picture is named when it is decoded
        return None
    return (
        (x - width / 2) * across, (y - height / 2) * down,
        (x + width / 2) * across, (y + height / 2) * down,
    )  # fmt: skip


# The thesis


_THESIS_COLUMNS: Final = ("Pitch", "Yaw", "Roll", "Direction", "Emotion")


def _thesis_tables(folder: Path) -> list[tuple[Path, dict[str, int]]]:
    """CSV files of a folder with a column Filename and at least one of the thesis' labels."""
    found = []
    for path in entries(folder):
        if path.suffix.lower() == ".csv" and path.is_file():
            _, header = next(table_rows(path), (0, []))
            places = {name.strip(): at for at, name in enumerate(header)}
            if "Filename" in places and places.keys() & set(_THESIS_COLUMNS):
                found.append((path, places))
    return found


def _emotion_folders(folder: Path) -> bool:
    return any(affectnet_emotion(c.name) is not None for c in class_folders(folder))


def _recognise_thesis(folder: Path) -> str | None:
    if folder.is_dir() and (tables := _thesis_tables(folder)) and _emotion_folders(folder):
        names = ", ".join(path.name for path, _ in tables)
        return f"the thesis' class folders beside its tables {names}"
    return None


def open_thesis(folder: Path, *, tables: str = "") -> Source:
    """The thesis' copy of AffectNet: class folders ``Anger`` … ``Surprise``, and CSV tables with Filename and
    any of Pitch, Yaw, Roll, Direction, Emotion.

    Yaw is negated here: the thesis' tables hold ``-yaw``. The angles are Hopenet's predictions, not measured. A
    picture in a table with "test" in its name and a column Emotion is ``test``, the others are ``train``. A row
    without its picture is rejected, as is a picture whose folder and table give different emotions.

    Args:
        folder: the class folders.
        tables: folder of the tables, where they do not lie beside the class folders.

    Raises:
        UserError: no class folders or no such tables.
    """
    at = Path(tables) if tables else folder
    found = _thesis_tables(at)
    if not found or not _emotion_folders(folder):
        missing = "no class folders of emotions" if found else f"no CSV with Filename and labels in {at}"
        raise UserError(f"{folder}: {missing}; expected the thesis' class folders and its tables (tables=FOLDER)")
    has_test = any("test" in path.name.lower() and "Emotion" in places for path, places in found)
    return Source(
        name="thesis",
        variant=f"the thesis' class folders with {', '.join(path.name for path, _ in found)}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=("train", "test") if has_test else (),
        rows=partial(_thesis_rows, folder, found, has_test),
        notes=("angles are Hopenet's predictions of the thesis; yaw negated to our sign",),
    )


def _thesis_rows(folder: Path, tables: list[tuple[Path, dict[str, int]]], has_test: bool) -> Iterator[Raw | Reject]:
    """Rejected rows of the tables, then every picture with its labels, then rows without a picture."""
    labels: dict[str, Record] = {}
    rejects: list[Reject] = []
    for table, places in tables:
        for line, cells in table_rows(table):
            if line > 1:
                rejects += _join(labels, f"{table.name}:{line}", table, places, cells)
    yield from rejects
    keys, without_picture = Keys(), dict.fromkeys(labels)
    for part in class_folders(folder):
        if (emotion := affectnet_emotion(part.name)) is None:
            continue
        for path in pictures(part.path):
            without_picture.pop(shown(path.name), None)
            source = shown(path.relative_to(folder))
            record = labels.get(shown(path.name), Record())
            if record.emotion not in (None, int(emotion)):
                in_table = Emotion(record.emotion).name.lower()
                yield Reject(source, f"the table has {in_table}, the folder is {part.name}")
                continue
            split = record.split or ("train" if has_test else part.split)
            yield sample(keys, path, replace(record, emotion=int(emotion), source=source, split=split))
    for name in without_picture:
        yield Reject(name, f"a row in the tables ({labels[name].source}) without a picture")


def _join(
    labels: dict[str, Record], here: str, table: Path, places: dict[str, int], cells: list[str]
) -> Iterator[Reject]:
    """Add a table's row to the labels of its picture; of several tables with the same label the first one counts."""
    if len(cells) <= max(places.values()):
        yield Reject(here, f"{len(cells)} columns, expected {max(places.values()) + 1}")
        return
    cell = {name: cells[at].strip() for name, at in places.items()}
    name = shown(PurePosixPath(cell["Filename"]).name)
    if not name:
        yield Reject(here, "no Filename")
        return
    try:
        new = _thesis_record(cell, here, "test" in table.name.lower())
    except ValueError as error:
        yield Reject(name, f"{error} ({here})")
        return
    known = labels.get(name, Record())
    merged = {
        field: value
        for field in ("emotion", "yaw", "pitch", "roll", "direction", "source")
        if (value := getattr(known, field) if getattr(known, field) is not None else getattr(new, field)) is not None
    }
    split = "test" if "test" in (known.split, new.split) else None
    labels[name] = Record(**merged, split=split)


def _thesis_record(cell: dict[str, str], here: str, test: bool) -> Record:
    word, emotion_word = cell.get("Direction", ""), cell.get("Emotion", "")
    direction = direction_from_word(word)
    if direction is None and word:
        value = whole("direction", word)
        if value is not None and not 0 <= value <= 4:
            raise ValueError(f"direction {word!r} is not 0..4")
        direction = value
    emotion = emotion_from_word(emotion_word)
    if emotion is None and emotion_word:
        raise ValueError(f"emotion {emotion_word[:40]!r} is not a word for an emotion")
    yaw, pitch, roll = (number(name, cell.get(name)) for name in ("Yaw", "Pitch", "Roll"))
    if any(angle is not None and not math.fabs(angle) <= 360 for angle in (yaw, pitch, roll)):
        raise ValueError("an angle beyond ±360")
    return Record(
        emotion=None if emotion is None else int(emotion),
        yaw=None if yaw is None else -yaw,
        pitch=pitch,
        roll=roll,
        direction=None if direction is None else int(direction),
        source=here,
        split="test" if test and emotion is not None else None,
    )


READERS: Final = (
    Reader("affectnet-yolo", "train/images/ with train/labels/ (YOLO's format)", _recognise_yolo, open_yolo),
    Reader("thesis", "class folders of emotions beside CSV tables with Filename", _recognise_thesis, open_thesis),
)
