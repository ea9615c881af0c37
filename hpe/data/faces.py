"""Faces of an open shard, decoded and cropped."""

import numpy as np
from jaxtyping import UInt8

from hpe.data.crops import CropRule
from hpe.data.images import DecodeError, crop_resize, decode_rgb
from hpe.data.shard_reader import OpenShard

Pixels = UInt8[np.ndarray, "size size 3"]


def read_face(shard: OpenShard, row: int, crop: CropRule, size: int) -> Pixels:
    """The face of a row as a square of ``size`` pixels.

    Raises:
        DecodeError: the bytes are no picture.
        ValueError: the crop is impossible.
    """
    image = decode_rgb(bytes(shard.image(row)))
    height, width = image.shape[:2]
    if crop.shape != "none":
        return crop_resize(image, crop.box(shard.record(row)), size)
    if (height, width) == (size, size):
        return image
    return crop_resize(image, (0, 0, width, height), size)


def read_faces(
    shard: OpenShard, rows: range, crop: CropRule, into: UInt8[np.ndarray, "rows size size 3"]
) -> dict[int, str]:
    """Read rows into an array; rows that give no face are black there and returned with their problem."""
    problems = {}
    for place, row in enumerate(rows):
        try:
            into[place] = read_face(shard, row, crop, into.shape[1])
        except (DecodeError, ValueError, TypeError, RecursionError) as error:
            into[place] = 0
            problems[row] = str(error)[:200] or type(error).__name__
    return problems
