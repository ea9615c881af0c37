"""Pointing'04, the Head Pose Image Database (Gourier, Hall and Crowley, "Estimating Face Orientation from Robust
Detection of Salient Facial Features", Pointing 2004).

On disk:

    Person01/ … Person15/                   two series of 93 poses each
    Person08/person08123-30+45.jpg          person 08, series 1, number 23, tilt -30, pan +45; 384 × 288
    Person08/person08123-30+45.txt          name, blank line, Face, centre x, centre y, width, height
    Front/                                  30 files that show frontal pictures again

Labels: pitch = tilt (+ = up) and yaw = pan (+ = the picture's left), both in our signs; roll is not labelled.
Directions are those of the thesis: a table of tilt and pan.
Splits: none of its own; split by person (a random split leaks, as each person has two series).
Licence: any purpose, with citation.
Where: INRIA Rhône-Alpes, PRIMA group, "Head Pose Image Database".
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import direction_from_word
from hpe.data.crops import Box
from hpe.data.directions import pointing04_direction
from hpe.data.records import Record
from hpe.sources.base import (
    NOT_ITS_OWN,
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    Unread,
    below,
    box_of,
    choice,
    first_images,
    home_of_images,
    images,
    keyed,
    shown,
)

LICENCE: Final = (
    "any purpose, provided that Gourier, Hall, Crowley: Estimating Face Orientation from Robust Detection "
    "of Salient Facial Features (Pointing 2004) is cited"
)
EXPECTED: Final = {"all": 2_790}
"""Pictures without those of Front/: 15 people in 2 series of 93 poses."""
NAME: Final = re.compile(r"person(?:ne)?(\d{2})(\d)(\d{2})([+-]\d+)([+-]\d+)")
"""Person, series, number, tilt, pan; ``person08123-30+45`` looks 30° down and to the picture's left."""
ROLLS: Final = ("unknown", "upright")


def _recognise(folder: Path) -> str | None:
    if found := next((p for p in first_images(folder) if NAME.fullmatch(p.stem)), None):
        return f"Pointing'04: pictures such as {found.name}"
    return None


def open_pointing04(folder: Path, *, roll: str = "unknown") -> Source:
    """Pointing'04: the folders ``Person01`` … ``Person15``, or pictures of it in folders named by direction.

    Yaw is the file name's pan, pitch its tilt (the signs agree with ours). Roll is not labelled: it is unknown, or 0
    with ``roll=upright``, which assumes that the people, who sat, held their heads upright; a pose head can then
    learn from them. The direction is that of the folder, or the one that the thesis gives to the pose. Pictures in
    ``Front/`` are rejected as copies when the person's folder has the same picture.

    Raises:
        UserError: no such pictures, or another ``roll``.
    """
    upright = choice("pointing04", "roll", roll, ROLLS) == "upright"
    if not _recognise(folder):
        raise UserError(f"{folder}: no picture named as person08123-30+45.jpg; expected Pointing'04")
    home = home_of_images(folder, NAME.fullmatch, _is_part)
    has_boxes = any(home.glob("Person*/person*.txt"))

    def rows() -> Iterator[Reject | Unread]:
        keys = Keys()
        for path in images(folder):
            source = below(home, folder, path)
            original = _original(home, path)
            if original:
                yield Reject(source, f"another file of {below(home, folder, original)}", "copy")
            else:
                yield Unread(_row, (keys(source), path, source, has_boxes, upright))

    return Source(
        name="pointing04",
        variant="Person01 … Person15 with boxes" if has_boxes else "pictures without boxes",
        licence=LICENCE,
        publishable=True,
        default_crop="square-1.6@box" if has_boxes else "square-1.4@detector",
        splits=(),
        rows=rows,
        home=home,
        expected=EXPECTED if has_boxes else {},  # only then does the variant claim to be whole
        notes=(
            "split by person",
            "yaw = pan, pitch = tilt, " + ("roll taken as 0" if upright else "roll not labelled"),
            "direction by the thesis' labels, a table of tilt and pan",
        ),
    )


def _is_part(name: str) -> bool:
    """Whether a folder is one of the dataset's, or of the copy with a folder for each direction."""
    return bool(re.fullmatch(r"Person\d\d|Front", name)) or direction_from_word(name) is not None


def _original(folder: Path, path: Path) -> Path | None:
    match = NAME.fullmatch(path.stem)
    if path.parent.name == "Front" and match:
        original = folder / f"Person{match[1]}" / path.name.replace("personne", "person")
        return original if original.is_file() else None
    return None


def _row(key: str, path: Path, source: str, has_boxes: bool, upright: bool) -> Raw | Reject:
    match = NAME.fullmatch(path.stem)
    if not match:
        return Reject(source, f"{NOT_ITS_OWN} Pointing'04 (person08123-30+45.jpg)", "foreign")
    person, _, _, tilt, pan = match.groups()
    if abs(int(tilt)) > 90 or abs(int(pan)) > 90:
        return Reject(source, f"tilt {tilt} or pan {pan} beyond ±90")
    try:
        box = _box(path.with_suffix(".txt")) if has_boxes else None
    except (ValueError, OSError) as error:
        return Reject(source, str(error))
    direction = direction_from_word(path.parent.name)
    if direction is None:
        direction = pointing04_direction(float(pan), float(tilt))
    record = Record(
        yaw=float(pan), pitch=float(tilt), roll=0.0 if upright else None,
        direction=None if direction is None else int(direction), box=box, subject=f"person{person}", source=source,
    )  # fmt: skip
    return keyed(key, path, record)


def _box(path: Path) -> Box | None:
    """The box of a picture's ``.txt``: name, blank, ``Face``, centre x, centre y, width, height."""
    try:
        with open_regular(path) as stream:
            text = stream.read(1000).decode("latin-1")
    except FileNotFoundError:
        raise ValueError(f"missing {shown(path.name)}") from None
    _, face, numbers = text.partition("Face")
    parts = numbers.split()
    if not face or len(parts) < 4 or not all(part.isascii() and part.isdigit() for part in parts[:4]):
        raise ValueError(f"{shown(path.name)}: no Face with centre x, centre y, width and height")
    x, y, width, height = map(float, parts[:4])
    return box_of(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


READERS: Final = (Reader("pointing04", "person08123-30+45.jpg", _recognise, open_pointing04, {"roll": ROLLS}),)
