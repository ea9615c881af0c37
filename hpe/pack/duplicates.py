"""Copies among the samples: the lines of ``duplicates.jsonl``, their counts, and the note on them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hpe.pack.near_copies import DIGEST_BYTES, HASH_BYTES, Copy, copies
from hpe.pack.splits import Row

DUPLICATES: Final = "duplicates.jsonl"
_RANK: Final = {"test": 0, "val": 1, "train": 2}
"""Whose copy stays (the smaller): the test set keeps its size, and train loses the pictures that leak."""


def find_copies(
    rows: Sequence[Row], split: Sequence[str | None], hashes: Mapping[int, tuple[bytes, bytes]], *, near: bool
) -> list[Copy]:
    """Which rows are copies of which (see :func:`copies`), as indices into ``rows``.

    Args:
        split: of each row.
        hashes: of each row to compare, by index: its exact and its near hash.
        near: look for near copies too, not only for the same stored bytes.
    """
    known = sorted(hashes)
    exact = np.frombuffer(b"".join(hashes[index][0] for index in known), np.uint8).reshape(-1, DIGEST_BYTES)
    alike = np.frombuffer(b"".join(hashes[index][1] for index in known), np.uint8).reshape(-1, HASH_BYTES)
    if not near:
        alike = np.zeros_like(alike)  # hashes of zeros are never near
    rank = [_RANK[split[index] or "train"] for index in known]
    subjects, photos = [rows[index].subject for index in known], [rows[index].photo for index in known]
    found = copies(exact, alike, rank, subjects, photos)
    return [Copy(known[copy.first], known[copy.copy], copy.bits) for copy in found]


def duplicate_lines(
    rows: Sequence[Row], split: Sequence[str | None], found: Sequence[Copy], *, dropped: bool
) -> list[dict[str, Any]]:
    """The lines of ``duplicates.jsonl``."""
    return [
        {
            "first": rows[copy.first].key,
            "copy": rows[copy.copy].key,
            "kind": "exact" if copy.bits is None else "near",
            "bits": copy.bits or 0,
            "splits": [split[copy.first], split[copy.copy]],
            "emotions": [rows[copy.first].emotion, rows[copy.copy].emotion],
            "dropped": dropped,
        }
        for copy in found
    ]


def count_duplicates(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The counts of the manifest, from the lines of ``duplicates.jsonl``."""
    return {
        "exact": sum(line["kind"] == "exact" for line in lines),
        "near": sum(line["kind"] == "near" for line in lines),
        "across_splits": sum(len(set(line["splits"])) > 1 for line in lines),
        "labels_differ": sum(len(set(line["emotions"])) > 1 for line in lines),
        "dropped": sum(line["dropped"] for line in lines),
    }


def duplicates_note(counted: Mapping[str, int]) -> str:
    """The counts in words, for the manifest's notes."""
    if not counted["exact"] + counted["near"]:
        return "duplicates: none found"
    what = "were dropped" if counted["dropped"] else "stay (--drop-duplicates near drops them)"
    return (
        f"duplicates: {counted['exact']:,} exact and {counted['near']:,} near copies {what}; "
        f"{counted['across_splits']:,} across splits, {counted['labels_differ']:,} with another emotion than "
        f"the first; listed in {DUPLICATES}"
    )
