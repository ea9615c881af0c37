"""FER+: FER2013's pictures with ten votes each (Barsoum, Zhang, Canton Ferrer and Zhang, "Training Deep Networks for
Facial Expression Recognition with Crowd-Sourced Label Distribution", 2016).

On disk:

    FER2013Train/fer0000000.png …   48 × 48, grey
    FER2013Train/label.csv          no header: file, box, ten votes (neutral … contempt, unknown, NF = no face)
    FER2013Valid/, FER2013Test/     the same

Labels: the emotion with most votes, as AffectNet's number, and the eight votes in AffectNet's order. No angles.
Splits: FER2013Train = train, FER2013Valid = val, FER2013Test = test.
Licence: labels MIT (Microsoft); pictures of FER2013: research.
Where: labels from Microsoft's repository FERPlus, whose ``generate_training_data.py`` writes these folders from
``fer2013.csv``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hpe.core.errors import UserError
from hpe.core.labels import FERPLUS, FERPLUS_COLUMNS
from hpe.core.table_files import TextTable
from hpe.data.records import Record
from hpe.sources.base import Faces, Raw, Reader, Reject, Source, choice, number
from hpe.sources.paths import ImageFinder

LICENCE: Final = "pictures of FER2013: research; labels of FER+: MIT (Microsoft)"
EXPECTED: Final = {"train": 28_558, "val": 3_579, "test": 3_573}
"""Rows of the three ``label.csv``."""
_SETS: Final = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
_CELLS: Final = 2 + len(FERPLUS_COLUMNS)
_TIES: Final = ("first", "none")


def _recognise(folder: Path) -> str | None:
    found = _sets(folder)
    return f"FER+: {', '.join(f'{name}/label.csv' for name in found)}" if found else None


def _sets(folder: Path) -> list[str]:
    return [name for name in _SETS if (folder / name / "label.csv").is_file()]


@dataclass(frozen=True, slots=True)
class FerPlusRow:
    """A row of ``label.csv``: the picture, its path in the dataset, and votes in the order of ``FERPLUS_COLUMNS``."""

    path: Path
    source: str
    votes: tuple[float, ...]

    @classmethod
    def parse(cls, pictures: ImageFinder, cells: list[str]) -> Self:
        """The row of these cells.

        Raises:
            ValueError: another number of cells, a path that leads to no picture, or votes that are no numbers.
        """
        if len(cells) != _CELLS:
            raise ValueError(f"{len(cells)} columns, expected file, box and {len(FERPLUS_COLUMNS)} votes")
        return cls(*pictures.find(cells[0]), tuple(number("vote", cell) or 0.0 for cell in cells[2:]))

    def record(self, split: str, ties: str) -> Record:
        """The row's labels; see :func:`open_ferplus`.

        Raises:
            ValueError: it has no votes, negative ones, or ``unknown`` or ``NF`` wins.
        """
        most = max(self.votes)
        if min(self.votes) < 0 or most == 0:
            raise ValueError("no votes" if most == 0 else f"negative votes {list(self.votes)}")
        winners = [at for at, count in enumerate(self.votes) if count == most]
        if winners[0] >= len(FERPLUS):
            raise ValueError(f"winner {FERPLUS_COLUMNS[winners[0]]}")
        tied = len(winners) > 1
        # FER+'s own rule: an emotion with a single vote is an outlier, and does not count against the winner.
        majority = most > 1 and most > sum(count for count in self.votes if count > 1) / 2
        in_our_order = sorted(zip(FERPLUS, self.votes, strict=False))
        return Record(
            emotion=None if tied and ties == "none" else int(FERPLUS[winners[0]]),
            emotion_votes=tuple(count for _, count in in_our_order),
            source=self.source,
            split=split,
            groups={"votes": "tied" if tied else "majority" if majority else "plurality"},
        )


def open_ferplus(folder: Path, *, ties: str = "first") -> Source:
    """FER+: ``FER2013Train|Valid|Test/`` with pictures and ``label.csv`` of ten votes.

    The emotion is the one with most votes; a picture whose winner is ``unknown`` or ``NF`` (no face) is
    rejected. The votes for the eight emotions are kept. The group ``votes`` grades their agreement: ``majority``
    where the winner has more than half of them, emotions with a single vote left out (the faces on which FER+'s
    paper reports its accuracy of 0.8499: mode "majority" of its ``src/ferplus.py``), else ``plurality``, or ``tied``.

    Args:
        folder: holds the three sets.
        ties: among winners with as many votes, ``first`` takes the first in FER+'s order of columns (as
            ``argmax`` does, so that an emotion beats unknown and NF); ``none`` gives no emotion (the votes stay).

    Raises:
        UserError: none of the sets is there.
    """
    choice("ferplus", "ties", ties, _TIES)
    found = _sets(folder)
    if not found:
        raise UserError(f"{folder}: no FER2013Train/label.csv (Valid, Test); expected FER+ with its pictures")

    def rows() -> Iterator[Raw | Reject]:
        faces = Faces()
        for name in found:
            table = TextTable.open(folder / name / "label.csv", cells=_CELLS)
            pictures = ImageFinder(folder, folder / name, table.encoding)
            for line, cells in table.rows():
                source = here = f"{name}/label.csv:{line}"
                try:
                    row = FerPlusRow.parse(pictures, cells)
                    source = row.source
                    yield faces.sample(row.path, row.record(_SETS[name], ties), here)
                except ValueError as error:
                    yield Reject(source, str(error))

    return Source(
        name="ferplus",
        variant=f"FER+ votes, {', '.join(found)}",
        licence=LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(_SETS[name] for name in found),
        rows=rows,
        expected=EXPECTED if len(found) == len(_SETS) else {},
        notes=(
            "emotion by most votes; unknown or NF as the winner is rejected",
            f"ties: {'the first in the order of columns' if ties == 'first' else 'no emotion'}; marked votes=tied",
            "votes=majority: more than half of the votes, single ones left out, as FER+'s paper counts its results",
        ),
    )


READERS: Final = (Reader("ferplus", "FER2013Train/label.csv (Valid, Test)", _recognise, open_ferplus, {"ties": _TIES}),)
