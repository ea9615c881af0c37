"""Shards that a user names: folders that ``hpe pack`` wrote, here or in a store; local tars, and globs of tars.

What else may be named is resolved where it is used, on top of these functions: remote tars, commands and brace patterns
by :mod:`hpe.stream.shard_sets`, pictures by :mod:`hpe.predict.inputs`.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.labels import SPLITS
from hpe.data import store
from hpe.data.index import FOREIGN, IndexFile, open_index
from hpe.data.remote_cache import RemoteCache
from hpe.data.shard_reader import OpenShard, open_shard
from hpe.data.shards import MANIFEST, Manifest, ShardInfo
from hpe.data.store import FetchError, below, is_remote

ALL_SPLITS: Final = "all"
"""What names all splits together."""
_GLOB_CHARACTERS: Final = frozenset("*?[")
_TAR: Final = re.compile(r"\.tar($|\?)")


_DRAWN: Final = (
    "`hpe pack` draws {0} from three pictures or more (--{0}-share 0.1; --splits drawn where the dataset has its own "
    "splits): pack into a new folder"
)


class SplitError(UserError):
    """A split that is missing, or that is not there."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard, and what its manifest contains about it (None: there is no manifest, or it lists no such shard).

    Attributes:
        path: of the tar; of a remote one, its name.
        crop: the crop rule of the whole manifest.
        index: of the manifest, or the one beside the tar that ``hpe index`` wrote.
        url: of a remote tar.
    """

    path: Path
    samples: int | None = None
    sha256: str | None = None
    crop: str | None = None
    bytes: int | None = None
    index: IndexFile | None = None
    url: str | None = None

    def __str__(self) -> str:
        return self.url or str(self.path)

    @property
    def folder(self) -> str:
        """Path or URL of the folder that it lies in."""
        return self.url.partition("?")[0].rpartition("/")[0] if self.url else str(self.path.parent)

    def open(self) -> OpenShard:
        """Map the tar, which must be whole; a remote one is fetched to this node, where it stays while it is mapped.

        Raises:
            ValueError: it cannot be read, or it is damaged.
            UserError: its store refuses, or does not answer; the node's cache has no room.
        """
        if self.url is None:
            return open_shard(self.path)
        try:
            with RemoteCache.of_node().opened(self.url, self.sha256, self.bytes) as descriptor:
                return open_shard(descriptor)
        except FetchError as error:
            raise ValueError(str(error)) from error


def manifest_at(folder: str | Path) -> Manifest:
    """The manifest of a folder of shards, or of the URL of one.

    Raises:
        UserError: there is none, it is not one, or it cannot be fetched.
    """
    if isinstance(folder, Path) or not is_remote(folder):
        return Manifest.load(Path(folder))
    store.require_driver(folder)
    return RemoteCache.of_node().text(below(folder, MANIFEST), Manifest.parse)


def packed_shards(folder: str | Path, split: str | None = None) -> list[ShardFile]:
    """The shards of a folder that ``hpe pack`` finished, or of the URL of one, in order; None: of every split.

    Raises:
        UserError: the folder has no manifest, or the manifest lists no such split.
    """
    return of_manifest(manifest_at(folder), folder, split)


def of_manifest(manifest: Manifest, folder: str | Path, split: str | None = None) -> list[ShardFile]:
    """The same where the manifest is known."""
    shards = manifest.shards if split is None else of_split(manifest, split, str(folder))
    if isinstance(folder, str) and is_remote(folder):
        indexes = {i.split: IndexFile(below(folder, i.name), folder, i.sha256, remote=True) for i in manifest.indexes}
        places = [(Path(s.name), below(folder, s.name)) for s in shards]
    else:
        indexes = indexes_of(manifest, Path(folder))
        places = [(Path(folder) / s.name, None) for s in shards]
    return [
        ShardFile(path, s.samples, s.sha256, manifest.crop, s.bytes, indexes.get(s.split), url)
        for s, (path, url) in zip(shards, places, strict=True)
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
    """The shards that paths name: folders of ``hpe pack`` (with a manifest) or their URLs, tar files, globs of them.

    Args:
        sources: the paths and URLs.
        split: of folders; None: every split.

    Raises:
        UserError: a path names no shard.
    """
    found: dict[Path | str, ShardFile] = {}
    for source in sources:
        path = Path(source)
        if isinstance(source, str) and is_remote(source):
            refuse_remote_tar(source)
            shards = packed_shards(source, split)
        elif path.is_dir():
            shards = packed_shards(path, split)
        else:
            tars = [path] if (matches := matching(str(source))) is None else matches
            if not tars or not all(tar.is_file() for tar in tars):
                raise UserError(f"{source}: no such shards; expected a folder that `hpe pack` wrote, or tar files")
            shards = with_manifests(tars)
        for shard in shards:
            found.setdefault(shard.url or shard.path.resolve(), shard)
    return list(found.values())


def refuse_remote_tar(url: str) -> None:
    """Let only URLs of folders pass: of them a manifest and an index tell what is there before a tar is fetched.

    Raises:
        UserError: it names a tar, or a command.
    """
    if not names_folder(url):
        raise UserError(
            f"{url}: of remote shards expected the URL of the folder that `hpe pack` wrote; only `hpe train` and "
            "`hpe evaluate` read remote tars one by one"
        )


def refuse_remote(named: str | Path, way_out: str) -> None:
    """For what reads local files only.

    Raises:
        UserError: a URL is named.
    """
    if is_remote(text := str(named)):
        raise UserError(f"{text}: is remote, and this reads local folders; {way_out}")


def names_folder(shards: str) -> bool:
    """True where shards are named by a folder or the URL of one, which has splits; false for tars and commands."""
    if is_remote(shards):
        return not shards.startswith("pipe:") and not _TAR.search(shards)
    return Path(shards).is_dir()


def matching(pattern: str) -> list[Path] | None:
    """What a glob matches, sorted; None where the text is no glob, or is the name of something that exists."""
    if not _GLOB_CHARACTERS & set(pattern) or Path(pattern).exists():
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
        if split == "val":  # not offered: to validate on the samples of the training would show nothing
            raise SplitError(f"{where}: there is no split 'val', only {known}; {_DRAWN.format(split)}")
        drawn = f"; {_DRAWN.format(split)}" * (split in SPLITS)
        raise SplitError(f"{where}: there is no split {split!r}; expected one of {known}, or {ALL_SPLITS}{drawn}")
    return [shard for shard in manifest.shards if shard.split == split]
