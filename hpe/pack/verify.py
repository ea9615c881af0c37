"""``hpe verify``: are these shards what their manifest says, and if not, which samples are damaged."""

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
        found.append(Damage(MANIFEST, "keys that stand in more than one shard", tuple(twice)))
    listed = {shard.name for shard in manifest.shards}
    found += [
        Damage(path.name, "is not in manifest.json: remove it, or pack again into a new folder")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    return found + [Damage(MANIFEST, what) for what in _contradictions(manifest)]


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What the manifest says that its own list of shards denies, or that no program understands."""
    splits = Counter[str]()
    for shard in manifest.shards:
        splits[shard.split] += shard.samples
    samples = splits.total()
    if (said := manifest.counts.get("samples", samples)) != samples:
        yield f"says {said!r} samples, its shards {samples:,}"
    if (said := manifest.counts.get("splits", splits)) != splits:
        yield f"says {said!r} samples in its splits, its shards {dict(splits)}"
    try:
        CropRule.parse(manifest.crop)
    except UserError as error:
        yield str(error)


def _check(folder: Path, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Damage], tuple[str, ...]]:
    """What is wrong with one shard, and its keys."""
    path = folder / shard.name
    try:
        opened = open_tar(path)
        if not len(opened.data):
            return [Damage(shard.name, f"is empty; expected {shard.bytes:,} bytes")], ()
        return _compare(opened, shard, image)
    except FileNotFoundError:
        return [Damage(shard.name, f"is missing, with its {shard.samples:,} samples")], ()
    except OSError as error:
        return [Damage(shard.name, f"cannot be read: {error.strerror or error}")], ()


def _compare(opened: OpenShard, shard: ShardInfo, image: Mapping[str, Any]) -> tuple[list[Damage], tuple[str, ...]]:
    found: list[Damage] = []
    damaged: frozenset[str] = frozenset()
    if differs := _differs(opened.data, shard):
        found.append(Damage(shard.name, differs))
        if opened.damage:
            found.append(Damage(shard.name, f"{opened.damage}; {len(opened):,} samples before it can be read"))
        damaged = frozenset(_damaged(opened))
        if damaged:
            found.append(Damage(shard.name, f"{len(damaged):,} samples cannot be read", tuple(sorted(damaged))))
    elif other := tuple(_otherwise(opened, image)):
        found.append(Damage(shard.name, f"pictures are not {_told(image)}, as the manifest says", other))
    if impossible := tuple(_impossible(opened, shard.split, damaged)):
        found.append(Damage(shard.name, f"{len(impossible):,} records say what cannot be", impossible))
    if len(opened) != shard.samples:
        found.append(Damage(shard.name, f"holds {len(opened):,} samples; expected {shard.samples:,}"))
    if twice := tuple(key for key, count in Counter(opened.keys).items() if count > 1):
        found.append(Damage(shard.name, "keys that stand in it twice", twice))
    if differs and len(found) == 1:
        found.append(Damage(shard.name, "all its samples can be read, so that nobody can say which of them changed"))
    return found, opened.keys


def _differs(data: memoryview, shard: ShardInfo) -> str | None:
    """How the bytes of a tar are not those of the manifest; a wrong length is told without reading them all."""
    if len(data) != shard.bytes:
        return f"is {len(data):,} bytes long; expected {shard.bytes:,}"
    digest = hashlib.sha256()
    for at in range(0, len(data), _CHUNK_BYTES):
        digest.update(data[at : at + _CHUNK_BYTES])
    return None if digest.hexdigest() == shard.sha256 else "sha256 differs from the manifest's"


def _otherwise(opened: OpenShard, image: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the pictures (looked at are a few of the shard, by their headers) of another size or format."""
    from hpe.data.images import DecodeError, picture_size

    size, encoding = image.get("size", "original"), image.get("encoding")
    for row in range(0, len(opened), max(1, len(opened) // _LOOKED_AT)):
        try:
            width, height = picture_size(bytes(opened.image(row)))
        except DecodeError:
            yield opened.keys[row]
            continue
        if (size != "original" and (width, height) != (size, size)) or (
            encoding == "jpeg" and opened.index.extensions[row] != "jpg"
        ):
            yield opened.keys[row]


def _told(image: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in image.items())


def _impossible(opened: OpenShard, split: str, named: Collection[str]) -> Iterator[str]:
    """Keys of the records (but those that are ``named`` already) that are none, hold what no label can be, or are
    of another split than their shard."""
    for row, key in enumerate(opened.keys):
        try:
            record = opened.record(row)
            problems = record.problems()
            if record.split not in (None, split):
                problems.append(f"split {record.split!r} in a shard of {split!r}")
        except ValueError as error:
            problems = [str(error)]
        if problems and key not in named:
            yield f"{key} ({'; '.join(problems)[:_LONGEST_TOLD]})"


def _damaged(opened: OpenShard) -> Iterator[str]:
    """Keys of samples whose record or picture cannot be read."""
    from hpe.data.images import DecodeError, decode_rgb

    for row, key in enumerate(opened.keys):
        try:
            opened.record(row)
            decode_rgb(bytes(opened.image(row)))
        except (DecodeError, ValueError):
            yield key
