"""Faces as arrays: points, known angles, and which faces cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from jaxtyping import Bool, Float

from hpe.core.errors import UserError
from hpe.data.arrays import read_npz
from hpe.data.image_files import SUFFIXES
from hpe.landmarks.disk import read_object
from hpe.landmarks.topology import Topology, topology_of

LIMIT_DEGREES: Final = 99.0
"""Hopenet's range: AFLW2000 has 31 faces beyond it, whose angles are fitting failures (up to −972°)."""
SUMMARY: Final = "extract.json"
"""What ``hpe landmarks extract`` writes beside its tables."""
TOTAL: Final = "images_to_read"
"""In it from the start on: how many images the source holds."""
NO_ANGLES: Final = "no angles"
"""A reason to drop a face, see :func:`usable`."""
NOT_LABELLED: Final = "not the labelled face of its picture"
"""Another reason."""
Dimensions = Literal["3d", "2d"]


@dataclass(frozen=True)
class Faces:
    """Faces with points.

    Attributes:
        keys: one per face.
        points: picture axes (x right, y down, z towards the viewer), pixels.
        angles: yaw, pitch, roll in degrees; NaN if unknown.
        subjects: the person of each face, or the photo that several faces are views of; None if unknown.
        labelled: whether the labels of a face's picture are those of this face; None: of every face.
    """

    keys: tuple[str, ...]
    points: Float[np.ndarray, "faces points 3"]
    angles: Float[np.ndarray, "faces 3"]
    subjects: tuple[str | None, ...] | None = None
    labelled: Bool[np.ndarray, " faces"] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def topology(self) -> Topology:
        """Which points these are."""
        return topology_of(self.points.shape[1])

    def take(self, rows: Bool[np.ndarray, " faces"]) -> Self:
        """The faces of a mask."""
        mask = np.asarray(rows).tolist()
        return type(self)(
            tuple(compress(self.keys, mask)),
            self.points[rows],
            self.angles[rows],
            None if self.subjects is None else tuple(compress(self.subjects, mask)),
            None if self.labelled is None else self.labelled[rows],
        )


def usable(faces: Faces, *, limit_degrees: float = LIMIT_DEGREES) -> tuple[Faces, dict[str, int]]:
    """Faces with finite, distinct points and known angles within the limit, and how many were dropped by reason.

    ``limit_degrees=math.inf`` keeps the outliers.
    """
    finite = np.asarray(np.isfinite(faces.points).all((1, 2)))
    extent = np.ptp(np.where(finite[:, None, None], faces.points, 0.0), axis=1)[:, :2].max(1)
    known = np.asarray(np.isfinite(faces.angles).all(1))
    labelled = np.ones_like(known) if faces.labelled is None else faces.labelled
    inside = (np.abs(np.where(known[:, None], faces.angles, 0.0)) <= limit_degrees).all(1)
    reasons = {
        "points that are not finite": ~finite,
        "all points in one place": finite & (extent <= 0),
        NOT_LABELLED: finite & (extent > 0) & ~labelled,
        NO_ANGLES: finite & (extent > 0) & labelled & ~known,
        f"an angle beyond ±{limit_degrees:g}°": finite & (extent > 0) & labelled & known & ~inside,
    }
    kept = ~np.logical_or.reduce(list(reasons.values()))
    return faces.take(kept), {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


def read_faces(path: Path, labels: Path | None = None) -> Faces:
    """Faces of an ``hpe landmarks extract`` folder, or of an ``.npz`` with ``stems`` and ``points``.

    Args:
        path: the folder or the file; in an ``.npz`` z grows away from the viewer, as MediaPipe gives it.
        labels: a folder with the angles in ``<stem>.mat`` (``Pose_Para``), used instead of the table's own, for the
            labelled face of each picture.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    if path.is_dir():
        faces = _read_parquet(path)
    elif path.suffix == ".npz":
        faces = _read_npz(path)
    else:
        raise UserError(
            f"{path}: expected a folder of `hpe landmarks extract`, or an .npz file with the arrays stems and points"
        )
    topology_of(faces.points.shape[1])
    if labels is None:
        return faces
    angles = np.full((len(faces), 3), np.nan)
    mine = np.ones(len(faces), bool) if faces.labelled is None else faces.labelled
    angles[mine] = angles_of_mats(labels, faces.take(mine).keys)
    return replace(faces, angles=angles)


def _read_npz(path: Path) -> Faces:
    try:
        with path.open("rb") as stream:
            stems, points = read_npz(stream, ("stems", "points"))
        points = points.astype(float)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise UserError(f"{path}: not an .npz file with the arrays stems and points: {error}") from error
    if stems.ndim != 1:
        raise UserError(f"{path}: stems of shape {stems.shape}; expected one name per face")
    if points.ndim != 3 or points.shape[2] != 3 or len(points) != len(stems):
        raise UserError(f"{path}: points of shape {points.shape} for {len(stems)} stems; expected faces × points × 3")
    keys = tuple(map(str, stems))
    unknown = np.full((len(keys), 3), np.nan)
    return Faces(keys, points * (1.0, 1.0, -1.0), unknown, _subjects(keys))


def _read_parquet(folder: Path) -> Faces:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("faces-*.parquet"))
    if not parts:
        raise UserError(f"{folder}: no faces-*.parquet here; expected a folder that `hpe landmarks extract` wrote")
    try:
        table = pa.concat_tables([pq.read_table(part) for part in parts])
        table = table.filter(table["status"].to_numpy() == "ok")
        if not len(table):
            raise UserError(f"{folder}: no face was found in any picture")
        lengths = pc.call_function("list_value_length", [table["points"]]).to_numpy()
        if (lengths != lengths[0]).any():  # also NaN, of a face without points
            raise ValueError("faces with different numbers of points")
        flat = table["points"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        points = flat.astype(float).reshape(len(table), -1, 3)
        angles = np.stack([table[name].to_numpy() for name in ("yaw", "pitch", "roll")], 1).astype(float)
        keys = tuple(map(str, table["key"].to_pylist()))
        # Tables of format 1 do not name persons; up to format 3, every face had the angles of its picture.
        subjects = _subjects(keys, table["subject"].to_pylist() if "subject" in table.column_names else None)
        named = table["labelled"] if "labelled" in table.column_names else None
        labelled = _first_of_each(keys) if named is None else named.to_numpy().astype(bool)
        angles[~labelled] = np.nan
    except UserError:
        raise
    except (pa.ArrowException, KeyError, OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error
    return Faces(keys, points, angles, subjects, labelled)


def _first_of_each(keys: Sequence[str]) -> Bool[np.ndarray, " faces"]:
    """The first face of each picture: the largest, as the mesh gives them."""
    first = np.zeros(len(keys), bool)
    first[np.unique(np.asarray(keys, str), return_index=True)[1]] = True
    return first


def _subjects(keys: Sequence[str], known: Sequence[str | None] | None = None) -> tuple[str | None, ...]:
    """The known subjects; otherwise the photo that a picture of 300W-LP is a view of, which its name gives."""
    from hpe.sources.faces3d import photo_of

    known = known or [None] * len(keys)
    names = [Path(key).name for key in keys]
    names = [Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name for name in names]
    return tuple(one or photo_of(name) for one, name in zip(known, names, strict=True))


def unfinished(folder: Path) -> str | None:
    """How far an extraction got that was stopped, such as ``1,100 of 3,298 images``; None: it was finished.

    Raises:
        UserError: its ``extract.json`` is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = folder / SUMMARY
    if not settings.is_file():
        return None
    found = read_object(settings)
    if "images" in found:
        return None
    done = 0
    for part in sorted(folder.glob("faces-*.parquet")):
        try:
            faces = pq.read_table(part, columns=["face"])["face"].to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _damaged(folder, error) from error
        done += sum(face in (0, None) for face in faces)
    total = found.get(TOTAL)
    return f"{done:,} of {total:,} images" if isinstance(total, int) and total else f"{done:,} images so far"


def skipped_shards(folder: Path) -> list[str]:
    """The shards that an extraction could not read."""
    settings = folder / SUMMARY
    found = read_object(settings).get("skipped_shards") if settings.is_file() else None
    return sorted(found) if isinstance(found, dict) else []


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [repr(error)])[0]
    return UserError(f"{path}: not a table of `hpe landmarks extract` ({reason}); remove it and extract again")


def angles_of_mats(folder: Path, keys: tuple[str, ...]) -> Float[np.ndarray, "faces 3"]:
    """Yaw, pitch, roll in degrees of ``<key>.mat`` (``Pose_Para``: pitch, yaw, roll in radians first).

    Raises:
        UserError: a key has no such file.
    """
    from hpe.sources.faces3d import mat_arrays

    angles = np.full((len(keys), 3), np.nan)
    for row, key in enumerate(keys):
        path = folder / f"{Path(key).name}.mat"
        if not path.is_file() and Path(key).suffix.lower() in SUFFIXES:  # the key of pictures that share a stem
            path = folder / f"{Path(key).stem}.mat"
        if not path.is_file():
            raise UserError(f"{path}: not found; expected a .mat with Pose_Para for every face of the table")
        try:
            pose = mat_arrays(path, ("Pose_Para",)).get("Pose_Para")
        except ValueError as error:
            raise UserError(f"{path}: {error}; expected a .mat with Pose_Para") from error
        angles[row] = _degrees(path, pose)
    return angles


def _degrees(path: Path, pose: np.ndarray | None) -> Float[np.ndarray, "3"]:
    if pose is None or pose.size < 3:
        raise UserError(f"{path}: no Pose_Para of at least three numbers")
    return np.rad2deg(pose.ravel()[[1, 0, 2]])


def read_mat_faces(folder: Path, dimensions: Dimensions = "3d") -> Faces:
    """The dataset's own 68 points (``pt3d_68``) and angles of AFLW2000's ``.mat`` files.

    Args:
        folder: the raw dataset.
        dimensions: ``2d`` sets z to 0, as a detector of 68 points in the picture would.

    Raises:
        UserError: no such file, or a damaged one.
    """
    from hpe.sources.faces3d import mat_arrays

    keys, points, angles = [], [], []
    for path in sorted(folder.glob("*.mat")):
        try:
            arrays = mat_arrays(path, ("Pose_Para", "pt3d_68"))
        except ValueError as error:
            raise UserError(f"{path}: {error}; repair it, or move it out of the folder") from error
        if arrays.get("pt3d_68", np.empty(0)).shape != (3, 68) or "Pose_Para" not in arrays:
            continue
        keys.append(path.stem)
        points.append(arrays["pt3d_68"].T)
        angles.append(_degrees(path, arrays["Pose_Para"]))
    if not keys:
        raise UserError(f"{folder}: no .mat with pt3d_68 and Pose_Para; expected the folder of AFLW2000-3D")
    depth = 1.0 if dimensions == "3d" else 0.0
    placed = np.asarray(points, float) * (1.0, 1.0, depth)
    return Faces(tuple(keys), placed, np.asarray(angles, float), _subjects(keys))
