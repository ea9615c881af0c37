"""The one network of this package: a backbone, and a head for each label; a baseline has one head.

``forward`` returns raw outputs by head: ``emotion`` [batch 8] and ``direction`` [batch 5] logits, ``pose``
[batch 3 66] bin logits or [batch 6], ``affect`` [batch 2] in -1..1. Angles in degrees come from
:func:`angles_of`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hpe.core.geometry import euler_from_rotation, rotation_from_6d
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.normalise import IMAGENET, Normalisation

BINS: Final = 66
BIN_DEGREES: Final = 3.0
LOWEST_DEGREES: Final = -99.0
"""Hopenet's bins: 66 of 3° over [-99°, 99°)."""

Outputs = dict[str, Tensor]
HeadSpec = Callable[[int], nn.Module]
"""Makes a head for a backbone of so many features."""


def class_logits(classes: int, *, dropout: float = 0.0) -> HeadSpec:
    """A head of one logit per class."""
    return lambda features: nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def pose_bins(features: int) -> nn.Module:
    """Hopenet's pose head: the logits of 66 bins for each of three angles."""
    return nn.Sequential(nn.Linear(features, 3 * BINS), nn.Unflatten(-1, (3, BINS)))


def pose_6d(features: int) -> nn.Module:
    """Two columns of the rotation matrix, made orthonormal by :func:`rotation_from_6d`."""
    return nn.Linear(features, 6)


def affect_pair(features: int) -> nn.Module:
    """Valence and arousal in -1..1."""
    return nn.Sequential(nn.Linear(features, 2), nn.Tanh())


HEADS: Final[dict[str, HeadSpec]] = {
    "emotion": class_logits(len(EMOTIONS)),
    "direction": class_logits(len(DIRECTIONS)),
    "pose": pose_bins,
}
"""The heads of a config that names none."""


class PoseCondition(nn.Module):
    """Features modulated by the head pose (FiLM; Perez et al., 2018): ``f · (1 + scale) + shift``.

    Scale and shift start at zero, so that training starts from the unconditioned network.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 64)
        self.modulation = nn.Linear(64, 2 * features)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, features: Float[Tensor, "batch features"], angles: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch features"]:
        radians = torch.deg2rad(angles)
        hidden = F.silu(self.hidden(torch.cat((radians.sin(), radians.cos()), -1).to(features.dtype)))
        scale, shift = self.modulation(hidden).chunk(2, -1)
        return features * (1 + scale) + shift


class MultiTask(nn.Module):
    """Backbone and heads.

    Args:
        backbone: maps a batch of inputs to ``features`` numbers each.
        features: see above.
        heads: by name. They are made in this order, which decides the random weights that they start with.
        conditioned: the emotion head gets features modulated by the network's own pose.
        learned_weights: one log variance per head weighs its loss (Kendall, Gal, Cipolla, 2018).
        normalisation: of the pixels that the backbone takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        heads: Mapping[str, HeadSpec] = HEADS,
        *,
        conditioned: bool = False,
        learned_weights: bool = False,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # As buffers they move with the network. Not saved with the weights, because the run's config has their values.
        self.register_buffer("mean", normalisation.mean.clone(), persistent=False)
        self.register_buffer("std", normalisation.std.clone(), persistent=False)
        self.condition = PoseCondition(features) if conditioned else None
        self.heads = nn.ModuleDict({name: make(features) for name, make in heads.items()})
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in heads} if learned_weights else {}
        )

    @property
    def takes_angles(self) -> bool:
        """True for the direction network, whose input is angles and not pictures."""
        return hasattr(self.backbone, "fit_scale")

    @property
    def normalisation(self) -> Normalisation:
        """What its pixels are normalised by, on its device."""
        return Normalisation(self.mean, self.std)

    def forward(self, inputs: Tensor) -> Outputs:
        features = self.backbone(inputs)
        outputs = {name: head(features) for name, head in self.heads.items() if name != "emotion"}
        if "emotion" in self.heads:
            if self.condition is not None:
                features = self.condition(features, angles_of(outputs["pose"]).detach())
            outputs["emotion"] = self.heads["emotion"](features)
        return outputs


def angles_of(pose: Tensor) -> Float[Tensor, "batch 3"]:
    """Yaw, pitch, roll in degrees of a pose output: bin logits [batch 3 66] or 6D [batch 6]."""
    if pose.ndim == 2:
        return euler_from_rotation(rotation_from_6d(pose.float()))
    return bins_mean(pose)


def bins_mean(logits: Float[Tensor, "*batch 66"], offset: float = 0.0) -> Float[Tensor, "*batch"]:
    """Expected angle in degrees: Σ softmax · index · 3 - 99 (+ ``offset``: 1.5 for bin centres).

    Hopenet reads its bins at their lower edges and was trained so; centres would shift it by 1.5°.
    """
    index = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.float32)
    # Not `@`: autocast would round it to bfloat16, which resolves an angle of 99° to half a degree.
    return (logits.float().softmax(-1) * index).sum(-1) * BIN_DEGREES + LOWEST_DEGREES + offset


def bins_deviation(logits: Float[Tensor, "*batch 66"]) -> Float[Tensor, "*batch"]:
    """Standard deviation in degrees of the distribution over bins: the uncertainty of an angle."""
    share = logits.float().softmax(-1)
    index = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.float32)
    mean = (share * index).sum(-1)
    return ((share * (index - mean[..., None]).square()).sum(-1)).clamp(min=0).sqrt() * BIN_DEGREES


def bin_of(degrees: Float[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """The bin that holds an angle within [-99°, 99°); angles outside are put into the last bins."""
    return ((degrees - LOWEST_DEGREES) / BIN_DEGREES).floor().long().clamp(0, BINS - 1)
