"""The meaning of a table's columns, and a row of it as a record."""

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hpe.core.errors import UserError
from hpe.core.labels import (  # fmt: skip
    AFFECTNET_NOT_EMOTIONS,
    ALPHABETICAL,
    DIRECTIONS,
    EMOTIONS,
    FER2013,
    RAF_DB,
    Emotion,
    direction_from_word,
    emotion_from_word,
    split_from_word,
)
from hpe.core.table_files import with_point
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.sources.base import NotANumberError, box_of, number, pairs, whole

FIELDS: Final = (
    "image", "emotion", "direction", "valence", "arousal", "yaw", "pitch", "roll", "subject", "split",
    "x0", "y0", "x1", "y1", "width", "height",
)  # fmt: skip
_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("image", "path", "file", "filename", "file_name", "filepath", "img", "image_path"),
    "emotion": ("emotion", "expression", "label", "class"),
    "subject": ("subject", "person", "person_id", "subject_id", "identity"),
    "split": ("split", "usage", "partition"),
    "x0": ("x0", "xmin", "left"), "y0": ("y0", "ymin", "top"),
    "x1": ("x1", "xmax", "right"), "y1": ("y1", "ymax", "bottom"),
}  # fmt: skip
EMOTION_ORDERS: Final[Mapping[str, Mapping[int, Emotion]]] = {
    "affectnet": {int(e): e for e in Emotion},
    "alphabetical": dict(enumerate(ALPHABETICAL)),
    "fer2013": dict(enumerate(FER2013)),
    "raf-db": RAF_DB,
}
_ALIKE: Final = 0.75
"""difflib's likeness from which on a column may be a misspelt field: two letters that changed places have 0.86."""
_NUMBERS: Final = ("emotion", "direction", "valence", "arousal", "yaw", "pitch", "roll", "x0", "y0", "x1", "y1",
                   "width", "height")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds which field.

    Attributes:
        names: the column of each of ``FIELDS`` that the table has.
        negated: angles whose sign is opposite to ours.
        groups: column of each group to report by.
        radians: the angles' unit.
        commas: columns whose numbers have decimal commas.
        emotions: emotion of each number; words are understood whatever this is.
    """

    names: Mapping[str, str]
    emotions: Mapping[int, Emotion]
    negated: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    radians: bool = False
    commas: frozenset[str] = frozenset()

    @classmethod
    def of(cls, where: str, found: list[str], columns: str = "", emotions: str = "affectnet") -> "Columns":
        """The meaning of the columns ``found``: from the option ``columns``, then from usual names.

        Args:
            where: the table, for messages.
            found: its columns.
            columns: ``image=path,emotion=label,yaw=-pan,group.age=age_group``; a minus negates an angle.
            emotions: one of ``EMOTION_ORDERS`` for integers.

        Raises:
            UserError: a column that is missing or there twice, a field that is unknown, or no column of pictures.
        """
        if twice := [name for name, count in Counter(found).items() if count > 1]:
            raise UserError(f"{where}: column {twice[0]!r} appears {found.count(twice[0])} times; rename all but one")
        if emotions not in EMOTION_ORDERS:
            raise UserError(f"{where}: option emotions is {emotions!r}; expected {', '.join(EMOTION_ORDERS)}")
        names, groups, negated = {}, {}, set()
        for target, column in pairs("table", "columns", columns).items():
            if column.startswith("-") and column not in found and target in ("yaw", "pitch", "roll"):
                negated.add(target)
                column = column[1:]
            if column not in found:
                raise UserError(f"{where}: no column {column!r}; found {', '.join(found)[:300]}")
            if target.startswith("group."):
                groups[target.removeprefix("group.")] = column
            elif target in FIELDS:
                names[target] = column
            else:
                raise UserError(
                    f"{where}: columns={target}={column}: {target!r} is none of {', '.join(FIELDS)} or group.NAME"
                )
        lower = {name.lower(): name for name in reversed(found)}
        taken = set(names.values())
        for target in FIELDS:
            for word in _SYNONYMS.get(target, (target,)):
                if target not in names and word in lower and lower[word] not in taken:
                    names[target] = lower[word]
        if "image" not in names:
            listed = ", ".join(found)[:300]
            raise UserError(f"{where}: no column of pictures among {listed}; name it with --option columns=image=NAME")
        return cls(names, EMOTION_ORDERS[emotions], frozenset(negated), groups)

    def misspelt(self, found: Sequence[str]) -> list[str]:
        """Warnings of columns that are not used, and whose names are nearly those of a field that the table lacks."""
        used = {*self.names.values(), *self.groups.values()}
        known = {
            word: target for target in FIELDS if target not in self.names for word in _SYNONYMS.get(target, (target,))
        }
        told = []
        for column in found:
            near = difflib.get_close_matches(column.lower(), known, 1, _ALIKE) if len(column) > 2 else []
            if column not in used and near:
                field_ = known[near[0]]
                told.append(
                    f"WARNING: column {column[:60]!r} is not used; if it is {field_}, name it with --option "
                    f"columns={field_}={column[:60]}"
                )
        return told

    def record(self, row: Mapping[str, Any], source: str, words: Mapping[str, list[str]] | None = None) -> Record:
        """A row as a record.

        Args:
            row: value of each column.
            source: for the record.
            words: names of the classes of columns that hold class numbers.

        Raises:
            ValueError: a value that its column cannot have.
        """
        got = self._values(row)
        for target in ("emotion", "direction"):
            names = (words or {}).get(self.names.get(target, ""))
            value = got.get(target)
            if names and isinstance(value, int) and 0 <= value < len(names):
                got[target] = names[value]
        return Record(
            emotion=self._emotion(got.get("emotion")),
            direction=_direction(got.get("direction")),
            yaw=self._angle("yaw", got.get("yaw")),
            pitch=self._angle("pitch", got.get("pitch")),
            roll=self._angle("roll", got.get("roll")),
            valence=_affect("valence", got.get("valence")),
            arousal=_affect("arousal", got.get("arousal")),
            box=_box(got) if self.has_box else None,
            subject=_text(got.get("subject")),
            split=_split(got.get("split")),
            source=source,
            groups={name: text for name, column in self.groups.items() if (text := _text(row.get(column))) is not None},
        )

    def _values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's value of each field; a decimal comma becomes a point."""
        got = {target: row.get(column) for target, column in self.names.items()}
        for target, column in self.names.items() if self.commas else ():
            if column in self.commas and isinstance(value := got[target], str):
                got[target] = with_point(value)
        return got

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that hold numbers."""
        return tuple(column for target, column in self.names.items() if target in _NUMBERS)

    @property
    def has_angles(self) -> bool:
        """Whether a column holds angles."""
        return not {"yaw", "pitch", "roll"}.isdisjoint(self.names)

    def sizes(self, row: Mapping[str, Any]) -> tuple[list[float | None], Box | None]:
        """The row's angles and box in the units of the table, to tell these; None what is missing or no number."""
        got = self._values(row)
        angles = [_perhaps(got.get(name)) for name in ("yaw", "pitch", "roll")]
        try:
            return angles, _box(got) if self.has_box else None
        except ValueError:
            return angles, None

    def is_numbered(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's emotion is a number."""
        return _perhaps(self._values(row).get("emotion")) is not None

    @property
    def has_box(self) -> bool:
        """Whether the columns make a box: a single column named ``left`` may be something else."""
        across, down = {"x1", "width"} & self.names.keys(), {"y1", "height"} & self.names.keys()
        return {"x0", "y0"} <= self.names.keys() and bool(across and down)

    def _angle(self, name: str, value: Any) -> float | None:
        angle = number(name, value)
        if angle is None:
            return None
        angle = math.degrees(angle) if self.radians else angle
        return -angle if name in self.negated else angle

    def _emotion(self, value: Any) -> int | None:
        if isinstance(value, str) and (emotion := emotion_from_word(value)) is not None:
            return int(emotion)
        integer = _whole_or_word("emotion", value, (*EMOTIONS, f"{min(self.emotions)}..{max(self.emotions)}"))
        if integer is None:
            return None
        if integer in self.emotions:
            return int(self.emotions[integer])
        name = AFFECTNET_NOT_EMOTIONS.get(integer)
        raise ValueError(f"emotion {integer}{f' ({name})' if name else ''} is none of {sorted(self.emotions)}")


def _direction(value: Any) -> int | None:
    if isinstance(value, str) and (direction := direction_from_word(value)) is not None:
        return int(direction)
    return _whole_or_word("direction", value, (*DIRECTIONS, "0..4"))


def _whole_or_word(name: str, value: Any, accepted: Sequence[str]) -> int | None:
    """The number of a cell whose text is no known word."""
    try:
        return whole(name, value)
    except NotANumberError:
        raise ValueError(f"{name} {str(value)[:40]!r} is none of {', '.join(accepted)}") from None


def _perhaps(value: Any) -> float | None:
    """The number of a cell; None for anything else."""
    try:
        return number("", value)
    except ValueError:
        return None


def _affect(name: str, value: Any) -> float | None:
    affect = number(name, value)
    return None if affect == -2 else affect


def _box(got: Mapping[str, Any]) -> Box | None:
    x0, y0, x1, y1, width, height = (number(n, got.get(n)) for n in ("x0", "y0", "x1", "y1", "width", "height"))
    if x0 is not None and width is not None and x1 is None:
        x1 = x0 + width
    if y0 is not None and height is not None and y1 is None:
        y1 = y0 + height
    return box_of(x0, y0, x1, y1)


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def _split(value: Any) -> str | None:
    text = _text(value)
    if text is None:
        return None
    split = split_from_word(text)
    if split is None:
        raise ValueError(f"split {text[:40]!r} is not train, val or test")
    return split
