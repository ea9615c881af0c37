"""Metrics as Markdown: the tables of notes and model cards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpe.core.labels import ANGLES
from hpe.metrics.values import Figure

DEGREES = "°"


def cell(value: object) -> str:
    """Text that cannot break a Markdown table, and cannot add HTML or a link."""
    plain = str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("\r", " ")
    return plain.replace("<", "&lt;").replace("[", "\\[")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def percent(figure: Figure) -> str:
    """``52.3 % (49.5–55.1)``, or a dash."""
    return _shown(figure, 100.0, 1, "\u00a0%")


def decimal(figure: Figure) -> str:
    """``0.518 (0.490–0.545)``, or a dash."""
    return _shown(figure, 1.0, 3, "")


def degrees(figure: Figure) -> str:
    """``4.21° (4.05–4.38)``, or a dash."""
    return _shown(figure, 1.0, 2, DEGREES)


def _shown(figure: Figure, scale: float, digits: int, unit: str) -> str:
    if figure.get("value") is None:
        return "–"
    text = f"{figure['value'] * scale:.{digits}f}{unit}".replace("-", "−")
    if figure.get("low") is None:
        return text
    low, high = f"{figure['low'] * scale:.{digits}f}", f"{figure['high'] * scale:.{digits}f}"
    return f"{text} ({low}{' to ' if low.startswith('-') else '–'}{high})".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Headline:
    """A metric of the summary of a run: its name, its formatter, and which of two values is the better one."""

    name: str
    text: Callable[[Figure], str]
    figure: Figure
    lower_is_better: bool = False


def headline_figures(figures: Mapping[str, Any]) -> list[Headline]:
    """The metrics of the summary of a run, without absent ones: tiles, comparison, model card, ``hpe runs``."""
    emotion, direction, pose = figures["emotion"], figures["direction"], figures["pose"]
    everywhere, within = (pose.get(name, {}).get("mae", {}) for name in ("all", "within_99"))
    majority = figures.get("by", {}).get("group_votes", {}).get("majority", {}).get("emotion", {})
    found = [
        Headline("Emotion accuracy", percent, emotion.get("accuracy", {})),
        # What papers on FER+ report, next to the accuracy on all faces.
        Headline("Emotion accuracy, faces with a majority of votes", percent, majority.get("accuracy", {})),
        Headline(f"Emotion macro F1{_of_classes(emotion)}", decimal, emotion.get("macro_f1", {})),
        *_shared(figures, "emotion"),
        Headline("Emotion top-2", percent, emotion.get("top_2", {})),
        Headline("Calibration error", decimal, emotion.get("calibration", {}).get("ece", {}), lower_is_better=True),
        *_without_contempt(figures),
        Headline("Direction accuracy", percent, direction.get("accuracy", {})),
        *_shared(figures, "direction"),
        Headline("Pose MAE", degrees, everywhere, lower_is_better=True),
        Headline("Geodesic error", degrees, pose.get("all", {}).get("geodesic", {}), lower_is_better=True),
        # Where no face is turned further, it is the same number of the same faces.
        *[Headline("Pose MAE, ±99° only", degrees, within, lower_is_better=True)]
        * (within.get("n") != everywhere.get("n")),
        Headline("Valence CCC", decimal, figures["valence"].get("ccc", {})),
        Headline("Arousal CCC", decimal, figures["arousal"].get("ccc", {})),
    ]
    return [one for one in found if one.figure.get("value") is not None]


def _of_classes(section: Figure) -> str:
    """`` (7 classes)`` where a mean leaves out classes that the dataset lacks."""
    count = section.get("macro_f1", {}).get("classes", 0)
    return f" ({count} classes)" if 0 < count < len(section["names"]) else ""


def _shared(figures: Mapping[str, Any], what: str) -> list[Headline]:
    """Metrics on the classes that both the run and the dataset have."""
    section = figures.get("shared", {}).get(what, {})
    if "accuracy" not in section:
        return []
    label = f"{len(section['names'])} shared labels"
    return [
        Headline(f"{what.capitalize()} accuracy, {label}", percent, section["accuracy"]),
        Headline(f"{what.capitalize()} macro F1, {label}", decimal, section["macro_f1"]),
    ]


def _without_contempt(figures: Mapping[str, Any]) -> list[Headline]:
    """AffectNet's second protocol; nothing where the dataset or the run has no contempt, as shared labels say more."""
    about = figures.get("about", {})
    learned = (about.get("trained_on") or {}).get("emotion")
    support = figures["emotion"].get("per_class", {}).get("contempt", {}).get("support")
    if not support or (learned is not None and "contempt" not in learned):
        return []
    datasets = about.get("dataset") or []
    affectnet = any(str(one).startswith(("affectnet", "thesis")) for one in datasets)
    name = "AffectNet-7 accuracy" if affectnet else "Emotion accuracy without contempt"
    return [Headline(name, percent, figures["protocols"]["affectnet_7"].get("accuracy", {}))]


def headline(figures: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Name, value with interval, and count of :func:`headline_figures`."""
    return [(one.name, one.text(one.figure), one.figure["n"]) for one in headline_figures(figures)]


def asides(about: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the metrics, from an evaluation's provenance."""
    return [*conditions(about), *warnings(about)]


def conditions(about: Mapping[str, Any]) -> list[str]:
    """Where the labels come from, and how the images were seen."""
    texts = []
    if about.get("estimated"):
        texts.append(
            f"Labels are estimated, not measured, so the metrics show agreement and not accuracy: {about['estimated']}."
        )
    if about.get("views"):
        texts.append(f"Evaluated with: {about['views']}.")
    return texts


def warnings(about: Mapping[str, Any]) -> list[str]:
    """What limits the worth of the metrics."""
    return [str(text) for text in about.get("warnings") or []]


def to_markdown(figures: Mapping[str, Any], title: str = "Metrics") -> str:
    """Every table of :func:`hpe.metrics.figures`, with the reason for each section that is absent."""
    about = figures.get("about", {})
    interval, unreadable = figures["interval"], about.get("unreadable", 0)
    lost = f", {unreadable:,} more could not be read" if unreadable else ""
    parts = [
        f"# {title}",
        f"{figures['rows']:,} samples{lost}; {interval['confidence']:.0%} intervals ({interval['method']}; "
        f"{interval['units']:,} {interval['unit']}s, {interval['replicates']:,} draws, "
        f"seed {interval['seed']}).",
        *map(cell, asides(about)),
        "## Headline",
        table(["metric", "value", "samples"], [(n, v, f"{c:,}") for n, v, c in headline(figures)]),
    ]
    for name in ("emotion", "direction"):
        parts += [f"## {name.capitalize()}", *_classes(figures[name])]
        section = figures.get("shared", {}).get(name, {})
        if "accuracy" in section:
            parts += [f"## {name.capitalize()}: {len(section['names'])} shared labels", *_shared_classes(section)]
    parts += ["## Head pose", *_pose(figures["pose"], about), "## Valence and arousal", *_affect(figures)]
    parts += ["## Emotion accuracy by direction", *_cells(figures["cells"])]
    for name, groups in figures["by"].items():
        parts += [f"## By {cell(name.removeprefix('group_'))}", _groups(name, groups)]
    return "\n\n".join(parts) + "\n"


def overview(page: str) -> str:
    """The beginning of a page of :func:`to_markdown`, for a terminal: what was judged, and the headline's metrics."""
    return page.partition("\n## Emotion\n")[0].rstrip()


def _classes(section: Figure) -> list[str]:
    if "accuracy" not in section:
        return [f"Absent: {section['reason']}."]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in section["left_out"].items())
    names = section["names"]
    return [
        f"{section['n']:,} samples" + (f"; left out: {left_out}" if left_out else "") + ".",
        _classifier_table(section),
        table(["class", "true", "chosen", "correct", "precision", "recall", "F1"], _per_class(section)),
        "Confusion (rows true, columns chosen):",
        table(["", *names], [(n, *row) for n, row in zip(names, section["confusion"], strict=True)]),
    ]


def of_classifier(section: Figure) -> list[tuple[str, Callable[[Figure], str], Figure]]:
    """Name, formatter and metric of a classifier: the class tables of NAME.md and of the page.

    ``{}`` stands for a metric that an evaluation of an earlier version lacks.
    """
    return [
        ("accuracy", percent, section.get("accuracy", {})),
        ("always the most common class", percent, section.get("chance", {})),
        (f"balanced accuracy{_of_classes(section)}", percent, section.get("balanced_accuracy", {})),
        (f"macro F1{_of_classes(section)}", decimal, section.get("macro_f1", {})),
        ("weighted F1", decimal, section.get("weighted_f1", {})),
        ("top-2", percent, section.get("top_2", {})),
        ("ECE", decimal, section.get("calibration", {}).get("ece", {})),
    ]


def _classifier_table(section: Figure) -> str:
    return table(["metric", "value"], [(name, text(one)) for name, text, one in of_classifier(section)])


def _per_class(section: Figure) -> list[tuple[object, ...]]:
    return [
        (name, one["support"], one["chosen"], one["correct"], *(decimal(one[k]) for k in ("precision", "recall", "f1")))
        for name, one in section["per_class"].items()
    ]


def shared_text(section: Figure) -> str:
    """What the metrics on shared labels are of."""
    left_out = "".join(f"; left out: {count:,} with an {reason}" for reason, count in section["left_out"].items())
    outside = section["chosen_outside"]
    return (
        f"The {section['n']:,} samples of the {len(section['names'])} classes that the run was trained on and the "
        f"dataset has ({', '.join(section['names'])}); answers are limited to these"
        + (f", except {outside:,} of a classifier that gives only its choice" if outside else "")
        + f"{left_out}."
    )


def _shared_classes(section: Figure) -> list[str]:
    return [
        shared_text(section),
        _classifier_table(section),
        table(["class", "true", "chosen", "correct", "precision", "recall", "F1"], _per_class(section)),
    ]


def protocol(about: Mapping[str, Any]) -> str:
    """Which faces, crops and angles a pose error is of: with others the same network has another error."""
    crops = ", ".join(map(str, about.get("crop") or ["unknown"]))
    variants = "; ".join(map(str, about.get("variant") or ["unknown data"]))
    return (
        f"Data: {variants}; crop {crops}. Angles are those of R = Rz(roll) Ry(yaw) Rx(pitch), "
        "predictions on the branch of the truth; `±99°` leaves out faces with an angle beyond, as Hopenet does."
    )


def _pose(section: Figure, about: Mapping[str, Any]) -> list[str]:
    if "all" not in section:
        return [f"Absent: {section['reason']}."]
    rows = []
    for title, name in (("all", "all"), ("no angle beyond ±99°", "within_99")):
        one = section[name]
        measures = ("mae", *ANGLES, "geodesic", "maev")
        rows.append((title, f"{one['n']:,}", *(degrees(one.get(measure, {})) for measure in measures)))
        if "mae" in (other := section.get("order_xyz", {}).get(name, {})):
            means = (degrees(other[measure]) for measure in measures[:4])
            rows.append((f"{title}, angles of Rx Ry Rz", f"{other['n']:,}", *means, "same", "same"))
    return [cell(protocol(about)), table(["samples", "n", "MAE", "yaw", "pitch", "roll", "geodesic", "MAEV"], rows)]


def _affect(figures: Mapping[str, Any]) -> list[str]:
    rows, reasons = [], []
    for name in ("valence", "arousal"):
        one = figures[name]
        if "ccc" in one:
            rows.append((name, f"{one['n']:,}", decimal(one["ccc"]), decimal(one["rmse"]), percent(one["sagr"])))
        else:
            reasons.append(f"{name.capitalize()} absent: {one['reason']}.")
    return ([table(["", "n", "CCC", "RMSE", "SAGR"], rows)] if rows else []) + reasons


def _cells(section: Figure) -> list[str]:
    if "count" not in section:
        return [f"Absent: {section['reason']}."]
    rows = [
        (name, *(f"{k} of {n}" if n else "none" for k, n in zip(correct, count, strict=True)))
        for name, correct, count in zip(section["rows"], section["correct"], section["count"], strict=True)
    ]
    return ["Correct of all samples in the cell:", table(["", *section["columns"]], rows)]


def _groups(name: str, groups: Mapping[str, Any]) -> str:
    rows = [
        (
            value,
            f"{one['rows']:,}",
            percent(one["emotion"].get("accuracy", {})),
            decimal(one["emotion"].get("macro_f1", {})),
            percent(one["direction"].get("accuracy", {})),
            degrees(one["pose"].get("mae", {})),
            degrees(one["pose"].get("geodesic", {})),
        )
        for value, one in groups.items()
    ]
    head = [name.removeprefix("group_"), "n", "emotion accuracy", "emotion macro F1", "direction accuracy"]
    return table([*head, "pose MAE", "geodesic"], rows)
