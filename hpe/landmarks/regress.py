"""Head-pose regressors: features, a scaler, and a regressor of scikit-learn or XGBoost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.model_selection import GroupKFold, KFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline

from hpe.landmarks.features import AlignedFeatures, Angles, Columns, Points, SeedFeatures

Settings = Mapping[str, Any]
People = Int[np.ndarray, " faces"]
"""The number of each face's person."""


def split(count: int, people: People | None, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of the training part and of the held-out part of each fold. All faces of a person are in one fold.

    Without people, or with a single one, faces are split at random; with fewer people than folds there are fewer folds.
    """
    rows, groups = np.empty(count), 0 if people is None else len(np.unique(people))
    if groups < 2:
        return list(KFold(folds, shuffle=True, random_state=seed).split(rows))
    return list(GroupKFold(min(folds, groups), shuffle=True, random_state=seed).split(rows, groups=people))


class SoftScaler(TransformerMixin, BaseEstimator):
    """Centres columns and divides them by a power of their deviation.

    With power 1 this is scikit-learn's StandardScaler. Below 1, columns with a large deviation keep more weight:
    principal components beyond the first dozen are mostly noise, and whitening would raise it to the signal's level.

    Args:
        power: 0 (centre only) to 1.
    """

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def fit(self, columns: Columns, targets: object = None) -> Self:
        """Means and deviations of these rows."""
        self.mean_ = columns.mean(0)
        deviation = columns.std(0)
        self.divisor_ = np.where(deviation > 1e-12, deviation, 1.0) ** self.power
        return self

    def transform(self, columns: Columns) -> Columns:
        """Scaled columns."""
        return (columns - self.mean_) / self.divisor_


class KernelSvr(RegressorMixin, BaseEstimator):
    """Support vector regression with a Gaussian kernel, one for every target, on one kernel matrix.

    The same solution as scikit-learn's SVR in a MultiOutputRegressor, but several times faster: BLAS computes the
    matrix once, where libsvm computes it row by row for every target.

    Args:
        C, epsilon: as scikit-learn's.
        gamma: of ``exp(-gamma d²)``, or ``scale`` (1 / columns / variance).
    """

    def __init__(self, C: float = 1.0, gamma: float | str = "scale", epsilon: float = 0.1) -> None:  # noqa: N803
        self.C = C
        self.gamma = gamma
        self.epsilon = epsilon

    def fit(self, columns: Columns, targets: Columns) -> Self:
        """Fit every target."""
        from sklearn.metrics.pairwise import rbf_kernel
        from sklearn.svm import SVR

        self.gamma_ = 1 / (columns.shape[1] * columns.var()) if self.gamma == "scale" else float(self.gamma)
        kernel = rbf_kernel(columns, gamma=self.gamma_)
        duals = np.zeros((len(columns), targets.shape[1]))
        self.intercepts_ = np.zeros(targets.shape[1])
        for k, target in enumerate(targets.T):
            one = SVR(kernel="precomputed", C=self.C, epsilon=self.epsilon, cache_size=500).fit(kernel, target)
            duals[one.support_, k] = one.dual_coef_[0]
            self.intercepts_[k] = one.intercept_[0]
        used = duals.any(1)
        self.rows_, self.duals_ = columns[used], duals[used]
        return self

    def predict(self, columns: Columns) -> Columns:
        """All targets."""
        from sklearn.metrics.pairwise import rbf_kernel

        return rbf_kernel(columns, self.rows_, gamma=self.gamma_) @ self.duals_ + self.intercepts_


class HeadPoseRegressor(RegressorMixin, BaseEstimator):
    """Points in, yaw, pitch and roll out.

    Args:
        features: see :mod:`hpe.landmarks.features`.
        pipeline: scaler and regressor of several outputs.
    """

    def __init__(self, features: Any, pipeline: Any) -> None:
        self.features = features
        self.pipeline = pipeline

    def fit(self, points: Points, angles: Angles, people: People | None = None) -> Self:
        """Fit features, scaler and regressor on these faces; people matter to a stack only."""
        self.features_ = _fresh(self.features).fit(points, angles)
        self.pipeline_ = _fresh(self.pipeline).fit(*self.features_.training(points, angles))
        return self

    def predict(self, points: Points) -> Angles:
        """Yaw, pitch, roll in degrees."""
        return self.features_.angles(points, self.pipeline_.predict(self.features_.columns(points)))


class StackedRegressor(RegressorMixin, BaseEstimator):
    """Several regressors on the same features, weighted by their predictions for faces they were not fitted on.

    The weights (not negative, one set a target) are least squares of predictions for held-out thirds of the
    training faces. Faces are held out before they are mirrored, so a face and its mirror image are in the same part,
    as are all faces of a person.

    Args:
        features: see :mod:`hpe.landmarks.features`.
        pipelines: of each member.
    """

    def __init__(self, features: Any, pipelines: Any) -> None:
        self.features = features
        self.pipelines = pipelines

    def fit(self, points: Points, angles: Angles, people: People | None = None) -> Self:
        """Fit the weights on held-out predictions, then the members on all faces."""
        held: list[Columns] = []
        wanted: list[Columns] = []
        for train, test in split(len(points), people, 3, 0):
            features = _fresh(self.features).fit(points[train], angles[train])
            columns, targets = features.training(points[train], angles[train])
            asked, truth = features.training(points[test], angles[test])
            members = [_fresh(pipeline).fit(columns, targets).predict(asked) for pipeline in self.pipelines]
            held.append(np.stack(members, 2))
            wanted.append(truth)
        predictions, truth = np.concatenate(held), np.concatenate(wanted)
        self.weights_ = np.stack([nnls(predictions[:, k], truth[:, k])[0] for k in range(truth.shape[1])])
        self.features_ = _fresh(self.features).fit(points, angles)
        columns, targets = self.features_.training(points, angles)
        self.members_ = [_fresh(pipeline).fit(columns, targets) for pipeline in self.pipelines]
        return self

    def predict(self, points: Points) -> Angles:
        """Yaw, pitch, roll in degrees."""
        columns = self.features_.columns(points)
        members = np.stack([member.predict(columns) for member in self.members_], 2)
        return self.features_.angles(points, (members * self.weights_).sum(2))


def _fresh(estimator: Any) -> Any:
    return clone(estimator)


FEATURES: Final[Mapping[str, Callable[[], Any]]] = {
    "six": lambda: SeedFeatures("six"),
    "all": lambda: SeedFeatures("all"),
    "aligned": AlignedFeatures,
}
STACK: Final = "stack"
STACKED: Final = ("svr", "network", "forest", "knn")


@dataclass(frozen=True)
class Model:
    """A regressor with the settings that are tried inside the training folds.

    Attributes:
        make: the regressor of settings (of several outputs).
        grid: settings for the seed's features.
        aligned_grid: settings for ours.
    """

    make: Callable[[Settings], Any]
    grid: Sequence[Settings]
    aligned_grid: Sequence[Settings]

    def settings(self, features: str) -> Sequence[Settings]:
        """The grid for these features."""
        return self.aligned_grid if features == "aligned" else self.grid

    def pipeline(self, settings: Settings) -> Pipeline:
        """Scaler (``power`` of the settings) and regressor."""
        rest = {name: value for name, value in settings.items() if name != "power"}
        return Pipeline([("scaler", SoftScaler(settings.get("power", 1.0))), ("regressor", self.make(rest))])


def _each(name: str, fixed: Settings) -> Callable[[Settings], Any]:
    """A regressor of one output by its class's name, one for every angle."""
    return lambda settings: MultiOutputRegressor(_class(name)(**{**fixed, **settings}))


def _one(name: str, fixed: Settings) -> Callable[[Settings], Any]:
    """A regressor with several outputs."""
    return lambda settings: _class(name)(**{**fixed, **settings})


def _class(name: str) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import ElasticNet, Lasso, Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.neural_network import MLPRegressor

    if name == "XGBRegressor":
        from xgboost import XGBRegressor

        return XGBRegressor
    known = (ElasticNet, HistGradientBoostingRegressor, KNeighborsRegressor, Lasso, MLPRegressor, RandomForestRegressor,
             Ridge)  # fmt: skip
    return {kind.__name__: kind for kind in known}[name]


def _grid(**choices: Sequence[Any]) -> list[Settings]:
    from sklearn.model_selection import ParameterGrid

    return list(ParameterGrid({name: list(values) for name, values in choices.items()}))


_LINEAR: Final[Settings] = {"max_iter": 1000, "tol": 1e-3, "random_state": 0, "selection": "random"}
_XGBOOST: Final[Settings] = {
    "n_estimators": 200, "learning_rate": 0.08, "subsample": 0.7, "tree_method": "hist", "max_bin": 64,
    "n_jobs": 1, "random_state": 0,
}  # fmt: skip

MODELS: Final[Mapping[str, Model]] = {
    "svr": Model(
        lambda settings: KernelSvr(**settings),
        _grid(C=(10.0, 100.0), gamma=("scale",), epsilon=(0.5,)),
        [
            {"C": 10.0, "gamma": 0.04, "epsilon": 0.5, "power": 0.2},
            {"C": 30.0, "gamma": 0.015, "epsilon": 0.5, "power": 0.2},
            {"C": 100.0, "gamma": 0.02, "epsilon": 0.1, "power": 0.2},
        ],
    ),
    "xgboost": Model(
        _each("XGBRegressor", _XGBOOST),
        _grid(max_depth=(4,), colsample_bytree=(0.1,)),
        _grid(max_depth=(3, 5), colsample_bytree=(0.3,)),
    ),
    "lasso": Model(_each("Lasso", _LINEAR), _grid(alpha=(0.03, 0.1, 0.3)), _grid(alpha=(0.003, 0.01, 0.03))),
    "elasticnet": Model(
        _each("ElasticNet", _LINEAR),
        _grid(alpha=(0.03, 0.1), l1_ratio=(0.2, 0.8)),
        _grid(alpha=(0.003, 0.01), l1_ratio=(0.2, 0.8)),
    ),
    "ridge": Model(_one("Ridge", {}), _grid(alpha=(1.0, 10.0, 100.0, 1000.0)), _grid(alpha=(1.0, 10.0, 100.0))),
    "knn": Model(
        _one("KNeighborsRegressor", {"weights": "distance", "algorithm": "brute"}),
        _grid(n_neighbors=(4, 8, 16)),
        _grid(n_neighbors=(8, 16, 32), power=(0.2,)),
    ),
    "forest": Model(
        _one("RandomForestRegressor", {"n_estimators": 100, "random_state": 0, "n_jobs": 1}),
        _grid(max_features=(0.1,), min_samples_leaf=(2,)),
        _grid(max_features=(0.2,), min_samples_leaf=(3,)),
    ),
    "boosting": Model(
        _each("HistGradientBoostingRegressor", {"max_iter": 150, "max_bins": 64, "random_state": 0}),
        _grid(learning_rate=(0.1,), max_features=(0.1,)),
        _grid(learning_rate=(0.05, 0.1), max_features=(0.3,)),
    ),
    "network": Model(
        _one("MLPRegressor", {"hidden_layer_sizes": (128, 64), "early_stopping": True, "max_iter": 150,
                              "n_iter_no_change": 15, "random_state": 0}),
        _grid(alpha=(0.1,)),
        _grid(alpha=(1.0, 10.0), power=(0.2,)),
    ),
}  # fmt: skip


def tuned(
    points: Points, angles: Angles, features: str, model: str, people: People | None = None, *, folds: int = 3
) -> tuple[Settings, Float[np.ndarray, " settings"]]:
    """The settings with the least mean absolute error over inner folds, which part no person, and the error of each.

    Features are fitted once an inner fold, on its training part.
    """
    grid = MODELS[model].settings(features)
    errors = np.zeros(len(grid))
    if len(grid) == 1:
        return grid[0], errors
    parts = split(len(points), people, folds, 1)
    for train, test in parts:
        fitted = FEATURES[features]().fit(points[train], angles[train])
        columns, targets = fitted.training(points[train], angles[train])
        asked = fitted.columns(points[test])
        for row, settings in enumerate(grid):
            predicted = MODELS[model].pipeline(settings).fit(columns, targets).predict(asked)
            errors[row] += np.abs(fitted.angles(points[test], predicted) - angles[test]).mean() / len(parts)
    return grid[int(errors.argmin())], errors


def regressor(features: str, model: str, settings: Settings | Sequence[Settings]) -> Any:
    """The unfitted regressor of settings; of a stack, the settings of each member of ``STACKED``."""
    if isinstance(settings, Mapping):
        return HeadPoseRegressor(FEATURES[features](), MODELS[model].pipeline(settings))
    pipelines = [MODELS[name].pipeline(s) for name, s in zip(STACKED, settings, strict=True)]
    return StackedRegressor(FEATURES[features](), pipelines)
