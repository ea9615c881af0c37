"""A fitted regressor on disk: skops (no pickle) for the model, JSON for its metadata."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.core.files import aside, write_json
from hpe.landmarks.mesh import VIEWS
from hpe.landmarks.topology import TOPOLOGIES

FORMAT: Final = "hpe-landmark-model/1"
MODEL: Final = "model.skops"
ABOUT: Final = "model.json"
_TRUSTED: Final = frozenset(
    (
        "hpe.landmarks.features.AlignedFeatures",
        "hpe.landmarks.features.SeedFeatures",
        "hpe.landmarks.regress.HeadPoseRegressor",
        "hpe.landmarks.regress.KernelSvr",
        "hpe.landmarks.regress.SoftScaler",
        "hpe.landmarks.regress.StackedRegressor",
        # The loss of boosting, which skops 0.13 knows of scikit-learn 1.9 and not of 1.6.
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.tree._tree.Tree",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBRegressor",
    )
)
"""Types that a model file may contain, in addition to those that skops trusts (NumPy's and scikit-learn's)."""


def model_folder(path: Path) -> Path | None:
    """The model's folder: the path itself, or ``model`` in it (OUT of ``hpe landmarks compare``); None: neither."""
    return next((folder for folder in (path, path / "model") if (folder / MODEL).is_file()), None)


@dataclass(frozen=True)
class LandmarkModel:
    """A fitted regressor and its metadata.

    Attributes:
        regressor: ``predict(points)`` gives angles in degrees.
        topology: name of the points that it takes.
        features, name: as ``hpe landmarks compare`` names them.
        views: the views that its training faces were merged from, or None if unknown.
        mean_mae: of the nested cross-validation, degrees.
    """

    regressor: Any
    topology: str
    features: str
    name: str
    views: str | None
    mean_mae: float | None

    def angles(self, points: Float[np.ndarray, "faces points 3"]) -> Float[np.ndarray, "faces 3"]:
        """Yaw, pitch, roll in degrees of faces; NaN where a point is NaN or infinite."""
        result = np.full((len(points), 3), np.nan)
        good = np.isfinite(points).all((1, 2))
        if good.any():
            result[good] = self.regressor.predict(points[good])
        return result

    def _check(self) -> None:
        """Check that ``hpe landmarks compare`` can have saved this, and that it predicts.

        Raises:
            ValueError: it cannot, or does not.
        """
        from hpe.landmarks.regress import FEATURES, MODELS, STACK, HeadPoseRegressor, StackedRegressor

        for what, value, known in (
            ("topology", self.topology, TOPOLOGIES),
            ("features", self.features, FEATURES),
            ("name", self.name, (*MODELS, STACK)),
            ("views", self.views, (None, *VIEWS)),
        ):
            if not (value is None or isinstance(value, str)) or value not in known:
                raise ValueError(f"{ABOUT}: {what} is {value!r}, expected {' or '.join(map(str, known))}")
        if not isinstance(self.regressor, HeadPoseRegressor | StackedRegressor):
            raise ValueError(f"{MODEL} contains a {type(self.regressor).__name__}, not a regressor")
        _check_trees(self.regressor)
        tried = np.random.default_rng(0).normal(size=(2, TOPOLOGIES[self.topology].count, 3)) * 100
        with np.errstate(all="ignore"):
            angles = np.asarray(self.angles(tried))
        if angles.shape != (2, 3) or not np.isfinite(angles).all():
            raise ValueError("it predicts no finite angles")

    def save(self, folder: Path) -> None:
        """Write ``model.skops`` and ``model.json``."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        with aside(folder / MODEL) as part:
            skops.io.dump(self.regressor, part)
        about = {name: value for name, value in vars(self).items() if name != "regressor"}
        write_json(folder / ABOUT, {"format": FORMAT, **about})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder (``OUT/model`` or ``OUT``); only known types are instantiated.

        Raises:
            UserError: no model, a damaged one, or one with unknown types.
        """
        import skops.io

        folder = model_folder(folder) or folder
        path = folder / MODEL
        if not path.is_file() or not (folder / ABOUT).is_file():
            raise UserError(f"{folder}: no {MODEL} and {ABOUT}; expected a folder that `hpe landmarks compare` wrote")
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about.pop("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            foreign = sorted(set(skops.io.get_untrusted_types(file=path)) - _TRUSTED)
            if foreign:
                raise UserError(
                    f"{path}: contains {', '.join(foreign)}, which no model of hpe contains; it is not loaded"
                )
            regressor = skops.io.load(path, trusted=sorted(_TRUSTED))
            model = cls(regressor=regressor, **about)
            model._check()
            return model
        except UserError:
            raise
        except Exception as error:  # a hostile zip can fail in any way
            raise UserError(f"{folder}: not a model of `hpe landmarks compare`: {error}") from error


def _check_trees(regressor: Any) -> None:
    """Check that every tree of a loaded model leads from its root down to leaves, by existing columns.

    scikit-learn's compiled trees do not check indices: a manipulated one would read memory outside the tree.

    Raises:
        ValueError: a tree does not.
    """
    members = getattr(regressor, "members_", None) or [regressor.pipeline_]
    for member in members:
        inner = member.named_steps["regressor"]
        for one in getattr(inner, "estimators_", ()):
            if hasattr(one, "tree_"):
                tree = one.tree_
                leaf = tree.children_left == tree.children_right
                _check_tree(tree.children_left, tree.children_right, tree.feature, leaf, tree.n_features)
            for stage in getattr(one, "_predictors", ()):
                for predictor in stage:
                    nodes = predictor.nodes
                    leaf = nodes["is_leaf"].astype(bool)
                    _check_tree(nodes["left"], nodes["right"], nodes["feature_idx"], leaf, one._n_features)


def _check_tree(left: np.ndarray, right: np.ndarray, column: np.ndarray, leaf: np.ndarray, columns: int) -> None:
    place = np.arange(len(leaf))
    for child in (left.astype(np.int64), right.astype(np.int64)):
        if not (leaf | ((child > place) & (child < len(leaf)))).all():
            raise ValueError("a tree whose branches do not lead down")
    if not (leaf | ((column >= 0) & (column < columns))).all():
        raise ValueError("a tree that uses a column that does not exist")
