"""``hpe verify``: do the shards match their manifest, and if not, which samples are damaged?"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpe.core.errors import UserError
from hpe.core.progress import progress
from hpe.data.crops import CropRule
from hpe.data.shard_reader import OpenShard, open_tar
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
        return f"{self.shard}: {self.what}" + (f": {named}{more}" if named else "")


def verify(folder: Path) -> list[Fault]:
    """Everything in a folder of shards that differs from its manifest; empty when all is well.

    Every tar is read once and compared with its sha256 and its number of samples. Pictures are decoded only in a
    tar that differs, to name the damaged ones; in the others the size and format of a few pictures are compared
    with the manifest.

    Raises:
        UserError: there is no manifest, or the file is not one.
    """
    manifest = Manifest.load(folder)
    found: list[Fault] = []
    keys: Counter[str] = Counter()
    with ThreadPoolExecutor(_THREADS) as threads, progress("verify", len(manifest.shards), unit="shards") as bar:
        for faults, its_keys in threads.map(lambda shard: _check(folder, shard, manifest.image), manifest.shards):
            found += faults
            keys.update(its_keys)
            bar.advance()
    if twice := sorted(key for key, count in keys.items() if count > 1):
        found.append(Fault(MANIFEST, "keys that appear in more than one shard", tuple(twice)))
    listed = {shard.name for shard in manifest.shards}
    found += [
        Fault(path.name, "is not in manifest.json: remove it, or pack again into a new folder")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    return found + [Fault(MANIFEST, what) for what in _contradictions(manifest)]


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Where the manifest contradicts its own list of shards, or holds a crop rule that does not exist."""
    splits = Counter[str]()
    for shard in manifest.shards:
        splits[shard.split] += shard.samples
    samples = splits.total()
    if (stated := manifest.counts.get("samples", samples)) != samples:
        yield f"states {stated!r} samples; its shards have {samples:,}"
    if (stated := manifest.counts.get("splits", splits)) != splits:
        yield f"states {stated!r} samples in its splits; its shards have {dict(splits)}"
    try:
        CropRule.parse(manifest.crop)
    except UserError as error:
        yield str(error)


def _check(folder: Path, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Fault], tuple[str, ...]]:
    """What is wrong with one shard, and its keys."""
    path = folder / shard.name
    try:
        opened = open_tar(path)
        if not len(opened.data):
            return [Fault(shard.name, f"is empty; expected {shard.bytes:,} bytes")], ()
        return _compare(opened, shard, image)
    except FileNotFoundError:
        return [Fault(shard.name, f"is missing, with its {shard.samples:,} samples")], ()
    except OSError as error:
        return [Fault(shard.name, f"cannot be read: {error.strerror or error}")], ()


def _compare(opened: OpenShard, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Fault], tuple[str, ...]]:
    found: list[Fault] = []
    damaged: frozenset[str] = frozenset()
    if differs := _differs(opened.data, shard):
        found.append(Fault(shard.name, differs))
        if opened.damage:
            found.append(Fault(shard.name, f"{opened.damage}; {len(opened):,} samples before it can be read"))
        damaged = frozenset(_damaged(opened))
        if damaged:
            found.append(Fault(shard.name, f"{len(damaged):,} samples cannot be read", tuple(sorted(damaged))))
    elif other := tuple(_otherwise(opened, image)):
        found.append(Fault(shard.name, f"pictures are not {_in_words(image)} as in the manifest", other))
    if impossible := tuple(_impossible(opened, shard.split, damaged)):
        found.append(Fault(shard.name, f"{len(impossible):,} records hold impossible values", impossible))
    if len(opened) != shard.samples:
        found.append(Fault(shard.name, f"holds {len(opened):,} samples; expected {shard.samples:,}"))
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
    from hpe.data.images import DecodeError, picture_size

    size, encoding = image.get("size", "original"), image.get("encoding")
    for row in range(0, len(opened), max(1, len(opened) // _PICTURES_CHECKED)):
        try:
            width, height = picture_size(bytes(opened.image(row)))
        except DecodeError:
            yield opened.keys[row]
            continue
        if (size != "original" and (width, height) != (size, size)) or (
            encoding == "jpeg" and opened.index.extensions[row] != "jpg"
        ):
            yield opened.keys[row]


def _in_words(image: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in image.items())


def _impossible(opened: OpenShard, split: str, named: Collection[str]) -> Iterator[str]:
    """Keys of records that cannot be read, hold an impossible label, or belong to another split than their shard;
    those in ``named`` are left out."""
    for row, key in enumerate(opened.keys):
        try:
            record = opened.record(row)
            problems = record.problems()
            if record.split not in (None, split):
                problems.append(f"split {record.split!r} in a shard of {split!r}")
        except ValueError as error:
            problems = [str(error)]
        if problems and key not in named:
            yield f"{key} ({'; '.join(problems)[:_LONGEST_REASON]})"


def _damaged(opened: OpenShard) -> Iterator[str]:
    """Keys of samples whose record or picture cannot be read."""
    from hpe.data.images import DecodeError, decode_rgb

    for row, key in enumerate(opened.keys):
        try:
            opened.record(row)
            decode_rgb(bytes(opened.image(row)))
        except (DecodeError, ValueError):
            yield key
