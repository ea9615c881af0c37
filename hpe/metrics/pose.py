"""Metrics of head pose: error per angle, geodesic and MAEV, with and without the ±99° filter, by range."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from hpe.core import geometry
from hpe.core.labels import ANGLES
from hpe.metrics.columns import Numbers, judged
from hpe.metrics.values import Figure, Resampling, absent, counted, figure, named, ratio

HOPENET_RANGE_DEGREES: Final = 99.0
"""Hopenet's bins cover [-99, 99): its published results leave out samples with any angle beyond."""
RANGES_DEGREES: Final = (-math.inf, -75.0, -45.0, -15.0, 15.0, 45.0, 75.0, math.inf)
"""Ranges of yaw and pitch by which errors are reported; each includes its low end."""
CURVE_STEP_DEGREES: Final = 10
MEASURES: Final = (*ANGLES, "mae", "geodesic", "maev")
"""The columns of :func:`errors_degrees`; ``mae`` is the mean over the three angles."""
OTHER_ORDER: Final = (*ANGLES, "mae")
"""The columns of :func:`other_order_degrees`."""


def errors_degrees(predicted: Float[ndarray, "rows 3"], truth: Float[ndarray, "rows 3"]) -> Float[ndarray, "rows 6"]:
    """Errors of each sample in the order of :data:`MEASURES`, degrees; those of angles on the branch of the truth."""
    p, t = torch.from_numpy(predicted).double(), torch.from_numpy(truth).double()
    angles = geometry.angle_errors(p, t)
    a, b = geometry.rotation_from_euler(p), geometry.rotation_from_euler(t)
    parts = (angles.mean(-1), geometry.geodesic_degrees(a, b), geometry.maev_degrees(a, b))
    return torch.cat((angles, torch.stack(parts, -1)), -1).numpy()


def other_order_degrees(
    predicted: Float[ndarray, "rows 3"], truth: Float[ndarray, "rows 3"]
) -> Float[ndarray, "rows 4"]:
    """Errors of yaw, pitch, roll and their mean, degrees, where a rotation is ``Rx(pitch) Ry(yaw) Rz(roll)``.

    Biwi+ compares these angles ("pyr" in kuhnkeF/headposeplus); Hopenet, FSA-Net and 6DRepNet those of
    ``Rz(roll) Ry(yaw) Rx(pitch)``, as :func:`errors_degrees` does. The arguments are angles of the latter.
    """
    # Rx(p) Ry(y) Rz(r) is the transpose of Rz(-r) Ry(-y) Rx(-p): signs do not change an absolute error.
    p, t = (
        geometry.euler_from_rotation(geometry.rotation_from_euler(torch.from_numpy(one).double()).transpose(-1, -2))
        for one in (predicted, truth)
    )
    errors = geometry.angle_errors(p, t)
    return torch.cat((errors, errors.mean(-1, keepdim=True)), -1).numpy()


def on_branch_of(predicted: Float[ndarray, "rows 3"], truth: Float[ndarray, "rows 3"]) -> Float[ndarray, "rows 3"]:
    """The predicted angles on the branch of the truth, within ±180° of it."""
    p, t = torch.from_numpy(predicted).double(), torch.from_numpy(truth).double()
    return (t + geometry.wrapped(geometry.nearest_euler(p, t) - t)).numpy()


def mean_errors(errors: Float[ndarray, "n 6"], draw: Resampling) -> Figure:
    """Mean of each measure with its interval, and the median and 95th percentile of the geodesic error."""
    n = len(errors)
    if not n:
        return absent("no sample in this range")
    spread = np.quantile(errors[:, MEASURES.index("geodesic")], (0.5, 0.95))
    return {
        **_means(errors, MEASURES, draw),
        "geodesic_median": float(spread[0]),
        "geodesic_95th": float(spread[1]),
    }


def _means(errors: Float[ndarray, "n columns"], names: Sequence[str], draw: Resampling) -> Figure:
    """The mean of each column with its interval."""
    n = len(errors)
    if not n:
        return absent("no sample in this range")
    drawn = draw.sums(np.column_stack((errors, np.ones(n))))
    replicates = None if drawn is None else ratio(drawn[:, :-1], drawn[:, -1:])
    figures = [
        figure(float(mean), n, None if replicates is None else replicates[:, index], reason="no sample")
        for index, mean in enumerate(errors.mean(0))
    ]
    return {"n": n, **named(names, figures)}


def within_hopenet_range(truth: Float[ndarray, "rows 3"]) -> Bool[ndarray, " rows"]:
    """Rows that Hopenet's protocol keeps."""
    return np.abs(truth).max(1) <= HOPENET_RANGE_DEGREES


def ranges(degrees: Float[ndarray, " rows"]) -> Iterator[tuple[str, Bool[ndarray, " rows"]]]:
    """Names of :data:`RANGES_DEGREES` and the rows in each."""
    for low, high in pairwise(RANGES_DEGREES):
        if math.isinf(low):
            name = f"below {high:.0f}°"
        elif math.isinf(high):
            name = f"{low:.0f}° and above"
        else:
            name = f"{low:.0f}° to {high:.0f}°"
        yield name, (degrees >= low) & (degrees < high)


def pose(truth: Numbers | None, guess: Numbers | None, deviation: Numbers | None, draw: Resampling) -> Figure:
    """Everything about head pose.

    Args:
        truth, guess: yaw, pitch, roll in degrees; None if the table has no such columns.
        deviation: the network's own standard deviations in degrees.
    """
    found = judged(truth, guess, "pose")
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    draw_all, t = draw.of(rows), truth.value[rows]
    errors = errors_degrees(guess.value[rows], t)
    kept = within_hopenet_range(t)
    other = other_order_degrees(guess.value[rows], t)
    made: Figure = {
        "n": int(rows.sum()),
        "left_out": counted(
            {
                "no pose label": (~truth.mask).sum(),
                "label but no prediction": (truth.mask & ~guess.mask).sum(),
            }
        ),
        "all": mean_errors(errors, draw_all),
        "within_99": mean_errors(errors[kept], draw_all.of(kept)) | {"dropped": int((~kept).sum())},
        "order_xyz": {
            "all": _means(other, OTHER_ORDER, draw_all),
            "within_99": _means(other[kept], OTHER_ORDER, draw_all.of(kept)),
        },
        "by_yaw": _curve(errors, t[:, 0], draw_all),
        "by_pitch": _curve(errors, t[:, 1], draw_all),
    }
    if deviation is None:
        return made | {"uncertainty": absent("the run gives no standard deviations", made["n"])}
    return made | {"uncertainty": _uncertainty(errors[:, :3], deviation, rows)}


def brief(truth: Numbers | None, guess: Numbers | None, draw: Resampling) -> Figure:
    """Mean errors alone: what the report shows of each group of samples."""
    found = judged(truth, guess, "pose")
    if isinstance(found, str):
        return absent(found)
    truth, guess, rows = found
    return mean_errors(errors_degrees(guess.value[rows], truth.value[rows]), draw.of(rows))


def _curve(errors: Float[ndarray, "n 6"], degrees: Float[ndarray, " n"], draw: Resampling) -> list[dict[str, Any]]:
    """Mean errors in steps of the angle, from the first step that contains a sample to the last."""
    step = np.floor(degrees / CURVE_STEP_DEGREES).astype(int)
    curve = []
    for index in range(step.min(), step.max() + 1):
        inside = step == index
        at = {"low": float(index * CURVE_STEP_DEGREES), "high": float((index + 1) * CURVE_STEP_DEGREES)}
        curve.append(at | mean_errors(errors[inside], draw.of(inside)))
    return curve


def _uncertainty(errors: Float[ndarray, "n 3"], deviation: Numbers, rows: Bool[ndarray, " rows"]) -> dict[str, Any]:
    """How well the network estimates its own errors, per angle.

    ``within_1_sd`` and ``within_2_sd`` are 0.68 and 0.95 if errors are Gaussian with these standard deviations.
    """
    from scipy.stats import rankdata

    usable = deviation.mask[rows] & (deviation.value[rows] > 0).all(1)
    n = int(usable.sum())
    if not n:
        return absent("no standard deviation above 0")
    made: dict[str, Any] = {"n": n}
    for index, name in enumerate(ANGLES):
        error, sd = errors[usable, index], deviation.value[rows][usable, index]
        varied = n > 1 and np.ptp(error) > 0 and np.ptp(sd) > 0
        ranks = np.corrcoef(rankdata(error), rankdata(sd))[0, 1] if varied else None
        made[name] = {
            "mean_sd": float(sd.mean()),
            "within_1_sd": float((error <= sd).mean()),
            "within_2_sd": float((error <= 2 * sd).mean()),
            "rank_correlation_with_error": None if ranks is None else float(ranks),
        }
    return made
