"""Metrics as the tables of a report: cells with a text to read, and a value to sort by and to download."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.metrics.association import accuracy_by_row, associate, cross
from hpe.metrics.markdown import decimal, degrees, headline_figures, percent
from hpe.report import charts

if TYPE_CHECKING:
    import pyarrow as pa

DASH: Final = "–"
_SHORT_SHARDS: Final = 3
_SHOWN_ELSEWHERE: Final = ("title", "identity", "warnings")
_PERMUTATIONS: Final = 500


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its text, the value it sorts by, the value's interval, a tooltip, and its shade in a heat map."""

    text: str
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    tip: str = ""
    best: bool = False
    shade: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the page can sort and save as ``name``.csv."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def word(text: object) -> Cell:
    """A cell of text."""
    return Cell(str(text), str(text))


def count(number: int) -> Cell:
    """A cell of a whole number."""
    return Cell(f"{number:,}", number)


def shown(figure: Mapping[str, Any], text: Callable[[Any], str]) -> Cell:
    """A metric with its interval, its samples and seeds in the tooltip; if it is absent, a dash with the reason."""
    if figure.get("value") is None:
        return Cell(DASH, None, tip=str(figure.get("reason", "not given")))
    tip = f"{figure['n']:,} samples"
    if "interval_reason" in figure:
        tip += f"; {figure['interval_reason']}"
    if per_seed := figure.get("per_seed"):
        tip += "; by seed " + ", ".join(f"{value:.3f}" for value in per_seed)
    return Cell(text(figure), figure["value"], figure.get("low"), figure.get("high"), tip)


def headline(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, value, interval and count of the tiles."""
    tiles = []
    for one in headline_figures(made):
        whole = one.text(one.figure)
        value, _, interval = whole.partition(" (")
        tiles.append(
            {
                "name": one.name,
                "value": value,
                "interval": interval.removesuffix(")") or "no interval",
                "n": one.figure["n"],
            }
        )
    return tiles


def per_class(section: Mapping[str, Any], name: str) -> Table | None:
    """Precision, recall and F1 of each class."""
    if "per_class" not in section:
        return None
    rows = [
        [
            word(label),
            count(one["support"]),
            count(one["chosen"]),
            count(one["correct"]),
            *(shown(one[key], decimal) for key in ("precision", "recall", "f1")),
        ]
        for label, one in section["per_class"].items()
    ]
    return Table(name, ["class", "true", "chosen", "correct", "precision", "recall", "F1"], rows)


def confusion(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix as counts and as shares of the true class."""
    if "confusion" not in section:
        return None
    rows = []
    for name, counts in zip(section["names"], section["confusion"], strict=True):
        total = sum(counts)
        cells = [
            {"count": n, "share": n / total if total else None, "own": name == other, "column": other}
            for n, other in zip(counts, section["names"], strict=True)
        ]
        rows.append({"name": name, "total": total, "cells": cells})
    return {"columns": section["names"], "rows": rows}


def cells(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy of each cell of direction × emotion."""
    if "accuracy" not in section:
        return None
    rows = [
        {
            "name": name,
            "total": sum(counts),
            "cells": [
                {"count": n, "correct": k, "share": one["value"], "low": one.get("low"), "high": one.get("high")}
                for n, k, one in zip(counts, correct, accuracy, strict=True)
            ],
        }
        for name, counts, correct, accuracy in zip(
            section["rows"], section["count"], section["correct"], section["accuracy"], strict=True
        )
    ]
    return {"columns": section["columns"], "rows": rows}


def heat(table: Table) -> dict[str, Any] | None:
    """The shaded cells of a table, None if there are none."""
    rows = [row for row in table.rows if any(cell.shade is not None for cell in row)]
    if not rows:
        return None
    columns = [i for i in range(len(table.head)) if any(row[i].shade is not None for row in rows)]
    kept = [row for row in table.rows if row in rows or all(row[i].value is None for i in columns)]
    return {
        "columns": [table.head[i] for i in columns],
        "rows": [{"name": row[0].text, "cells": [row[i] for i in columns]} for row in kept],
    }


def association(table: "pa.Table", section: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether direction and emotion are associated in the data, and direction and the run's accuracy."""
    if not {"direction", "emotion"} <= set(table.column_names):
        return None
    try:
        sentences = associate(cross(table), replicates=_PERMUTATIONS)["sentences"]
    except UserError:
        return None
    made: dict[str, Any] = {"sentences": sentences, "rows": None}
    if "count" in section:
        given = accuracy_by_row(
            section["count"], section["correct"], section["rows"], section["columns"], replicates=_PERMUTATIONS
        )
        if "rows" in given:
            made |= {"rows": given["rows"], "p": f"{given['permutation_p']:.2g}", "replicates": given["replicates"]}
    return made


def pose(section: Mapping[str, Any], name: str) -> Table | None:
    """Mean errors with and without the ±99° filter, in both orders of Euler angles."""
    if "all" not in section:
        return None
    measures = ("mae", *ANGLES, "geodesic", "maev")
    rows = []
    for title, key in (("all", "all"), ("no angle beyond ±99°", "within_99")):
        one, other = section[key], section.get("order_xyz", {}).get(key, {})
        rows.append([word(title), count(one["n"]), *(shown(one.get(m, {}), degrees) for m in measures)])
        if "mae" in other:  # absent in results of older versions
            means = [shown(other[m], degrees) for m in measures[:4]]
            rows.append([word(f"{title}, angles of Rx Ry Rz"), count(other["n"]), *means, word("same"), word("same")])
    return Table(name, ["samples", "n", "MAE", "yaw", "pitch", "roll", "geodesic", "MAEV"], rows)


def affect(made: Mapping[str, Any], name: str) -> Table | None:
    """CCC, RMSE and SAGR of valence and arousal."""
    rows = [
        [
            word(key),
            count(one["n"]),
            shown(one["ccc"], decimal),
            shown(one["rmse"], decimal),
            shown(one["sagr"], percent),
        ]
        for key in ("valence", "arousal")
        if "ccc" in (one := made[key])
    ]
    return Table(name, ["what", "n", "CCC", "RMSE", "SAGR"], rows) if rows else None


def groups(by: Mapping[str, Any], name: str) -> list[tuple[str, Table]]:
    """A table per partition; columns that are absent in all of its rows are left out."""
    return [(p.removeprefix("group_"), _group(p, parts, name)) for p, parts in by.items() if parts]


def _group(partition: str, parts: Mapping[str, Any], name: str) -> Table:
    columns: list[tuple[str, Callable[[Mapping[str, Any]], Cell]]] = [
        ("emotion accuracy", lambda one: shown(one["emotion"].get("accuracy", one["emotion"]), percent)),
        ("emotion macro F1", lambda one: shown(one["emotion"].get("macro_f1", one["emotion"]), decimal)),
        ("direction accuracy", lambda one: shown(one["direction"].get("accuracy", one["direction"]), percent)),
        ("pose MAE", lambda one: shown(one["pose"].get("mae", one["pose"]), degrees)),
        ("geodesic", lambda one: shown(one["pose"].get("geodesic", one["pose"]), degrees)),
        ("valence CCC", lambda one: shown(one["valence"].get("ccc", one["valence"]), decimal)),
        ("arousal CCC", lambda one: shown(one["arousal"].get("ccc", one["arousal"]), decimal)),
    ]
    made = [(head, [cell(one) for one in parts.values()]) for head, cell in columns]
    kept = [(head, column) for head, column in made if any(cell.value is not None for cell in column)]
    rows = [
        [word(value), count(one["rows"]), *(column[index] for _, column in kept)]
        for index, (value, one) in enumerate(parts.items())
    ]
    title = partition.removeprefix("group_")
    return Table(f"{name}-by-{title}", [title, "n", *(head for head, _ in kept)], rows)


def about(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance as names and texts; long lists are cut, with the number of missing items."""
    texts = []
    for name, value in facts.items():
        if name in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, dict):
            value = "; ".join(f"{key}: {', '.join(map(str, inner))}" for key, inner in value.items()) or "unknown"
        if isinstance(value, list):
            cut = [str(item) for item in value[:_SHORT_SHARDS]]
            more = len(value) - len(cut)
            value = ", ".join(cut) + (f" and {more:,} more" if more else "")
        texts.append((str(name), str(value)))
    return texts


def comparison(runs: Sequence[tuple[str, Mapping[str, Any]]], name: str, *, unmarked: tuple[str, ...] = ()) -> Table:
    """A row per run, a column per headline metric; the best value of each column is marked.

    ``unmarked``: how columns begin whose values cannot be compared.
    """
    found = [(run, {one.name: one for one in headline_figures(made)}) for run, made in runs]
    titles = list(dict.fromkeys(title for _, figures in found for title in figures))
    rows = []
    for run, figures in found:
        row = [word(run)]
        for title in titles:
            if title not in figures:
                row.append(Cell(DASH))
                continue
            one = figures[title]
            values = [other[title].figure["value"] for _, other in found if title in other]
            best = min(values) if one.lower_is_better else max(values)
            cell = shown(one.figure, one.text)
            marked = not title.startswith(unmarked) and len(values) > 1 and cell.value == best
            row.append(Cell(cell.text, cell.value, cell.low, cell.high, cell.tip, marked))
        rows.append(row)
    return Table(name, ["run", *titles], rows)


def interval_rows(
    runs: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[tuple[str, Callable[[float], str], list[tuple[str, float, float | None, float | None]]]]:
    """Per headline metric: title, the text of its ticks, and value and ends per run."""
    texts: dict[Any, Callable[[float], str]] = {
        percent: charts.percents,
        decimal: charts.short,
        degrees: charts.degrees,
    }
    found = [(run, {one.name: one for one in headline_figures(made)}) for run, made in runs]
    for title in dict.fromkeys(title for _, figures in found for title in figures):
        points = [
            (run, one["value"], one.get("low"), one.get("high"))
            for run, figures in found
            if title in figures
            for one in [figures[title].figure]
        ]
        ticks = next(texts[figures[title].text] for _, figures in found if title in figures)
        yield title, rounded(ticks), points


def rounded(text: Callable[[float], str]) -> Callable[[float], str]:
    """The same text for a value rounded to four digits."""
    return lambda value: text(float(f"{value:.4g}"))


def paired_table(pairs: Sequence[tuple[str, str, Mapping[str, Any]]], name: str) -> Table | None:
    """Paired tests of emotion between runs on their common samples; None if no pair could be tested."""
    rows = []
    for first, second, one in pairs:
        if "mcnemar_p" not in one:
            continue
        p = one["macro_f1_p"]
        rows.append(
            [
                word(first),
                word(second),
                word("all, as predicted" if one["labels"] is None else ", ".join(one["labels"])),
                count(one["n"]),
                count(one["only_first_right"]),
                count(one["only_second_right"]),
                Cell(f"{one['mcnemar_p_holm']:.2g}", one["mcnemar_p_holm"]),
                shown(one["macro_f1_difference"], decimal),
                Cell(DASH) if p is None else Cell(f"{p:.2g}", p),
            ]
        )
    head = ["first", "second", "labels", "n", "only first right", "only second right", "McNemar p (Holm)"]
    return Table(name, [*head, "macro F1, second − first", "p (bootstrap)"], rows) if rows else None


def untested(pairs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    """Pairs of runs that could not be tested, and why."""
    return [f"{first}, {second}: {one['reason']}" for first, second, one in pairs if "mcnemar_p" not in one]


def config_differences(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """The settings in which the runs differ."""
    flat = [{path: str(value) for path, value in leaves(config)} for _, config in runs]
    names = sorted({name for one in flat for name in one})
    rows = [
        [word(name), *(word(one.get(name, DASH)) for one in flat)]
        for name in names
        if len({one.get(name, DASH) for one in flat}) > 1
    ]
    return Table("config-differences", ["setting", *(run for run, _ in runs)], rows) if rows else None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every setting of a config."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{number}")
    else:
        yield path, value
