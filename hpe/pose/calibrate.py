"""``hpe calibrate``: our direction thresholds from faces whose direction is known, evaluated on unseen people."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int64

from hpe.core.errors import UserError
from hpe.core.files import refuse_unwritable
from hpe.core.statistics import CONFIDENCE
from hpe.data.directions import ABSTAIN, OURS, Thresholds
from hpe.data.shard_files import find_shards
from hpe.metrics.values import Figure, Resampling, figure, noise_figure, ratio
from hpe.pose.check import join_with_truth
from hpe.pose.plan import table_path

FOLDS: Final = 5
TARGET_ACCURACY: Final = 0.9
_STEPS_DEGREES: Final = np.arange(4.0, 60.5, 0.5)
_SPREADS: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
_FLOORS: Final = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0)
_LEAST: Final = np.arange(0.0, 1.0, 0.01)

Angles = Float[np.ndarray, "faces 3"]
Labels = Int64[np.ndarray, " faces"]


def fit(angles: Angles, deviations: Angles, truth: Labels, target: float = TARGET_ACCURACY) -> Thresholds:
    """Thresholds by accuracy, then the confidence by likelihood, then the least confidence for a target accuracy.

    Args:
        angles, deviations: yaw, pitch, roll in degrees (NaN deviations where the estimator gives none).
        truth: directions, none missing.
        target: wanted accuracy of the decided faces; where no least confidence reaches it, the nearest is taken.
    """
    thresholds = _fit_angles(angles, truth)
    thresholds = _fit_confidence(thresholds, angles, deviations, truth)
    confidence = thresholds.confidence(angles, deviations)
    right = thresholds.decide(angles) == truth
    accuracies = [right[confidence >= least].mean() if (confidence >= least).any() else 0.0 for least in _LEAST]
    reached = [least for least, accuracy in zip(_LEAST, accuracies, strict=True) if accuracy >= target]
    least = reached[0] if reached else _LEAST[int(np.argmax(accuracies))]
    return replace(thresholds, least_confidence=round(float(least), 2))


def _fit_angles(angles: Angles, truth: Labels) -> Thresholds:
    """Improve one threshold after the other, until none raises the balanced accuracy."""
    classes = np.unique(truth)

    def score(thresholds: Thresholds) -> float:
        right = thresholds.decide(angles) == truth
        return float(np.mean([right[truth == label].mean() for label in classes]))

    best = OURS.never_abstaining()
    while True:
        before = score(best)
        for name in ("left", "right", "up", "down"):
            best = max((replace(best, **{name: float(step)}) for step in _STEPS_DEGREES), key=score)
        if score(best) <= before:
            return best


def _fit_confidence(thresholds: Thresholds, angles: Angles, deviations: Angles, truth: Labels) -> Thresholds:
    right = thresholds.decide(angles) == truth
    spreads = _SPREADS if np.isfinite(deviations).any() else (0.0,)

    def likelihood(one: Thresholds) -> float:
        # One face that is wrong with certainty would have a likelihood of 0, whatever the others say.
        confidence = one.confidence(angles, deviations).clip(0.01, 0.99)
        return float(np.log(np.where(right, confidence, 1 - confidence)).mean())

    tried = [replace(thresholds, spread=s, floor=f) for s in spreads for f in _FLOORS]
    return max(tried, key=likelihood)


def cross_validate(
    angles: Angles, deviations: Angles, truth: Labels, people: Sequence[str], target: float = TARGET_ACCURACY
) -> dict[str, Any]:
    """Metrics on people that the thresholds were not fitted on (grouped folds).

    Returns:
        Accuracy without abstaining, coverage and accuracy with it, the calibration error of the confidence,
        and a curve of coverage against accuracy. ``intervals`` holds the same metrics with their bootstrap
        intervals over people (without refitting), or the reason why there is none.
    """
    from sklearn.model_selection import GroupKFold

    # By person: two pictures of one head, one of them fitted on, would make the rule look better than it is.
    decided = np.full(len(truth), ABSTAIN)
    always, confidence = decided.copy(), np.zeros(len(truth))
    for train, test in GroupKFold(FOLDS).split(angles, truth, people):
        rule = fit(angles[train], deviations[train], truth[train], target)
        always[test] = rule.decide(angles[test])
        confidence[test] = rule.confidence(angles[test], deviations[test])
        decided[test] = rule(angles[test], deviations[test])
    right, sure = always == truth, decided != ABSTAIN
    order = np.argsort(-confidence, kind="stable")
    draw = Resampling(np.unique(people, return_inverse=True)[1], by_subject=True)
    surest = {share: order[: max(1, len(order) * share // 10)] for share in range(1, 11)}
    curve = [
        {"coverage": share / 10, "accuracy": float(right[rows].mean()), "interval": _share(right[rows], draw.of(rows))}
        for share, rows in surest.items()
    ]
    place = (confidence * 10).astype(int).clip(0, 9)
    excess = (right - confidence)[:, None] * (place[:, None] == np.arange(10))
    error = np.abs(excess.sum(0)).sum() / len(truth)
    drawn = draw.sums(np.column_stack((excess, np.ones(len(truth)))))
    errors = None if drawn is None else ratio(np.abs(drawn[:, :-1]).sum(1), drawn[:, -1])
    return {
        "faces": len(truth),
        "people": len(set(people)),
        "folds": FOLDS,
        "accuracy": float(right.mean()),
        "coverage_with_abstaining": float(sure.mean()),
        "accuracy_with_abstaining": float(right[sure].mean()) if sure.any() else None,
        "calibration_error": float(error),
        "coverage_accuracy": curve,
        "intervals": {
            "confidence": CONFIDENCE,
            "unit": "person",
            "accuracy": _share(right, draw),
            "coverage_with_abstaining": _share(sure, draw),
            "accuracy_with_abstaining": _share(right[sure], draw.of(sure)),
            "calibration_error": noise_figure(float(error), len(truth), errors),
        },
    }


def _share(held: Bool[np.ndarray, " faces"], draw: Resampling) -> Figure:
    """The share of faces of which something holds, with its interval over people."""
    drawn = draw.sums(np.column_stack((held, np.ones(len(held)))))
    shares = None if drawn is None else ratio(drawn[:, 0], drawn[:, 1])
    return figure(float(held.mean()) if len(held) else float("nan"), len(held), shares, reason="no face is decided")


def usable(angles: Angles, truth: Labels, people: Sequence[str]) -> np.ndarray:
    """Rows with angles and a direction.

    Raises:
        UserError: too few people or directions to fit and judge.
    """
    rows = np.isfinite(angles).all(1) & (truth != ABSTAIN)
    count = len({person for person, row in zip(people, rows, strict=True) if row})
    if count < FOLDS or len(np.unique(truth[rows])) < 5:
        raise UserError(
            f"hpe calibrate: {int(rows.sum())} faces of {count} people with {len(np.unique(truth[rows]))} directions; "
            f"expected at least {FOLDS} people and all five directions, such as Pointing'04"
        )
    return rows


def run(
    sources: Sequence[str], *, poses: Path | None, estimator: str, split: str | None, target: float, out: Path
) -> None:
    """Fit our rule on the pose tables of shards with known directions; write it, and print its metrics.

    Raises:
        UserError: no tables, or too few people or directions.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; expected a file name such as {out / 'ours.json'}")
    pairs = [(shard, table_path(shard, poses, estimator)) for shard in find_shards(sources, split)]
    rows = join_with_truth(pairs)
    people = [str(subject) for subject in rows.subjects]
    good = usable(rows.predicted, rows.true_direction, people)
    refuse_unwritable(out, f"--out {out}")
    angles, deviations, truth = rows.predicted[good], rows.deviations[good], rows.true_direction[good]
    people = [person for person, row in zip(people, good, strict=True) if row]
    figures = cross_validate(angles, deviations, truth, people, target)
    rule = fit(angles, deviations, truth, target)
    rule.save(out, figures)
    print("\n".join(summary(out, rule, figures)))


def summary(out: Path, rule: Thresholds, figures: dict[str, Any]) -> list[str]:
    """What `hpe calibrate` prints: metrics with their intervals, the rule, and the command that uses it."""
    with_intervals = figures["intervals"]
    reason = with_intervals["accuracy"].get("interval_reason")
    unit = f"none: {reason}" if reason else f"{CONFIDENCE:.0%}, people drawn with replacement"
    lines = [
        f"{out}: {figures['faces']:,} faces of {figures['people']} people; on people not used to fit "
        f"(intervals: {unit}):",
        f"  always deciding   accuracy {_number(with_intervals['accuracy'])}",
    ]
    if figures["accuracy_with_abstaining"] is not None:
        lines.append(
            f"  with abstaining   accuracy {_number(with_intervals['accuracy_with_abstaining'])} of the "
            f"{figures['coverage_with_abstaining']:.1%} decided"
        )
    lines += [
        f"  the surest {place['coverage']:4.0%}  accuracy {_number(place['interval'])}"
        for place in figures["coverage_accuracy"]
    ]
    return [
        *lines,
        f"  calibration error {_number(with_intervals['calibration_error'])}",
        f"  {rule}",
        f"next: hpe pose SHARDS --estimator ESTIMATOR --rule {out}",
        "  tables of the previous rule already exist: remove them, or give the new ones another --name",
    ]


def _number(one: Figure) -> str:
    return f"{one['value']:.3f}" + ("" if one.get("low") is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
