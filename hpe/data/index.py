"""The index beside the shards (contract C1): where each sample of each tar lies, and its labels, in one Arrow file.

Opening, counting, planning, balancing and joining read this file alone: no tar is opened, no remote shard fetched.

A file is an Arrow IPC stream, uncompressed, so that it opens memory-mapped (``datasets.Dataset.from_file`` maps this
format and no other) and all readers of a node share its pages. Measured for 1,000,000 samples: opened in 0.03 s, where
a Parquet file of a third of the size takes 0.8 s for the labels alone, in each process. It holds one record batch per
shard with the columns of :data:`SCHEMA`; the schema's metadata ``hpe.index`` list the shards as JSON, in the order of
the batches. ``hpe pack`` writes ``<split>.arrow``; ``hpe index`` writes ``index.arrow`` beside tars of others.

An index is always made from the tar itself (:func:`index_shard`), so that it states what the tar states.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from hpe.core.console import count_of
from hpe.core.files import Place, aside, open_regular
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.records import FARTHEST_PIXEL, IMAGE_EXTENSIONS, LARGEST_DEGREES, Record
from hpe.data.shard_reader import OpenShard, open_tar, utf8
from hpe.data.shards import BLOCK

FORMAT: Final = "hpe-index/1"
FOREIGN: Final = "index.arrow"
"""Name of the index of tars without a manifest, in their folder."""
NUMBERS: Final = ("valence", "arousal", "yaw", "pitch", "roll")
TEXTS: Final = ("subject", "source", "split")
_PLACES: Final = ("image_offset", "image_bytes", "record_offset", "record_bytes")
_METADATA: Final = b"hpe.index"
_ANGLE: Final = (-LARGEST_DEGREES, LARGEST_DEGREES)
_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "emotion": (0, len(EMOTIONS) - 1), "direction": (0, len(DIRECTIONS) - 1), "valence": (-1, 1), "arousal": (-1, 1),
    "yaw": _ANGLE, "pitch": _ANGLE, "roll": _ANGLE,
}  # fmt: skip
_LISTS: Final[Mapping[str, tuple[int, float, float]]] = {
    "emotion_votes": (len(EMOTIONS), 0, float(np.finfo(float).max)), "box": (4, -FARTHEST_PIXEL, FARTHEST_PIXEL),
}  # fmt: skip
"""How many numbers, and the least and the largest."""
_LONGEST_PROBLEM: Final = 200
_LOOKED_AT_ONCE: Final = 1 << 16
"""Rows."""
_DAMAGED: Final = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RecursionError,
    MemoryError,
    OverflowError,
)

SCHEMA: Final = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("extension", pa.string()),
        *((name, pa.int64()) for name in _PLACES),
        ("emotion", pa.int64()),
        ("direction", pa.int64()),
        *((name, pa.float64()) for name in NUMBERS),
        ("emotion_votes", pa.list_(pa.float64())),
        ("box", pa.list_(pa.float64())),
        *((name, pa.string()) for name in TEXTS),
        ("groups", pa.string()),
        ("problem", pa.string()),
    ]
)
"""Columns of an index.

``shard`` is the number of the tar in the file; offsets and sizes are bytes of the tar; labels are those of
:class:`hpe.data.records.Record` without landmarks, as 64-bit numbers, so that they equal the JSON's, and null where
there is none; ``groups`` is a JSON object; ``problem`` says why a record cannot be read (then it has no labels).
"""


@dataclass(frozen=True, slots=True)
class IndexFile:
    """An index that is not open yet.

    Attributes:
        url: its path, or its URL.
        shards: what `hpe index` must be given to make it again.
        sha256: by the manifest, or None.
        remote: whether it has to be fetched.
    """

    url: str
    shards: str
    sha256: str | None = None
    remote: bool = False

    @property
    def way_out(self) -> str:
        """What to do about an index that cannot be used."""
        if self.remote:
            return f"make it again with `hpe index` in the folder that {self.shards} was copied from, and copy it there"
        return f"make it again with `hpe index {self.shards}`"

    def check(self, path: Path) -> None:
        """Look at every value of a local copy (:func:`check_index`), and whether it is the manifest's.

        Raises:
            ValueError: it cannot be read, a value is impossible, or it is another file.
        """
        digest = check_index(path)
        if self.sha256 not in (None, digest):
            raise ValueError(f"sha256 is {digest[:12]}…, expected {self.sha256[:12]}… (manifest)")


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A tar of an index.

    Attributes:
        name: of the file.
        bytes: its size when it was indexed.
        samples: rows of its batch.
        damage: why the tar ends early, or None.
        unpaired: what is in the tar but is no sample, in words with the likely cause, or None.
    """

    name: str
    bytes: int
    samples: int
    damage: str | None = None
    unpaired: str | None = None

    @property
    def missing(self) -> list[str]:
        """What of the tar is no sample, and why, a line each."""
        name = utf8(self.name)
        before = f"; {count_of(self.samples, 'sample')} before it can be read" if self.samples else ""
        lines = [f"{name}: {self.damage}{before}"] * bool(self.damage)
        return lines + [f"{name}: {self.unpaired}"] * bool(self.unpaired)


@dataclass(frozen=True, slots=True)
class Index:
    """An open index; its columns lie in the mapped file, those of a small one in memory.

    Attributes:
        path: of the file.
        shards: its tars.
        batches: the rows of each tar, by the columns of :data:`SCHEMA`.
        mapped: the file; None: it is small, and was read.
    """

    path: Path
    shards: tuple[IndexedShard, ...]
    batches: tuple[pa.RecordBatch, ...]
    mapped: mmap.mmap | None

    @property
    def table(self) -> pa.Table:
        """All rows; nothing is copied."""
        return pa.Table.from_batches(self.batches, SCHEMA)

    def release(self) -> None:
        """Take what was read out of this process' memory; the kernel maps it again where it is needed.

        It maps the neighbours of what is read, too: who has read the labels has soon all of the file mapped.
        """
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def index_shard(path: Path) -> tuple[IndexedShard, pa.RecordBatch]:
    """The entry and the rows of a tar, damaged or not, by its headers and records.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return index_open_shard(path.name, open_tar(path))


def index_open_shard(name: str, shard: OpenShard) -> tuple[IndexedShard, pa.RecordBatch]:
    """The same of a tar that is open."""
    records: list[Record] = []
    problems: list[str | None] = []
    for row in range(len(shard)):
        record, problem = _read(shard, row)
        records.append(record)
        problems.append(problem)
    places = np.hstack((shard.index.images, shard.index.records)).T
    columns: dict[str, Sequence[Any]] = {
        "shard": [0] * len(shard),
        "key": [utf8(key) for key in shard.keys],
        "extension": shard.index.extensions,
        "groups": [json.dumps(dict(one.groups), ensure_ascii=False) if one.groups else None for one in records],
        "problem": problems,
    }
    columns |= {place: of.tolist() for place, of in zip(_PLACES, places, strict=True)}
    for label in ("emotion", "direction", *NUMBERS, *_LISTS, *TEXTS):
        columns[label] = [getattr(record, label) for record in records]
    entry = IndexedShard(name, len(shard.data), len(shard), shard.damage, shard.index.unpaired)
    return entry, pa.record_batch([_column(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _column(items: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of values, None: null. ``pa.array`` would import pandas, which takes as long as to pack 100 pictures."""
    has = np.fromiter((item is not None for item in items), bool, len(items))
    bits = None if has.all() else pa.py_buffer(np.packbits(has, bitorder="little"))
    if pa.types.is_primitive(kind):
        numbers = np.asarray([0 if item is None else item for item in items], kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(items), [bits, pa.py_buffer(numbers)])
    text = pa.types.is_string(kind)
    parts: list[Any] = [(item or "").encode() if text else item or () for item in items]
    ends = pa.py_buffer(np.cumsum([0, *map(len, parts)], dtype=np.int64).astype(np.int32))
    if text:
        return pa.Array.from_buffers(kind, len(items), [bits, ends, pa.py_buffer(b"".join(parts))])
    inner = _column(list(chain.from_iterable(parts)), kind.value_type)
    return pa.Array.from_buffers(kind, len(items), [bits, ends], children=[inner])


def _read(shard: OpenShard, row: int) -> tuple[Record, str | None]:
    """A row's record, or one without labels and why."""
    try:
        record = shard.record(row)
        if not (problem := "; ".join(record.problems())):
            return record, None
    except (ValueError, RecursionError) as error:
        problem = str(error) or type(error).__name__
    return Record(), utf8(f"damaged record: {problem}")[:_LONGEST_PROBLEM]


def record_of(row: Mapping[str, Any]) -> Record:
    """The record of a row (``batch.slice(row, 1).to_pylist()[0]``), without its landmarks."""
    votes, box, groups = row["emotion_votes"], row["box"], row["groups"]
    return Record(
        emotion=row["emotion"],
        emotion_votes=None if votes is None else tuple(votes),
        direction=row["direction"],
        box=None if box is None else tuple(box),
        groups={} if groups is None else json.loads(groups),
        **{name: row[name] for name in (*NUMBERS, *TEXTS)},
    )


def write_index(
    path: Path, entries: Sequence[IndexedShard], batches: Iterable[pa.RecordBatch], *, place: Place = aside
) -> tuple[int, str]:
    """Write an index, aside and then renamed; same shards, same bytes. Returns its size and sha256.

    Args:
        path: of the index.
        entries: the tars.
        batches: the rows of each, of which one at a time is held in memory.
        place: how the file comes to its name.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    # In ASCII, which can hold the name of any file, also one that is not UTF-8.
    head = json.dumps({"format": FORMAT, "shards": [asdict(entry) for entry in entries]})
    schema = SCHEMA.with_metadata({_METADATA: head.encode(), b"huggingface": _FEATURES})
    with place(path) as part:
        # Not pa.OSFile, which takes no path that is not UTF-8.
        with part.open("wb") as out, pa.ipc.new_stream(out, schema) as stream:
            for number, batch in enumerate(batches):
                numbers = _column([number] * batch.num_rows, pa.int32())
                stream.write_batch(batch.set_column(0, SCHEMA[0], numbers))
        with part.open("rb") as written:
            return part.stat().st_size, hashlib.file_digest(written, "sha256").hexdigest()


_SMALL: Final = 1 << 20
"""Bytes. A map keeps a descriptor as long as it lives, and a reader of tars without an index has one table per tar."""


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name in ("emotion", "direction"):
        return {"names": list(EMOTIONS if field.name == "emotion" else DIRECTIONS), "_type": "ClassLabel"}
    if field.name in _LISTS:
        # `Sequence` is what every version of datasets from 3.3 to 5 reads; `List` is unknown to 3.
        return {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"}
    return {"dtype": str(field.type), "_type": "Value"}


_FEATURES: Final = json.dumps({"info": {"features": {field.name: _feature(field) for field in SCHEMA}}}).encode()


def open_index(path: Path) -> Index:
    """Map an index; its columns are not looked at (:func:`check_index`).

    Raises:
        ValueError: it cannot be read, or is no index.
    """
    try:
        with open_regular(path) as file:
            # Not pa.memory_map, which opens a path a second time: a FIFO could stand there by now.
            small = os.fstat(file.fileno()).st_size <= _SMALL
            mapped = None if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = file.read() if mapped is None else mapped
        with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
            shards = _shards_of(stream.schema)
            batches = tuple(stream)
        _match(shards, batches)
    except _DAMAGED as error:
        raise ValueError(f"not an index of shards: {_short(error)}") from error
    return Index(path, shards, batches, mapped)


def check_index(path: Path) -> str:
    """Look at every value of an index, and return its sha256.

    What passes cannot lead a reader out of the index or of a tar, and has only labels that a record may have. The file
    is read once from start to end, one batch in memory at a time: 0.35 s for 1,000,000 samples.

    Raises:
        ValueError: it cannot be read, or a value is impossible.
    """
    try:
        # Side by side: hashing takes as long as looking, and does not hold Python's lock.
        with ThreadPoolExecutor(1, "sha256") as thread:
            digest = thread.submit(_sha256, path)
            _look(path)
            return digest.result()
    except _DAMAGED as error:
        raise ValueError(f"not an index of shards: {_short(error)}") from error


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _look(path: Path) -> None:
    with open_regular(path) as file, pa.ipc.open_stream(file) as stream:
        shards = _shards_of(stream.schema)
        first, some, rows = 0, [], 0
        for number, batch in enumerate(stream):
            _match(shards[number : number + 1], (batch,))
            batch.validate(full=True)
            some.append(batch)
            rows += batch.num_rows
            if rows >= _LOOKED_AT_ONCE:
                _refuse_impossible(first, shards[first : number + 1], some)
                first, some, rows = number + 1, [], 0
        if some:
            _refuse_impossible(first, shards[first : first + len(some)], some)
    if first + len(some) != len(shards):
        raise ValueError(f"it has rows of {first + len(some):,} shards, and lists {len(shards):,}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_PROBLEM] or type(error).__name__


def _shards_of(schema: pa.Schema) -> tuple[IndexedShard, ...]:
    """The shards in a schema's metadata."""
    text = (schema.metadata or {}).get(_METADATA)
    if text is None:
        raise ValueError(f"its schema has no metadata {_METADATA.decode()!r}")
    head = json.loads(text)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = str(head.get("format") if isinstance(head, dict) else head)[:40]
        raise ValueError(f"format is {found!r}, expected {FORMAT!r}; perhaps written by another version of hpe")
    if not schema.equals(SCHEMA):
        other = next((a for a, b in zip(schema, SCHEMA, strict=False) if not a.equals(b)), "the number of columns")
        raise ValueError(f"its columns are not those of {FORMAT}: {other}")
    listed = head.get("shards")
    if not isinstance(listed, list) or not listed:
        raise ValueError("it lists no shards")
    shards = tuple(IndexedShard(**entry) for entry in listed)
    for shard in shards:
        if not all(isinstance(getattr(shard, name), kinds) for name, kinds in _ENTRY.items()):
            raise ValueError(f"an entry of its list of shards has a wrong type: {str(asdict(shard))[:80]}")
        if Path(shard.name).name != shard.name or shard.name in ("", "..") or shard.samples < 0 or shard.bytes < 0:
            raise ValueError(f"{shard.name[:80]!r} with {shard.samples} samples in {shard.bytes} bytes is no shard")
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("it lists a shard twice")
    return shards


_ENTRY: Final = {"name": str, "bytes": int, "samples": int, "damage": str | None, "unpaired": str | None}
assert _ENTRY.keys() == {field.name for field in fields(IndexedShard)}


def _match(shards: tuple[IndexedShard, ...], batches: tuple[pa.RecordBatch, ...]) -> None:
    if len(shards) != len(batches):
        raise ValueError(f"it has rows of {len(batches):,} shards, and lists {len(shards):,}")
    for shard, batch in zip(shards, batches, strict=True):
        if shard.samples != batch.num_rows:
            raise ValueError(f"{shard.name}: {batch.num_rows:,} rows, and lists {shard.samples:,} samples")


def equal_rows(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether two batches hold the same samples at the same places, with the same labels."""
    names = SCHEMA.names[1:]  # without the number of the shard
    return one.num_rows == other.num_rows and all(one.column(name).equals(other.column(name)) for name in names)


def values(column: pa.Array, kind: type[np.generic]) -> np.ndarray:
    """The numbers of a column; nothing is copied, and what stands where it is null is undefined.

    By its buffer, as ``to_numpy`` imports pandas, which takes longer than to read the labels of a million samples.
    """
    return np.frombuffer(column.buffers()[1] or b"", kind)[column.offset :][: len(column)]


def valid(column: pa.Array) -> Bool[np.ndarray, " rows"]:
    """By row: whether a column has a value."""
    if not column.null_count:
        return np.ones(len(column), bool)
    bits = column.is_valid()
    packed = np.frombuffer(bits.buffers()[1] or b"", np.uint8)
    return np.unpackbits(packed, bitorder="little")[bits.offset :][: len(column)].astype(bool)


def _refuse_impossible(first: int, shards: Sequence[IndexedShard], batches: Sequence[pa.RecordBatch]) -> None:
    """Refuse values that no index of tars has; of many shards at once, as a call for each would take most of the time.

    Raises:
        ValueError: names the shard and the column.
    """
    rows = pa.Table.from_batches(batches).combine_chunks()
    counts = [shard.samples for shard in shards]
    number = np.repeat(np.arange(len(shards)), counts)
    room = np.repeat(np.asarray([shard.bytes for shard in shards], np.int64), counts)

    def column(name: str) -> pa.Array:
        chunked = rows.column(name)
        return chunked.chunk(0) if chunked.num_chunks else _column([], chunked.type)

    def refuse(bad: Bool[np.ndarray, " rows"], what: str) -> None:
        if bad.any():
            raise ValueError(f"{shards[number[bad.argmax()]].name}: {what}")

    for name in ("shard", "key", "extension", *_PLACES):
        if column(name).null_count:
            refuse(~valid(column(name)), f"{name} is null")
    refuse(values(column("shard"), np.int32) != first + number, "rows of another shard")
    for kind in ("image", "record"):
        start, size = (values(column(f"{kind}_{what}"), np.int64) for what in ("offset", "bytes"))
        # Not start + size: that may wrap around. A header stands before each.
        outside = (start < BLOCK) | (size < 0) | (start > room) | (size > room - start)
        refuse(outside, f"a {kind} lies outside the tar")
    for extension in set(column("extension").unique().to_pylist()) - set(IMAGE_EXTENSIONS):
        raise ValueError(f"{str(extension)[:20]!r} is no extension of a picture")
    for name, (least, most) in _LIMITS.items():
        kind = np.int64 if name in ("emotion", "direction") else np.float64
        found = values(column(name), kind)
        # Written so that NaN is outside.
        refuse(valid(column(name)) & ~((found >= least) & (found <= most)), f"{name} is not within {least:g}..{most:g}")
    for name, (length, least, most) in _LISTS.items():
        _refuse_lists(name, column(name), length, least, most)
    for text in column("groups").drop_null().unique().to_pylist():
        groups = json.loads(text)
        if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
            raise ValueError(f"groups {text[:40]!r} is no object of texts")


def _refuse_lists(name: str, lists: pa.Array, length: int, least: float, most: float) -> None:
    if lists.null_count == len(lists):
        return
    inner, lengths = lists.flatten(), values(lists.value_lengths().drop_null(), np.int32)
    found = values(inner, np.float64)
    if inner.null_count or not (lengths == length).all() or not ((found >= least) & (found <= most)).all():
        raise ValueError(f"{name} is not {length} possible numbers")


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[str, Record | None]]:
    """Key and record of each row, in order; None: a damaged record. Landmarks are not in an index."""
    for row in batch.to_pylist():
        yield row["key"], None if row["problem"] is not None else record_of(row)
