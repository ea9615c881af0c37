"""A landmark model behind the interface of head-pose networks: the mesh and its regressor take the crop."""

import hashlib
import weakref
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from hpe.data.crops import CropRule
from hpe.estimators.estimator import Estimator
from hpe.estimators.spec import InputSpec, OutputSpec
from hpe.landmarks.estimator import LandmarkEstimator
from hpe.landmarks.model import MODEL, model_folder

_MESH_INPUT: Final = 320
_MESH_CROP: Final = "square-1.6@box"


def as_pose_estimator(folder: Path, *, python: Path | None = None) -> Estimator:
    """The model as an estimator of ``hpe pose``: it takes crops and gives Euler angles.

    Faces that the mesh does not find have NaN angles. The mesh ends when the estimator is garbage-collected.
    """
    estimator = LandmarkEstimator(folder, python=python)

    def network(pictures: Tensor) -> tuple[Tensor, ...]:
        raw = pictures.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
        return (torch.from_numpy(estimator.estimate(list(raw))).float(),)

    weakref.finalize(network, estimator.close)
    file = (model_folder(folder) or folder) / MODEL
    unscaled = InputSpec(size=_MESH_INPUT, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    return Estimator(
        name=f"landmarks-{estimator.model.name}",
        weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        crops=frozenset((CropRule.parse(_MESH_CROP),)),
        input=unscaled,
        output=OutputSpec(kind="euler", unit="degrees"),
        network=network,
        device=torch.device("cpu"),
        channels_last=False,
        finds_faces=True,
        weights=file,
    )
