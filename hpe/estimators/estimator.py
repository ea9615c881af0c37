"""A head-pose network ready for use: uint8 pictures in, angles and their uncertainty out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.core.errors import UserError
from hpe.core.geometry import mean_rotation, mirror_angles, mixed_deviations
from hpe.data.crops import CropRule
from hpe.estimators.spec import HEAD_VALUES, InputSpec, OutputSpec, read_output
from hpe.models.views import Estimates

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""Normalised pictures ``[batch, 3, size, size]`` to raw outputs."""
Precision = Literal["fp32", "bf16", "fp16"]
_SUMS_APART = 0.02
"""From 1, of probabilities in half precision."""


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
        crops: the crop rules of its training images, as far as they are known.
        network: runs on ``device``; safe to call from several threads.
        channels_last: the memory layout that the network prefers.
        heads: what it predicts beside the pose; the last outputs of the network, in this order.
        weights: the file.
        learned: for ``emotion`` and ``direction``, the classes with training samples; a head is missing if unknown.
        faces: how large the faces of its training are (:func:`hpe.data.face_sizes.face_shares`); empty if unknown.
        precision: of its arithmetic; None: the file's own, which it does not state.
        finds_faces: it finds the face itself: any crop will do; angles are NaN where it finds none.
    """

    name: str
    weights_sha256: str
    crops: frozenset[CropRule]
    input: InputSpec
    output: OutputSpec | None
    network: Network
    device: torch.device
    channels_last: bool
    finds_faces: bool = False
    heads: tuple[str, ...] = ()
    weights: Path | None = None
    learned: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    faces: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = "fp32"

    @property
    def crop(self) -> CropRule:
        """The crop rule that it was made for, of an estimator of poses (:func:`hpe.estimators.load.load_estimator`)."""
        (rule,) = self.crops
        return rule

    @torch.inference_mode()
    def predict(self, images: UInt8[Tensor, "batch 3 size size"]) -> Poses:
        """The poses of RGB pictures (any device and memory layout), on the estimator's device.

        Raises:
            UserError: the network's outputs do not match its description.
        """
        return self._poses(self._outputs(images), len(images))

    @torch.inference_mode()
    def estimate(self, images: UInt8[Tensor, "batch 3 size size"], *, flips: bool = False) -> Estimates:
        """What every head estimates; with ``flips`` the mean with the mirror image.

        Raises:
            UserError: as of :meth:`predict`, or a head gives other numbers of values than its description.
        """
        found = self._estimates(images)
        return found.mean(self._estimates(images.flip(-1)).mirrored()) if flips else found

    def _estimates(self, images: UInt8[Tensor, "batch 3 size size"]) -> Estimates:
        outputs = self._outputs(images)
        found = dict(zip(self.heads, outputs[len(outputs) - len(self.heads) :], strict=True))
        for head, values in found.items():
            if list(values.shape) != [len(images), HEAD_VALUES[head]]:
                raise UserError(
                    f"{self.name}: {head}: the network gives {list(values.shape)} values for {len(images)} pictures; "
                    f"expected {[len(images), HEAD_VALUES[head]]}"
                )
            if head != "affect" and not _are_probabilities(values):
                raise UserError(
                    f"{self.name}: {head}: its values are no probabilities (they are negative, or do not sum to 1); "
                    "export the network with a softmax, or correct the names under heads: in its YAML"
                )
        poses = None if self.output is None else self._poses(outputs, len(images))
        return Estimates(
            *(found[head].float() if head in found else None for head in ("emotion", "direction")),
            angles=None if poses is None else poses.angles,
            deviations=poses.deviations if poses is not None and self.gives_deviations else None,
            affect=found["affect"].float() if "affect" in found else None,
        )

    @property
    def gives_deviations(self) -> bool:
        """Whether the network estimates its own uncertainty."""
        return self.output is not None and (self.output.deviations is not None or self.output.kind.startswith("bins"))

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
            images = _luma(images)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        floats = torch.empty(images.shape, dtype=torch.float32, device=images.device, memory_format=layout)
        mean, std = self._scale
        return floats.copy_(images).sub_(mean).div_(std)

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of pixels, copied to the device only once, because the host waits for such a copy."""
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.input.mean, self.input.std))
        return mean.to(self.device), std.to(self.device)


def _are_probabilities(values: Float[Tensor, "batch classes"]) -> bool:
    """NaN, which is counted elsewhere, passes."""
    values = values.float().nan_to_num(1 / values.shape[1])
    return bool((values >= 0).all() and ((values.sum(1) - 1).abs() <= _SUMS_APART).all())


def _luma(images: UInt8[Tensor, "batch 3 size size"]) -> UInt8[Tensor, "batch 3 size size"]:
    """Grey in all three channels, with the integers of Pillow and :mod:`hpe.data.decode`: grey stays as it is.

    torchvision's ``rgb_to_grayscale`` truncates, and its weights sum to 0.9999: it makes grey images darker by one.
    """
    red, green, blue = images.int().unbind(1)
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


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
