"""``hpe pose --check``: compare pose tables with the true angles of their shards, and name likely mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.files import aside, write_json, write_text
from hpe.core.geometry import angle_errors
from hpe.core.labels import ANGLES, AXIS_COLOURS, BINS_REACH_DEGREES, LARGEST_DEGREES
from hpe.data.directions import ABSTAIN
from hpe.data.pose_labels import DEVIATIONS
from hpe.data.pose_tables import DIRECTION_PREFIX
from hpe.data.shard_files import ShardFile
from hpe.data.tables import PREDICTED, arrow, dataset_of, numbers, true_directions
from hpe.estimators.diagnosis import diagnose
from hpe.metrics.columns import Numbers
from hpe.metrics.markdown import degrees, table
from hpe.metrics.pose import on_branch_of
from hpe.metrics.pose import pose as pose_figures
from hpe.metrics.values import Figure, Resampling, share
from hpe.pose.passes import Task

NAME: Final = "check"
FOLDER: Final = "_check"
"""Under the tables' folder; pandas and pyarrow ignore names that begin with an underscore."""
RELIABILITY_BINS: Final = 10
NO_TRUTH: Final = (
    "--check: no record of these shards has a yaw, pitch or roll to compare with; use a dataset with true angles "
    "(aflw2000, 300w-lp, biwi, pointing04, synthetic), or leave out --check"
)
_OF_ALL_THREE: Final = ("mae", "geodesic")  # prefixes: also of maev, geodesic_median, geodesic_95th


@dataclass(frozen=True)
class JoinedRows:
    """Rows of pose tables beside the truth of their shards; NaN and ``ABSTAIN`` where unknown."""

    predicted: Float[np.ndarray, "faces 3"]
    deviations: Float[np.ndarray, "faces 3"]
    truth: Float[np.ndarray, "faces 3"]
    directions: dict[str, Int64[np.ndarray, " faces"]]
    true_direction: Int64[np.ndarray, " faces"]
    subjects: Int64[np.ndarray, " faces"]


def check_tables(tasks: Sequence[Task]) -> None:
    """Write the quality report of a job's finished tables to a folder beside them, and print its first part.

    Raises:
        UserError: no true angles, or tables of another dataset.
    """
    by_folder: dict[Path, list[Task]] = {}
    for task in tasks:
        if task.table.is_file():
            by_folder.setdefault(task.table.parent, []).append(task)
    for folder, there in by_folder.items():
        joined = join_with_truth([(task.shard, task.table) for task in there])
        found = check(joined)
        title = f"{there[0].identity.estimator} on {there[0].shard.folder}"
        report = folder / FOLDER
        report.mkdir(exist_ok=True)
        write_report(report, title, found, joined)
        print(to_markdown(title, found).partition("\n## By true")[0].rstrip())
        print(f"\n{report}/check.md, check.json, check.png")


def join_with_truth(pairs: Sequence[tuple[ShardFile, Path]]) -> JoinedRows:
    """The rows of (shard, pose table) pairs, joined by key.

    A face of Pointing'04 without a direction in its record gets the thesis' direction of its pose. Angles beyond
    ±360° and damaged records count as unknown; their number is printed.

    Raises:
        UserError: a table whose rows are not those of its shard.
    """
    shards, paths = [shard for shard, _ in pairs], [path for _, path in pairs]
    faces = arrow(dataset_of(shards, {"": paths})) if pairs else pa.table({})
    if not len(faces):
        raise UserError("no face in these pose tables: the shards hold no samples, or no table is finished")
    predicted = numbers(faces, [angle + PREDICTED for angle in ANGLES])
    beyond = np.any(np.abs(predicted) > LARGEST_DEGREES, axis=1, keepdims=True)
    damaged = len(faces) - faces["damage"].null_count
    for count, what in (
        (int(beyond.sum()), f"rows have angles beyond ±{LARGEST_DEGREES:.0f}°"),
        (damaged, "records are damaged"),
    ):
        if count:
            say(f"hpe: {count:,} {what}: they count as unknown")
    rules = [name for name in faces.column_names if name.startswith(DIRECTION_PREFIX)]
    places = zip(*(faces[name].to_pylist() for name in ("subject", "shard", "row")), strict=True)
    return JoinedRows(
        np.where(beyond, np.nan, predicted),
        numbers(faces, DEVIATIONS),
        numbers(faces, ANGLES),
        {name.removeprefix(DIRECTION_PREFIX): faces[name].fill_null(ABSTAIN).to_numpy() for name in rules},
        true_directions(faces),
        np.unique([subject or f"{shard}:{row}" for subject, shard, row in places], return_inverse=True)[1],
    )


def check(joined: JoinedRows) -> dict[str, Any]:
    """Every metric of the report; intervals by bootstrap over subjects.

    Where no face has all three true angles, as in Pointing'04, which has no roll, only the known angles are compared,
    and metrics that need all three are left out.

    Raises:
        UserError: no face has both true and estimated angles.
    """
    axes = known_axes(joined.truth)
    if not axes:
        raise UserError(NO_TRUTH)
    truth = joined.truth.copy()
    truth[:, [i for i in range(3) if i not in axes]] = 0.0  # the metrics of these angles are removed below
    lacking = [angle for i, angle in enumerate(ANGLES) if i not in axes]
    known = np.asarray(np.all(np.isfinite(truth), axis=1))
    estimated = np.asarray(np.all(np.isfinite(joined.predicted), axis=1))
    rows = known & estimated
    if not rows.any():
        raise UserError(
            f"--check: no face has both true and estimated angles: of {len(rows):,} faces {int(known.sum()):,} have "
            f"true ones and {int(estimated.sum()):,} estimated ones; see the `problem` column of the tables"
        )
    draw = Resampling(joined.subjects, by_subject=len(np.unique(joined.subjects)) < len(known))
    figures = pose_figures(_numbers(truth), _numbers(joined.predicted), _numbers(joined.deviations), draw)
    if lacking:
        figures = _without(figures, {*lacking, *(name for name in figures["all"] if name.startswith(_OF_ALL_THREE))})
    inside = rows & (np.abs(truth) <= BINS_REACH_DEGREES).all(1)
    difference = on_branch_of(joined.predicted[inside], joined.truth[inside]) - joined.truth[inside]
    bias = {ANGLES[i]: float(difference[:, i].mean()) for i in axes} if len(difference) else None
    return {
        "faces": len(known),
        "angles_without_truth": lacking,
        "without_face": int((~estimated).sum()),
        "mistakes": diagnose(joined.predicted[rows], truth[rows]) + _beyond_bins(joined.predicted[rows], truth[rows]),
        "bias_degrees": bias,
        "pose": figures,
        "reliability": reliability(joined.predicted, joined.truth, joined.deviations),
        "directions": {
            name: direction_figures(found, joined.true_direction) for name, found in joined.directions.items()
        },
    }


def _beyond_bins(predicted: Float[np.ndarray, "faces 3"], truth: Float[np.ndarray, "faces 3"]) -> list[str]:
    """A line if true angles exceed the reach of Hopenet's bins, and no prediction does."""
    wide = int((np.abs(truth) >= BINS_REACH_DEGREES).any(1).sum())
    if not wide or (np.abs(predicted) >= BINS_REACH_DEGREES).any():
        return []
    reach = f"{BINS_REACH_DEGREES:g}°"
    return [
        f"range: {wide:,} of {len(truth):,} faces have a true angle of {reach} or more, and the estimator never gives "
        f"one; a network of 66 bins cannot: see the row of angles within ±{reach}, or use a 6D or matrix output"
    ]


def known_axes(truth: Float[np.ndarray, "faces 3"]) -> list[int]:
    """The angles that can be compared: all three where any face has all three, else those that any face has."""
    known = np.isfinite(truth)
    return [i for i in range(3) if known.all(1).any() or known[:, i].any()]


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


def write_report(folder: Path, title: str, found: dict[str, Any], joined: JoinedRows) -> None:
    """Write ``check.json``, ``check.md`` and ``check.png``."""
    write_json(folder / f"{NAME}.json", found)
    write_text(folder / f"{NAME}.md", to_markdown(title, found))
    _plot(folder / f"{NAME}.png", title, found, joined)


def to_markdown(title: str, found: dict[str, Any]) -> str:
    """The report's text and tables."""
    pose, lacking = found["pose"], found["angles_without_truth"]
    measures = ("mae", *ANGLES, "geodesic", "maev")
    rows = [
        (name, f"{pose[key]['n']:,}", *(degrees(pose[key].get(measure, {})) for measure in measures))
        for name, key in (("all", "all"), ("no angle beyond ±99°", "within_99"))
    ]
    parts = [
        f"# Pose check: {title}",
        f"{found['faces']:,} faces, {found['without_face']:,} of them without an estimate."
        + (f" The dataset has no true {' or '.join(lacking)}, so neither do these metrics." if lacking else ""),
        "## Likely mistakes",
        "\n".join(f"- {mistake}" for mistake in found["mistakes"])
        or "None: order, signs and unit agree with the truth.",
        "## Errors",
        table(["faces", "n", "MAE", "yaw", "pitch", "roll", "geodesic", "MAEV"], rows),
    ]
    for angle in ("yaw", "pitch"):
        parts += [f"## By true {angle}", _errors_by(angle, pose[f"by_{angle}"])]
    parts.append("## Does the uncertainty predict the errors?")
    parts += [_reliability_table(angle, groups, lacking) for angle, groups in found["reliability"].items()]
    decided = [
        (name, f"{one['coverage']['value']:.1%}", f"{one['accuracy']['value']:.1%}", one["coverage"]["n"])
        for name, one in found["directions"].items()
        if one["coverage"]["value"] is not None and one["accuracy"]["value"] is not None
    ]
    if decided:
        parts += ["## Directions", table(["rule", "decided", "correct of these", "labelled"], decided)]
    return "\n\n".join(parts) + "\n"


def _errors_by(angle: str, bins: Sequence[dict[str, Any]]) -> str:
    rows = [
        (f"{one['low']:.0f}° to {one['high']:.0f}°", one["n"], *(_degrees(one, m) for m in (*ANGLES, "geodesic")))
        for one in bins
        if one["n"]
    ]
    return table([angle, "n", *ANGLES, "geodesic"], rows)


def _reliability_table(angle: str, groups: Sequence[dict[str, float]], lacking: Sequence[str]) -> str:
    name = angle.capitalize()
    if not groups:
        return f"{name}: the {'dataset has no truth' if angle in lacking else 'estimator gives no deviation'}."
    cells = [(f"{g['mean_sd']:.2f}°", f"{g['rms_error']:.2f}°", f"{g['mean_error']:.2f}°", g["n"]) for g in groups]
    return f"{name}:\n\n" + table(["mean deviation", "RMS error", "mean error", "n"], cells)


def _degrees(one: dict[str, Any], measure: str) -> str:
    value = one.get(measure, {}).get("value")
    return "–" if value is None else f"{value:.2f}°"


def _plot(path: Path, title: str, found: dict[str, Any], joined: JoinedRows) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 7), layout="constrained")
    axes = canvas.subplots(2, 3)
    canvas.suptitle(f"Pose check: {title}")
    predicted = on_branch_of(joined.predicted, joined.truth)
    for column, (angle, colour) in enumerate(zip(ANGLES, AXIS_COLOURS, strict=True)):
        top, bottom = axes[0, column], axes[1, column]
        top.scatter(joined.truth[:, column], predicted[:, column], s=3, alpha=0.4, color=colour)
        reach = max(BINS_REACH_DEGREES, float(np.nanmax(np.abs(joined.truth[:, column]), initial=0)))
        ends = (-reach - 3, reach + 3)
        top.plot((-reach, reach), (-reach, reach), color="black", linewidth=0.8)
        top.set(xlim=ends, ylim=ends, xlabel=f"true {angle} (°)", ylabel=f"estimated {angle} (°)")
        groups = found["reliability"][angle]
        if groups:
            sd, rms = [g["mean_sd"] for g in groups], [g["rms_error"] for g in groups]
            bottom.plot(sd, rms, "o-", color=colour)
            limit = max(*sd, *rms) * 1.05
            bottom.plot((0, limit), (0, limit), color="black", linewidth=0.8)
        bottom.set(xlabel="estimated deviation (°)", ylabel="RMS error (°)")
    with aside(path) as part:
        canvas.savefig(part, dpi=110, format="png", metadata={"Software": None})
