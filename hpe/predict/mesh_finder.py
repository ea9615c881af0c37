"""A landmark model in ``hpe predict``: its mesh finds the faces in whole images, its regressor gives their angles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from hpe.core.precision import Precision
from hpe.data.directions import OURS
from hpe.data.images import MAX_PIXELS, RGBImage
from hpe.landmarks.estimator import LandmarkEstimator
from hpe.landmarks.mesh import MeshFace, Which
from hpe.predict.face_finders import NO_FACE, FoundFace, LoadedImage, load_image, picture_of, skipped
from hpe.predict.inputs import Item, Skipped
from hpe.predict.network import Answers


@dataclass(frozen=True, slots=True)
class _MeshedImage(LoadedImage):
    meshes: Sequence[MeshFace] = ()


class MeshFinder:
    """Both halves in one: a :class:`hpe.predict.face_finders.FaceFinder` and a :class:`hpe.predict.network.Answerer`.

    Args:
        folder: of the model.
        which: which of several faces: largest, centre or all.
        keep_pictures: keep the pixels for drawing.
        max_pixels: larger images are not read.

    Attributes:
        name: of the model.
        device, precision: those of every landmark model.
    """

    heads: tuple[str, ...] = ("pose",)
    device = torch.device("cpu")
    precision = Precision("fp32", "landmark models have no other")

    def __init__(self, folder: Path, which: Which, *, keep_pictures: bool, max_pixels: int = MAX_PIXELS) -> None:
        self._estimator, self._keep = LandmarkEstimator(folder, which=which), keep_pictures
        self._max_pixels = max_pixels
        self.name = folder.resolve().name

    def close(self) -> None:
        """Stop the face mesh."""
        self._estimator.close()

    @property
    def without_points(self) -> int:
        """How many faces the detector found in which the mesh found no points, so that they have no row."""
        return self._estimator.without_points

    def load(self, item: Item | Skipped) -> LoadedImage | Skipped:
        """Read, decode and find faces, in a thread."""

        def decode(data: bytes | RGBImage) -> LoadedImage:
            assert isinstance(item, Item)
            picture = picture_of(data, self._max_pixels)
            height, width = picture.shape[:2]
            return _MeshedImage(item, width, height, picture if self._keep else None, (), self._estimator.find(picture))

        return load_image(item, decode)

    def find(self, group: Sequence[LoadedImage]) -> list[FoundFace | Skipped]:
        """The faces of every image, the largest first."""
        found: list[FoundFace | Skipped] = []
        for one in group:
            assert isinstance(one, _MeshedImage)
            if not one.meshes:
                found.append(skipped(one.item, NO_FACE, unread=False))
            found += [FoundFace(one, number, mesh.box, None, mesh.points) for number, mesh in enumerate(one.meshes)]
        return found

    def answer(self, faces: Float[np.ndarray, "faces points 3"]) -> Answers:
        """Angles from the points, and the direction by our thresholds."""
        angles = self._estimator.model.angles(faces).astype(np.float32)
        unknown = np.full_like(angles, np.nan)
        return Answers(direction=OURS(angles, unknown), angles=angles, deviations=unknown)
