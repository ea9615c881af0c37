"""The one network of this package: a backbone, and a head for each label; a baseline has one head.

``forward`` returns raw outputs by head: ``emotion`` [batch 8] and ``direction`` [batch 5] logits, ``pose``
[batch 3 66] bin logits or [batch 6], ``affect`` [batch 2] in -1..1. Angles in degrees come from
:func:`angles_of`.
"""

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
        pose: ``bins66``, ``sixd`` or None for no pose head.
        emotion, direction, affect: whether the head is there.
        conditioned: the emotion head sees features modulated by the network's own pose.
        dropout: of the emotion and the direction head.
        learned_weights: one log variance per head weighs its loss (Kendall, Gal, Cipolla, 2018).
        normalisation: of the pixels that the backbone takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        emotion: bool = True,
        direction: bool = True,
        pose: str | None = "bins66",
        affect: bool = False,
        conditioned: bool = False,
        dropout: tuple[float, float] = (0.0, 0.0),
        learned_weights: bool = False,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # Buffers go where the network goes. The run's config keeps their values, so the weights need not.
        self.register_buffer("mean", normalisation.mean.clone(), persistent=False)
        self.register_buffer("std", normalisation.std.clone(), persistent=False)
        self.condition = PoseCondition(features) if conditioned else None
        heads: dict[str, nn.Module] = {}
        if emotion:
            heads["emotion"] = nn.Sequential(nn.Dropout(dropout[0]), nn.Linear(features, len(EMOTIONS)))
        if direction:
            heads["direction"] = nn.Sequential(nn.Dropout(dropout[1]), nn.Linear(features, len(DIRECTIONS)))
        if pose == "bins66":
            heads["pose"] = nn.Sequential(nn.Linear(features, 3 * BINS), nn.Unflatten(-1, (3, BINS)))
        elif pose == "sixd":
            heads["pose"] = nn.Linear(features, 6)
        if affect:
            heads["affect"] = nn.Sequential(nn.Linear(features, 2), nn.Tanh())
        self.heads = nn.ModuleDict(heads)
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
    # Not `@`, which autocast rounds to bfloat16: steps of half a degree.
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
