"""A fitted regressor on disk: skops (no pickle) for the model, JSON for what must be known of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from jaxtyping import Float

from hpe.errors import UserError
from hpe.files import aside, write_json

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
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBRegressor",
    )
)
"""Types that a model file may hold beside those that skops itself trusts (NumPy's and scikit-learn's)."""


@dataclass(frozen=True)
class LandmarkModel:
    """A fitted regressor and what must be known of it.

    Attributes:
        regressor: ``predict(points)`` gives angles in degrees.
        topology: name of the points that it takes.
        features, name: as ``hpe landmarks compare`` names them.
        views: the views that its training faces were merged from, or None when unknown.
        mean_mae: of the nested cross-validation, degrees.
    """

    regressor: Any
    topology: str
    features: str
    name: str
    views: str | None
    mean_mae: float | None

    def angles(self, points: Float[np.ndarray, "faces points 3"]) -> Float[np.ndarray, "faces 3"]:
        """Yaw, pitch, roll in degrees of faces; NaN where a point is no number."""
        result = np.full((len(points), 3), np.nan)
        good = np.isfinite(points).all((1, 2))
        if good.any():
            result[good] = self.regressor.predict(points[good])
        return result

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
        """The model of a folder; nothing but known types is made.

        Raises:
            UserError: no model, a damaged one, or one that holds foreign types.
        """
        import skops.io

        path = folder / MODEL
        if not path.is_file() or not (folder / ABOUT).is_file():
            raise UserError(f"{folder}: no {MODEL} and {ABOUT}; expected a folder that `hpe landmarks compare` wrote")
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about.pop("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            foreign = sorted(set(skops.io.get_untrusted_types(file=path)) - _TRUSTED)
            if foreign:
                raise UserError(f"{path}: holds {', '.join(foreign)}, which no model of ours holds; it is not loaded")
            regressor = skops.io.load(path, trusted=sorted(_TRUSTED))
            return cls(regressor=regressor, **about)
        except UserError:
            raise
        except Exception as error:  # a hostile zip fails in as many ways as it has members
            raise UserError(f"{folder}: not a model of `hpe landmarks compare`: {error}") from error
