"""Draw docs/pictures/heads.jpg: rendered people, with what the demo's network reads from them.

    hpe demo
    python docs/pictures/draw_heads.py runs/demo/multitask

The people are of the demo's split "test": the network has seen none of them. It reads each head at 64 pixels, as it was
trained; the picture shows the same head rendered larger.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image

import hpe
from hpe.core.labels import EMOTIONS
from hpe.data.annotate import angles_note, card
from hpe.sources.synthetic import Shot, express, face_box, person, render, shot, split_of

OUT = Path(__file__).with_name("heads.jpg")
SIDE, READ, COLUMNS, GAP, SEED = 280, 64, 3, 8, 0
SHOWN = ((13, "happy", 30, 2, -4), (39, "surprise", -12, 8, 6), (119, "sad", 8, -28, 2),
         (93, "anger", -38, -2, 3), (246, "neutral", 4, 30, -3), (319, "fear", -4, 3, 8))  # fmt: skip
"""Person, emotion, yaw, pitch, roll."""


def posed(number: int, emotion: str, yaw: float, pitch: float, roll: float) -> Shot:
    """A clear view of somebody."""
    code = EMOTIONS.index(emotion)
    units = express(code, 1.0, side=1 if yaw >= 0 else -1)
    seen = replace(shot(SEED, number), yaw=yaw, pitch=pitch, roll=roll, emotion=code, units=units, intensity=1.0)
    return replace(seen, noise=0.0, blur=0.0, blobs=0.04, gaze=(0.0, 0.0), centre=(0.0, 0.0), ambient=0.68)


def tile(face: hpe.Face, number: int, seen: Shot) -> Image.Image:
    """A head with the predictions of the network on it and beside it."""
    assert face.angles is not None
    who = person(SEED, number)
    drawn = replace(face.overlay(), box=face_box(who, seen, SIDE), note=angles_note(face.angles))
    return card(Image.fromarray(render(who, seen, SIDE)), drawn, height=SIDE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw docs/pictures/heads.jpg.")
    parser.add_argument("run", type=Path, help="the demo's joint network")
    network = hpe.load(parser.parse_args().run)
    tiles = []
    for number, emotion, yaw, pitch, roll in SHOWN:
        assert split_of(number) == "test"
        seen = posed(number, emotion, yaw, pitch, roll)
        (face,) = network(render(person(SEED, number), seen, READ))
        print(number, emotion, yaw, pitch, roll, "read as", face.emotion, face.direction, face.angles)
        tiles.append(tile(face, number, seen))
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for at, one in enumerate(tiles):
        sheet.paste(one, (at % COLUMNS * (width + GAP), at // COLUMNS * (height + GAP)))
    sheet.save(OUT, quality=88, optimize=True)
    print(OUT, sheet.size, f"{OUT.stat().st_size / 1000:.0f} kB")
