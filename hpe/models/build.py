"""Builds the network of a config, and the trained network of a run folder."""

from pathlib import Path

import torch

from hpe.config.run import HeadsConfig, ModelConfig, RunConfig
from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.normalise import MEAN, STD, Normalisation
from hpe.models.backbones import build_backbone, outline
from hpe.models.checkpoints import load_tensors, weights_of
from hpe.models.multitask import HeadSpec, MultiTask, affect_pair, class_logits, pose_6d, pose_bins
from hpe.models.run_folder import CONFIG, is_run, load_config, pretrained, refuse_absent

_SMALLEST_NUMBER = 2
"""Bytes of a weight in half precision."""


def build_network(model: ModelConfig, *, learned_weights: bool = False, weights: str | None = None) -> MultiTask:
    """The network of a config; ``weights`` overrides ``model.weights``. A run folder means its best weights.

    Without ``model.mean`` and ``model.std``, ImageNet's are meant: ``hpe train`` has filled in its backbone's own.

    Raises:
        UserError: unknown backbone, or weights that do not fit.
    """
    specs = head_specs(model.heads)
    start = given = model.weights if weights is None else weights
    if start not in ("none", "hub") and Path(start).is_dir():
        start = str(weights_of(Path(start)))
    try:
        backbone, features = build_backbone(model.backbone, stem=model.stem, weights=start)
    except UserError as error:
        raise UserError(f"{error}{_other_backbone(model, given)}") from error
    return MultiTask(
        backbone,
        features,
        specs,
        conditioned=bool(model.heads.emotion and model.heads.emotion.conditioned_on_pose),
        learned_weights=learned_weights,
        normalisation=Normalisation(torch.tensor(model.mean or MEAN), torch.tensor(model.std or STD)),
    )


def _other_backbone(model: ModelConfig, weights: str) -> str:
    """The end of a message: how the network of a run differs that the weights are from; empty: it does not."""
    if weights in ("none", "hub") or not is_run(Path(weights)):
        return ""
    run = load_config(Path(weights)).model
    other = [
        f"model.{name}={getattr(run, name)}"
        for name in ("backbone", "stem")
        if getattr(run, name) != getattr(model, name)
    ]
    return f"; {weights} has another network: use --set {' --set '.join(other)}, or other weights" if other else ""


def head_specs(heads: HeadsConfig) -> dict[str, HeadSpec]:
    """How to make each head that is on."""
    specs: dict[str, HeadSpec] = {}
    if heads.emotion:
        specs["emotion"] = class_logits(len(EMOTIONS), dropout=heads.emotion.dropout)
    if heads.direction:
        specs["direction"] = class_logits(len(DIRECTIONS), dropout=heads.direction.dropout)
    if heads.pose:
        specs["pose"] = pose_bins if heads.pose.kind == "bins66" else pose_6d
    if heads.affect:
        specs["affect"] = affect_pair
    return specs


def load_run(run: Path, which: str = "best") -> tuple[MultiTask, RunConfig, Path]:
    """The network of a run in evaluation mode, its config, and the weights file it came from.

    Raises:
        UserError: no run, no checkpoint, or weights that do not fit its config.
    """
    refuse_absent(run)
    config, path = load_config(run), weights_of(run, which)
    if pretrained(run) is not None:
        _refuse_larger(config.model, path)
    network = build_network(config.model, learned_weights=config.train.balance_losses == "learned", weights="none")
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit {run / CONFIG}: {str(error)[:300]}") from error
    return network.eval(), config, path


def _refuse_larger(model: ModelConfig, weights: Path) -> None:
    """Refuse a foreign config whose network is larger than its weights, before it takes the memory.

    Raises:
        UserError: it is.
    """
    numbers = sum(values.numel() for values in outline(model.backbone, stem=model.stem)[0].parameters())
    if numbers * _SMALLEST_NUMBER > weights.stat().st_size:
        raise UserError(
            f"{weights}: {weights.stat().st_size:,} bytes are not the {numbers:,} numbers of {model.backbone}; the "
            "folder is damaged, or its config.json is wrong"
        )
