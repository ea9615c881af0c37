"""A look from head and eyes: what is read of a face, the kernel ridge on it, and the direction of marks near it."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge

from hpe.landmarks.align import fitted_rotations, heads_of
from hpe.landmarks.eyes import HEIGHT, WIDTH, contrasted, eye_columns, mirrored_eyes
from hpe.landmarks.features import AlignedFeatures, Angles, Columns, Points
from hpe.landmarks.topology import MESH468, MESH478

EyePictures = UInt8[np.ndarray, "faces 2 height width"]
_MIRROR: Final = (-1.0, 1.0, -1.0)
"""Signs of yaw, pitch, roll of a mirrored face."""
_BANDWIDTH_DEGREES: Final = 6.0
"""Of looks around a mark, as one person's two looks at the same mark differ."""
_ALPHA: Final = 0.05
_MESH: Final = MESH468.count
_WEIGHTS: Final = (1.0, 0.5, 0.5, 1.0, 0.8, 0.8)
"""Of rotation, eyes seen from the head and in the picture, an estimator's angles, pixels, gradients."""
_EACH: Final = 4
"""Groups whose columns are scaled one by one; the others are components, of which the first are to be the loudest."""


@dataclass(frozen=True)
class Looks:
    """What is seen of faces.

    Attributes:
        points: meshes of 478 points, pixels.
        eyes: see :func:`hpe.landmarks.eyes.eyes_of`.
        estimated: yaw, pitch, roll of another estimator, degrees; no columns where there is none.
    """

    points: Points
    eyes: EyePictures
    estimated: Float[np.ndarray, "faces angles"]

    def take(self, rows: Bool[np.ndarray, " faces"]) -> Self:
        """The faces of a mask."""
        return type(self)(self.points[rows], self.eyes[rows], self.estimated[rows])

    def with_mirrored(self) -> Self:
        """The faces, then their mirror images."""
        return type(self)(
            np.concatenate((self.points, MESH478.mirrored(self.points))),
            np.concatenate((self.eyes, mirrored_eyes(self.eyes))),
            _and_mirrored(self.estimated),
        )


class LookFeatures(BaseEstimator):
    """The head's fitted rotation, where iris and lids are (seen from the head and in the picture), another
    estimator's angles, pixels of the eyes and their gradients.

    Each group of columns has a total variance of its weight's square over the training faces.

    Args:
        components: principal components of the pixels, and of the gradients.
    """

    def __init__(self, components: int = 80) -> None:
        self.components = components

    def fit(self, looks: Looks, angles: Angles) -> Self:
        """Learn the mean head, the components and the scales of these faces."""
        self.head_ = AlignedFeatures(1).fit(looks.points[:, :_MESH], angles).shape_
        pixels, slopes = contrasted(looks.eyes).reshape(len(angles), -1), _gradients(looks.eyes)
        count = min(self.components, *pixels.shape)
        with np.errstate(invalid="ignore"):  # eyes that are all alike have no variance to divide by
            self.pixels_, self.slopes_ = (
                PCA(count, random_state=0, svd_solver="covariance_eigh").fit(columns) for columns in (pixels, slopes)
            )
        groups = self._groups(looks)
        self.means_ = [group.mean(0) for group in groups]
        self.scales_ = [_scale(group, row < _EACH, _WEIGHTS[row]) for row, group in enumerate(groups)]
        return self

    def columns(self, looks: Looks) -> Columns:
        """What a kernel compares."""
        groups = zip(self._groups(looks), self.means_, self.scales_, strict=True)
        return np.concatenate([(group - mean) * scale for group, mean, scale in groups], 1)

    def _groups(self, looks: Looks) -> list[Columns]:
        fitted = fitted_rotations(self.head_, heads_of(looks.points[:, :_MESH]))
        seen = heads_of(looks.points)
        pixels = contrasted(looks.eyes).reshape(len(looks.eyes), -1)
        return [
            fitted.reshape(-1, 9), eye_columns(seen @ fitted.transpose(0, 2, 1)), eye_columns(seen), looks.estimated,
            self.pixels_.transform(pixels), self.slopes_.transform(_gradients(looks.eyes)),
        ]  # fmt: skip


def _scale(columns: Columns, each: bool, weight: float) -> Float[np.ndarray, " columns"]:
    """Factors that give the columns together a variance of the weight's square."""
    deviation = columns.std(0)
    if each:
        least = 1e-3 * deviation.max(initial=0.0) + 1e-12
        return weight / (np.maximum(deviation, least) * np.sqrt(max(columns.shape[1], 1)))
    return np.full(columns.shape[1], weight / max(float(np.linalg.norm(deviation)), 1e-12))


def _gradients(eyes: EyePictures) -> Columns:
    """Histograms of oriented gradients (Dalal and Triggs, 2005) of both eyes, of pictures twice as large."""
    import cv2

    size = (2 * WIDTH, 2 * HEIGHT)
    described = cv2.HOGDescriptor(size, (16, 16), (8, 8), (8, 8), 9)
    pixels = contrasted(eyes).reshape(len(eyes), 2, HEIGHT, WIDTH)
    grey = np.clip(pixels * 40 + 128, 0, 255).astype(np.uint8)
    rows = [[described.compute(cv2.resize(eye, size)) for eye in face] for face in grey]
    return np.asarray(rows, float).reshape(len(eyes), -1)


class LookRegressor(RegressorMixin, BaseEstimator):
    """Yaw and pitch of a look by kernel ridge regression, the mean of a face's and its mirror image's.

    Args:
        components: as of :class:`LookFeatures`.
        alpha, gamma: as of scikit-learn's ``KernelRidge`` with a Gaussian kernel.
    """

    def __init__(self, components: int = 80, alpha: float = _ALPHA, gamma: float = 0.2) -> None:
        self.components = components
        self.alpha = alpha
        self.gamma = gamma

    def fit(self, looks: Looks, angles: Angles) -> Self:
        """Learn from faces and their mirror images."""
        both, turned = looks.with_mirrored(), _and_mirrored(angles)
        self.features_ = LookFeatures(self.components).fit(both, turned)
        self.ridge_ = _ridge(self.alpha, self.gamma).fit(self.features_.columns(both), turned[:, :2])
        return self

    def predict(self, looks: Looks) -> Float[np.ndarray, "faces 2"]:
        """Yaw and pitch in degrees."""
        straight, mirrored = np.split(self.ridge_.predict(self.features_.columns(looks.with_mirrored())), 2)
        return (straight + mirrored * _MIRROR[:2]) / 2


def _ridge(alpha: float, gamma: float) -> KernelRidge:
    return KernelRidge(kernel="rbf", gamma=gamma).set_params(alpha=alpha)


def _and_mirrored(angles: Float[np.ndarray, "faces angles"]) -> Float[np.ndarray, "both angles"]:
    return np.concatenate((angles, angles * _MIRROR[: angles.shape[1]]))


@dataclass(frozen=True)
class Marks:
    """Which direction marks at known angles have, and so angles near them.

    Attributes:
        angles: yaw and pitch of each mark, degrees.
        directions: of each.
        counts: faces that looked at it.
    """

    angles: Float[np.ndarray, "marks 2"]
    directions: Int8[np.ndarray, " marks"]
    counts: Float[np.ndarray, " marks"]

    @classmethod
    def of(cls, angles: Float[np.ndarray, "faces 2"], directions: Int8[np.ndarray, " faces"]) -> Self:
        """The marks of labelled faces."""
        rows, counts = np.unique(np.c_[angles, directions], axis=0, return_counts=True)
        return cls(rows[:, :2], rows[:, 2].astype(np.int8), counts.astype(float))

    def directions_of(self, angles: Float[np.ndarray, "faces 2"]) -> Int8[np.ndarray, " faces"]:
        """The likeliest direction of angles whose errors are normal, the same for yaw and pitch."""
        gaps = np.square(angles[:, None] - self.angles).sum(2)
        gaps -= gaps.min(1, keepdims=True)  # far from every mark, the nearest decides
        likely = np.exp(-gaps / (2 * _BANDWIDTH_DEGREES**2)) * self.counts
        return np.stack([likely[:, self.directions == k].sum(1) for k in range(5)], 1).argmax(1).astype(np.int8)


def by_angles(estimated: Angles, angles: Angles, asked: Float[np.ndarray, "asked 3"]) -> Float[np.ndarray, "asked 2"]:
    """Yaw and pitch of looks from another estimator's angles alone, learned from faces and their mirror images."""
    scale = estimated.std(0) + 1e-12
    ridge = _ridge(_ALPHA, 1 / 3).fit(_and_mirrored(estimated) / scale, _and_mirrored(angles[:, :2]))
    return ridge.predict(asked / scale)
