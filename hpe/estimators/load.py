"""Load an estimator from a YAML, an ONNX network beside its YAML, Hopenet weights, a run or a landmark model."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from hpe.config.strict_yaml import load
from hpe.core.errors import UserError
from hpe.core.nearest import did_you_mean
from hpe.data.crops import CropRule
from hpe.data.normalise import MEAN, STD
from hpe.estimators.estimator import Estimator, Network, Precision
from hpe.estimators.onnx import OnnxNetwork, load_onnx
from hpe.estimators.spec import NAME, EstimatorSpec, InputSpec, OutputSpec
from hpe.estimators.weights import CompiledNetwork, TorchNetwork, load_hopenet
from hpe.landmarks.model import model_folder
from hpe.models.build import load_run
from hpe.models.run_folder import CONFIG, crop_rules, refuse_absent

_TORCH: Final = (".pkl", ".pth", ".pt", ".safetensors")
_YAML: Final = (".yaml", ".yml")
_AUTOCAST: Final[dict[Precision, torch.dtype | None]] = {
    "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
_PLAIN_NAME: Final = re.compile(NAME)
HOPENET_CROP: Final = "hopenet-0.2@landmarks"


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how networks run.

    Attributes:
        compiled_batch: batch size to compile for, or None for no ``torch.compile``.
        fall_back: whether a network that cannot run on the device (ONNX with a CPU-only ONNX Runtime) runs on the CPU,
            with a message; otherwise it is refused.
    """

    device: torch.device
    precision: Precision = "fp32"
    compiled_batch: int | None = None
    fall_back: bool = False

    def network(self, module: nn.Module) -> Network:
        """A module ready to run."""
        autocast = _AUTOCAST[self.precision]
        if self.compiled_batch is None:
            return TorchNetwork(module, self.device, autocast)
        return CompiledNetwork(module, self.device, autocast, self.compiled_batch)


def load_estimator(
    path: Path,
    compute: Compute,
    *,
    weights: Path | None = None,
    crop: str | None = None,
    name: str | None = None,
    any_network: bool = False,
) -> Estimator:
    """The estimator that a path names.

    Args:
        path: an estimator YAML, an ``.onnx`` with its YAML beside it (same stem), Hopenet weights
            (``.pkl``, ``.pth``, ``.pt``, ``.safetensors``), a run folder of ``hpe train``, or the folder of a
            landmark model (``hpe landmarks compare``).
        compute: device and precision.
        weights: replaces the YAML's ``weights``; refused with anything but a YAML.
        crop: replaces the crop rule that the network was made for.
        name: replaces its name.
        any_network: whether a network without a pose, or of an unknown crop rule, will do.

    Raises:
        UserError: it is none of these, or not what it claims to be.
    """
    if name is not None and not _PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}: expected a plain name of up to 64 letters, digits, dots, _ and -, such as hopenet-2; it "
            "becomes a folder (--out chooses where)"
        )
    if weights is not None and path.suffix not in _YAML:
        raise UserError(
            f"--weights {weights}: {path} has its own weights; leave out --weights, or give the estimator's YAML "
            "(--estimator FILE.yaml --weights FILE)"
        )
    refuse_absent(path)
    if model_folder(path) is not None:
        found = _of_landmarks(path, compute)
    elif path.is_dir():
        found = _of_run(path, compute)
    elif path.suffix in _YAML:
        found = _of_spec(path, load(path, EstimatorSpec), weights, compute)
    elif path.suffix == ".onnx":
        found = _of_spec(_yaml_beside(path), load(_yaml_beside(path), EstimatorSpec), path, compute)
    elif path.suffix in _TORCH:
        spec = EstimatorSpec(weights=path.name, crop=HOPENET_CROP, output=OutputSpec(kind="bins66-lower"))
        found = _of_spec(path, spec, path, compute)
    else:
        raise UserError(f"{path}: {path.suffix or 'no suffix'}: expected .yaml, .onnx, {', '.join(_TORCH)} or a run")
    if found.output is None and not any_network:
        raise UserError(
            f"{path}: this network has no pose (its outputs: {', '.join(found.heads)}); expected one with output:"
        )
    crops = frozenset((CropRule.parse(crop),)) if crop else found.crops
    if len(crops) != 1 and not any_network:
        raise UserError(
            f"{path}: the crop rule that this network was trained with is not known ("
            + (f"its training images have {', '.join(sorted(map(str, crops)))}" if crops else "nothing records it")
            + "); give it with --crop RULE, for example --crop square-1.4@landmarks"
        )
    return replace(found, crops=crops, name=name or found.name)


def _yaml_beside(path: Path) -> Path:
    for suffix in _YAML:
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise UserError(
        f"{path}: no {path.stem}.yaml beside it, which describes its input and output; copy and adapt "
        f"configs/estimators/lwpose66.yaml, and give it as --estimator FILE.yaml --weights {path}"
    )


def _of_spec(path: Path, spec: EstimatorSpec, weights: Path | None, compute: Compute) -> Estimator:
    file = weights or path.parent / Path(spec.weights).expanduser()
    if not file.is_file():
        if weights is not None:
            raise UserError(
                f"--weights {weights}: no such file; correct the path (relative to the current folder)"
                f"{did_you_mean(weights)}"
            )
        raise UserError(
            f"{path}: weights: no file {file}; correct the path, or give it with --weights FILE{did_you_mean(file)}"
        )
    digest = sha256_of(file)
    if spec.sha256 and spec.sha256 != digest:
        raise UserError(
            f"{path}: sha256: {file} has {digest}, the YAML has {spec.sha256}: not the weights that it describes; "
            "use the right file, or remove sha256"
        )
    onnx = file.suffix == ".onnx"
    if not onnx and file.suffix not in _TORCH:
        raise UserError(f"{path}: weights: {file.name}: expected .onnx, or Hopenet weights in {', '.join(_TORCH)}")
    if onnx and (compute.precision != "fp32" or compute.compiled_batch is not None):
        raise UserError(f"{file}: an ONNX network has its own precision; leave out --precision and --compile")
    device = compute.device
    if onnx:
        network: Network = load_onnx(file, spec, device, fall_back=compute.fall_back)
        device = network.device
    else:
        network = compute.network(load_hopenet(file))
    return Estimator(
        name=spec.name or file.stem,
        weights_sha256=digest,
        crops=spec.crops,
        input=spec.input,
        output=spec.output,
        network=network,
        device=device,
        channels_last=not onnx,
        heads=tuple(spec.heads.named),
        weights=file,
        learned=spec.learned.classes,
        faces=spec.learned.faces,
        precision=network.precision if isinstance(network, OnnxNetwork) else compute.precision,
    )


def _of_landmarks(folder: Path, compute: Compute) -> Estimator:
    from hpe.estimators.landmarks import as_pose_estimator

    if compute.precision != "fp32" or compute.compiled_batch is not None:
        raise UserError(f"{folder}: a landmark model runs on the CPU as it is; leave out --precision and --compile")
    return as_pose_estimator(folder)


def _of_run(run: Path, compute: Compute) -> Estimator:
    module, config, file = load_run(run)
    pose = config.model.heads.pose
    if pose is None:
        raise UserError(
            f"{run / CONFIG}: this run has no pose head (its heads: {', '.join(config.model.heads.on)}); "
            "expected one trained with model.heads.pose"
        )
    return Estimator(
        name=run.resolve().name,
        weights_sha256=sha256_of(file),
        crops=crop_rules(run),
        input=InputSpec(
            size=config.data.size,
            colour="grey" if config.data.grey else "rgb",
            mean=config.model.mean or MEAN,
            std=config.model.std or STD,
        ),
        output=OutputSpec(kind="bins66-lower" if pose.kind == "bins66" else "sixd"),
        network=compute.network(module),
        device=compute.device,
        channels_last=True,
    )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
