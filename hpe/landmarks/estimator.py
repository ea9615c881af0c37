"""Pictures to angles by mesh and regressor: what ``hpe predict`` and ``hpe landmarks draw`` call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.data.images import RGBImage
from hpe.landmarks.mesh import MeshFace, MeshPool, Which, group_detector, interpreter
from hpe.landmarks.model import LandmarkModel
from hpe.landmarks.topology import MESH468


@dataclass(frozen=True)
class PosedFace:
    """A face that was found.

    Attributes:
        angles: yaw, pitch, roll, degrees.
        box: around the points: x0, y0, x1, y1, pixels.
        spread: how far the mesh's views differ, as a fraction of the face's size; above 0.05 the angles are
            unreliable.
    """

    angles: Float[np.ndarray, "3"]
    box: tuple[float, float, float, float]
    spread: float


class LandmarkEstimator:
    """A saved model and a face mesh, safe for several threads; :meth:`close` ends the mesh.

    Args:
        folder: ``OUT/model`` of ``hpe landmarks compare``, or OUT.
        python: interpreter with the mesh; by default the installed one.
        which: of several faces: largest, centre or all.

    Raises:
        UserError: no model, another topology, or no mesh.
    """

    def __init__(self, folder: Path, *, python: Path | None = None, which: Which = "largest") -> None:
        self.model = LandmarkModel.load(folder)
        if self.model.topology != MESH468.name:
            raise UserError(
                f"{folder}: made for {self.model.topology}, the face mesh gives {MESH468.name}; expected the model of "
                "`hpe landmarks compare` on points of `hpe landmarks extract`"
            )
        detector = group_detector() if which == "all" else None
        self._mesh = MeshPool(interpreter(python), self.model.views or "plain", which, detector=detector)

    def close(self) -> None:
        """End the face mesh."""
        self._mesh.close()

    @property
    def without_points(self) -> int:
        """How many faces the detector found in which the mesh found no points."""
        return self._mesh.without_points

    def find(self, picture: RGBImage) -> list[MeshFace]:
        """The faces of an RGB picture, without angles."""
        return self._mesh.find(picture)

    def faces(self, picture: RGBImage) -> list[PosedFace]:
        """The faces of an RGB picture with their angles; empty where none is found."""
        found = self.find(picture)
        if not found:
            return []
        angles = self.model.angles(np.stack([face.points for face in found]))
        return [PosedFace(row, face.box, face.spread) for face, row in zip(found, angles, strict=True)]

    def estimate(self, pictures: Sequence[RGBImage]) -> Float[np.ndarray, "pictures 3"]:
        """Yaw, pitch, roll of the first face of each RGB picture; NaN if it has none."""
        points = np.full((len(pictures), MESH468.count, 3), np.nan)
        for row, picture in enumerate(pictures):
            if faces := self.find(picture):
                points[row] = faces[0].points
        return self.model.angles(points)
