"""Metrics of a classifier: accuracy, F1, confusion, top-2 and calibration, each with count and interval.

Definitions are scikit-learn's: macro F1 and balanced accuracy average over the classes that occur in the truth (a
class that a dataset lacks is no part of the task: its F1 would be 0 whatever the network knows of it); weighted F1
weighs by support. Where scikit-learn would warn and give 0 (a class never chosen has no precision), the value is null
with a reason.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from hpe.core.statistics import cross_table
from hpe.metrics.columns import Guesses, Labels, judged
from hpe.metrics.values import Figure, Resampling, absent, counted, figure, named, noise_figure, ratio, share

_BINS: Final = 15
"""Equal-width bins of confidence, as in Guo et al., "On Calibration of Modern Neural Networks", 2017."""
_SUM_SLACK: Final = 0.02

_OfConfusion = Callable[[Any], Any]
Confusion = Float[ndarray, "*many classes classes"]


def accuracy(confusion: Confusion) -> Float[ndarray, "*many"]:
    """Share on the diagonal."""
    return ratio(_hits(confusion).sum(-1), confusion.sum((-1, -2)))


def recall(confusion: Confusion) -> Float[ndarray, "*many classes"]:
    """Per class, NaN without support."""
    return ratio(_hits(confusion), confusion.sum(-1))


def f1(confusion: Confusion) -> Float[ndarray, "*many classes"]:
    """``2 TP / (2 TP + FP + FN)`` per class, NaN where neither true nor chosen."""
    return ratio(2 * _hits(confusion), confusion.sum(-1) + confusion.sum(-2))


def macro_f1(confusion: Confusion) -> Float[ndarray, "*many"]:
    """Mean F1 over the classes with support."""
    return _mean_of_defined(np.where(confusion.sum(-1) > 0, f1(confusion), np.nan))


def weighted_f1(confusion: Confusion) -> Float[ndarray, "*many"]:
    """Mean F1 weighted by support."""
    support = confusion.sum(-1)
    return ratio((np.nan_to_num(f1(confusion)) * support).sum(-1), support.sum(-1))


def balanced_accuracy(confusion: Confusion) -> Float[ndarray, "*many"]:
    """Mean recall over the classes with support."""
    return _mean_of_defined(recall(confusion))


def expected_calibration_error(sums: Float[ndarray, "*many bins 3"]) -> Float[ndarray, "*many"]:
    """Σ |accuracy − confidence| · share over bins of (count, correct, confidence)."""
    return ratio(np.abs(sums[..., 1] - sums[..., 2]).sum(-1), sums[..., 0].sum(-1))


def one_hot_confusion(truth: Int[ndarray, " n"], choice: Int[ndarray, " n"], classes: int) -> Float[ndarray, "n cells"]:
    """Each sample's own confusion matrix, flattened, for the bootstrap to sum."""
    statistics = np.zeros((len(truth), classes * classes))
    statistics[np.arange(len(truth)), truth * classes + choice] = 1
    return statistics


def brief(truth: Labels | None, guess: Guesses | None, draw: Resampling, names: Sequence[str], what: str) -> Figure:
    """Count, hits, accuracy and macro F1: what the report shows of each group of samples."""
    found = judged(truth, guess, what)
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    t, c, n = truth.value[rows], guess.choice[rows], int(rows.sum())
    confusion = cross_table(t, c, len(names), len(names))
    drawn = _drawn_confusions(t, c, draw.of(rows), len(names))
    if (present := int((confusion.sum(1) > 0).sum())) < 2:
        f1_figure = absent(f"one true {what} only", n)
    else:
        replicates = None if drawn is None else macro_f1(drawn)
        f1_figure = figure(float(macro_f1(confusion)), n, replicates, reason="no sample") | {"classes": present}
    right = _right_share(t == c, draw.of(rows))
    return {"n": n, "correct": int((t == c).sum()), "accuracy": right, "macro_f1": f1_figure}


def classification(
    truth: Labels | None, guess: Guesses | None, draw: Resampling, names: Sequence[str], what: str
) -> Figure:
    """Everything about one classifier.

    Args:
        truth, guess: None if the table has no such column.
        names: of the classes, in order of their integers.
        what: what is classified ("emotion"), for the reasons.
    """
    found = judged(truth, guess, what)
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    draw, t, c, n = draw.of(rows), truth.value[rows], guess.choice[rows], int(rows.sum())
    confusion = cross_table(t, c, len(names), len(names))
    drawn = _drawn_confusions(t, c, draw, len(names))

    def of(function: _OfConfusion, reason: str = "no sample") -> Figure:
        return figure(float(function(confusion)), n, None if drawn is None else function(drawn), reason=reason)

    present = {"classes": int((confusion.sum(1) > 0).sum())}
    made: Figure = {
        "n": n,
        "left_out": counted(
            {
                f"no {what} label": (~truth.mask).sum(),
                "label but no prediction": (truth.mask & ~guess.mask).sum(),
            }
        ),
        "names": list(names),
        "absent_classes": [name for name, support in zip(names, confusion.sum(1), strict=True) if not support],
        "accuracy": _right_share(t == c, draw),
        "balanced_accuracy": of(balanced_accuracy) | present,
        "macro_f1": of(macro_f1) | present,
        "weighted_f1": of(weighted_f1),
        "chance": share(int(confusion.sum(1).max()), n, reason="no sample") | {"what": "always the most common class"},
        "per_class": named(names, [_one_class(t, c, draw, drawn, index) for index in range(len(names))]),
        "confusion": confusion.tolist(),
    }
    if guess.probability is None:
        without = absent("the table holds choices, not probabilities", n)
        return made | {"top_2": without, "calibration": without}
    p = guess.probability[rows]
    top_2 = _right_share(among_first(p, t, 2), draw)
    return made | {
        "top_2": top_2,
        "calibration": calibration(p, t, draw),
    }


def among_first(p: Float[ndarray, "n classes"], truth: Int[ndarray, " n"], k: int) -> Bool[ndarray, " n"]:
    """Whether the true class is among the ``k`` most probable; of equally probable classes the first comes first."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    return (order == truth[:, None]).any(1)


def calibration(p: Float[ndarray, "n classes"], truth: Int[ndarray, " n"], draw: Resampling) -> Figure:
    """ECE and the reliability curve; absent if a row does not sum to 1."""
    n = len(truth)
    if (np.abs(p.sum(1) - 1) > _SUM_SLACK).any() or (p < 0).any():
        return absent("these are not probabilities: a row does not sum to 1, or a number is negative", n)
    confidence, right = p.max(1), p.argmax(1) == truth
    # Bins are open below and closed above, as in the paper.
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    statistics = np.zeros((n, _BINS, 3))
    statistics[np.arange(n), place] = np.stack((np.ones(n), right, confidence), 1)
    sums = statistics.sum(0)
    drawn = draw.sums(statistics.reshape(n, -1))
    replicates = None if drawn is None else expected_calibration_error(drawn.reshape(-1, _BINS, 3))
    bins = []
    for index, (count, hits, total) in enumerate(sums):
        at = {"low": index / _BINS, "high": (index + 1) / _BINS, "n": int(count)}
        if count:
            bins.append(at | {"confidence": float(total / count), "accuracy": share(int(hits), int(count), reason="")})
        else:
            bins.append(at | {"confidence": None, "accuracy": absent("no sample in this bin")})
    truth_p = np.clip(p[np.arange(n), truth], 1e-12, 1)
    return {
        "n": n,
        "ece": noise_figure(float(expected_calibration_error(sums)), n, replicates),
        "mean_confidence": float(confidence.mean()),
        "negative_log_likelihood": float(-np.log(truth_p).mean()),
        "brier": float(((p - np.eye(p.shape[1])[truth]) ** 2).sum(1).mean()),
        "bins": bins,
    }


def among(truth: Labels, guess: Guesses, kept: Collection[int]) -> tuple[Labels, Guesses]:
    """The same with some classes alone: samples of others lose their label, and no other can be chosen.

    The probabilities of the kept classes are divided by their sum. Without probabilities, samples for which the
    classifier chose another class keep that wrong choice.
    """
    labels = Labels(truth.value, truth.mask & np.isin(truth.value, list(kept)))
    if guess.probability is None:
        return labels, guess
    columns = np.isin(np.arange(guess.probability.shape[1]), list(kept))
    choice = np.where(columns, guess.probability, -np.inf).argmax(1)
    p = np.where(columns, guess.probability, 0.0)
    # Where a network is sure of other classes, float32 may leave nothing for these: then they are equally probable.
    p = np.where(p.sum(1, keepdims=True) > 0, p, columns.astype(float))
    return labels, Guesses(choice, guess.mask, p / p.sum(1, keepdims=True))


def shared(
    truth: Labels | None,
    guess: Guesses | None,
    draw: Resampling,
    names: Sequence[str],
    what: str,
    *,
    trained: Collection[int] | None,
) -> Figure:
    """The classifier on the classes that it was trained on and that the dataset has, and with no other answer.

    Args:
        truth, guess, draw, names, what: as for :func:`classification`.
        trained: the classes that it was trained on; None: unknown.
    """
    found = judged(truth, guess, what)
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    present = {int(c) for c in np.unique(truth.value[rows])}
    if trained is None:
        return absent(f"it is not known on which {what}s the run was trained")
    if len(kept := sorted(present & set(trained))) == len(names):
        return absent(f"all {len(names)} {what}s are shared")
    if len(kept) < 2:
        return absent(f"{len(kept)} {what} is shared by the run and the dataset; two or more are needed")
    untrained = int((rows & ~np.isin(truth.value, kept)).sum())
    limited = classification(*among(truth, guess, kept), draw, names, what)
    limited["left_out"] = counted({f"{what} that the run was not trained on": untrained})
    limited["per_class"] = {names[c]: limited["per_class"][names[c]] for c in kept}
    chosen = np.array(limited.pop("confusion"))
    outside = int(chosen.sum() - chosen[:, kept].sum())
    return limited | {"names": [names[c] for c in kept], "chosen_outside": outside, "absent_classes": []}


def _one_class(
    truth: Int[ndarray, " n"], choice: Int[ndarray, " n"], draw: Resampling, drawn: Confusion | None, index: int
) -> Figure:
    true, chosen = truth == index, choice == index
    correct, either = int((true & chosen).sum()), int((true | chosen).sum())
    value = 2 * correct / (true.sum() + chosen.sum()) if either else np.nan
    replicates = None if drawn is None else f1(drawn)[:, index]
    return {
        "support": int(true.sum()),
        "chosen": int(chosen.sum()),
        "correct": correct,
        "precision": _right_share(true[chosen], draw.of(chosen), reason="never chosen"),
        "recall": _right_share(chosen[true], draw.of(true), reason="no sample of this class"),
        "f1": figure(value, either, replicates, reason="neither in the truth nor chosen"),
    }


def _right_share(right: Bool[ndarray, " n"], draw: Resampling, *, reason: str = "no sample") -> Figure:
    # Wilson's interval is right at 0 and 1 and for few samples, but only for independent samples.
    if not draw.by_subject or not len(right):
        return share(int(right.sum()), len(right), reason=reason)
    sums = draw.sums(np.stack((right, np.ones(len(right))), 1).astype(float))
    drawn = None if sums is None else ratio(sums[:, 0], sums[:, 1])
    return figure(float(right.mean()), len(right), drawn, reason=reason)


def _drawn_confusions(
    truth: Int[ndarray, " n"], choice: Int[ndarray, " n"], draw: Resampling, classes: int
) -> Confusion | None:
    sums = draw.sums(one_hot_confusion(truth, choice, classes))
    return None if sums is None else sums.reshape(-1, classes, classes)


def _hits(confusion: Confusion) -> Float[ndarray, "*many classes"]:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _mean_of_defined(values: Float[ndarray, "*many k"]) -> Float[ndarray, "*many"]:
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))
