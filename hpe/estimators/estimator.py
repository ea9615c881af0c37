"""A head-pose network ready for use: uint8 pictures in, angles and their uncertainty out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from hpe.core.errors import UserError
from hpe.core.geometry import mean_rotation, mirror_angles, mixed_deviations
from hpe.data.crops import CropRule
from hpe.estimators.spec import InputSpec, OutputSpec, read_output

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""Normalised pictures ``[batch, 3, size, size]`` to raw outputs."""
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class Poses:
    """Yaw, pitch, roll and their standard deviations, degrees; NaN deviations where there are none."""

    angles: Float[Tensor, "batch 3"]
    deviations: Float[Tensor, "batch 3"]


@dataclass(frozen=True)
class Estimator:
    """A network with everything that is needed to use it.

    Attributes:
        name: of its tables and their folder.
        weights_sha256: of the weights' file.
        crop: the crop rule that it was made for.
        network: runs on ``device``; safe to call from several threads.
        channels_last: the memory layout that the network prefers.
        heads: what it predicts beside the pose; the last outputs of the network, in this order.
        finds_faces: it finds the face itself: any crop will do; angles are NaN where it finds none.
    """

    name: str
    weights_sha256: str
    crop: CropRule
    input: InputSpec
    output: OutputSpec | None
    network: Network
    device: torch.device
    channels_last: bool
    finds_faces: bool = False
    heads: tuple[str, ...] = ()

    @torch.inference_mode()
    def predict(self, images: UInt8[Tensor, "batch 3 size size"]) -> Poses:
        """The poses of RGB pictures (any device and memory layout), on the estimator's device.

        Raises:
            UserError: the network's outputs do not match its description.
        """
        return self._poses(self._outputs(images), len(images))

    @torch.inference_mode()
    def answer(self, images: UInt8[Tensor, "batch 3 size size"]) -> tuple[Poses | None, dict[str, Tensor]]:
        """The poses, or None for a network that has none, and the outputs of :attr:`heads`.

        Raises:
            UserError: as of :meth:`predict`.
        """
        outputs = self._outputs(images)
        others = dict(zip(self.heads, outputs[len(outputs) - len(self.heads) :], strict=True))
        return None if self.output is None else self._poses(outputs, len(images)), others

    def _outputs(self, images: UInt8[Tensor, "batch 3 size size"]) -> tuple[Tensor, ...]:
        return self.network(self.normalise(images.to(self.device, non_blocking=True)))

    def _poses(self, outputs: tuple[Tensor, ...], images: int) -> Poses:
        assert self.output is not None
        angles, deviations = read_output(outputs[: len(outputs) - len(self.heads)], self.output)
        if len(angles) != images:
            raise UserError(f"{self.name}: the network gives {len(angles)} poses for {images} pictures")
        return Poses(angles, deviations)

    @torch.inference_mode()
    def predict_with_flips(self, images: UInt8[Tensor, "batch 3 size size"]) -> Poses:
        """The mean of each picture's pose and its mirror image's; deviations of the two mixed."""
        return averaged(*self.predict_both(images))

    @torch.inference_mode()
    def predict_both(self, images: UInt8[Tensor, "batch 3 size size"]) -> tuple[Poses, Poses]:
        """The pose of each picture, and that of its mirror image as the network sees it (see :func:`averaged`)."""
        images = images.to(self.device, non_blocking=True)
        return self.predict(images), self.predict(images.flip(-1))

    def normalise(self, images: UInt8[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """``(value / 255 - mean) / std`` in the network's order of colours and memory layout."""
        if self.input.colour == "bgr":
            images = images.flip(1)
        elif self.input.colour == "grey":
            images = rgb_to_grayscale(images, 3)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        floats = torch.empty(images.shape, dtype=torch.float32, device=images.device, memory_format=layout)
        mean, std = self._scale
        return floats.copy_(images).sub_(mean).div_(std)

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of pixels, copied to the device only once, because the host waits for such a copy."""
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.input.mean, self.input.std))
        return mean.to(self.device), std.to(self.device)


@torch.inference_mode()
def averaged(one: Poses, other: Poses) -> Poses:
    """The mean of each picture's pose and its mirror image's; deviations of the two mixed.

    Without deviations it is the mean rotation. Its SVD makes the host wait for a GPU, so give it poses that have been
    copied to the host.
    """
    mirrored = mirror_angles(other.angles)
    by_rotation = one.deviations.isnan().all(-1, keepdim=True)  # networks of bins give deviations, those of 6D none
    mean = torch.where(by_rotation, mean_rotation(one.angles, mirrored), (one.angles + mirrored) / 2)
    return Poses(mean, mixed_deviations(one.angles, one.deviations, mirrored, other.deviations))
