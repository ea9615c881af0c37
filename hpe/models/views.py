"""What a network says of faces, in the units of their labels, from one view of each picture or several."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hpe.core.geometry import mean_rotation, mirror_angles, mixed_deviations
from hpe.core.labels import MIRRORED_DIRECTION
from hpe.models.multitask import MultiTask, Outputs, angles_of, bins_deviation


@dataclass(frozen=True, slots=True)
class Estimates:
    """Estimates for a batch of faces; None where the network has no such head.

    Attributes:
        emotion_p, direction_p: probabilities.
        angles: yaw, pitch, roll, degrees.
        deviations: their standard deviations; None for a pose head that tells none.
        affect: valence and arousal.
    """

    emotion_p: Float[Tensor, "batch 8"] | None = None
    direction_p: Float[Tensor, "batch 5"] | None = None
    angles: Float[Tensor, "batch 3"] | None = None
    deviations: Float[Tensor, "batch 3"] | None = None
    affect: Float[Tensor, "batch 2"] | None = None

    @classmethod
    def of(cls, outputs: Outputs) -> "Estimates":
        """The estimates in a network's raw outputs."""
        pose, affect = outputs.get("pose"), outputs.get("affect")
        return cls(
            *(None if head not in outputs else outputs[head].float().softmax(-1) for head in ("emotion", "direction")),
            angles=None if pose is None else angles_of(pose),
            deviations=None if pose is None or pose.ndim == 2 else bins_deviation(pose),
            affect=None if affect is None else affect.float(),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Estimates]") -> "Estimates":
        """The estimates of batches of one network, one after another."""
        held = [field.name for field in fields(cls) if getattr(parts[0], field.name) is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in held})

    def mirrored(self) -> "Estimates":
        """The estimates for the pictures, where these are for their mirror images."""
        direction = self.direction_p
        return Estimates(
            self.emotion_p,
            None if direction is None else direction[:, list(MIRRORED_DIRECTION)],
            None if self.angles is None else mirror_angles(self.angles),
            self.deviations,
            self.affect,
        )

    def mean(self, other: "Estimates") -> "Estimates":
        """Halfway between two of the same network.

        Angles that are read one by one, from bins, meet one by one; those of a rotation (which tell no
        deviations) meet as rotations, for near a profile the three of one head may be far from the three of its
        neighbour. Where the two differ, deviations grow.
        """
        halfway = {}
        for name in (field.name for field in fields(self)):
            mine, its = getattr(self, name), getattr(other, name)
            if mine is not None and its is not None:
                halfway[name] = (mine + its) / 2
        if self.angles is not None and other.angles is not None:
            if self.deviations is None or other.deviations is None:
                halfway["angles"] = mean_rotation(self.angles, other.angles)
            else:
                halfway["deviations"] = mixed_deviations(self.angles, self.deviations, other.angles, other.deviations)
        return Estimates(**halfway)


@dataclass(frozen=True, slots=True)
class Views:
    """How a picture is looked at where it is judged.

    Attributes:
        flips: also at its mirror image, and the mean of both counts.
        centre: at its centre crop of this share of the side (timm's ``crop_pct``). Pictures of random crops show
            larger faces than whole ones: what was learned from those is judged best so, too (Touvron et al.,
            "Fixing the train-test resolution discrepancy", 2019).
    """

    flips: bool = False
    centre: float = 1.0

    def __str__(self) -> str:
        told = [f"centre crop of {self.centre:g} of the side"] * (self.centre < 1) + [
            "mean with the mirror image"
        ] * self.flips
        return ", ".join(told)


PLAIN: Final = Views()


def estimate(network: MultiTask, inputs: Tensor, views: Views = PLAIN) -> Estimates:
    """A network's estimates for prepared pictures (or angles, which have no views).

    The network runs in the caller's mixed precision; what is made of its outputs does not: bins and rotations
    multiplied in bfloat16 lose half a degree.
    """
    exact = partial(torch.autocast, inputs.device.type, enabled=False)
    if views.centre < 1:
        with exact():
            inputs = _centred(inputs, views.centre)
    outputs = network(inputs)
    mirrored = network(inputs.flip(-1)) if views.flips else None
    with exact():
        found = Estimates.of(outputs)
        return found if mirrored is None else found.mean(Estimates.of(mirrored).mirrored())


def _centred(images: Float[Tensor, "batch 3 side side"], share: float) -> Float[Tensor, "batch 3 side side"]:
    """The middle of square pictures, bilinearly brought back to their size; channels-last."""
    square = torch.diag(torch.tensor((share, share, 1.0), device=images.device))[:2].expand(len(images), 2, 3)
    grid = F.affine_grid(square, list(images.shape), align_corners=False)
    middle = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return middle.contiguous(memory_format=torch.channels_last)
