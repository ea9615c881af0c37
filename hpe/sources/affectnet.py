"""AffectNet as released: the CSV release of 2017 and the eight-label release of 2021 (Mollahosseini, Hasani and
Mahoor, "AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in the Wild", 2017).

On disk, 2017:

    training.csv, validation.csv            here or in a folder *file_lists*; some copies have no header row
    Manually_Annotated_Images/1/a.jpg …     whole photos; the table holds face box and 68 landmarks in their pixels
    Automatically_Annotated_Images/         with automatically_annotated.csv, where that part is there

On disk, 2021:

    train_set/images/0.jpg …                faces cropped to 224 px
    train_set/annotations/0_exp.npy …       also _val, _aro, _lnd; numbers may be stored as text
    val_set/                                the same

Labels: expression 0..7 = neutral, happy, sad, surprise, fear, disgust, anger, contempt; 8..10 (none, uncertain, no
face) are rejected. Valence and arousal in -1..1, -2 = not labelled. No angles.
Splits: the official validation set becomes ``test``, so that nobody selects a model on it.
Licence: research by those who signed the agreement; pictures must not be passed on.
Where: from the authors, on request by a member of a university or institute.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import AFFECTNET_NOT_EMOTIONS, AFFECTNET_UNLABELLED_VALENCE, EMOTIONS
from hpe.core.table_files import TextTable, misfit
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.sources.base import (
    Faces,
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    Unread,
    box_of,
    choice,
    entries,
    images,
    keyed,
    number,
    shown,
    to_pixels,
    whole,
)  # fmt: skip
from hpe.sources.paths import ImageFinder
from hpe.sources.units import ASK, BOXES, Units

LICENCE: Final = (
    "AffectNet: for research by those who signed its agreement; no redistribution of pictures "
    "(http://mohammadmahoor.com/affectnet)"
)
EXPECTED_2021: Final = {"train": 287_651, "test": 3_999}
"""Pictures of the eight-label release."""
OFFICIAL_VALIDATION: Final = "the official validation set is the split test; choose models on a val cut from train"
COLUMNS: Final = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks",
    "expression", "valence", "arousal",
)  # fmt: skip
_TABLES: Final = {
    "training.csv": "train",
    "validation.csv": "test",
    "automatically_annotated.csv": "train",
}
_PICTURE_FOLDERS: Final = ("Manually_Annotated_Images", "Automatically_Annotated_Images")
_BOX: Final = ("face_x", "face_y", "face_width", "face_height")
_LANDMARK_NUMBERS: Final = 136
_LARGEST_NPY_BYTES: Final = 1 << 16
_LONGEST_TOLD: Final = 200


def emotion_of(expression: int | None) -> int | None:
    """AffectNet's expression as an emotion, 0..7.

    Raises:
        ValueError: 8 (none), 9 (uncertain), 10 (no face), or no expression of AffectNet.
    """
    if expression is not None and expression in AFFECTNET_NOT_EMOTIONS:
        raise ValueError(f"expression {expression} ({AFFECTNET_NOT_EMOTIONS[expression]}) is no emotion")
    if expression is not None and not 0 <= expression < len(EMOTIONS):
        raise ValueError(f"expression {expression} is not 0..10")
    return expression


def affect_of(value: float | None) -> float | None:
    """Valence or arousal; AffectNet's -2 is "not labelled"."""
    return None if value == AFFECTNET_UNLABELLED_VALENCE else value


def landmarks_of(numbers: list[float]) -> tuple[tuple[float, float], ...]:
    """68 points of 136 numbers x, y, x, y …

    Raises:
        ValueError: another number of numbers.
    """
    if len(numbers) != _LANDMARK_NUMBERS:
        raise ValueError(f"landmarks of {len(numbers)} numbers, expected {_LANDMARK_NUMBERS}")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


# The release of 2017


def _tables(folder: Path) -> list[Path]:
    below = [entry for entry in entries(folder) if entry.is_dir() and "file_lists" in entry.name.lower()]
    return [path for name in _TABLES for at in (folder, *below) if (path := at / name).is_file()]


def _recognise_2017(folder: Path) -> str | None:
    tables = _tables(folder)
    if tables and any((folder / name).is_dir() for name in _PICTURE_FOLDERS):
        return f"AffectNet's release of 2017: {' and '.join(t.name for t in tables)} beside the pictures"
    return None


def open_2017(folder: Path, *, boxes: str = ASK) -> Source:
    """AffectNet's release of 2017: ``training.csv``, ``validation.csv``, ``Manually_Annotated_Images/``.

    A NULL box is a missing label, as are valence and arousal of -2. Of several rows for one face of a picture only
    the first is used.

    Args:
        folder: holds the tables and the pictures.
        boxes: ``pixels``, as released, or ``fractions`` of the picture, as some copies have them.

    Raises:
        UserError: no such table, a table without the column of paths or expressions, or boxes of an unclear unit.
    """
    choice("affectnet-2017", "boxes", boxes, BOXES)
    tables = _tables(folder)
    if not tables:
        raise UserError(
            f"{folder}: no {' or '.join(_TABLES)} here or in *file_lists*/; expected AffectNet's release of 2017"
        )
    opened = [_Table.open(folder, path) for path in tables]
    units = Units(shown(folder))
    for table in opened:
        for _, cells in table.rows():
            with contextlib.suppress(ValueError, IndexError):
                units.add((), _box({name: cells[at] for name, at in table.places.items() if name in _BOX}))
    units.check(angles=ASK, boxes=boxes)

    def rows() -> Iterator[Raw | Reject | Unread]:
        faces = Faces()
        for table in opened:
            paths = ImageFinder(table.home, table.root, table.text.encoding)
            for line, cells in table.rows():
                row = _row_2017(faces, paths, table, line, cells)
                yield to_pixels(row) if boxes == "fractions" else row

    header = "" if all(table.header for table in opened) else " (no header row)"
    return Source(
        name="affectnet-2017",
        variant=f"2017 release, {' + '.join(t.name for t in tables)}{header}",
        licence=LICENCE,
        publishable=False,
        default_crop="square-1.2@box",
        splits=tuple(dict.fromkeys(_TABLES[t.name] for t in tables)),
        rows=rows,
        home=opened[0].home,
        splits_notes=(OFFICIAL_VALIDATION,),
    )


def _picture_root(folder: Path, name: str) -> Path:
    """The pictures' folder: some archives nest it in a folder of its own name."""
    root = folder / name if (folder / name).is_dir() else folder
    return root / name if (root / name).is_dir() else root


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the 2017 release: its file, the folder of its pictures, its columns, and whether it has a header."""

    text: TextTable
    root: Path
    places: dict[str, int]
    header: bool

    @classmethod
    def open(cls, folder: Path, path: Path) -> "_Table":
        """Raises: UserError: the table is empty, or lacks the column of paths or expressions."""
        automatic = path.name.startswith("automatically")
        text = TextTable.open(path, cells=len(COLUMNS))
        return cls(text, _picture_root(folder, _PICTURE_FOLDERS[automatic]), *_columns(text))

    @property
    def home(self) -> Path:
        """Where sources start: some archives nest the pictures' folder in one of its own name, which has no part."""
        return self.root.parent if self.root.name in _PICTURE_FOLDERS else self.root

    @property
    def name(self) -> str:
        """Of the file."""
        return self.text.path.name

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row below the header."""
        return itertools.islice(self.text.rows(), int(self.header), None)


def _columns(text: TextTable) -> tuple[dict[str, int], bool]:
    """Where each column is, and whether the table has a header."""
    table = text.path
    first = next(text.rows(), None)
    if first is None:
        raise UserError(f"{table}: empty; expected rows of {', '.join(COLUMNS)}")
    cells = [cell.strip() for cell in first[1]]
    if len(cells) == len(COLUMNS) and cells[6].lstrip("-").isdigit():
        return {name: at for at, name in enumerate(COLUMNS)}, False
    places = {name: cells.index(name) for name in COLUMNS if name in cells}
    for name in ("subDirectory_filePath", "expression"):
        if name not in places:
            raise UserError(
                f"{table} (read as {text.found}): no column {name!r}; found {', '.join(cells)[:200]}; "
                f"expected {', '.join(COLUMNS)}, with or without a header row"
            )
    return places, True


def _row_2017(faces: Faces, paths: ImageFinder, table: _Table, line: int, cells: list[str]) -> Raw | Reject:
    here = f"{table.name}:{line}"
    columns = max(table.places.values()) + 1
    if len(cells) < columns:
        return Reject(here, f"{misfit(cells, columns)}: {shown(cells[0])[:80]}")
    cell = {name: cells[at].strip() for name, at in table.places.items()}
    name = cell["subDirectory_filePath"]
    source = shown(name)[:_LONGEST_TOLD] or here
    try:
        path, source = paths.find(name)
        record = Record(
            emotion=emotion_of(whole("expression", cell["expression"])),
            valence=affect_of(number("valence", cell.get("valence"))),
            arousal=affect_of(number("arousal", cell.get("arousal"))),
            box=_box(cell),
            landmarks=_landmarks_2017(cell.get("facial_landmarks", "")),
            source=source,
            split=_TABLES[table.name],
        )
    except ValueError as error:
        return Reject(source, f"{error} ({here})")
    return faces.sample(path, record, here)


def _box(cell: dict[str, str]) -> Box | None:
    x, y, width, height = (number(name, cell.get(name)) for name in _BOX)
    if x is None or y is None or width is None or height is None:
        return box_of(x, y, width, height)  # None where all four are missing, an error for half a box
    return box_of(x, y, x + width, y + height)


def _landmarks_2017(text: str) -> tuple[tuple[float, float], ...] | None:
    if text.lower() in ("", "null"):
        return None
    try:
        return landmarks_of([*map(float, text.split(";"))])
    except ValueError as error:
        raise ValueError(f"landmarks are not {_LANDMARK_NUMBERS} numbers: {error}") from None


# The release of 2021

_SETS: Final = {"train_set": "train", "val_set": "test"}


def _sets(folder: Path) -> list[Path]:
    return [
        folder / name
        for name in _SETS
        if (folder / name / "images").is_dir() and (folder / name / "annotations").is_dir()
    ]


def _recognise_2021(folder: Path) -> str | None:
    if found := _sets(folder):
        return (
            "AffectNet's eight-label release of 2021: "
            f"{' and '.join(f'{s.name}/images, {s.name}/annotations' for s in found)}"
        )
    return None


def open_2021(folder: Path) -> Source:
    """AffectNet's eight-label release of 2021: ``train_set|val_set/images/<id>.jpg`` and four ``.npy`` each.

    Raises:
        UserError: neither set is there.
    """
    found = _sets(folder)
    if not found:
        raise UserError(
            f"{folder}: neither train_set/ nor val_set/ with images/ and annotations/ in it; "
            "expected AffectNet's release of 2021"
        )

    def rows() -> Iterator[Unread]:
        keys = Keys()
        for part in found:
            for path in images(part / "images"):
                yield Unread(_row_2021, (keys(shown(path.relative_to(folder))), folder, part, path))

    return Source(
        name="affectnet-2021",
        variant=f"2021 eight-label release, {' + '.join(s.name for s in found)}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(_SETS[s.name] for s in found),
        rows=rows,
        expected=EXPECTED_2021 if len(found) == len(_SETS) else {},
        splits_notes=(OFFICIAL_VALIDATION,),
    )


def _row_2021(key: str, folder: Path, part: Path, path: Path) -> Raw | Reject:
    source = shown(path.relative_to(folder))
    at = part / "annotations"

    def numbers(name: str) -> list[float] | None:
        file = at / f"{path.stem}_{name}.npy"
        try:
            return npy_numbers(file)
        except FileNotFoundError:
            return None

    try:
        expression = numbers("exp")
        if expression is None:
            return Reject(source, f"missing annotations/{shown(path.stem)}_exp.npy")
        valence, arousal, landmarks = numbers("val"), numbers("aro"), numbers("lnd")
        record = Record(
            emotion=emotion_of(whole("expression", _single(expression))),
            valence=affect_of(number("valence", _single(valence)) if valence else None),
            arousal=affect_of(number("arousal", _single(arousal)) if arousal else None),
            landmarks=landmarks_of(landmarks) if landmarks else None,
            source=source,
            split=_SETS[part.name],
        )
    except (ValueError, OSError) as error:
        return Reject(source, str(error))
    return keyed(key, path, record)


def _single(numbers: list[float]) -> float:
    if len(numbers) != 1:
        raise ValueError(f"an annotation of {len(numbers)} numbers, expected one")
    return numbers[0]


def npy_numbers(path: Path) -> list[float]:
    """The numbers in a small ``.npy``, which may be stored as text; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: too large, damaged, or not of numbers.
    """
    with open_regular(path) as stream:
        data = stream.read(_LARGEST_NPY_BYTES + 1)
    if len(data) > _LARGEST_NPY_BYTES:
        raise ValueError(f"{path.name}: more than {_LARGEST_NPY_BYTES:,} bytes")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        # A damaged header could make np.load reserve any amount of memory.
        if kind.hasobject or kind.itemsize * int(np.prod(shape, dtype=object)) > len(data):
            raise ValueError(f"header of {kind} {shape} in a file of {len(data)} bytes")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.dtype.kind == "S":
            array = np.char.decode(array, "ascii")
        return [float(value) for value in array.astype(float).ravel()]
    except Exception as error:  # numpy's header parser raises many types on damaged files
        raise ValueError(f"{path.name}: not an array of numbers: {error}") from error


READERS: Final = (
    Reader(
        "affectnet-2021",
        "train_set/ or val_set/ with images/ and annotations/ in it",
        _recognise_2021,
        open_2021,
    ),
    Reader(
        "affectnet-2017",
        "training.csv or validation.csv beside Manually_Annotated_Images/",
        _recognise_2017,
        open_2017,
        {"boxes": BOXES},
    ),
)
