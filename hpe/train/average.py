"""The moving average of a network's weights, kept on the device of the network and updated without waiting for it."""

import copy
from dataclasses import dataclass
from typing import Self

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
        self._tensors: _Tensors | None = None

    @torch.no_grad()
    def update(self, network: MultiTask, *, skipped: Tensor | None = None) -> None:
        """Take the network's weights after a step into the average.

        Args:
            network: as it is after the step.
            skipped: on its device, true where the step did not take place: the average stays as it is. Whoever reads
                this later takes such a step out of ``steps`` again.
        """
        weight = 1 - warming_decay(self._decay, self.steps)
        if self._tensors is None:  # not before the first step: Accelerate's `prepare` replaces buffers
            self._tensors = _Tensors.of(self.module, network)
        tensors = self._tensors
        if skipped is None:
            torch._foreach_lerp_(tensors.averaged, tensors.current, weight)
        else:  # the host cannot know without waiting for the device, so the device chooses the weight
            chosen = torch.full_like(skipped, weight, dtype=torch.float32).masked_fill(skipped, 0.0)
            torch._foreach_lerp_(tensors.averaged, tensors.current, [chosen] * len(tensors.averaged))
        for mine, its in tensors.buffers:
            torch._foreach_copy_(mine, its)
        self.steps += 1


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The tensors of an average and of its network. To list them takes the host a millisecond, which a GPU waits."""

    averaged: list[Tensor]
    current: list[Tensor]
    buffers: list[tuple[list[Tensor], list[Tensor]]]
    """By type of number: in one call, where one for each batch norm would be 159 of a ResNet-50."""

    @classmethod
    def of(cls, average: MultiTask, network: MultiTask) -> Self:
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for mine, its in zip(average.buffers(), network.buffers(), strict=True):
            both = by_type.setdefault(mine.dtype, ([], []))
            both[0].append(mine)
            both[1].append(its)
        return cls(list(average.parameters()), list(network.parameters()), list(by_type.values()))
