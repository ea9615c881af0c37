"""``hpe verify``: are these shards what their manifest says, and if not, which samples are damaged."""

import hashlib
import mmap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpe.files import open_regular
from hpe.progress import progress
from hpe.records import Record
from hpe.shards import Manifest, ShardIndex, ShardInfo, index_tar

_THREADS: Final = 4
_CHUNK_BYTES: Final = 1 << 22
_NAMED: Final = 10
_LOOKED_AT: Final = 16
_LONGEST_TOLD: Final = 120


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: the shard, what it is, and (where known) the samples that suffer."""

    shard: str
    what: str
    samples: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.samples[:_NAMED])
        more = f" and {len(self.samples) - _NAMED:,} more" if len(self.samples) > _NAMED else ""
        return f"{self.shard}: {self.what}" + (f": {named}{more}" if named else "")


def verify(folder: Path) -> list[Damage]:
    """Everything in a folder of shards that differs from its manifest; empty when all is well.

    Every tar is read once against its sha256 and its count of samples. Only in a tar that differs are the
    pictures decoded, to name those that are damaged; in the others a few are looked at, whether they
    have the size and the format that the manifest says.

    Raises:
        UserError: there is no manifest, or it is none.
    """
    manifest = Manifest.load(folder)
    found: list[Damage] = []
    keys: Counter[str] = Counter()
    with ThreadPoolExecutor(_THREADS) as threads, progress("verify", len(manifest.shards), unit="shards") as bar:
        for damages, its_keys in threads.map(lambda shard: _check(folder, shard, manifest.image), manifest.shards):
            found += damages
            keys.update(its_keys)
            bar.advance()
    if twice := sorted(key for key, count in keys.items() if count > 1):
        found.append(Damage("manifest.json", "keys that stand in more than one shard", tuple(twice)))
    listed = {shard.name for shard in manifest.shards}
    found += [
        Damage(path.name, "is not in manifest.json: remove it, or pack again into a new folder")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    samples = sum(shard.samples for shard in manifest.shards)
    if (said := manifest.counts.get("samples", samples)) != samples:
        found.append(Damage("manifest.json", f"says {said!r} samples, its shards {samples:,}"))
    return found


def _check(folder: Path, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Damage], tuple[str, ...]]:
    """What is wrong with one shard, and its keys."""
    path = folder / shard.name
    try:
        with open_regular(path) as stream:
            size = path.stat().st_size
            if not size:
                return [Damage(shard.name, f"is empty; expected {shard.bytes:,} bytes")], ()
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                return _compare(data, shard, image)
    except FileNotFoundError:
        return [Damage(shard.name, f"is missing, with its {shard.samples:,} samples")], ()
    except OSError as error:
        return [Damage(shard.name, f"cannot be read: {error.strerror or error}")], ()


def _compare(data: memoryview, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Damage], tuple[str, ...]]:
    digest = hashlib.sha256()
    for at in range(0, len(data), _CHUNK_BYTES):
        digest.update(data[at : at + _CHUNK_BYTES])
    index = index_tar(data)
    found: list[Damage] = []
    damaged: frozenset[str] = frozenset()
    if digest.hexdigest() != shard.sha256:
        size = "" if len(data) == shard.bytes else f" ({len(data):,} bytes, expected {shard.bytes:,})"
        found.append(Damage(shard.name, f"sha256 differs from the manifest's{size}"))
        if index.damage:
            found.append(Damage(shard.name, f"{index.damage}; {len(index):,} samples before it can be read"))
        damaged = frozenset(_damaged(data, index))
        if damaged:
            found.append(Damage(shard.name, f"{len(damaged):,} samples cannot be read", tuple(sorted(damaged))))
    elif other := tuple(_otherwise(data, index, image)):
        found.append(Damage(shard.name, f"pictures are not {_told(image)}, as the manifest says", other))
    if impossible := tuple(_impossible(data, index, damaged)):
        found.append(Damage(shard.name, f"{len(impossible):,} records say what cannot be", impossible))
    if len(index) != shard.samples:
        found.append(Damage(shard.name, f"holds {len(index):,} samples; expected {shard.samples:,}"))
    if twice := tuple(key for key, count in Counter(index.keys).items() if count > 1):
        found.append(Damage(shard.name, "keys that stand in it twice", twice))
    return found, index.keys


def _otherwise(data: memoryview, index: ShardIndex, image: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the pictures (looked at are a few of the shard, by their headers) of another size or format."""
    from hpe.images import DecodeError, picture_size

    size, encoding = image.get("size", "original"), image.get("encoding")
    for row in range(0, len(index), max(1, len(index) // _LOOKED_AT)):
        start, length = index.images[row].tolist()
        try:
            width, height = picture_size(bytes(data[start : start + length]))
        except DecodeError:
            yield index.keys[row]
            continue
        if (size != "original" and (width, height) != (size, size)) or (
            encoding == "jpeg" and index.extensions[row] != "jpg"
        ):
            yield index.keys[row]


def _told(image: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in image.items())


def _impossible(data: memoryview, index: ShardIndex, named: Collection[str]) -> Iterator[str]:
    """Keys of the records (but those that are ``named`` already) that are none, or hold what no label can be."""
    for key, (at, length) in zip(index.keys, index.records.tolist(), strict=True):
        try:
            problems = Record.from_json(bytes(data[at : at + length])).problems()
        except ValueError as error:
            problems = [str(error)]
        if problems and key not in named:
            yield f"{key} ({'; '.join(problems)[:_LONGEST_TOLD]})"


def _damaged(data: memoryview, index: ShardIndex) -> Iterator[str]:
    """Keys of samples whose record or picture cannot be read."""
    from hpe.images import DecodeError, decode_rgb

    for key, (start, size), (at, length) in zip(index.keys, index.images.tolist(), index.records.tolist(), strict=True):
        try:
            Record.from_json(bytes(data[at : at + length]))
            decode_rgb(bytes(data[start : start + size]))
        except (DecodeError, ValueError):
            yield key
