"""The record of each finished shard, by which a killed job resumes and the manifest is written in the end."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpe.core.files import aside_unsynced
from hpe.data.shards import ShardInfo

JOURNAL: Final = ".pack"
"""Folder beside the shards of a job that is not finished."""


@dataclass(frozen=True, slots=True)
class ShardJournal:
    """The record of one finished shard.

    Attributes:
        digest: of the rows and the recipe.
        shard: None when no row became a sample: there is no tar then.
        refused: number of the row, its source and the reason.
        counts: see :func:`hpe.pack.summary.tally`.
        samples: per sample the number of its row, its key, emotion, subject, and its two hashes in hex.
    """

    digest: str
    shard: ShardInfo | None
    refused: list[tuple[int, str, str]]
    counts: Counter[str]
    samples: list[tuple[int, str, int | None, str | None, str, str]]

    @classmethod
    def load(cls, path: Path) -> "ShardJournal | None":
        """The journal at ``path``; None when it is missing or damaged."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            shard = None if raw["shard"] is None else ShardInfo(**raw["shard"])
            refused = [(int(i), str(source), str(why)) for i, source, why in raw["refused"]]
            samples = [(i, key, emotion, subject, e, n) for i, key, emotion, subject, e, n in raw["samples"]]
            return cls(raw["digest"], shard, refused, Counter(raw["counts"]), samples)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, path: Path) -> None:
        """Write the journal, whole or not at all while the machine has power.

        After a power cut it may be damaged, and so may its tar: then the shard is made again.
        """
        raw = {
            "digest": self.digest,
            "shard": None if self.shard is None else asdict(self.shard),
            "refused": self.refused,
            "counts": self.counts,
            "samples": self.samples,
        }
        with aside_unsynced(path) as part:
            part.write_text(json.dumps(raw, separators=(",", ":")), encoding="utf-8")


def journal(folder: Path, shard: str) -> Path:
    """The path of a shard's journal."""
    return folder / JOURNAL / f"{shard}.json"
