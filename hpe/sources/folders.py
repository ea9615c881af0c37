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
from hpe.core.labels import RAF_DB, Emotion, direction_from_word, emotion_from_word
from hpe.data.records import Record
from hpe.sources.affectnet import LICENCE as AFFECTNET_LICENCE
from hpe.sources.affectnet import OFFICIAL_VALIDATION
from hpe.sources.base import Keys, Raw, Reader, Reject, Source, entries, pairs, pictures, sample, shown, subfolders

SPLIT_WORDS: Final[Mapping[str, str]] = {
    "train": "train", "training": "train", "train_set": "train", "train_class": "train",
    "val": "val", "valid": "val", "validation": "val", "val_set": "val", "val_class": "val",
    "test": "test", "testing": "test", "test_set": "test",
}  # fmt: skip
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
    parts = [s for s in below if s.name.lower() in SPLIT_WORDS]
    if parts:
        return [ClassFolder(c, c.name, SPLIT_WORDS[part.name.lower()]) for part in parts for c in subfolders(part)]
    for only in below:  # an archive often unpacks to one folder that holds all the others
        if len(below) == 1 and any(s.name.lower() in SPLIT_WORDS for s in subfolders(only)):
            return class_folders(only)
    return [ClassFolder(c, c.name, None) for c in below]


def splits_of(classes: list[ClassFolder]) -> tuple[str, ...]:
    """The splits that these classes have, in the order train, val, test."""
    found = {c.split for c in classes}
    return tuple(split for split in ("train", "val", "test") if split in found)


def rows_of(
    folder: Path,
    classes: list[ClassFolder],
    labelled: Callable[[ClassFolder, Path], Record],
) -> Iterator[Raw | Reject]:
    """Every picture of every class, with the record that ``labelled`` makes (source and split are added)."""
    keys = Keys()
    for part in classes:
        above, skip = shown(part.path.relative_to(folder)), len(str(part.path))
        for path in pictures(part.path):
            source = above + shown(str(path)[skip:])
            record = labelled(part, path)
            yield sample(keys, path, replace(record, source=source, split=record.split or part.split))


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
        def labelled(part: ClassFolder, path: Path) -> Record:
            emotion = affectnet_emotion(part.name)
            assert emotion is not None
            return Record(emotion=int(emotion))

        return rows_of(folder, classes, labelled)

    return Source(
        name="affectnet-folders",
        variant=f"class folders by {'number' if by_number else 'word'}",
        licence=AFFECTNET_LICENCE,
        publishable=False,
        default_crop="none",
        splits=splits_of(classes),
        rows=rows,
        splits_notes=notes,
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
            return rows_of(folder, classes, lambda part, _: Record(emotion=int(RAF_DB[int(part.name)])))

        return Source("raf-db", "class folders 1 … 7", _RAF_LICENCE, False, "none", splits_of(classes), rows)
    table = _raf_list(folder)
    if table is None:
        raise UserError(f"{folder}: neither EmoLabel/list_patition_label.txt nor class folders 1 … 7 of RAF-DB")
    home = table.parent.parent if table.parent.name == "EmoLabel" else table.parent
    aligned = next((p for p in (home / "Image" / "aligned", home / "aligned") if p.is_dir()), None)
    if aligned is None:
        raise UserError(f"{home}: no Image/aligned/ beside {table.name}; expected RAF-DB's aligned pictures")

    def listed() -> Iterator[Raw | Reject]:
        keys, seen = Keys(), set()
        for line, text in enumerate(table.read_text("utf-8", "replace").splitlines(), 1):
            if text.strip():
                yield _raf_row(keys, seen, folder, aligned, f"{table.name}:{line}", text.split())

    return Source("raf-db", "list and aligned pictures", _RAF_LICENCE, False, "none", ("train", "test"), listed)


def _raf_row(keys: Keys, seen: set[str], folder: Path, aligned: Path, here: str, words: list[str]) -> Raw | Reject:
    name = words[0]
    split = next((s for s in ("train", "test") if name.startswith(f"{s}_")), None)
    if len(words) != 2 or split is None or "/" in name or "\0" in name:
        return Reject(here, f"{' '.join(words)[:80]!r} is not train_00001.jpg or test_0001.jpg and a number")
    if words[1] not in map(str, RAF_DB):
        return Reject(here, f"label {words[1][:20]!r} is not 1..7")
    plain = aligned / name
    path = plain.with_name(f"{plain.stem}_aligned{plain.suffix}")
    path = path if path.exists() or not plain.exists() else plain
    source = shown(path.relative_to(folder))
    if source in seen:
        return Reject(source, f"duplicate row {here}", "copy")
    seen.add(source)
    return sample(keys, path, Record(emotion=int(RAF_DB[int(words[1])]), source=source, split=split))


# Anybody's class folders, and FER2013's


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


def open_folders(folder: Path, *, classes: str = "", subject: str = "") -> Source:
    """One folder per class, at the top or below ``train``, ``val``, ``test``.

    Args:
        folder: the folder.
        classes: meaning of folders whose names are not words for an emotion or direction: ``0=neutral,AN=anger``;
            ``skip`` leaves a folder out.
        subject: regular expression to search in the path; its first group is the person: ``/(\\w\\w)\\.``
            for names such as JAFFE's ``KA.AN1.39.tiff``.

    Raises:
        UserError: a folder's name is not such a word and not in ``classes``; a bad expression.
    """
    mapping = pairs("folders", "classes", classes)
    person = _expression(subject)
    found = [c for c in class_folders(folder) if mapping.get(c.name) != "skip"]
    if not found:
        loose = sum(1 for e in entries(folder) if e.is_file())
        raise UserError(f"{folder}: no class folders, {loose:,} files; expected a folder per class, or use table")
    labels = {c.name: _labels_of(c.name, mapping) for c in found}
    unknown = [name for name, record in labels.items() if record is None]
    if unknown:
        raise UserError(
            f"{folder}: folders {', '.join(unknown[:12])} name no emotion or direction; "
            f"give their meaning with classes={unknown[0]}=neutral,… or {unknown[0]}=skip"
        )
    emotions = sorted({r.emotion for r in labels.values() if r and r.emotion is not None})
    is_fer = len(emotions) == 7 and Emotion.CONTEMPT not in emotions and {"angry", "surprise"} <= labels.keys()

    def rows() -> Iterator[Raw | Reject]:
        def labelled(part: ClassFolder, path: Path) -> Record:
            record = labels[part.name]
            assert record is not None
            match = person.search(shown(path)) if person else None
            return replace(record, subject=match[1]) if match else record

        return rows_of(folder, found, labelled)

    return Source(
        name="folders",
        variant=f"class folders {_names(found)}" + (", named as FER2013's" if is_fer else ""),
        licence="pictures of FER2013: research" if is_fer else "not stated; ask who gave you the pictures",
        publishable=False,
        default_crop="none",
        splits=splits_of(found),
        rows=rows,
    )


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
