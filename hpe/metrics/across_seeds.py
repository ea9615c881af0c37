"""One model trained with several seeds, judged on the same faces: means, deviations, intervals, differences.

Intervals draw faces (or the people on them) and seeds with replacement, so they hold for "this recipe on such
faces", not for one lucky run. With few seeds, the variation between seeds is known only roughly.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.statistics import REPLICATES, cross_table, mcnemar_exact, wilson_interval
from hpe.metrics import classes
from hpe.metrics.columns import Key, guesses, labels, sample_keys, units
from hpe.metrics.values import Figure, Resampling, figure, two_sided_p

if TYPE_CHECKING:
    import pyarrow as pa

_NAMES: Final = {"emotion": EMOTIONS, "direction": DIRECTIONS}
_Metric = Callable[[Float[ndarray, "*many k k"]], Float[ndarray, "*many"]]
METRICS: Final[dict[str, _Metric]] = {"accuracy": classes.accuracy, "macro_f1": classes.macro_f1}


@dataclass(frozen=True)
class Judged:
    """Choices of one model's seeds for the same labelled faces.

    Attributes:
        seeds: of the rows of ``choice``.
        keys: shard and key of each face.
        truth, choice: classes.
        direction: of each face, -1 if unknown.
        unit: number of the unit that is drawn with each face, and whether units are people.
        count: number of classes.
    """

    seeds: tuple[int, ...]
    keys: tuple[Key, ...]
    truth: Int[ndarray, " faces"]
    choice: Int[ndarray, "seeds faces"]
    direction: Int[ndarray, " faces"]
    unit: tuple[Int[ndarray, " faces"], bool]
    count: int

    @property
    def right(self) -> Bool[ndarray, "seeds faces"]:
        """Whether each choice is right."""
        return self.choice == self.truth

    def at(self, rows: Int[ndarray, " some"]) -> "Judged":
        """The same for some of the faces."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        unit = (self.unit[0][rows], self.unit[1])
        return Judged(self.seeds, keys, self.truth[rows], self.choice[:, rows], self.direction[rows], unit, self.count)


def judge(
    tables: "dict[int, pa.Table]", what: str = "emotion", *, among: Collection[int] | None = None
) -> Judged | None:
    """The faces that every seed has predicted, None if there is none.

    Args:
        tables: predictions by seed (see :mod:`hpe.metrics.columns`).
        what: ``emotion`` or ``direction``.
        among: classes to keep: faces of others are left out, and no other can be chosen (a classifier that gives no
            probabilities keeps its choices).

    Raises:
        UserError: a key occurs twice in a table.
    """
    count = len(_NAMES[what])
    found = {seed: _column(table, what, count, among) for seed, table in tables.items()}
    read = {seed: one for seed, one in found.items() if one is not None}
    if not read:
        return None
    first = next(iter(read))
    common = set.intersection(*(set(places) for places, _, _ in read.values()))
    places, truth, _ = read[first]
    keys = tuple(k for k in places if k in common)
    if not keys:
        return None
    table, rows = tables[first], np.array([places[key] for key in keys])
    choice = np.stack([guess[[at[key] for key in keys]] for at, _, guess in read.values()])
    known = labels(table, "direction", len(DIRECTIONS))
    direction = np.full(len(keys), -1)
    if known is not None:
        direction = np.where(known.mask, known.value, -1)[rows]
    unit, people = units(table)
    return Judged(tuple(read), keys, truth[rows], choice, direction, (unit[rows], people), count)


def _column(
    table: "pa.Table", what: str, count: int, among: Collection[int] | None
) -> tuple[dict[Key, int], ndarray, ndarray] | None:
    """Row of each face with a label and a choice, and both columns."""
    truth, guess, keys = labels(table, what, count), guesses(table, what, count), sample_keys(table)
    if truth is None or guess is None or keys is None:
        return None
    if among is not None:
        truth, guess = classes.among(truth, guess, among)
    kept = truth.mask & guess.mask
    places = {key: row for row, key in enumerate(keys) if kept[row]}
    if len(places) < kept.sum():
        raise UserError(f"predictions: {kept.sum() - len(places)} keys occur twice; evaluate again")
    return places, truth.value, guess.choice


def summary(judged: Judged, *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Figure]:
    """Accuracy and macro F1: mean over seeds, deviation (``sd``, None for one seed), interval, values by seed."""
    drawn = _drawn(judged, replicates, seed)
    seen = _confusions(judged)
    made = {}
    for name, metric in METRICS.items():
        values = metric(seen)
        sampled = None if drawn is None else metric(drawn).mean(1)
        found = figure(float(values.mean()), len(judged.truth), sampled, reason="no sample")
        made[name] = found | {"sd": _deviation(values), "per_seed": [float(v) for v in values]}
    return made


def _deviation(values: ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _confusions(judged: Judged) -> Float[ndarray, "seeds k k"]:
    k = judged.count
    return np.stack([cross_table(judged.truth, choice, k, k) for choice in judged.choice]).astype(float)


def _drawn(
    judged: Judged, replicates: int, seed: int, stream: int = 0
) -> Float[ndarray, "replicates seeds k k"] | None:
    """Confusion matrices of drawn faces and drawn seeds."""
    k, count = judged.count, len(judged.seeds)
    one_hot = [classes.one_hot_confusion(judged.truth, choice, k) for choice in judged.choice]
    sums = Resampling(judged.unit[0], judged.unit[1], replicates, seed).sums(np.hstack(one_hot))
    if sums is None:
        return None
    drawn = sums.reshape(-1, count, k, k)
    # Two models share the drawn faces but not the drawn seeds: their runs with seed 3 have nothing else in common.
    chosen = np.random.default_rng((seed, 1 + stream)).integers(count, size=(len(drawn), count))
    return drawn[np.arange(len(drawn))[:, None], chosen]


def difference(first: Judged, second: Judged, *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Any]:
    """Second minus first on the faces that both have predicted with the same label.

    Returns:
        ``n``; per metric the difference with interval and a two-sided bootstrap ``p``; ``mcnemar``: the exact
        test for each seed that both have.

    Raises:
        UserError: no face in common.
    """
    place = {key: row for row, key in enumerate(second.keys)}
    pairs = [(row, place[key]) for row, key in enumerate(first.keys) if key in place]
    pairs = [(a, b) for a, b in pairs if first.truth[a] == second.truth[b]]
    if not pairs:
        raise UserError("paired comparison: the two models have no face in common; evaluate both on the same shards")
    here, there = (np.array(rows) for rows in zip(*pairs, strict=True))
    first = first.at(here)
    # Each table numbers its own units: by two numberings, a draw would take other faces for each model.
    second = replace(second.at(there), unit=first.unit)
    one, two = (_drawn(judged, replicates, seed, stream) for stream, judged in enumerate((first, second)))
    made: dict[str, Any] = {"n": len(pairs), "first": {}, "second": {}, "difference": {}}
    for name, metric in METRICS.items():
        a, b = metric(_confusions(first)), metric(_confusions(second))
        drawn = None if one is None or two is None else metric(two).mean(1) - metric(one).mean(1)
        found = figure(float(b.mean() - a.mean()), len(pairs), drawn, reason="no sample")
        found["p"] = None if drawn is None else two_sided_p(drawn)
        made["first"][name], made["second"][name], made["difference"][name] = float(a.mean()), float(b.mean()), found
    made["mcnemar"] = []
    for shared in (s for s in first.seeds if s in second.seeds):
        rows = first.right[first.seeds.index(shared)], second.right[second.seeds.index(shared)]
        test = mcnemar_exact(*rows)
        made["mcnemar"].append(
            {"seed": shared, "only_first": test.only_first, "only_second": test.only_second, "p": test.p}
        )
    return made


def cells(judged: Judged) -> dict[str, Any]:
    """Emotion accuracy of each direction and emotion, seeds averaged.

    The interval is Wilson's with as many trials as faces: seeds predict the same faces and add no trials.

    Returns:
        ``count`` [5][8] faces, ``correct`` (mean over seeds), ``low`` and ``high`` of the share (None: empty).
    """
    known = judged.direction >= 0
    shape = (len(DIRECTIONS), judged.count)
    count = cross_table(judged.direction[known], judged.truth[known], *shape)
    correct = np.zeros(shape)
    np.add.at(correct, (judged.direction[known], judged.truth[known]), judged.right.mean(0)[known])
    low, high = wilson_interval(correct, count.astype(float))
    return {
        "count": count.tolist(),
        "correct": correct.tolist(),
        "low": _without_nan(low),
        "high": _without_nan(high),
        "correct_by_seed": [_correct(judged, right[known], known, shape).tolist() for right in judged.right],
    }


def _correct(judged: Judged, right: ndarray, known: ndarray, shape: tuple[int, int]) -> Int[ndarray, "5 8"]:
    return cross_table(judged.direction[known][right], judged.truth[known][right], *shape)


def _without_nan(values: ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]
