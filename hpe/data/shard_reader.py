"""Faces out of shards, decoded by threads ahead of whoever uses them."""

import mmap
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from jaxtyping import UInt8

from hpe.data.crops import Box, CropRule, box_around
from hpe.data.images import DecodeError, crop_resize, decode_rgb
from hpe.data.records import Record
from hpe.data.shards import ShardIndex, index_tar

Pixels = UInt8[np.ndarray, "size size 3"]
Given = TypeVar("Given")
Made = TypeVar("Made")
_WAIT_SECONDS: Final = 0.1


@dataclass(frozen=True)
class OpenShard:
    """A local shard mapped into memory, and its index."""

    path: Path
    data: memoryview
    index: ShardIndex

    def __len__(self) -> int:
        return len(self.index)

    def image(self, row: int) -> memoryview:
        """The encoded picture of a row."""
        start, size = self.index.images[row].tolist()
        return self.data[start : start + size]

    def record(self, row: int) -> Record:
        """The record of a row.

        Raises:
            ValueError: its json is not one.
        """
        start, size = self.index.records[row].tolist()
        return Record.from_json(bytes(self.data[start : start + size]))


def open_shard(path: Path) -> OpenShard:
    """Map and index a shard.

    Raises:
        ValueError: it cannot be read, or it is damaged.
    """
    try:
        with path.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    index = index_tar(data)
    if index.damage:
        raise ValueError(index.damage)
    if len(set(index.keys)) < len(index.keys):
        double = next(key for key, count in Counter(index.keys).items() if count > 1)
        raise ValueError(f"the key {double!r} is there more than once: damaged, or two shards put together")
    return OpenShard(path, data, index)


@dataclass(frozen=True, slots=True)
class Framing:
    """Which part of a stored picture a network gets to see.

    Attributes:
        rule: the crop to cut from the stored picture, by the box or the landmarks of its record; ``none``
            takes the whole picture.
        inside: the crop must lie in the stored picture, because that is a crop itself and what lies beyond
            it was cut away (black would be taken for the picture).
    """

    rule: CropRule
    inside: bool

    def box(self, record: Record, width: int, height: int) -> Box:
        """The crop's box.

        Raises:
            ValueError: the record lacks what the rule starts from, or the crop reaches beyond the picture.
        """
        if self.rule.basis == "landmarks" and record.landmarks is not None:
            base = box_around(np.asarray(record.landmarks))
        elif self.rule.basis == "box" and record.box is not None:
            base = record.box
        else:
            raise ValueError(f"no {self.rule.basis} in the record to crop {self.rule} from")
        box = self.rule.apply(base)
        if self.inside and (box[0] < -1 or box[1] < -1 or box[2] > width + 1 or box[3] > height + 1):
            raise ValueError(f"{self.rule} reaches beyond the stored crop")
        return box


def read_face(shard: OpenShard, row: int, framing: Framing, size: int) -> Pixels:
    """The face of a row as a square of ``size`` pixels.

    Raises:
        DecodeError: the bytes are no picture.
        ValueError: the crop is impossible.
    """
    image = decode_rgb(bytes(shard.image(row)))
    height, width = image.shape[:2]
    if framing.rule.shape != "none":
        return crop_resize(image, framing.box(shard.record(row), width, height), size)
    if (height, width) == (size, size):
        return image
    return crop_resize(image, (0, 0, width, height), size)


def read_faces(
    shard: OpenShard, rows: range, framing: Framing, into: UInt8[np.ndarray, "rows size size 3"]
) -> dict[int, str]:
    """Read rows into an array; rows that give no face are black there and returned with their problem."""
    problems = {}
    for place, row in enumerate(rows):
        try:
            into[place] = read_face(shard, row, framing, into.shape[1])
        except (DecodeError, ValueError, TypeError, RecursionError) as error:
            into[place] = 0
            problems[row] = str(error)[:200] or type(error).__name__
    return problems


@contextmanager
def ahead(
    function: Callable[[Given], Made], items: Iterable[Given], *, threads: int, depth: int
) -> Iterator[Iterator[Made]]:
    """``map(function, items)`` in order, by threads, at most ``depth`` items ahead of the consumer.

    ``items`` is drawn from in a thread of its own. An exception of either ends the iteration with it.
    """
    waiting: queue.Queue[Future[Made] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(thing: "Future[Made] | BaseException | None") -> None:
        while not stop.is_set():
            try:
                waiting.put(thing, timeout=_WAIT_SECONDS)
            except queue.Full:
                continue
            return

    def draw() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put(pool.submit(function, item))
            put(None)
        except BaseException as error:
            put(error)

    def made() -> Iterator[Made]:
        while (thing := waiting.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing.result()

    with ThreadPoolExecutor(threads, "faces", initializer=one_thread) as pool:
        drawing = threading.Thread(target=draw, name="draw", daemon=True)
        drawing.start()
        try:
            yield made()
        finally:
            stop.set()
            drawing.join()
            pool.shutdown(cancel_futures=True)


def one_thread() -> None:
    """Each worker computes with one thread: side by side they fill the cores, and results do not depend on
    how many there are (torch's convolutions give other last digits with other numbers of threads)."""
    import torch

    torch.set_num_threads(1)
