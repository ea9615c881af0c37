"""One shard, from raw rows to a finished tar: the unit of work of ``hpe pack``, done by one process.

A shard is a function of its rows and its recipe alone, so that its bytes are the same however many
processes work. Its counts, hashes and rejects go into a journal, ``.pack/<shard>.json``; a shard whose journal
and tar exist already is not made again.
"""

import hashlib
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow

from hpe.core.errors import UserError
from hpe.core.files import aside_unsynced, open_regular
from hpe.data.crops import Box, CropRule, box_around, box_text
from hpe.data.images import LARGEST_CROP, RGBImage, crop_resize, decode_rgb, encode_jpeg, map_box, map_points, to_grey
from hpe.data.recipe import Recipe
from hpe.data.records import Record
from hpe.data.shards import Sample, ShardInfo, write_shard
from hpe.pack.indexing import save_part
from hpe.pack.journal import JOURNAL, ShardJournal, journal
from hpe.pack.near_copies import difference_hashes, exact_digest, thinned
from hpe.pack.summary import SEVERAL_FACES, tally
from hpe.sources.base import Raw

if TYPE_CHECKING:
    from hpe.data.detect import FaceDetector

_FORMATS_KEPT: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION: Final = 0x0112
_DECIMALS: Final = 2


class RefusedError(ValueError):
    """This row cannot become a sample; the message says why."""


class StaleError(Exception):
    """The finished shard was made from other rows."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to make: its rows are pickled pairs of a number and a :class:`Raw`."""

    folder: Path
    name: str
    split: str
    recipe: Recipe
    rows: tuple[bytes, ...]


def make_shard(task: ShardTask) -> int:
    """Make the shard, unless it is finished already; returns its number of rows. The tar may not be on the disk yet.

    Raises:
        StaleError: a finished shard of this name was made from other rows.
        OSError: the shard cannot be written (disk full).
    """
    rows: list[tuple[int, Raw]] = [pickle.loads(row) for row in task.rows]  # noqa: S301 (from our own parent)
    digest, place = _digest(task, rows), journal(task.folder, task.name)
    done = ShardJournal.load(place)
    if done is not None:
        if done.digest != digest:
            raise StaleError(task.name)
        if done.shard is None or _whole(task.folder, done.shard):
            if done.shard is not None:  # after a power cut its index may be damaged
                save_part(task.folder / JOURNAL, task.folder / task.name, aside_unsynced)
            return len(rows)
    refused: list[tuple[int, str, str]] = []
    counts: Counter[str] = Counter()
    known: list[tuple[int, str, int | None, str | None, str]] = []
    few: list[UInt8[np.ndarray, "rows columns"]] = []

    def samples() -> Iterator[Sample]:
        for number, raw in rows:
            try:
                made = finish(raw, task.recipe, task.split)
            except RefusedError as reason:
                refused.append((number, raw.record.source or raw.key, str(reason)))
                continue
            counts.update(made.counts)
            record = made.sample.record
            known.append((number, raw.key, record.emotion, record.subject, made.exact.hex()))
            few.append(made.few)
            yield made.sample

    # Unsynced: whoever takes the result waits for the disk, while the next shard is made here.
    shard = write_shard(task.folder / task.name, task.split, samples(), place=aside_unsynced)
    # The journal last: where it exists, the tar and its index are whole, as long as the machine has power.
    if shard.samples:
        save_part(task.folder / JOURNAL, task.folder / task.name, aside_unsynced)
    else:
        (task.folder / task.name).unlink()
    entries = [(*one, near.hex()) for one, near in zip(known, difference_hashes(few), strict=True)]
    ShardJournal(digest, shard if shard.samples else None, refused, counts, entries).save(place)
    return len(rows)


def fingerprints(recipe: Recipe, rows: tuple[bytes, ...]) -> list[tuple[int, bytes, bytes]]:
    """Of each row that can become a sample: its number, and its exact and near hash."""
    found: list[tuple[int, FinishedSample]] = []
    for number, raw in map(pickle.loads, rows):
        try:
            made = finish(raw, recipe, "train")
        except RefusedError:
            continue
        # Without the picture: these are many.
        found.append((number, replace(made, sample=replace(made.sample, image=b""))))
    near = difference_hashes([made.few for _, made in found])
    return [(number, made.exact, its) for (number, made), its in zip(found, near, strict=True)]


def _digest(task: ShardTask, rows: list[tuple[int, Raw]]) -> str:
    # Of keys and labels, not of the pictures: to read those again would take as long as to make the shard.
    digest = hashlib.sha256(repr((task.name, task.split, task.recipe)).encode())
    for number, raw in rows:
        digest.update(b"%d %s " % (number, raw.key.encode()))
        digest.update(raw.record.to_json())
    return digest.hexdigest()


def _whole(folder: Path, shard: ShardInfo) -> bool:
    try:
        with open_regular(folder / shard.name) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A finished sample, its digest, what its near hash is made of, and the names to count it under
    (:func:`hpe.pack.summary.tally`)."""

    sample: Sample
    exact: bytes
    few: UInt8[np.ndarray, "rows columns"]
    counts: list[str]


def finish(raw: Raw, recipe: Recipe, split: str) -> FinishedSample:
    """Read, decode, crop, resize and encode one picture; box and landmarks move with it.

    Raises:
        RefusedError: the picture cannot be read, decoded or cropped, or anything else is wrong with this row.
    """
    try:
        made = _finish(raw, recipe, split)
    except (RefusedError, UserError):
        raise
    except Exception as error:  # one row must not end the job
        raise RefusedError(f"cannot be made: {type(error).__name__}: {_reason(error)}") from error
    if problems := made.sample.record.problems():
        raise RefusedError(f"after the crop: {'; '.join(problems)}")
    return made


def _finish(raw: Raw, recipe: Recipe, split: str) -> FinishedSample:
    try:
        data = raw.read()
    except Exception as error:  # whatever a foreign library raises for a damaged row
        raise RefusedError(f"cannot be read: {_reason(error)}") from error
    try:
        picture = decode_rgb(data, max_pixels=recipe.max_pixels)
    except (ValueError, MemoryError) as error:
        raise RefusedError(_reason(error)) from error
    height, width = picture.shape[:2]
    overlap = [] if raw.record.box is None else [f"has/{_inside(raw.record.box, width, height)}"]
    several: list[str] = []
    if recipe.crop is None:
        box = None
        image, extension = _kept(data, picture)
        green = picture[..., 1]
    else:
        box, several = _crop_box(raw.record, picture, recipe.crop, recipe.detector)
        try:
            stored = crop_resize(picture, box, recipe.size)
        except (ValueError, MemoryError) as error:
            raise RefusedError(_reason(error)) from error
        green = stored[..., 1]  # for the near hash: of the three colours the nearest to brightness
        image, extension = encoded(stored, recipe), "jpg"
    sample = Sample(raw.key, image, extension, _moved(raw.record, split, box, recipe.size))
    return FinishedSample(
        sample,
        exact_digest(image),
        thinned(green),
        tally(sample.record, extension, width, height) + overlap + several,
    )


def encoded(stored: RGBImage, recipe: Recipe) -> bytes:
    """A picture of the recipe's size as the shards hold it."""
    return encode_jpeg(to_grey(stored) if recipe.grey else stored, recipe.quality)


def _inside(box: Box, width: int, height: int) -> str:
    """How a face box lies in its picture, in words for ``summary.md``.

    Raises:
        RefusedError: it has no area, its centre is outside the picture, or it is far larger than the picture.
    """
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise RefusedError(f"box {box_text(box)} has no positive width and height")
    if not (0 <= x0 + x1 <= 2 * width and 0 <= y0 + y1 <= 2 * height):
        raise RefusedError(f"box {box_text(box)} lies outside the picture ({width} × {height})")
    if max(x1 - x0, y1 - y0) > LARGEST_CROP * max(width, height):
        raise RefusedError(f"box {box_text(box)} is far larger than the picture ({width} × {height})")
    within = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    return "box within the picture" if within else "box over the border"


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _crop_box(record: Record, picture: RGBImage, rule: CropRule, detector: str) -> tuple[Box, list[str]]:
    """The box to cut out, and the names to count the picture under."""
    height, width = picture.shape[:2]
    if rule.shape == "none":
        return (0.0, 0.0, float(width), float(height)), []
    if rule.basis != "detector":
        return rule.apply(labelled_box(record, rule)), []
    from hpe.data.detect import the_face

    faces = _detector(detector).detect([picture])[0]
    face = the_face(faces, width, height)
    if face is None:
        raise RefusedError(f"no face found by {detector}")
    return rule.apply(face[0]), [SEVERAL_FACES] * (len(faces) > 1)


def labelled_box(record: Record, rule: CropRule) -> Box:
    """The box that a rule of ``box`` or ``landmarks`` starts from.

    Raises:
        RefusedError: the record has none.
    """
    if rule.basis == "box":
        if record.box is None:
            raise RefusedError(f"no box: the crop rule {rule} needs one")
        return record.box
    if record.landmarks is None:
        raise RefusedError(f"no landmarks: the crop rule {rule} needs them")
    try:
        return box_around(np.asarray(record.landmarks, float))
    except ValueError as error:
        raise RefusedError(str(error)) from error


@lru_cache(maxsize=1)
def _detector(name: str) -> "FaceDetector":
    """Built once per process: building one takes as long as detecting some hundred faces."""
    from hpe.data.detect import open_detector

    return open_detector(name)


def _moved(record: Record, split: str, box: Box | None, size: int) -> Record:
    if box is None:
        return replace(record, split=split)
    inner, points = record.box, record.landmarks
    if inner is not None:
        x0, y0, x1, y1 = (round(side, _DECIMALS) for side in map_box(inner, box, size))
        inner = (x0, y0, x1, y1)
    if points is not None:
        raw = np.asarray(points, float).reshape(-1, 2)
        moved = np.round(map_points(raw, box, size), _DECIMALS)
        moved[(raw == -1).all(1)] = -1  # the mark of a point that is not visible
        points = tuple(map(tuple, moved.tolist()))
    return replace(record, split=split, box=inner, landmarks=points)


def _kept(data: bytes, picture: RGBImage) -> tuple[bytes, str]:
    """The original bytes, where every decoder gives the same picture from them; otherwise a PNG of the picture.

    Not the same everywhere: other modes, transparency, animations, and an EXIF orientation, which some apply.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Pillow.open(io.BytesIO(data), formats=tuple(_FORMATS_KEPT)) as opened:
                single = getattr(opened, "n_frames", 1) == 1
                plain = opened.mode in ("L", "RGB") and "transparency" not in opened.info
                if plain and single and opened.getexif().get(_ORIENTATION, 1) == 1:
                    return data, _FORMATS_KEPT[opened.format or ""]
        except Exception as error:  # damaged metadata; the pixels were read, and the PNG holds those
            del error
    out = io.BytesIO()
    Pillow.fromarray(picture).save(out, "PNG")
    return out.getvalue(), "png"
