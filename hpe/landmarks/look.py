"""``hpe landmarks look``: where people look, from head and eyes, judged on people that were not learned from.

Pointing'04's people were asked to look at marks: some turned their heads to a mark, others turned them half way and
did the rest with their eyes. Its angles and directions are the marks', so a regressor must see both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int8

from hpe.directions import ABSTAIN
from hpe.errors import UserError
from hpe.figures.markdown import table
from hpe.files import aside, make_folder, write_json, write_text
from hpe.labels import Direction
from hpe.landmarks.disk import read_object, writing
from hpe.landmarks.extract import SUMMARY as EXTRACTED
from hpe.landmarks.features import Angles
from hpe.landmarks.look_regress import LookRegressor, Looks, Marks, by_angles
from hpe.landmarks.table import read_faces, read_rows
from hpe.landmarks.topology import MESH478
from hpe.progress import progress
from hpe.statistics import CONFIDENCE, REPLICATES, resampled_sums
from hpe.tables import read_labels

LEAST_PEOPLE: Final = 5
MOST_FACES: Final = 12_000
"""The kernel of so many faces and their mirror images takes 5 GB."""
SUMMARY: Final = "look.json"


@dataclass(frozen=True)
class Marked:
    """Faces of people who looked at marks.

    Attributes:
        keys, people: of each face.
        angles: of the mark, yaw, pitch, roll, degrees (roll 0 where it is not said).
        directions: of the mark.
        found: whether the mesh found the face.
        looks: of those found.
        estimated: another estimator's angles of all, degrees, NaN where it has none; no columns without one.
    """

    keys: Sequence[str]
    people: Sequence[str]
    angles: Angles
    directions: Int8[np.ndarray, " faces"]
    found: Bool[np.ndarray, " faces"]
    looks: Looks
    estimated: Float[np.ndarray, "faces angles"]


def read_marked(points: Path, pose: Path | None = None) -> Marked:
    """The faces of an extraction with eyes, found or not, and what a pose table says of them.

    Args:
        points: folder of ``hpe landmarks extract SHARDS --eyes``.
        pose: folder of pose tables of the same shards.

    Raises:
        UserError: no eyes, no people, no marks, several faces of one picture, too few people or too many faces,
            an extraction that is not finished, or damaged tables.
    """
    if not points.is_dir():
        raise UserError(f"{points}: no such folder; expected one of `hpe landmarks extract SHARDS OUT --eyes`")
    faces = read_faces(points)
    if faces.eyes is None or faces.topology is not MESH478:
        raise UserError(f"{points}: points without eyes; expected those of `hpe landmarks extract SHARDS OUT --eyes`")
    rows = read_rows(points)
    keys = [row["key"] for row in rows]
    if len(set(keys)) < len(keys):
        raise UserError(f"{points}: several faces of one picture; extract with --faces largest")
    if (wanted := read_object(points / EXTRACTED).get("images")) != len(rows):
        raise UserError(f"{points}: {len(rows):,} of {wanted or 'unknown'} pictures; extract again, which finishes it")
    _check(points, rows)
    extent = np.ptp(faces.points[..., :2], axis=1).min(1)
    if not (good := np.isfinite(extent) & np.isfinite(faces.points).all((1, 2)) & (extent > 0)).all():
        key = faces.keys[int(np.argmin(good))]
        raise UserError(f"{points}: damaged: points of {key} are no face; remove the table and extract again")
    people = [row["subject"] for row in rows]
    if len(set(people)) < LEAST_PEOPLE:
        raise UserError(f"{points}: {len(set(people))} people; expected {LEAST_PEOPLE} or more, each left out in turn")
    if len(rows) > MOST_FACES:
        raise UserError(
            f"{points}: {len(rows):,} faces; expected {MOST_FACES:,} at most, whose kernel fits into memory"
        )
    estimated = np.empty((len(rows), 0)) if pose is None else _estimated(pose, points, rows)
    found = np.array([row["status"] == "ok" for row in rows])
    told = np.asarray(np.isfinite(estimated).all(1))
    if not told.any():
        raise UserError(f"{pose}: no angles of any of these faces; expected `hpe pose` to have found some")
    looks = Looks(faces.points, faces.eyes, estimated[found]).take(told[found])
    found &= told
    angles = np.array([[row["yaw"], row["pitch"], row["roll"] or 0.0] for row in rows], float)
    directions = np.array([row["direction"] for row in rows], np.int8)
    return Marked(keys, people, angles, directions, found, looks, estimated)


def _check(points: Path, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        absent = [name for name in ("yaw", "pitch", "direction", "subject") if row[name] is None]
        if absent:
            raise UserError(
                f"{points}: {row['key']}: {', '.join(absent)} not known; expected shards such as of "
                "`hpe pack pointing04`, whose records say yaw, pitch, direction and subject (the person)"
            )
        if not (math.isfinite(row["yaw"] + row["pitch"] + (row["roll"] or 0.0)) and row["direction"] in set(Direction)):
            raise UserError(f"{points}: damaged: angles or direction of {row['key']} are none; extract again")


def _estimated(pose: Path, points: Path, rows: Sequence[dict[str, Any]]) -> Float[np.ndarray, "faces 3"]:
    angles = []
    for part in dict.fromkeys(row["part"] for row in rows):
        path = pose / f"{part}.parquet"
        if not path.is_file():
            raise UserError(
                f"{path}: not found; expected the folder of `hpe pose`, such as SHARDS/pose/NAME, with a table of each "
                f"shard that {points} was extracted from"
            )
        angles.append(read_labels(path, [row["key"] for row in rows if row["part"] == part], rule=None)[0])
    return np.concatenate(angles).astype(float)


def look(points: Path, out: Path, pose: Path | None = None) -> dict[str, Any]:
    """Leave each person out in turn, learn from the others, and judge on what was left out.

    Faces that the mesh did not find are judged by the estimator's angles alone, or, without any, count as wrong.

    Args:
        points, pose: as of :func:`read_marked`.
        out: folder of ``look.json``, ``look.md`` and ``look.parquet`` (each face's answer).

    Returns:
        What ``look.json`` holds.

    Raises:
        UserError: as of :func:`read_marked`, or OUT cannot be written to.
    """
    marked = read_marked(points, pose)
    with writing(out):
        make_folder(out, str(out))
    people = np.array(marked.people)
    predicted = np.full((len(people), 2), np.nan)
    directions = np.full(len(people), ABSTAIN, np.int8)
    names = sorted(set(marked.people))
    with progress("landmarks look", len(names), unit="people") as bar:
        for name in names:
            asked = people == name
            predicted[asked] = _left_out(marked, asked)
            told = asked & np.asarray(np.isfinite(predicted).all(1))
            marks = Marks.of(marked.angles[~asked, :2], marked.directions[~asked])
            directions[told] = marks.directions_of(predicted[told])
            bar.note(name)
            bar.advance()
    summary = _figures(marked, people, predicted, directions)
    with writing(out):
        _write_answers(out / "look.parquet", marked, predicted, directions)
        write_text(out / "look.md", markdown(summary) + "\n")
        write_json(out / SUMMARY, summary)
    return summary


def _left_out(marked: Marked, asked: Bool[np.ndarray, " faces"]) -> Float[np.ndarray, "asked 2"]:
    """Yaw and pitch of the faces asked for, from all others; NaN where there is nothing to tell from."""
    predicted = np.full((len(asked), 2), np.nan)
    learned = marked.found & ~asked
    regressor = LookRegressor().fit(marked.looks.take(learned[marked.found]), marked.angles[learned])
    if (seen := asked & marked.found).any():
        predicted[seen] = regressor.predict(marked.looks.take(asked[marked.found]))
    known = np.asarray(np.isfinite(marked.estimated).all(1))
    unseen = asked & ~marked.found & known
    if marked.estimated.shape[1] and unseen.any():
        told = ~asked & known
        predicted[unseen] = by_angles(marked.estimated[told], marked.angles[told], marked.estimated[unseen])
    return predicted[asked]


def _figures(
    marked: Marked, people: np.ndarray, predicted: Float[np.ndarray, "faces 2"], directions: Int8[np.ndarray, " faces"]
) -> dict[str, Any]:
    right = directions == marked.directions
    errors = np.abs(predicted - marked.angles[:, :2])
    told = np.asarray(np.isfinite(errors).all(1))
    names = sorted(set(people.tolist()))
    units = np.array([
        [right[mine].sum(), mine.sum(), *np.nan_to_num(errors[mine]).sum(0), told[mine].sum(),
         right[mine & marked.found].sum(), (mine & marked.found).sum()]
        for mine in (people == name for name in names)
    ], float)  # fmt: skip
    drawn = np.concatenate((units.sum(0, keepdims=True), resampled_sums(units, REPLICATES, 0)))

    def figure(over: int, under: int) -> dict[str, float]:
        values = drawn[:, over] / np.maximum(drawn[:, under], 1.0)
        low, high = np.quantile(values[1:], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)).tolist()
        return {"value": float(values[0]), "low": low, "high": high}

    return {
        "format": "hpe-look/1",
        "faces": len(people),
        "faces_found": int(marked.found.sum()),
        "faces_by_angles_alone": int((told & ~marked.found).sum()),
        "faces_without_answer": int((~told).sum()),
        "beside": "an estimator's angles" if marked.estimated.shape[1] else None,
        "accuracy": figure(0, 1),
        "accuracy_found": figure(5, 6),
        "mae_yaw": figure(2, 4),
        "mae_pitch": figure(3, 4),
        "recall": {d.name.lower(): _share(right[marked.directions == d]) for d in Direction},
        "people": {name: _share(right[people == name]) for name in names},
    }


def _share(right: Bool[np.ndarray, " faces"]) -> dict[str, float]:
    return {"faces": len(right), "accuracy": float(right.mean()) if len(right) else float("nan")}


def markdown(summary: dict[str, Any]) -> str:
    """The figures to read."""

    def shown(name: str, digits: int, unit: str = "") -> str:
        figure = summary[name]
        return f"{figure['value']:.{digits}f}{unit} ({figure['low']:.{digits}f}–{figure['high']:.{digits}f})"

    figures = (
        ("direction, all faces", summary["faces"], shown("accuracy", 3)),
        ("direction, faces with a mesh", summary["faces_found"], shown("accuracy_found", 3)),
        ("yaw, MAE", summary["faces"] - summary["faces_without_answer"], shown("mae_yaw", 2, "°")),
        ("pitch, MAE", summary["faces"] - summary["faces_without_answer"], shown("mae_pitch", 2, "°")),
    )
    missed = summary["faces"] - summary["faces_found"]
    note = (
        f"Each of {len(summary['people'])} people was left out in turn. Intervals: 95 %, bootstrap over people. "
        f"Mesh not found: {missed:,}; of these {summary['faces_by_angles_alone']:,} by the estimator's angles alone, "
        f"{summary['faces_without_answer']:,} without an answer, which counts as wrong."
    )
    parts = [("direction", "recall"), ("person", "people")]
    return "\n\n".join((
        table(("figure", "faces", "value (95 %)"), figures), note,
        *(table((name, "faces", "accuracy"), [(key, row["faces"], f"{row['accuracy']:.3f}")
                                              for key, row in summary[part].items()]) for name, part in parts),
    ))  # fmt: skip


def _write_answers(
    path: Path, marked: Marked, predicted: Float[np.ndarray, "faces 2"], directions: Int8[np.ndarray, " faces"]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "key": list(marked.keys), "person": list(marked.people), "mesh": marked.found,
        "yaw": marked.angles[:, 0], "pitch": marked.angles[:, 1], "direction": marked.directions,
        "predicted_yaw": predicted[:, 0], "predicted_pitch": predicted[:, 1], "predicted_direction": directions,
    }  # fmt: skip
    with aside(path) as part:
        pq.write_table(pa.table(columns), part, compression="zstd")
