"""Losses per head: one number per sample, and a mask of the samples that have the label.

``loss_settings`` reads the config and makes, with ``_settings_of``, one ``LossSettings`` per head; ``head_loss``
computes the loss of a batch with it.

The caller divides the masked sum by the number of labels in the *global* batch, so that N ranks with unevenly
missing labels have the gradient of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hpe.config.run import AffectHead, DirectionHead, EmotionHead, HeadsConfig, PoseHead
from hpe.core.geometry import rotation_from_6d, rotation_from_euler
from hpe.core.labels import BINS_REACH_DEGREES
from hpe.data.batch import Batch
from hpe.models.multitask import bin_of, bins_mean


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What a head's loss depends on beside outputs and labels.

    Attributes:
        weight: the head's share of the total loss.
        smoothing: label smoothing, 0..1.
        class_weights: weight of each class, or None.
        log_prior: log frequency of each class, added to the logits while training (logit adjustment;
            Menon et al., 2021), or None.
        alpha: weight of the squared error in degrees² beside the bins' cross-entropy (Hopenet).
        soft: train on the votes' shares where there are votes, not on the majority; see :func:`with_targets`.
        largest_degrees: poses with an angle beyond it do not count (Hopenet: 99).
    """

    weight: float = 1.0
    smoothing: float = 0.0
    class_weights: Float[Tensor, " classes"] | None = None
    log_prior: Float[Tensor, " classes"] | None = None
    alpha: float = 1.0
    soft: bool = True
    largest_degrees: float = float("inf")

    def to(self, device: torch.device) -> "LossSettings":
        """The same with its tensors on a device."""
        weights, prior = self.class_weights, self.log_prior
        return replace(
            self,
            class_weights=None if weights is None else weights.to(device),
            log_prior=None if prior is None else prior.to(device),
        )


def loss_settings(heads: HeadsConfig, labels: Mapping[str, Sequence[int]]) -> dict[str, LossSettings]:
    """The loss of each head that is on. Its tensors are on the CPU.

    ``labels``: for the emotion and the direction head, how many training samples each class has.
    """
    return {head: _settings_of(head, getattr(heads, head), labels) for head in heads.on}


def _settings_of(
    head: str, settings: EmotionHead | DirectionHead | PoseHead | AffectHead, labels: Mapping[str, Sequence[int]]
) -> LossSettings:
    if isinstance(settings, PoseHead):
        limit = BINS_REACH_DEGREES if settings.kind == "bins66" else float("inf")
        return LossSettings(settings.weight, alpha=settings.alpha, largest_degrees=limit)
    if isinstance(settings, AffectHead):
        return LossSettings(settings.weight)
    weights = prior = None
    # On the CPU: Accelerate has not set this rank's device yet, and `cuda` would be GPU 0 on every rank.
    found = torch.tensor(labels[head], dtype=torch.float32)
    if settings.imbalance == "weights":
        weights = torch.where(found > 0, found.sum() / (len(found) * found.clamp(min=1)), 0.0)
    elif settings.imbalance == "logit-adjustment":
        prior = ((found + 1) / (found + 1).sum()).log()
    both = LossSettings(settings.weight, smoothing=settings.smoothing, class_weights=weights, log_prior=prior)
    return replace(both, soft=settings.votes) if isinstance(settings, EmotionHead) else both


def with_targets(batch: Batch, losses: Mapping[str, LossSettings]) -> Batch:
    """The batch with the emotion targets that the losses learn from: all votes, or the majority alone.

    Made before augmentation, because mixup mixes targets as it mixes pictures, whichever they are.
    """
    if "emotion" not in losses or losses["emotion"].soft:
        return batch
    majority = torch.where(batch.emotion_mask, batch.emotion, 0)  # under a false mask it may be any number
    return replace(batch, emotion_target=F.one_hot(majority, batch.emotion_target.shape[1]).to(batch.emotion_target))


def label_mask(head: str, batch: Batch, settings: LossSettings) -> Bool[Tensor, " batch"]:
    """The samples whose label counts for a head's loss; bins hold angles within ±99° alone, as in Hopenet."""
    match head:
        case "emotion":
            return batch.emotion_mask
        case "direction":
            return batch.direction_mask
        case "pose":
            return batch.angles_mask & (batch.angles.abs() < settings.largest_degrees).all(1)
        case "affect":
            return batch.affect_mask
    raise ValueError(f"no head {head!r}")


def head_loss(head: str, output: Tensor, batch: Batch, settings: LossSettings) -> Float[Tensor, " batch"]:
    """Loss of each sample, whose batch comes from :func:`with_targets`; 0 (with no gradient) without a label."""
    mask = label_mask(head, batch, settings)
    # The values under a false mask are arbitrary: they must not reach arithmetic, where NaN · 0 is NaN.
    match head:
        case "emotion":
            loss = _cross_entropy(output, torch.where(mask[:, None], batch.emotion_target, 0.0), settings)
        case "direction":
            direction = torch.where(mask, batch.direction, 0)
            loss = _cross_entropy(output, F.one_hot(direction, output.shape[1]).float(), settings)
        case "pose":
            angles = torch.where(mask[:, None], batch.angles, 0.0)
            if output.ndim == 3:
                loss = hopenet_loss(output, angles, settings.alpha)
            else:
                loss = geodesic_loss(output, angles)
        case _:  # affect: label_mask has refused every other name
            target = torch.where(mask[:, None], batch.affect, 0.0)
            loss = (output.float() - target).square().mean(-1)
    return torch.where(mask, loss, 0.0)


def _cross_entropy(
    logits: Float[Tensor, "batch classes"], target: Float[Tensor, "batch classes"], settings: LossSettings
) -> Float[Tensor, " batch"]:
    logits = logits.float()
    if settings.log_prior is not None:
        logits = logits + settings.log_prior
    target = torch.lerp(target, torch.full_like(target, 1 / target.shape[1]), settings.smoothing)
    if settings.class_weights is not None:
        target = target * settings.class_weights
    return -(target * logits.log_softmax(-1)).sum(-1)


def hopenet_loss(
    logits: Float[Tensor, "batch 3 bins"], angles: Float[Tensor, "batch 3"], alpha: float
) -> Float[Tensor, " batch"]:
    """Cross-entropy over bins + alpha · squared error in degrees², summed over the angles (Ruiz et al., 2018)."""
    bins = bin_of(angles)
    entropy = F.cross_entropy(logits.float().flatten(0, 1), bins.flatten(), reduction="none").view_as(angles)
    return (entropy + alpha * (bins_mean(logits) - angles).square()).sum(-1)


def geodesic_loss(six: Float[Tensor, "batch 6"], angles: Float[Tensor, "batch 3"]) -> Float[Tensor, " batch"]:
    """Angle in radians of the rotation between prediction and target (6DRepNet; Hempel et al., 2022).

    The cosine is kept off ±1, where the gradient of acos has no bound.
    """
    predicted, target = rotation_from_6d(six.float()), rotation_from_euler(angles)
    cosine = ((predicted * target).sum((-2, -1)) - 1) / 2
    return torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
