"""Pictures as bytes and as arrays: decoding what may be hostile, one antialiased crop, encoding."""

import functools
import io
import math
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image as Pillow
from PIL import ImageOps, features

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.data.crops import Box, box_text
from hpe.data.image_files import START_BYTES, image_format

MAX_PIXELS: Final = 64_000_000
"""Larger pictures are refused before anything is decoded, unless ``--max-megapixels`` allows them: 64 megapixels are
192 MB of RGB."""

Pillow.init()  # registers the decoders of every format, which open(formats=…) expects
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(["AVIF"] if features.check("avif") else []))
_BACKGROUND: Final = (255, 255, 255)
_ORIENTATION: Final = 0x0112
_JPEG: Final = b"\xff\xd8\xff"
_INSTALL: Final = {
    "HEIC": "pip install pillow-heif, the extra `heif` of hpe",
    "AVIF": "pip install --upgrade pillow",
}
"""How to read the formats whose decoder is not always there."""
_HARMLESS: Final = ("extraneous bytes", "inconsistent progression", "unknown adobe", "unknown jfif")
"""What libjpeg warns of though every pixel is there."""
MOST_PIXELS: Final = 178_000_000
"""The most that ``--max-megapixels`` can allow: Pillow itself refuses more."""
LARGEST_CROP: Final = 4.0
"""In longer sides of the picture; a larger box is a mistake, and would be a picture of black."""

RGBImage = UInt8[np.ndarray, "height width 3"]
Encoded = bytes | memoryview
"""A picture as it is stored."""


class DecodeError(ValueError):
    """The bytes are no whole picture, for the reason in the message."""


def pixels_of(megapixels: float) -> int:
    """The limit that ``--max-megapixels`` gives, in pixels.

    Raises:
        UserError: it is not above 0, or more than Pillow reads.
    """
    if not 0 < megapixels <= MOST_PIXELS / 1e6:
        raise UserError(
            f"--max-megapixels {megapixels:g}: expected more than 0 and at most {MOST_PIXELS / 1e6:g}; make larger "
            "pictures smaller first"
        )
    return round(megapixels * 1e6)


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> RGBImage:
    """The picture upright (EXIF orientation applied), in RGB; alpha over white; the first of several frames.

    16-bit grey is scaled (65535 becomes 255), not clipped as Pillow's ``convert`` does. HEIC needs pillow-heif.

    Raises:
        DecodeError: not a picture, truncated or damaged, more than ``max_pixels``, or its decoder is not installed.
    """
    if not data:
        raise DecodeError("empty file (0 bytes)")
    if data.startswith(_JPEG):
        picture = _jpeg(data, max_pixels)
        if picture is not None:
            return picture
    return _with_pillow(data, max_pixels)


def decode_small(data: bytes, side: int) -> RGBImage:
    """As :func:`decode_rgb`; a JPEG as small as libjpeg scales it (by eighths) with both sides ``side`` or more.

    Raises:
        DecodeError: as there.
    """
    picture = _jpeg(data, MAX_PIXELS, side) if data.startswith(_JPEG) else None
    return decode_rgb(data) if picture is None else picture


def _jpeg(data: bytes, max_pixels: int, least: int = 0) -> RGBImage | None:
    """By libjpeg-turbo, twice as fast as Pillow; None where Pillow must do it.

    Args:
        data: of the file.
        max_pixels: more are refused.
        least: decode smaller, with sides of so many pixels or more; 0: in full size.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # damaged, or an unusual subsampling, which Pillow reads
        return None
    check_size(int(width), int(height), max_pixels)
    if colours in ("CMYK", "YCCK") or (may_be_turned(data) and _turned(data, max_pixels)):
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least, strict=True)
    except ValueError as error:
        if any(text in str(error).lower() for text in _HARMLESS):
            return simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least, strict=False)
        raise DecodeError(f"damaged or truncated JPEG: {error}") from error


def may_be_turned(data: Encoded) -> bool:
    """Whether the header of a JPEG has EXIF, or XMP with an orientation: Pillow's ``exif_transpose`` applies both."""
    return _frame_header(data) == _TURNED


def is_upright(data: Encoded, height: int, width: int) -> bool:
    """Whether a JPEG has this size, one or three colours of 8 bits, and no orientation to apply, by its header.

    In Python this takes as long as in libjpeg, and it is known without another call that sets libjpeg up.
    """
    at = _frame_header(data)
    if at <= 0 or at + 5 >= len(data) or data[at] != 8 or data[at + 5] not in (1, 3):
        return False
    return data[at + 1] << 8 | data[at + 2] == height and data[at + 3] << 8 | data[at + 4] == width


_TURNED, _NO_FRAME = -1, 0


def _frame_header(data: Encoded) -> int:
    """Where a JPEG states precision, height, width and colours; or that it may be turned, or that there is no such."""
    at = 2
    while at + 4 < len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= kind <= 0xC3:  # the picture itself begins
            return at + 4
        if kind == 0xDA:
            break
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if kind == 0xE1 and (data[at + 4 : at + 8] == b"Exif" or b"tiff:Orientation" in bytes(data[at + 4 : end])):
            return _TURNED
        at = end
    return _NO_FRAME


def _turned(data: bytes, max_pixels: int) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _open(data, max_pixels).getexif().get(_ORIENTATION, 1) != 1
        except Exception:  # damaged EXIF has no orientation to apply
            return False


def _with_pillow(data: bytes, max_pixels: int) -> RGBImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = _open(data, max_pixels)
        except DecodeError:
            raise
        except Pillow.UnidentifiedImageError as error:
            if (form := image_format(data[:START_BYTES])) is not None:  # Pillow 11 and 12.0 say so of a damaged one
                raise DecodeError(f"damaged or truncated {form}: Pillow does not recognise it") from error
            raise DecodeError(f"not a picture: it starts with {data[:12]!r}") from error
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            raise DecodeError(f"damaged or truncated picture: {type(error).__name__}: {error}") from error
    return picture_rgb(opened, max_pixels=max_pixels)


def picture_rgb(picture: Pillow.Image, *, max_pixels: int = MAX_PIXELS) -> RGBImage:
    """A picture that Pillow has opened, as :func:`decode_rgb` gives its file.

    Raises:
        DecodeError: its file is truncated or damaged, or it has more than ``max_pixels``.
    """
    check_size(*picture.size, max_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture.load()
            return np.array(_rgb(_upright(picture)))
        except DecodeError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            raise DecodeError(f"damaged or truncated picture: {type(error).__name__}: {error}") from error


def _open(data: bytes | io.BufferedReader, max_pixels: int) -> Pillow.Image:
    """Open without decoding.

    Raises:
        DecodeError: more pixels than allowed, or the format's decoder is not installed.
    """
    start = data[:START_BYTES] if isinstance(data, bytes) else data.peek(START_BYTES)
    form = image_format(start)
    formats = _FORMATS
    if form == "HEIC":
        formats = (_heif(),)
    elif form == "AVIF" and "AVIF" not in _FORMATS:
        raise DecodeError(f"an AVIF picture, whose decoder is not installed ({_INSTALL['AVIF']})")
    with warnings.catch_warnings():
        # Pillow has a limit of its own, which is higher than ours but not than every --max-megapixels.
        warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
        try:
            opened = Pillow.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats)
        except Pillow.DecompressionBombError as error:
            raise DecodeError(f"far more than {_allowed(max_pixels)}") from error
    check_size(*opened.size, max_pixels)
    return opened


@functools.cache
def _heif() -> str:
    """Pillow's name of the format, registered by pillow-heif, which is slow to import and rarely needed."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DecodeError(f"a HEIC picture, whose decoder is not installed ({_INSTALL['HEIC']})") from error
    pillow_heif.register_heif_opener()
    return "HEIF"


def _allowed(max_pixels: int) -> str:
    where = "--max-megapixels of hpe pack, predict and landmarks; in Python decode it yourself and give its pixels"
    return f"the {max_pixels / 1e6:g} megapixels allowed ({where})"


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an impossible size.

    Raises:
        DecodeError: no pixels, or more than allowed.
    """
    if not width or not height:
        raise DecodeError(f"a picture of {width} × {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(f"{width} × {height} pixels, more than {_allowed(max_pixels)}")


def image_size(source: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of what :func:`decode_rgb` gives: of the upright picture, mostly without decoding.

    The one source of a picture's size for whatever is scaled by it, such as boxes in fractions.

    Raises:
        DecodeError: not a picture.
        OSError: the file cannot be read.
    """
    if isinstance(source, Path):
        with open_regular(source) as stream:
            if (size := _size_in_header(stream, max_pixels)) is not None:
                return size
        source = source.read_bytes()
    elif (size := _size_in_header(source, max_pixels)) is not None:
        return size
    height, width = decode_rgb(source, max_pixels=max_pixels).shape[:2]
    return width, height


def _size_in_header(data: bytes | io.BufferedReader, max_pixels: int) -> tuple[int, int] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = _open(data, max_pixels)
            turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except DecodeError:
            raise
        except Exception:  # as many types as damaged files have; or a picture that Pillow does not know
            return None
    if turned and opened.format == "TIFF":  # versions of Pillow differ in whether its size is that of the upright one
        return None
    return (opened.height, opened.width) if turned else (opened.width, opened.height)


def _upright(image: Pillow.Image) -> Pillow.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF has no orientation to apply
        return image


def _rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DecodeError(f"grey levels {grey.min()} to {grey.max()}, more than 16 bits")
        return Pillow.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DecodeError("a picture of floating-point numbers, whose range is not stated")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        below = Pillow.new("RGBA", image.size, _BACKGROUND)
        return Pillow.alpha_composite(below, rgba).convert("RGB")
    return image.convert("RGB")


def _window(box: Box) -> tuple[int, int, int]:
    """x0, y0 and side of the largest centred square of a box, in whole pixels."""
    x0, y0, x1, y1 = box
    side = min(x1 - x0, y1 - y0)
    return round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2), max(round(side), 1)


def crop_resize(image: RGBImage, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The centred square of ``box`` in whole pixels, resized once (bilinear, antialiased); black beyond the border.

    A box that is not square loses the ends of its longer side, as Hopenet's "resize the short side, crop the
    centre" does, so that faces keep their proportions. torch's kernel for bytes differs from Pillow's by at
    most one level and takes less than half of its time.

    Raises:
        ValueError: the box is empty, not finite, wholly outside the picture, or far larger than it.
    """
    height, width = image.shape[:2]
    if not all(map(math.isfinite, box)):
        raise ValueError(f"crop box {box_text(box)} is not four numbers")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"crop box {box_text(box)} is empty")
    x, y, side = _window(box)
    if side > LARGEST_CROP * max(width, height) or side**2 > 2 * max(MAX_PIXELS, width * height):
        raise ValueError(f"crop box {box_text(box)} is far larger than the picture ({width} × {height})")
    if x >= width or y >= height or x + side <= 0 or y + side <= 0:
        raise ValueError(f"crop box {box_text(box)} lies outside the picture ({width} × {height})")
    cut = image[max(y, 0) : y + side, max(x, 0) : x + side]
    if cut.shape[:2] != (side, side):
        inside, at_y, at_x = cut, max(-y, 0), max(-x, 0)
        cut = np.zeros((side, side, 3), np.uint8)
        cut[at_y : at_y + inside.shape[0], at_x : at_x + inside.shape[1]] = inside
    if side == size:
        return cut.copy()
    # Strides of a batch of pixels, stated: torch takes a single picture for planes, and then copies it twice.
    strides = (side * side * 3, 1, side * 3, 3)
    pixels = torch.from_numpy(np.require(cut, requirements=("C", "W"))).as_strided((1, 3, side, side), strides)
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def black_share(box: Box, width: int, height: int) -> float:
    """The share of ``crop_resize(image, box, size)`` that lies beyond the picture and is black."""
    x, y, side = _window(box)
    seen = (min(x + side, width) - max(x, 0), min(y + side, height) - max(y, 0))
    return 1 - max(seen[0], 0) * max(seen[1], 0) / side**2


def map_points(points: Float[np.ndarray, "n 2"], box: Box, size: int) -> Float[np.ndarray, "n 2"]:
    """Where points of the raw picture lie in ``crop_resize(image, box, size)``.

    Coordinates are continuous: the centre of the first pixel is (0.5, 0.5).
    """
    x, y, side = _window(box)
    return (points - (x, y)) * (size / side)


def map_box(inner: Box, box: Box, size: int) -> Box:
    """Where a box of the raw picture lies in ``crop_resize(image, box, size)``."""
    (x0, y0), (x1, y1) = map_points(np.asarray(inner, float).reshape(2, 2), box, size).tolist()
    return x0, y0, x1, y1


def to_grey(image: RGBImage) -> UInt8[np.ndarray, "height width"]:
    """Luma (ITU-R 601, as Pillow's ``convert("L")``)."""
    return np.array(Pillow.fromarray(image).convert("L"))


def encode_jpeg(image: UInt8[np.ndarray, "height width *channels"], quality: int) -> bytes:
    """A baseline JPEG: 4:2:0 chroma for colour (height width 3), one channel for grey (height width)."""
    if image.ndim == 2:
        grey = np.ascontiguousarray(image)[..., None]
        return simplejpeg.encode_jpeg(grey, quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
