"""A network that answers what a face shows: a run of ``hpe train``, or a head-pose estimator."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

from hpe.core.errors import UserError
from hpe.data.crops import Box, CropRule
from hpe.data.decode import decode_into
from hpe.data.directions import OURS
from hpe.data.images import Picture, crop_resize, decode_rgb, to_grey
from hpe.data.normalise import normalised
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator
from hpe.models.build import load_run
from hpe.models.inference import GPU_PIECE, judge, judging_precision
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import CONFIG, SHARDS, crop_rules, recipes
from hpe.models.views import PLAIN, Views
from hpe.pack.shard import encoded

Face = UInt8[np.ndarray, "size size 3"]
Points = Float[np.ndarray, "points 3"]
"""What stands for a face where a landmark model answers: a mesh's points."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a network says of some faces; None for what it does not tell, NaN where it gives no number.

    Attributes:
        emotion_p, direction_p: a probability per class.
        direction: 0..4, or -1 where nothing is decided.
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
    """What answers for faces.

    Attributes:
        heads: emotion, direction, pose, affect, as far as it has them.
    """

    heads: tuple[str, ...]

    def answer(self, faces: np.ndarray) -> Answers:
        """What it says of faces, stacked."""
        ...


class Predictor(Answerer, Protocol):
    """A network with the way that its pictures are made.

    Attributes:
        name: as it is called in messages.
        size: side of its pictures.
        crops: the crop rules of the pictures that it was made for, as far as they are known.
        note: what the user should know of its pictures, or None.
    """

    name: str
    size: int
    crops: frozenset[CropRule]
    note: str | None

    def stored(self, data: bytes) -> Face:
        """An encoded picture of a shard, as evaluation reads it.

        Raises:
            DecodeError: the bytes are no whole picture.
        """
        ...

    def whole(self, data: bytes) -> Face:
        """A raw picture that is the face, with the pixels that it has when it was packed and read from its shard.

        Raises:
            DecodeError: the bytes are no whole picture.
        """
        ...

    def cut(self, picture: Picture, box: Box) -> Face:
        """The face in a box of a photo.

        Raises:
            ValueError: the box is empty, or outside the picture.
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
) -> "RunPredictor | PosePredictor":
    """The network that a path names: a run folder, or what :func:`hpe.estimators.load.load_estimator` takes.

    ``views``, ``precision`` and ``batch`` are as :func:`hpe.models.inference.judge` takes them, ``fall_back`` is that
    of :class:`hpe.estimators.load.Compute`.

    Raises:
        UserError: it is neither, or does not hold what it says.
    """
    if (path / CONFIG).is_file():
        if weights is not None:
            raise UserError(f"--weights {weights}: a run has its own weights; choose among them with --which")
        return RunPredictor(path, device, which, views, precision, batch)
    if views != PLAIN:
        raise UserError(f"{path}: --flips and --centre are for run folders of hpe train")
    if path.is_dir():
        raise UserError(f"{path}: no {CONFIG} here; expected a run folder that `hpe train` wrote, or an estimator")
    if precision is not None:
        raise UserError(f"{path}: --precision {precision}: only with a run folder of hpe train; leave it out")
    return PosePredictor(load_estimator(path, Compute(device, fall_back=fall_back), weights=weights))


class RunPredictor:
    """A run's network, with the pixels and the arithmetic of ``hpe evaluate``.

    Attributes:
        precision: in which it answers; ``trained``: the one of its training.
    """

    def __init__(
        self, run: Path, device: torch.device, which: str, views: Views, precision: str | None, batch: int
    ) -> None:
        network, config, _ = load_run(run, which)
        if network.takes_angles:
            raise UserError(f"{run}: this run reads angles (backbone angles), not pictures; use it with hpe pose")
        self.name, self.size = run.resolve().name, config.data.size
        self.heads = config.model.heads.on
        self.crops = crop_rules(run)
        self.trained = config.train.precision
        self.precision = judging_precision(precision, self.trained, device)
        known = recipes(run)
        self._recipe = next(iter(known)) if len(known) == 1 else None
        self.note = None
        if self._recipe is None:
            why = "was trained on shards that were packed in several ways" if known else f"has no size in its {SHARDS}"
            self.note = (
                f"{self.name} {why}: raw pictures go straight to {self.size} px, and answers may differ a little from "
                "those of hpe evaluate on packed ones"
            )
        self._grey, self._device, self._views, self._batch = config.data.grey, device, views, batch
        self._network: MultiTask = network.to(device)

    def stored(self, data: bytes) -> Face:
        """See :class:`Predictor`."""
        row = np.empty((self.size, self.size, 3), np.uint8)
        decode_into(data, row, "grey" if self._grey else "rgb")
        return row

    def whole(self, data: bytes) -> Face:
        """See :class:`Predictor`."""
        if self._recipe is None or self._recipe.crop is None:  # not known, or packed as it is
            return self.stored(data)
        picture = decode_rgb(data)
        return self.cut(picture, (0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])))

    def cut(self, picture: Picture, box: Box) -> Face:
        """See :class:`Predictor`."""
        if self._recipe is not None and self._recipe.crop is not None:
            # By way of the very bytes of a shard: their size and their JPEG show in the network's answers.
            return self.stored(encoded(crop_resize(picture, box, self._recipe.size), self._recipe))
        face = crop_resize(picture, box, self.size)
        return np.repeat(to_grey(face)[..., None], 3, 2) if self._grey else face

    @torch.inference_mode()
    def answer(self, faces: UInt8[np.ndarray, "faces size size 3"]) -> Answers:
        """See :class:`Predictor`."""
        images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(self._device)
        found = judge(
            self._network, normalised(images, self._network.normalisation), self._views, self.precision, self._batch
        )
        said = {one.name: _numpy(told) for one in fields(found) if (told := getattr(found, one.name)) is not None}
        if "angles" in said:
            said.setdefault("deviations", np.full_like(said["angles"], np.nan))
        direction = None
        if "direction_p" in said:
            direction = _chosen(said["direction_p"])
        elif "angles" in said:
            direction = OURS(said["angles"], said["deviations"])
        return Answers(direction=direction, **said)


class PosePredictor:
    """A head-pose estimator; the direction is that of our thresholds, where they decide."""

    heads: tuple[str, ...] = ("pose",)
    note: str | None = None

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self.name, self.size, self.crops = estimator.name, estimator.input.size, frozenset((estimator.crop,))

    def stored(self, data: bytes) -> Face:
        """See :class:`Predictor`; as ``hpe pose`` does."""
        return self.whole(data)

    def whole(self, data: bytes) -> Face:
        """See :class:`Predictor`; as ``hpe pose`` does."""
        picture = decode_rgb(data)
        height, width = picture.shape[:2]
        return picture if height == width == self.size else crop_resize(picture, (0, 0, width, height), self.size)

    def cut(self, picture: Picture, box: Box) -> Face:
        """See :class:`Predictor`."""
        return crop_resize(picture, box, self.size)

    def answer(self, faces: UInt8[np.ndarray, "faces size size 3"]) -> Answers:
        """See :class:`Predictor`."""
        poses = self._estimator.predict(torch.from_numpy(faces).permute(0, 3, 1, 2))
        angles, deviations = _numpy(poses.angles), _numpy(poses.deviations)
        return Answers(direction=OURS(angles, deviations), angles=angles, deviations=deviations)


def _chosen(shares: Float32[np.ndarray, "faces classes"]) -> Int8[np.ndarray, " faces"]:
    return np.where(np.isfinite(shares).all(1), shares.argmax(1), -1).astype(np.int8)


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
