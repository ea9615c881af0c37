"""What a network says of faces in the units of their labels, from its raw outputs; of the mirror image, too."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from hpe.geometry import euler_from_rotation, mirror_angles, rotation_from_euler
from hpe.labels import MIRRORED_DIRECTION
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
        neighbour.
        """
        halfway = {}
        for name in (field.name for field in fields(self)):
            mine, its = getattr(self, name), getattr(other, name)
            if mine is not None and its is not None:
                turned = name == "angles" and self.deviations is None
                halfway[name] = _mean_rotation(mine, its) if turned else (mine + its) / 2
        return Estimates(**halfway)


def _mean_rotation(angles: Float[Tensor, "batch 3"], others: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3"]:
    """The rotation nearest to two (Markley et al., "Averaging Quaternions", 2007), as yaw, pitch, roll."""
    summed = (rotation_from_euler(angles) + rotation_from_euler(others)).float()
    left, _, right = torch.linalg.svd(summed)
    sign = torch.ones_like(angles)
    sign[:, 2] = torch.linalg.det(left @ right)
    return euler_from_rotation(left @ torch.diag_embed(sign) @ right)


def estimate(network: MultiTask, inputs: Tensor, *, mirror: bool = False) -> Estimates:
    """A network's estimates; with ``mirror`` the mean of those for the pictures and for their mirror images."""
    found = Estimates.of(network(inputs))
    if mirror:
        found = found.mean(Estimates.of(network(inputs.flip(-1))).mirrored())
    return found
