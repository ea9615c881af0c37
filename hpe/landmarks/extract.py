"""``hpe landmarks extract``: face points of pictures or shards into Parquet, in parallel, resumable.

``OUT/faces-000000.parquet`` holds a row a face (``status`` ok), or one a picture without (``no face``, or why it
is no picture); ``OUT/extract.json`` holds the settings and, at the end, the counts and what failed. A part that
exists is not made again.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hpe.errors import UserError
from hpe.files import aside, write_json
from hpe.images import DecodeError, decode_rgb
from hpe.landmarks.mesh import VERSION, MeshFace, MeshPool, Which, named_model
from hpe.landmarks.topology import MESH468
from hpe.progress import progress
from hpe.records import Record
from hpe.shards import MANIFEST, Manifest, read_samples

FORMAT: Final = "hpe-landmarks/1"
SUMMARY: Final = "extract.json"
_PART: Final = 256
_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
_SCHEMA: Final = pa.schema(
    [("key", pa.string()), ("status", pa.string()), ("face", pa.int16()), ("views", pa.int16()),
     ("spread", pa.float32()), ("yaw", pa.float32()), ("pitch", pa.float32()), ("roll", pa.float32()),
     ("points", pa.list_(pa.float32(), MESH468.count * 3))]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture with what is known of it."""

    key: str
    read: Callable[[], bytes]
    record: Record


def pictures_of(path: Path) -> list[tuple[str, Callable[[], Iterator[Picture]]]]:
    """Parts of the input: a shard each, or up to 256 picture files each; name, and a function that reads it.

    Raises:
        UserError: neither pictures nor shards.
    """
    if (path / MANIFEST).is_file():
        shards = [path / shard.name for shard in Manifest.load(path).shards]
        return [(shard.stem, lambda shard=shard: _of_shard(shard)) for shard in shards]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{path}: no pictures and no shards; expected .jpg, .png, .webp files or an `hpe pack` folder")
    root = path if path.is_dir() else path.parent
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]
    return [(f"{row:06d}", lambda part=part: (_of_file(file, root) for file in part)) for row, part in enumerate(parts)]


def _of_shard(shard: Path) -> Iterator[Picture]:
    for sample in read_samples(shard):
        yield Picture(sample.key, lambda data=bytes(sample.image): data, sample.record)


def _of_file(file: Path, root: Path) -> Picture:
    return Picture(str(file.relative_to(root).with_suffix("")), file.read_bytes, _record_beside(file))


def _record_beside(file: Path) -> Record:
    """The angles of ``<stem>.mat`` (AFLW2000, 300W-LP), where there is one that can be read."""
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
    source: Path, out: Path, *, python: Path, views: str = "many", which: Which = "largest", workers: int | None = None
) -> dict[str, Any]:
    """Find the faces of every picture and write them.

    Args:
        source: a picture, a folder of pictures, or a folder of shards.
        out: folder to write to; parts that are there are kept.
        python: interpreter with the mesh (:func:`hpe.landmarks.mesh.interpreter`).
        views: ``plain``, ``mirror`` or ``many``.
        which: which of several faces.
        workers: processes; all cores by default.

    Returns:
        The summary that ``extract.json`` holds.

    Raises:
        UserError: nothing to read, or OUT was made with other settings.
    """
    parts = pictures_of(source)
    out.mkdir(parents=True, exist_ok=True)
    model = named_model()
    mesh_name = VERSION if model is None else f"{VERSION} with {model.name} {sha256(model.read_bytes()).hexdigest()}"
    settings = {"format": FORMAT, "source": str(source.resolve()), "mesh": mesh_name, "views": views, "which": which}
    _settle(out, settings)
    count = workers or os.cpu_count() or 1
    todo = [(name, read) for name, read in parts if not (out / f"faces-{name}.parquet").is_file()]
    begun, done = time.monotonic(), 0
    if todo:
        with (
            closing(MeshPool(python, views, which)) as mesh,
            progress("landmarks", None, unit="images") as bar,
            ThreadPoolExecutor(count) as pool,
        ):
            for name, read in todo:
                done += _write_part(out / f"faces-{name}.parquet", read(), mesh, pool, bar.advance)
    summary = {**settings, **_counts(out, [name for name, _ in parts])}
    if done:
        summary["images_per_second"] = round(done / (time.monotonic() - begun), 1)
        summary["workers"] = count
    write_json(out / SUMMARY, summary)
    return summary


def _settle(out: Path, settings: dict[str, str]) -> None:
    path = out / SUMMARY
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {old.get(name)!r}, is {value!r}" for name, value in settings.items() if old.get(name) != value
        ]
        if changed:
            raise UserError(f"{out}: made with other settings ({'; '.join(changed)}); give another folder")
    else:
        write_json(path, settings)


def _write_part(
    path: Path,
    pictures: Iterator[Picture],
    mesh: MeshPool,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> int:
    rows: list[dict[str, Any]] = []
    count = 0
    for found in pool.map(partial(_rows, mesh=mesh), pictures):
        rows += found
        count += 1
        advance(1)
    with aside(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), part, compression="zstd")
    return count


def _rows(picture: Picture, mesh: MeshPool) -> list[dict[str, Any]]:
    record = picture.record
    known = {"key": picture.key, "yaw": record.yaw, "pitch": record.pitch, "roll": record.roll}
    try:
        faces: Sequence[MeshFace] = mesh.find(decode_rgb(picture.read()))
    except (DecodeError, OSError) as error:
        return [{**known, "status": f"not a picture: {error}"}]
    if not faces:
        return [{**known, "status": "no face"}]
    return [
        {**known, "status": "ok", "face": row, "views": face.views, "spread": face.spread,
         "points": face.points.astype("float32").ravel()}
        for row, face in enumerate(faces)
    ]  # fmt: skip


def _counts(out: Path, names: list[str]) -> dict[str, Any]:
    tables = [pq.read_table(out / f"faces-{name}.parquet", columns=["key", "status"]) for name in names]
    pairs = [
        (key, status)
        for table in tables
        for key, status in zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
    ]
    found = {key for key, status in pairs if status == "ok"}
    failed = {key: status for key, status in pairs if status != "ok"}
    return {
        "images": len(found) + len(failed),
        "images_with_a_face": len(found),
        "faces": sum(status == "ok" for _, status in pairs),
        "images_without_a_face": len(failed),
        "failed": failed,
    }
