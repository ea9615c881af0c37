"""Shards on disk (contract C1): WebDataset tars that are the same bytes for the same samples, and a manifest.

The folder of a dataset holds ``<split>-000000.tar`` …, ``manifest.json`` and ``quarantine.jsonl``.

A tar: two members per sample, ``<key>.jpg`` (or png, webp), then ``<key>.json``. The JSON is a
:class:`hpe.data.records.Record` without the labels that the dataset lacks: ``emotion`` (0..7), ``emotion_votes``
(8 numbers), ``valence``, ``arousal`` (-1..1), ``yaw``, ``pitch``, ``roll`` (degrees), ``direction`` (0..4), ``box``
and ``landmarks`` (pixels of the stored picture), ``subject`` (person or photo), ``source`` (path in the raw dataset),
``split``, ``groups`` (further columns to report metrics by).

``manifest.json``: the fields of :class:`Manifest`; ``shards`` lists one :class:`ShardInfo` per tar. ``<split>.arrow``
is the index of the tars of a split (:mod:`hpe.data.index`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from hpe.core.errors import UserError
from hpe.core.files import Place, aside, write_json
from hpe.data.records import Record

FORMAT: Final = "hpe-shards/1"
MANIFEST: Final = "manifest.json"
QUARANTINE: Final = "quarantine.jsonl"
BLOCK: Final = 512
"""Bytes; a tar consists of such blocks: a header fills one, and what follows it is padded to whole ones."""
_LONGEST_KEY: Final = 94
"""Bytes; with ``.json`` or ``.webp`` the name fits the 100 bytes of a plain tar header."""
_LARGEST_MEMBER: Final = 8**11 - 1
_LARGEST_SHARD: Final = 1 << 40
_LEAST_SAMPLE: Final = 3 * BLOCK
"""Bytes of a tar: two headers and a record."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a shard: encoded picture and record."""

    key: str
    image: bytes
    extension: str
    record: Record


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard in the manifest."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The index of a split in the manifest (:mod:`hpe.data.index`)."""

    name: str
    split: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        dataset, variant: what was packed, such as ``affectnet`` and ``2021-eight-labels``.
        licence: the dataset's terms as stated where it was found.
        publishable: False where the terms forbid passing pictures on.
        crop: the crop rule (:class:`hpe.data.crops.CropRule` as text).
        image: size, colour and encoding of the stored pictures.
        shards: one entry per tar.
        counts: samples per split and label, and what was quarantined by reason.
        options: the options of ``hpe pack`` that made these shards.
        notes: decisions that whoever uses the shards must know.
        indexes: one entry per split; none where an older version packed.
        format: name and version of this format.
    """

    dataset: str
    variant: str
    licence: str
    publishable: bool
    crop: str
    image: dict[str, Any]
    shards: tuple[ShardInfo, ...]
    counts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    indexes: tuple[IndexInfo, ...] = ()
    format: str = FORMAT

    @property
    def crop_in_words(self) -> str:
        """The crop rule for readers: ``none`` alone leaves open whether pictures are as they were."""
        if self.crop != "none":
            return self.crop
        whole = self.image.get("encoding") == "original"
        return f"none ({'keep: whole pictures, bytes unchanged' if whole else 'the centre square'})"

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The manifest of a folder of shards.

        Raises:
            UserError: there is none, or it is not one.
        """
        path = folder / MANIFEST
        try:
            is_file, found = folder.is_file(), path.is_file()
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}; expected a folder of shards") from error
        if is_file:
            raise UserError(f"{folder}: is a file; expected the folder that contains it")
        if not found:
            refuse_unfinished(folder)
            raise UserError(
                f"{folder}: no {MANIFEST}; expected a folder of shards where `hpe pack` has finished "
                "(`hpe pack auto RAW OUT` makes one from a raw dataset)"
            )
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(
                f"{path}: not a manifest of `hpe pack`: {error}; pack again, or restore the manifest"
            ) from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """The manifest in a text.

        Raises:
            ValueError: it is not one.
        """
        try:
            raw = json.loads(text)
        except RecursionError:
            raise ValueError("its brackets are nested too deep") from None
        if not isinstance(raw, dict):
            raise ValueError(f"it holds {_kind(raw)}, expected an object")
        if raw.get("format") != FORMAT:
            raise ValueError(f"format is {raw.get('format')!r}, expected {FORMAT!r}")
        fields = _typed("", raw, _FIELDS, optional=("counts", "options", "notes", "indexes"))
        if not fields["shards"]:
            raise ValueError("shards is empty, expected at least one")
        shards = tuple(_shard(f"shards[{at}]", shard) for at, shard in enumerate(fields["shards"]))
        indexes = tuple(_index(f"indexes[{at}]", index) for at, index in enumerate(fields.get("indexes", ())))
        notes = tuple(fields.get("notes", ()))
        if not all(isinstance(note, str) for note in notes):
            raise ValueError("notes are not all text")
        return cls(**fields | {"shards": shards, "indexes": indexes, "notes": notes})

    def paths(self, folder: Path, split: str) -> list[Path]:
        """The shards of a split, in order."""
        return [folder / shard.name for shard in self.shards if shard.split == split]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in order of their first shard."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))


_FIELDS: Final[Mapping[str, type]] = {
    "dataset": str, "variant": str, "licence": str, "publishable": bool, "crop": str, "image": dict, "shards": list,
    "counts": dict, "options": dict, "notes": list, "indexes": list, "format": str,
}  # fmt: skip
_SHARD_FIELDS: Final[Mapping[str, type]] = {"name": str, "split": str, "samples": int, "bytes": int, "sha256": str}
_INDEX_FIELDS: Final[Mapping[str, type]] = {"name": str, "split": str, "bytes": int, "sha256": str}
_KINDS: Final = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a whole number"}


def _index(where: str, raw: Any) -> IndexInfo:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is {_kind(raw)}, expected an object")
    index = IndexInfo(**_typed(f"{where}.", raw, _INDEX_FIELDS))
    _refuse_path(where, index.name)
    if not 1 <= index.bytes <= _LARGEST_SHARD:
        raise ValueError(f"{where}.bytes is {index.bytes}, expected 1 to {_LARGEST_SHARD}")
    return index


def _refuse_path(where: str, name: str) -> None:
    """Refuse what is not the plain name of a file, as it would lead to another folder."""
    try:
        plain = Path(name).name == name and name not in ("", "..") and b"\0" not in name.encode()
    except UnicodeEncodeError:
        plain = False
    if not plain:
        raise ValueError(f"{where}.name {name!r} is not a plain file name")


def _shard(where: str, raw: Any) -> ShardInfo:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is {_kind(raw)}, expected an object")
    shard = ShardInfo(**_typed(f"{where}.", raw, _SHARD_FIELDS))
    _refuse_path(where, shard.name)
    for name, count in (("samples", shard.samples), ("bytes", shard.bytes)):
        if count < 1:
            raise ValueError(f"{where}.{name} is {count}, expected 1 or more")
    if shard.bytes > _LARGEST_SHARD:
        raise ValueError(f"{where}.bytes is {shard.bytes}, expected at most {_LARGEST_SHARD}")
    if shard.samples * _LEAST_SAMPLE > shard.bytes:  # who believes it would set aside memory for its labels
        raise ValueError(f"{where}.samples is {shard.samples}, more than fit into its {shard.bytes} bytes")
    return shard


def _typed(
    where: str, raw: Mapping[str, Any], expected: Mapping[str, type], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a JSON object, each of its type."""
    if unknown := sorted(raw.keys() - expected.keys()):
        raise ValueError(f"{where}{unknown[0]}: no such field; perhaps written by a newer hpe")
    if absent := [name for name in expected if name not in raw and name not in optional]:
        raise ValueError(f"{where}{absent[0]} is missing")
    for name, value in raw.items():
        if type(value) is not expected[name]:
            raise ValueError(f"{where}{name} is {_kind(value)}, expected {_KINDS[expected[name]]}")
    return dict(raw)


def _kind(value: Any) -> str:
    shown = json.dumps(value)
    return _KINDS.get(type(value), "a value") + f" ({shown if len(shown) <= 40 else shown[:39] + '…'})"


def write_shard(path: Path, split: str, samples: Iterable[Sample], *, place: Place = aside) -> ShardInfo:
    """Write one tar, aside and then renamed; same samples, same bytes.

    Only one sample at a time is held in memory.

    Args:
        path: of the tar.
        split: for its entry.
        samples: in order.
        place: how the file comes to its name: :func:`hpe.core.files.aside`, or ``aside_unsynced`` where the caller
            waits for the disk.

    Raises:
        ValueError: a key twice, or a key that is not a plain file name without a dot.
        OSError: the disk is full, or the folder cannot be written to.
    """
    seen: set[str] = set()
    digest, size = hashlib.sha256(), 0
    with place(path) as part, part.open("wb", buffering=1 << 20) as stream:
        for data in _members(path.name, samples, seen):
            digest.update(data)
            size += stream.write(data)
    return ShardInfo(path.name, split, len(seen), size, digest.hexdigest())


def _members(shard: str, samples: Iterable[Sample], seen: set[str]) -> Iterator[bytes]:
    """The bytes of the tar, sample by sample; every key is put into ``seen``."""
    for sample in samples:
        if sample.key in seen or not _plain(sample.key):
            raise ValueError(f"{shard}: key {sample.key!r} is used twice, empty, too long, or contains . / or \\")
        seen.add(sample.key)
        pieces: list[bytes] = []
        for extension, data in ((sample.extension, sample.image), ("json", sample.record.to_json())):
            pieces += (_tar_header(f"{sample.key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK))
        yield b"".join(pieces)
    yield bytes(2 * BLOCK)


def _plain(key: str) -> bool:
    return bool(key) and not set(key) & set("./\\\0\n") and len(key.encode()) <= _LONGEST_KEY


def _tar_header(name: str, size: int) -> bytes:
    """A ustar header of a plain file of no date and no owner (POSIX.1-1988).

    tarfile's own, by way of webdataset, takes ten times as long, which shows beside a small picture.
    """
    if size > _LARGEST_MEMBER:
        raise ValueError(f"{name}: {size:,} bytes do not fit into a tar member")
    fields = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    rest = b"0" + bytes(100) + b"ustar\x0000" + b"hpe".ljust(32, b"\0") * 2 + b"0000000\0" * 2 + bytes(167)
    checksum = sum(fields) + sum(rest) + 8 * 32
    return fields + b"%06o\0 " % checksum + rest


PLAN: Final = "plan.json"
"""In the folder of an unfinished job: how many shards and samples it is to write."""
_WORK: Final = {".pack": "hpe pack", ".balance": "hpe balance"}


def refuse_unfinished(folder: Path) -> None:
    """Refuse the shards of a folder that are only some of those to come; a folder without a job is none of them.

    Raises:
        UserError: a job that writes shards here is not finished; the message tells how far it is.
    """
    for name, command in _WORK.items():
        if (folder / MANIFEST).exists() or not (folder / name).is_dir():
            continue
        done = sum(1 for _ in folder.glob("*.tar"))
        try:
            planned = int(json.loads((folder / name / PLAN).read_text(encoding="utf-8"))["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            planned = 0
        raise UserError(
            f"{folder}: unfinished, {done:,} {f'of {planned:,} ' if planned else ''}shards so far; run the same "
            f"`{command}` again to finish it, or name the tars themselves, such as '{folder}/*.tar'"
        )
