"""The tables of a study: a table with its number and notes, and the texts of its cells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpe.core.errors import UserError
from hpe.metrics import markdown
from hpe.metrics.values import Figure, share
from hpe.report.tables import DASH, Cell, Table, shown

JSON_NAME: Final = "study.json"
CHARTED: Final = "accuracy"
"""Head of the column that the page also draws as a chart."""


@dataclass(frozen=True)
class StudyTable:
    """A table with its number in the thesis (or a name), its title, and notes for the reader."""

    number: str
    title: str
    table: Table
    notes: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """Its number, if it has one in the thesis, and its title."""
        return f"Table {self.number}: {self.title}" if self.number[0].isdigit() else self.title

    def to_json(self) -> dict[str, Any]:
        """As JSON; :meth:`from_json` gives it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "StudyTable":
        """The table of its JSON.

        Raises:
            UserError: the JSON is not that of a table.
        """
        try:
            table = read["table"]
            rows = [[Cell(**cell) for cell in row] for row in table["rows"]]
            return cls(read["number"], read["title"], Table(table["name"], table["head"], rows), read["notes"])
        except (KeyError, TypeError) as error:
            raise UserError(f"not a table of a study ({error!r}); run `hpe study` again") from error


def is_study(folder: Path) -> bool:
    """Whether a folder is a study with tables."""
    return (folder / JSON_NAME).is_file()


def read_study(folder: Path) -> tuple[dict[str, Any], list[StudyTable]]:
    """What a study's tables were made from, and the tables.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / JSON_NAME
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return dict(read["about"]), [StudyTable.from_json(one) for one in read["tables"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the tables of a study ({error}); run `hpe study` again") from error


def accuracy_and_f1(made: Mapping[str, Figure]) -> list[Cell]:
    """Accuracy and macro F1 over seeds."""
    return [
        _with_deviation(made["accuracy"], markdown.percent, 100, 1),
        _with_deviation(made["macro_f1"], markdown.decimal, 1, 3),
    ]


def _with_deviation(found: Figure, text: Any, scale: float, digits: int) -> Cell:
    cell = shown(found, text)
    if found.get("sd") is None:
        return cell
    head, bracket, tail = cell.text.partition(" (")
    return Cell(f"{head} ± {scale * found['sd']:.{digits}f}{bracket}{tail}", cell.value, cell.low, cell.high, cell.tip)


def points(found: Figure) -> Cell:
    """A difference of shares in percentage points."""
    if found["value"] is None:
        return Cell(DASH)
    low, high = found.get("low"), found.get("high")
    text = f"{100 * found['value']:+.1f}"
    if low is not None and high is not None:
        text += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return Cell(text.replace("-", "−"), found["value"], low, high)


def percent(value: float | None) -> Cell:
    """A share without an interval."""
    return Cell(DASH) if value is None else Cell(f"{100 * value:.1f} %", value)


def p_value(value: float) -> Cell:
    """A p-value."""
    return Cell(f"{value:.2g}", value)


def share_cell(value: float, low: float | None, high: float | None, n: int) -> Cell:
    """The accuracy of a cell in percent."""
    if not np.isfinite(value):
        return Cell("none", None, tip="no face in this cell")
    text = f"{100 * value:.0f}"
    if low is not None and high is not None:
        text += f" ({100 * low:.0f}–{100 * high:.0f})"
    return Cell(text, float(value), low, high, f"{n} faces", shade=float(value))


def wilson(successes: int, trials: int) -> tuple[float | None, float | None]:
    """Ends of Wilson's interval."""
    found = share(successes, trials, reason="no face")
    return found["low"], found["high"]


def to_markdown(tables: Sequence[StudyTable], about: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = ["# Study", *(f"- {name}: {text}" for name, text in about.items() if name != "limits")]
    parts = [parts[0], "\n".join(parts[1:]), *about["limits"]]
    for one in tables:
        parts.append(f"## {one.heading}")
        parts.append(markdown.table(one.table.head, [[cell.text for cell in row] for row in one.table.rows]))
        parts += one.notes
    return "\n\n".join(parts) + "\n"
