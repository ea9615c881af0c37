"""``hpe report``: a self-contained page and a model card per run, and a page that compares several runs."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup, escape

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.files import make_folder, write_text
from hpe.core.labels import EMOTIONS
from hpe.core.statistics import holm
from hpe.evaluate.gallery import KINDS, gallery
from hpe.metrics.columns import numbers
from hpe.metrics.markdown import asides, of_classifier, protocol, shared_text
from hpe.metrics.paired import paired
from hpe.metrics.pose import ANGLES, on_branch_of
from hpe.report import tables
from hpe.report.cells import CHARTED, StudyTable, is_study, read_study
from hpe.report.charts import Series, intervals, lines, percents, reliability, scatter
from hpe.report.charts import degrees as degrees_text
from hpe.report.load import Curves, Evaluation, Run, read_run
from hpe.report.model_card import model_card

FOLDER: Final = "report"
PAGE: Final = "index.html"
CARD: Final = "model_card.md"
_MOST_CURVES: Final = 24
_SCATTERED: Final = 1500
_FEWEST_IN_STEP: Final = 5
"""Steps of a curve with fewer samples are not drawn: bootstrap intervals of so few are too narrow."""
_FIRST_CURVES: Final = ("loss", "emotion/macro_f1", "emotion/accuracy", "direction/accuracy", "pose/mae")
_OF_EMOTION: Final = ("Emotion", "Calibration")
"""How the headline metrics of emotion begin."""
_KIND_TITLES: Final = {
    "mistake": "Most confident mistakes", "hit": "Most confident hits", "pose": "Largest pose errors",
}  # fmt: skip


def report(folders: Sequence[Path], out: Path | None = None, *, public: bool = False) -> list[Path]:
    """Write each run's page and model card, each study's page, and for several runs a page that compares them.

    Args:
        folders: run folders, and folders of ``hpe study``.
        out: folder of the page if one folder is given, else of the comparison; default: ``report`` in the folder, or
            in the runs' common parent.
        public: leave out the faces of datasets whose terms forbid sharing pictures.

    Returns:
        The pages, the comparison last.

    Raises:
        UserError: a folder is not a run or a file in it is damaged (nothing is written then), or ``out`` cannot be
            made.
    """
    # By what the paths lead to: a link to a run is that run, and its page would be written twice.
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("hpe report: a run is named twice; name each run once")
    alone = out if len(folders) == 1 else None
    files: dict[Path, str] = {}
    runs, pages = [], []
    for folder in folders:
        at = alone or folder / FOLDER
        if is_study(folder):
            files[at / PAGE] = study_page(folder, at)
            continue
        run = read_run(folder)
        for one in run.evaluations:
            if one.outdated:
                say(f"{folder}: {one.name}: {one.outdated}")
        if public:
            run = replace(run, evaluations=tuple(one.public() for one in run.evaluations))
        runs.append(run)
        files |= _files(run, at)
        pages.append(at / PAGE)
    if len(runs) > 1:
        at = out or Path(os.path.commonpath([run.path.resolve().parent for run in runs])) / FOLDER
        if at.resolve() in {page.parent.resolve() for page in pages}:
            raise UserError(
                f"--out {at}: one of the runs has its own page there; choose another folder for the comparison"
            )
        files[at / PAGE] = comparison_page(runs, [_link(page, at) for page in pages])
    # Written only now: a damaged run among several leaves no half of the pages behind.
    for path, text in files.items():
        make_folder(path.parent, f"--out {out}" if path.parent == out else str(path.parent))
        write_text(path, text)
    return [path for path in files if path.name == PAGE]


def _files(run: Run, at: Path) -> dict[Path, str]:
    """The page and the card of a run.

    Raises:
        UserError: its metrics have the right sections, but wrong contents.
    """
    try:
        return {at / PAGE: run_page(run), at / CARD: model_card(run)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError) as error:
        found = f"{run.path}: metrics or config are damaged ({type(error).__name__}: {error})"
        raise UserError(f"{found}; run `hpe evaluate` again") from error


def _link(page: Path, base: Path) -> str:
    return "./" + quote(os.path.relpath(page.resolve(), base.resolve()))


def study_page(folder: Path, at: Path) -> str:
    """The page of a study: its tables, direction × emotion as heat maps, accuracies as charts, its runs' pages.

    Args:
        folder: of the study.
        at: folder of the page, for its links.

    Raises:
        UserError: its tables are damaged.
    """
    about, found = read_study(folder)
    limits = about.pop("limits", [])
    # "4.2", "4.2 joint" and "4.2 thesis" are shown together.
    groups = [list(of) for _, of in groupby(found, key=lambda one: one.number.split()[0])]
    runs = [(run.name, run / FOLDER / PAGE) for run in sorted((folder / "runs").glob("*/"))]
    return _rendered(
        "study.html",
        title=folder.resolve().name,
        about=tables.about(about),
        limits=limits,
        groups=[[_study_view(one) for one in group] for group in groups],
        runs=[(name, _link(page, at) if page.is_file() else None) for name, page in runs],
    )


def _study_view(one: StudyTable) -> dict[str, Any]:
    """A table, with a chart of its accuracies or a heat map of its shaded cells."""
    points = []
    for row in one.table.rows if CHARTED in one.table.head else ():
        cell = row[one.table.head.index(CHARTED)]
        if isinstance(cell.value, int | float):
            points.append((row[0].text, float(cell.value), cell.low, cell.high))
    title = f"{one.title}: accuracy"
    chart = intervals(points, title=title, text=tables.rounded(percents)) if points else None
    return {"table": one, "chart": chart, "title": title, "heat": tables.heat(one.table)}


def run_page(run: Run) -> str:
    """The page of one run; the same folder gives the same bytes."""
    return _rendered(
        "run.html",
        title=run.name,
        run=run,
        curves=_curve_charts([(run.name, run.curves)]),
        evaluations=[_evaluation_view(one) for one in run.evaluations],
    )


def comparison_page(runs: Sequence[Run], links: Sequence[str]) -> str:
    """The page that compares runs on every evaluation that at least one of them has."""
    subjects = dict.fromkeys(one.subject for run in runs for one in run.evaluations)
    views = []
    for subject in subjects:
        found = [(run, one) for run in runs if (one := _result_on(subject, run)) is not None]
        name = found[0][1].name
        rows = [(run.name, one.figures) for run, one in found]
        pairs = _pairs(found)
        differ = _label_sets(found)
        views.append(
            {
                "name": _heading(found[0][1], runs),
                "headline": tables.comparison(rows, f"{name}-comparison", unmarked=_OF_EMOTION if differ else ()),
                "charts": [
                    (title, intervals(points, title=title, text=text))
                    for title, text, points in tables.interval_rows(rows)
                ],
                "paired": tables.paired_table(pairs, f"{name}-paired"),
                "untested": tables.untested(pairs),
                "label_sets": differ,
                "missing": [run.name for run in runs if run not in [r for r, _ in found]],
            }
        )
    return _rendered(
        "compare.html",
        title="Comparison",
        runs=list(zip(runs, links, strict=True)),
        curves=_curve_charts([(run.name, run.curves) for run in runs]),
        views=views,
        config=tables.config_differences([(run.name, run.config) for run in runs]),
    )


def _result_on(subject: str, run: Run) -> Evaluation | None:
    """The one result of a run on a subject: a second one, of ``--name``, would be tested against the first."""
    found = (one for one in run.evaluations if one.subject == subject)
    # A chosen name stands behind the usual title, so the usual one is first.
    return min(found, key=lambda one: (one.outdated is not None, one.title), default=None)


def _heading(one: Evaluation, runs: Sequence[Run]) -> str:
    """The title of an evaluation, with its shards' folder where others of this title judge something else."""
    alike = {other.subject for run in runs for other in run.evaluations if other.title == one.title}
    shards = one.about.get("shards")
    if len(alike) > 1 and isinstance(shards, list) and shards:
        return f"{one.title}, {Path(str(shards[0])).parent.name}"
    return one.title


def _label_sets(found: Sequence[tuple[Run, Evaluation]]) -> list[str]:
    """The emotions that each run was trained on, where these differ or are not known of all: else nothing."""
    trained = [(run, one.trained_emotions) for run, one in found if "accuracy" in one.figures["emotion"]]
    if len({known for _, known in trained}) < 2:
        return []
    return [
        f"{run.name}: " + ("unknown" if known is None else ", ".join(EMOTIONS[index] for index in sorted(known)))
        for run, known in trained
    ]


def _pairs(found: Sequence[tuple[Run, Evaluation]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Paired tests of emotion between every two runs, with p-values corrected for their number."""
    made: list[tuple[str, str, dict[str, Any]]] = []
    for (run, one), (other_run, other) in combinations(found, 2):
        if one.table is None or other.table is None:
            continue
        try:
            here, there = one.trained_emotions, other.trained_emotions
            known = None if here is None or there is None else here & there
            made.append((run.name, other_run.name, paired(one.table, other.table, known=known)))
        except UserError as error:
            made.append((run.name, other_run.name, {"value": None, "reason": str(error)}))
    tested = [result for _, _, result in made if "mcnemar_p" in result]
    if tested:
        import numpy as np

        for result, p in zip(tested, holm(np.array([one["mcnemar_p"] for one in tested])), strict=True):
            result["mcnemar_p_holm"] = float(p)
    return made


def _curve_charts(runs: Sequence[tuple[str, Curves]]) -> list[tuple[str, Any, list[tuple[str, int]]]]:
    """Title, chart and legend of each logged metric: the splits of one run, or the validation of several runs."""
    names = {name for _, curves in runs for name in curves if not name.endswith("/labels") and name != "epoch"}
    ordered = sorted(names, key=lambda n: (_FIRST_CURVES.index(n) if n in _FIRST_CURVES else len(_FIRST_CURVES), n))
    charts = []
    for name in ordered[:_MOST_CURVES]:
        series: list[Series] = []
        for place, (run, curves) in enumerate(runs):
            splits = curves.get(name, {})
            if len(runs) > 1:
                kept = splits.get("val") or splits.get("train") or []
                series += [Series(run, kept, colour=place, dots=len(kept) < 60)] if kept else []
            else:
                order = sorted(splits, key=lambda split: (split != "train", split != "val", split))
                series += [Series(s, splits[s], colour=_colour(s), dots=len(splits[s]) < 60) for s in order]
        chart = lines(series, title=f"{name} over samples seen", x_label="samples seen")
        charts.append((name, chart, [(one.name, one.colour % 6) for one in series]))
    return charts


def _colour(split: str) -> int:
    """The same colour for a split in every chart."""
    return {"train": 0, "val": 1}.get(split, 2)


def _evaluation_view(one: Evaluation) -> dict[str, Any]:
    """What the template shows of an evaluation."""
    made = one.figures
    faces, damaged = ([], 0) if one.table is None else gallery(one.table, one.faces)
    calibration = made["emotion"].get("calibration", {})
    association = None if one.table is None else tables.association(one.table, made["cells"])
    return {
        "name": one.title,
        "about": tables.about(one.about),
        "asides": asides(one.about),
        "rows": made["rows"],
        "unreadable": one.about.get("unreadable", 0),
        "interval": made["interval"],
        "headline": tables.headline(made),
        "sections": {name: made[name] for name in ("emotion", "direction", "pose", "valence", "arousal", "cells")},
        "classes": {name: tables.per_class(made[name], f"{one.name}-{name}") for name in ("emotion", "direction")},
        "shared": {name: _shared_view(made, name, one.name) for name in ("emotion", "direction")},
        "confusion": {name: tables.confusion(made[name]) for name in ("emotion", "direction")},
        "reliability": reliability(calibration["bins"], title="Accuracy over confidence")
        if "bins" in calibration
        else None,
        "cells": tables.cells(made["cells"]),
        "association": association,
        "by_direction": _by_direction(association),
        "pose": tables.pose(made["pose"], f"{one.name}-pose"),
        "protocol": protocol(one.about),
        "pose_charts": _pose_charts(made["pose"]),
        "scatter": _scatters(one),
        "affect": tables.affect(made, f"{one.name}-affect"),
        "groups": tables.groups(made["by"], one.name),
        "gallery": [(kind, _KIND_TITLES[kind], [f for f in faces if f.kind == kind]) for kind in KINDS],
        "faces": len(faces),
        "damaged": damaged,
    }


def _shared_view(made: Mapping[str, Any], what: str, name: str) -> dict[str, Any] | None:
    """The metrics on the classes that the run and the dataset share; None where there are none of their own."""
    section = made.get("shared", {}).get(what, {})
    if "accuracy" not in section:
        return None
    rows = [[tables.word(title), tables.shown(one, text)] for title, text, one in of_classifier(section)]
    return {
        "text": shared_text(section),
        "metrics": tables.Table(f"{name}-{what}-shared", ["metric", "value"], rows),
        "classes": tables.per_class(section, f"{name}-{what}-shared-classes"),
    }


def _by_direction(association: Mapping[str, Any] | None) -> Any:
    """Emotion accuracy by direction with its intervals."""
    rows = (association or {}).get("rows") or {}
    points = [(name, f["value"], f["low"], f["high"]) for name, f in rows.items() if f["value"] is not None]
    return intervals(points, title="Emotion accuracy by direction", text=tables.rounded(percents))


def _pose_charts(section: Mapping[str, Any]) -> list[tuple[str, Any]]:
    charts = []
    for key, name in (("by_yaw", "yaw"), ("by_pitch", "pitch")):
        steps = [one for one in section.get(key, []) if one["n"] >= _FEWEST_IN_STEP]
        if not steps:
            continue
        points = [((one["low"] + one["high"]) / 2, one["geodesic"]["value"]) for one in steps]
        ends = [_ends(one["geodesic"]) for one in steps]
        chart = lines(
            [Series("geodesic error", points, ends, dots=True)],
            title=f"Geodesic error by true {name}",
            x_label=f"true {name}",
            x_text=degrees_text,
            y_text=degrees_text,
            from_zero=True,
        )
        charts.append((f"Error by true {name} (steps of 10° with {_FEWEST_IN_STEP} samples or more)", chart))
    return charts


def _ends(figure: Mapping[str, Any]) -> tuple[float, float]:
    value = figure["value"]
    return (value, value) if figure.get("low") is None else (figure["low"], figure["high"])


def _scatters(one: Evaluation) -> list[tuple[str, Any]]:
    if one.table is None:
        return []
    truth, guess = numbers(one.table, ANGLES), numbers(one.table, [f"{name}_hat" for name in ANGLES])
    if truth is None or guess is None or not (rows := truth.mask & guess.mask).any():
        return []
    true, predicted = truth.value[rows], on_branch_of(guess.value[rows], truth.value[rows])
    step = -(-len(true) // _SCATTERED)
    charts = []
    for index, name in enumerate(ANGLES):
        points = list(zip(true[::step, index].tolist(), predicted[::step, index].tolist(), strict=True))
        charts.append((name, scatter(points, title=f"Predicted over true {name}", x_label=f"true {name}")))
    return charts


def _with_code(text: str) -> Markup:
    """The text with its parts between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))


def _rendered(template: str, **values: Any) -> str:
    here = PackageLoader("hpe.report")
    pages = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.globals["percents"] = percents
    pages.filters["code"] = _with_code
    script, style = (here.get_source(pages, name)[0] for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return pages.get_template(template).render(script=script, style=style, script_sha256=digest, **values)
