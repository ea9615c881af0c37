"""The association of a table on disk, or of shards: JSON, Markdown and a heat map (``hpe association``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import aside, make_folder, write_json, write_text
from hpe.core.labels import EMOTIONS
from hpe.core.statistics import LEAST_EXPECTED, cross_table, expected_counts
from hpe.core.table_files import read_table
from hpe.data.pose_labels import chosen_rule
from hpe.data.shard_files import find_shards
from hpe.data.shards import MANIFEST, refuse_unfinished
from hpe.data.store import is_remote
from hpe.data.tables import arrow, dataset_of, pose_files
from hpe.metrics.association import SIGNIFICANT, accuracy_by_row, associate, classes_of, cross
from hpe.metrics.columns import guesses
from hpe.metrics.markdown import cell, percent, table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ShardLabels:
    """Which labels of shards to read.

    Attributes:
        split: None: every split.
        pose: the estimator whose directions to use, or the folder of its tables. None: the dataset's own directions.
        rule: of the directions. None: the only one in the tables, or else ``ours``.
    """

    split: str | None = None
    pose: str | None = None
    rule: str | None = None


def write_association(
    source: str | Path,
    out: Path,
    *,
    rows: str,
    columns: str,
    replicates: int,
    seed: int,
    labels: ShardLabels = ShardLabels(),
) -> dict[str, Any]:
    """Read a table, or shards, and write ``association.json``, ``.md`` and ``.png`` into ``out``.

    Raises:
        UserError: the table or shards cannot be read, or a column is missing or holds other values.
    """
    path = Path(source)
    if is_remote(str(source)) or path.is_dir() or path.suffix == ".tar":
        name, read = _of_shards(source, labels)
        _refuse_unlabelled(source, read, (rows, columns), labels)
    elif labels != ShardLabels():
        raise UserError(f"{path}: --split, --pose and --rule are for shards; expected a folder that `hpe pack` wrote")
    else:
        name, read = path.name, read_table(path)
    crossed = cross(read, rows, columns)
    made: dict[str, Any] = {"table": name, "row": rows, "column": columns}
    made |= associate(crossed, replicates=replicates, seed=seed)
    if (rows.lower(), columns.lower()) == ("direction", "emotion"):
        correct = _correct(read)
        if correct is not None:
            counts, right = correct
            names = (crossed.row_names, crossed.column_names)
            made["emotion_given_direction"] = accuracy_by_row(counts, right, *names, replicates=replicates, seed=seed)
    make_folder(out, f"--out {out}")
    write_json(out / "association.json", made)
    write_text(out / "association.md", to_markdown(made))
    with aside(out / "association.png") as part:
        _heat_map(made, part)
    return made


def _of_shards(source: str | Path, labels: ShardLabels) -> tuple[str, "pa.Table"]:
    """What is read, in words, and the rows; classes are named."""
    import pyarrow as pa
    from datasets import ClassLabel

    path = Path(source)
    if path.is_dir() and not (path / MANIFEST).is_file():
        refuse_unfinished(path)
        raise UserError(
            f"{path}: no {MANIFEST}; expected a CSV or Parquet file, or a folder where `hpe pack` has finished"
        )
    shards = find_shards([source], labels.split)
    words = [labels.split] if labels.split else []
    if labels.pose is None:
        if labels.rule is not None:
            raise UserError(f"--rule {labels.rule}: a rule of pose tables; name them with --pose")
        faces = dataset_of(shards)
    else:
        tables = pose_files(shards, labels.pose)
        rule = chosen_rule(tables[0], labels.rule)
        faces = dataset_of(shards, {"": tables}, rule)
        words.append(f"directions by {rule} of {Path(labels.pose).name}")
    read = arrow(faces)
    for at, (name, feature) in enumerate(faces.features.items()):
        if isinstance(feature, ClassLabel):
            read = read.set_column(at, name, pa.chunked_array([pa.array(feature.names)]).take(read[name]))
    return f"{path.resolve().name}" + f" ({'; '.join(words)})" * bool(words), read


def _refuse_unlabelled(source: str | Path, read: "pa.Table", wanted: Sequence[str], labels: ShardLabels) -> None:
    for name in read.column_names:
        if name in map(str.lower, wanted) and read[name].null_count == len(read):
            hint = "; name pose tables with --pose ESTIMATOR" if name == "direction" and labels.pose is None else ""
            raise UserError(f"{source}: no sample has a label in the column {name}{hint}")


def _correct(read: "pa.Table") -> tuple[np.ndarray, np.ndarray] | None:
    """Samples and correct predictions per cell, if the table contains predictions of emotion."""
    guess = guesses(read, "emotion", len(EMOTIONS))
    if guess is None:
        return None
    directions, row, row_known = classes_of(read, "direction")
    emotions, column, column_known = classes_of(read, "emotion")
    answered = row_known & column_known & guess.mask
    right = answered & (guess.choice == column)
    shape = (len(directions), len(emotions))
    return cross_table(row[answered], column[answered], *shape), cross_table(row[right], column[right], *shape)


def to_markdown(made: Mapping[str, Any]) -> str:
    """Sentences and tables of :func:`write_association`."""
    rows, columns, counts = made["rows"], made["columns"], made["counts"]
    parts = [
        f"# {cell(made['row'])} × {cell(made['column'])}",
        f"{made['n']:,} rows of {cell(made['table'])}"
        + (f"; {made['left_out']:,} rows that lack one of the two values are left out." if made["left_out"] else "."),
        "\n".join(f"- {sentence}" for sentence in made["sentences"]),
        "## Counts",
        table(
            ["", *columns, "all"],
            [
                *((n, *row, total) for n, row, total in zip(rows, counts, made["row_totals"], strict=True)),
                ("all", *made["column_totals"], made["n"]),
            ],
        ),
    ]
    for title, key in (("Share of the row", "share_of_row"), ("Share of the column", "share_of_column")):
        shown = [(n, *map(_percent, row)) for n, row in zip(rows, made[key], strict=True)]
        parts += [f"## {title}", table(["", *columns], shown)]
    for title, key in (("Spread over a row", "spread_of_rows"), ("Spread over a column", "spread_of_columns")):
        spread = [(n, *(f"{one[k]:,.2f}" for k in ("mean", "variance", "deviation"))) for n, one in made[key].items()]
        parts += [f"## {title}", table(["", "mean", "variance (divisor n)", "deviation"], spread)]
    if "residuals" in made["association"]:
        residuals = made["association"]["residuals"]
        shown = [
            (name, *(_residual(v, p) for v, p in zip(values, adjusted, strict=True)))
            for name, values, adjusted in zip(rows, residuals["value"], residuals["p_holm"], strict=True)
        ]
        title = "Adjusted residuals in standard errors (* exact p below 0.05 after Holm's correction)"
        parts += [f"## {title}", table(["", *columns], shown)]
    if "emotion_given_direction" in made:
        parts += ["## Emotion accuracy given direction", *_given(made["emotion_given_direction"])]
    return "\n\n".join(parts) + "\n"


def _given(section: Mapping[str, Any]) -> list[str]:
    if "rows" not in section:
        return [f"Absent: {section['reason']}."]
    shown = [(name, one["n"], percent(one)) for name, one in section["rows"].items()]
    return [
        table(["direction", "samples", "right"], shown),
        f"Directions permuted within each emotion {section['replicates']:,} times: "
        f"p = {section['permutation_p']:.2g} that accuracy does not depend on direction.",
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _residual(value: float | None, p: float | None) -> str:
    return "–" if value is None or p is None else f"{value:+.1f}" + ("*" if p < SIGNIFICANT else "")


def _heat_map(made: Mapping[str, Any], path: Path) -> None:
    """Residuals as colours, counts as numbers; white where a sample or two may make the residual."""
    from matplotlib.figure import Figure

    counts = np.array(made["counts"])
    values = np.zeros(counts.shape)
    if "residuals" in made["association"]:
        residuals = made["association"]["residuals"]
        reliable = expected_counts(counts) >= LEAST_EXPECTED
        reliable |= np.nan_to_num(np.array(residuals["p_holm"], float), nan=1.0) < SIGNIFICANT
        values = np.where(reliable, np.nan_to_num(np.array(residuals["value"], float)), 0.0)
    bound = max(3.0, float(np.abs(values).max()))
    rows, columns = counts.shape
    figure = Figure(figsize=(1.6 + 0.95 * columns, 1.3 + 0.55 * rows), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_xticks(range(columns), made["columns"], parse_math=False)
    axes.set_yticks(range(rows), made["rows"], parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
    for i, j in np.ndindex(counts.shape):
        dark = abs(values[i, j]) > 0.55 * bound
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color="white" if dark else "#222", size=9)
    figure.colorbar(image, label="adjusted residual, standard errors", shrink=0.9)
    figure.savefig(path, format="png")
