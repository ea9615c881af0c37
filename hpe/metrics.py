"""Validation metrics of a network's heads, exact over any number of ranks: every state is a sum.

Gathering padded batches counts the padding; sums of what each rank has seen do not.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from hpe.batch import Batch
from hpe.geometry import angle_errors, geodesic_degrees, maev_degrees, rotation_from_euler
from hpe.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.models.multitask import Outputs, angles_of

_OF_CLASSES: Final = ("accuracy", "macro_f1", "ece")
_OF_POSES: Final = ("mae", *(f"{name}_mae" for name in ANGLES), "geodesic", "maev")
FIGURES: Final = {
    "emotion": tuple(f"emotion/{name}" for name in _OF_CLASSES),
    "direction": tuple(f"direction/{name}" for name in _OF_CLASSES),
    "pose": tuple(f"pose/{name}" for name in _OF_POSES),
    "affect": ("affect/rmse",),
}
"""What can be said of a head's labelled samples, and a run be chosen by."""
LOWER_IS_BETTER: Final = ("loss", "mae", "geodesic", "maev", "ece", "rmse")


class Reliability(Metric):
    """Expected calibration error over 15 equal bins of confidence (Guo et al., 2017), from sums alone."""

    confidence: Tensor
    correct: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for name in ("confidence", "correct", "count"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Float[Tensor, "batch classes"], truth: Int64[Tensor, " batch"]) -> None:
        """Add a batch of labelled samples."""
        confidence, choice = probabilities.max(1)
        place = (confidence * self.bins).long().clamp(0, self.bins - 1)  # of a NaN it may be any number
        for state, values in (
            (self.confidence, confidence),
            (self.correct, choice == truth),
            (self.count, torch.ones_like(confidence)),
        ):
            state.index_add_(0, place, values.to(state.dtype))

    def compute(self) -> Tensor:
        """The error, 0..1."""
        return (self.confidence - self.correct).abs().sum() / self.count.sum().clamp(min=1)


class HeadMetrics(nn.Module):
    """Metrics of the heads that are on; ``figures`` are named ``emotion/accuracy``, ``pose/yaw_mae`` …"""

    def __init__(self, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = nn.ModuleDict()
        for head, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
            if head in heads:
                self.classes[head] = nn.ModuleDict(
                    {
                        "accuracy": MulticlassAccuracy(len(names), average="micro"),
                        "macro_f1": MulticlassF1Score(len(names), average="macro"),
                        "confusion": MulticlassConfusionMatrix(len(names)),
                        "ece": Reliability(),
                    }
                )
        self.sums = nn.ModuleDict()
        self.heads = heads
        for head in heads:
            self.sums[f"{head} labels"] = SumMetric()
        names = [*ANGLES, "geodesic", "maev"] * ("pose" in heads) + ["affect squares"] * ("affect" in heads)
        for name in names:  # a NaN that is left out of its sum would count as no error at all
            self.sums[name] = SumMetric(nan_strategy="disable")

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch; samples without a head's label do not count for it."""
        for head, truth, mask in (
            ("emotion", batch.emotion, batch.emotion_mask),
            ("direction", batch.direction, batch.direction_mask),
        ):
            if head in self.classes and self._count(head, mask):
                share = outputs[head].float().softmax(-1)[mask]
                for metric in self.classes[head].values():  # pyright: ignore[reportCallIssue]
                    metric.update(share, truth[mask])
        if "pose" in self.heads and self._count("pose", batch.angles_mask):
            self._update_pose(angles_of(outputs["pose"])[batch.angles_mask], batch.angles[batch.angles_mask])
        if "affect" in self.heads and self._count("affect", batch.affect_mask):
            error = (outputs["affect"].float() - batch.affect)[batch.affect_mask]
            self._add("affect squares", error.square().mean(1))

    def _update_pose(self, predicted: Float[Tensor, "batch 3"], truth: Float[Tensor, "batch 3"]) -> None:
        for name, error in zip(ANGLES, angle_errors(predicted, truth).unbind(-1), strict=True):
            self._add(name, error)
        rotations = rotation_from_euler(predicted), rotation_from_euler(truth)
        self._add("geodesic", geodesic_degrees(*rotations))
        self._add("maev", maev_degrees(*rotations))

    def _add(self, name: str, values: Tensor) -> None:
        metric = self.sums[name]
        assert isinstance(metric, SumMetric)
        metric.update(values)

    def _count(self, head: str, mask: Bool[Tensor, " batch"]) -> bool:
        self._add(f"{head} labels", mask.sum())
        return bool(mask.any())

    def figures(self) -> tuple[dict[str, float], Mapping[str, Int64[Tensor, "classes classes"]]]:
        """Figures, and confusion matrices (rows are truth) by head. A head without labels has none.

        Where an output of a labelled sample is no finite number, its head's figures are none either.
        With several ranks this is a collective call.
        """
        with warnings.catch_warnings():
            # A rank may have seen no label of a head: its sums are rightly zero.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            return self._figures()

    def _figures(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        sums = {name: float(metric.compute()) for name, metric in self.sums.items()}  # pyright: ignore[reportCallIssue]
        figures: dict[str, float] = {}
        confusions: dict[str, Tensor] = {}
        for head in self.heads:
            labels = sums[f"{head} labels"]
            figures[f"{head}/labels"] = labels
            if head in self.classes:
                computed = {name: m.compute() for name, m in self.classes[head].items()} if labels else {}  # pyright: ignore[reportCallIssue]
                if labels:
                    confusions[head] = computed.pop("confusion").cpu()
                found = {f"{head}/{name}": float(value) for name, value in computed.items()}
                if labels and not math.isfinite(found[f"{head}/ece"]):  # a class can be chosen among NaNs too
                    found = dict.fromkeys(found, math.nan)
                figures |= found
            elif head == "pose" and labels:
                figures |= {f"pose/{name}_mae": sums[name] / labels for name in ANGLES}
                figures["pose/mae"] = sum(sums[name] for name in ANGLES) / labels / len(ANGLES)
                figures |= {f"pose/{name}": sums[name] / labels for name in ("geodesic", "maev")}
            elif head == "affect" and labels:
                figures["affect/rmse"] = (sums["affect squares"] / labels) ** 0.5
        return figures, confusions


def better(name: str, value: float, than: float | None) -> bool:
    """Whether a figure beats another one of the same name; one that is not finite beats none, and any finite one it."""
    if than is None or not (math.isfinite(value) and math.isfinite(than)):
        return math.isfinite(value)
    return value < than if name.rsplit("/", 1)[-1].endswith(LOWER_IS_BETTER) else value > than
