"""Axes on the faces of pictures: one picture at a readable size, or several on a sheet."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hpe.core.errors import UserError
from hpe.core.files import aside, make_folder
from hpe.data import annotate
from hpe.data.directions import OURS
from hpe.data.images import MAX_PIXELS, DecodeError, RGBImage, decode_rgb
from hpe.landmarks.disk import writing
from hpe.landmarks.estimator import LandmarkEstimator, PosedFace
from hpe.landmarks.extract import DamagedError, InputImage, Part, input_images
from hpe.landmarks.mesh import Which

SHEETS: Final = (".png", ".jpg")
_SHEET_WIDTH: Final = 1344
_LARGEST_TILE: Final = 448
_MOST_COLUMNS: Final = 6
_MOST_LINES: Final = 6
"""Lines of angles below a tile; the angles of a group of thirty would fill the sheet."""
_LINE: Final = 16
_LETTERS: Final = 12
_QUALITY: Final = 92


@dataclass
class Drawn:
    """How many pictures could be read, how many of them have a face, which could not be read, and what is none.

    Attributes:
        without_points: faces that the detector finds in which the mesh finds none.
    """

    read: int = 0
    with_a_face: int = 0
    unread: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    without_points: int = 0


def with_axes(picture: RGBImage, faces: Sequence[PosedFace]) -> Image.Image:
    """An RGB picture with each face's axes, as :func:`hpe.data.annotate.with_axes` paints them."""
    image = Image.fromarray(picture)
    for face in faces:
        image = annotate.with_axes(image, annotate.Overlay(face.box, _angles(face)))
    return image


def photo(picture: RGBImage, faces: Sequence[PosedFace]) -> Image.Image:
    """One RGB picture with each face's axes, angles and direction by our thresholds, as ``hpe predict`` draws it."""
    return annotate.photo(Image.fromarray(picture), [_overlay(face) for face in faces])


def _angles(face: PosedFace) -> annotate.Angles | None:
    yaw, pitch, roll = (float(angle) for angle in face.angles)
    return (yaw, pitch, roll) if np.isfinite(face.angles).all() else None


def _overlay(face: PosedFace) -> annotate.Overlay:
    angles, one = _angles(face), face.angles[None].astype(np.float32)
    direction = int(OURS(one, np.full_like(one, np.nan))[0])
    note = "" if angles is None else annotate.angles_note(angles)
    return annotate.Overlay(face.box, angles, None if direction < 0 else direction, None, note)


def sheet(tiles: Sequence[tuple[Image.Image, Sequence[str]]]) -> Image.Image:
    """Pictures with lines of text below each, in rows of equal length as far as possible."""
    rows = -(-len(tiles) // _MOST_COLUMNS)
    columns = -(-len(tiles) // rows)
    side = min(_LARGEST_TILE, _SHEET_WIDTH // columns)
    height = side + _LINE * max(len(lines) for _, lines in tiles)
    page = Image.new("RGB", (columns * side, rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_LETTERS)
    for at, (picture, lines) in enumerate(tiles):
        x, y = at % columns * side, at // columns * height
        page.paste(ImageOps.pad(picture, (side, side), color="white"), (x, y))
        for row, line in enumerate(lines):
            text = " ".join(line.encode("utf-8", "replace").decode().split())  # file names may be any bytes
            while pen.textlength(text, font) > side - 6:
                text = f"{text.removesuffix('…')[:-1]}…"
            pen.text((x + 3, y + side + _LINE * row + 1), text, fill="black", font=font)
    return page


def _lines(name: str, faces: Sequence[PosedFace]) -> list[str]:
    """A picture's name and the yaw, pitch, roll of its faces: on the same line if it is one, else a line for each."""
    angles = [
        " ".join(f"{angle:+.0f}" for angle in np.round(face.angles) + 0.0)  # + 0.0: no "-0"
        for face in sorted(faces, key=lambda face: face.box[0] + face.box[2])
    ]
    if len(angles) < 2:
        return [f"{name}: {angles[0] if angles else 'no face'}"]
    more = [f"… and {len(angles) - _MOST_LINES + 1} more"] if len(angles) > _MOST_LINES else []
    return [f"{name}: {len(angles)} faces, left to right", *angles[: _MOST_LINES - len(more)], *more]


def draw_pictures(
    model: Path,
    source: Path,
    out: Path,
    *,
    count: int = 36,
    which: Which = "largest",
    python: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Drawn:
    """Draw up to ``count`` pictures, chosen evenly from the source: a single one alone, several on a sheet.

    If none can be read, nothing is written.

    Raises:
        UserError: no model, no mesh, no pictures, or OUT is not the name of a picture or cannot be written.
    """
    if out.suffix.lower() not in SHEETS:
        raise UserError(f"{out}: expected a name that ends with {' or '.join(SHEETS)}")
    drawn = Drawn()
    found = input_images(source)
    drawn.passed_over = found.passed_over
    pictures = _evenly(found.parts, count, drawn)
    make_folder(out.parent, str(out.parent))
    tiles: list[tuple[Image.Image, Sequence[str]]] = []
    shown = len(pictures)
    with closing(LandmarkEstimator(model, python=python, which=which)) as estimator:
        for picture in pictures:
            name = Path(picture.key).name
            try:
                pixels = decode_rgb(picture.read(), max_pixels=max_pixels)
            except (DecodeError, OSError, MemoryError) as error:
                drawn.unread.append(f"{picture.key}: {error}")
                tiles.append((Image.new("RGB", (64, 64)), [f"{name}: {error}"]))
                continue
            faces = estimator.faces(pixels)
            drawn.read += 1
            drawn.with_a_face += bool(faces)
            if shown == 1:
                tiles.append((photo(pixels, faces), []))
            else:
                tiles.append((with_axes(pixels, faces), _lines(name, faces)))
        drawn.without_points = estimator.without_points
    if drawn.read:
        with writing(out), aside(out) as part:
            page = tiles[0][0] if shown == 1 else sheet(tiles)
            page.save(part, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=_QUALITY)
    return drawn


def _evenly(parts: Sequence[Part], count: int, drawn: Drawn) -> list[InputImage]:
    """Up to ``count`` pictures, evenly from all parts, of which only those are opened that hold one of them.

    A shard that cannot be read is recorded in ``drawn``, and the pictures are chosen from the others again.
    """
    parts = list(parts)
    while True:
        ends = np.cumsum([0, *(part.count for part in parts)])
        total = int(ends[-1])
        shown = min(count, total)
        rows = np.arange(shown) * total // max(shown, 1)
        holders = np.searchsorted(ends, rows, side="right") - 1
        pictures: list[InputImage] = []
        damaged: list[int] = []
        for at in np.unique(holders).tolist():
            try:
                pictures += parts[at].read((rows[holders == at] - ends[at]).tolist())
            except DamagedError as error:
                drawn.unread.append(str(error))
                damaged.append(at)
        if not damaged:
            return pictures
        parts = [part for at, part in enumerate(parts) if at not in damaged]
