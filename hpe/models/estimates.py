"""What a network says of faces in the units of their labels, from its raw outputs; of the mirror image, too."""

from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor

from hpe.geometry import mirror_angles
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
        """Halfway between two; angles meet on the shorter way round."""
        halfway = {}
        for name in (field.name for field in fields(self)):
            mine, its = getattr(self, name), getattr(other, name)
            if mine is not None and its is not None:
                gap = its - mine
                halfway[name] = mine + ((gap + 180).remainder(360) - 180 if name == "angles" else gap) / 2
        return Estimates(**halfway)


def estimate(network: MultiTask, inputs: Tensor, *, mirror: bool = False) -> Estimates:
    """A network's estimates; with ``mirror`` the mean of those for the pictures and for their mirror images."""
    found = Estimates.of(network(inputs))
    if mirror:
        found = found.mean(Estimates.of(network(inputs.flip(-1))).mirrored())
    return found
