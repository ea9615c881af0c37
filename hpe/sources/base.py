"""What a reader of a raw dataset hands on: pictures with what the dataset says of them, and what it refused."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from hpe.records import Record

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_+=-]+")
_LONGEST_KEY: Final = 80
LARGEST_FILE_BYTES: Final = 256 << 20
"""No picture of a face is larger; a file that is would only fill the memory of a worker."""


class ImageData(Protocol):
    """A picture that is no file of its own (a row of pixels, a head to render); picklable and small."""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            OSError, ValueError: there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Raw:
    """One sample as the raw dataset has it.

    Attributes:
        key: unique in its source, the same at every reading; letters, digits and ``_ + = -`` only.
        image: a file, encoded bytes, or something small that reads them; picklable, for worker processes.
        record: what the dataset says; box and landmarks in pixels of the *raw* picture, ``source`` the path
            inside the raw dataset, ``split`` where the dataset itself has splits.
    """

    key: str
    image: Path | bytes | ImageData
    record: Record

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is empty, larger than ``LARGEST_FILE_BYTES``, or no regular file.
        """
        match self.image:
            case bytes() as data:
                pass
            case Path() as path:
                if not path.is_file():
                    raise FileNotFoundError("no such file" if not path.exists() else "not a regular file")
                if (size := path.stat().st_size) > LARGEST_FILE_BYTES:
                    raise ValueError(f"{size:,} bytes, more than the {LARGEST_FILE_BYTES:,} of any face picture")
                data = path.read_bytes()
            case other:
                data = other.read()
        if not data:
            raise ValueError("empty file (0 bytes)")
        return data


@dataclass(frozen=True, slots=True)
class Reject:
    """A row or file of the raw dataset that cannot become a sample, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A raw dataset, opened.

    Attributes:
        name: the reader's name, as ``hpe pack`` takes it.
        variant: which of the dataset's forms was found, in words for the manifest.
        licence: the dataset's terms as stated where it was found.
        publishable: False where the terms forbid passing pictures on.
        default_crop: crop rule that suits it (:class:`hpe.crops.CropRule` as text).
        splits: the splits that the dataset itself names, and every record carries; () when it names none, so
            that the packer makes all of them. With train and test but no val, val is cut from train.
        rows: reads it; every call starts afresh and gives the same rows in the same order.
        total: how many rows there will be, where that is known at once.
        notes: decisions that a reader of the manifest must know.
    """

    name: str
    variant: str
    licence: str
    publishable: bool
    default_crop: str
    splits: tuple[str, ...]
    rows: Callable[[], Iterator[Raw | Reject]] = field(repr=False)
    total: int | None = None
    notes: tuple[str, ...] = ()

    def read(self) -> Iterator[Raw | Reject]:
        """Every row, lazily, in a fixed order; keys are unique."""
        return self.rows()


@dataclass(frozen=True)
class Reader:
    """How one kind of raw dataset is recognised and opened.

    Attributes:
        name: as ``hpe pack`` takes it.
        looks_for: in words, what must be in the folder.
        recognise: why this folder is one of its kind, or None.
        open: opens a folder (or file) as a :class:`Source`; keyword arguments are the reader's options, all
            texts. Raises ``UserError`` when the folder is not what it looks for.
    """

    name: str
    looks_for: str
    recognise: Callable[[Path], str | None]
    open: Callable[..., Source]


def shown(path: Path | str) -> str:
    """A path as text that is valid UTF-8, with forward slashes; bytes of other encodings as ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")


class Keys:
    """Keys for the samples of one reading: the path without its extension, joined by ``_``.

    A key that is taken already, was altered to be safe, or was too long ends in a hash of the whole path, so
    that two files never share one.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, source: str) -> str:
        """The key of a source path (as :func:`shown` gives it), unique over all calls so far."""
        stem = source[: -len(suffix)] if (suffix := Path(source).suffix) else source
        plain = stem.strip("/").replace("/", "_")
        key = _UNSAFE.sub("-", plain)[-_LONGEST_KEY:]
        if key != plain or key in self._taken or not key:
            key = f"{key}-{hashlib.blake2b(source.encode(), digest_size=6).hexdigest()}"
        while key in self._taken:  # the same source twice, in different cases of damage
            key += "-again"
        self._taken.add(key)
        return key
