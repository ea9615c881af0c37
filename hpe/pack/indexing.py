"""``hpe index``, and the indexes that ``hpe pack`` and ``hpe balance`` write beside their shards.

The index of each tar is made from the tar (:mod:`hpe.data.index`) by one process and kept as a file of its own until
those of a split are joined, so that a killed job goes on where it was.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from hpe.core.console import count_of
from hpe.core.errors import UserError, way_out
from hpe.core.files import Place, aside, locked
from hpe.core.process_pool import Workers
from hpe.core.progress import progress
from hpe.core.signals import signals
from hpe.data.index import FOREIGN, Index, IndexedShard, index_shard, open_index, write_index
from hpe.data.shard_files import matching
from hpe.data.shards import MANIFEST, IndexInfo, Manifest, ShardInfo

_WORK: Final = ".index"
"""Folder of an unfinished job of ``hpe index``."""
_PER_WORKER: Final = 16
"""Shards; for fewer a process is not worth its start."""


def save_part(folder: Path, tar: Path, place: Place = aside) -> None:
    """Write the index of one tar into a folder.

    Args:
        folder: of the parts.
        tar: to index.
        place: how the file comes to its name.

    Raises:
        OSError: the tar cannot be read, or the folder cannot be written to.
    """
    entry, batch = index_shard(tar)
    write_index(_part(folder, tar), [entry], [batch], place=place)


def _part(folder: Path, tar: Path) -> Path:
    return folder / f"{tar.name}.arrow"


def _saved(tar: Path, folder: Path) -> Index | None:
    """A tar's part; None where there is none, or the tar is younger."""
    try:
        state, part = tar.stat(), _part(folder, tar)
        index = open_index(part)
        fits = index.shards[0].bytes == state.st_size and part.stat().st_mtime_ns >= state.st_mtime_ns
        return index if fits else None
    except (OSError, ValueError):
        return None


def join_parts(index: Path, tars: Sequence[Path], folder: Path) -> tuple[tuple[IndexedShard, ...], int, str]:
    """Write one index of tars from their parts, making those that are missing; its entries, size and sha256.

    Raises:
        OSError: a tar cannot be read, or the index cannot be written.
    """

    def part(tar: Path) -> Index:
        if (found := _saved(tar, folder)) is None:
            save_part(folder, tar)
            found = open_index(_part(folder, tar))
        return found

    # Opened twice, not held: a system has a limit of some 65,000 mapped files.
    entries = tuple(part(tar).shards[0] for tar in tars)
    return entries, *write_index(index, entries, (part(tar).batches[0] for tar in tars))


def write_indexes(out: Path, shards: Sequence[ShardInfo], folder: Path) -> tuple[IndexInfo, ...]:
    """Write the index of each split, for the manifest.

    Args:
        out: the folder of the shards.
        shards: as the manifest lists them.
        folder: of the tars' parts; those that are not there are made.

    Raises:
        UserError: a tar is not the one of the manifest.
        OSError: a tar cannot be read, or an index cannot be written.
    """
    found = []
    for split in dict.fromkeys(shard.split for shard in shards):
        of_split = [shard for shard in shards if shard.split == split]
        path = out / f"{split}.arrow"
        entries, size, sha256 = join_parts(path, [out / shard.name for shard in of_split], folder)
        for entry, shard in zip(entries, of_split, strict=True):
            if (entry.bytes, entry.samples) != (shard.bytes, shard.samples):
                path.unlink()
                raise UserError(
                    f"{out / shard.name}: {entry.samples:,} samples in {entry.bytes:,} bytes, its manifest lists "
                    f"{shard.samples:,} in {shard.bytes:,}; see `hpe verify {out}`, and restore it or pack again"
                )
        found.append(IndexInfo(path.name, split, size, sha256))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Indexed:
    """An index that was written."""

    path: Path
    shards: tuple[IndexedShard, ...]

    def __str__(self) -> str:
        samples = sum(shard.samples for shard in self.shards)
        counts = f"{count_of(samples, 'sample')} in {count_of(len(self.shards), 'shard')}"
        lines = [f"{self.path}: {counts}, {self.path.stat().st_size:,} bytes"]
        for shard in self.shards:
            lines += shard.missing
        return "\n".join(lines)


def index(shards: str, workers: int | None = None) -> Iterator[Indexed]:
    """Write the indexes of shards that have none, or not the right one.

    Args:
        shards: a folder that ``hpe pack`` wrote: its manifest then names the indexes; or a folder of other tars, a
            tar, or a glob: ``index.arrow`` is written beside the tars.
        workers: processes; one per core when None.

    Raises:
        UserError: there are no such shards, one cannot be read or is not that of the manifest, the folder cannot be
            written to, or another process writes there.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")
    for folder, tars in _named(shards).items():
        work = folder / _WORK
        try:
            work.mkdir(exist_ok=True)
            with locked(work / "lock", f"{folder}: another `hpe index` is writing here; wait for it, or stop it"):
                _make_parts(tars, work, workers or os.cpu_count() or 1)
                if (folder / MANIFEST).is_file():
                    manifest = Manifest.load(folder)
                    indexes = write_indexes(folder, manifest.shards, work)
                    replace(manifest, indexes=indexes).save(folder)
                    written = [(folder / one.name, open_index(folder / one.name).shards) for one in indexes]
                else:
                    written = [(folder / FOREIGN, join_parts(folder / FOREIGN, tars, work)[0])]
            shutil.rmtree(work)
        except OSError as error:
            raise UserError(
                f"{error.filename or folder}: cannot be read or written: "
                f"{os.strerror(error.errno) if error.errno else error}; "
                f"{way_out(error) or 'restore the tar, or make its folder writable'} "
                "(training works without an index, too)"
            ) from error
        yield from (Indexed(path, entries) for path, entries in written)


def _make_parts(tars: Sequence[Path], work: Path, workers: int) -> None:
    missing = [tar for tar in tars if _saved(tar, work) is None]
    with (
        signals() as stop,
        progress("index", len(missing), unit="shards") as bar,
        Workers(min(workers, max(1, len(missing) // _PER_WORKER)), stop, preload="hpe.data.index") as pool,
    ):
        for _ in pool.run(partial(save_part, work), missing):
            bar.advance()


def _named(shards: str) -> Mapping[Path, list[Path]]:
    """The tars to index, by their folder; of a folder with a manifest, all that it lists."""
    path = Path(shards)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        compressed = sorted(path.glob("*.tar.*")) + sorted(path.glob("*.tgz"))
    else:
        tars = [path] if path.is_file() else matching(shards) or []
        compressed = []
    if not tars:
        if not path.exists() and matching(shards) is None:
            raise UserError(
                f"{shards}: there is no such file or folder; expected a folder of shards, a tar or a glob (paths are "
                "relative to the current folder)"
            )
        found = f"; {compressed[0].name} is compressed: decompress it first" if compressed else ""
        raise UserError(f"{shards}: names no tars; expected a folder of shards, a tar or a glob{found}")
    folders: dict[Path, list[Path]] = {}
    for tar in tars:
        folders.setdefault(tar.parent, []).append(tar)
    for folder in folders:
        if (folder / MANIFEST).is_file():
            manifest = Manifest.load(folder)
            folders[folder] = [folder / shard.name for shard in manifest.shards]
        else:
            # All tars of the folder, as its index is one file.
            folders[folder] = sorted(folder.glob("*.tar"))
    return folders
