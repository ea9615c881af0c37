"""Each head's loss against another's arithmetic: torch's own functions, published formulas, finite differences."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from scipy.special import log_softmax, softmax
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from hpe.core.ranks import Ranks
from hpe.data.batch import Batch
from hpe.models.checkpoints import State
from hpe.train.losses import LossSettings, geodesic_loss, head_loss, hopenet_loss, with_targets
from hpe.train.setup import open_job
from hpe.train.step import Learner
from tests import made

ROWS = 40
WEIGHTS = torch.linspace(0.2, 3.0, 8)


def batch(rows: int = ROWS) -> Batch:
    """Emotions with votes, directions, poses; every label is there."""
    drawn = torch.Generator().manual_seed(3)
    votes = torch.rand(rows, 8, generator=drawn) ** 4
    every = torch.ones(rows, dtype=torch.bool)
    return Batch(
        keys=("",) * rows,
        images=torch.zeros(rows, 3, 4, 4, dtype=torch.uint8),
        emotion=votes.argmax(1),
        emotion_target=votes / votes.sum(1, keepdim=True),
        emotion_mask=every,
        direction=torch.randint(5, (rows,), generator=drawn),
        direction_mask=every,
        angles=torch.rand(rows, 3, generator=drawn) * 180 - 90,
        angles_mask=every,
        affect=torch.zeros(rows, 2),
        affect_mask=every,
    )


def majority(samples: Batch) -> Batch:
    """The samples with their majority as target, as a training without votes has them."""
    return with_targets(samples, {"emotion": LossSettings(soft=False)})


def logits(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_one_label_is_torchs_cross_entropy(weights: Tensor | None, smoothing: float) -> None:
    output, samples = logits(ROWS, 8), batch()
    mine = head_loss("emotion", output, majority(samples), LossSettings(class_weights=weights, smoothing=smoothing))
    judge = F.cross_entropy(output, samples.emotion, weight=weights, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(mine, judge)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_votes_are_torchs_cross_entropy_with_probabilities(weights: Tensor | None, smoothing: float) -> None:
    output, samples = logits(ROWS, 8), batch()
    mine = head_loss("emotion", output, samples, LossSettings(class_weights=weights, smoothing=smoothing))
    judge = F.cross_entropy(output, samples.emotion_target, weight=weights, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(mine, judge)


def test_a_direction_is_torchs_cross_entropy() -> None:
    output, samples, weights = logits(ROWS, 5), batch(), torch.tensor((1.0, 2.0, 0.5, 4.0, 0.1))
    mine = head_loss("direction", output, samples, LossSettings(class_weights=weights, smoothing=0.05))
    judge = F.cross_entropy(output, samples.direction, weight=weights, label_smoothing=0.05, reduction="none")
    torch.testing.assert_close(mine, judge)


def test_logit_adjustment_is_menons_loss() -> None:
    """Menon et al., 2021, equation 10, tau 1: log(1 + sum over the others of p_other / p_y * exp(f_other - f_y))."""
    output, samples = logits(ROWS, 8), batch()
    prior = np.array([40, 20, 10, 10, 8, 6, 4, 2]) / 100
    adjusted = LossSettings(log_prior=torch.tensor(np.log(prior), dtype=torch.float32))
    f = output.double().numpy()
    judge = []
    for scores, y in zip(f, samples.emotion.numpy(), strict=True):
        others = [prior[k] / prior[y] * np.exp(scores[k] - scores[y]) for k in range(8) if k != y]
        judge.append(np.log1p(sum(others)))
    mine = head_loss("emotion", output, majority(samples), adjusted)
    np.testing.assert_allclose(mine.numpy(), judge, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 2.0])
def test_hopenets_loss_by_hand(alpha: float) -> None:
    """As train_hopenet.py of natanielruiz/deep-head-pose has it: per angle, entropy + alpha * squared degrees."""
    output, angles = logits(ROWS, 3, 66), batch().angles
    edges = np.array(range(-99, 102, 3))
    judge = np.zeros(ROWS)
    for row in range(ROWS):
        for place in range(3):
            scores, degrees = output[row, place].double().numpy(), float(angles[row, place])
            label = np.digitize(degrees, edges) - 1
            expected = (softmax(scores) * np.arange(66)).sum() * 3 - 99
            judge[row] += -log_softmax(scores)[label] + alpha * (expected - degrees) ** 2
    np.testing.assert_allclose(hopenet_loss(output, angles, alpha).numpy(), judge, rtol=2e-5)


def test_the_geodesic_loss_is_the_angle_of_scipys_rotation() -> None:
    angles, six = batch().angles, logits(ROWS, 6)
    first, second = six[:, :3].double().numpy(), six[:, 3:].double().numpy()
    x = first / np.linalg.norm(first, axis=1, keepdims=True)
    y = second - (x * second).sum(1, keepdims=True) * x
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    predicted = Rotation.from_matrix(np.stack((x, y, np.cross(x, y)), -1))
    yaw, pitch, roll = angles.double().numpy().T
    target = Rotation.from_euler("ZYX", np.stack((roll, yaw, pitch), 1), degrees=True)
    judge = (predicted.inv() * target).magnitude()
    np.testing.assert_allclose(geodesic_loss(six, angles).numpy(), judge, atol=2e-3)


@pytest.mark.parametrize("head", ["geodesic", "hopenet"])
def test_the_gradient_of_a_poses_loss_is_that_of_finite_differences(head: str) -> None:
    angles = batch(6).angles
    start, loss = (
        (logits(6, 6), geodesic_loss)
        if head == "geodesic"
        else (logits(6, 3, 66), lambda o, a: hopenet_loss(o, a, 0.01))
    )
    output = start.clone().requires_grad_()
    loss(output, angles).sum().backward()
    assert output.grad is not None
    step = 0.1  # of a smaller one the rounding of float32 makes a slope, on some processors more than on others
    for seed in range(5):
        towards = F.normalize(torch.randn(start.shape, generator=torch.Generator().manual_seed(seed)).flatten(), dim=0)
        towards = towards.view_as(start)
        ahead, behind = (loss(start + sign * step * towards, angles).double().sum() for sign in (1, -1))
        slope = float((ahead - behind) / (2 * step))
        assert float((output.grad * towards).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("head", ["emotion", "direction", "pose"])
def test_a_row_without_a_label_gives_neither_loss_nor_gradient(head: str) -> None:
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    samples = replace(batch(), emotion_mask=nothing, direction_mask=nothing, angles_mask=nothing)
    samples = replace(samples, angles=torch.full((ROWS, 3), torch.nan), emotion_target=torch.full((ROWS, 8), torch.nan))
    output = {"emotion": logits(ROWS, 8), "direction": logits(ROWS, 5), "pose": logits(ROWS, 6)}[head].requires_grad_()
    loss = head_loss(head, output, samples, LossSettings(log_prior=None, smoothing=0.1))
    loss.sum().backward()
    assert output.grad is not None
    assert not loss.any()
    assert not output.grad.any()


def job_config(tmp_path: Path, *overrides: str):
    folder = made.shards(tmp_path / "shards", counts=(40, 17), val=16)
    return made.config(folder, tmp_path / "run", "augment={}", *overrides)


def test_the_class_weights_of_a_run_are_scikit_learns_balanced_ones(tmp_path: Path) -> None:
    labels = [sample.record.emotion for sample in made.samples(57)]
    judge = compute_class_weight("balanced", classes=np.arange(8), y=np.array(labels))
    heads = "model.heads={emotion: {imbalance: weights}}"
    with open_job(job_config(tmp_path, heads), Ranks.from_environment()) as job:
        weights = job.losses["emotion"].class_weights
        assert weights is not None
        np.testing.assert_allclose(weights.cpu().numpy(), judge, rtol=1e-6)


@pytest.mark.parametrize("changes", [(), ("train.micro_batch=3",)], ids=["whole", "in pieces"])
def test_the_learned_weight_of_a_head_stays_where_a_batch_has_none_of_its_labels(
    tmp_path: Path, changes: tuple[str, ...]
) -> None:
    heads = "model.heads={emotion: {}, pose: {kind: sixd}}"
    config = job_config(tmp_path, heads, "train.balance_losses=learned", *changes)
    with open_job(config, Ranks.from_environment()) as job:
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, job.ranks, job.accelerator)
        with job.batches(0) as loader:
            loaded = next(loader)
            batch = replace(loaded.batch, angles_mask=torch.zeros_like(loaded.batch.angles_mask))
            for at in range(3):
                state = State(samples_seen=8 * at, step=at)
                learner.step(replace(loaded, batch=batch), state, asked_here=False, measure_gradient=False)
        weights = {head: float(value.detach()) for head, value in job.network.log_variance.items()}
    assert weights["pose"] == 0
    assert weights["emotion"] != 0


def test_learned_weights_follow_kendalls_formula(tmp_path: Path) -> None:
    """Kendall, Gal, Cipolla, 2018: exp(-s) * loss + s for each head, so that s moves by 1 - exp(-s) * loss."""
    heads = "model.heads={emotion: {}, direction: {}, pose: {alpha: 0.01}}"
    config = job_config(
        tmp_path, heads, "train.balance_losses=learned", "train.optimizer=sgd", "train.schedule=constant"
    )
    with open_job(config, Ranks.from_environment()) as job:
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, job.ranks, job.accelerator)
        before = dict(zip(job.losses, (0.5, -0.3, 1.2), strict=True))
        with torch.no_grad():
            for head, value in before.items():
                job.network.log_variance[head].fill_(value)
        with job.batches(0) as loader:
            loaded = next(loader)
            by = job.network.normalisation
            inputs = (loaded.batch.images / 255 - by.mean[:, None, None]) / by.std[:, None, None]
            with torch.no_grad():
                outputs = job.network.train()(inputs)
            means = {
                head: float(head_loss(head, outputs[head], loaded.batch, settings).mean())
                for head, settings in job.losses.items()
            }
            learner.step(loaded, State(samples_seen=0, step=0), asked_here=False, measure_gradient=False)
    rate = config.train.learning_rate * 1.9  # Nesterov's first step is that many gradients
    for head, value in before.items():
        moved = float(job.network.log_variance[head].detach()) - value
        assert moved == pytest.approx(-rate * (1 - np.exp(-value) * means[head]), rel=1e-3, abs=1e-7)
