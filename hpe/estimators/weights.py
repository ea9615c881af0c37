"""Torch networks as estimators' networks: released Hopenet state dicts, and the modules of our own runs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hpe.core.errors import UserError
from hpe.models.backbones import read_state
from hpe.models.hopenet import Hopenet, fit_state_dict


class TorchNetwork:
    """A module as a network of the pass, with optional autocast."""

    def __init__(self, module: nn.Module, device: torch.device, autocast: torch.dtype | None) -> None:
        self.module = module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.device, self.autocast = device, autocast

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found = self.module(images)
        return (found["pose"] if isinstance(found, Mapping) else found,)


class CompiledNetwork(TorchNetwork):
    """As :class:`TorchNetwork` through ``torch.compile``: batches are filled up to one size, compiled once."""

    def __init__(self, module: nn.Module, device: torch.device, autocast: torch.dtype | None, batch: int) -> None:
        super().__init__(module, device, autocast)
        self.module = torch.compile(self.module, dynamic=False)
        self.batch = batch

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        count = len(images)
        if count < self.batch:
            images = torch.cat((images, images[-1:].expand(self.batch - count, -1, -1, -1)))
            images = images.contiguous(memory_format=torch.channels_last)
        return tuple(output[:count] for output in super().__call__(images))


def load_hopenet(path: Path) -> Hopenet:
    """A Hopenet with the weights of a file.

    Raises:
        UserError: no file of tensors alone, or other parameters than Hopenet's, which are named.
    """
    network = Hopenet()
    try:
        network.load_state_dict(fit_state_dict(network, read_state(path)))
    except ValueError as error:
        raise UserError(
            f"{path}: not the weights of Hopenet (ResNet-50 with fc_yaw, fc_pitch, fc_roll): {error}"
        ) from error
    return network.eval()
