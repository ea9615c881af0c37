"""``hpe landmarks extract``: face points of pictures or shards into Parquet, in parallel, resumable.

``OUT/faces-000000.parquet`` holds one row per face (``status`` ok), and one per picture without a face (``no face``,
or why it is no picture). The angles and the subject of a picture are those of one face (``labelled``); its other faces
have none. ``OUT/extract.json`` holds the settings and the number of pictures to read, and at the end the counts and
what failed: without the counts the extraction is unfinished. A part that exists is kept, unless its pictures have
changed (its metadata hold a digest of names, sizes and times); parts that the source no longer has are removed.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpe.core.devices import cores
from hpe.core.errors import UserError
from hpe.core.files import aside, make_folder, short_name, write_json
from hpe.core.progress import progress
from hpe.data.crops import Box, box_around
from hpe.data.image_files import Other, in_words, walk
from hpe.data.images import MAX_PIXELS, DecodeError, decode_rgb
from hpe.data.records import Record
from hpe.data.shard_files import packed_shards
from hpe.data.shard_reader import open_tar
from hpe.data.shards import MANIFEST
from hpe.landmarks.disk import read_object, writing
from hpe.landmarks.mesh import VERSION, MeshFace, MeshPool, Which, group_detector, named_model
from hpe.landmarks.table import SUMMARY, TOTAL
from hpe.sources.base import shown

FORMAT: Final = "hpe-landmarks/4"
NO_FACE: Final = "no face"
"""Status of a picture in which the mesh finds no face: a result, not a failure."""
_NO_PICTURE: Final = "not a picture: "
_PART: Final = 256
"""Picture files in one table: what is read and done again after a kill."""
_DIGEST: Final = b"hpe.pictures"
_SCHEMA: Final = pa.schema(
    [("key", pa.string()), ("status", pa.string()), ("face", pa.int16()), ("labelled", pa.bool_()),
     ("views", pa.int16()), ("spread", pa.float32()), ("yaw", pa.float32()), ("pitch", pa.float32()),
     ("roll", pa.float32()), ("subject", pa.string()), ("points", pa.list_(pa.float32()))]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InputImage:
    """An encoded picture with its labels."""

    key: str
    read: Callable[[], bytes]
    record: Record


class _Read(Protocol):
    """Yields the pictures of these rows of a part, or all; raises :class:`DamagedError`."""

    def __call__(self, rows: Iterable[int] | None = None) -> Iterator[InputImage]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures that are read together.

    Attributes:
        name: of the shard; a number for a part of picture files.
        digest: changes when the pictures do.
        count: how many there are; of a shard, by its manifest.
        read: some of the pictures, or all. Their bytes are read when they are asked for.
    """

    name: str
    digest: str
    count: int
    read: _Read


class DamagedError(UserError):
    """A shard that cannot be read."""


@dataclass(frozen=True, slots=True)
class InputImages:
    """The input of an extraction.

    Attributes:
        parts: one per shard, or one per 256 picture files.
        passed_over: how many files are no pictures, by kind.
    """

    parts: list[Part]
    passed_over: Counter[str]

    @property
    def count(self) -> int:
        """How many pictures there are, as far as that is known beforehand."""
        return sum(part.count for part in self.parts)


def input_images(path: Path) -> InputImages:
    """The pictures of a file, a folder, or a folder of shards. What cannot be read in a folder is a picture that fails.

    Raises:
        UserError: neither pictures nor shards.
    """
    if (path / MANIFEST).is_file():
        parts = [
            Part(
                shard.path.stem,
                _digest([shard.path], [str(shard.sha256)]),
                shard.samples or 0,
                partial(_of_shard, shard.path),
            )
            for shard in packed_shards(path)
        ]
        return InputImages(parts, Counter())
    found: list[Path | Other] = [path] if path.is_file() else list(walk(path))
    passed = Counter(one.kind for one in found if isinstance(one, Other) and not one.lost)
    taken = [one for one in found if isinstance(one, Path) or one.lost]
    if not any(isinstance(one, Path) for one in taken):
        raise UserError(
            f"{path}: no pictures and no shards; expected pictures or an `hpe pack` folder"
            + (f", found {in_words(passed)}" if passed else "")
        )
    files = [one if isinstance(one, Path) else one.path for one in taken]
    pairs = list(zip(_keys(files, path if path.is_dir() else path.parent), taken, strict=True))
    parts = [
        Part(
            f"{start // _PART:06d}",
            _digest([_path(one) for _, one in part], [key for key, _ in part]),
            len(part),
            partial(_of_files, part),
        )
        for start in range(0, len(pairs), _PART)
        for part in [pairs[start : start + _PART]]
    ]
    return InputImages(parts, passed)


def _path(one: Path | Other) -> Path:
    return one if isinstance(one, Path) else one.path


def _of_files(files: Sequence[tuple[str, Path | Other]], rows: Iterable[int] | None = None) -> Iterator[InputImage]:
    for row in range(len(files)) if rows is None else rows:
        yield _input_image(*files[row])


def _input_image(key: str, one: Path | Other) -> InputImage:
    if isinstance(one, Path):
        return InputImage(key, one.read_bytes, _record_beside(one))

    def fails() -> bytes:
        raise OSError(one.kind)

    return InputImage(key, fails, Record())


def _keys(files: Sequence[Path], root: Path) -> list[str]:
    """Paths inside the root without suffix; with it where two files would share a key."""
    names = [shown(file.relative_to(root)) for file in files]  # as text that Parquet takes, whatever the bytes
    stems = [str(Path(name).with_suffix("")) for name in names]
    often, whole = Counter(stems), set(names)
    return [stem if often[stem] == 1 and stem not in whole else name for stem, name in zip(stems, names, strict=True)]


def _digest(files: Sequence[Path], names: Sequence[str]) -> str:
    digest = sha256()
    for file, name in zip(files, names, strict=True):
        try:
            known = file.stat()
            size, when = known.st_size, known.st_mtime_ns
        except OSError:
            size, when = -1, -1
        digest.update(f"{name!r} {size} {when}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _of_shard(path: Path, rows: Iterable[int] | None = None) -> Iterator[InputImage]:
    try:
        shard = open_tar(path)
        if shard.damage:
            raise ValueError(shard.damage)
        wanted = list(range(len(shard)) if rows is None else rows)
        if beyond := [row for row in wanted if row >= len(shard)]:
            raise ValueError(f"{len(shard):,} samples; its manifest lists {max(beyond) + 1:,} or more")
        records = [shard.record(row) for row in wanted]
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from error
    for row, record in zip(wanted, records, strict=True):
        # The bytes stay in the mapped file until they are asked for: a shard may be larger than the memory.
        yield InputImage(shard.keys[row], lambda row=row: bytes(shard.image(row)), record)


def _record_beside(file: Path) -> Record:
    """The angles of ``<stem>.mat`` (AFLW2000, 300W-LP) beside the picture, if it exists and can be read.

    The subject of a picture of 300W-LP is the photo that it is a view of, as in shards.
    """
    from hpe.sources.faces3d import mat_arrays, photo_of

    photo = photo_of(file.stem)
    try:
        pose = mat_arrays(file.with_suffix(".mat"), ("Pose_Para",))["Pose_Para"].ravel()
    except (OSError, ValueError, KeyError):
        return Record(subject=photo)
    if len(pose) < 3:
        return Record(subject=photo)
    pitch, yaw, roll = (math.degrees(angle) for angle in pose[:3])
    return Record(yaw=yaw, pitch=pitch, roll=roll, subject=photo)


def extract(
    source: Path,
    out: Path,
    *,
    python: Path,
    views: str = "many",
    which: Which = "largest",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Find the faces of every picture and write them.

    Args:
        source: a picture, a folder of pictures, or a folder of shards.
        out: folder to write to; finished parts in it are kept.
        python: interpreter with the mesh (:func:`hpe.landmarks.mesh.interpreter`).
        views: ``plain``, ``mirror`` or ``many``.
        which: of several faces: see :class:`hpe.landmarks.mesh.MeshPool`.
        workers: processes; one per core by default.
        max_pixels: larger pictures are not read.

    Returns:
        The summary that ``extract.json`` holds.

    Raises:
        UserError: nothing to read, no mesh, OUT was made with other settings, or OUT cannot be written to.
    """
    parts = (pictures := input_images(source)).parts
    _check_settings(out, settings := _settings(source, views, which, max_pixels))
    todo = [part for part in parts if _digest_of(_table(out, part.name)) != part.digest]
    workers = workers or cores()
    begun, done, skipped = time.monotonic(), 0, dict[str, str]()
    with ExitStack() as stack:
        detector = settings["detector"]
        mesh = stack.enter_context(closing(MeshPool(python, views, which, detector=detector))) if todo else None
        stack.enter_context(writing(out))
        make_folder(out, str(out))
        _remove_others(out, parts)
        if todo or not (out / SUMMARY).is_file():
            # Without the counts of the end: until those are there, what is here is not all.
            write_json(out / SUMMARY, {**settings, TOTAL: pictures.count})
        if mesh is not None:
            total = pictures.count if len(todo) == len(parts) else None
            bar = stack.enter_context(progress("landmarks", total or None, unit="images"))
            rows = partial(_rows, mesh=mesh, max_pixels=max_pixels)
            done, skipped = _write_parts(todo, out, rows, workers, bar.advance)
        summary = {
            **settings,
            TOTAL: pictures.count,
            **_counts([_table(out, part.name) for part in parts if part.name not in skipped]),
            "passed_over": dict(sorted(pictures.passed_over.items())),
            "skipped_shards": skipped,
        }
        if done:
            rate = round(done / (time.monotonic() - begun), 1)
            summary |= {"images_per_second": rate, "workers": workers}
        if mesh is not None and mesh.without_points:
            summary["detected_without_points"] = mesh.without_points
        write_json(out / SUMMARY, summary)
    return summary


def _remove_others(out: Path, parts: Sequence[Part]) -> None:
    """Remove the tables of parts that the input had once."""
    for surplus in set(out.glob("faces-*.parquet")) - {_table(out, part.name) for part in parts}:
        surplus.unlink()


def _settings(source: Path, views: str, which: Which, max_pixels: int) -> dict[str, Any]:
    """What decides the faces, as ``extract.json`` records it: defaults too, so that a return to one is noticed."""
    model = named_model()
    mesh = VERSION if model is None else f"{VERSION} with {model.name} {sha256(model.read_bytes()).hexdigest()}"
    return {
        "format": FORMAT,
        "source": str(source.resolve()),
        "mesh": mesh,
        "views": views,
        "which": which,
        "max_pixels": max_pixels,
        "detector": group_detector() if which == "all" else None,
    }


def _table(out: Path, name: str) -> Path:
    return out / f"{short_name(f'faces-{name}', 240)}.parquet"


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / SUMMARY
    if not path.is_file():
        return
    old = read_object(path)
    if (version := old.get("format")) != FORMAT:  # its tables have other columns, and its settings other names
        raise UserError(f"{out}: made by another version of hpe ({version}, now {FORMAT}); choose another folder")
    changed = [
        f"{name} was {old.get(name)!r}, is {value!r}" for name, value in settings.items() if old.get(name) != value
    ]
    if changed:
        raise UserError(f"{out}: made with other settings ({'; '.join(changed)}); choose another folder")


def _digest_of(table: Path) -> str | None:
    """Digest of a finished part's pictures; None: there is no such part, or it is damaged."""
    try:
        found = (pq.read_schema(table).metadata or {}).get(_DIGEST, b"")
    except (OSError, pa.ArrowException):
        return None
    return found.decode("ascii", "replace")


def _write_parts(
    parts: Sequence[Part],
    out: Path,
    rows_of: Callable[[InputImage], list[dict[str, Any]]],
    workers: int,
    advance: Callable[[int], None],
) -> tuple[int, dict[str, str]]:
    """Write the table of each part; how many pictures were read, and why parts were skipped."""
    done, skipped = 0, dict[str, str]()
    with ThreadPoolExecutor(workers) as pool:
        for part in parts:
            try:
                done += _write_part(_table(out, part.name), part, rows_of, pool, advance)
            except DamagedError as error:
                _table(out, part.name).unlink(missing_ok=True)
                skipped[part.name] = str(error)
    return done, skipped


def _write_part(
    path: Path,
    part: Part,
    rows_of: Callable[[InputImage], list[dict[str, Any]]],
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> int:
    rows: list[dict[str, Any]] = []
    count = 0
    for found in pool.map(rows_of, part.read()):
        rows += found
        count += 1
        advance(1)
    with aside(path) as beside:
        schema = _SCHEMA.with_metadata({_DIGEST: part.digest.encode()})
        pq.write_table(pa.Table.from_pylist(rows, schema), beside, compression="zstd")
    return count


def _rows(picture: InputImage, mesh: MeshPool, max_pixels: int) -> list[dict[str, Any]]:
    record, key = picture.record, {"key": picture.key}
    labels = {name: getattr(record, name) for name in ("yaw", "pitch", "roll", "subject")}
    try:
        faces: Sequence[MeshFace] = mesh.find(decode_rgb(picture.read(), max_pixels=max_pixels))
    except (DecodeError, OSError, MemoryError) as error:
        why = (str(error) or type(error).__name__).removeprefix(_NO_PICTURE)
        return [{**key, **labels, "status": f"{_NO_PICTURE}{why}"}]
    if not faces:
        return [{**key, **labels, "status": NO_FACE}]
    whose = _labelled(faces, record)
    return [
        {**key, **(labels if row == whose else {}), "status": "ok", "face": row, "labelled": row == whose,
         "views": face.views, "spread": face.spread, "points": face.points.astype("float32").ravel()}
        for row, face in enumerate(faces)
    ]  # fmt: skip


def _labelled(faces: Sequence[MeshFace], record: Record) -> int | None:
    """Which face the record describes: the nearest to its landmarks or box, or the first where it has neither.

    None: no face lies there, so that all of them are other people's.
    """
    if (place := _place(record)) is None:
        return 0
    # Not by overlap: a box of the whole head, or of eyes and mouth only, shares little with that of the mesh.
    there = [row for row, face in enumerate(faces) if _holds(place, face.box) or _holds(face.box, place)]
    return min(there, key=lambda row: math.dist(_centre(faces[row].box), _centre(place)), default=None)


def _place(record: Record) -> Box | None:
    with suppress(ValueError):  # fewer than two landmarks in the picture, as in one that was cropped
        return box_around(np.asarray(record.landmarks or (), float).reshape(-1, 2))
    return record.box


def _holds(box: Box, other: Box) -> bool:
    """Whether the other box's centre lies in a box."""
    x, y = _centre(other)
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _counts(tables: Sequence[Path]) -> dict[str, Any]:
    with_face = faces = 0
    failed: dict[str, str] = {}
    for path in tables:
        table = pq.read_table(path, columns=["key", "status", "face"])
        for row in table.to_pylist():
            if row["status"] == "ok":
                faces += 1
                with_face += row["face"] == 0
            else:
                failed[row["key"]] = row["status"]
    without = sum(status == NO_FACE for status in failed.values())
    return {
        "images": with_face + len(failed),
        "images_with_a_face": with_face,
        "faces": faces,
        "images_without_a_face": without,
        "images_unreadable": len(failed) - without,
        "failed": failed,
    }
