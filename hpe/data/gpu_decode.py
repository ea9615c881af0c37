"""JPEGs decoded by the training device: a reader hands the encoded bytes on, and the device decodes a batch at once.

The bytes travel in the rows of the batch's own memory, in the place of the pixels. What is no plain JPEG, or larger
than its row, is decoded by the reader as ever; what the device refuses is decoded by the CPU.
"""

import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from hpe.data.decode import Colour, Row, decode_into, is_plain_jpeg
from hpe.data.images import DecodeError, Encoded

_END: Final = b"\xff\xd9"


def hand_on(data: Encoded, out: Row) -> int:
    """Put a whole plain JPEG's bytes into a row; how many, or 0 (nothing written) where the reader must decode."""
    if len(data) > out.size or data[-2:] != _END or not is_plain_jpeg(data):
        return 0
    out.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    return len(data)


def decode_rows(
    rows: UInt8[Tensor, "batch size size 3"], lengths: Sequence[int], colour: Colour, device: torch.device
) -> tuple[UInt8[Tensor, "batch 3 size size"], dict[int, str]]:
    """A batch's pictures on a device, and why some rows (then black) could not be decoded.

    On a GPU the pictures are those of the current stream: they may be on their way when this returns.

    Args:
        rows: on the host; the first ``lengths[row]`` bytes of a row are a JPEG, or with 0 the row is pixels.
        lengths: of the encoded rows.
        colour: ``rgb``, or ``grey`` (luma in three channels).
        device: where to decode, and where the result lies.
    """
    encoded = [row for row, length in enumerate(lengths) if length]
    bytes_of = {row: rows[row].reshape(-1)[: lengths[row]] for row in encoded}
    try:
        decoded = dict(zip(encoded, _decode(list(bytes_of.values()), colour, device), strict=True))
    except RuntimeError:  # one bad picture fails them all
        decoded = {}
    here = [row for row in range(len(rows)) if row not in decoded]
    size = rows.shape[1]
    # Page-locked, so that one copy takes them all along without anybody waiting for it.
    pixels = torch.empty((len(here), *rows.shape[1:]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    damage = {}
    for place, row in enumerate(here):
        if row not in bytes_of:
            pixels[place] = rows[row]
            continue
        try:
            decode_into(bytes_of[row].numpy().tobytes(), pixels[place].numpy(), colour)
        except DecodeError as error:
            damage[row] = str(error)
            pixels[place] = 0
    moved = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    pictures = {row: _fit(picture, size) for row, picture in decoded.items()} | dict(zip(here, moved, strict=True))
    return torch.stack([pictures[row] for row in range(len(rows))]), damage


def _decode(encoded: list[Tensor], colour: Colour, device: torch.device) -> list[Tensor]:
    if not encoded:
        return []
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.RGB if colour == "rgb" else ImageReadMode.GRAY
    with warnings.catch_warnings():  # some versions name a successor, which cannot decode a batch
        warnings.simplefilter("ignore")
        decoded = decode_jpeg(encoded, mode=mode, device=device)
    assert isinstance(decoded, list)
    return decoded


def _fit(picture: UInt8[Tensor, "channels height width"], size: int) -> UInt8[Tensor, "3 size size"]:
    """As :func:`hpe.data.decode.decode_into` fits: the centred square, resized."""
    height, width = picture.shape[1:]
    side = min(height, width)
    y, x = round((height - side) / 2), round((width - side) / 2)
    square = picture[:, y : y + side, x : x + side]
    if side != size:
        resized = F.interpolate(square[None].float(), (size, size), mode="bilinear", antialias=True)[0]
        square = resized.round().clamp(0, 255).to(torch.uint8)
    return square.expand(3, -1, -1)
