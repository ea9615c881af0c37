"""What a user names as shards, resolved into files and URLs with their sample counts."""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hpe.core.errors import UserError
from hpe.data import store
from hpe.data.index import IndexFile
from hpe.data.pose_tables import no_folder, table_of_shard, tables_meant
from hpe.data.remote_cache import RemoteCache
from hpe.data.shard_files import (
    ALL_SPLITS,
    ShardFile,
    SplitError,
    manifest_at,
    matching,
    names_folder,
    of_manifest,
    with_manifests,
)
from hpe.data.shards import MANIFEST, refuse_unfinished
from hpe.data.store import is_remote


@dataclass(frozen=True, slots=True)
class ShardSet:
    """One dataset of shards, as a user names it.

    Attributes:
        shards: a folder that ``hpe pack`` wrote (with ``split``), a tar, a glob, a brace pattern such as
            ``train-{000000..000099}.tar``, the URL of such a folder, of tars, a pattern or a glob (http has no
            globs) in any store that fsspec reads (``s3://``, ``gs://``, ``hf://`` …), or a ``pipe:`` command; or a
            list of these.
        split: the split, or ``all``, where ``shards`` is a folder.
        pose: folder or URL of the pose tables, one Parquet file per shard.
        weight: how often the dataset is drawn, relative to the other datasets and whatever their sizes; all of several
            datasets have one, or none has: then each sample of all of them comes equally often.
        key: of a config that names this dataset, such as ``data.train.0``; messages name the setting to mend.
    """

    shards: str | Sequence[str]
    split: str | None = None
    pose: str | None = None
    weight: float | None = None
    key: str | None = None


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
    staged: bool = False

    @property
    def remote(self) -> bool:
        """True for a URL or a command."""
        return is_remote(self.url)

    @property
    def copied(self) -> bool:
        """True for what is read from a copy on this node: fetched, or ``staged`` from a network file system."""
        return self.staged or self.remote


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
            problems.append(f"dataset {number}: {error}" if len(sets) > 1 and one.key is None else str(error))
    if not sets:
        problems.append("no shards are named")
    if problems:
        raise UserError("\n".join(problems))
    return tuple(found)


def _resolve(one: ShardSet) -> tuple[Shard, ...]:
    named = [one.shards] if isinstance(one.shards, str) else list(one.shards)
    with _setting(one.key, "shards"):
        shards = [shard for text in named for shard in _of(text, one.split)]
        if not shards:
            raise UserError(
                f"{', '.join(named) or 'an empty list'}: names no shards; expected at least one tar, or a folder of "
                "them, which `hpe pack auto RAW OUT` makes from a raw dataset"
            )
    if one.weight is not None and not one.weight > 0:
        raise UserError(f"{named[0]}: weight {one.weight}; expected more than 0")
    if one.pose is None:
        return tuple(shards)
    with _setting(one.key, "pose"):
        return tuple(_with_pose_tables(shards, one.pose))


@contextmanager
def _setting(key: str | None, name: str) -> Iterator[None]:
    """Mistakes in the block name the setting of the config: its ``split`` where that is wrong, else ``name``."""
    try:
        yield
    except UserError as error:
        if key is None:
            raise
        raise UserError(f"{key}.{'split' if isinstance(error, SplitError) else name}: {error}") from error


def _with_pose_tables(shards: Sequence[Shard], folder: str) -> list[Shard]:
    """The shards, each with the path of its pose table."""
    if not is_remote(folder) and not Path(folder).is_dir():
        raise no_folder(Path(folder))
    names = [shard.name for shard in shards]
    if double := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{double}: two shards of this name cannot share the pose tables of {folder}")
    if is_remote(folder):
        tables = RemoteCache.of_node().small_files(folder, [table_of_shard(Path(), name).name for name in names])
    else:
        tables = [table_of_shard(Path(folder), name) for name in names]
    # Also where no label is read from them: who names a folder means its tables.
    if absent := [table.name for table in tables if not table.is_file()]:
        near = tables_meant(Path(folder)) if len(absent) == len(tables) and not is_remote(folder) else None
        raise UserError(
            f"{folder}: no pose table of {len(absent):,} of {len(tables):,} shards, such as {absent[0]}; "
            f"{near or 'run `hpe pose` on these shards again'}"
        )
    return [replace(shard, pose=table) for shard, table in zip(shards, tables, strict=True)]


def _of(text: str, split: str | None) -> list[Shard]:
    if is_remote(text):
        store.require_driver(text)
        if text.startswith("pipe:"):
            return [Shard(url, _name(url)) for url in braces(text)]
        if names_folder(text):
            return _packed(text, split)
        tell = RemoteCache.of_node().tell
        urls = [url for part in braces(text) for url in ([part] if "*" not in part else store.matching(part, tell))]
        return [Shard(url, _name(url)) for url in urls]
    if Path(text).is_dir():
        return _folder(Path(text), split)
    if Path(text).is_file():
        return _tars([Path(text)])
    if "{" in text:
        paths = braces(text)
        if all(Path(path).is_file() for path in paths):
            return _tars([Path(path) for path in paths])  # at once: each call reads the manifest beside them
        return [shard for path in paths for shard in _of(path, None)]
    if (tars := matching(text)) is not None:
        return _tars(tars)
    raise UserError(
        f"{text}: there is no such file or folder; expected shards that `hpe pack` wrote "
        "(paths are relative to the current folder)"
    )


def _folder(folder: Path, split: str | None) -> list[Shard]:
    if (folder / MANIFEST).is_file():
        return _packed(folder, split)
    refuse_unfinished(folder)
    pattern = "*.tar" if split in (None, ALL_SPLITS) else f"{glob.escape(split)}-*.tar"
    return _tars(sorted(folder.glob(pattern)))


def _packed(folder: str | Path, split: str | None) -> list[Shard]:
    """The shards of a split of a folder with a manifest; it must be named where there are several, which would leak."""
    manifest = manifest_at(folder)
    if split is None and len(manifest.splits) == 1:
        split = manifest.splits[0]
    if not split:
        known = ", ".join(manifest.splits)
        raise SplitError(f"{folder}: a split is needed; expected one of {known}, or {ALL_SPLITS}")
    return [_shard(file) for file in of_manifest(manifest, folder, split)]


def _tars(paths: Sequence[Path]) -> list[Shard]:
    """Local tars, with what a manifest or an index beside them contains."""
    return [_shard(file) for file in with_manifests(paths)]


def _shard(file: ShardFile) -> Shard:
    return Shard(str(file), file.path.name, file.samples, file.sha256, bytes=file.bytes, index=file.index)


def braces(text: str) -> list[str]:
    """The names that a pattern with braces stands for.

    Raises:
        UserError: not such a pattern.
    """
    import braceexpand

    try:
        return list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise UserError(f"{text}: {error}; expected a pattern such as train-{{000000..000099}}.tar") from error


def _name(url: str) -> str:
    """The last part of a URL or command that looks like a tar's name."""
    names = re.findall(r"[^\s/'\"?&=]+\.tar", url)
    return names[-1] if names else url[-80:]
