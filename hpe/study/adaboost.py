"""AdaBoost, the thesis' classical model: scikit-learn's, on histograms of oriented gradients or on the features of a
trained network. Its predictions are stored like a network's, so that every metric is computed in one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.labels import EMOTIONS
from hpe.study.config import HOG

if TYPE_CHECKING:
    import pyarrow as pa
    from sklearn.ensemble import AdaBoostClassifier

    from hpe.data.batch import Batch
    from hpe.stream import Reading, ShardSet, Stream

_CELL: Final = 8
_ORIENTATIONS: Final = 9
_BLOCK: Final = 2
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Features:
    """How an image becomes a row of numbers.

    Attributes:
        name: for the origin of the metrics.
        of_batch: the features of a batch of images.
        reading: how images and labels are read for it.
    """

    name: str
    of_batch: Callable[["Batch"], np.ndarray]
    reading: "Reading"


@dataclass(frozen=True, slots=True)
class Boosting:
    """Settings of scikit-learn's AdaBoost over decision trees; ``seed`` is that of the trees."""

    estimators: int
    depth: int
    learning_rate: float
    seed: int


def hog(images: UInt8[np.ndarray, "batch height width"]) -> Float32[np.ndarray, "batch features"]:
    """Histograms of oriented gradients (Dalal and Triggs, 2005), as scikit-image's ``hog`` defines them.

    Cells of 8 × 8 pixels, 9 unsigned orientations without interpolation, blocks of 2 × 2 cells, L2-Hys.

    Args:
        images: grey; pixels beyond the last whole cell are ignored.
    """
    count, height, width = images.shape
    pixels = images.astype(np.float32)
    down, across = np.zeros_like(pixels), np.zeros_like(pixels)
    down[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    across[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
    strength = np.hypot(across, down)
    turn = np.rad2deg(np.arctan2(down, across)) % 180
    place = np.minimum(turn * (_ORIENTATIONS / 180), _ORIENTATIONS - 1).astype(np.int8)
    rows, columns = height // _CELL, width // _CELL
    cells = np.empty((count, rows, columns, _ORIENTATIONS), np.float32)
    for orientation in range(_ORIENTATIONS):
        part = np.where(place == orientation, strength, 0)[:, : rows * _CELL, : columns * _CELL]
        cells[..., orientation] = part.reshape(count, rows, _CELL, columns, _CELL).mean((2, 4))
    offsets = [(i, j) for i in range(_BLOCK) for j in range(_BLOCK)]
    blocks = np.concatenate([cells[:, i : rows - 1 + i, j : columns - 1 + j] for i, j in offsets], -1)
    # Dalal and Triggs's "L2-Hys": cut off and scaled again, so that one strong edge does not hide the others.
    blocks = np.minimum(_unit(blocks), 0.2)
    return _unit(blocks).reshape(count, -1)


def _unit(blocks: np.ndarray) -> np.ndarray:
    return blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-10)


def hog_of(batch: "Batch") -> Float32[np.ndarray, "batch features"]:
    """HOG of a batch of grey pictures."""
    return hog(batch.images[:, 0].numpy())


def hog_features(reading: "Reading") -> Features:
    """HOG of grey images that are read this way."""
    return Features(HOG, hog_of, reading)


def features_of_run(run: Path) -> Features:
    """The features of a run's backbone, on images as that run reads them.

    Raises:
        UserError: no such run.
    """
    import torch

    from hpe.core.devices import device
    from hpe.data.normalise import prepare
    from hpe.models.build import load_run
    from hpe.train.datasets import reading

    network, config, _ = load_run(run)
    where = device()
    network = network.to(where)

    @torch.inference_mode()
    def of_batch(batch: "Batch") -> np.ndarray:
        return network.backbone(prepare(batch.to(where), network.normalisation)).float().cpu().numpy()

    return Features(f"features of {run.name}", of_batch, reading(config.data))


def boost(
    run: Path,
    train: "ShardSet",
    tests: "Sequence[tuple[str, ShardSet]]",
    features: Features,
    boosting: Boosting,
    *,
    replicates: int,
) -> int:
    """Fit AdaBoost and write ``RUN/evaluate/NAME.*`` for every test set.

    Args:
        run: folder.
        train: training data.
        tests: name and shards of each test set.
        features: of the images.
        boosting: settings of AdaBoost.
        replicates: bootstrap draws of the metrics.

    Returns:
        The exit code: 1 when samples could not be read.

    Raises:
        UserError: fewer than two emotions in the training data.
    """
    import pyarrow as pa

    from hpe.evaluate.measure import FOLDER, write_results
    from hpe.stream import Stream

    rows, values, damaged = _read(Stream([train], features.reading), features.of_batch)
    model = _fit(train, rows, values, boosting)
    about = (
        f"AdaBoost ({boosting.estimators} trees of depth {boosting.depth}) on {features.name}, seed {boosting.seed}; "
        "refitted, not stored"
    )
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, shards in tests:
        stream = Stream([shards], features.reading)
        rows, values, lost = _read(stream, features.of_batch)
        chosen = model.predict(values).astype(np.int8)
        assert chosen.max(initial=0) < len(EMOTIONS)
        rows = rows.append_column("emotion_hat", pa.array(chosen, pa.int8()))
        print(
            write_results(
                run / FOLDER, name, rows, stream, damaged=lost, about={"weights": about},
                trained={"emotion": np.asarray(model.classes_).tolist()}, replicates=replicates,
            )
        )  # fmt: skip
        damaged += lost
    return EXIT_INCOMPLETE if damaged else EXIT_OK


def _fit(train: "ShardSet", rows: "pa.Table", values: np.ndarray, boosting: Boosting) -> "AdaBoostClassifier":
    """AdaBoost on the rows that have an emotion.

    Raises:
        UserError: fewer than two emotions.
    """
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    # `classes_` are the emotions that occur, so that `predict` gives their numbers, also where some are missing.
    labels = np.array([-1 if v is None else v for v in rows["emotion"].to_pylist()])
    if len(found := np.unique(labels[labels >= 0])) < 2:
        raise UserError(f"{train.shards}: {len(found)} emotions to learn from; AdaBoost needs two or more")
    model = AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=boosting.depth),
        n_estimators=boosting.estimators,
        learning_rate=boosting.learning_rate,
        random_state=boosting.seed,
    )
    return model.fit(values[labels >= 0], labels[labels >= 0])


def _read(stream: "Stream", features: Callable[["Batch"], np.ndarray]) -> tuple["pa.Table", np.ndarray, int]:
    """Labels and features of every readable sample, and the number of unreadable ones."""
    import pyarrow as pa

    from hpe.evaluate.measure import rows_of
    from hpe.models.views import Estimates

    tables: list[Any] = []
    values: list[np.ndarray] = []
    with stream.once(batch=_BATCH) as loader:
        for loaded in loader:
            tables.append(rows_of(loaded.batch, Estimates()).filter(loaded.readable))
            values.append(features(loaded.batch)[loaded.readable])
        damaged = loader.damaged_samples
    return pa.concat_tables(tables), np.concatenate(values), damaged
