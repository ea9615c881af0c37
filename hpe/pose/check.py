"""``hpe pose --check``: pose tables against the true angles of their shards, and mistakes called by name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int64

from hpe.core.errors import UserError
from hpe.core.files import aside, write_json, write_text
from hpe.core.geometry import angle_errors
from hpe.core.labels import ANGLES, AXIS_COLOURS, LARGEST_DEGREES
from hpe.data.directions import ABSTAIN, pointing04_direction_of_name
from hpe.data.records import Record
from hpe.data.shard_reader import open_shard
from hpe.estimators.diagnosis import diagnose
from hpe.metrics.columns import Numbers
from hpe.metrics.markdown import degrees, table
from hpe.metrics.pose import pose as pose_figures
from hpe.metrics.values import Figure, Resampling, share

NAME: Final = "check"
FOLDER: Final = "_check"
"""Under the tables' folder; pandas and pyarrow pass over names that begin with an underscore."""
RELIABILITY_BINS: Final = 10
NO_TRUTH: Final = (
    "--check: no record of these shards has a yaw, pitch or roll to compare with; use a dataset with true angles "
    "(aflw2000, 300w-lp, biwi, pointing04, synthetic), or leave out --check"
)
_DIRECTION: Final = "direction_"
_DEVIATIONS: Final = tuple(f"{angle}_sd" for angle in ANGLES)
_OF_ALL_THREE: Final = ("mae", "geodesic")  # begins maev, geodesic_median, geodesic_95th too


@dataclass(frozen=True)
class Checked:
    """Rows of pose tables beside what their shards say; NaN and ``ABSTAIN`` where unknown."""

    predicted: Float[np.ndarray, "faces 3"]
    deviations: Float[np.ndarray, "faces 3"]
    truth: Float[np.ndarray, "faces 3"]
    directions: dict[str, Int64[np.ndarray, " faces"]]
    true_direction: Int64[np.ndarray, " faces"]
    subjects: Int64[np.ndarray, " faces"]


def gather(pairs: Sequence[tuple[Path, Path]]) -> Checked:
    """Rows of (shard, pose table) pairs, joined by key.

    A face of Pointing'04 without a direction in its record takes the thesis' direction of its pose. Angles beyond
    ±360° and records that are none count as unknown; how many is printed.

    Raises:
        UserError: a table that does not hold the shard's rows.
    """
    predicted, deviations, truth, labels, subjects = [], [], [], [], []
    directions: dict[str, list[np.ndarray]] = {}
    absurd = broken = 0
    for shard_path, table_path in pairs:
        try:
            shard = open_shard(shard_path)
        except ValueError as error:
            raise UserError(f"{shard_path}: {error}") from error
        found = _read_table(table_path)
        if found["key"].to_pylist() != list(shard.index.keys):
            raise UserError(
                f"{table_path}: its keys are not those of {shard_path}, in order: a table of another dataset; make it "
                "again with hpe pose"
            )
        angles = _columns(found, ANGLES)
        beyond = np.any(np.abs(angles) > LARGEST_DEGREES, axis=1, keepdims=True)
        absurd += int(beyond.sum())
        predicted.append(np.where(beyond, np.nan, angles))
        deviations.append(_columns(found, _DEVIATIONS))
        for name in found.column_names:
            if name.startswith(_DIRECTION):
                filled = found[name].cast(pa.int64(), safe=False).fill_null(ABSTAIN).to_numpy().astype(np.int64)
                directions.setdefault(name.removeprefix(_DIRECTION), []).append(filled)
        for row in range(len(shard)):
            try:
                record = shard.record(row)
            except (ValueError, TypeError, RecursionError):
                record = Record()
                broken += 1
            truth.append([np.nan if v is None else v for v in (record.yaw, record.pitch, record.roll)])
            label = record.direction
            if label is None and record.source:
                label = pointing04_direction_of_name(record.source)
            labels.append(ABSTAIN if label is None else int(label))
            subjects.append(record.subject or f"{shard_path}:{row}")
    if not truth:
        raise UserError("no face in these pose tables: the shards hold no samples, or no table is finished")
    for count, told in ((absurd, f"rows have angles beyond ±{LARGEST_DEGREES:.0f}°"), (broken, "records are damaged")):
        if count:
            print(f"hpe: {count:,} {told}: taken as unknown", file=sys.stderr)
    return Checked(
        np.concatenate(predicted),
        np.concatenate(deviations),
        np.asarray(truth, float),
        {name: np.concatenate(parts) for name, parts in directions.items()},
        np.asarray(labels),
        np.unique(subjects, return_inverse=True)[1],
    )


def _read_table(path: Path) -> Any:
    """A pose table whose columns are there, once, and of their kinds.

    Raises:
        UserError: it is not one.
    """
    way_out = "make it again with hpe pose"
    try:
        found = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path}: no pose table of this shard; run hpe pose on these shards first") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path}: not a pose table ({str(error)[:100]}); {way_out}") from error
    rules = [name for name in found.column_names if name.startswith(_DIRECTION)]
    for name in ("key", *ANGLES, *_DEVIATIONS, *rules):
        if (count := found.column_names.count(name)) != 1:
            raise UserError(f"{path}: {count or 'no'} columns {name}, expected one; {way_out}")
        kind = found.schema.field(name).type
        if name == "key":
            fits, wanted = pa.types.is_string(kind) or pa.types.is_large_string(kind), "text"
        elif name in rules:
            fits, wanted = pa.types.is_integer(kind) or pa.types.is_null(kind), "whole numbers"
        else:
            fits = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
            wanted = "numbers"
        if not fits:
            raise UserError(f"{path}: column {name} holds {kind}, expected {wanted}; {way_out}")
    return found


def _columns(found: Any, names: Sequence[str]) -> Float[np.ndarray, "faces 3"]:
    return np.stack([found[name].to_numpy().astype(float) for name in names], 1)


def check(checked: Checked) -> dict[str, Any]:
    """Every figure of the report; intervals by bootstrap over subjects.

    Where no face has all three true angles, as in Pointing'04, which knows no roll, the angles that there are
    are compared, and figures that need all three are left out.

    Raises:
        UserError: no face has a true angle.
    """
    axes = told_axes(checked.truth)
    if not axes:
        raise UserError(NO_TRUTH)
    truth = checked.truth.copy()
    truth[:, [i for i in range(3) if i not in axes]] = 0.0  # its errors are taken out again below
    lacking = [angle for i, angle in enumerate(ANGLES) if i not in axes]
    known = np.asarray(np.all(np.isfinite(truth), axis=1))
    if not np.all(np.isfinite(checked.predicted), axis=1).any():
        raise UserError("--check: no face of these tables has angles; look at their column problem")
    draw = Resampling(checked.subjects, by_subject=len(np.unique(checked.subjects)) < len(known))
    rows = known & np.all(np.isfinite(checked.predicted), axis=1)
    figures = pose_figures(_numbers(truth), _numbers(checked.predicted), _numbers(checked.deviations), draw)
    if lacking:
        figures = _without(figures, {*lacking, *(name for name in figures["all"] if name.startswith(_OF_ALL_THREE))})
    difference = (checked.predicted - checked.truth)[rows & (np.abs(truth) <= 99).all(1)]
    bias = {ANGLES[i]: float(difference[:, i].mean()) for i in axes} if len(difference) else None
    return {
        "faces": len(known),
        "angles_without_truth": lacking,
        "without_face": int((~np.all(np.isfinite(checked.predicted), axis=1)).sum()),
        "mistakes": diagnose(checked.predicted[rows], truth[rows]),
        "bias_degrees": bias,
        "pose": figures,
        "reliability": reliability(checked.predicted, checked.truth, checked.deviations),
        "directions": {
            name: direction_figures(found, checked.true_direction) for name, found in checked.directions.items()
        },
    }


def told_axes(truth: Float[np.ndarray, "faces 3"]) -> list[int]:
    """The angles that can be compared: all three where any face has all three, else those that any face has."""
    told = np.isfinite(truth)
    return [i for i in range(3) if told.all(1).any() or told[:, i].any()]


def _without(value: Any, names: set[str]) -> Any:
    """``value`` without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


def _numbers(values: Float[np.ndarray, "faces 3"]) -> Numbers:
    mask = np.asarray(np.all(np.isfinite(values), axis=1))
    return Numbers(np.where(mask[:, None], values, 0.0), mask)


def reliability(
    predicted: Float[np.ndarray, "faces 3"],
    truth: Float[np.ndarray, "faces 3"],
    deviations: Float[np.ndarray, "faces 3"],
) -> dict[str, list[dict[str, float]]]:
    """Per angle, faces in ten equal groups by the estimated deviation: its mean beside the error's RMS."""
    found: dict[str, list[dict[str, float]]] = {}
    for index, angle in enumerate(ANGLES):
        usable = np.isfinite(predicted[:, index] + truth[:, index] + deviations[:, index])
        error = angle_errors(torch.from_numpy(predicted[usable]), torch.from_numpy(truth[usable]))[:, index].numpy()
        sd = deviations[usable, index]
        groups = np.array_split(np.argsort(sd, kind="stable"), RELIABILITY_BINS)
        found[angle] = [
            {
                "n": len(group),
                "mean_sd": float(sd[group].mean()),
                "rms_error": float(np.sqrt(np.square(error[group]).mean())),
                "mean_error": float(error[group].mean()),
            }
            for group in groups
            if len(group)
        ]
    return found


def direction_figures(found: Int64[np.ndarray, " faces"], truth: Int64[np.ndarray, " faces"]) -> Figure:
    """How many faces a rule decides, and how many of those rightly."""
    labelled = truth != ABSTAIN
    decided = labelled & (found != ABSTAIN)
    return {
        "coverage": share(int(decided.sum()), int(labelled.sum()), reason="no face has a direction label"),
        "accuracy": share(
            int((found == truth)[decided].sum()), int(decided.sum()), reason="no labelled face was decided"
        ),
    }


def write_report(folder: Path, title: str, found: dict[str, Any], checked: Checked) -> None:
    """Write ``check.json``, ``check.md`` and ``check.png``."""
    write_json(folder / f"{NAME}.json", found)
    write_text(folder / f"{NAME}.md", to_markdown(title, found))
    _plot(folder / f"{NAME}.png", title, found, checked)


def to_markdown(title: str, found: dict[str, Any]) -> str:
    """The report's text and tables."""
    pose = found["pose"]
    measures = ("mae", *ANGLES, "geodesic", "maev")
    rows = [
        (name, f"{pose[key]['n']:,}", *(degrees(pose[key].get(measure, {})) for measure in measures))
        for name, key in (("all", "all"), ("no angle beyond ±99°", "within_99"))
    ]
    lacking = found["angles_without_truth"]
    parts = [
        f"# Pose check: {title}",
        f"{found['faces']:,} faces, {found['without_face']:,} of them without an estimate."
        + (f" The dataset does not know {' and '.join(lacking)}: figures without." if lacking else ""),
        "## Likely mistakes",
        "\n".join(f"- {mistake}" for mistake in found["mistakes"])
        or "None: order, signs and unit agree with the truth.",
        "## Errors",
        table(["faces", "n", "MAE", "yaw", "pitch", "roll", "geodesic", "MAEV"], rows),
    ]
    for key in ("by_yaw", "by_pitch"):
        angle = key.removeprefix("by_")
        parts += [
            f"## By true {angle}",
            table(
                [angle, "n", *ANGLES, "geodesic"],
                [
                    (
                        f"{one['low']:.0f}° to {one['high']:.0f}°",
                        one["n"],
                        *(_plain(one, m) for m in (*ANGLES, "geodesic")),
                    )
                    for one in pose[key]
                    if one["n"]
                ],
            ),
        ]
    parts.append("## Does the uncertainty know the errors?")
    for angle, groups in found["reliability"].items():
        cells = [(f"{g['mean_sd']:.2f}°", f"{g['rms_error']:.2f}°", f"{g['mean_error']:.2f}°", g["n"]) for g in groups]
        parts.append(
            f"{angle.capitalize()}:\n\n" + table(["mean deviation", "RMS error", "mean error", "n"], cells)
            if cells
            else f"{angle.capitalize()}: "
            + ("the dataset does not know it." if angle in lacking else "the estimator gives no deviation.")
        )
    decided = [
        (name, f"{one['coverage']['value']:.1%}", f"{one['accuracy']['value']:.1%}", one["coverage"]["n"])
        for name, one in found["directions"].items()
        if one["coverage"]["value"] is not None and one["accuracy"]["value"] is not None
    ]
    if decided:
        parts += ["## Directions", table(["rule", "decided", "right of these", "labelled"], decided)]
    return "\n\n".join(parts) + "\n"


def _plain(one: dict[str, Any], measure: str) -> str:
    value = one.get(measure, {}).get("value")
    return "–" if value is None else f"{value:.2f}°"


def _plot(path: Path, title: str, found: dict[str, Any], checked: Checked) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 7), layout="constrained")
    axes = canvas.subplots(2, 3)
    canvas.suptitle(f"Pose check: {title}")
    for column, (angle, colour) in enumerate(zip(ANGLES, AXIS_COLOURS, strict=True)):
        top, bottom = axes[0, column], axes[1, column]
        top.scatter(checked.truth[:, column], checked.predicted[:, column], s=3, alpha=0.4, color=colour)
        top.plot((-99, 99), (-99, 99), color="black", linewidth=0.8)
        top.set(xlim=(-102, 102), ylim=(-102, 102), xlabel=f"true {angle} (°)", ylabel=f"estimated {angle} (°)")
        groups = found["reliability"][angle]
        if groups:
            sd, rms = [g["mean_sd"] for g in groups], [g["rms_error"] for g in groups]
            bottom.plot(sd, rms, "o-", color=colour)
            limit = max(*sd, *rms) * 1.05
            bottom.plot((0, limit), (0, limit), color="black", linewidth=0.8)
        bottom.set(xlabel="estimated deviation (°)", ylabel="RMS error (°)")
    with aside(path) as part:
        canvas.savefig(part, dpi=110, format="png", metadata={"Software": None})
