"""The one way to open a shard: a tar mapped into memory, its layout checked, and where each sample lies in it.

A tar is indexed by its headers alone, so opening a shard of 300 MB reads some 2 MB of it; pictures and records are
read from disk when they are looked at. Remote shards are fetched first (:mod:`hpe.data.remote_cache`). Nothing here
imports torch, whose import takes longer than ``hpe verify`` needs for a small dataset.
"""

import contextlib
import mmap
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from hpe.core.console import count_of
from hpe.core.files import open_regular
from hpe.data.records import IMAGE_EXTENSIONS, Record
from hpe.data.shards import BLOCK, Sample

_LARGEST_MEMBER: Final = 1 << 60
"""Bytes; a larger size in a header is damage, and would overflow the sums of the walk."""
_EXTENSIONS: Final = (*IMAGE_EXTENSIONS, "json")
_FIELD: Final = {
    written: name for name in _EXTENSIONS for written in (name, name.upper(), name.title())
} | dict.fromkeys(("jpeg", "JPEG", "Jpeg"), "jpg")
_PLAIN_KEY: Final = 94
"""Letters; with an extension the name fits the 100 bytes of a tar header."""
_LONGEST_NAME: Final = 1 << 20
"""Bytes that are read of a member that names the next one; a longer name is damage. File systems allow 4,096."""
_PAX_DIGITS: Final = 10
"""Of the length of a pax record, at most."""
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where each sample of a tar lies: byte offsets and sizes of its picture and its json.

    Attributes:
        damage: why the tar ends early (the samples before are good), or None.
        unpaired: pictures without a record and records without a picture, counted in words, or None.
    """

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    images: Int64[np.ndarray, "samples 2"]
    records: Int64[np.ndarray, "samples 2"]
    damage: str | None
    unpaired: str | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard mapped into memory, and its index. The map lives as long as this object or a view of its bytes."""

    data: memoryview
    index: ShardIndex

    def __len__(self) -> int:
        return len(self.index)

    @property
    def damage(self) -> str | None:
        """Why the tar ends early, or None."""
        return self.index.damage

    @property
    def keys(self) -> tuple[str, ...]:
        """The samples' keys, in order."""
        return self.index.keys

    def image(self, row: int) -> memoryview:
        """The encoded picture of a row."""
        start, size = self.index.images[row].tolist()
        return self.data[start : start + size]

    def record_bytes(self, row: int) -> bytes:
        """The json of a row."""
        start, size = self.index.records[row].tolist()
        return bytes(self.data[start : start + size])

    def record(self, row: int) -> Record:
        """The record of a row.

        Raises:
            ValueError: its json is no record.
        """
        return Record.from_json(self.record_bytes(row))

    def sample(self, row: int) -> Sample:
        """Key, picture and record of a row.

        Raises:
            ValueError: its json is no record.
        """
        return Sample(self.keys[row], bytes(self.image(row)), self.index.extensions[row], self.record(row))


def is_image_of(header: bytes, key: str, size: int) -> bool:
    """Whether the tar header before a picture names this sample and this many bytes.

    It costs 1 µs beside the 150 µs of decoding 224 px, and so a place that is not the sample's never gives a picture
    to its labels. Names that a plain header cannot hold (long, or not ASCII) are compared by their size alone.

    Args:
        header: the 512 bytes before the picture.
        key, size: by the index.
    """
    if header[124:135] != b"%011o" % size:
        try:
            if _octal(header[124:136]) != size:
                return False
        except (ValueError, IndexError):
            return False
    if len(key) > _PLAIN_KEY or not key.isascii():
        return True
    name = key.encode() + b"."
    return header.startswith(name) or _ustar_name(header).startswith(key + ".")


def open_tar(file: Path | int) -> OpenShard:
    """Map and index a tar, damaged or not: ``damage`` names why it ends early.

    Args:
        file: its path, or the descriptor of an open file.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    if isinstance(file, Path):
        with open_regular(file) as stream:
            return open_tar(stream.fileno())
    if not os.fstat(file).st_size:  # which mmap refuses
        return OpenShard(memoryview(b""), index_tar(memoryview(b"")))
    data = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
    return OpenShard(data, index_tar(data))


def open_shard(file: Path | int) -> OpenShard:
    """Map and index a shard that must be whole: its path, or the descriptor of an open file.

    Raises:
        ValueError: it cannot be read, or it is damaged.
    """
    try:
        shard = open_tar(file)
    except OSError as error:
        raise ValueError(f"cannot be read ({error})") from error
    if shard.damage:
        raise ValueError(shard.damage)
    if len(set(shard.keys)) < len(shard):
        double = next(key for key, count in Counter(shard.keys).items() if count > 1)
        raise ValueError(f"the key {double!r} appears more than once: the tar is damaged, or two shards were joined")
    return shard


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a local shard, in order.

    Raises:
        OSError: there is none, or it is no regular file.
        ValueError: the tar is damaged (after the samples before the damage), or a json is no record.
    """
    shard = open_tar(path)
    for row in range(len(shard)):
        yield shard.sample(row)
    if shard.damage:
        raise ValueError(f"{path}: {shard.damage}")


def index_tar(data: memoryview) -> ShardIndex:
    """The index of a tar in memory (or mapped), by its headers alone: about 5 µs a member, a third of tarfile's.

    A sample is a picture and a json of the same name; they need not be neighbours, as they are read by their places.
    A damaged header, or a member that reaches over the end, ends the index and is named in ``damage``.
    """
    members, damage = _members(data)
    keys: list[str] = []
    extensions: list[str] = []
    images: list[tuple[int, int]] = []
    records: list[tuple[int, int]] = []
    others: list[str] = []
    halves: dict[str, dict[str, tuple[int, int]]] = {}
    key = ""
    for name, start, size in members:
        key, extension = _key_of(name)
        field = _FIELD.get(extension)
        if field is None:
            others.append(name)
            continue
        parts = halves.setdefault(key, {})
        parts[field] = (start, size)
        if "json" in parts and len(parts) > 1:
            picture = next(e for e in IMAGE_EXTENSIONS if e in parts)
            keys.append(key)
            extensions.append(picture)
            images.append(parts[picture])
            records.append(parts["json"])
            del halves[key]
    if damage:
        halves.pop(key, None)  # the half before the damage
    table = np.asarray(images + records, np.int64).reshape(2, len(keys), 2)
    return ShardIndex(tuple(keys), tuple(extensions), table[0], table[1], damage, _unpaired(halves, set(keys), others))


def _key_of(name: str) -> tuple[str, str]:
    """The key and the extension of a member: the extension begins at the first dot, as in WebDataset.

    Where that is none of ours and the last one is (``S01.cam0.0001.jpg``), the dots before belong to the key.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if extension not in _FIELD and stem and (dotted := base.rpartition("."))[2] in _FIELD:
        stem, _, extension = dotted
    return folder + slash + stem, extension


def _unpaired(halves: Mapping[str, Mapping[str, object]], keys: Collection[str], others: Sequence[str]) -> str | None:
    """What is no sample although it looks like half of one, in words."""
    # ``a.seg.png`` beside the sample ``a`` is one more field of it.
    lone = {key: parts for key, parts in halves.items() if key not in keys and key.partition(".")[0] not in keys}
    if not lone:
        return None
    pictures = [key for key, parts in lone.items() if "json" not in parts]
    records = [key for key, parts in lone.items() if "json" in parts]
    counts = [f"{count_of(len(pictures), 'picture')} without a record (NAME.json)"] * bool(pictures)
    counts += [f"{count_of(len(records), 'record')} without a picture (NAME.jpg, .png or .webp)"] * bool(records)
    text = f"{' and '.join(counts)}, such as {utf8((pictures or records)[0])}, are no samples"
    beside = Counter(extension for key, extension in map(_key_of, others) if key in lone)
    if not beside:
        return text
    extension, count = beside.most_common(1)[0]
    instead = f"{text}; {count:,} of them have a .{utf8(extension)} file instead, which hpe does not read"
    return instead + _way_out(extension)


def utf8(name: str) -> str:
    """A name in a tar, or of one, as Unicode text: what is not UTF-8 in it is replaced."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # halves of pairs that no file name has left, such as those of a JSON
        return re.sub("[\ud800-\udfff]", "\ufffd", name)


def _way_out(extension: str) -> str:
    if extension == "cls":
        return ': write its label into the record, such as {"emotion": 3}'
    return ": write its content in one of these forms"


def _members(data: memoryview) -> tuple[list[tuple[str, int, int]], str | None]:
    """Name, start and size of every plain file in a tar up to the first damage, and the damage.

    Sizes alone lead from header to header. The checksums are then summed for all headers at once by NumPy: summed
    one by one in Python they would take most of the time.
    """
    if not len(data):
        return [], "empty file"
    if kind := next((name for magic, name in _COMPRESSED.items() if data[: len(magic)] == magic), None):
        return [], f"compressed with {kind}, so that no sample can be read by itself: decompress it"
    places, damage = _places(data)
    headers = [bytes(data[at : at + BLOCK]) for at, _ in places]
    good = _sound(headers)
    if good < len(places):
        damage = f"damaged tar header at byte {places[good][0]}"
    elif places and (over := sum(places[-1]) + BLOCK - len(data)) > 0:
        good, (at, size) = len(places) - 1, places[-1]
        damage = f"truncated: member at byte {at} needs {size} bytes, {size - over} are left"
    for number, ((at, size), header) in enumerate(zip(places[:good], headers, strict=False)):
        if size > _LONGEST_NAME and header[156] == ord("L"):
            good, damage = number, f"damaged tar header at byte {at}: a name of {size:,} bytes"
            break
    return list(_named(data, places[:good], headers[:good])), damage


def _places(data: memoryview) -> tuple[list[tuple[int, int]], str | None]:
    """Where each header lies and how many bytes follow it, up to the first that gives no size, and the damage."""
    places: list[tuple[int, int]] = []
    at, end = 0, len(data)
    while at + BLOCK <= end and data[at]:
        size = _size(data, at)
        if not 0 <= size < _LARGEST_MEMBER:
            return places, f"damaged tar header at byte {at}"
        places.append((at, size))
        at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
    return places, "truncated: the tar has no end" if at + BLOCK > end else None


def _size(data: memoryview, at: int) -> int:
    """The size in a header, -1 where there is none."""
    try:
        return int(bytes(data[at + 124 : at + 135]), 8)  # as most tars have it: eleven octal digits
    except ValueError:
        try:
            return _octal(bytes(data[at + 124 : at + 136]))
        except ValueError:
            return -1


def _sound(headers: Sequence[bytes]) -> int:
    """How many headers from the first on have a right checksum."""
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    sums = table.sum(1, dtype=np.int64) - table[:, 148:156].sum(1, dtype=np.int64) + 8 * 32
    for number, (header, total) in enumerate(zip(headers, sums.tolist(), strict=True)):
        with contextlib.suppress(ValueError):
            if _octal(header[148:156]) == total:
                continue
        return number
    return len(headers)


def _named(
    data: memoryview, places: Sequence[tuple[int, int]], headers: Sequence[bytes]
) -> Iterator[tuple[str, int, int]]:
    """Name, start and size of the plain files among the members."""
    long_name = None
    for (at, size), header in zip(places, headers, strict=True):
        start, kind = at + BLOCK, header[156]
        if kind in b"0\0":
            yield long_name or _ustar_name(header), start, size
            long_name = None
        elif kind in b"xL":  # a member of its own, before the file that it names
            text = bytes(data[start : start + min(size, _LONGEST_NAME)])  # attributes of a file may be longer
            long_name = _long_name(header[156:157], text) or long_name


def _octal(digits: bytes) -> int:
    if digits[0] & 0x80:  # GNU base-256 for sizes over 8 GiB
        return int.from_bytes(digits[1:], "big")
    return int(digits.rstrip(b"\0 ").lstrip() or b"0", 8)


def _ustar_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _long_name(kind: bytes, data: bytes) -> str | None:
    if kind == b"L":
        return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    at = 0
    while at < len(data):  # pax records: "<length> <keyword>=<value>\n"
        space = data.find(b" ", at, at + _PAX_DIGITS + 1)
        if space < 0 or not data[at:space].isdigit() or (end := at + int(data[at:space])) <= space + 1:
            return None
        if data.startswith(b"path=", space + 1) and end <= len(data):
            return data[space + 6 : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return None
