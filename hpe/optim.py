"""Optimizers with grouped parameters, and the learning rate as a pure function of progress."""

import math
from typing import Final

import torch
from torch import nn

from hpe.models.multitask import MultiTask

_MOMENTUM: Final = 0.9


def parameter_groups(
    network: MultiTask, *, learning_rate: float, weight_decay: float, head_rate: float, layer_decay: float
) -> list[dict]:
    """Groups with their own rate and decay.

    Heads learn ``head_rate`` times as fast as the backbone (Hopenet: 5). With ``layer_decay`` below 1 each
    child of the backbone, counted from the last, learns that factor slower than the next. Biases, norms and
    loss weights do not decay. ``scale`` of a group multiplies the scheduled rate.
    """
    children = [name for name, child in network.backbone.named_children() if any(True for _ in child.parameters())]
    depth = {name: len(children) - 1 - place for place, name in enumerate(children)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        top, _, rest = name.partition(".")
        scale = layer_decay ** depth.get(rest.partition(".")[0], 0) if top == "backbone" else head_rate
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizer(
    name: str, groups: list[dict], learning_rate: float, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """``adamw``, ``adam`` (the thesis and Hopenet) or ``sgd`` with Nesterov momentum 0.9.

    ``fused`` updates all parameters in a few kernels, which a gradient scaler can skip without asking the host; None is
    torch's own choice.
    """
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, lr=learning_rate, fused=fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=_MOMENTUM, nesterov=True, fused=fused)
    raise ValueError(f"no optimizer {name!r}")


def rate_factor(
    schedule: str,
    epoch: float,
    epochs: float,
    *,
    warmup_epochs: float,
    step_epochs: float,
    step_factor: float,
) -> float:
    """The factor on the learning rate after ``epoch`` of ``epochs`` (fractions count).

    A linear warm-up comes first, then ``constant``; ``cosine`` to 0; ``step``: times ``step_factor`` every
    ``step_epochs``; ``one-cycle``: cosine up from 1/25 over 30 % of the time, cosine down to 0 (Smith, 2018).
    """
    if schedule == "one-cycle":
        progress = min(epoch / epochs, 1.0)
        if progress < 0.3:
            return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * progress / 0.3)) / 2
        return (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2
    if epoch < warmup_epochs:
        return (epoch + 1e-3) / warmup_epochs
    match schedule:
        case "constant":
            return 1.0
        case "cosine":
            progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
            return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        case "step":
            return step_factor ** math.floor(epoch / step_epochs)
    raise ValueError(f"no schedule {schedule!r}")


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set every group's rate to ``learning_rate`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def freeze(network: MultiTask, prefixes: list[str]) -> list[str]:
    """Stop the gradients of backbone parameters under these names; returns prefixes that match none."""
    unknown = []
    for prefix in prefixes:
        path = prefix if prefix.startswith("backbone.") else f"backbone.{prefix}"
        found = [p for n, p in network.named_parameters() if n == path or n.startswith(f"{path}.")]
        for parameter in found:
            parameter.requires_grad_(False)
        if not found:
            unknown.append(prefix)
    return unknown


def frozen_norms(network: MultiTask) -> list[nn.Module]:
    """Batch norms whose parameters are all frozen: they keep their statistics too, as in Hopenet."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, kinds)
        and (own := list(layer.parameters(recurse=False)))
        and not any(p.requires_grad for p in own)
    ]
