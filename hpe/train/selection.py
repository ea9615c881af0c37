"""The validation metrics by name, one of which chooses the best checkpoint; :mod:`hpe.train.metrics` computes them."""

import math
from typing import Final

from hpe.core.labels import ANGLES

_OF_CLASSES: Final = ("accuracy", "macro_f1", "ece")
_OF_POSES: Final = ("mae", *(f"{name}_mae" for name in ANGLES), "geodesic", "maev")
FIGURES: Final = {
    "emotion": tuple(f"emotion/{name}" for name in _OF_CLASSES),
    "direction": tuple(f"direction/{name}" for name in _OF_CLASSES),
    "pose": tuple(f"pose/{name}" for name in _OF_POSES),
    "affect": ("affect/rmse",),
}
"""What can be said of a head's labelled samples, and a run be chosen by."""
_IN_DEGREES: Final = ("mae", "geodesic", "maev")
LOWER_IS_BETTER: Final = ("loss", "mae", "geodesic", "maev", "ece", "rmse")


def unit_of(name: str) -> str:
    """What follows the value of a metric: ``°``, or nothing."""
    return "°" if name.rsplit("/", 1)[-1].endswith(_IN_DEGREES) else ""


def better(name: str, value: float, than: float | None) -> bool:
    """Whether a figure beats another one of the same name; one that is not finite beats none, and any finite one it."""
    if than is None or not (math.isfinite(value) and math.isfinite(than)):
        return math.isfinite(value)
    return value < than if name.rsplit("/", 1)[-1].endswith(LOWER_IS_BETTER) else value > than
