"""A reader of your own dataset: one function turns its files into samples, and hpe does the rest.

    python examples/own_reader.py raw/mine shards/mine

The dataset here has pictures and a file ``faces.jsonl`` with one face per line, in words and units of its own::

    {"file": "img/1.jpg", "who": "anna", "mood": "joy", "turn_left": -12.5, "nod_up": 3.0, "face": [40, 30, 200, 190]}

Shards, splits by person, crops, quarantine, contact sheets and resuming then come from hpe. If others have the dataset
too, put the reader into hpe: "A dataset" in docs/architecture.md.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.data.records import Record
from hpe.pack import pack
from hpe.pack.options import Options
from hpe.sources.base import Keys, Raw, Reject, Source, sample

MOODS = {"calm": "neutral", "joy": "happy", "grief": "sad", "awe": "surprise", "dread": "fear", "rage": "anger"}


def open_mine(folder: Path) -> Source:
    """The dataset in a folder."""
    table = folder / "faces.jsonl"
    if not table.is_file():
        raise UserError(f"{folder}: expected faces.jsonl beside the pictures")

    def rows() -> Iterator[Raw | Reject]:
        keys = Keys()  # makes the names of samples, and sees to it that none comes twice
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
            try:
                face = json.loads(line)
                record = Record(
                    emotion=EMOTIONS.index(MOODS[face["mood"]]) if "mood" in face else None,
                    yaw=face.get("turn_left"),  # hpe: positive yaw turns the face to the left edge of the image
                    pitch=face.get("nod_up"),  # hpe: positive pitch looks up
                    roll=0.0 if "turn_left" in face else None,
                    box=tuple(face["face"]) if "face" in face else None,  # pixels: x0, y0, x1, y1
                    subject=face.get("who"),  # a person is never in two splits
                    source=face["file"],
                )
            except (ValueError, KeyError, TypeError) as error:
                # A bad line does not end the job: it is listed in quarantine.jsonl, and counted.
                yield Reject(f"{table.name}:{number}", f"not a face: {error!r}")
                continue
            picture = folder / face["file"]
            if not picture.resolve().is_relative_to(folder.resolve()):  # whoever wrote the table may not read your disk
                yield Reject(f"{table.name}:{number}", f"{face['file']}: is outside the dataset's folder")
                continue
            yield sample(keys, picture, record)

    return Source(
        name="mine",
        variant="pictures and faces.jsonl",
        licence="unknown",
        publishable=False,
        default_crop="square-1.4@box",
        splits=(),  # it names none: hpe draws them
        rows=rows,
    )


if __name__ == "__main__":  # hpe pack starts processes, which import this file
    parser = argparse.ArgumentParser(description="A reader of your own dataset.")
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=224, help="side of the stored images in pixels")
    chosen = parser.parse_args()
    manifest = pack(open_mine(chosen.raw), chosen.out, Options(size=chosen.size), label="mine", raw=chosen.raw)
    print(f"{chosen.out}: {manifest.counts}")
