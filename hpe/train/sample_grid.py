"""Faces with what a network reads of them, side by side: the sample grid of TensorBoard."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.annotate import Overlay, card
from hpe.data.batch import Batch
from hpe.models.multitask import Outputs, angles_of

SHOWN: Final = 16
_COLUMNS: Final = 4
_FACE_SIDE: Final = 144


def sample_grid(seen: Sequence[tuple[Batch, Outputs]]) -> UInt8[np.ndarray, "height width 3"] | None:
    """The first 16 faces of some batches: axes, direction and emotion as read, above them what is true.

    Args:
        seen: batches and the network's raw outputs for them, on any device.

    Returns:
        The picture, or None where there is no face.
    """
    cards = [one for batch, outputs in seen for one in _cards(batch, outputs)][:SHOWN]
    if not cards:
        return None
    width, height = max(one.width for one in cards), cards[0].height
    rows = -(-len(cards) // _COLUMNS)
    whole = Image.new("RGB", (width * min(len(cards), _COLUMNS), height * rows))
    for place, one in enumerate(cards):
        whole.paste(one, (place % _COLUMNS * width, place // _COLUMNS * height))
    return np.asarray(whole)


def _cards(batch: Batch, outputs: Outputs) -> list[Image.Image]:
    found = {head: values[:SHOWN].detach().float().cpu() for head, values in outputs.items()}
    emotion = found["emotion"].softmax(-1).tolist() if "emotion" in found else None
    direction = found["direction"].argmax(-1).tolist() if "direction" in found else None
    angles = angles_of(found["pose"]).tolist() if "pose" in found else None
    cards = []
    for row, pixels in enumerate(batch.images[:SHOWN].permute(0, 2, 3, 1).cpu().numpy()):
        height, width = pixels.shape[:2]
        overlay = Overlay(
            (0.0, 0.0, float(width), float(height)),
            None if angles is None or not np.isfinite(angles[row]).all() else tuple(angles[row]),
            None if direction is None else direction[row],
            None if emotion is None or not np.isfinite(emotion[row]).all() else emotion[row],
            _truth(batch, row),
        )
        cards.append(card(Image.fromarray(pixels), overlay, height=_FACE_SIDE))
    return cards


def _truth(batch: Batch, row: int) -> str:
    """What the labels say, in the 24 letters that a card has room for."""
    said = []
    if batch.emotion_mask[row]:
        said.append(EMOTIONS[int(batch.emotion[row])])
    if batch.direction_mask[row]:
        said.append(DIRECTIONS[int(batch.direction[row])])
    return f"true: {', '.join(said)}" if said else "no label"
