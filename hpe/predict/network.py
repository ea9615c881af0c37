"""A network that predicts for faces: a run of ``hpe train``, or a head-pose estimator."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

from hpe.core.errors import UserError
from hpe.core.precision import Precision
from hpe.data.crops import Box, CropRule
from hpe.data.decode import Colour, decode_into, pixels_into
from hpe.data.directions import OURS
from hpe.data.images import MAX_PIXELS, RGBImage, crop_resize, decode_rgb, to_grey
from hpe.data.normalise import normalised
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator
from hpe.models.build import load_run
from hpe.models.checkpoints import not_at_its_end
from hpe.models.inference import GPU_PIECE, judge, judging_precision
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import (
    CONFIG,
    SHARDS,
    TrainedOn,
    crop_rules,
    is_run,
    name_of,
    recipes,
    refuse_absent,
    training_sets,
)
from hpe.models.views import PLAIN, Estimates, Views
from hpe.pack.shard import encoded

FacePixels = UInt8[np.ndarray, "size size 3"]
MeshPoints = Float[np.ndarray, "points 3"]
"""The input of a landmark model in place of a face's pixels: the points of a mesh."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions for some faces. None: the network has no such head; NaN: it gave no finite number.

    Attributes:
        emotion_p, direction_p: a probability per class.
        direction: 0..4, or -1 where the thresholds do not decide.
        angles: yaw, pitch, roll, degrees.
        deviations: their standard deviations, NaN where the network gives none.
        affect: valence and arousal.
    """

    emotion_p: Float32[np.ndarray, "faces 8"] | None = None
    direction_p: Float32[np.ndarray, "faces 5"] | None = None
    direction: Int8[np.ndarray, " faces"] | None = None
    angles: Float32[np.ndarray, "faces 3"] | None = None
    deviations: Float32[np.ndarray, "faces 3"] | None = None
    affect: Float32[np.ndarray, "faces 2"] | None = None


class Answerer(Protocol):
    """Predicts for faces.

    Attributes:
        heads: those of emotion, direction, pose and affect that it has.
    """

    heads: tuple[str, ...]

    def answer(self, faces: np.ndarray) -> Answers:
        """Predictions for stacked faces."""
        ...


class Predictor(Answerer, Protocol):
    """A network together with the preparation of its input.

    Attributes:
        name: its name in messages.
        size: side of its input in pixels.
        crops: the crop rules of its training images, as far as they are known.
        notes: messages for the user about its input, and what it was trained on.
        device: where it runs.
        precision: of its arithmetic.
    """

    name: str
    size: int
    crops: frozenset[CropRule]
    notes: Sequence[str]
    device: torch.device
    precision: Precision

    def stored(self, data: bytes, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """An encoded image of a shard, decoded as in evaluation.

        Raises:
            DecodeError: the bytes are not a whole image.
        """
        ...

    def whole(self, image: bytes | RGBImage, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """An image that is one face, with the same pixels as if it had been packed and read from its shard.

        Raises:
            DecodeError: the bytes are not a whole image.
        """
        ...

    def cut(self, picture: RGBImage, box: Box) -> FacePixels:
        """The face in a box of a photo.

        Raises:
            ValueError: the box is empty, or outside the image.
        """
        ...


def open_predictor(
    path: Path,
    device: torch.device,
    *,
    which: str = "best",
    weights: Path | None = None,
    views: Views = PLAIN,
    precision: str | None = None,
    batch: int = GPU_PIECE,
    fall_back: bool = False,
) -> "RunPredictor | EstimatorPredictor":
    """The network at a path: a run folder, or anything that :func:`hpe.estimators.load.load_estimator` opens.

    ``views``, ``precision`` and ``batch`` are as :func:`hpe.models.inference.judge` takes them, ``fall_back`` is that
    of :class:`hpe.estimators.load.Compute`.

    Raises:
        UserError: it is neither, or it is damaged.
    """
    refuse_absent(path)
    if is_run(path):
        if weights is not None:
            raise UserError(f"--weights {weights}: a run has its own weights; choose a checkpoint with --which")
        return RunPredictor(path, device, which, views, precision, batch)
    if views.centre != PLAIN.centre:
        raise UserError(f"{path}: --centre works only with a run folder of hpe train; leave it out")
    if path.is_dir():
        raise UserError(
            f"{path}: no {CONFIG} in this folder; expected a run folder that `hpe train` wrote, or an estimator"
        )
    if precision is not None:
        raise UserError(f"{path}: --precision {precision} works only with a run folder of hpe train; leave it out")
    found = load_estimator(path, Compute(device, fall_back=fall_back), weights=weights, any_network=True)
    return EstimatorPredictor(found, flips=views.flips)


class RunPredictor:
    """A run's network, with the same pixels and precision as in ``hpe evaluate``.

    Attributes:
        precision: of its predictions.
        trained: precision of its training.
    """

    def __init__(
        self, run: Path, device: torch.device, which: str, views: Views, precision: str | None, batch: int
    ) -> None:
        network, config, _ = load_run(run, which)
        if network.takes_angles:
            raise UserError(f"{run}: this run's input is angles (backbone angles), not images; use it with hpe pose")
        self.name, self.size = name_of(run), config.data.size
        self.heads = config.model.heads.on
        self.crops, self.faces = crop_rules(run), TrainedOn.load(run).faces
        self.trained = config.train.precision
        self.precision = judging_precision(precision, self.trained, device)
        known = recipes(run)
        self._recipe = next(iter(known)) if len(known) == 1 else None
        notes = [f"{self.name}: {why}" for why in not_at_its_end(run, config, which)]
        if self._recipe is None:
            why = "was trained on shards that were packed in several ways" if known else f"has no size in its {SHARDS}"
            notes.append(
                f"{self.name} {why}: image files are scaled straight to {self.size} px, and predictions may differ "
                "slightly from those of hpe evaluate on packed images"
            )
        if {one.get("dataset") for one in training_sets(run)} == {"synthetic"}:
            notes.append(
                f"{self.name} knows rendered heads only: of real faces expect rough angles, and no sensible emotion"
            )
        self.notes: Sequence[str] = notes
        self._colour: Colour = "grey" if config.data.grey else "rgb"
        self.device, self._views, self._batch = device, views, batch
        self._network: MultiTask = network.to(device)

    def stored(self, data: bytes, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """See :class:`Predictor`."""
        row = np.empty((self.size, self.size, 3), np.uint8)
        decode_into(data, row, self._colour, max_pixels=max_pixels)
        return row

    def whole(self, image: bytes | RGBImage, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """See :class:`Predictor`."""
        if self._recipe is not None and self._recipe.crop is not None:
            picture = decode_rgb(image, max_pixels=max_pixels) if isinstance(image, bytes) else image
            return self.cut(picture, (0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])))
        # The recipe is unknown, or packing kept the image as it is.
        if isinstance(image, bytes):
            return self.stored(image, max_pixels)
        row = np.empty((self.size, self.size, 3), np.uint8)
        pixels_into(image, row, self._colour)
        return row

    def cut(self, picture: RGBImage, box: Box) -> FacePixels:
        """See :class:`Predictor`."""
        if self._recipe is not None and self._recipe.crop is not None:
            # Through the same bytes as in a shard: the network's predictions depend on their size and JPEG quality.
            return self.stored(encoded(crop_resize(picture, box, self._recipe.size), self._recipe))
        face = crop_resize(picture, box, self.size)
        return np.repeat(to_grey(face)[..., None], 3, 2) if self._colour == "grey" else face

    @torch.inference_mode()
    def answer(self, faces: UInt8[np.ndarray, "faces size size 3"]) -> Answers:
        """See :class:`Predictor`."""
        images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(self.device)
        found = judge(
            self._network, normalised(images, self._network.normalisation), self._views, self.precision, self._batch
        )
        return _answers(found)


class EstimatorPredictor:
    """An estimator."""

    notes: Sequence[str] = ()

    def __init__(self, estimator: Estimator, *, flips: bool = False) -> None:
        self._estimator, self._flips = estimator, flips
        self.heads = (*estimator.heads, *(() if estimator.output is None else ("pose",)))
        self.name, self.size, self.crops = estimator.name, estimator.input.size, estimator.crops
        self.device = estimator.device
        self.precision = Precision(estimator.precision or "the precision of its file", "estimators have no other")

    def stored(self, data: bytes, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """See :class:`Predictor`; the same as in ``hpe pose``."""
        return self.whole(data, max_pixels)

    def whole(self, image: bytes | RGBImage, max_pixels: int = MAX_PIXELS) -> FacePixels:
        """See :class:`Predictor`; the same as in ``hpe pose``."""
        picture = decode_rgb(image, max_pixels=max_pixels) if isinstance(image, bytes) else image
        height, width = picture.shape[:2]
        return picture if height == width == self.size else crop_resize(picture, (0, 0, width, height), self.size)

    def cut(self, picture: RGBImage, box: Box) -> FacePixels:
        """See :class:`Predictor`."""
        return crop_resize(picture, box, self.size)

    def answer(self, faces: UInt8[np.ndarray, "faces size size 3"]) -> Answers:
        """See :class:`Predictor`."""
        return _answers(self._estimator.estimate(torch.from_numpy(faces).permute(0, 3, 1, 2), flips=self._flips))


def _answers(found: Estimates) -> Answers:
    """The same on the host; without a direction of its own, our thresholds on the angles give one."""
    values = {one.name: _numpy(value) for one in fields(found) if (value := getattr(found, one.name)) is not None}
    if "angles" in values:
        values.setdefault("deviations", np.full_like(values["angles"], np.nan))
    direction = None
    if "direction_p" in values:
        direction = _chosen(values["direction_p"])
    elif "angles" in values:
        direction = OURS(values["angles"], values["deviations"])
    return Answers(direction=direction, **values)


def _chosen(shares: Float32[np.ndarray, "faces classes"]) -> Int8[np.ndarray, " faces"]:
    return np.where(np.isfinite(shares).all(1), shares.argmax(1), -1).astype(np.int8)


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
