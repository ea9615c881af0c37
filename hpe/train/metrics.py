"""Validation metrics of a network's heads, exact over any number of ranks: every state is a sum.

Gathering padded batches counts the padding; sums of what each rank has seen do not. All sums are one vector, which
stays on the device until the end: adding a batch never makes the host wait, and the figures read the device once.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

from hpe.core.geometry import angle_errors, geodesic_degrees, maev_degrees, rotation_from_euler
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.batch import Batch
from hpe.models.multitask import Outputs, angles_of

_BINS: Final = 15
_CLASSES: Final = {"emotion": len(EMOTIONS), "direction": len(DIRECTIONS)}
_SUMS: Final = {
    **{head: 1 + classes * classes + 3 * _BINS for head, classes in _CLASSES.items()},
    "pose": 1 + len(ANGLES) + 2,
    "affect": 1 + 1,
}
"""How many sums a head has; the number of its labels comes first."""


class HeadMetrics(Metric):
    """Metrics of the heads that are on; ``figures`` are named ``emotion/accuracy``, ``pose/yaw_mae`` …"""

    sums: Float[Tensor, " sums"]
    full_state_update = False

    def __init__(self, heads: tuple[str, ...]) -> None:
        super().__init__(dist_sync_fn=_of_all_ranks)
        self.heads = heads
        self.add_state("sums", torch.zeros(sum(_SUMS[head] for head in heads), dtype=torch.float64), "sum")

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch; samples without a head's label do not count for it."""
        of_head = {
            "emotion": lambda: _class_sums(outputs["emotion"], batch.emotion, batch.emotion_mask),
            "direction": lambda: _class_sums(outputs["direction"], batch.direction, batch.direction_mask),
            "pose": lambda: _pose_sums(angles_of(outputs["pose"]), batch.angles, batch.angles_mask),
            "affect": lambda: _affect_sums(outputs["affect"].float(), batch.affect, batch.affect_mask),
        }
        self.sums += torch.cat([of_head[head]() for head in self.heads])

    def compute(self) -> Float[Tensor, " sums"]:
        """The sums over all ranks, on the host."""
        return self.sums.cpu()  # the host waits here, once, for every batch of the validation

    def figures(self) -> tuple[dict[str, float], Mapping[str, Int64[Tensor, "classes classes"]]]:
        """Figures, and confusion matrices (rows are truth) by head. A head without labels has none.

        Where an output of a labelled sample is no finite number, its head's figures are none either.
        With several ranks this is a collective call.
        """
        with warnings.catch_warnings():
            # A rank may have seen no label of a head: its sums are rightly zero.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            sums = self.compute().numpy()
        figures: dict[str, float] = {}
        confusions: dict[str, Tensor] = {}
        ends = np.cumsum([_SUMS[head] for head in self.heads])
        for head, part in zip(self.heads, np.split(sums, ends[:-1]), strict=True):
            labels = float(part[0])
            figures[f"{head}/labels"] = labels
            if not labels:
                continue
            match head:
                case "pose":
                    *of_angles, geodesic, maev = (part[1:] / labels).tolist()
                    figures |= {f"pose/{name}_mae": error for name, error in zip(ANGLES, of_angles, strict=True)}
                    figures |= {"pose/mae": sum(of_angles) / len(of_angles), "pose/geodesic": geodesic}
                    figures["pose/maev"] = maev
                case "affect":
                    figures["affect/rmse"] = math.sqrt(float(part[1]) / labels)
                case _:
                    confusion, reliability = np.split(part[1:], [_CLASSES[head] ** 2])
                    confusion = confusion.reshape(_CLASSES[head], -1)
                    confusions[head] = torch.from_numpy(confusion.astype(np.int64))
                    figures |= {f"{head}/{name}": value for name, value in _class_figures(confusion, reliability)}
        return figures, confusions


def _of_all_ranks(sums: Tensor, group: Any = None) -> list[Tensor]:
    """Every rank's sums; torchmetrics' own gathering asks each rank for its shape first, and waits for the answer."""
    found = [torch.empty_like(sums) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, sums.contiguous(), group)
    return found


def _class_sums(
    logits: Float[Tensor, "batch classes"], truth: Int64[Tensor, " batch"], mask: Bool[Tensor, " batch"]
) -> Float[Tensor, " sums"]:
    """Labels, the confusion matrix by rows, and by bin of confidence: confidence, correct choices, samples.

    Products of ones and zeros, and no scattered additions, whose order, and so whose rounding, changes from run to run
    on a GPU.
    """
    counted = mask.double()[:, None]
    truth = torch.where(mask, truth, 0)  # under a false mask both may be any number
    confidence, choice = torch.where(mask[:, None], logits.float().softmax(-1), 0.0).max(1)
    true_class = F.one_hot(truth, logits.shape[1]) * counted
    confusion = true_class.T @ F.one_hot(choice, logits.shape[1]).double()
    place = (confidence * _BINS).long().clamp(0, _BINS - 1)  # of a NaN it may be any number
    seen = torch.stack((confidence.double(), (choice == truth).double(), torch.ones_like(counted[:, 0])))
    reliability = seen @ (F.one_hot(place, _BINS) * counted)
    return torch.cat((mask.sum()[None].double(), confusion.flatten(), reliability.flatten()))


def _class_figures(
    confusion: Float64[np.ndarray, "classes classes"], reliability: Float64[np.ndarray, " bins3"]
) -> Iterator[tuple[str, float]]:
    """Accuracy, F1 as a mean over the true classes, and the expected calibration error (Guo et al., 2017)."""
    true = confusion.sum(1) > 0
    right, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    confidence, correct, count = reliability.reshape(3, _BINS)
    error = float(np.abs(confidence - correct).sum() / count.sum())
    broken = not math.isfinite(error)  # a class can be chosen among NaNs too
    yield "accuracy", math.nan if broken else float(right.sum() / confusion.sum())
    yield "macro_f1", math.nan if broken else float((2 * right[true] / either[true]).mean())
    yield "ece", math.nan if broken else error


def _pose_sums(
    predicted: Float[Tensor, "batch 3"], truth: Float[Tensor, "batch 3"], mask: Bool[Tensor, " batch"]
) -> Float[Tensor, " sums"]:
    """Labels, and sums of degrees: the error of each angle, the geodesic error, MAEV."""
    rotations = rotation_from_euler(predicted), rotation_from_euler(truth)
    errors = (angle_errors(predicted, truth), geodesic_degrees(*rotations)[:, None], maev_degrees(*rotations)[:, None])
    return _masked_sums(torch.cat(errors, 1), mask)


def _affect_sums(
    predicted: Float[Tensor, "batch 2"], truth: Float[Tensor, "batch 2"], mask: Bool[Tensor, " batch"]
) -> Float[Tensor, " sums"]:
    """Labels, and the sum of squared errors, each the mean of valence's and arousal's."""
    return _masked_sums((predicted - truth).square().mean(1, keepdim=True), mask)


def _masked_sums(values: Float[Tensor, "batch kinds"], mask: Bool[Tensor, " batch"]) -> Float[Tensor, " sums"]:
    # A NaN of a labelled sample stays in its sum: left out, it would count as no error at all.
    summed = torch.where(mask[:, None], values.double(), 0.0).sum(0)
    return torch.cat((mask.sum()[None].double(), summed))
