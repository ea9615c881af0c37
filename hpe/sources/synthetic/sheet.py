"""Contact sheets: pictures for people to judge the renderer by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from hpe.sources.synthetic.people import person
from hpe.sources.synthetic.render import render
from hpe.sources.synthetic.shots import DIRECTIONS, EMOTIONS, Shot, express, shot

Sheet = UInt8[np.ndarray, "height width 3"]
CLEAR_POSE = {
    "forward": (0, 0),
    "left": (45, 0),
    "right": (-45, 0),
    "up": (0, 34),
    "down": (0, -34),
}  # yaw, pitch


def contact_sheet(seed: int = 0, *, size: int = 128, people: int = 40) -> Sheet:
    """Rows are the emotions, columns the directions, each with its name; people change from tile to tile."""
    tiles = []
    for emotion in range(len(EMOTIONS)):
        for column, direction in enumerate(DIRECTIONS):
            yaw, pitch = CLEAR_POSE[direction]
            who = person(seed, (5 * emotion + column) % people)
            tiles.append(render(who, _posed(shot(seed, emotion * 5 + column), emotion, yaw, pitch), size))
    return _grid(tiles, EMOTIONS, DIRECTIONS)


def people_sheet(seed: int = 0, *, size: int = 128, rows: int = 6, columns: int = 8) -> Sheet:
    """Many people, each with one shot as the dataset would hold it."""
    count = rows * columns
    tiles = [render(person(seed, number), shot(seed, number), size) for number in range(count)]
    return _grid(tiles, [str(row * columns) for row in range(rows)], [f"+{column}" for column in range(columns)])


def _posed(seen: Shot, emotion: int, yaw: float, pitch: float) -> Shot:
    units = express(emotion, 1.0, side=1 if yaw >= 0 else -1)
    steady = replace(seen, noise=0.0, blur=0.0, ambient=0.72, blobs=0.06, gaze=(0.0, 0.0))
    return replace(steady, yaw=yaw, pitch=pitch, roll=0.0, emotion=emotion, intensity=1.0, units=units)


def _grid(tiles: Sequence[np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Sheet:
    size, gap = tiles[0].shape[0], 4
    text = max(11, size // 8)
    font = ImageFont.load_default(text)
    left = 12 + int(max(font.getlength(name) for name in rows))
    top = text + 14
    sheet = Pillow.new("RGB", (left + len(columns) * (size + gap), top + len(rows) * (size + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(columns):
        draw.text((left + number * (size + gap) + size / 2, top / 2), name, "black", font, anchor="mm")
    for number, name in enumerate(rows):
        draw.text((left - 6, top + number * (size + gap) + size / 2), name, "black", font, anchor="rm")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, len(columns))
        sheet.paste(Pillow.fromarray(tile), (left + column * (size + gap), top + row * (size + gap)))
    return np.asarray(sheet)
