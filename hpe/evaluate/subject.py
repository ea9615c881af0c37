"""What an evaluation judges, and the name of its files: no result replaces another one's."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError, redacted
from hpe.core.files import short_name
from hpe.data.shard_files import ALL_SPLITS
from hpe.data.shards import MANIFEST, Manifest
from hpe.models.views import Views
from hpe.stream import ShardSet
from hpe.stream.shard_sets import Shard

_TITLES: Final = {
    "affectnet-2017": "AffectNet (2017)",
    "affectnet-2021": "AffectNet (2021)",
    "affectnet-folders": "AffectNet (folders)",
    "affectnet-yolo": "AffectNet (YOLO)",
    "aflw2000": "AFLW2000-3D",
    "300w-lp": "300W-LP",
    "biwi": "BIWI",
    "fer2013-csv": "FER2013",
    "ferplus": "FER+",
    "pointing04": "Pointing'04",
    "raf-db": "RAF-DB",
}
_ANYBODYS: Final = ("folders", "table", "huggingface")
"""Readers whose name says nothing of the dataset; the name of the shards' folder does."""
_DIGITS: Final = 12
_LONGEST_NAME: Final = 120


@dataclass(frozen=True, slots=True)
class Subject:
    """What an evaluation judges.

    Attributes:
        title: for people, such as ``RAF-DB test``; the report's heading.
        split: such as ``test``.
        stem: the usual name of its files, such as ``raf-db-test``.
        folder: end of the path of the shards' folder, which tells apart two datasets of one name.
        identity: what changes the result, as hexadecimal digests and texts. ``data`` is the shards' content and
            ``paths`` where they lie, ``tables`` and ``pose`` the same of the pose tables; one of the two is enough to
            recognise them.
    """

    title: str
    split: str
    stem: str
    folder: str
    identity: Mapping[str, str | None]

    @classmethod
    def of(
        cls,
        sets: Sequence[ShardSet],
        shards: Sequence[Sequence[Shard]],
        *,
        views: Views,
        which: str,
        precision: str | None,
    ) -> "Subject":
        """The subject of an evaluation.

        Args:
            sets: as the user names them.
            shards: those of each set.
            views: of each image.
            which: the checkpoint.
            precision: None: that of the training.
        """
        parts = [_named(one, of_set) for one, of_set in zip(sets, shards, strict=True)]
        every = [shard for of_set in shards for shard in of_set]
        sha256 = [shard.sha256 for shard in every]
        tables = [one.pose for one in sets if one.pose]
        details = [f"labels of {Path(pose).name}" for pose in tables] + [str(views)] * (str(views) != "")
        details += [f"checkpoint {which}"] * (which != "best") + [f"in {precision}"] * (precision is not None)
        stem = "-".join(
            [
                "+".join(f"{dataset}-{split}" if split else dataset for dataset, split, _ in parts),
                *(Path(pose).name for pose in tables),
                *["flips"] * views.flips,
                *[f"centre{views.centre:g}"] * (views.centre < 1),
                *[which] * (which != "best"),
                *[precision or ""] * (precision is not None),
            ]
        )
        titles = [f"{_TITLES.get(dataset, dataset)} {split}".strip() for dataset, split, _ in parts]
        return cls(
            title=" and ".join(titles) + (f" ({', '.join(details)})" if details else ""),
            split="+".join(dict.fromkeys(split for _, split, _ in parts)),
            stem=_plain(stem),
            folder="+".join(folder for _, _, folder in parts),
            identity={
                "data": None if None in sha256 else _digest(sha256),
                "paths": _digest([shard.url if shard.remote else str(Path(shard.url).resolve()) for shard in every]),
                "tables": _digest_of_files([shard.pose for shard in every]) if tables else None,
                "pose": _digest([str(Path(pose).resolve()) for pose in tables]) if tables else None,
                "views": str(views),
                "checkpoint": which,
                "precision": precision,
            },
        )

    def name_in(self, folder: Path, named: str | None) -> tuple[str, str]:
        """The name of the files in a run's folder of results, and the title that tells them apart.

        Args:
            folder: of the results.
            named: the name that the user chose; None: the usual one, made longer where another subject has it.

        Raises:
            UserError: the user's name belongs to another result.
        """
        if named is not None:
            if (other := self._other(folder, named)) is not None:
                raise UserError(
                    f"--name {named}: {folder / named}.json is the result on {other}, not on {self.title} "
                    f"({self.folder}); give another --name, or remove that file"
                )
            return named, self.title if named in (self.split, self.stem) else f"{self.title} ({named})"
        return next(one for one in self._usual_names() if self._other(folder, one[0]) is None)

    def _usual_names(self) -> Iterator[tuple[str, str]]:
        """Names with their titles, for as long as the ones before belong to other results."""
        yield self.stem, self.title
        for number in itertools.count(1):
            more = self.folder + f" {number}" * (number > 1)
            yield _plain(f"{self.stem}-{more}"), f"{self.title} ({more})"

    def _other(self, folder: Path, name: str) -> str | None:
        """What the result of this name is of, if it is of something else; None: it is free, or this subject's own."""
        try:
            about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["about"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            return "something that cannot be read"
        if not isinstance(about, dict) or not isinstance(known := about.get("identity"), dict):
            return "something that cannot be read"
        mine = self.identity
        same = all(known.get(key) == mine[key] for key in ("views", "checkpoint", "precision"))
        for content, place in (("data", "paths"), ("tables", "pose")):
            alike = mine[content] is not None and known.get(content) == mine[content]
            same = same and (alike or known.get(place) == mine[place])
        shards = about.get("shards")
        where = f" ({shards[0]})" if isinstance(shards, list) and shards else ""
        return None if same else f"{about.get('title', 'something else')}{where}"


def _named(one: ShardSet, shards: Sequence[Shard]) -> tuple[str, str, str]:
    """Dataset, split (empty if unknown) and folder of a set of shards."""
    folders = list(dict.fromkeys(redacted(shard.url).rpartition("/")[0] for shard in shards))
    paths = [Path(folder).resolve() for folder in folders]
    name, path = "+".join(one.name for one in paths), "+".join("/".join(one.parts[-2:]) for one in paths)
    found = [_manifest(folder) for folder in folders if not shards[0].remote]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(folders):
        tar = _stem_of(shards[0].name) if len(shards) == 1 else name
        return tar or "shards", one.split or "", path
    datasets = dict.fromkeys(name if manifest.dataset in _ANYBODYS else manifest.dataset for manifest in known)
    return "+".join(datasets), _split_of(known, [shard.name for shard in shards]), path


def _split_of(manifests: Sequence[Manifest], names: Sequence[str]) -> str:
    splits = list(_splits(manifests, names))
    everything = dict.fromkeys(split for manifest in manifests for split in manifest.splits)
    if len(splits) > 1 and len(splits) == len(everything):
        return ALL_SPLITS
    listed = sum(shard.split in splits for manifest in manifests for shard in manifest.shards)
    part = "" if len(names) == listed else f", {len(names)} of {listed} shards"
    return "+".join(splits) + part


def _splits(manifests: Sequence[Manifest], names: Sequence[str]) -> Iterator[str]:
    given = set(names)
    found = (shard.split for manifest in manifests for shard in manifest.shards if shard.name in given)
    yield from dict.fromkeys(found)


def _manifest(folder: str) -> Manifest | None:
    if not Path(folder, MANIFEST).is_file():
        return None
    try:
        return Manifest.load(Path(folder))
    except UserError:  # the result does not depend on it
        return None


def _stem_of(name: str) -> str:
    return Path(name).name.removesuffix(".tar")


def _digest(texts: Sequence[str | None]) -> str:
    return hashlib.sha256("\n".join(map(str, texts)).encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def _digest_of_files(files: Sequence[Path | None]) -> str | None:
    """The digest of the first table alone: estimators and rules are the same in all tables of a folder."""
    first = next((file for file in files if file is not None and file.is_file()), None)
    return None if first is None else hashlib.sha256(first.read_bytes()).hexdigest()[:_DIGITS]


def _plain(text: str) -> str:
    """A file name of letters, digits and a few signs; a long one ends in a hash, as what tells it apart is last."""
    kept = "".join(letter if letter.isalnum() or letter in "-_.=+" else "_" for letter in text)
    return short_name(kept.strip("_.") or "evaluate", _LONGEST_NAME)
