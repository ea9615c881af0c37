"""The options of ``hpe predict``, as its command line gives them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.data.images import MAX_PIXELS
from hpe.models.views import PLAIN, Views

GIVEN: Final = "given"
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """The options of ``hpe predict``.

    Attributes:
        out: folder of ``predictions.FORMAT``, ``skipped.jsonl`` and ``drawn/``; None: print the rows.
        form: ``jsonl``, ``csv`` or ``parquet``.
        draw: ``axes`` or ``cube`` on annotated images or videos, or ``none``; ``auto``: axes on videos, if there is a
            folder for them, and nothing on images.
        faces: ``given`` (each image, or frame, is one face), or a detector: ``mtcnn``, ``hog``; ``auto``: given for
            images, the better detector that is installed for videos. A landmark model finds the faces itself: the
            ``largest`` (also: ``given``, ``auto``), the one nearest to the ``centre``, or ``all``.
        split: process only this split of folders of shards.
        which: checkpoint of a run: ``best``, ``last`` or a step's folder name.
        weights: replaces the weights that an estimator's YAML names.
        crop: rule for detected faces; None: that of the network's training shards.
        views: which views of each face to average; runs only.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None: that of the training; runs only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch: faces that go through the network together.
        max_megapixels: larger pictures are named and left out; videos with larger frames, too.
        steady: videos: cutoff of the smoothing for a still head, in hertz; ``inf``: no smoothing.
    """

    out: Path | None = None
    form: str = "jsonl"
    draw: str = AUTO
    faces: str = AUTO
    split: str | None = None
    which: str = "best"
    weights: Path | None = None
    crop: str | None = None
    views: Views = PLAIN
    precision: str | None = None
    device: str = "auto"
    batch: int = 64
    max_megapixels: float = MAX_PIXELS / 1e6
    steady: float = 1.0
