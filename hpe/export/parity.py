"""Two forms of one network on the same images: how far apart they are, and what that costs in accuracy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from hpe.core.geometry import angle_errors, geodesic_degrees, rotation_from_euler
from hpe.core.labels import ANGLES

ANGLES_APART: Final = 0.05
"""Degrees; angles of an fp32 export must not differ by more."""
AFFECT_APART: Final = 0.001
_CLASSES: Final = ("emotion", "direction")
_TIE: Final = 1e-4
"""Probability; where the two best classes are closer, either is right."""

Answers = dict[str, np.ndarray]
"""Outputs of a network by name, a row per image."""


@dataclass(frozen=True)
class Parity:
    """What two networks answered on the same images.

    Attributes:
        images: how many.
        other_class: for each head of classes, how many images got another class, ties aside.
        probability: for each head of classes, the largest difference of a probability.
        degrees: for each angle, the mean and the largest difference.
        turned: how many poses differ by more than :data:`ANGLES_APART`.
        affect: the largest difference of valence or arousal, or None.
        accuracy: for each head of classes with labels: images, accuracy of the first network, of the second.
        mae: for poses with labels: images, mean absolute error of the first network, of the second.
    """

    images: int
    other_class: dict[str, int] = field(default_factory=dict)
    probability: dict[str, float] = field(default_factory=dict)
    degrees: dict[str, tuple[float, float]] = field(default_factory=dict)
    turned: int = 0
    affect: float | None = None
    accuracy: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    mae: tuple[int, float, float] | None = None

    @property
    def problems(self) -> list[str]:
        """Why the second network is not the first, one line each."""
        lines = [
            f"{head}: another class for {n:,} of {self.images:,} images" for head, n in self.other_class.items() if n
        ]
        if self.turned:
            lines.append(f"pose: more than {ANGLES_APART}° apart for {self.turned:,} of {self.images:,} images")
        if self.affect is not None and not self.affect <= AFFECT_APART:
            lines.append(f"affect: valence or arousal differs by {self.affect:.4f}")
        return lines

    def lines(self) -> list[str]:
        """The comparison in words."""
        lines = []
        for head, count in self.other_class.items():
            lines.append(
                f"{head}: the same class for {self.images - count:,} of {self.images:,} images, probabilities within "
                f"{self.probability[head]:.5f}"
            )
            if head in self.accuracy:
                labelled, before, after = self.accuracy[head]
                lines[-1] += f"; accuracy {before:.4f} -> {after:.4f} on {labelled:,} labelled ones"
        if self.degrees:
            apart = ", ".join(f"{name} {mean:.4f}° ({largest:.4f}°)" for name, (mean, largest) in self.degrees.items())
            lines.append(f"pose: mean (largest) difference {apart}")
            if self.mae is not None:
                labelled, before, after = self.mae
                lines[-1] += f"; mean absolute error {before:.3f}° -> {after:.3f}° on {labelled:,} labelled images"
        if self.affect is not None:
            lines.append(f"affect: largest difference {self.affect:.5f}")
        return lines


def compare(first: Answers, second: Answers, labels: Answers) -> Parity:
    """The parity of two networks.

    Args:
        first, second: their outputs on the same images.
        labels: ``emotion`` and ``direction`` (-1: no label), ``angles`` in degrees (NaN: none).
    """
    images = len(next(iter(first.values())))
    other, probability, accuracy, degrees = {}, {}, {}, {}
    for head in _CLASSES:
        if head not in first:
            continue
        one, two = first[head], second[head]
        top = np.sort(one, 1)
        apart = one.argmax(1) != two.argmax(1)
        other[head] = int((apart & (top[:, -1] - top[:, -2] > _TIE)).sum() + (~np.isfinite(two).all(1)).sum())
        probability[head] = float(np.abs(one - two).max())
        known = labels[head] >= 0
        if known.any():
            truth = labels[head][known]
            rates = (float((each.argmax(1)[known] == truth).mean()) for each in (one, two))
            accuracy[head] = (int(known.sum()), *rates)
    mae, turned = None, 0
    if "angles" in first:
        apart = _errors(second["angles"], first["angles"])
        # Near yaw 90° pitch and roll of one and the same rotation may be anything: there the rotations decide.
        far = ~(apart.max(1) <= ANGLES_APART) & ~(_geodesic(second["angles"], first["angles"]) <= ANGLES_APART)
        turned = int(far.sum())
        degrees = {name: (float(apart[:, at].mean()), float(apart[:, at].max())) for at, name in enumerate(ANGLES)}
        known = ~np.isnan(labels["angles"]).any(1)
        if known.any():
            errors = (float(_errors(each["angles"][known], labels["angles"][known]).mean()) for each in (first, second))
            mae = (int(known.sum()), *errors)
    affect = float(np.abs(first["affect"] - second["affect"]).max()) if "affect" in first else None
    return Parity(images, other, probability, degrees, turned, affect, accuracy, mae)


def _errors(angles: np.ndarray, to: np.ndarray) -> np.ndarray:
    return angle_errors(torch.from_numpy(angles), torch.from_numpy(to)).numpy()


def _geodesic(angles: np.ndarray, to: np.ndarray) -> np.ndarray:
    one, two = (rotation_from_euler(torch.from_numpy(each).double()) for each in (angles, to))
    return geodesic_degrees(one, two).numpy()


def stacked(parts: Iterable[Any]) -> Answers:
    """Outputs of batches, one after another."""
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
