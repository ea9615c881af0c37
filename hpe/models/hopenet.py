"""Hopenet: a ResNet-50 trunk and three heads of 66 bins (Ruiz et al., "Fine-Grained Head Pose Estimation
Without Keypoints", 2018; natanielruiz/deep-head-pose).

Parameter names are those of the released state dicts: torchvision's ResNet-50 and ``fc_yaw``, ``fc_pitch``,
``fc_roll``. The released weights read their bins at the lower edges (``hpe.models.multitask.bins_mean``).
"""

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet50

from hpe.models.multitask import BINS

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
    return wanted | given


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")
