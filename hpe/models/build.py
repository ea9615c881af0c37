"""Builds the network of a config, and the trained network of a run folder."""

from pathlib import Path

import torch

from hpe.config.run import ModelConfig, RunConfig
from hpe.core.errors import UserError
from hpe.data.normalise import Normalisation
from hpe.models.backbones import build_backbone
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import CONFIG, load_config, load_tensors, normalisation_of, weights_of


def build_network(model: ModelConfig, *, learned_weights: bool = False, weights: str | None = None) -> MultiTask:
    """The network of a config; ``weights`` overrides ``model.weights``. A run folder means its best weights.

    Raises:
        UserError: unknown backbone, or weights that do not fit.
    """
    start = model.weights if weights is None else weights
    if start not in ("none", "hub") and Path(start).is_dir():
        start = str(weights_of(Path(start)))
    backbone, features = build_backbone(model.backbone, stem=model.stem, weights=start)
    mean, std = map(torch.tensor, normalisation_of(model))
    heads = model.heads
    return MultiTask(
        backbone,
        features,
        emotion=heads.emotion is not None,
        direction=heads.direction is not None,
        pose=heads.pose.kind if heads.pose else None,
        affect=heads.affect is not None,
        conditioned=bool(heads.emotion and heads.emotion.conditioned_on_pose),
        dropout=(
            heads.emotion.dropout if heads.emotion else 0.0,
            heads.direction.dropout if heads.direction else 0.0,
        ),
        learned_weights=learned_weights,
        normalisation=Normalisation(mean, std),
    )


def load_run(run: Path, which: str = "best") -> tuple[MultiTask, RunConfig, Path]:
    """The network of a run in evaluation mode, its config, and the weights file it came from.

    Raises:
        UserError: no run, no checkpoint, or weights that do not fit its config.
    """
    config, path = load_config(run), weights_of(run, which)
    network = build_network(config.model, learned_weights=config.train.balance_losses == "learned", weights="none")
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit {run / CONFIG}: {str(error)[:300]}") from error
    return network.eval(), config, path
