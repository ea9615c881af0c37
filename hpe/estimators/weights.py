"""Weights of torch networks: released Hopenet state dicts, our own runs. Foreign files are hostile (C8)."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hpe.errors import UserError
from hpe.models.hopenet import Hopenet, fit_state_dict


class TorchNetwork:
    """A module as a network of the pass: optional autocast; channels-last."""

    def __init__(self, module: nn.Module, device: torch.device, autocast: torch.dtype | None) -> None:
        self.module, self.device, self.autocast = module, device, autocast

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.autocast is None:
            found = self.module(images)
        else:
            with torch.autocast(self.device.type, self.autocast):
                found = self.module(images)
        return (found["pose"] if isinstance(found, Mapping) else found,)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict: safetensors, or a pickle that holds tensors and nothing else.

    Raises:
        UserError: unreadable, or a pickle with more than tensors in it (nothing of it is run).
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: this pickle holds more than tensors, and to read it would run its code; refused. Expected a "
            "state dict: in the program that made it, torch.save(model.state_dict(), …). "
            f"({str(error).splitlines()[0][:160]})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a file of torch weights: {str(error)[:200] or type(error).__name__}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: holds a {type(found).__name__}; expected a state dict (name → tensor)")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(
            f"{path}: {', '.join(others[:5])} {'is' if len(others) == 1 else 'are'} no tensor; expected a state "
            "dict (name → tensor)"
        )
    return {str(name): value for name, value in found.items()}


def load_hopenet(path: Path) -> Hopenet:
    """A Hopenet with the weights of a file.

    Raises:
        UserError: as :func:`tensors_of`, or other parameters than Hopenet's, which are named.
    """
    network = Hopenet()
    try:
        network.load_state_dict(fit_state_dict(network, tensors_of(path)))
    except ValueError as error:
        raise UserError(
            f"{path}: not the weights of Hopenet (ResNet-50 with fc_yaw, fc_pitch, fc_roll): {error}"
        ) from error
    return network.eval()
