"""Validation metrics, judged by scikit-learn, torchmetrics and SciPy on samples with labels that are missing."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from scipy.spatial.transform import Rotation
from torchmetrics.functional.classification import multiclass_calibration_error

from hpe.core.labels import ANGLES
from hpe.data.batch import Batch
from hpe.train.metrics import HeadMetrics

HEADS = ("emotion", "direction", "pose", "affect")
ROWS = 200


def made(seed: int = 0) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Samples and outputs; what lies under a false mask would break any sum, class 7 never occurs."""
    draw = torch.Generator().manual_seed(seed)
    masks = {head: torch.rand(ROWS, generator=draw) < 0.7 for head in HEADS}
    emotion = torch.where(masks["emotion"], torch.randint(0, 7, (ROWS,), generator=draw), -1)
    direction = torch.where(masks["direction"], torch.randint(0, 5, (ROWS,), generator=draw), 99)
    angles = torch.rand(ROWS, 3, generator=draw) * 160 - 80
    affect = torch.rand(ROWS, 2, generator=draw) * 2 - 1
    angles[~masks["pose"]], affect[~masks["affect"]] = math.nan, math.inf
    outputs = {
        "emotion": torch.randn(ROWS, 8, generator=draw) * 2, "direction": torch.randn(ROWS, 5, generator=draw) * 2,
        "pose": torch.randn(ROWS, 3, 66, generator=draw), "affect": torch.rand(ROWS, 2, generator=draw) * 2 - 1,
    }  # fmt: skip
    outputs["emotion"][:, 7] = -50.0
    outputs["emotion"][~masks["emotion"]] = math.nan
    batch = Batch(
        tuple(map(str, range(ROWS))), torch.zeros(ROWS, 3, 1, 1, dtype=torch.uint8), emotion, torch.zeros(ROWS, 8),
        masks["emotion"], direction, masks["direction"], angles, masks["pose"], affect, masks["affect"],
    )  # fmt: skip
    return batch, outputs


def in_batches(batch: Batch, outputs: dict[str, torch.Tensor], size: int) -> HeadMetrics:
    metrics = HeadMetrics(HEADS)
    for start in range(0, ROWS, size):
        rows = slice(start, start + size)
        metrics.update({head: values[rows] for head, values in outputs.items()}, batch[rows])
    return metrics


@pytest.mark.parametrize("head", ["emotion", "direction"])
def test_figures_of_classes_are_those_of_other_libraries(head: str) -> None:
    batch, outputs = made()
    figures, confusions = in_batches(batch, outputs, 32).figures()
    mask, truth = getattr(batch, f"{head}_mask"), getattr(batch, head)
    share, truth = outputs[head][mask].softmax(-1), truth[mask]
    choice = share.argmax(-1)
    assert figures[f"{head}/labels"] == int(mask.sum())
    assert figures[f"{head}/accuracy"] == pytest.approx(sk.accuracy_score(truth, choice), abs=1e-12)
    assert figures[f"{head}/macro_f1"] == pytest.approx(sk.f1_score(truth, choice, average="macro"), abs=1e-12)
    error = float(multiclass_calibration_error(share, truth, share.shape[1], n_bins=15))
    assert figures[f"{head}/ece"] == pytest.approx(error, abs=1e-6)
    expected = sk.confusion_matrix(truth, choice, labels=range(share.shape[1]))
    assert np.array_equal(confusions[head].numpy(), expected)


def test_figures_of_poses_and_affect_are_those_of_other_libraries() -> None:
    batch, outputs = made(1)
    figures, _ = in_batches(batch, outputs, 32).figures()
    mask = batch.angles_mask
    share = outputs["pose"][mask].double().softmax(-1).numpy()
    predicted, truth = share @ (np.arange(66) * 3.0) - 99, batch.angles[mask].double().numpy()
    errors = [sk.mean_absolute_error(truth[:, place], predicted[:, place]) for place in range(3)]
    for name, error in zip(ANGLES, errors, strict=True):
        assert figures[f"pose/{name}_mae"] == pytest.approx(error, rel=1e-5)
    assert figures["pose/mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    one, other = (Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True) for angles in (predicted, truth))
    geodesic = np.degrees((one.inv() * other).magnitude()).mean()
    assert figures["pose/geodesic"] == pytest.approx(geodesic, rel=1e-5)
    columns = np.einsum("nij,nij->nj", one.as_matrix(), other.as_matrix()).clip(-1, 1)
    assert figures["pose/maev"] == pytest.approx(np.degrees(np.arccos(columns)).mean(), rel=1e-4)
    mask = batch.affect_mask
    squared = sk.mean_squared_error(batch.affect[mask], outputs["affect"][mask])
    assert figures["affect/rmse"] == pytest.approx(squared**0.5, rel=1e-6)


def test_batches_of_any_size_and_parts_added_up_give_the_same_figures() -> None:
    batch, outputs = made(2)
    whole, _ = in_batches(batch, outputs, ROWS).figures()
    assert in_batches(batch, outputs, 7).figures()[0] == pytest.approx(whole, rel=1e-6)
    parts = [HeadMetrics(HEADS) for _ in range(2)]  # as two ranks see them
    for part, rows in zip(parts, (slice(0, 60), slice(60, ROWS)), strict=True):
        part.update({head: values[rows] for head, values in outputs.items()}, batch[rows])
    parts[0].sums += parts[1].sums
    assert parts[0].figures()[0] == pytest.approx(whole, rel=1e-6)


def test_a_head_without_a_label_has_no_figures() -> None:
    batch, outputs = made()
    batch.direction_mask[:] = False
    figures, confusions = in_batches(batch, outputs, 50).figures()
    assert {name for name in figures if name.startswith("direction/")} == {"direction/labels"}
    assert "direction" not in confusions
    assert figures["direction/labels"] == 0
