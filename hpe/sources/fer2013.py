"""FER2013 as one CSV (Goodfellow et al., "Challenges in Representation Learning: A Report on Three Machine Learning
Contests", 2013). Its copies with a folder per class are read by ``folders``.

On disk:

    fer2013.csv     emotion,pixels,Usage; pixels are 48 × 48 grey levels with spaces between, row after row

Labels: 0..6 = anger, disgust, fear, happy, sad, surprise, neutral, mapped to AffectNet's numbers. No angles.
Splits: ``Usage``: Training = train, PublicTest = val, PrivateTest = test.
Licence: research.
Where: the Kaggle competition "Challenges in Representation Learning: Facial Expression Recognition Challenge".
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.labels import FER2013, split_from_word
from hpe.core.table_files import TextTable, misfit
from hpe.data.records import Record
from hpe.sources.base import Keys, Raw, Reader, Reject, Source, keyed, whole

LICENCE: Final = "pictures of FER2013: research"
_USAGES: Final = ("Training", "PublicTest", "PrivateTest")
_SIDE: Final = 48


@dataclass(frozen=True, slots=True)
class PixelText:
    """A grey picture of 48 × 48 as a row of numbers."""

    text: str

    def read(self) -> bytes:
        """The picture as PNG.

        Raises:
            ValueError: not 2,304 numbers of 0..255.
        """
        from PIL import Image

        try:
            values = np.asarray([int(word) for word in self.text.split()])
        except ValueError as error:
            raise ValueError(f"pixels: {error}") from None
        if len(values) != _SIDE**2 or values.min() < 0 or values.max() > 255:
            raise ValueError(f"{len(values)} pixels, expected {_SIDE**2} of 0..255")
        out = io.BytesIO()
        Image.fromarray(values.astype(np.uint8).reshape(_SIDE, _SIDE)).save(out, "PNG")
        return out.getvalue()


def _csv(folder: Path) -> Path | None:
    places = [folder] if folder.is_file() else [folder / "fer2013.csv", folder / "fer2013" / "fer2013.csv"]
    for path in places:
        if path.suffix.lower() == ".csv" and path.is_file():
            _, header = next(TextTable.open(path).rows(), (0, []))
            if {"emotion", "pixels", "usage"} <= {name.strip().lower() for name in header}:
                return path
    return None


def _recognise(folder: Path) -> str | None:
    return f"FER2013: {path.name} with columns emotion, pixels, Usage" if (path := _csv(folder)) else None


def open_fer2013_csv(folder: Path) -> Source:
    """FER2013's ``fer2013.csv``: emotion, pixels, Usage (Training, PublicTest as val, PrivateTest as test).

    Raises:
        UserError: no such file or columns.
    """
    path = _csv(folder)
    if path is None:
        raise UserError(f"{folder}: expected fer2013.csv with the columns emotion, pixels and Usage")

    def rows() -> Iterator[Raw | Reject]:
        keys, lines = Keys(), TextTable.open(path).rows()
        _, header = next(lines)
        places = {name.strip().lower(): at for at, name in enumerate(header)}
        for line, cells in lines:
            source = f"{path.name}:{line}"
            if len(cells) <= max(places.values()):
                yield Reject(source, misfit(cells, len(places)))
                continue
            usage = cells[places["usage"]].strip()
            split = split_from_word(usage)
            try:
                emotion = whole("emotion", cells[places["emotion"]])
                if emotion is None or not 0 <= emotion < len(FER2013):
                    raise ValueError(f"emotion {emotion} is not 0..{len(FER2013) - 1}")
                if split is None:
                    raise ValueError(f"usage {usage[:40]!r} is none of {', '.join(_USAGES)}")
            except ValueError as error:
                yield Reject(source, str(error))
                continue
            record = Record(emotion=int(FER2013[emotion]), source=source, split=split)
            yield keyed(keys(f"{usage}/{line:06d}"), PixelText(cells[places["pixels"]]), record)

    return Source(
        name="fer2013-csv",
        variant="FER2013, pixels in a CSV",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=("train", "val", "test"),
        rows=rows,
    )


READERS: Final = (Reader("fer2013-csv", "fer2013.csv (emotion, pixels, Usage)", _recognise, open_fer2013_csv),)
