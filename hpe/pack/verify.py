"""``hpe verify``: do the shards match their manifest, and if not, which samples are damaged?"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hpe.core.console import count_of
from hpe.core.errors import UserError
from hpe.core.progress import progress
from hpe.data.crops import CropRule
from hpe.data.index import FOREIGN, IndexFile, equal_rows, index_open_shard, open_index
from hpe.data.shard_reader import OpenShard, open_tar, utf8
from hpe.data.shards import MANIFEST, Manifest, ShardInfo

_THREADS: Final = 4
"""Threads suffice: reading and hashing, most of the work, release Python's lock."""
_CHUNK_BYTES: Final = 1 << 22
_NAMED: Final = 10
_PICTURES_CHECKED: Final = 16
_LONGEST_REASON: Final = 120


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the shard, what is wrong, and (where known) the samples concerned."""

    shard: str
    what: str
    samples: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.samples[:_NAMED])
        more = f" and {len(self.samples) - _NAMED:,} more" if len(self.samples) > _NAMED else ""
        return utf8(f"{self.shard}: {self.what}" + (f": {named}{more}" if named else ""))


def verify(folder: Path) -> list[Fault]:
    """Everything in a folder of shards that differs from its manifest and its indexes; empty when all is well.

    Every tar is read once and compared with its sha256, its number of samples, and its rows in the index. Pictures are
    decoded only in a tar that differs, to name the damaged ones; in the others the size and format of a few pictures
    are compared with the manifest. Of tars without a manifest every picture is decoded.

    Raises:
        UserError: there is neither a manifest nor a tar, or the manifest is not one.
    """
    tars = sorted(folder.glob("*.tar"))
    if tars and not (folder / MANIFEST).is_file():
        return _verify_foreign(folder, tars)
    manifest = Manifest.load(folder)
    found, rows = _indexes(folder, {index.name: index.sha256 for index in manifest.indexes})
    unsound = {fault.shard for fault in found}
    keys: Counter[str] = Counter()

    def check(shard: ShardInfo) -> tuple[list[Fault], tuple[str, ...]]:
        return _check(folder, shard, manifest.image, rows.get(shard.name))

    with ThreadPoolExecutor(_THREADS) as threads, progress("verify", len(manifest.shards), unit="shards") as bar:
        for faults, its_keys in threads.map(check, manifest.shards):
            found += faults
            keys.update(its_keys)
            bar.advance()
    if twice := sorted(key for key, count in keys.items() if count > 1):
        found.append(Fault(MANIFEST, "keys that appear in more than one shard", tuple(twice)))
    listed = {shard.name for shard in manifest.shards}
    found += [
        Fault(path.name, "is not in manifest.json: remove it, or pack again into a new folder")
        for path in tars
        if path.name not in listed
    ]
    indexed = {index.split for index in manifest.indexes if index.name not in unsound}
    found += [
        Fault(shard.name, "is not in the index of its split: run `hpe index`")
        for shard in manifest.shards
        if shard.split in indexed and shard.name not in rows
    ]
    return found + [Fault(MANIFEST, what) for what in _contradictions(manifest)]


def _verify_foreign(folder: Path, tars: Sequence[Path]) -> list[Fault]:
    """What is wrong with tars that have no manifest, and with their index."""
    found, rows = _indexes(folder, {FOREIGN: None} if (folder / FOREIGN).is_file() else {})
    with progress("verify", len(tars), unit="shards") as bar:
        for tar in tars:
            try:
                found += _of_foreign(tar.name, open_tar(tar), rows.get(tar.name))
            except OSError as error:
                found.append(Fault(tar.name, f"cannot be read: {error.strerror or error}"))
            bar.advance()
    return found


def _of_foreign(name: str, opened: OpenShard, indexed: pa.RecordBatch | None) -> Iterator[Fault]:
    entry, batch = index_open_shard(name, opened)
    yield from (Fault(name, line.removeprefix(f"{utf8(name)}: ")) for line in entry.missing)
    if damaged := tuple(sorted(_damaged(opened))):
        yield Fault(name, f"{count_of(len(damaged), 'sample')} cannot be read", damaged)
    yield from _against_index(name, batch, indexed)


def _indexes(folder: Path, indexes: Mapping[str, str | None]) -> tuple[list[Fault], dict[str, pa.RecordBatch]]:
    """What is wrong with indexes, given with their sha256; and the rows of the sound ones by the name of the tar."""
    found: list[Fault] = []
    rows: dict[str, pa.RecordBatch] = {}
    for name, expected in indexes.items():
        file = IndexFile(str(folder / name), str(folder), expected)
        try:
            file.check(folder / name)
            index = open_index(folder / name)
        except ValueError as error:
            missing = not (folder / name).exists()
            found.append(Fault(name, f"{'is missing' if missing else error}; {file.way_out}"))
            continue
        rows |= {shard.name: batch for shard, batch in zip(index.shards, index.batches, strict=True)}
    return found, rows


def _against_index(name: str, own: pa.RecordBatch, indexed: pa.RecordBatch | None) -> Iterator[Fault]:
    """Where the rows of a tar are not those of its index."""
    if indexed is None or equal_rows(own, indexed):
        return
    pairs = zip(own.to_pylist(), indexed.to_pylist(), strict=False)
    other = tuple(here["key"] for here, there in pairs if here | {"shard": 0} != there | {"shard": 0})
    count = count_of(indexed.num_rows, "sample")
    what = f"its index has {count}" if own.num_rows != indexed.num_rows else "its index differs"
    yield Fault(name, f"{what}: run `hpe index`; samples that differ", other)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Where the manifest contradicts its own list of shards, or holds a crop rule that does not exist."""
    splits = Counter[str]()
    for shard in manifest.shards:
        splits[shard.split] += shard.samples
    samples = splits.total()
    if (stated := manifest.counts.get("samples", samples)) != samples:
        yield f"states {stated!r} samples; its shards have {samples:,}"
    stated = manifest.counts.get("splits", splits)
    # As counters, for which 0 is none: a split of which every picture was refused is stated, and has no shard.
    if not isinstance(stated, Mapping) or Counter(stated) != splits:
        yield f"states {stated!r} samples in its splits; its shards have {dict(splits)}"
    try:
        CropRule.parse(manifest.crop)
    except UserError as error:
        yield str(error)


def _check(
    folder: Path, shard: ShardInfo, image: Mapping[str, Any], indexed: pa.RecordBatch | None
) -> tuple[list[Fault], tuple[str, ...]]:
    """What is wrong with one shard, and its keys."""
    path = folder / shard.name
    try:
        opened = open_tar(path)
        if not len(opened.data):
            return [Fault(shard.name, f"is empty; expected {shard.bytes:,} bytes")], ()
        return _compare(opened, shard, image, indexed)
    except FileNotFoundError:
        return [Fault(shard.name, f"is missing, with its {count_of(shard.samples, 'sample')}")], ()
    except OSError as error:
        return [Fault(shard.name, f"cannot be read: {error.strerror or error}")], ()


def _compare(
    opened: OpenShard, shard: ShardInfo, image: Mapping[str, Any], indexed: pa.RecordBatch | None
) -> tuple[list[Fault], tuple[str, ...]]:
    found: list[Fault] = []
    entry, rows = index_open_shard(shard.name, opened)
    damaged: frozenset[str] = frozenset()
    if differs := _differs(opened.data, shard):
        found.append(Fault(shard.name, differs))
        if opened.damage:
            found.append(Fault(shard.name, f"{opened.damage}; {count_of(len(opened), 'sample')} before it can be read"))
        damaged = frozenset(_damaged(opened))
        if damaged:
            found.append(
                Fault(shard.name, f"{count_of(len(damaged), 'sample')} cannot be read", tuple(sorted(damaged)))
            )
    elif other := tuple(_otherwise(opened, image)):
        found.append(Fault(shard.name, f"pictures are not {_in_words(image)} as in the manifest", other))
    else:
        found += _against_index(shard.name, rows, indexed)
    if impossible := tuple(_impossible(rows, shard.split, damaged)):
        found.append(Fault(shard.name, f"impossible values in {count_of(len(impossible), 'record')}", impossible))
    if entry.unpaired:
        found.append(Fault(shard.name, entry.unpaired))
    if len(opened) != shard.samples:
        found.append(Fault(shard.name, f"holds {count_of(len(opened), 'sample')}; expected {shard.samples:,}"))
    if twice := tuple(key for key, count in Counter(opened.keys).items() if count > 1):
        found.append(Fault(shard.name, "keys that appear in it twice", twice))
    if differs and len(found) == 1:
        found.append(Fault(shard.name, "all its samples can be read, so it is unknown which of them changed"))
    return found, opened.keys


def _differs(data: memoryview, shard: ShardInfo) -> str | None:
    """How the bytes of a tar differ from the manifest; a wrong length is found without reading them."""
    if len(data) != shard.bytes:
        return f"is {len(data):,} bytes long; expected {shard.bytes:,}"
    digest = hashlib.sha256()
    for at in range(0, len(data), _CHUNK_BYTES):
        digest.update(data[at : at + _CHUNK_BYTES])
    return None if digest.hexdigest() == shard.sha256 else "sha256 differs from the manifest's"


def _otherwise(opened: OpenShard, image: Mapping[str, Any]) -> Iterator[str]:
    """Keys of pictures with another size or format; only the headers of a few pictures are read."""
    from hpe.data.images import DecodeError, image_size

    size, encoding = image.get("size", "original"), image.get("encoding")
    for row in range(0, len(opened), max(1, len(opened) // _PICTURES_CHECKED)):
        try:
            width, height = image_size(bytes(opened.image(row)))
        except DecodeError:
            yield opened.keys[row]
            continue
        if (size != "original" and (width, height) != (size, size)) or (
            encoding == "jpeg" and opened.index.extensions[row] != "jpg"
        ):
            yield opened.keys[row]


def _in_words(image: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in image.items())


def _impossible(rows: pa.RecordBatch, split: str, named: Collection[str]) -> Iterator[str]:
    """Keys of records that cannot be read, hold an impossible label, or belong to another split than their shard;
    those in ``named`` are left out."""
    columns = (rows.column(name).to_pylist() for name in ("key", "problem", "split"))
    for key, problem, own in zip(*columns, strict=True):
        if problem is None and own not in (None, split):
            problem = f"split {own!r} in a shard of {split!r}"
        if problem is not None and key not in named:
            yield f"{key} ({problem.removeprefix('damaged record: ')[:_LONGEST_REASON]})"


def _damaged(opened: OpenShard) -> Iterator[str]:
    """Keys of samples whose record or picture cannot be read."""
    from hpe.data.images import DecodeError, decode_rgb

    for row, key in enumerate(opened.keys):
        try:
            opened.record(row)
            decode_rgb(bytes(opened.image(row)))
        except (DecodeError, ValueError):
            yield key
