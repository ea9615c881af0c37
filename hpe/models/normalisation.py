"""The mean and the standard deviation of the pixels that a network learns with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hpe.config.run import ModelConfig
from hpe.data.normalise import MEAN, STD
from hpe.models.backbones import INCEPTIONS, TIMM
from hpe.models.run_folder import load_config

Triple = tuple[float, float, float]
"""A number for each of red, green and blue."""

_HALF: Final = (0.5, 0.5, 0.5)


def normalisation_of(model: ModelConfig) -> tuple[Triple, Triple]:
    """Mean and standard deviation for a network: its own; else those of the run that it starts from; else published.

    Raises:
        UserError: it starts from a folder that is no run.
    """
    if model.mean is not None and model.std is not None:
        return model.mean, model.std
    if model.weights in ("none", "hub") or not Path(model.weights).is_dir():
        return published_normalisation(model.backbone, model.weights)
    start = load_config(Path(model.weights)).model
    return start.mean or MEAN, start.std or STD


def published_normalisation(name: str, weights: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the pixels, in 0..1, that a backbone expects by its publisher.

    Those of timm's config for timm's names, those of torchvision's weights with ``hub``; else ImageNet's, also for
    names that :func:`hpe.models.backbones.build_backbone` refuses.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM))
    if weights != "hub":
        return MEAN, STD
    if name in INCEPTIONS:  # converted from TensorFlow: torchvision turns ImageNet's into these inside the network
        return _HALF, _HALF
    import torchvision

    try:
        preset = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    except (ValueError, KeyError):
        return MEAN, STD
    return _triple(preset.mean), _triple(preset.std)


def _of_timm(name: str) -> tuple[Triple, Triple]:
    from timm.data import resolve_data_config  # pyright: ignore[reportAttributeAccessIssue]
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(name)
    except RuntimeError:
        known = None
    if known is None:
        return MEAN, STD
    found = resolve_data_config(pretrained_cfg=known.to_dict())
    return _triple(found["mean"]), _triple(found["std"])


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue
