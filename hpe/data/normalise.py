"""Pixels as a network takes them: ``(value - mean) / std`` of values in 0..1, by channel."""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.data.batch import Batch

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""ImageNet's, of pixel values in 0..1."""
Images = Float[Tensor, "batch 3 height width"]


class Normalisation(NamedTuple):
    """What a network's pixels are brought to: ``(value - mean) / std`` of values in 0..1, by channel.

    Each network has its own (``MultiTask.normalisation``), on its device: made anew for every batch, the host
    would wait for the copy.
    """

    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]


IMAGENET: Final = Normalisation(torch.tensor(MEAN), torch.tensor(STD))


def prepare(batch: Batch, by: Normalisation) -> Images:
    """Normalised images without augmentation, channels-last, on the batch's device."""
    return normalised(batch.images, by)


def normalised(images: UInt8[Tensor, "batch 3 height width"] | Images, by: Normalisation) -> Images:
    """``(value - mean) / std`` of bytes, or of floats in 0..1, in channels-last memory; a new tensor."""
    scale = 1.0 if images.is_floating_point() else 255.0
    mean, std = (values.to(images.device).view(1, 3, 1, 1) * scale for values in by)
    laid = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return laid.sub_(mean).div_(std)
