"""The network as users call it: pixel values in, probabilities and degrees out."""

import copy
from dataclasses import fields
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpe.data.normalise import IMAGENET
from hpe.models.hopenet import Hopenet
from hpe.models.multitask import MultiTask
from hpe.models.views import Estimates

OUTPUTS: Final = {
    "emotion_p": "emotion",
    "direction_p": "direction",
    "angles": "angles",
    "deviations": "deviations",
    "affect": "affect",
}
"""Field of :class:`hpe.models.views.Estimates` → name of the graph's output, in their order."""


class Deployed(nn.Module):
    """A trained network with everything around it that a user would otherwise have to repeat.

    The normalisation before it and the arithmetic after it (softmax, bins, rotations) are in fp32, whatever the
    precision of the network: in fp16 an angle of 99° is only known to 0.06°.

    Args:
        network: trained, in evaluation mode; Hopenet counts as a network with a pose head alone.
        half: whether its weights and activations are fp16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: MultiTask | Hopenet, *, half: bool = False) -> None:
        super().__init__()
        mean, std = network.normalisation if isinstance(network, MultiTask) else IMAGENET
        self.register_buffer("mean", mean.clone().view(1, 3, 1, 1) * 255)
        self.register_buffer("std", std.clone().view(1, 3, 1, 1) * 255)
        self.dtype = torch.float16 if half else torch.float32
        self.network = copy.deepcopy(network).to(self.dtype)  # in place it would round the caller's weights, too

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> tuple[Tensor, ...]:
        """Outputs in the order of :data:`OUTPUTS`, without those of heads that the network lacks.

        ``images`` are RGB values of 0 to 255, as floats.
        """
        return tuple(self.named(images).values())

    def named(self, images: Float[Tensor, "batch 3 size size"]) -> dict[str, Tensor]:
        """The same by name."""
        found = self.estimates(images)
        return {OUTPUTS[one.name]: values for one in fields(found) if (values := getattr(found, one.name)) is not None}

    def estimates(self, images: Float[Tensor, "batch 3 size size"]) -> Estimates:
        """The same as the package has it."""
        found = self.network(((images - self.mean) / self.std).to(self.dtype))
        outputs = found if isinstance(found, dict) else {"pose": found}
        return Estimates.of({head: values.float() for head, values in outputs.items()})
