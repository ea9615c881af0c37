"""``hpe landmarks extract``: face points of pictures or shards into Parquet, in parallel, resumable.

``OUT/faces-000000.parquet`` holds one row per face (``status`` ok), and one per picture without a face (``no face``,
or why it is no picture); ``OUT/extract.json`` holds the settings and, at the end, the counts and what failed. A part
that exists is kept, unless its pictures have changed (its metadata hold a digest of names, sizes and times); parts
that the source no longer has are removed.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hpe.core.distributed import cores
from hpe.core.errors import UserError
from hpe.core.files import aside, make_folder, write_json
from hpe.core.progress import progress
from hpe.data.images import DecodeError, decode_rgb
from hpe.data.records import Record
from hpe.data.shard_files import packed_shards
from hpe.data.shard_reader import read_samples
from hpe.data.shards import MANIFEST
from hpe.landmarks.disk import read_object, writing
from hpe.landmarks.mesh import VERSION, MeshFace, MeshPool, Which, named_model
from hpe.landmarks.table import SUFFIXES

FORMAT: Final = "hpe-landmarks/3"
SUMMARY: Final = "extract.json"
NO_FACE: Final = "no face"
"""Status of a picture in which the mesh finds no face: a result, not a failure."""
_PART: Final = 256
"""Picture files in one table: what is read and done again after a kill."""
_DIGEST: Final = b"hpe.pictures"
_SCHEMA: Final = pa.schema(
    [("key", pa.string()), ("status", pa.string()), ("face", pa.int16()), ("views", pa.int16()),
     ("spread", pa.float32()), ("yaw", pa.float32()), ("pitch", pa.float32()), ("roll", pa.float32()),
     ("subject", pa.string()), ("points", pa.list_(pa.float32()))]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture with its labels."""

    key: str
    read: Callable[[], bytes]
    record: Record


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures that are read together.

    Attributes:
        name: of the shard; a number for a part of picture files.
        digest: changes when the pictures do.
        read: yields the pictures; raises :class:`DamagedError`.
    """

    name: str
    digest: str
    read: Callable[[], Iterator[Picture]]


class DamagedError(UserError):
    """A shard that cannot be read."""


def pictures_of(path: Path) -> list[Part]:
    """Parts of the input: one per shard, or one per 256 picture files.

    Raises:
        UserError: neither pictures nor shards.
    """
    if (path / MANIFEST).is_file():
        return [
            Part(shard.path.stem, _digest([shard.path], [str(shard.sha256)]), partial(_of_shard, shard.path))
            for shard in packed_shards(path)
        ]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path}: no pictures and no shards; expected .jpg, .png, .webp files or an `hpe pack` folder")
    pairs = list(zip(_keys(files, path if path.is_dir() else path.parent), files, strict=True))
    parts = [pairs[start : start + _PART] for start in range(0, len(pairs), _PART)]
    return [
        Part(
            f"{row:06d}",
            _digest([file for _, file in part], [key for key, _ in part]),
            lambda part=part: (Picture(key, file.read_bytes, _record_beside(file)) for key, file in part),
        )
        for row, part in enumerate(parts)
    ]


def _keys(files: Sequence[Path], root: Path) -> list[str]:
    """Paths inside the root without suffix; with it where two files would share a key."""
    names = [str(file.relative_to(root)) for file in files]
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


def _of_shard(shard: Path) -> Iterator[Picture]:
    try:
        samples = list(read_samples(shard))
    except OSError as error:
        raise DamagedError(f"{shard}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DamagedError(f"{shard}: {str(error).removeprefix(f'{shard}: ')}") from error
    for sample in samples:
        yield Picture(sample.key, lambda data=bytes(sample.image): data, sample.record)


def _record_beside(file: Path) -> Record:
    """The angles of ``<stem>.mat`` (AFLW2000, 300W-LP) beside the picture, if it exists and can be read."""
    from hpe.sources.faces3d import mat_arrays

    try:
        pose = mat_arrays(file.with_suffix(".mat"), ("Pose_Para",))["Pose_Para"].ravel()
    except (OSError, ValueError, KeyError):
        return Record()
    if len(pose) < 3:
        return Record()
    pitch, yaw, roll = (math.degrees(angle) for angle in pose[:3])
    return Record(yaw=yaw, pitch=pitch, roll=roll)


def extract(
    source: Path,
    out: Path,
    *,
    python: Path,
    views: str = "many",
    which: Which = "largest",
    workers: int | None = None,
) -> dict[str, Any]:
    """Find the faces of every picture and write them.

    Args:
        source: a picture, a folder of pictures, or a folder of shards.
        out: folder to write to; finished parts in it are kept.
        python: interpreter with the mesh (:func:`hpe.landmarks.mesh.interpreter`).
        views: ``plain``, ``mirror`` or ``many``.
        which: of several faces: see :class:`hpe.landmarks.mesh.MeshPool`.
        workers: processes; one per core by default.

    Returns:
        The summary that ``extract.json`` holds.

    Raises:
        UserError: nothing to read, no mesh, OUT was made with other settings, or OUT cannot be written to.
    """
    parts = pictures_of(source)
    model = named_model()
    mesh_name = VERSION if model is None else f"{VERSION} with {model.name} {sha256(model.read_bytes()).hexdigest()}"
    settings = {"format": FORMAT, "source": str(source.resolve()), "mesh": mesh_name, "views": views, "which": which}
    _check_settings(out, settings)
    count = workers or cores()
    todo = [part for part in parts if _digest_of(_table(out, part.name)) != part.digest]
    begun, done = time.monotonic(), 0
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        mesh = stack.enter_context(closing(MeshPool(python, views, which))) if todo else None
        stack.enter_context(writing(out))
        make_folder(out, str(out))
        if not (out / SUMMARY).is_file():
            write_json(out / SUMMARY, settings)
        for surplus in set(out.glob("faces-*.parquet")) - {_table(out, part.name) for part in parts}:
            surplus.unlink()
        if mesh is not None:
            bar = stack.enter_context(progress("landmarks", None, unit="images"))
            pool = stack.enter_context(ThreadPoolExecutor(count))
            for part in todo:
                try:
                    done += _write_part(_table(out, part.name), part, mesh, pool, bar.advance)
                except DamagedError as error:
                    _table(out, part.name).unlink(missing_ok=True)
                    skipped[part.name] = str(error)
        summary = {**settings, **_counts([_table(out, part.name) for part in parts if part.name not in skipped])}
        summary["skipped_shards"] = skipped
        if done:
            summary["images_per_second"] = round(done / (time.monotonic() - begun), 1)
            summary["workers"] = count
        write_json(out / SUMMARY, summary)
    return summary


def _table(out: Path, name: str) -> Path:
    return out / f"faces-{name}.parquet"


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / SUMMARY
    if not path.is_file():
        return
    old = read_object(path)
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


def _write_part(
    path: Path,
    part: Part,
    mesh: MeshPool,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> int:
    rows: list[dict[str, Any]] = []
    count = 0
    for found in pool.map(partial(_rows, mesh=mesh), part.read()):
        rows += found
        count += 1
        advance(1)
    with aside(path) as beside:
        schema = _SCHEMA.with_metadata({_DIGEST: part.digest.encode()})
        pq.write_table(pa.Table.from_pylist(rows, schema), beside, compression="zstd")
    return count


def _rows(picture: Picture, mesh: MeshPool) -> list[dict[str, Any]]:
    record = picture.record
    known = {"key": picture.key, "yaw": record.yaw, "pitch": record.pitch, "roll": record.roll,
             "subject": record.subject}  # fmt: skip
    try:
        faces: Sequence[MeshFace] = mesh.find(decode_rgb(picture.read()))
    except (DecodeError, OSError) as error:
        return [{**known, "status": f"not a picture: {error}"}]
    if not faces:
        return [{**known, "status": NO_FACE}]
    return [
        {**known, "status": "ok", "face": row, "views": face.views, "spread": face.spread,
         "points": face.points.astype("float32").ravel()}
        for row, face in enumerate(faces)
    ]  # fmt: skip


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
