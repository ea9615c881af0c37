"""The options of ``hpe evaluate``, as its command line gives them."""

from dataclasses import dataclass
from pathlib import Path

from hpe.models.views import PLAIN, Views


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """The options of ``hpe evaluate``.

    Attributes:
        name: of the files; None: the dataset and the split, and what else changes the result.
        out: folder whose ``evaluate/`` gets the files; None: the run, or a folder beside a shared network or an
            estimator's weights.
        which: checkpoint of a run: ``best``, ``last`` or a step's folder name.
        weights: replaces the weights that an estimator's YAML names.
        batch: samples per batch, over all ranks.
        workers: reader processes per rank; None: as in training.
        views: which views of each image to average.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None: that of the training.
        replicates: bootstrap draws of the intervals.
    """

    name: str | None = None
    out: Path | None = None
    which: str = "best"
    weights: Path | None = None
    batch: int = 256
    workers: int | None = None
    views: Views = PLAIN
    precision: str | None = None
    replicates: int = 1000
