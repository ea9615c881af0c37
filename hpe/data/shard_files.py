"""Local shards that a user names: folders that ``hpe pack`` wrote, tars, and globs of tars.

What else may be named is resolved where it is used, on top of these functions: URLs, commands and brace patterns by
:mod:`hpe.stream.shard_sets`, pictures by :mod:`hpe.predict.inputs`.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.data.index import FOREIGN, IndexFile, open_index
from hpe.data.shards import MANIFEST, Manifest, ShardInfo

ALL_SPLITS: Final = "all"
"""What names all splits together."""
_GLOB_CHARACTERS: Final = frozenset("*?[")


class SplitError(UserError):
    """A split that is missing, or that is not there."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A local shard, and what its manifest contains about it (None: there is no manifest, or it lists no such shard).

    Attributes:
        crop: the crop rule of the whole manifest.
        index: of the manifest, or the one beside the tar that ``hpe index`` wrote.
    """

    path: Path
    samples: int | None = None
    sha256: str | None = None
    crop: str | None = None
    bytes: int | None = None
    index: IndexFile | None = None


def packed_shards(folder: Path, split: str | None = None) -> list[ShardFile]:
    """The shards of a folder that ``hpe pack`` finished, in order; None: of every split.

    Raises:
        UserError: the folder has no manifest, or the manifest lists no such split.
    """
    manifest = Manifest.load(folder)
    shards = manifest.shards if split is None else of_split(manifest, split, str(folder))
    indexes = indexes_of(manifest, folder)
    return [
        ShardFile(folder / s.name, s.samples, s.sha256, manifest.crop, s.bytes, indexes.get(s.split)) for s in shards
    ]


def indexes_of(manifest: Manifest, folder: Path) -> dict[str, IndexFile]:
    """The index of each split in a local folder; without those that are missing there: then the tars are read."""
    paths = {index.split: (folder / index.name, index.sha256) for index in manifest.indexes}
    return {split: IndexFile(str(path), str(folder), sha) for split, (path, sha) in paths.items() if path.is_file()}


def with_manifests(tars: Sequence[Path]) -> list[ShardFile]:
    """Tars, each with what a manifest in its folder contains about it.

    Raises:
        UserError: a manifest that is damaged.
    """
    listed: dict[Path, ShardFile] = {}
    for folder in dict.fromkeys(tar.parent for tar in tars):
        if (folder / MANIFEST).is_file():
            listed.update({shard.path: shard for shard in packed_shards(folder)})
    beside = {folder: folder / FOREIGN for folder in dict.fromkeys(tar.parent for tar in tars)}
    foreign = {folder: _sizes(path) for folder, path in beside.items() if path.is_file()}
    found = []
    for tar in tars:
        known = foreign.get(tar.parent, {})
        # A tar that was added or replaced after the index was made is read itself.
        fits = tar.name in known and tar.is_file() and tar.stat().st_size == known[tar.name]
        index = IndexFile(str(beside[tar.parent]), str(tar.parent)) if fits else None
        found.append(listed.get(tar) or ShardFile(tar, index=index))
    return found


def _sizes(index: Path) -> dict[str, int]:
    """The tars in an index of tars without a manifest, and their sizes."""
    try:
        return {shard.name: shard.bytes for shard in open_index(index).shards}
    except ValueError as error:
        raise UserError(f"{index}: {error}; make it again with `hpe index {index.parent}`, or remove it") from error


def find_shards(sources: Sequence[str | Path], split: str | None = None) -> list[ShardFile]:
    """The shards that paths name: folders of ``hpe pack`` (with a manifest), tar files, or globs of them.

    Args:
        sources: the paths.
        split: of folders; None: every split.

    Raises:
        UserError: a path names no shard.
    """
    found: dict[Path, ShardFile] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            shards = packed_shards(path, split)
        else:
            tars = [path] if (matches := matching(str(source))) is None else matches
            if not tars or not all(tar.is_file() for tar in tars):
                raise UserError(f"{source}: no such shards; expected a folder that `hpe pack` wrote, or tar files")
            shards = with_manifests(tars)
        for shard in shards:
            found.setdefault(shard.path.resolve(), shard)
    return list(found.values())


def matching(pattern: str) -> list[Path] | None:
    """What a glob matches, sorted; None where the text is no glob, or is the name of something that exists."""
    if Path(pattern).exists() or not _GLOB_CHARACTERS & set(pattern):
        return None
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (absolute patterns)


def of_split(manifest: Manifest, split: str, where: str) -> list[ShardInfo]:
    """The shards of a split, in order; ``all`` names all splits together.

    Args:
        manifest: of a folder or URL of shards.
        split: such as ``train``.
        where: the folder or URL, for the message.

    Raises:
        SplitError: there is no such split.
    """
    if split not in manifest.splits:
        if split == ALL_SPLITS:
            return list(manifest.shards)
        known = ", ".join(manifest.splits)
        raise SplitError(f"{where}: there is no split {split!r}; expected one of {known}, or {ALL_SPLITS}")
    return [shard for shard in manifest.shards if shard.split == split]
