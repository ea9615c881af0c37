"""Pictures as bytes and as arrays: decoding what may be hostile, one antialiased crop, encoding."""

import io
import math
import warnings
from typing import Final

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image as Pillow
from PIL import ImageOps

from hpe.data.crops import Box, box_text

MAX_PIXELS: Final = 64_000_000
"""Larger pictures are refused before anything is decoded: 64 megapixels are 192 MB of RGB."""

Pillow.init()  # registers the decoders of every format, which open(formats=…) expects
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_BACKGROUND: Final = (255, 255, 255)
_ORIENTATION: Final = 0x0112
_JPEG: Final = b"\xff\xd8\xff"
_HARMLESS: Final = ("extraneous bytes", "inconsistent progression", "unknown adobe", "unknown jfif")
"""What libjpeg warns of though every pixel is there."""
LARGEST_CROP: Final = 4.0
"""In longer sides of the picture; a larger box is a mistake, and would be a picture of black."""

Picture = UInt8[np.ndarray, "height width 3"]


class DecodeError(ValueError):
    """The bytes are no whole picture, for the reason in the message."""


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture upright (EXIF orientation applied), in RGB; alpha over white; the first of several frames.

    16-bit grey is scaled (65535 becomes 255), not clipped as Pillow's ``convert`` does.

    Raises:
        DecodeError: not a picture, truncated or damaged, or more than ``max_pixels``.
    """
    if not data:
        raise DecodeError("empty file (0 bytes)")
    if data.startswith(_JPEG):
        picture = _jpeg(data, max_pixels)
        if picture is not None:
            return picture
    return _with_pillow(data, max_pixels)


def _jpeg(data: bytes, max_pixels: int) -> Picture | None:
    """By libjpeg-turbo, twice as fast as Pillow; None where Pillow must do it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # damaged, or an unusual subsampling, which Pillow reads
        return None
    _check_size(int(width), int(height), max_pixels)
    has_exif = data.find(b"Exif\0\0", 0, 1 << 17) >= 0
    if colours in ("CMYK", "YCCK") or (has_exif and _turned(data, max_pixels)):
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        if any(text in str(error).lower() for text in _HARMLESS):
            return simplejpeg.decode_jpeg(data, "RGB", strict=False)
        raise DecodeError(f"damaged or truncated JPEG: {error}") from error


def _turned(data: bytes, max_pixels: int) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _open(data, max_pixels).getexif().get(_ORIENTATION, 1) != 1
        except Exception:  # damaged EXIF has no orientation to apply
            return False


def _with_pillow(data: bytes, max_pixels: int) -> Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)
        try:
            opened = _open(data, max_pixels)
            opened.load()
            return np.array(_rgb(_upright(opened)))
        except DecodeError:
            raise
        except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError) as error:
            raise DecodeError(f"more than the {max_pixels:,} pixels allowed") from error
        except Pillow.UnidentifiedImageError as error:
            if data.startswith(_JPEG):  # Pillow 11 and 12.0 say so of a damaged one
                raise DecodeError("damaged or truncated JPEG: Pillow does not recognise it") from error
            raise DecodeError(f"not a picture: it starts with {data[:12]!r}") from error
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            raise DecodeError(f"damaged or truncated picture: {type(error).__name__}: {error}") from error


def _open(data: bytes, max_pixels: int) -> Pillow.Image:
    opened = Pillow.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(*opened.size, max_pixels)
    return opened


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise DecodeError(f"a picture of {width} × {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(f"{width} × {height} pixels, more than the {max_pixels:,} allowed")


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of what :func:`decode_rgb` gives, mostly without decoding.

    Raises:
        DecodeError: not a picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = _open(data, MAX_PIXELS)
            turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception:  # as many types as damaged files have; or a picture that Pillow does not know
            height, width = decode_rgb(data).shape[:2]
            return width, height
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


def crop_resize(image: Picture, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
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
    if side > LARGEST_CROP * max(width, height) or side**2 > 2 * MAX_PIXELS:
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


def to_grey(image: Picture) -> UInt8[np.ndarray, "height width"]:
    """Luma (ITU-R 601, as Pillow's ``convert("L")``)."""
    return np.array(Pillow.fromarray(image).convert("L"))


def encode_jpeg(image: UInt8[np.ndarray, "height width *channels"], quality: int) -> bytes:
    """A baseline JPEG: 4:2:0 chroma for colour (height width 3), one channel for grey (height width)."""
    if image.ndim == 2:
        grey = np.ascontiguousarray(image)[..., None]
        return simplejpeg.encode_jpeg(grey, quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
