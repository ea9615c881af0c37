"""What a reader of a raw dataset yields: pictures with their labels, and rows that it rejects with a reason."""

import hashlib
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import EMOTIONS
from hpe.data.crops import Box
from hpe.data.image_files import UNREADABLE, walk
from hpe.data.records import Record

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_+=-]+")
_LONGEST_KEY: Final = 80
_LONGEST_FACE_KEY: Final = 94
"""What a shard's headers hold (:mod:`hpe.data.shards`)."""
LARGEST_FILE_BYTES: Final = 256 << 20
"""No picture of a face is larger; a larger file would only fill the memory of a worker."""


class ImageData(Protocol):
    """A picture without a file of its own (a row of pixels, a head to render); picklable and small."""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            OSError, ValueError: it cannot be read or made.
        """
        ...


@dataclass(frozen=True, slots=True)
class Raw:
    """One sample as the raw dataset has it.

    Attributes:
        key: unique in its source, the same at every reading; letters, digits and ``_ + = -`` only.
        image: a file, encoded bytes, or something small that reads them; picklable, for worker processes.
        record: the dataset's labels; box and landmarks in pixels of the *raw* picture, ``source`` the path
            inside the raw dataset, ``split`` where the dataset itself has splits.
    """

    key: str
    image: Path | bytes | ImageData
    record: Record

    def __reduce__(self) -> "tuple[Callable[..., Raw], tuple[str, str | bytes | ImageData, Record]]":
        # The default pickling of dataclasses and paths takes five times as long.
        return _raw, (self.key, str(self.image) if isinstance(self.image, Path) else self.image, self.record)

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is empty, larger than ``LARGEST_FILE_BYTES``, or not a regular file.
        """
        match self.image:
            case bytes() as data:
                pass
            case Path() as path:
                with open_regular(path) as stream:
                    if (size := os.fstat(stream.fileno()).st_size) > LARGEST_FILE_BYTES:
                        raise ValueError(f"{size:,} bytes, more than the {LARGEST_FILE_BYTES:,} of any face picture")
                    data = stream.read()
            case other:
                data = other.read()
        if not data:
            raise ValueError("empty file (0 bytes)")
        return data


def _raw(key: str, image: str | bytes | ImageData, record: Record) -> Raw:
    return Raw(key, Path(image) if isinstance(image, str) else image, record)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row or file of the raw dataset that cannot become a sample, and why.

    Attributes:
        source: where it is in the raw dataset.
        reason: for ``quarantine.jsonl``.
        kind: ``bad``: an item of the dataset that is missing, damaged or has no usable label; ``copy``: a second row
            or file of an item that is there already; ``foreign``: no item of this dataset. Many foreign ones mean
            that the folder is another dataset; neither these nor copies count towards its size.
    """

    source: str
    reason: str
    kind: Literal["bad", "copy", "foreign"] = "bad"


@dataclass(frozen=True, slots=True)
class Unread:
    """A picture whose labels lie in a file of their own: another process can read that.

    Attributes:
        function: of a module's top level, so that it can be pickled; gives the picture's one row, or one per face.
        arguments: small ones; the first is the row's key.
    """

    function: "Callable[..., Raw | Reject | tuple[Raw | Reject, ...]]"
    arguments: tuple[object, ...]

    def read(self) -> "tuple[Raw | Reject, ...]":
        """The rows, or a :class:`Reject` with whatever their reading raises: one row must not end the job."""
        try:
            found = self.function(*self.arguments)
        except Exception as error:
            return (Reject(shown(str(self.arguments[0])), f"cannot be read: {type(error).__name__}: {error}"),)
        return found if isinstance(found, tuple) else (found,)


def read_labels(rows: "Iterable[Raw | Reject | Unread]") -> "Iterator[Raw | Reject]":
    """Rows with their labels read."""
    for row in rows:
        if isinstance(row, Unread):
            yield from row.read()
        else:
            yield row


@dataclass(frozen=True)
class Source:
    """A raw dataset, opened.

    Attributes:
        name: the reader's name, as ``hpe pack`` takes it.
        variant: which of the dataset's variants was found, in words for the manifest.
        licence: the dataset's terms as stated where it was found.
        publishable: False where the terms forbid passing pictures on.
        default_crop: crop rule that suits it (:class:`hpe.data.crops.CropRule` as text).
        splits: the splits that the dataset itself names, and every record carries; () when it names none, so
            that the packer makes all of them. With train and test but no val, val is cut from train.
        rows: reads it; every call starts afresh and gives the same rows in the same order. Where labels lie in
            a file for each picture, rows are :class:`Unread`.
        total: how many rows there will be, where that is known at once.
        expected: documented number of items in each split (``all`` where the dataset has no splits of its own), when
            the variant claims to be the whole dataset; empty otherwise. A difference becomes a note, not an error.
        notes: decisions that a reader of the manifest must know.
        splits_notes: those that only hold where the dataset's own splits are used.
        late_notes: gives those that are known once all rows have been read.
        home: the folder that the ``source`` of its records starts from; None: the one that was opened.
    """

    name: str
    variant: str
    licence: str
    publishable: bool
    default_crop: str
    splits: tuple[str, ...]
    rows: Callable[[], Iterator[Raw | Reject | Unread]] = field(repr=False)
    total: int | None = None
    expected: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    splits_notes: tuple[str, ...] = ()
    late_notes: Callable[[], Sequence[str]] = field(default=tuple, repr=False)
    home: Path | None = None

    def read(self) -> Iterator[Raw | Reject]:
        """Every row, lazily, in a fixed order, labels read; keys are unique."""
        return read_labels(self.rows())


@dataclass(frozen=True)
class Reader:
    """How one kind of raw dataset is recognised and opened.

    Attributes:
        name: as ``hpe pack`` takes it.
        looks_for: in words, what must be in the folder.
        recognise: why this folder is one of its kind, or None.
        open: opens a folder (or file) as a :class:`Source`; keyword arguments are the reader's options, all
            of them text. Raises ``UserError`` when the folder is not what it looks for.
        choices: the allowed values of options that take one of a few, the default first.
    """

    name: str
    looks_for: str
    recognise: Callable[[Path], str | None]
    open: Callable[..., Source]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def shown(path: Path | str) -> str:
    """A path as text that is valid UTF-8, with forward slashes; bytes of other encodings as ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")


NOT_ITS_OWN: Final = "not named as a picture of"
"""Start of the reason for a ``foreign`` :class:`Reject`."""


class Keys:
    """Makes the keys of one reading: the path without its extension, its parts joined by ``_``.

    A key that is already taken, was altered to be safe, or was too long ends in a hash of the whole path, so
    that two files never share a key.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, source: str) -> str:
        """The key of a source path (as :func:`shown` gives it), unique over all calls so far."""
        if not source.isascii():  # some systems store names decomposed: a copy there must keep its keys
            source = unicodedata.normalize("NFC", source)
        stem = os.path.splitext(source)[0]  # noqa: PTH122 (a hundredth of the time of a Path)
        plain = stem.strip("/").replace("/", "_")
        key = _UNSAFE.sub("-", plain)[-_LONGEST_KEY:]
        if key != plain or key in self._taken or not key:
            key = f"{key}-{hashlib.blake2b(source.encode(), digest_size=6).hexdigest()}"
        while key in self._taken:  # the same source twice: a table may name one file in two rows
            key += "-again"
        self._taken.add(key)
        return key


def face_key(key: str, face: int) -> str:
    """The key of the n-th face of a picture, counted from 1: the first has the key of a picture of one face."""
    tail = "" if face == 1 else f"=face{face}"
    return key[-(_LONGEST_FACE_KEY - len(tail)) :] + tail


class Faces:
    """Makes the samples of one reading of a table. A face is a picture *and* its box: a group photo has several."""

    def __init__(self) -> None:
        self._keys = Keys()
        self._first: dict[tuple[str, Box | None], tuple[str, int | None, int]] = {}
        self._faces: dict[str, tuple[str, int]] = {}

    def sample(self, image: Path | bytes | ImageData, record: Record, here: str) -> Raw | Reject:
        """A sample with the next free key, or why it is none: an impossible value, or a row for a face that has one.

        Args:
            here: the row, for messages.
        """
        source = record.source or here
        labels = hash((record.emotion, record.direction, record.yaw, record.pitch, record.roll,
                       record.valence, record.arousal, record.emotion_votes))  # fmt: skip
        identity = (source, record.box)
        if identity in self._first:
            first, emotion, others = self._first[identity]
            if labels == others:
                return Reject(source, f"duplicate row {here}; the first is {first}", "copy")
            words = [f"{EMOTIONS[e]} in " if e is not None else "" for e in (emotion, record.emotion)]
            told = f"{words[0]}{first}, {words[1]}{here}; the first counts"
            return Reject(source, f"a second label for the same face: {told}", "copy")
        if problems := record.problems():
            return Reject(source, "; ".join(problems))
        self._first[identity] = here, record.emotion, labels
        key, face = self._faces.get(source, ("", 0))
        if not face:
            key = self._keys(source)
        self._faces[source] = key, face + 1
        return Raw(face_key(key, face + 1), image, record)


def in_pixels(box: Box, picture: Path | bytes) -> Box | None:
    """A box of fractions of the picture in pixels; None where the picture cannot be read (decoding will report why)."""
    from hpe.data.images import MOST_PIXELS, DecodeError, image_size  # late: torch, which worker processes have

    try:
        # Mostly by the header alone. What is above the limit that the user gave, decoding refuses and reports.
        width, height = image_size(picture, max_pixels=MOST_PIXELS)
    except (DecodeError, OSError):
        return None
    x0, y0, x1, y1 = box
    return x0 * width, y0 * height, x1 * width, y1 * height


def to_pixels(row: Raw | Reject) -> Raw | Reject | Unread:
    """A row whose box is in fractions of its picture; it becomes one in pixels where the picture is read."""
    return Unread(_to_pixels, (row.key, row)) if isinstance(row, Raw) and row.record.box is not None else row


def _to_pixels(key: str, raw: Raw) -> Raw:
    assert raw.key == key
    assert isinstance(raw.image, Path | bytes)
    assert raw.record.box is not None
    return replace(raw, record=replace(raw.record, box=in_pixels(raw.record.box, raw.image)))


def sample(keys: Keys, image: Path | bytes | ImageData, record: Record) -> Raw | Reject:
    """A sample with the next free key, or a :class:`Reject` where its record holds an impossible value."""
    return keyed(keys(record.source or ""), image, record)


def keyed(key: str, image: Path | bytes | ImageData, record: Record) -> Raw | Reject:
    """A sample with this key, or a :class:`Reject` where its record holds an impossible value."""
    if problems := record.problems():
        return Reject(record.source or "", "; ".join(problems))
    return Raw(key, image, record)


def entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted by the bytes of their names, without hidden ones.

    Raises:
        UserError: the folder exists and cannot be read.
    """
    try:
        found = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted((p for p in found if not p.name.startswith(".")), key=os.fsencode)


def _unreadable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be read ({error.strerror}); make it readable, or move it elsewhere")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return [entry for entry in entries(folder) if entry.is_dir()]


def images(folder: Path) -> Iterator[Path]:
    """The pictures of a folder and below, in the order of names: :func:`hpe.data.image_files.walk`.

    What else is there, ``hpe pack`` counts by itself.

    Raises:
        UserError: a folder cannot be read; without the error its pictures would be missing silently.
    """
    for found in walk(folder):
        if isinstance(found, Path):
            yield found
        elif found.kind.startswith(UNREADABLE):
            reason = found.kind.removeprefix(f"{UNREADABLE} ").strip("()")
            raise UserError(f"{found.path}: cannot be read ({reason}); make it readable, or move it elsewhere")


def home_of_images(folder: Path, own: Callable[[str], object], part: Callable[[str], object]) -> Path:
    """The folder that a dataset's own paths start from, wherever above or below it somebody points.

    Keys, and the splits drawn by them, must not depend on the names of the folders above it.

    Args:
        own: whether a picture's name without its suffix is one of the dataset.
        part: whether a folder's name is one of the dataset's own, so that its paths start above it.
    """
    parents = {path.parent for path in images(folder) if own(path.stem)}
    home = Path(os.path.commonpath(parents)) if parents else folder
    while part(home.name):
        home = home.parent
    return home


def below(home: Path, folder: Path, path: Path) -> str:
    """A picture's path in its dataset; of a foreign one, beside the dataset's folder, in the folder that was given."""
    return shown(path.relative_to(home if path.is_relative_to(home) else folder))


def first_images(folder: Path, most: int = 200) -> Iterator[Path]:
    """The first of :func:`images`: enough to recognise a dataset, and quick in a folder of a million files."""
    return itertools.islice(images(folder), most)


_EMPTY_CELLS: Final = frozenset(("", "null", "none", "na", "n/a"))


class NotANumberError(ValueError):
    """A cell holds some other text where a number is expected."""


def number(name: str, text: str | float | None) -> float | None:
    """The number in a table's cell; None for an empty cell, NULL and the like: no label there.

    NaN is not an empty cell but an error: a computation went wrong and left it.

    Args:
        name: what the number is, for the message.
        text: the cell.

    Raises:
        ValueError: anything else that is not a finite number.
    """
    if text is None or (isinstance(text, str) and text.strip().lower() in _EMPTY_CELLS):
        return None
    try:
        # Python reads 1_000, too, and the digits of any script.
        if isinstance(text, str) and ("_" in text or not text.isascii()):
            raise ValueError
        value = float(text)
    except (TypeError, ValueError):
        raise NotANumberError(f"{name} {str(text)[:40]!r} is not a number") from None
    if math.isnan(value):
        raise ValueError(f"{name} is NaN; leave the cell empty where there is no label")
    if math.isinf(value):
        raise ValueError(f"{name} {str(text)[:40]!r} is not a finite number")
    return value


def whole(name: str, text: str | float | None) -> int | None:
    """As :func:`number`, for whole numbers; ``3.0`` is 3.

    Raises:
        ValueError: not a whole number.
    """
    value = number(name, text)
    if value is not None and value != int(value):
        raise ValueError(f"{name} {str(text)[:40]!r} is not a whole number")
    return None if value is None else int(value)


def box_of(x0: float | None, y0: float | None, x1: float | None, y1: float | None) -> Box | None:
    """The box of four sides; None where all of them are missing.

    Raises:
        ValueError: only some are missing, or width or height is not positive.
    """
    if x0 is None and y0 is None and x1 is None and y1 is None:
        return None
    if x0 is None or y0 is None or x1 is None or y1 is None:
        raise ValueError(f"half a box: x0 {x0}, y0 {y0}, x1 {x1}, y1 {y1}")
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"box {x0:g}, {y0:g}, {x1:g}, {y1:g} has no positive width and height")
    return x0, y0, x1, y1


def choice(reader: str, option: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value of an option that must be one of a few.

    Raises:
        UserError: it is not one of them.
    """
    if value not in allowed:
        raise UserError(f"source {reader}: option {option} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def pairs(reader: str, option: str, text: str) -> Mapping[str, str]:
    """An option such as ``a=b,c=d`` as a mapping.

    Raises:
        UserError: a part has no ``=``, or a name appears twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value) or name in found:
            raise UserError(f"source {reader}: option {option}: {part!r}; expected name=value,name=value")
        found[name] = value
    return found
