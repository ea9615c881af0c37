"""FER2013 (folders or CSV) and its relabelling FER+ (Barsoum et al., "Training Deep Networks for Facial
Expression Recognition with Crowd-Sourced Label Distribution", 2016)."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.labels import FER2013, FERPLUS, FERPLUS_COLUMNS
from hpe.data.records import Record
from hpe.sources.base import (
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    choice,
    inside,
    number,
    sample,
    shown,
    table_rows,
    whole,
)  # fmt: skip

LICENCE: Final = "pictures of FER2013: research; labels of FER+: MIT (Microsoft)"
_FERPLUS_SETS: Final = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
_USAGES: Final = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_SIDE: Final = 48
_RANK: Final = {name: at for at, name in enumerate(FERPLUS_COLUMNS)}


# FER+


def _recognise_ferplus(folder: Path) -> str | None:
    found = [name for name in _FERPLUS_SETS if (folder / name / "label.csv").is_file()]
    return f"FER+: {', '.join(f'{name}/label.csv' for name in found)}" if found else None


def open_ferplus(folder: Path, *, ties: str = "first") -> Source:
    """FER+: ``FER2013Train|Valid|Test/`` with pictures and ``label.csv`` of ten votes.

    The emotion is the one with most votes; a picture whose winner is ``unknown`` or ``NF`` (no face) is
    rejected. The votes for the eight emotions are kept. The group ``votes`` says how sure they are: ``majority``
    where the winner has more than half of them, emotions with a single vote left out (the faces on which FER+'s
    paper counts its 0.8499: mode "majority" of its ``src/ferplus.py``), else ``plurality``, or ``tied``.

    Args:
        folder: holds the three sets.
        ties: among winners with as many votes, ``first`` takes the first in FER+'s order of columns (as
            ``argmax`` does, so that an emotion beats unknown and NF); ``none`` leaves the emotion unsaid (the votes
            stay).

    Raises:
        UserError: none of the sets is there.
    """
    choice("ferplus", "ties", ties, ("first", "none"))
    found = [name for name in _FERPLUS_SETS if (folder / name / "label.csv").is_file()]
    if not found:
        raise UserError(f"{folder}: no FER2013Train/label.csv (Valid, Test); expected FER+ with its pictures")

    def rows() -> Iterator[Raw | Reject]:
        keys, seen = Keys(), set()
        for name in found:
            for line, cells in table_rows(folder / name / "label.csv"):
                yield _ferplus_row(keys, seen, folder, name, line, cells, ties)

    return Source(
        name="ferplus",
        variant=f"FER+ votes, {', '.join(found)}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(_FERPLUS_SETS[name] for name in found),
        rows=rows,
        notes=(
            "emotion by most votes; unknown or NF as the winner is rejected",
            f"ties: {'the first in the order of columns' if ties == 'first' else 'no emotion'}; marked votes=tied",
            "votes=majority: more than half of the votes, single ones left out, as FER+'s paper counts its figures",
        ),
    )


def _ferplus_row(
    keys: Keys, seen: set[str], folder: Path, name: str, line: int, cells: list[str], ties: str
) -> Raw | Reject:
    here = f"{name}/label.csv:{line}"
    if len(cells) != 2 + len(FERPLUS_COLUMNS):
        return Reject(here, f"{len(cells)} columns, expected file, box and {len(FERPLUS_COLUMNS)} votes")
    try:
        path = inside(folder / name, cells[0])
        votes = [number("vote", cell) or 0.0 for cell in cells[2:]]
    except ValueError as error:
        return Reject(here, str(error))
    source = shown(path.relative_to(folder))
    if source in seen:
        return Reject(source, f"duplicate row {here}")
    seen.add(source)
    most = max(votes)
    if min(votes) < 0 or most == 0:
        return Reject(source, "no votes" if most == 0 else f"negative votes {votes}")
    winners = [column for column, count in zip(FERPLUS_COLUMNS, votes, strict=True) if count == most]
    if winners[0] in ("unknown", "NF"):
        return Reject(source, f"winner {winners[0]}")
    ordered = sorted(zip(FERPLUS, votes, strict=False))
    tied = len(winners) > 1
    majority = most > 1 and most > sum(count for count in votes if count > 1) / 2
    record = Record(
        emotion=None if tied and ties == "none" else int(FERPLUS[_RANK[winners[0]]]),
        emotion_votes=tuple(count for _, count in ordered),
        source=source,
        split=_FERPLUS_SETS[name],
        groups={"votes": "tied" if tied else "majority" if majority else "plurality"},
    )
    return sample(keys, path, record)


# FER2013 as a CSV


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
            with path.open("rb") as stream:
                columns = stream.readline(1000).decode("latin-1").strip().lower()
            if {"emotion", "pixels", "usage"} <= {c.strip(' "') for c in columns.split(",")}:
                return path
    return None


def _recognise_csv(folder: Path) -> str | None:
    return f"FER2013: {path.name} with columns emotion, pixels, Usage" if (path := _csv(folder)) else None


def open_fer2013_csv(folder: Path) -> Source:
    """FER2013's ``fer2013.csv``: emotion, pixels, Usage (Training, PublicTest as val, PrivateTest as test).

    Raises:
        UserError: no such file or columns.
    """
    path = _csv(folder)
    if path is None:
        raise UserError(f"{folder}: no fer2013.csv with the columns emotion, pixels and Usage")

    def rows() -> Iterator[Raw | Reject]:
        keys, places = Keys(), {}
        for line, cells in table_rows(path):
            if line == 1:
                places = {cell.strip().lower(): at for at, cell in enumerate(cells)}
                continue
            source = f"{path.name}:{line}"
            if len(cells) <= max(places.values()):
                yield Reject(source, f"{len(cells)} columns, expected {len(places)}")
                continue
            usage = cells[places["usage"]].strip()
            try:
                emotion = whole("emotion", cells[places["emotion"]])
                if emotion is None or not 0 <= emotion < len(FER2013):
                    raise ValueError(f"emotion {emotion} is not 0..{len(FER2013) - 1}")
                if usage not in _USAGES:
                    raise ValueError(f"usage {usage[:40]!r} is none of {', '.join(_USAGES)}")
            except ValueError as error:
                yield Reject(source, str(error))
                continue
            record = Record(emotion=int(FER2013[emotion]), source=source, split=_USAGES[usage])
            yield Raw(keys(f"{usage}/{line:06d}"), PixelText(cells[places["pixels"]]), record)

    return Source(
        name="fer2013-csv",
        variant="FER2013, pixels in a CSV",
        licence="pictures of FER2013: research",
        publishable=False,
        default_crop="none",
        splits=("train", "val", "test"),
        rows=rows,
    )


READERS: Final = (
    Reader(
        "ferplus", "FER2013Train/label.csv (Valid, Test)", _recognise_ferplus, open_ferplus, {"ties": ("first", "none")}
    ),
    Reader("fer2013-csv", "fer2013.csv (emotion, pixels, Usage)", _recognise_csv, open_fer2013_csv),
)
