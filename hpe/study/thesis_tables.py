"""The thesis' tables with our results, each beside the published one; ``study.json`` and ``study.md`` hold them.

====================  ================================================================  ==========================
table                 content                                                           made by
====================  ================================================================  ==========================
3.1                   images per direction and emotion                                  ``_image_counts``
association           how strongly direction and emotion are associated in 3.1          ``_association``
3.2                   sizes of the balanced sets                                        ``_set_sizes``
3.4                   accuracy of the direction networks                                ``_direction_accuracy``
4.1 and 4.5           accuracy of every model on the baseline and the proposed set      ``_emotion_accuracy``
4.2 and 4.6           correct predictions per direction and emotion                     ``_accuracy_per_cell``
4.3, 4.4, 4.7, 4.8    their mean, variance and deviation by direction and by emotion    ``_spread``
all tests             every model on every test set                                     :mod:`hpe.study.compare`
comparison            baseline, proposed and ours on the same faces                     :mod:`hpe.study.compare`
====================  ================================================================  ==========================

The published numbers are in :mod:`hpe.study.published`. Markdown, JSON and the HTML page are written from the same
:class:`~hpe.report.cells.StudyTable`, so that they cannot differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import write_json, write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.shards import Manifest
from hpe.data.tables import arrow, tables
from hpe.metrics import across_seeds, markdown
from hpe.metrics.association import Crossed, accuracy_by_row, associate, cross
from hpe.report.cells import JSON_NAME, StudyTable, accuracy_and_f1, percent, share_cell, to_markdown, wilson
from hpe.report.tables import DASH, Cell, Table, count, shown, word
from hpe.study import published
from hpe.study.compare import comparison
from hpe.study.config import NETWORK_RULE, SETS, BoostedConfig, NetworkConfig, StudyConfig, emotion_models, set_folder
from hpe.study.results import Results
from hpe.study.sets import StudyData

_AFFECTNET: Final = "affectnet"
_SPLITS: Final = ("train", "val", "test")
_CONTENT_UNKNOWN: Final = "We do not know what this table contains in the thesis; here it contains "
_NO_RUN: Final = Cell(DASH, None, tip="no run has finished")


def write_tables(config: StudyConfig, data: StudyData) -> str:
    """Write ``study.json`` and ``study.md`` from the predictions of the runs; returns the Markdown."""
    tables, about = make_tables(config, data)
    write_json(config.folder / JSON_NAME, {"about": about, "tables": [one.to_json() for one in tables]})
    text = to_markdown(tables, about)
    write_text(config.folder / "study.md", text)
    return text


def make_tables(config: StudyConfig, data: StudyData) -> tuple[list[StudyTable], dict[str, Any]]:
    """All tables, and what they were made from."""
    manifest = Manifest.load(data.shards)
    emotions = {name: _emotions_of_set(config, name) for name in SETS}
    results = Results(config, data, manifest.dataset, emotions)
    counts = {name: image_counts(data.shards, data.pose, data.rules[name]) for name in SETS}
    tables = [*_image_counts(results, counts), *_association(results, counts["proposed"]), _set_sizes(results)]
    if config.directions:
        tables.append(_direction_accuracy(results))
    for name in SETS:
        tables += [_emotion_accuracy(results, name), *_accuracy_per_cell(results, name)]
    tables += comparison(results)
    about = {
        "dataset": f"{manifest.dataset} ({manifest.variant})",
        "shards": str(data.shards),
        "pose tables": str(data.pose),
        "direction rules": ", ".join(f"{name}: {rule}" for name, rule in data.rules.items()),
        "seeds": ", ".join(map(str, config.seeds)),
        "limits": _limits(results),
    }
    return tables, about


def _emotions_of_set(config: StudyConfig, name: str) -> tuple[int, ...]:
    """The emotions of a set: those that its config names, else those that its shards have."""
    chosen = getattr(config.sets, name).emotions
    if chosen is None:
        counted = Manifest.load(set_folder(config, name)).counts.get("emotion", {}).get("train", {})
        chosen = [one for one in EMOTIONS if counted.get(one)] or EMOTIONS
    return tuple(EMOTIONS.index(one) for one in chosen)


def _limits(results: Results) -> list[str]:
    """What a reader must know before comparing these tables with the thesis."""
    limits = [
        "From baseline to proposed the thesis changes three things at once: the rule of the directions, the number "
        "of training images, and the test images. The comparison below evaluates both on the same test images; the "
        "effects of rule and number remain inseparable, as in the thesis.",
    ]
    if results.data.rules["proposed"] != NETWORK_RULE:
        limits.append(
            f"The directions of the proposed set are decided by the rule {results.data.rules['proposed']}, "
            "not by the thesis' direction network: the pose tables do not contain its directions, and this study does "
            "not train it."
        )
    if _AFFECTNET not in results.dataset.lower():
        limits.append(
            f"The images are from {results.dataset}, not from AffectNet: the thesis' results are here for orientation, "
            "not for comparison."
        )
    if (few := len(results.config.seeds)) < 3:
        subject = "One seed shows" if few == 1 else "Two seeds show"
        limits.append(f"{subject} little of how much results vary between runs.")
    for name in SETS:
        wanted = getattr(results.config.sets, name)
        left = {"directions": (wanted.directions, DIRECTIONS), "emotions": (wanted.emotions, EMOTIONS)}
        for what, (kept, names) in left.items():
            if kept is not None and (absent := [one for one in names if one not in kept]):
                limits.append(f"The {name} set leaves out {what}: {', '.join(absent)}; results are on the others.")
    return limits


# --- Tables of chapter 3


def _image_counts(results: Results, counts: Mapping[str, np.ndarray]) -> Iterator[StudyTable]:
    """Table 3.1 by the rules of both sets, and the thesis'."""
    head = ["direction", *EMOTIONS, "all"]
    rules = results.data.rules
    images = sum(shard.samples for shard in Manifest.load(results.data.shards).shards)
    uncounted = {name: images - int(values.sum()) for name, values in counts.items()}
    note = (
        f"Directions by the rule {rules['proposed']}; all splits. Of {images:,} images {uncounted['proposed']:,} are "
        "not counted: they lack a direction or an emotion."
    )
    table = Table("table-3-1", head, _count_rows(counts["proposed"]))
    yield StudyTable("3.1", "Images per direction and emotion", table, [note])
    if rules["baseline"] != rules["proposed"]:
        note = (
            f"The same by the baseline's rule, {rules['baseline']}; {uncounted['baseline']:,} images are not counted."
        )
        table = Table("table-3-1-b", head, _count_rows(counts["baseline"]))
        yield StudyTable("3.1 b", "Images by the baseline's rule", table, [note])
    table = Table("table-3-1-thesis", head, _count_rows(published.IMAGES))
    note = "AffectNet's images by the thesis' direction network."
    yield StudyTable("3.1 thesis", "The same in the thesis", table, [note])


def _count_rows(values: np.ndarray) -> list[list[Cell]]:
    """A row per direction, shaded by count, and a row of sums."""
    most = max(int(values.max()), 1)
    rows = [
        [word(d), *(replace(count(n), shade=n / most) for n in row.tolist()), count(int(row.sum()))]
        for d, row in zip(DIRECTIONS, values, strict=True)
    ]
    return [*rows, [word("all"), *map(count, values.sum(0).tolist()), count(int(values.sum()))]]


def _association(results: Results, ours: np.ndarray) -> Iterator[StudyTable]:
    """How strong the association in Table 3.1 is, in ours and in the thesis'."""
    rows = []
    for title, values in (("ours", ours), ("the thesis", published.IMAGES)):
        try:
            crossed = Crossed(DIRECTIONS, EMOTIONS, values, 0, "direction", "emotion")
            found = associate(crossed, replicates=results.config.replicates)["association"]
            v = found["cramers_v_corrected"]
        except (UserError, KeyError):  # empty, or a single row: an association is not defined
            continue
        rows.append(
            [
                word(title), count(found["n"]), shown(v, markdown.decimal), word(found["strength"]),
                percent(found["share_of_entropy_explained"]),
                percent(found["best_guess_without"]),
                percent(found["best_guess_given_row"]),
                Cell(f"{found['permutation']['p']:.2g}", found["permutation"]["p"]),
            ]
        )  # fmt: skip
    head = ["images", "n", "Cramér's V", "strength", "of the emotion's uncertainty", "best guess of the emotion"]
    yield StudyTable(
        "association",
        "How strongly direction and emotion are associated in these images",
        Table("association", [*head, "knowing the direction", "permutation p"], rows),
        ["`hpe association` gives residuals and more for any table."],
    )


def image_counts(shards: Path, pose: Path, rule: str) -> np.ndarray:
    """Images per direction and emotion [5][8], all splits."""
    return cross(arrow(tables(shards, pose=pose, direction=rule))).counts


def _set_sizes(results: Results) -> StudyTable:
    rows = []
    for name in SETS:
        folder = set_folder(results.config, name)
        manifest = Manifest.load(folder)
        per_cell = getattr(results.config.sets, name).per_cell.split("/")
        for place, split in enumerate(_SPLITS):
            total = sum(shard.samples for shard in manifest.shards if shard.split == split)
            theirs = published.SETS[name].sizes[place]
            rows.append(
                [word(name), word(split), count(int(per_cell[place])), count(total), count(theirs // 40), count(theirs)]
            )
    head = ["set", "split", "per direction and emotion", "images", "thesis: per cell", "thesis: images"]
    notes = [
        _CONTENT_UNKNOWN + "the sizes of the balanced sets.",
        "The thesis' 221 + 30 + 30 = 281 images per cell cannot all be different: its Table 3.1 has 251 images of "
        "contempt to the right. Here every set is drawn from its own split, so that no image is in two of them.",
    ]
    return StudyTable("3.2", "Sizes of the balanced sets", Table("table-3-2", head, rows), notes)


def _direction_accuracy(results: Results) -> StudyTable:
    assert results.config.directions is not None
    rows, faces = [], 0
    for network in results.config.directions.networks:
        judged = results.judged_directions(network.name)
        theirs = published.DIRECTION_ACCURACY.get(network.backbone)
        if judged is None:
            rows.append([word(network.name), *[_NO_RUN] * 4])
        else:
            made, faces = results.summary(judged), len(judged.truth)
            rows.append([word(network.name), count(len(judged.seeds)), *accuracy_and_f1(made)])
        rows[-1] = [*rows[-1][:4], percent(theirs)]
    head = ["network", "seeds", "accuracy", "macro F1", "thesis: accuracy"]
    manifest = Manifest.load(Path(results.config.directions.shards))
    notes = [
        f"{manifest.dataset}, {faces:,} test faces ({'; '.join(manifest.notes[:1]) or 'split unknown'}). The thesis "
        "drew its test images at random, so the same people appear in its training and test images."
    ]
    return StudyTable("3.4", "Accuracy of the direction", Table("table-3-4", head, rows), notes)


# --- Tables of chapter 4


def _emotion_accuracy(results: Results, name: str) -> StudyTable:
    theirs = published.SETS[name]
    rows, faces, constant = [], 0, []
    for model in emotion_models(results.config):
        if name not in model.sets:
            continue
        judged = results.judged(name, model.name, name)
        # Our own network may have a backbone of the thesis, and is another model all the same.
        known = theirs.models.get(_thesis_name(model)) if model.name != results.config.ours else None
        beside = [percent(known[0]), Cell(f"{known[1]:.4f}", known[1])] if known else [Cell(DASH)] * 2
        if judged is None:
            rows.append([word(model.name), count(0), *[_NO_RUN] * 2, *beside])
            continue
        faces = len(judged.truth)
        constant += [model.name] if (judged.choice == judged.choice[:, :1]).all() else []
        rows.append([word(model.name), count(len(judged.seeds)), *accuracy_and_f1(results.summary(judged)), *beside])
    head = ["model", "seeds", "accuracy", "macro F1", "thesis: accuracy", "thesis: macro F1"]
    k = len(results.emotions[name])
    notes = [
        f"{faces:,} test faces, directions by {results.data.rules[name]}; the thesis had {theirs.sizes[2]:,}. Mean ± "
        "standard deviation over seeds; 95 % intervals by resampling faces and seeds.",
        f"Always choosing one emotion is right in {100 / k:.1f} %, with a macro F1 of {2 / (k * (k + 1)):.4f}.",
    ]
    if once := [one.name for one in results.config.boosted if one.fixed_seed and name in one.sets]:
        notes.append(
            f"One run: {', '.join(once)} has a fixed seed, by which its trees decide between equally good splits."
        )
    if constant:
        notes.append(f"Nothing learned: {', '.join(constant)} chose the same emotion for every face.")
    title = f"Emotion on the {name} set"
    return StudyTable(theirs.table_numbers[0], title, Table(f"table-{name}-models", head, rows), notes)


@dataclass(frozen=True)
class _Grid:
    """Share of correct predictions per direction and emotion, NaN in empty cells; and the number of faces."""

    share: np.ndarray
    count: np.ndarray


def _accuracy_per_cell(results: Results, name: str) -> Iterator[StudyTable]:
    """Accuracy per direction and emotion of the shown models and of the thesis' model, and how it is spread."""
    theirs = published.SETS[name]
    _, number, by_direction, by_emotion = theirs.table_numbers
    columns: list[tuple[str, _Grid]] = []
    for model in filter(None, dict.fromkeys((results.config.shown, results.config.ours))):
        judged = results.judged(name, model, name)
        if judged is None:
            continue
        cells = across_seeds.cells(judged)
        n = np.array(cells["count"])
        grid = _Grid(np.divide(cells["correct"], n, out=np.full(n.shape, np.nan), where=n > 0), n)
        columns.append((model, grid))
        suffix = "" if model == results.config.shown else f" {model}"
        per_cell = ", ".join(map(str, sorted({int(v) for v in n[n > 0]})))
        notes = [f"{per_cell} faces per cell, averaged over seeds; Wilson intervals over the faces of a cell."]
        notes += _direction_effect(results, cells, model)
        yield StudyTable(
            number + suffix,
            f"Accuracy per direction and emotion, {name} set, {model}",
            _cell_table(f"table-{name}-cells-{model}", grid, np.array(cells["low"]), np.array(cells["high"])),
            notes,
        )
    n = np.full(theirs.correct.shape, theirs.per_cell)
    grid = _Grid(theirs.correct / theirs.per_cell, n)
    ends = np.array([[wilson(k, theirs.per_cell) for k in row] for row in theirs.correct.tolist()])
    notes = [f"Correct of {theirs.per_cell} per cell; the intervals are ours."]
    effect = accuracy_by_row(n, theirs.correct, DIRECTIONS, EMOTIONS, replicates=results.config.replicates)
    notes.append(f"Does the accuracy depend on the direction? Permutation p: {effect['permutation_p']:.2g}.")
    yield StudyTable(
        f"{number} thesis",
        f"The same in the thesis, {name} set",
        _cell_table(f"table-{name}-cells-thesis", grid, ends[..., 0], ends[..., 1]),
        notes,
    )
    columns.append(("thesis", grid))
    yield _spread(by_direction, "direction", DIRECTIONS, 0, columns, name)
    yield _spread(by_emotion, "emotion", EMOTIONS, 1, columns, name)


def _cell_table(name: str, grid: _Grid, low: np.ndarray, high: np.ndarray) -> Table:
    """A row per direction, a column per emotion; ``low`` and ``high`` are the ends of each cell's interval."""
    shares, counts, lows, highs = (values.tolist() for values in (grid.share, grid.count, low, high))
    rows = [
        [word(direction), *map(share_cell, shares[i], lows[i], highs[i], counts[i])]
        for i, direction in enumerate(DIRECTIONS)
    ]
    return Table(name, ["direction", *EMOTIONS], rows)


def _spread(
    number: str, what: str, names: Sequence[str], axis: int, grids: Sequence[tuple[str, _Grid]], set_name: str
) -> StudyTable:
    """Mean, variance and deviation (divisor n) of the cells of each row or column, and of all cells."""
    rows = []
    for index, label in enumerate([*names, "all cells"]):
        row = [word(label)]
        for _, grid in grids:
            values = grid.share.ravel() if index == len(names) else np.take(grid.share, index, axis)
            values = 100 * values[np.isfinite(values)]
            if not len(values):
                row += [Cell(DASH, None, tip="no face")] * 3
                continue
            figures = (float(values.mean()), float(values.var()), float(values.std()))
            row += [Cell(f"{value:.1f}", value) for value in figures]
        rows.append(row)
    head = [what, *(f"{title}: {figure}" for title, _ in grids for figure in ("mean", "variance", "deviation"))]
    across = "emotions" if what == "direction" else "directions"
    notes = [
        _CONTENT_UNKNOWN + f"mean, variance and standard deviation, over {across}, of the accuracies (percent) above.",
        "Much of the variance is chance: with so few faces per cell, even equally accurate cells would have a standard "
        "deviation of about "
        + ", ".join(f"{_by_chance(grid):.1f} ({title})" for title, grid in grids if grid.count.any())
        + " points.",
    ]
    title = f"Spread of the accuracy by {what}, {set_name} set"
    return StudyTable(number, title, Table(f"table-{set_name}-by-{what}", head, rows), notes)


def _by_chance(grid: _Grid) -> float:
    """Standard deviation (percent) that the cells' accuracies would have by binomial chance alone."""
    held = grid.count > 0
    mean = float(np.average(grid.share[held], weights=grid.count[held]))
    return 100 * float(np.sqrt(mean * (1 - mean) * np.mean(1 / grid.count[held])))


def _direction_effect(results: Results, cells: Mapping[str, Any], model: str) -> list[str]:
    """A note on whether the accuracy depends on the direction; none where no seed can be tested."""
    counted = np.array(cells["count"])
    p = []
    for correct in cells["correct_by_seed"]:
        found = accuracy_by_row(counted, np.array(correct), DIRECTIONS, EMOTIONS, replicates=results.config.replicates)
        if "permutation_p" in found:
            p.append(found["permutation_p"])
    if not p:
        return []
    values = ", ".join(f"{value:.2g}" for value in p)
    return [f"Does the accuracy of {model} depend on the direction? Permutation p of each seed: {values}."]


def _thesis_name(model: NetworkConfig | BoostedConfig) -> str:
    return "adaboost" if isinstance(model, BoostedConfig) else model.backbone
