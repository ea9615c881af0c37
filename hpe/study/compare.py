"""The tables of a study that compare: every model on every test set, and baseline, proposed and ours in pairs."""

from collections.abc import Iterator

import numpy as np

from hpe.core.errors import UserError
from hpe.core.statistics import holm
from hpe.metrics import across_seeds, markdown
from hpe.report.cells import StudyTable, p_value, percent, points, two
from hpe.report.tables import DASH, Cell, Table, count, shown, word
from hpe.study.config import NATURAL, SETS, models, tests_of
from hpe.study.results import Results


def comparison(read: Results) -> Iterator[StudyTable]:
    """Every model on every test set; baseline, proposed and ours on the same faces."""
    yield _everywhere(read)
    both = [model.name for model in models(read.config) if set(SETS) <= set(model.sets)]
    pairs = [(("baseline", name), ("proposed", name)) for name in both]
    ours, theirs = read.config.ours, read.config.shown
    if ours is not None and ours != theirs:
        pairs += [((name, theirs), (name, ours)) for name in SETS]
        pairs.append((("baseline", theirs), ("proposed", ours)))
    found = []
    for (first, second), test in ((pair, test) for pair in pairs for test in tests_of(read.config)):
        one, two = read.judged(*first, test), read.judged(*second, test)
        if one is None or two is None:
            continue
        try:
            made = across_seeds.difference(one, two, replicates=read.config.replicates)
        except UserError:
            continue
        found.append((first, second, test, made))
    if not found:
        return
    tested = [made["difference"]["accuracy"]["p"] for *_, made in found]
    known = [p for p in tested if p is not None]
    corrected = iter(holm(np.array(known)).tolist() if known else [])
    rows = []
    for (first, second, test, made), p in zip(found, tested, strict=True):
        gain, f1 = made["difference"]["accuracy"], made["difference"]["macro_f1"]
        smallest = ", ".join(f"{one['p']:.2g}" for one in made["mcnemar"]) or DASH
        rows.append(
            [
                word(f"{first[0]} {first[1]}"), word(f"{second[0]} {second[1]}"), word(test), count(made["n"]),
                percent(made["first"]["accuracy"]), percent(made["second"]["accuracy"]), points(gain),
                Cell(DASH) if p is None else p_value(next(corrected)), shown(f1, markdown.decimal), word(smallest),
            ]
        )  # fmt: skip
    head = [
        "first", "second", "test faces of", "n", "accuracy of the first", "of the second", "difference",
        "p (Holm)", "difference of macro F1", "McNemar p by seed",
    ]  # fmt: skip
    notes = [
        "Both read the same faces. The difference (percentage points) and its p are of the means over seeds, faces "
        "and seeds drawn with replacement; p is corrected for the number of rows.",
        "McNemar's exact test is of single runs with the same seed: it knows nothing of how runs vary.",
    ]
    if len(read.config.seeds) == 1:
        notes.append("With one seed per model a difference may be luck of the run, whatever its p.")
    yield StudyTable(
        "comparison", "Baseline, proposed and ours on the same faces", Table("comparison", head, rows), notes
    )


def _everywhere(read: Results) -> StudyTable:
    """Every model on every test set."""
    rows = []
    tests = tests_of(read.config)
    for name in SETS:
        for model in models(read.config):
            if name not in model.sets:
                continue
            row = [word(f"{name} {model.name}")]
            for test in tests:
                judged = read.judged(name, model.name, test)
                if judged is None:
                    row += [Cell(DASH, None, tip="no run has finished")] * 2
                else:
                    row += two(read.summary(judged))
            rows.append(row)
    head = ["trained", *(f"{test}: {figure}" for test in tests for figure in ("accuracy", "macro F1"))]
    notes = [
        "Test faces of both sets" + (f" and, as `{NATURAL}`, all test faces as they come." if NATURAL in tests else ".")
    ]
    return StudyTable("all tests", "Every model on every test set", Table("all-tests", head, rows), notes)
