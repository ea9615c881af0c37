"""A network that answers what a face shows: a run of ``hpe train``, or a head-pose estimator."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

from hpe.augment import normalised
from hpe.crops import Box, CropRule
from hpe.decode import decode_into
from hpe.directions import OURS
from hpe.errors import UserError
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator
from hpe.images import Picture, crop_resize, decode_rgb, to_grey
from hpe.models.estimates import PLAIN, Views, estimate
from hpe.models.multitask import MultiTask
from hpe.ranks import precision_of
from hpe.runs import CONFIG, crop_rules, load_run

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
    """

    name: str
    size: int
    crops: frozenset[CropRule]

    def whole(self, data: bytes) -> Face:
        """An encoded picture that is the face, as in training and evaluation.

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
) -> "RunPredictor | PosePredictor":
    """The network that a path names: a run folder, or what :func:`hpe.estimators.load.load_estimator` takes.

    ``views`` are for runs: how they look at each face.

    Raises:
        UserError: it is neither, or does not hold what it says.
    """
    if (path / CONFIG).is_file():
        if weights is not None:
            raise UserError(f"--weights {weights}: a run has its own weights; choose among them with --which")
        return RunPredictor(path, device, which, views)
    if views != PLAIN:
        raise UserError(f"{path}: --flips and --centre are for run folders of hpe train")
    if path.is_dir():
        raise UserError(f"{path}: no {CONFIG} here; expected a run folder that `hpe train` wrote, or an estimator")
    return PosePredictor(load_estimator(path, Compute(device), weights=weights))


class RunPredictor:
    """A run's network, in the precision that ``hpe evaluate`` uses."""

    def __init__(self, run: Path, device: torch.device, which: str, views: Views) -> None:
        network, config, _ = load_run(run, which)
        if network.takes_angles:
            raise UserError(f"{run}: this run reads angles (backbone angles), not pictures; use it with hpe pose")
        self.name, self.size = run.resolve().name, config.data.size
        self.heads = config.model.heads.on
        self.crops = crop_rules(run)
        self._grey, self._device, self._views = config.data.grey, device, views
        self._network: MultiTask = network.to(device)

    def whole(self, data: bytes) -> Face:
        """See :class:`Predictor`."""
        row = np.empty((self.size, self.size, 3), np.uint8)
        decode_into(data, row, "grey" if self._grey else "rgb")
        return row

    def cut(self, picture: Picture, box: Box) -> Face:
        """See :class:`Predictor`."""
        face = crop_resize(picture, box, self.size)
        return np.repeat(to_grey(face)[..., None], 3, 2) if self._grey else face

    @torch.inference_mode()
    def answer(self, faces: UInt8[np.ndarray, "faces size size 3"]) -> Answers:
        """See :class:`Predictor`."""
        images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(self._device)
        half = self._device.type == "cuda" and precision_of("auto") == "bf16"
        with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
            found = estimate(self._network, normalised(images, self._network.normalisation), self._views)
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

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self.name, self.size, self.crops = estimator.name, estimator.input.size, frozenset((estimator.crop,))

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
