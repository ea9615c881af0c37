"""What a user names as shards, resolved into files and URLs with their sample counts."""

import glob
import re
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.data.index import IndexFile
from hpe.data.shard_files import indexes_of, matching, of_split, with_manifests
from hpe.data.shards import MANIFEST, Manifest, ShardInfo
from hpe.stream.remote_cache import fetch_parsed

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShardSet:
    """One dataset of shards, as a user names it.

    Attributes:
        shards: a folder that ``hpe pack`` wrote (with ``split``), a tar, a glob, a brace pattern such as
            ``train-{000000..000099}.tar``, an http(s) folder with a ``manifest.json`` or http(s) tars, a
            ``pipe:`` command or anything else that WebDataset opens; or a list of these.
        split: the split, where ``shards`` is a folder.
        pose: folder of the pose tables, one Parquet file per shard.
        weight: how often the dataset is drawn, relative to the other datasets and whatever their sizes; all of several
            datasets have one, or none has: then each sample of all of them comes equally often.
    """

    shards: str | Sequence[str]
    split: str | None = None
    pose: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: a local path or a URL, and what the manifest contains about it (None: there is none)."""

    url: str
    name: str
    samples: int | None = None
    sha256: str | None = None
    pose: Path | None = None
    bytes: int | None = None
    index: IndexFile | None = None

    @property
    def remote(self) -> bool:
        """True for what has to be fetched before it can be read at random."""
        return is_remote(self.url)


def is_remote(url: str) -> bool:
    """True for a URL or ``pipe:``, False for a path."""
    return bool(_SCHEME.match(url)) and not Path(url).exists()


def resolve(sets: Sequence[ShardSet]) -> tuple[tuple[Shard, ...], ...]:
    """The shards of each set, in order.

    Raises:
        UserError: every set that names nothing, or a split that is not there.
    """
    found, problems = [], []
    for number, one in enumerate(sets):
        try:
            found.append(_resolve(one))
        except UserError as error:
            problems.append(f"dataset {number}: {error}" if len(sets) > 1 else str(error))
    if not sets:
        problems.append("no shards are named")
    if problems:
        raise UserError("\n".join(problems))
    return tuple(found)


def _resolve(one: ShardSet) -> tuple[Shard, ...]:
    named = [one.shards] if isinstance(one.shards, str) else list(one.shards)
    shards = [shard for text in named for shard in _of(text, one.split)]
    if not shards:
        raise UserError(f"{', '.join(named) or 'an empty list'}: names no shards; expected at least one tar")
    if one.weight is not None and not one.weight > 0:
        raise UserError(f"{named[0]}: weight {one.weight}; expected more than 0")
    return tuple(shards if one.pose is None else _with_pose_tables(shards, Path(one.pose)))


def _with_pose_tables(shards: Sequence[Shard], folder: Path) -> list[Shard]:
    """The shards, each with the path of its pose table."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of pose tables; run `hpe pose` on these shards first")
    names = [shard.name for shard in shards]
    if double := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{double}: two shards of this name cannot share the pose tables of {folder}")
    tables = [folder / f"{name.removesuffix('.tar')}.parquet" for name in names]
    # Also where no label is read from them: who names a folder means its tables.
    if not any(table.is_file() for table in tables):
        raise UserError(
            f"{folder}: holds no pose table of these shards, expected {tables[0].name}; run `hpe pose` on them first"
        )
    return [replace(shard, pose=table) for shard, table in zip(shards, tables, strict=True)]


def _of(text: str, split: str | None) -> list[Shard]:
    if text.startswith("pipe:"):
        return [Shard(url, _name(url)) for url in _braces(text)]
    if is_remote(text):
        if text.startswith(("http://", "https://")) and not text.split("?")[0].endswith(".tar"):
            return _web_folder(text.rstrip("/"), split)
        return [Shard(url, _name(url)) for url in _braces(text)]
    if Path(text).is_dir():
        return _folder(Path(text), split)
    if Path(text).is_file():
        return _tars([Path(text)])
    if "{" in text:
        return [shard for path in _braces(text) for shard in _of(path, None)]
    if (tars := matching(text)) is not None:
        return _tars(tars)
    raise UserError(
        f"{text}: there is no such file or folder; expected shards that `hpe pack` wrote "
        "(paths are relative to the current folder)"
    )


def _folder(folder: Path, split: str | None) -> list[Shard]:
    if (folder / MANIFEST).is_file():
        shards = _of_one_split(manifest := Manifest.load(folder), split, str(folder))
        indexes = indexes_of(manifest, folder)
        return [
            Shard(str(folder / s.name), s.name, s.samples, s.sha256, bytes=s.bytes, index=indexes.get(s.split))
            for s in shards
        ]
    pattern = "*.tar" if split is None else f"{glob.escape(split)}-*.tar"
    return _tars(sorted(folder.glob(pattern)))


def _tars(paths: Sequence[Path]) -> list[Shard]:
    """Local tars, with what a manifest or an index beside them contains."""
    return [
        Shard(str(file.path), file.path.name, file.samples, file.sha256, bytes=file.bytes, index=file.index)
        for file in with_manifests(paths)
    ]


def _web_folder(url: str, split: str | None) -> list[Shard]:
    manifest = fetch_parsed(f"{url}/{MANIFEST}", Manifest.parse)
    indexes = {
        index.split: IndexFile(f"{url}/{urllib.parse.quote(index.name)}", url, index.sha256, remote=True)
        for index in manifest.indexes
    }
    return [
        Shard(f"{url}/{urllib.parse.quote(s.name)}", s.name, s.samples, s.sha256, None, s.bytes, indexes.get(s.split))
        for s in _of_one_split(manifest, split, url)
    ]


def _of_one_split(manifest: Manifest, split: str | None, where: str) -> list[ShardInfo]:
    """The shards of a split, which must be named where there are several: a mix of them would leak."""
    if split is None and len(manifest.splits) == 1:
        split = manifest.splits[0]
    if not split:
        raise UserError(f"{where}: a split is needed; expected one of {', '.join(manifest.splits)}")
    return of_split(manifest, split, where)


def _braces(text: str) -> list[str]:
    import braceexpand

    try:
        return list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise UserError(f"{text}: {error}; expected a pattern such as train-{{000000..000099}}.tar") from error


def _name(url: str) -> str:
    """The last part of a URL or command that looks like a tar's name."""
    names = re.findall(r"[^\s/'\"?&=]+\.tar", url)
    return names[-1] if names else url[-80:]
