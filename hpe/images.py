"""Pictures as bytes and as arrays: decoding what may be hostile, one antialiased crop, encoding."""

from typing import Final

import numpy as np
from jaxtyping import Float, UInt8

from hpe.crops import Box

MAX_PIXELS: Final = 64_000_000
"""Larger pictures are refused before anything is decoded: 64 megapixels are 192 MB of RGB."""

Image = UInt8[np.ndarray, "height width 3"]


class DecodeError(ValueError):
    """The bytes are no whole picture; the message says why."""


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture upright (EXIF orientation applied), in RGB; alpha over white.

    Raises:
        DecodeError: not a picture, truncated or damaged, or more than ``max_pixels``.
    """
    raise NotImplementedError


def crop_resize(image: Image, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The centred square of ``box``, resized once (bilinear, antialiased); black beyond the border.

    A box that is not square loses the ends of its longer side, as Hopenet's "resize the short side, crop the
    centre" does, so that faces keep their proportions.

    Raises:
        ValueError: the box is empty, not finite, or wholly outside the picture.
    """
    raise NotImplementedError


def map_points(points: Float[np.ndarray, "n 2"], box: Box, size: int) -> Float[np.ndarray, "n 2"]:
    """Where points of the raw picture lie in ``crop_resize(image, box, size)``."""
    raise NotImplementedError


def map_box(inner: Box, box: Box, size: int) -> Box:
    """Where a box of the raw picture lies in ``crop_resize(image, box, size)``."""
    raise NotImplementedError


def to_grey(image: Image) -> UInt8[np.ndarray, "height width"]:
    """Luma (ITU-R 601, as Pillow's ``convert("L")``)."""
    raise NotImplementedError


def encode_jpeg(image: UInt8[np.ndarray, "..."], quality: int) -> bytes:
    """A baseline JPEG, 4:2:0 for colour (height width 3), one channel for grey (height width)."""
    raise NotImplementedError
