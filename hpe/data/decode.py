"""The hot path from a sample's bytes to pixels: straight into a row of a preallocated batch.

What is plain (a JPEG, an 8-bit grey or RGB PNG) is decoded by the fastest decoder; everything else, and
everything that is damaged, goes to :func:`hpe.data.images.decode_rgb`, which knows hostile files. All decoders
here let other threads run while they work.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL.PngImagePlugin import PngImageFile

from hpe.data.images import (
    MAX_PIXELS,
    DecodeError,
    Encoded,
    RGBImage,
    check_size,
    decode_rgb,
    is_upright,
    may_be_turned,
)

Colour = Literal["rgb", "grey"]
Row = UInt8[np.ndarray, "size size 3"]

_JPEG: Final = b"\xff\xd8"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_EXIF: Final = "exif"
_LUMA: Final = np.asarray((19595, 38470, 7471), np.uint32)
"""ITU-R 601 in 1/65536, as Pillow's ``convert("L")``."""


def decode_rows(
    data: Sequence[Encoded], rows: Iterable[int], out: UInt8[np.ndarray, "batch size size 3"], colour: Colour = "rgb"
) -> dict[int, str]:
    """Decode some rows of a batch as :func:`decode_into` does; returns why the others could not be.

    All headers are looked at before the first picture is decoded. Between two pictures, Python is several times as slow
    as in a loop of its own, since libjpeg has taken the processor's caches.
    """
    damage: dict[int, str] = {}
    size = out.shape[1]
    plain, others = [], []
    for row in rows:
        is_plain = colour == "rgb" and data[row][:2] == _JPEG and is_upright(data[row], size, size)
        (plain if is_plain else others).append(row)
    for row in plain:
        try:
            simplejpeg.decode_jpeg(data[row], "RGB", buffer=out[row])
        except ValueError:  # damaged, or an unusual subsampling
            others.append(row)
    for row in others:
        try:
            decode_into(data[row], out[row], colour)
        except DecodeError as error:
            damage[row] = str(error)
    return damage


def decode_into(data: Encoded, out: Row, colour: Colour = "rgb", *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode a picture into ``out``; what has another size loses the ends of its longer side and is resized.

    A JPEG that is larger is scaled while it is decoded (by eighths), then resized once, antialiased. ``grey``
    writes the luma into all three channels.

    Args:
        data: the encoded picture.
        out: a contiguous row of a batch, overwritten.
        colour: ``rgb`` or ``grey``.
        max_pixels: of the encoded picture.

    Raises:
        DecodeError: the bytes are no whole picture, or too large a one.
    """
    if data[:2] == _JPEG and _jpeg_into(data, out, colour, max_pixels):
        return
    if data[:8] == _PNG and _png_into(data, out, max_pixels):
        if colour == "grey":
            _grey(out)
        return
    pixels_into(decode_rgb(bytes(data), max_pixels=max_pixels), out, colour)


def pixels_into(pixels: RGBImage, out: Row, colour: Colour = "rgb") -> None:
    """As :func:`decode_into`, of pixels: what it gives for the bytes of a PNG of them."""
    _fit(pixels, out)
    if colour == "grey":
        _grey(out)


def _jpeg_into(data: Encoded, out: Row, colour: Colour, max_pixels: int) -> bool:
    """False where :func:`decode_rgb` must do it."""
    size = len(out)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK") or may_be_turned(data):
            return False
        check_size(int(width), int(height), max_pixels)
        wanted = "RGB" if colour == "rgb" else "GRAY"
        if height == size and width == size:
            if colour == "rgb":
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            else:
                out[:] = simplejpeg.decode_jpeg(data, "GRAY")
            return True
        pixels = simplejpeg.decode_jpeg(data, wanted, min_height=size, min_width=size)
    except DecodeError:
        raise
    except ValueError:
        return False
    _fit(pixels, out)
    return True


def is_plain_jpeg(data: Encoded) -> bool:
    """Whether a JPEG has the usual colours and subsampling, an allowed size, and no orientation to apply."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colours not in ("CMYK", "YCCK") and not may_be_turned(data) and int(height) * int(width) <= MAX_PIXELS


def _png_into(data: Encoded, out: Row, max_pixels: int) -> bool:
    """False where :func:`decode_rgb` must do it: anything but whole 8-bit grey or RGB without transparency."""
    try:
        image = PngImageFile(io.BytesIO(data))
        if image.mode not in ("L", "RGB") or "transparency" in image.info or _EXIF in image.info:
            return False
        if image.width * image.height > max_pixels:
            return False
        pixels = np.array(image)
    except Exception:  # Pillow's decoders raise a dozen types on damaged files
        return False
    _fit(pixels if pixels.ndim == 3 else pixels[..., None], out)
    return True


def _fit(pixels: UInt8[np.ndarray, "height width channels"], out: Row) -> None:
    """The centred square of a picture, resized into ``out``; one channel is written into three."""
    size, (height, width, channels) = len(out), pixels.shape
    side = min(height, width)
    y, x = round((height - side) / 2), round((width - side) / 2)
    square = pixels[y : y + side, x : x + side]
    if side != size:
        planes = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)[None]
        resized = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
        square = resized[0].permute(1, 2, 0).numpy()
    out[:] = square if channels == 3 else square[..., :1]


def _grey(out: Row) -> None:
    out[:] = ((out @ _LUMA + 0x8000) >> 16)[..., None]
