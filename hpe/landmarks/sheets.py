"""``hpe landmarks draw``: a sheet of pictures with the axes of their faces."""

from itertools import chain
from pathlib import Path

from PIL import Image

from hpe.errors import UserError
from hpe.files import aside
from hpe.images import DecodeError, decode_rgb
from hpe.landmarks.draw import sheet, with_axes
from hpe.landmarks.estimator import LandmarkEstimator
from hpe.landmarks.extract import pictures_of
from hpe.landmarks.mesh import Which


def draw_sheet(
    model: Path, source: Path, out: Path, *, count: int = 36, which: Which = "largest", python: Path | None = None
) -> tuple[int, int]:
    """Draw up to ``count`` pictures, evenly over the source; how many have a face, how many there are.

    Raises:
        UserError: no model, no mesh, no pictures, or OUT is no picture's name.
    """
    if out.suffix.lower() not in (".png", ".jpg"):
        raise UserError(f"{out}: expected a name that ends with .png or .jpg")
    parts = pictures_of(source)
    pictures = list(chain.from_iterable(read() for _, read in parts))
    step = max(1, len(pictures) // count)
    tiles: list[tuple[Image.Image, str]] = []
    found = 0
    with LandmarkEstimator(model, python=python, which=which) as estimator:
        for picture in pictures[::step][:count]:
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
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as part:
        sheet(tiles).save(part, format="PNG" if out.suffix.lower() == ".png" else "JPEG")
    return found, len(tiles)
