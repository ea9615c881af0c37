"""Hopenet: a ResNet-50 trunk and three heads of 66 bins (Ruiz et al., "Fine-Grained Head Pose Estimation
Without Keypoints", 2018; natanielruiz/deep-head-pose).

Parameter names are those of the released state dicts: torchvision's ResNet-50 and ``fc_yaw``, ``fc_pitch``,
``fc_roll``.
"""

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models import resnet50

BINS: Final = 66
BIN_DEGREES: Final = 3.0
LOWEST_DEGREES: Final = -99.0
"""66 bins of 3° over [-99, 99)."""
UNUSED_PREFIX: Final = "fc_finetune."
"""A layer (2051 → 3) of the released state dicts that Hopenet's ``forward`` does not use."""


class Hopenet(nn.Module):
    """Images, ImageNet-normalised, to the bin logits of yaw, pitch and roll."""

    def __init__(self) -> None:
        super().__init__()
        trunk = resnet50()
        width = trunk.fc.in_features
        for name, child in trunk.named_children():
            if name != "fc":
                self.add_module(name, child)
        self.fc_yaw = nn.Linear(width, BINS)
        self.fc_pitch = nn.Linear(width, BINS)
        self.fc_roll = nn.Linear(width, BINS)

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
        """The trunk's pooled features."""
        x = images
        for name, child in self.named_children():
            if not name.startswith("fc_"):
                x = child(x)
        return x.flatten(1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 66"]:
        """Logits in the order yaw, pitch, roll."""
        x = self.features(images)
        return torch.stack((self.fc_yaw(x), self.fc_pitch(x), self.fc_roll(x)), 1)


def fit_state_dict(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` as ``module.load_state_dict`` takes them strictly.

    A prefix ``module.`` (from DataParallel) and Hopenet's unused ``fc_finetune`` are dropped; batch norm's
    ``num_batches_tracked``, which torch 0.3 did not write, may be absent.

    Raises:
        ValueError: parameters missing, unknown or of another shape; all are named (the first eight).
    """
    wanted = module.state_dict()
    given = {name.removeprefix("module."): value for name, value in weights.items()}
    given = {name: value for name, value in given.items() if not name.startswith(UNUSED_PREFIX)}
    problems = [f"{name} is missing" for name in wanted if name not in given and not _is_counter(name)]
    for name, value in given.items():
        if name not in wanted:
            problems.append(f"{name} is unknown")
        elif value.shape != wanted[name].shape:
            problems.append(f"{name} is {list(value.shape)}, expected {list(wanted[name].shape)}")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError("; ".join(problems[:8]) + more)
    return {name: given.get(name, wanted[name]) for name in wanted}


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def bin_lower_edges(like: Tensor) -> Float[Tensor, " 66"]:
    """Degrees that the released Hopenet weights take for each bin: ``3 i - 99``."""
    return torch.arange(BINS, device=like.device, dtype=torch.float32) * BIN_DEGREES + LOWEST_DEGREES


def bin_centres(like: Tensor) -> Float[Tensor, " 66"]:
    """Degrees in the middle of each bin: ``3 i - 97.5``."""
    return bin_lower_edges(like) + BIN_DEGREES / 2


def bin_of_degrees(angles: Float[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """The bin of each angle, ``floor((angle + 99) / 3)``; beyond ±99° the outermost bin."""
    return ((angles - LOWEST_DEGREES) / BIN_DEGREES).floor().long().clamp(0, BINS - 1)


def mean_and_deviation(
    logits: Float[Tensor, "*batch bins"], degrees: Float[Tensor, " bins"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Expectation and standard deviation, in degrees, of the distribution over bins."""
    share = logits.float().softmax(-1)
    mean = (share * degrees).sum(-1)
    variance = (share * (degrees - mean.unsqueeze(-1)).square()).sum(-1)
    return mean, variance.sqrt()
