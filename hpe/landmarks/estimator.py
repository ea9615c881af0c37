"""Pictures to angles by mesh and regressor: what `hpe predict` calls, and what `hpe pose` takes as an estimator."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Float

from hpe.errors import UserError
from hpe.images import Picture
from hpe.landmarks.mesh import FaceMesh, MeshFace, Which, interpreter
from hpe.landmarks.model import MODEL, LandmarkModel
from hpe.landmarks.topology import MESH468

if TYPE_CHECKING:
    from torch import Tensor

    from hpe.estimators.estimator import Estimator

_MESH_INPUT = 320
_MESH_CROP = "square-1.6@box"


@dataclass(frozen=True)
class PosedFace:
    """A face that was found.

    Attributes:
        angles: yaw, pitch, roll, degrees.
        box: around the points: x0, y0, x1, y1, pixels.
        spread: how far the mesh's views differ, in sizes of the face: above 0.05, doubt the angles.
    """

    angles: Float[np.ndarray, "3"]
    box: tuple[float, float, float, float]
    spread: float


class LandmarkEstimator:
    """A saved model and a running face mesh; use as a context.

    Args:
        folder: ``OUT/model`` of ``hpe landmarks compare``.
        python: interpreter with the mesh; by default the installed one.
        which: with several faces: largest, centre or all.

    Raises:
        UserError: no model, another topology, or no mesh.
    """

    def __init__(self, folder: Path, *, python: Path | None = None, which: Which = "largest") -> None:
        self.model = LandmarkModel.load(folder)
        if self.model.topology != MESH468.name:
            raise UserError(f"{folder}: made for {self.model.topology}, the face mesh gives {MESH468.name}")
        self._mesh = FaceMesh(interpreter(python), self.model.views or "plain", which)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the face mesh."""
        self._mesh.close()

    def faces(self, picture: Picture) -> list[PosedFace]:
        """The faces of an RGB picture with their angles; empty where none is found."""
        found = self._mesh.find(picture)
        if not found:
            return []
        angles = self.model.angles(np.stack([face.points for face in found]))
        return [_posed(face, row) for face, row in zip(found, angles, strict=True)]

    def estimate(self, pictures: Sequence[Picture]) -> Float[np.ndarray, "pictures 3"]:
        """Yaw, pitch, roll of the first face of each RGB picture; NaN where there is none."""
        angles = np.full((len(pictures), 3), np.nan)
        for row, picture in enumerate(pictures):
            if faces := self.faces(picture):
                angles[row] = faces[0].angles
        return angles


def _posed(face: MeshFace, angles: Float[np.ndarray, "3"]) -> PosedFace:
    (x0, y0), (x1, y1) = face.points[:, :2].min(0), face.points[:, :2].max(0)
    return PosedFace(angles, (float(x0), float(y0), float(x1), float(y1)), face.spread)


def as_pose_estimator(folder: Path, *, python: Path | None = None, crop: str = _MESH_CROP) -> "Estimator":
    """The model behind the interface of ``hpe pose``: a network that takes crops and gives Euler angles.

    Faces that the mesh does not find have NaN angles. The mesh ends when the estimator is no longer used.
    """
    import threading
    import weakref

    import torch

    from hpe.crops import CropRule
    from hpe.estimators.estimator import Estimator
    from hpe.estimators.spec import InputSpec, OutputSpec

    estimator, lock = LandmarkEstimator(folder, python=python), threading.Lock()

    def network(pictures: "Tensor") -> "tuple[Tensor, ...]":
        raw = pictures.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
        with lock:
            return (torch.from_numpy(estimator.estimate(list(raw))).float(),)

    weakref.finalize(network, estimator.close)
    digest = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    unscaled = InputSpec(size=_MESH_INPUT, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    return Estimator(
        name=f"landmarks-{estimator.model.name}",
        weights_sha256=digest,
        crop=CropRule.parse(crop),
        input=unscaled,
        output=OutputSpec(kind="euler", unit="degrees"),
        network=network,
        device=torch.device("cpu"),
        channels_last=False,
    )
