"""The tables of a study: the thesis' numbering, its published figures beside ours, and what it lacks.

One structure (:class:`StudyTable`) becomes Markdown, JSON and the page, so that they cannot differ.
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
from hpe.metrics import across_seeds, markdown
from hpe.metrics.association import Crossed, accuracy_by_row, associate
from hpe.report.cells import JSON_NAME, StudyTable, percent, share_cell, to_markdown, two, wilson
from hpe.report.tables import DASH, Cell, Table, count, shown, word
from hpe.study import published as thesis
from hpe.study.compare import comparison
from hpe.study.config import NETWORK_RULE, SETS, BoostedConfig, NetworkConfig, StudyConfig, models
from hpe.study.results import Results
from hpe.study.sets import Sources

_AFFECTNET: Final = "affectnet"
_SPLITS: Final = ("train", "val", "test")
_NOT_TOLD: Final = "What this table holds in the thesis is not told by the tables that we have; ours holds "


def write(config: StudyConfig, given: Sources) -> str:
    """Write ``study.json`` and ``study.md`` from what the runs have predicted; the Markdown."""
    tables, about = make(config, given)
    write_json(config.folder / JSON_NAME, {"about": about, "tables": [one.to_json() for one in tables]})
    text = to_markdown(tables, about)
    write_text(config.folder / "study.md", text)
    return text


def make(config: StudyConfig, given: Sources) -> tuple[list[StudyTable], dict[str, Any]]:
    """All tables, and what they stand on."""
    manifest = Manifest.load(given.shards)
    emotions = {
        name: tuple(range(len(EMOTIONS)))
        if (chosen := getattr(config.sets, name).emotions) is None
        else tuple(EMOTIONS.index(one) for one in chosen)
        for name in SETS
    }
    read = Results(config, given, manifest.dataset, emotions)
    tables = [*_images(read), _sizes(read)]
    if config.directions:
        tables.append(_direction_table(read))
    for name in SETS:
        tables += [_models(read, name), *_cells(read, name)]
    tables += comparison(read)
    about = {
        "dataset": f"{manifest.dataset} ({manifest.variant})",
        "shards": str(given.shards),
        "pose tables": str(given.pose),
        "direction rules": ", ".join(f"{name}: {rule}" for name, rule in given.rules.items()),
        "seeds": ", ".join(map(str, config.seeds)),
        "limits": _limits(read),
    }
    return tables, about


def _limits(read: Results) -> list[str]:
    told = [
        "From baseline to proposed the thesis changes three things at once: the rule of the directions, the number "
        "of training images, and the test images. The comparison below puts both on the same test images; rule and "
        "number stay entangled, as they are in the thesis.",
    ]
    if read.given.rules["proposed"] != NETWORK_RULE:
        told.append(
            f"The proposed set's directions are by the rule {read.given.rules['proposed']}, not by the thesis' "
            "direction network: the pose tables hold none and the study trains none."
        )
    if _AFFECTNET not in read.dataset.lower():
        told.append(
            f"The pictures are from {read.dataset}, not from AffectNet: the thesis' figures stand beside ours for "
            "orientation, not for comparison."
        )
    if (few := len(read.config.seeds)) < 3:
        subject = "One seed tells" if few == 1 else "Two seeds tell"
        told.append(f"{subject} little of how much results vary between runs.")
    for name in SETS:
        wanted = getattr(read.config.sets, name)
        left = {"directions": (wanted.directions, DIRECTIONS), "emotions": (wanted.emotions, EMOTIONS)}
        for what, (kept, names) in left.items():
            if kept is not None and (absent := [one for one in names if one not in kept]):
                told.append(f"The {name} set leaves out {what}: {', '.join(absent)}; figures are on the others.")
    return told


# --- Tables of chapter 3


def _images(read: Results) -> Iterator[StudyTable]:
    """Table 3.1, and how strong the association in it is."""
    counts = {}
    for name in SETS:
        counts[name] = image_counts(read.given.shards, read.given.pose, read.given.rules[name])
    ours = counts["proposed"]
    head = ["direction", *EMOTIONS, "all"]

    def grid(values: np.ndarray) -> list[list[Cell]]:
        most = max(int(values.max()), 1)
        rows = [
            [word(d), *(replace(count(n), shade=n / most) for n in row.tolist()), count(int(row.sum()))]
            for d, row in zip(DIRECTIONS, values, strict=True)
        ]
        return [*rows, [word("all"), *map(count, values.sum(0).tolist()), count(int(values.sum()))]]

    images = sum(shard.samples for shard in Manifest.load(read.given.shards).shards)
    notes = [
        f"Directions by the rule {read.given.rules['proposed']}; all splits. Of {images:,} images "
        f"{images - int(ours.sum()):,} are not counted: they lack a direction or an emotion."
    ]
    yield StudyTable("3.1", "Images per direction and emotion", Table("table-3-1", head, grid(ours)), notes)
    if read.given.rules["baseline"] != read.given.rules["proposed"]:
        note = [
            f"The same by the baseline's rule, {read.given.rules['baseline']}; "
            f"{images - int(counts['baseline'].sum()):,} images are not counted."
        ]
        yield StudyTable(
            "3.1 b", "Images by the baseline's rule", Table("table-3-1-b", head, grid(counts["baseline"])), note
        )
    notes = ["AffectNet's images by the thesis' direction network."]
    yield StudyTable(
        "3.1 thesis", "The same in the thesis", Table("table-3-1-thesis", head, grid(thesis.IMAGES)), notes
    )
    rows = []
    for title, values in (("ours", ours), ("the thesis", thesis.IMAGES)):
        try:
            crossed = Crossed(DIRECTIONS, EMOTIONS, values, 0)
            found = associate(crossed, replicates=read.config.replicates)["association"]
            v = found["cramers_v_corrected"]
        except (UserError, KeyError):  # empty, or one row only: nothing can be associated
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
        "How strongly direction and emotion go together in these images",
        Table("association", [*head, "knowing the direction", "permutation p"], rows),
        ["`hpe association` gives residuals and the rest for any table."],
    )


def image_counts(shards: Path, pose: Path, rule: str) -> np.ndarray:
    """Images per direction and emotion [5][8], all splits."""
    from hpe.stream import LabelSource, Reading, ShardSet, Stream

    splits = Manifest.load(shards).splits
    sets = [ShardSet(str(shards), split, str(pose)) for split in splits]
    counts = Stream(sets, Reading(32, labels=LabelSource("pose", rule))).label_counts()
    return np.array(counts.both).T


def _sizes(read: Results) -> StudyTable:
    rows = []
    for name in SETS:
        folder = read.config.folder / "sets" / name
        manifest = Manifest.load(folder)
        per_cell = getattr(read.config.sets, name).per_cell.split("/")
        for place, split in enumerate(_SPLITS):
            total = sum(shard.samples for shard in manifest.shards if shard.split == split)
            theirs = thesis.SETS[name].sizes[place]
            rows.append(
                [word(name), word(split), count(int(per_cell[place])), count(total), count(theirs // 40), count(theirs)]
            )
    head = ["set", "split", "per direction and emotion", "images", "thesis: per cell", "thesis: images"]
    notes = [
        _NOT_TOLD + "the sizes of the balanced sets.",
        "The thesis' 221 + 30 + 30 = 281 images per cell cannot all be different: its Table 3.1 has 251 images of "
        "contempt to the right. Here every set is drawn from its own split, so no image is in two of them.",
    ]
    return StudyTable("3.2", "Sizes of the balanced sets", Table("table-3-2", head, rows), notes)


def _direction_table(read: Results) -> StudyTable:
    assert read.config.directions is not None
    rows, faces = [], 0
    for network in read.config.directions.networks:
        judged = read.directions(network.name)
        theirs = thesis.DIRECTION_ACCURACY.get(network.backbone)
        if judged is None:
            rows.append([word(network.name), *[Cell(DASH, None, tip="no run has finished")] * 4])
        else:
            made, faces = read.summary(judged), len(judged.truth)
            rows.append([word(network.name), count(len(judged.seeds)), *two(made)])
        rows[-1] = [*rows[-1][:4], percent(theirs)]
    head = ["network", "seeds", "accuracy", "macro F1", "thesis: accuracy"]
    manifest = Manifest.load(Path(read.config.directions.shards))
    notes = [
        f"{manifest.dataset}, {faces:,} test faces ({'; '.join(manifest.notes[:1]) or 'split not told'}). The thesis "
        "drew its test images at random, so the same people stand in its training and its test."
    ]
    return StudyTable("3.4", "Accuracy of the direction", Table("table-3-4", head, rows), notes)


# --- Tables of chapter 4


def _models(read: Results, name: str) -> StudyTable:
    theirs = thesis.SETS[name]
    rows, faces, constant = [], 0, []
    for model in models(read.config):
        if name not in model.sets:
            continue
        judged = read.judged(name, model.name, name)
        published = theirs.models.get(_thesis_name(model)) if model.name != read.config.ours else None
        beside = [percent(published[0]), Cell(f"{published[1]:.4f}", published[1])] if published else [Cell(DASH)] * 2
        if judged is None:
            rows.append([word(model.name), count(0), *[Cell(DASH, None, tip="no run has finished")] * 2, *beside])
            continue
        faces = len(judged.truth)
        constant += [model.name] if (judged.choice == judged.choice[:, :1]).all() else []
        rows.append([word(model.name), count(len(judged.seeds)), *two(read.summary(judged)), *beside])
    head = ["model", "seeds", "accuracy", "macro F1", "thesis: accuracy", "thesis: macro F1"]
    k = len(read.emotions[name])
    notes = [
        f"{faces:,} test faces, directions by {read.given.rules[name]}; the thesis had {theirs.sizes[2]:,}. Mean ± "
        "standard deviation over seeds; intervals of 95 % draw faces and seeds.",
        f"Always choosing one emotion is right in {100 / k:.1f} %, with a macro F1 of {2 / (k * (k + 1)):.4f}.",
    ]
    if once := [one.name for one in read.config.boosted if one.deterministic and name in one.sets]:
        notes.append(f"One run: {', '.join(once)} learns the same from the same pictures, whatever the seed.")
    if constant:
        notes.append(f"Nothing learned: {', '.join(constant)} chose one and the same emotion for every face.")
    title = f"Emotion on the {name} set"
    return StudyTable(theirs.table_numbers[0], title, Table(f"table-{name}-models", head, rows), notes)


def _cells(read: Results, name: str) -> Iterator[StudyTable]:
    """Correct predictions per direction and emotion, and their mean, variance and deviation."""
    theirs = thesis.SETS[name]
    _, number, by_direction, by_emotion = theirs.table_numbers
    published = _Grid(theirs.correct / theirs.per_cell, np.full(theirs.correct.shape, theirs.per_cell))
    named = [name_of for name_of in dict.fromkeys((read.config.shown, read.config.ours)) if name_of]
    grids: list[tuple[str, _Grid]] = []
    for model in named:
        judged = read.judged(name, model, name)
        if judged is None:
            continue
        made = across_seeds.cells(judged)
        n = np.array(made["count"])
        grid = _Grid(np.divide(made["correct"], n, out=np.full(n.shape, np.nan), where=n > 0), n)
        grids.append((model, grid))
        rows = [
            [
                word(d),
                *(
                    share_cell(grid.share[i, j], made["low"][i][j], made["high"][i][j], int(n[i, j]))
                    for j in range(len(EMOTIONS))
                ),
            ]
            for i, d in enumerate(DIRECTIONS)
        ]
        per_cell = ", ".join(map(str, sorted({int(v) for v in n[n > 0]})))
        notes = [f"{per_cell} faces a cell, seeds averaged; Wilson's interval of the faces of the cell."]
        notes += _direction_effect(read, made, model)
        suffix = "" if model == read.config.shown else f" {model}"
        title = f"Accuracy per direction and emotion, {name} set, {model}"
        yield StudyTable(
            number + suffix, title, Table(f"table-{name}-cells-{model}", ["direction", *EMOTIONS], rows), notes
        )
    rows = [
        [
            word(d),
            *(share_cell(published.share[i, j], *wilson(k, theirs.per_cell), theirs.per_cell) for j, k in enumerate(r)),
        ]
        for i, (d, r) in enumerate(zip(DIRECTIONS, theirs.correct.tolist(), strict=True))
    ]
    notes = [f"Correct of {theirs.per_cell} a cell; the intervals are ours."]
    notes += _effect(theirs.correct, np.full(theirs.correct.shape, theirs.per_cell), read.config.replicates)
    title = f"The same in the thesis, {name} set"
    yield StudyTable(
        f"{number} thesis", title, Table(f"table-{name}-cells-thesis", ["direction", *EMOTIONS], rows), notes
    )
    columns = [*grids, ("thesis", published)]
    for number, what, names, axis in (
        (by_direction, "direction", DIRECTIONS, 0),
        (by_emotion, "emotion", EMOTIONS, 1),
    ):
        yield _spread(number, what, names, axis, columns, name)


@dataclass(frozen=True)
class _Grid:
    """Share of correct predictions per direction and emotion, NaN in empty cells; and the faces."""

    share: np.ndarray
    count: np.ndarray


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
        _NOT_TOLD + f"mean, variance and standard deviation, over {across}, of the accuracies (percent) above.",
        "Much of the variance is chance: cells of so few faces, were all equally well read, would deviate by up to "
        "about "
        + ", ".join(f"{_by_chance(grid):.1f} ({title})" for title, grid in grids if grid.count.any())
        + " points.",
    ]
    title = f"Spread of the accuracy by {what}, {set_name} set"
    return StudyTable(number, title, Table(f"table-{set_name}-by-{what}", head, rows), notes)


def _by_chance(grid: _Grid) -> float:
    """Deviation of the cells' accuracies (percent) that the faces of a cell bring alone, binomially."""
    held = grid.count > 0
    mean = float(np.average(grid.share[held], weights=grid.count[held]))
    return 100 * float(np.sqrt(mean * (1 - mean) * np.mean(1 / grid.count[held])))


def _direction_effect(read: Results, made: Mapping[str, Any], model: str) -> list[str]:
    counted = np.array(made["count"])
    p = []
    for correct in made["correct_by_seed"]:
        found = accuracy_by_row(counted, np.array(correct), DIRECTIONS, EMOTIONS, replicates=read.config.replicates)
        if "permutation_p" in found:
            p.append(found["permutation_p"])
    if not p:
        return []
    told = ", ".join(f"{value:.2g}" for value in p)
    return [f"Does the accuracy of {model} depend on the direction? Permutation p of each seed: {told}."]


def _effect(correct: np.ndarray, counted: np.ndarray, replicates: int) -> list[str]:
    found = accuracy_by_row(counted, correct, DIRECTIONS, EMOTIONS, replicates=replicates)
    return [f"Does the accuracy depend on the direction? Permutation p: {found['permutation_p']:.2g}."]


def _thesis_name(model: NetworkConfig | BoostedConfig) -> str:
    return "adaboost" if isinstance(model, BoostedConfig) else model.backbone
