"""Pictures in one folder per class: copies of AffectNet, RAF-DB, FER2013's copies, and anybody's own.

On disk, copies of AffectNet and anybody's own:

    train/0/a.jpg …                         classes by number, by word, or both (3, surprise, 3_surprise)
    0/a.jpg …                               the same without folders for splits

On disk, RAF-DB (basic emotions):

    EmoLabel/list_patition_label.txt        train_00001.jpg 5; the misspelt name is the dataset's own
    Image/aligned/train_00001_aligned.jpg   100 × 100
    DATASET/train/1/ … 7/                   or a copy with class folders

Labels: the class, as AffectNet's number or as a direction. RAF-DB's 1..7 = surprise, fear, disgust, happy, sad, anger,
neutral. No angles.
Splits: the folders', or those of RAF-DB's list. A copy of AffectNet with only train and val has the official
validation set, which becomes ``test``.
Licence: AffectNet: see :mod:`hpe.sources.affectnet`; RAF-DB: non-commercial research, no redistribution.
Where: RAF-DB from its authors, for members of universities; copies of all three among the datasets of Kaggle.
Paper: RAF-DB: Li, Deng and Du, "Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression
Recognition in the Wild", 2017.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.labels import (
    DIRECTIONS,
    EMOTIONS,
    RAF_DB,
    Emotion,
    direction_from_word,
    emotion_from_word,
    nearest_label,
    split_from_word,
    with_nearest,
)
from hpe.core.table_files import read_text
from hpe.data.records import Record
from hpe.sources.affectnet import LICENCE as AFFECTNET_LICENCE
from hpe.sources.affectnet import OFFICIAL_VALIDATION
from hpe.sources.base import (
    Faces,
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    entries,
    images,
    pairs,
    sample,
    shown,
    subfolders,
)

_CLASS_NUMBERS: Final = tuple(str(int(e)) for e in Emotion)
_NUMBERED: Final = re.compile(r"(\d{1,2})(?:[_ .-]*([A-Za-z]+))?")


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder of one class: where, its name, and the split of the folder above, if any."""

    path: Path
    name: str
    split: str | None


def class_folders(folder: Path) -> list[ClassFolder]:
    """The folders of classes, below folders of splits if there are any."""
    below = subfolders(folder)
    parts = [s for s in below if split_from_word(s.name)]
    if parts:
        return [ClassFolder(c, c.name, split_from_word(part.name)) for part in parts for c in subfolders(part)]
    for only in below:  # an archive often unpacks to one folder that holds all the others
        if len(below) == 1 and any(split_from_word(s.name) for s in subfolders(only)):
            return class_folders(only)
    return [ClassFolder(c, c.name, None) for c in below]


def home_of(classes: list[ClassFolder]) -> Path:
    """The dataset's own folder: what lies above it has no part in keys and splits."""
    first = classes[0]
    return first.path.parent if first.split is None else first.path.parent.parent


def splits_of(classes: list[ClassFolder]) -> tuple[str, ...]:
    """The splits that these classes have, in the order train, val, test."""
    found = {c.split for c in classes}
    return tuple(split for split in ("train", "val", "test") if split in found)


def rows_of(classes: list[ClassFolder], labelled: Callable[[ClassFolder, str], Record]) -> Iterator[Raw | Reject]:
    """Every picture of every class.

    Args:
        labelled: makes a picture's record from its class and its path below :func:`home_of`; source and split are
            added.
    """
    keys, home = Keys(), home_of(classes)
    for part in classes:
        for path, source in sources_of(part, home):
            record = labelled(part, source)
            yield sample(keys, path, replace(record, source=source, split=record.split or part.split))


def sources_of(part: ClassFolder, home: Path) -> Iterator[tuple[Path, str]]:
    """Every picture of a class, and its path below ``home``."""
    above, skip = shown(part.path.relative_to(home)), len(str(part.path))
    return ((path, above + shown(str(path)[skip:])) for path in images(part.path))


# AffectNet by class


def affectnet_emotion(name: str) -> Emotion | None:
    """The emotion of a class folder named ``3``, ``3_surprise`` or ``surprise``."""
    if match := _NUMBERED.fullmatch(name):
        number, word = match.groups()
        emotion = Emotion(int(number)) if number in _CLASS_NUMBERS else None
        return emotion if word is None or emotion is emotion_from_word(word) else None
    return emotion_from_word(name)


def _affectnet_classes(folder: Path) -> list[ClassFolder]:
    """Class folders when each split has all eight emotions, else none."""
    classes = [c for c in class_folders(folder) if affectnet_emotion(c.name) is not None]
    per_split = [
        {affectnet_emotion(c.name) for c in classes if c.split == split} for split in {c.split for c in classes}
    ]
    return classes if per_split and all(len(emotions) == len(Emotion) for emotions in per_split) else []


def _recognise_affectnet(folder: Path) -> str | None:
    if classes := _affectnet_classes(folder):
        return f"eight class folders with contempt among them, as AffectNet: {_names(classes)}"
    return None


def _names(classes: list[ClassFolder]) -> str:
    return ", ".join(dict.fromkeys(c.name for c in classes))


def open_affectnet_folders(folder: Path) -> Source:
    """A copy of AffectNet with a folder per class, named by AffectNet's number, by word, or both.

    In a copy with only train and val, val is the official validation set and becomes ``test``; a copy with its own
    test set keeps its names.

    Raises:
        UserError: not all eight classes are there.
    """
    classes = _affectnet_classes(folder)
    if not classes:
        found = ", ".join(c.name for c in class_folders(folder)[:12]) or "no folders"
        raise UserError(f"{folder}: class folders {found}; expected AffectNet's eight as 0 … 7 or by word")
    classes, notes = official_validation_apart(classes)
    by_number = all(c.name[0].isdigit() for c in classes)

    def rows() -> Iterator[Raw | Reject]:
        def labelled(part: ClassFolder, source: str) -> Record:
            emotion = affectnet_emotion(part.name)
            assert emotion is not None
            return Record(emotion=int(emotion))

        return rows_of(classes, labelled)

    return Source(
        name="affectnet-folders",
        variant=f"class folders by {'number' if by_number else 'word'}",
        licence=AFFECTNET_LICENCE,
        publishable=False,
        default_crop="none",
        splits=splits_of(classes),
        rows=rows,
        splits_notes=notes,
        home=home_of(classes),
    )


def official_validation_apart(classes: list[ClassFolder]) -> tuple[list[ClassFolder], tuple[str, ...]]:
    """The classes with ``val`` renamed to ``test`` where train and val are the only splits, and a note on it."""
    if set(splits_of(classes)) <= {"train", "val"} and splits_of(classes):
        apart = [ClassFolder(c.path, c.name, "test" if c.split == "val" else c.split) for c in classes]
        return apart, (OFFICIAL_VALIDATION,)
    return classes, ("the copy's own splits, not AffectNet's",) if splits_of(classes) else ()


# RAF-DB by class


def _raf_classes(folder: Path) -> list[ClassFolder]:
    home = folder / "DATASET" if (folder / "DATASET").is_dir() else folder
    classes = class_folders(home)
    return classes if classes and {c.name for c in classes} == set(map(str, RAF_DB)) else []


def _raf_list(folder: Path) -> Path | None:
    for place in ("EmoLabel", "basic/EmoLabel", ""):
        for name in ("list_patition_label.txt", "list_partition_label.txt"):
            if (path := folder / place / name).is_file():
                return path
    return None


def _recognise_raf(folder: Path) -> str | None:
    if path := _raf_list(folder):
        return f"RAF-DB: {shown(path.relative_to(folder))}"
    return "RAF-DB: class folders 1 … 7" if _raf_classes(folder) else None


_RAF_LICENCE: Final = "RAF-DB: non-commercial research only; no redistribution"


def open_raf_db(folder: Path) -> Source:
    """RAF-DB, basic emotions: ``EmoLabel/list_patition_label.txt`` with ``Image/aligned/``, or folders 1 … 7.

    Raises:
        UserError: neither is there, or no pictures beside the list.
    """
    if classes := _raf_classes(folder):

        def rows() -> Iterator[Raw | Reject]:
            return rows_of(classes, lambda part, _: Record(emotion=int(RAF_DB[int(part.name)])))

        return Source(
            "raf-db",
            "class folders 1 … 7",
            _RAF_LICENCE,
            False,
            "none",
            splits_of(classes),
            rows,
            home=home_of(classes),
        )
    table = _raf_list(folder)
    if table is None:
        raise UserError(f"{folder}: neither EmoLabel/list_patition_label.txt nor class folders 1 … 7 of RAF-DB")
    home = table.parent.parent if table.parent.name == "EmoLabel" else table.parent
    aligned = next((p for p in (home / "Image" / "aligned", home / "aligned") if p.is_dir()), None)
    if aligned is None:
        raise UserError(f"{home}: no Image/aligned/ beside {table.name}; expected RAF-DB's aligned pictures")

    def listed() -> Iterator[Raw | Reject]:
        faces = Faces()
        for line, text in enumerate(read_text(table).splitlines(), 1):
            if text.strip():
                yield _raf_row(faces, home, aligned, f"{table.name}:{line}", text.split())

    return Source(
        "raf-db", "list and aligned pictures", _RAF_LICENCE, False, "none", ("train", "test"), listed, home=home
    )


def _raf_row(faces: Faces, home: Path, aligned: Path, here: str, words: list[str]) -> Raw | Reject:
    name = words[0]
    split = next((s for s in ("train", "test") if name.startswith(f"{s}_")), None)
    if len(words) != 2 or split is None or "/" in name or "\0" in name:
        return Reject(here, f"{' '.join(words)[:80]!r} is not train_00001.jpg or test_0001.jpg and a number")
    if words[1] not in map(str, RAF_DB):
        return Reject(here, f"label {words[1][:20]!r} is not 1..7")
    plain = aligned / name
    path = plain.with_name(f"{plain.stem}_aligned{plain.suffix}")
    path = path if path.exists() or not plain.exists() else plain
    record = Record(emotion=int(RAF_DB[int(words[1])]), source=shown(path.relative_to(home)), split=split)
    return faces.sample(path, record, here)


# Anybody's class folders, and FER2013's

_KINDS: Final = ("emotion", "direction")
_WORDS: Final = ", ".join((*EMOTIONS, *DIRECTIONS))
_FEWEST_CLASSES: Final = 2
"""As many named folders make a folder one of classes."""


def _labels_of(name: str, mapping: Mapping[str, str]) -> Record | None:
    word = mapping.get(name, name)
    if (emotion := emotion_from_word(word)) is not None:
        return Record(emotion=int(emotion))
    if (direction := direction_from_word(word)) is not None:
        return Record(direction=int(direction))
    return None


def _recognise_folders(folder: Path) -> str | None:
    classes = class_folders(folder)
    named = [c for c in classes if _labels_of(c.name, {}) is not None]
    if len({c.name for c in named}) >= 2 and len(named) == len(classes):
        return f"one folder per emotion or direction: {_names(named)}"
    return None


def unknown_classes(folder: Path) -> list[str]:
    """The class folders that name no emotion or direction, where at least as many others do."""
    classes = {c.name: _labels_of(c.name, {}) for c in class_folders(folder)}
    unknown = [name for name, record in classes.items() if record is None]
    return unknown if 2 <= len(classes) - len(unknown) >= len(unknown) else []


def open_folders(folder: Path, *, classes: str = "", subject: str = "") -> Source:
    """One folder per class, at the top or below ``train``, ``val``, ``test``.

    Args:
        folder: the folder.
        classes: meaning of folders whose names are not words for an emotion or direction: ``0=neutral,AN=anger``;
            ``skip`` leaves a folder out.
        subject: regular expression to search in the path below ``folder``, such as ``happy/KA.HA1.29.tiff``; its
            first group is the person: ``/(\\w\\w)\\.``.

    Raises:
        UserError: a folder's name is not such a word and not in ``classes``; a bad expression.
    """
    found, labels = _named_classes(folder, pairs("folders", "classes", classes))
    person, notes = _people(subject, found)
    emotions = {record.emotion for record in labels.values() if record.emotion is not None}
    is_fer = len(emotions) == 7 and Emotion.CONTEMPT not in emotions and {"angry", "surprise"} <= labels.keys()

    def rows() -> Iterator[Raw | Reject]:
        def labelled(part: ClassFolder, source: str) -> Record:
            return replace(labels[part.name], subject=_person_of(person, source))

        return rows_of(found, labelled)

    return Source(
        name="folders",
        variant=f"class folders {_names(found)}" + (", named as FER2013's" if is_fer else ""),
        licence="pictures of FER2013: research" if is_fer else "not stated; ask who gave you the pictures",
        publishable=False,
        default_crop="none",
        splits=splits_of(found),
        rows=rows,
        notes=notes,
        home=home_of(found),
    )


def _named_classes(folder: Path, mapping: Mapping[str, str]) -> tuple[list[ClassFolder], dict[str, Record]]:
    """The class folders that are not left out, and the labels that each name stands for.

    Raises:
        UserError: there are none; one has no meaning; or the option names a folder or a label that does not exist.
    """
    everything = class_folders(folder)
    if not everything:
        loose = sum(1 for e in entries(folder) if e.is_file())
        raise UserError(f"{folder}: no class folders, {loose:,} files; expected a folder per class, or use table")
    if absent := [name for name in mapping if name not in {c.name for c in everything}]:
        raise UserError(
            f"{folder}: option classes: no folder is named {absent[0]!r}; the class folders are "
            f"{_names(everything)[:300]}"
        )
    found = [c for c in everything if mapping.get(c.name) != "skip"]
    if not found:
        raise UserError(f"{folder}: option classes skips every folder")
    read = {c.name: _labels_of(c.name, mapping) for c in found}
    if bad := [name for name in mapping if read.get(name, Record()) is None]:
        raise UserError(
            f"{folder}: option classes: {with_nearest(mapping[bad[0]], *_KINDS)} is no emotion or direction; expected "
            f"one of {_WORDS}, or skip"
        )
    labels = {name: record for name, record in read.items() if record is not None}
    if unknown := [name for name in read if name not in labels]:
        raise UserError(_unknown_folders(folder, unknown, found))
    return found, labels


def _unknown_folders(folder: Path, unknown: list[str], classes: list[ClassFolder]) -> str:
    """The message for class folders whose names say nothing."""
    named = f"{folder}: folders {', '.join(shown(with_nearest(name, *_KINDS)) for name in unknown[:12])}"
    if inner := [shown(c.path) for c in classes if c.name in unknown and _has_class_folders(c.path)]:
        where = f"{' and '.join(inner[:3])}: give {'that folder' if len(inner) == 1 else 'one of them'}"
        return f"{named} name no emotion or direction; the emotion folders are in {where}"
    first = unknown[0]
    return (
        f"{named} name no emotion or direction; expected {_WORDS}. Rename them, give their meaning with --option "
        f"classes={first}={nearest_label(first, *_KINDS) or 'EMOTION'},… or leave them out with {first}=skip"
    )


def _has_class_folders(folder: Path) -> bool:
    return sum(_labels_of(name, {}) is not None for name in {c.name for c in class_folders(folder)}) >= _FEWEST_CLASSES


def _people(subject: str, classes: list[ClassFolder]) -> tuple[re.Pattern[str] | None, tuple[str, ...]]:
    """The expression that finds a person, and a note on the pictures where it finds none.

    Raises:
        UserError: it finds none anywhere: splits would be drawn as if every picture were of another person.
    """
    person = _expression(subject)
    if person is None:
        return None, ()
    home = home_of(classes)
    names = [source for part in classes for _, source in sources_of(part, home)]
    without = [source for source in names if _person_of(person, source) is None]
    if names and len(without) == len(names):
        raise UserError(
            f"source folders: option subject: {subject!r} finds no person in any of {len(names):,} paths such as "
            f"{names[0]!r} and {names[-1]!r}; a file's name begins after a /"
        )
    if without:
        return person, (
            f"subject: {len(without):,} of {len(names):,} pictures name no person, such as {without[0]}; each counts "
            "as a person of its own",
        )
    return person, ()


def _person_of(person: re.Pattern[str] | None, source: str) -> str | None:
    match = person.search(source) if person else None
    return (match[1] or None) if match else None


def _expression(text: str) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"source folders: option subject: {text!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise UserError(f"source folders: option subject: {text!r} has no (group) for the person")
    return pattern


READERS: Final = (
    Reader("affectnet-folders", "eight class folders, 0 … 7 or by word", _recognise_affectnet, open_affectnet_folders),
    Reader("raf-db", "EmoLabel/list_patition_label.txt, or class folders 1 … 7", _recognise_raf, open_raf_db),
    Reader("folders", "one folder per emotion or direction", _recognise_folders, open_folders),
)
