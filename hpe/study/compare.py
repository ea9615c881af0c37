"""The tables of a study that compare models: all of them on every test set; baseline, proposed and ours in pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.core.statistics import holm
from hpe.metrics import across_seeds, markdown
from hpe.report.cells import StudyTable, accuracy_and_f1, p_value, percent, points
from hpe.report.tables import DASH, Cell, Table, count, shown, word
from hpe.study.config import NATURAL, SETS, emotion_models, evaluation_names
from hpe.study.results import Results

_Trained = tuple[str, str]
"""A set, and the model that was trained on it."""


def comparison(results: Results) -> Iterator[StudyTable]:
    """Every model on every test set; baseline, proposed and ours on the same faces."""
    yield _every_test(results)
    if differences := list(_differences(results)):
        yield _pairs(results, differences)


@dataclass(frozen=True)
class _Difference:
    """Two trained models on the same test faces, as :func:`hpe.metrics.across_seeds.difference` compares them."""

    first: _Trained
    second: _Trained
    test: str
    found: dict[str, Any]

    @property
    def p(self) -> float | None:
        return self.found["difference"]["accuracy"]["p"]


def _differences(results: Results) -> Iterator[_Difference]:
    """Each model on the baseline and on the proposed set; on each set and across, the shown model and ours."""
    both = [model.name for model in emotion_models(results.config) if set(SETS) <= set(model.sets)]
    pairs = [(("baseline", name), ("proposed", name)) for name in both]
    ours, theirs = results.config.ours, results.config.shown
    if ours is not None and ours != theirs:
        pairs += [((name, theirs), (name, ours)) for name in SETS]
        pairs.append((("baseline", theirs), ("proposed", ours)))
    for first, second in pairs:
        shared = set(results.emotions[first[0]]) & set(results.emotions[second[0]])
        if len(shared) < 2:
            continue
        for test in evaluation_names(results.config):
            one, other = (results.judged(*trained, test, among=shared) for trained in (first, second))
            if one is None or other is None:
                continue
            try:
                found = across_seeds.difference(one, other, replicates=results.config.replicates)
            except UserError:  # no face in common, as the two sets may have other emotions
                continue
            yield _Difference(first, second, test, found)


def _pairs(results: Results, differences: list[_Difference]) -> StudyTable:
    known = [one.p for one in differences if one.p is not None]
    corrected = iter(holm(np.array(known)).tolist() if known else [])
    rows = []
    for one in differences:
        found = one.found
        mcnemar = ", ".join(f"{test['p']:.2g}" for test in found["mcnemar"]) or DASH
        rows.append(
            [
                word(" ".join(one.first)), word(" ".join(one.second)), word(one.test), count(found["n"]),
                percent(found["first"]["accuracy"]), percent(found["second"]["accuracy"]),
                points(found["difference"]["accuracy"]),
                Cell(DASH) if one.p is None else p_value(next(corrected)),
                shown(found["difference"]["macro_f1"], markdown.decimal), word(mcnemar),
            ]
        )  # fmt: skip
    head = [
        "first", "second", "test faces of", "n", "accuracy of the first", "of the second", "difference",
        "p (Holm)", "difference of macro F1", "McNemar p by seed",
    ]  # fmt: skip
    notes = [
        "Both models predict the same faces. The difference (percentage points) and its p are those of the means over "
        "seeds, with faces and seeds resampled; p is corrected for the number of rows.",
        "McNemar's exact test compares single runs with the same seed: it ignores how much runs vary.",
    ]
    notes += _label_sets(results)
    if len(results.config.seeds) == 1:
        notes.append("With one seed per model, a difference may be due to chance in training, whatever its p.")
    table = Table("comparison", head, rows)
    return StudyTable("comparison", "Baseline, proposed and ours on the same faces", table, notes)


def _label_sets(results: Results) -> list[str]:
    """A note if the sets have other emotions: what is compared then, and what cannot be."""
    one, other = (set(results.emotions[name]) for name in SETS)
    if one == other:
        return []
    shared = [EMOTIONS[index] for index in sorted(one & other)]
    sizes = " and ".join(f"{len(results.emotions[name])} ({name})" for name in SETS)
    if len(shared) < 2:
        return [f"The sets have {sizes} emotions and share {len(shared)}: models of the two sets are not compared."]
    return [
        f"The sets have {sizes} emotions. Models of the two sets are compared on the {len(shared)} that both have "
        f"({', '.join(shared)}), and answers are limited to these: with fewer emotions to choose from, any model is "
        "right more often. Networks that were trained on more emotions may still differ for that reason alone."
    ]


def _every_test(results: Results) -> StudyTable:
    """Every model on every test set."""
    rows = []
    tests = evaluation_names(results.config)
    for name in SETS:
        for model in emotion_models(results.config):
            if name not in model.sets:
                continue
            row = [word(f"{name} {model.name}")]
            for test in tests:
                judged = results.judged(name, model.name, test)
                if judged is None:
                    row += [Cell(DASH, None, tip="no run has finished")] * 2
                else:
                    row += accuracy_and_f1(results.summary(judged))
            rows.append(row)
    head = ["set and model", *(f"{test}: {metric}" for test in tests for metric in ("accuracy", "macro F1"))]
    natural = f" and, as `{NATURAL}`, all test faces as they occur" if NATURAL in tests else ""
    table = Table("all-tests", head, rows)
    notes = [f"Test faces of both sets{natural}."]
    if len({results.emotions[name] for name in SETS}) > 1:
        notes.append(
            "Models of each set are evaluated on the emotions of their own set, which differ: do not compare a row of "
            "one set with a row of the other."
        )
        notes += _label_sets(results)
    return StudyTable("all tests", "Every model on every test set", table, notes)
