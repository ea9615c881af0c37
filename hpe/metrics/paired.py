"""Two networks on the same samples: which one is right more often, and is the difference more than chance?"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.statistics import REPLICATES, cross_table, mcnemar_exact
from hpe.metrics import classes
from hpe.metrics.columns import Guesses, Key, guesses, labels, sample_keys, units
from hpe.metrics.values import Resampling, absent, figure, two_sided_p

if TYPE_CHECKING:
    import pyarrow as pa


def paired(
    first: "pa.Table",
    second: "pa.Table",
    *,
    what: str = "emotion",
    known: Collection[int] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two predictions tables on the samples that both contain (joined by shard and key), on the same labels.

    Args:
        first, second: predictions tables (see :mod:`hpe.metrics.columns`) with ``key``.
        what: ``emotion`` or ``direction``.
        known: the classes that both networks were trained on: samples of others are left out, and answers are limited
            to those of ``known`` that occur; None: unknown, nothing is limited.

    Returns:
        ``n``, ``labels`` (names of the classes, None if they are not limited), accuracies, McNemar's exact test, macro
        F1 of each and their difference (second − first) with a paired bootstrap interval and two-sided p;
        ``only_in_first``, ``only_in_second``, ``label_not_shared`` and ``label_differs`` count the samples left out.

    Raises:
        UserError: no key in common, or keys that occur twice.
    """
    names = {"emotion": EMOTIONS, "direction": DIRECTIONS}[what]
    here, there = _places(first, "first"), _places(second, "second")
    common = [key for key in here if key in there]
    if not common:
        raise UserError("paired comparison: the two tables have no sample in common; evaluate both on the same shards")
    a = np.array([here[key] for key in common])
    b = np.array([there[key] for key in common])
    left_out = {"only_in_first": len(here) - len(common), "only_in_second": len(there) - len(common)}
    truth, other = labels(first, what, len(names)), labels(second, what, len(names))
    one, two = guesses(first, what, len(names)), guesses(second, what, len(names))
    if truth is None or other is None or one is None or two is None:
        return absent(f"one of the tables has no {what} labels or predictions") | left_out
    kept = None
    if known is not None:
        kept = sorted(set(known) & set(truth.value[a][truth.mask[a]].tolist()))
        if len(kept) < 2:
            return (
                absent(f"the two networks and the dataset share {len(kept)} {what}s; two or more are needed") | left_out
            )
        left_out["label_not_shared"] = int((truth.mask[a] & ~np.isin(truth.value[a], kept)).sum())
        truth, one = classes.among(truth, one, kept)
        other, two = classes.among(other, two, kept)
    labelled = truth.mask[a] & other.mask[b]
    same = labelled & (truth.value[a] == other.value[b])
    left_out["label_differs"] = int((labelled & ~same).sum())
    rows = same & one.mask[a] & two.mask[b]
    if not rows.any():
        return absent(f"no common sample has a {what} label and both predictions") | left_out
    a, b = a[rows], b[rows]
    draw = Resampling(units(first)[0][a], units(first)[1], replicates, seed)
    limited = {"labels": None if kept is None else [names[label] for label in kept]}
    return left_out | limited | _compared(truth.value[a], (one, a), (two, b), draw, len(names))


def _places(table: "pa.Table", which: str) -> dict[Key, int]:
    keys = sample_keys(table)
    if keys is None:
        raise UserError(f"paired comparison: the {which} table has no column key")
    places = {key: row for row, key in enumerate(keys)}
    if len(places) < len(keys):
        raise UserError(f"paired comparison: {len(keys) - len(places)} keys of the {which} table occur twice")
    return places


def _compared(
    truth: ndarray, first: tuple[Guesses, ndarray], second: tuple[Guesses, ndarray], draw: Resampling, count: int
) -> dict[str, Any]:
    choices = [guess.choice[rows] for guess, rows in (first, second)]
    right = [choice == truth for choice in choices]
    f1 = [float(classes.macro_f1(cross_table(truth, choice, count, count))) for choice in choices]
    test, n = mcnemar_exact(*right), len(truth)
    both = np.hstack([classes.one_hot_confusion(truth, choice, count) for choice in choices])
    drawn, p = draw.sums(both), None
    difference = None
    if drawn is not None:
        halves = drawn.reshape(len(drawn), 2, count, count)
        difference = classes.macro_f1(halves[:, 1]) - classes.macro_f1(halves[:, 0])
        p = two_sided_p(difference)
    return {
        "n": n,
        "accuracy": [float(one.mean()) for one in right],
        "only_first_right": test.only_first,
        "only_second_right": test.only_second,
        "mcnemar_p": test.p,
        "macro_f1": f1,
        "macro_f1_difference": figure(f1[1] - f1[0], n, difference, reason="no sample"),
        "macro_f1_p": p,
    }
