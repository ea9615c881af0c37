"""The moving average of a network's weights, kept on the device of the network and updated without waiting for it."""

import copy

import torch
from torch import Tensor

from hpe.models.multitask import MultiTask


def warming_decay(decay: float, steps: int) -> float:
    """The decay after so many updates: min(``decay``, (1 + steps) / (10 + steps)), and 0 before the first.

    As TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: without it the first epochs are judged by
    weights that are mostly the random ones of the start.
    """
    return min(decay, (1 + steps) / (10 + steps)) if steps else 0.0


class MovingAverage:
    """An exponential moving average of a network's parameters; buffers are those of the network.

    ``torch.optim.swa_utils.AveragedModel`` counts its updates in a tensor, which has to be read, or copied to the
    device, in every step; and it knows nothing of steps that a gradient scaler skips.

    Attributes:
        module: a network with the averaged weights.
        steps: how many updates the average has had.
    """

    def __init__(self, network: MultiTask, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self.steps = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, network: MultiTask, *, skipped: Tensor | None = None) -> None:
        """Take the network's weights after a step into the average.

        Args:
            network: as it is after the step.
            skipped: on its device, true where the step did not take place: the average stays as it is. Whoever reads
                this later takes such a step out of ``steps`` again.
        """
        weight = 1 - warming_decay(self._decay, self.steps)
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(network.parameters())
        if skipped is None:
            torch._foreach_lerp_(averaged, current, weight)
        else:  # the host cannot know without waiting for the device, so the device chooses the weight
            chosen = torch.full_like(skipped, weight, dtype=torch.float32).masked_fill(skipped, 0.0)
            torch._foreach_lerp_(averaged, current, [chosen] * len(averaged))
        for mine, its in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(its)
        self.steps += 1
