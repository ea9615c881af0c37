"""Axes on the faces of pictures, as a sheet to look at."""

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageOps

from hpe import draw
from hpe.errors import UserError
from hpe.files import aside, make_folder
from hpe.images import DecodeError, Picture, decode_rgb
from hpe.landmarks.estimator import LandmarkEstimator, PosedFace
from hpe.landmarks.extract import pictures_of
from hpe.landmarks.mesh import Which

SHEETS: Final = (".png", ".jpg")
_TILE: Final = 224


def with_axes(picture: Picture, faces: Sequence[PosedFace]) -> Image.Image:
    """An RGB picture with each face's axes, as :func:`hpe.draw.with_axes` paints them."""
    image = Image.fromarray(picture)
    for face in faces:
        yaw, pitch, roll = (float(angle) for angle in face.angles)
        image = draw.with_axes(image, draw.Reading(face.box, (yaw, pitch, roll)))
    return image


def sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int = 6) -> Image.Image:
    """Pictures with a caption each, in rows."""
    rows = -(-len(tiles) // columns)
    height = _TILE + 16
    page = Image.new("RGB", (columns * _TILE, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for at, (picture, caption) in enumerate(tiles):
        x, y = at % columns * _TILE, at // columns * height
        page.paste(ImageOps.pad(picture, (_TILE, _TILE), color="white"), (x, y))
        pen.text((x + 3, y + _TILE + 2), caption, fill="black")
    return page


def draw_sheet(
    model: Path, source: Path, out: Path, *, count: int = 36, which: Which = "largest", python: Path | None = None
) -> tuple[int, int]:
    """Draw up to ``count`` pictures, evenly over the source; how many have a face, how many there are.

    Raises:
        UserError: no model, no mesh, no pictures, or OUT is no picture's name.
    """
    if out.suffix.lower() not in SHEETS:
        raise UserError(f"{out}: expected a name that ends with {' or '.join(SHEETS)}")
    pictures = list(chain.from_iterable(part.read() for part in pictures_of(source)))
    make_folder(out.parent, str(out.parent))
    tiles: list[tuple[Image.Image, str]] = []
    found = 0
    with closing(LandmarkEstimator(model, python=python, which=which)) as estimator:
        shown = min(count, len(pictures))
        for picture in (pictures[row * len(pictures) // shown] for row in range(shown)):
            name = Path(picture.key).name
            try:
                pixels = decode_rgb(picture.read())
            except (DecodeError, OSError) as error:
                tiles.append((Image.new("RGB", (64, 64)), f"{name}: {error}"[:36]))
                continue
            faces = estimator.faces(pixels)
            found += bool(faces)
            angles = " ".join(f"{angle:+.0f}" for angle in faces[0].angles) if faces else "no face"
            tiles.append((with_axes(pixels, faces), f"{name}  {angles}"))
    with aside(out) as part:
        sheet(tiles).save(part, format="PNG" if out.suffix.lower() == ".png" else "JPEG")
    return found, len(tiles)
