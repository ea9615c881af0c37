"""From points to a regressor's input, and from its output to angles: three kinds behind one interface.

Everything that is learned (the mean head, principal components) is learned by ``fit`` from the faces given to it
and no others; cross-validation calls it with the training folds.
"""

from typing import Final, Protocol

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA

from hpe.landmarks.align import angles_of, fitted_rotations, heads_of, lifted, mean_head, rotations_of
from hpe.landmarks.topology import topology_of

Points = Float[np.ndarray, "faces points 3"]
Columns = Float[np.ndarray, "faces columns"]
Angles = Float[np.ndarray, "faces 3"]

_FLAT: Final = 1e-9
_POSE_LOUDNESS: Final = 3.0
"""Factor of the fitted rotation's entries, beside components whose deviation is at most 1."""


class Features(Protocol):
    """How points become columns and columns' predictions become angles."""

    def fit(self, points: Points, angles: Angles) -> "Features":
        """Learn from training faces."""
        ...

    def training(self, points: Points, angles: Angles) -> tuple[Columns, Columns]:
        """Columns and targets of training faces (perhaps more rows than faces)."""
        ...

    def columns(self, points: Points) -> Columns:
        """Columns of faces."""
        ...

    def angles(self, points: Points, predicted: Columns) -> Angles:
        """Angles of faces from a regressor's predictions for ``columns(points)``."""
        ...


class SeedFeatures(BaseEstimator):
    """The seed's features: the nose tip is the origin, the distance forehead to chin the unit; targets are the angles.

    Args:
        which: ``six`` (nose tip, chin, eyes, corners of the mouth) or ``all``. x and y only, as in the seed.
    """

    def __init__(self, which: str = "all") -> None:
        self.which = which

    def fit(self, points: Points, angles: Angles) -> "SeedFeatures":
        """Nothing is learned."""
        return self

    def training(self, points: Points, angles: Angles) -> tuple[Columns, Columns]:
        """Columns, and the angles themselves."""
        return self.columns(points), angles

    def columns(self, points: Points) -> Columns:
        """x and y of every point, ``points × 2`` columns; 0 where forehead and chin are in one place."""
        topology = topology_of(points.shape[1])
        flat = points[..., :2]
        top, bottom = topology.scale
        unit = np.linalg.norm(flat[:, top] - flat[:, bottom], axis=1)[:, None, None]
        moved = flat - flat[:, topology.origin, None]
        scaled = np.divide(moved, unit, out=np.zeros_like(moved), where=unit > _FLAT)
        if self.which == "six":
            scaled = scaled[:, list(topology.six)]
        return scaled.reshape(len(points), -1)

    def angles(self, points: Points, predicted: Columns) -> Angles:
        """What was predicted."""
        return predicted


class AlignedFeatures(BaseEstimator):
    """Our features: the rotation that fits the mean head best, and how the face, turned to the front by it, differs.

    Columns are the fitted rotation (9) and the first principal components of the differences: independent of
    place and size. The target is the rotation (vector, degrees, in the head's frame) from the fitted to the
    true one: small and smooth, without the Euler angles' singularity. Every training face is used twice, the
    second time mirrored. Faces without z are lifted first.

    Args:
        components: principal components of the differences.
    """

    def __init__(self, components: int = 80) -> None:
        self.components = components

    def fit(self, points: Points, angles: Angles) -> "AlignedFeatures":
        """The mean head of these faces and their mirror images, and the components of their differences."""
        both, turned = _with_mirrored(points, angles)
        rotations = rotations_of(turned)
        heads = heads_of(both)
        self.shape_ = mean_head(heads, rotations)
        if np.ptp(heads[..., 2]) < _FLAT:
            self.shape_ = _shape_of_flat(heads, rotations)
        _, differences = self._fitted(both)
        count = min(self.components, *differences.shape)
        self.pca_ = PCA(count, random_state=0, svd_solver="covariance_eigh").fit(differences)
        self.loudness_ = 1 / max(float(np.sqrt(self.pca_.explained_variance_[0])), 1e-12)
        return self

    def training(self, points: Points, angles: Angles) -> tuple[Columns, Columns]:
        """Columns and missing rotations of the faces, then of their mirror images."""
        both, turned = _with_mirrored(points, angles)
        fitted, differences = self._fitted(both)
        missing = rotations_of(turned) @ fitted.transpose(0, 2, 1)
        return self._columns(fitted, differences), Rotation.from_matrix(missing).as_rotvec(degrees=True)

    def columns(self, points: Points) -> Columns:
        """9 + components columns."""
        return self._columns(*self._fitted(points))

    def angles(self, points: Points, predicted: Columns) -> Angles:
        """The angles of the fitted rotation, corrected by the predicted one."""
        missing = Rotation.from_rotvec(predicted, degrees=True).as_matrix()
        return angles_of(missing @ self.fitted(points))

    def fitted(self, points: Points) -> Float[np.ndarray, "faces 3 3"]:
        """The rotations that fit the mean head best, without any regression."""
        return self._fitted(points)[0]

    def _fitted(self, points: Points) -> tuple[Float[np.ndarray, "faces 3 3"], Columns]:
        heads = heads_of(points)
        if np.ptp(heads[..., 2]) < _FLAT:
            heads = lifted(self.shape_, heads)
        fitted = fitted_rotations(self.shape_, heads)
        return fitted, (heads @ fitted.transpose(0, 2, 1) - self.shape_).reshape(len(points), -1)

    def _columns(self, fitted: Float[np.ndarray, "faces 3 3"], differences: Columns) -> Columns:
        components = self.pca_.transform(differences) * self.loudness_
        return np.concatenate((_POSE_LOUDNESS * fitted.reshape(-1, 9), components), 1)


def _with_mirrored(points: Points, angles: Angles) -> tuple[Points, Angles]:
    mirrored = topology_of(points.shape[1]).mirrored(points)
    return np.concatenate((points, mirrored)), np.concatenate((angles, angles * (-1.0, 1.0, -1.0)))


def _shape_of_flat(
    heads: Float[np.ndarray, "faces points 3"], rotations: Float[np.ndarray, "faces 3 3"]
) -> Float[np.ndarray, "points 3"]:
    """The shape whose projections by known rotations lie nearest to points without z (least squares)."""
    rows = np.concatenate((rotations[..., 0], rotations[..., 1]))
    seen = np.concatenate((heads[..., 0], heads[..., 1]))
    shape = np.linalg.lstsq(rows, seen, rcond=None)[0].T
    centred = shape - shape.mean(0)
    return centred / np.sqrt(np.square(centred).sum(1).mean())
