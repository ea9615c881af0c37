"""Copies of AffectNet in circulation: in YOLO's format, and the thesis' class folders joined with its tables.

On disk, YOLO's format (perhaps below a folder YOLO_format):

    data.yaml                               names of the classes; without it the eight emotions in alphabetical order
    train/images/a.jpg, train/labels/a.txt  class, then the face box as fractions of the picture; valid/, test/ too

On disk, the thesis' copy:

    Anger/123.jpg … Surprise/               a folder per emotion, perhaps below train/, val/, test/
    *.csv                                   Filename and any of Pitch, Yaw, Roll, Direction, Emotion

Labels: emotion of the class or folder. The thesis' tables add angles in degrees (predicted by Hopenet, not measured;
their yaw has the opposite sign and is negated here) and a direction.
Splits: those of the copy, which are not AffectNet's.
Licence and paper: see :mod:`hpe.sources.affectnet`.
Where: YOLO's format among the datasets of Kaggle; the thesis' copy from its author, its tables with the thesis.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import ALPHABETICAL, Emotion, direction_from_word, emotion_from_word, split_from_word
from hpe.core.table_files import TEXT_SUFFIXES, TextTable, misfit, with_point
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
    choice,
    entries,
    face_key,
    images,
    in_pixels,
    keyed,
    number,
    sample,
    shown,
    subfolders,
    whole,
)  # fmt: skip
from hpe.sources.folders import ClassFolder, affectnet_emotion, class_folders, home_of, splits_of
from hpe.sources.units import ANGLES, ASK, Units

# YOLO's format

_LARGEST_TEXT_BYTES: Final = 100_000


def _yolo_parts(folder: Path) -> list[Path]:
    home = folder / "YOLO_format" if (folder / "YOLO_format").is_dir() else folder
    return [
        part
        for part in subfolders(home)
        if split_from_word(part.name) and (part / "images").is_dir() and (part / "labels").is_dir()
    ]


def _recognise_yolo(folder: Path) -> str | None:
    if parts := _yolo_parts(folder):
        return f"YOLO's format: images/ and labels/ in {', '.join(p.name for p in parts)}"
    return None


def open_yolo(folder: Path) -> Source:
    """The copy in YOLO's format: ``train|valid|test/images/x.jpg`` and ``labels/x.txt`` (class and box of each face).

    Every face is a sample. Classes are those of ``data.yaml``, or the eight emotions in alphabetical order.

    Raises:
        UserError: no such folders, or classes in ``data.yaml`` that are no emotions.
    """
    parts = _yolo_parts(folder)
    if not parts:
        raise UserError(f"{folder}: no train/ (valid/, test/) with images/ and labels/ in it; expected YOLO's format")
    emotions, order = _classes(parts[0].parent / "data.yaml")

    home = parts[0].parent

    def rows() -> Iterator[Unread]:
        keys = Keys()
        for part in parts:
            for path in images(part / "images"):
                yield Unread(_yolo_rows, (keys(shown(path.relative_to(home))), home, part, path, emotions))

    return Source(
        name="affectnet-yolo",
        variant=f"YOLO's format, classes {order}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(dict.fromkeys(split for p in parts if (split := split_from_word(p.name)))),
        rows=rows,
        splits_notes=("the copy's own splits, not AffectNet's",),
        home=home,
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


def _yolo_rows(
    key: str, home: Path, part: Path, path: Path, emotions: tuple[Emotion, ...]
) -> Reject | tuple[Raw | Reject, ...]:
    """A picture's faces, one for each line of its label file."""
    source = shown(path.relative_to(home))
    label = part / "labels" / path.relative_to(part / "images").with_suffix(".txt")
    told = f"labels/{shown(label.name)}"
    try:
        lines = _start(label).decode("ascii", "replace").split("\n")
    except FileNotFoundError:
        return Reject(source, f"missing {told}")
    except OSError as error:
        return Reject(source, f"{told}: {error.strerror or error}")
    lines = [words for line in lines if (words := line.split())]
    if not lines:
        return Reject(source, f"no face in {told}")
    rows: list[Raw | Reject] = []
    boxes: set[Box] = set()
    for face, words in enumerate(lines, 1):
        try:
            emotion, box = _yolo_face(words, emotions)
        except ValueError as error:
            rows.append(Reject(source, f"{told}: {error}" + f" (face {face})" * (len(lines) > 1)))
            continue
        if box in boxes:
            rows.append(Reject(source, f"{told}: face {face} has the box of an earlier one", "copy"))
            continue
        boxes.add(box)
        record = Record(emotion, box=in_pixels(box, path), source=source, split=split_from_word(part.name))
        rows.append(keyed(face_key(key, face), path, record))
    return tuple(rows)


def _yolo_face(words: list[str], emotions: tuple[Emotion, ...]) -> tuple[int, Box]:
    """Emotion, and box in fractions of the picture.

    Raises:
        ValueError: not a class and four numbers.
    """
    kind, *sides = [number("label", word) for word in words]
    if kind is None or kind not in range(len(emotions)) or len(sides) != 4 or None in sides:
        raise ValueError(f"{' '.join(words)[:80]!r} is no class of 0..{len(emotions) - 1} and four numbers")
    x, y, width, height = (side for side in sides if side is not None)
    box_of(0, 0, width, height)
    return int(emotions[int(kind)]), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


# The thesis


_THESIS_COLUMNS: Final = ("Pitch", "Yaw", "Roll", "Direction", "Emotion")


def _thesis_tables(folder: Path) -> list[tuple[TextTable, dict[str, int]]]:
    """Text tables of a folder with a column Filename and at least one of the thesis' labels."""
    found = []
    for path in entries(folder):
        if path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
            table = TextTable.open(path)
            _, header = next(table.rows(), (0, []))
            places = {name.strip(): at for at, name in enumerate(header)}
            if "Filename" in places and places.keys() & set(_THESIS_COLUMNS):
                found.append((table, places))
    return found


def _emotion_folders(folder: Path) -> list[ClassFolder]:
    return [c for c in class_folders(folder) if affectnet_emotion(c.name) is not None]


def _recognise_thesis(folder: Path) -> str | None:
    if folder.is_dir() and (tables := _thesis_tables(folder)) and _emotion_folders(folder):
        names = ", ".join(table.path.name for table, _ in tables)
        return f"the thesis' class folders beside its tables {names}"
    return None


def open_thesis(folder: Path, *, tables: str = "", angles: str = ASK) -> Source:
    """The thesis' copy of AffectNet: class folders ``Anger`` … ``Surprise``, and CSV tables with Filename and
    any of Pitch, Yaw, Roll, Direction, Emotion.

    Yaw is negated here: the thesis' tables hold ``-yaw``. The angles are Hopenet's predictions, not measured. A
    picture in a table with "test" in its name and a column Emotion is ``test``, the others are ``train``; without such
    a table a picture has the split of the folder above its class. A row without its picture is rejected, as is a
    picture whose folder and table give different emotions.

    Args:
        folder: the class folders.
        tables: folder of the tables, where they do not lie beside the class folders.
        angles: ``degrees``, as in the thesis, or ``radians``; ``ask``: degrees, unless nearly all could be radians.

    Raises:
        UserError: no class folders or no such tables, or angles of an unclear unit.
    """
    choice("thesis", "angles", angles, ANGLES)
    at = Path(tables) if tables else folder
    found, classes = _thesis_tables(at), _emotion_folders(folder)
    if not found or not classes:
        missing = "no class folders of emotions" if found else f"no CSV with Filename and labels in {at}"
        raise UserError(f"{folder}: {missing}; expected the thesis' class folders and its tables (tables=FOLDER)")
    has_test = any("test" in table.path.name.lower() and "Emotion" in places for table, places in found)
    units = Units(shown(folder))
    for table, places in found:
        for _, cells in itertools.islice(table.rows(), 1, None):
            for name in places.keys() & {"Pitch", "Yaw", "Roll"}:
                with contextlib.suppress(ValueError, IndexError):
                    units.add([number(name, with_point(cells[places[name]]))])
    units.check(angles=angles, boxes=ASK)
    return Source(
        name="thesis",
        variant=f"the thesis' class folders with {', '.join(table.path.name for table, _ in found)}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=("train", "test") if has_test else splits_of(classes),
        rows=partial(_thesis_rows, classes, found, has_test, angles == "radians"),
        notes=("angles are Hopenet's predictions of the thesis; yaw negated to our sign",),
        home=home_of(classes),
    )


def _thesis_rows(
    classes: list[ClassFolder], tables: list[tuple[TextTable, dict[str, int]]], has_test: bool, radians: bool
) -> Iterator[Raw | Reject]:
    """Rejected rows of the tables, then every picture with its labels, then rows without a picture."""
    labels: dict[str, Record] = {}
    rejects: list[Reject] = []
    for table, places in tables:
        for line, cells in itertools.islice(table.rows(), 1, None):
            rejects += _join(labels, f"{table.path.name}:{line}", places, cells, radians)
    yield from rejects
    keys, without_picture = Keys(), dict.fromkeys(labels)
    home = home_of(classes)
    for part in classes:
        emotion = affectnet_emotion(part.name)
        assert emotion is not None
        for path in images(part.path):
            without_picture.pop(shown(path.name), None)
            source = shown(path.relative_to(home))
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
    labels: dict[str, Record], here: str, places: dict[str, int], cells: list[str], radians: bool
) -> Iterator[Reject]:
    """Add a table's row to the labels of its picture; of several tables with the same label the first one counts."""
    if len(cells) <= max(places.values()):
        yield Reject(here, misfit(cells, max(places.values()) + 1))
        return
    cell = {name: cells[at].strip() for name, at in places.items()}
    name = shown(PurePosixPath(cell["Filename"]).name)
    if not name:
        yield Reject(here, "no Filename")
        return
    try:
        new = _thesis_record(cell, here, radians)
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


def _thesis_record(cell: dict[str, str], here: str, radians: bool) -> Record:
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
    yaw, pitch, roll = (number(name, with_point(cell.get(name, ""))) for name in ("Yaw", "Pitch", "Roll"))
    if radians:
        yaw, pitch, roll = (None if angle is None else math.degrees(angle) for angle in (yaw, pitch, roll))
    if any(angle is not None and not math.fabs(angle) <= 360 for angle in (yaw, pitch, roll)):
        raise ValueError("an angle beyond ±360")
    return Record(
        emotion=None if emotion is None else int(emotion),
        yaw=None if yaw is None else -yaw,
        pitch=pitch,
        roll=roll,
        direction=None if direction is None else int(direction),
        source=here,
        split="test" if "test" in here.lower() and emotion is not None else None,
    )


READERS: Final = (
    Reader("affectnet-yolo", "train/images/ with train/labels/ (YOLO's format)", _recognise_yolo, open_yolo),
    Reader(
        "thesis",
        "class folders of emotions beside CSV tables with Filename",
        _recognise_thesis,
        open_thesis,
        {"angles": ANGLES},
    ),
)
