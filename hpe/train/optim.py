"""Optimizers with grouped parameters, and the learning rate as a pure function of progress."""

import math
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Final

import torch
from torch import nn

from hpe.core.errors import UserError
from hpe.models.multitask import MultiTask

_MOMENTUM: Final = 0.9
_EMBEDDINGS: Final = ("class_token", "pos_embedding", "relative_position_bias_table")
_OPENED: Final = ("encoder",)
"""Wrappers around a sequence of blocks: torchvision's ViT."""


def parameter_groups(
    network: MultiTask, *, learning_rate: float, weight_decay: float, head_rate: float, layer_decay: float
) -> list[dict]:
    """Groups with their own rate and decay, for :func:`build_optimizer`; :func:`describe_groups` tells of them.

    Heads learn ``head_rate`` times as fast as the backbone (Hopenet: 5). With ``layer_decay`` below 1 each layer of
    the backbone (:func:`layers_of`), counted from the last, learns that factor slower than the next. Biases, norms,
    loss weights and what :func:`undecayed` names do not decay. ``scale`` of a group multiplies the scheduled rate.
    """
    layers = layers_of(network.backbone)
    last = max(layers.values(), default=0)
    no_decay = {f"backbone.{name}" for name in undecayed(network.backbone)}
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        top, _, rest = name.partition(".")
        scale = layer_decay ** (last - layers[rest]) if top == "backbone" else head_rate
        decay = weight_decay if parameter.ndim > 1 and name not in no_decay else 0.0
        groups.setdefault((scale, decay), []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in named],
            "lr": learning_rate * scale,
            "weight_decay": decay,
            "scale": scale,
            "name": _name([name for name, _ in named], layers, split=layer_decay < 1),
        }
        for (scale, decay), named in groups.items()
    ]


def describe_groups(groups: list[dict]) -> list[str]:
    """One line per group of :func:`parameter_groups`: what is in it, its rate and its weight decay."""
    return [
        f"{group['name']}: {sum(p.numel() for p in group['params']):,} parameters in {len(group['params'])} tensors, "
        f"learning rate × {group['scale']:.4g}, weight decay {group['weight_decay']:g}"
        for group in groups
    ]


def _name(names: list[str], layers: dict[str, int], *, split: bool) -> str:
    """The parts of the network in a group, with the backbone's layers where these have rates of their own."""
    places = sorted({layers[name.removeprefix("backbone.")] for name in names if name.startswith("backbone.")})
    told: list[str] = []
    if places:
        of = max(layers.values())
        told.append(f"backbone layer {' and '.join(map(str, places))} of 0 to {of}" if split else "backbone")
    return ", ".join([*told, *dict.fromkeys(top for name in names if (top := name.partition(".")[0]) != "backbone")])


def undecayed(backbone: nn.Module) -> set[str]:
    """Parameters that weight decay leaves alone for what they are: class tokens, tables of positions.

    timm's networks name their own; of torchvision's they are those that its reference training names.
    """
    ask = getattr(backbone, "no_weight_decay", None)
    patterns = list(ask()) if ask is not None else [f"*{name}" for name in _EMBEDDINGS]
    return {name for name, _ in backbone.named_parameters() if any(fnmatch(name, one) for one in patterns)}


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter of a backbone, from 0 (the nearest to the picture).

    timm's networks tell theirs (``group_matcher``, as timm's own layer-wise rates use it). Elsewhere the layers are
    the modules in their order, looking into sequences and lists of them, so that each block of a ResNet, a ViT or a
    VGG is one. A norm belongs to the layer before it, or to the one that it opens; parameters of the network itself,
    such as a class token, to the first.
    """
    if hasattr(backbone, "group_matcher"):
        from timm.models import group_parameters

        return group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)  # pyright: ignore
    layers: list[list[str]] = [[]]
    opening: list[str] = []
    for prefix, module, first in _units("", backbone):
        own = [f"{prefix}.{name}" for name, _ in module.named_parameters()]
        if all(parameter.ndim < 2 for parameter in module.parameters()):
            (opening if first else layers[-1]).extend(own)
        else:
            layers.append([*opening, *own])
            opening = []
    layers[-1] += opening
    if len(layers) > 1:
        layers[:2] = [layers[0] + layers[1]]
    known = {name: place for place, names in enumerate(layers) for name in names}
    return {name: known.get(name, 0) for name, _ in backbone.named_parameters()}


def _units(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The modules with parameters that make a layer or a part of one, in order; whether they open a sequence."""
    first = True
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict) or name in _OPENED:
            yield from _units(path, child)
        elif any(True for _ in child.parameters()):
            yield path, child, first
        first = False


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


def freeze(network: MultiTask, prefixes: list[str]) -> None:
    """Stop the gradients of backbone parameters under these names.

    Raises:
        UserError: names that match none, one line each.
    """
    unknown = []
    layers = ", ".join(name for name, _ in network.backbone.named_children())
    for prefix in prefixes:
        path = prefix if prefix.startswith("backbone.") else f"backbone.{prefix}"
        found = [p for n, p in network.named_parameters() if n == path or n.startswith(f"{path}.")]
        for parameter in found:
            parameter.requires_grad_(False)
        if not found:
            unknown.append(f"model.freeze: the backbone has no layer named {prefix!r}; it has {layers}")
    if unknown:
        raise UserError("\n".join(unknown))


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
