"""How large faces are in their pictures: what two datasets must have in common for one network to read both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from hpe.data.crops import box_around
from hpe.data.images import DecodeError, image_size
from hpe.data.records import Record
from hpe.data.shard_reader import open_tar

_MOST_SHARDS: Final = 8
_ROWS_OF_SHARD: Final = 32
_LARGEST_RATIO: Final = 1.3
"""Faces that differ more in size are told: random crops of a training seldom vary them by so much."""


def face_shares(tars: Sequence[Path]) -> dict[str, float]:
    """Median longer side of the faces' boxes, as a fraction of the picture's shorter side; empty if no record has one.

    The key is what bounds the face, ``box`` or ``landmarks``: one cannot be compared with the other. A few hundred
    samples, spread over the shards, are read; what cannot be read is left out, as others report it.
    """
    found: dict[str, list[float]] = {"box": [], "landmarks": []}
    for tar in tars[:: -(-len(tars) // _MOST_SHARDS) or 1]:
        try:
            shard = open_tar(tar)
        except OSError:
            continue
        for row in range(0, len(shard), -(-len(shard) // _ROWS_OF_SHARD) or 1):
            try:
                sides = _sides(shard.record(row))
                side = min(image_size(bytes(shard.image(row)))) if sides else 0
            except (OSError, ValueError, DecodeError, RecursionError):
                continue
            for basis, longer in sides.items():
                found[basis].append(longer / side)
    return {basis: round(float(np.median(shares)), 4) for basis, shares in found.items() if shares}


def sizes_differ(trained: Mapping[str, float], judged: Mapping[str, float]) -> str | None:
    """How the sizes of faces differ, if they differ much; None too where they cannot be compared."""
    for basis in ("box", "landmarks"):
        one, other = trained.get(basis), judged.get(basis)
        if one and other and max(one / other, other / one) > _LARGEST_RATIO:
            return f"the {basis} of a face fills {other:.0%} of the picture's side; in training it filled {one:.0%}"
    return None


def _sides(record: Record) -> dict[str, float]:
    sides = {}
    if record.box is not None:
        x0, y0, x1, y1 = record.box
        sides["box"] = max(x1 - x0, y1 - y0)
    if record.landmarks is not None:
        x0, y0, x1, y1 = box_around(np.asarray(record.landmarks))
        sides["landmarks"] = max(x1 - x0, y1 - y0)
    return sides
