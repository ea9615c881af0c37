"""The config of a run (contract C6): one YAML file, strict. Each field's meaning is beside it.

The tables of ``docs/config.md`` are made from this file: ``python -m tests.test_config_page`` writes them anew.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hpe.config.strict_yaml import Section, dump

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=16, le=1024)]
NotNegative = Annotated[float, Field(ge=0)]


def _batch(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"expected a whole number of 1 or more, or auto, found {json.dumps(value)}")


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch)]
Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb"]
Stem = Literal["standard", "small", "half"]
_SELECTION: Final = {
    "emotion": "emotion/macro_f1", "direction": "direction/macro_f1", "pose": "pose/mae", "affect": "affect/rmse",
}  # fmt: skip


class ShardsConfig(Section):
    """One dataset of shards."""

    shards: str | list[str]
    """A folder that ``hpe pack`` wrote, or tar files by path, glob or brace pattern, on this machine or in a store
    (``https://``, ``s3://``, ``gs://``, ``hf://`` …); a ``pipe:`` command; or a list of these.
    """
    split: str | None = None
    """Split to use, if ``shards`` is a folder."""
    pose: str | None = None
    """Folder or URL of pose tables that ``hpe pose`` wrote. A dataset without it keeps the angles and directions of its
    records, also beside others that name one.
    """
    weight: Positive | None = None
    """How often this dataset is drawn, relative to the other datasets and whatever their sizes: with 2 and 1, two of
    three samples come from the first. Give it to every dataset of ``data.train``, or to none: without weights, each
    sample of all datasets comes once per epoch. An epoch has as many samples as all datasets together. Not used in
    ``data.val``.
    """


class DataConfig(Section):
    """What is streamed: from where, in which order and with which labels."""

    train: Annotated[list[ShardsConfig], Field(min_length=1)]
    """Datasets to learn from; of several, each sample comes equally often, or they are mixed by ``weight``."""
    val: Annotated[list[ShardsConfig], Field(min_length=1)]
    """Datasets that choose the best checkpoint; never the data that you report results on."""
    size: Side = 224
    """Side of the images in pixels."""
    grey: bool = False
    """Use the luma in all three channels, as in the thesis."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Reader processes of each rank; 0 reads in the training process."""
    window: Count = 64
    """Number of shards within which samples are shuffled; a larger window keeps more files open."""
    sampling: Literal["natural", "balanced"] = "natural"
    """``balanced`` draws all emotions equally often; it never draws samples without an emotion, and ignores the
    weights of datasets.
    """
    angles: Literal["record", "pose"] = "record"
    """``pose`` takes yaw, pitch and roll from the pose tables instead of the records."""
    direction: str = "record"
    """``record``, or the name of a rule in the pose tables, such as ``ours`` or ``thesis_tree``."""
    decoder: Literal["cpu", "gpu", "auto"] = "cpu"
    """Who decodes plain JPEGs: the readers on the CPU, or the GPU of each rank through nvJPEG; ``auto`` takes the
    GPU if there is one. Both differ slightly in their pixels (on an H200 by 0.5 of 255 levels on average).
    """
    stage: Literal["none", "node"] = "none"
    """``node`` copies shards to a disk of each node (``$HPE_CACHE``) before they are read, as those of a store always
    are: for network file systems such as Lustre and NFS, where many small reads at random places are slow.
    """
    damaged: Literal["skip", "fail"] = "skip"
    """A sample that cannot be read is skipped and named, or stops the run."""

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> Self:
        weights = [one.weight for one in self.train]
        if None in weights and len(set(weights)) > 1:
            raise ValueError(
                f"train: the datasets have weights {', '.join('none' if w is None else f'{w:g}' for w in weights)}; "
                "give a weight to all of them, or to none (older versions took 1 where there was none)"
            )
        return self


class AugmentConfig(Section):
    """Augmentation of whole batches; see ``hpe.stream.augment``. ``augment: {}`` switches everything off."""

    crop_scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Area of the random crop as a fraction of the image, from and to; above 1 zooms out."""
    crop_ratio: tuple[Positive, Positive] = (1.0, 1.0)
    """Width divided by height of the random crop, from and to; values other than 1 squeeze the head."""
    shift: Share = 0.0
    """Largest shift of the crop, as a fraction of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, in both directions; the labels of pose follow."""
    flip: Share = 0.0
    """Probability of mirroring the image; yaw, roll and direction follow."""
    brightness: Share = 0.0
    """Largest change of brightness: a factor between 1 − this and 1 + this."""
    contrast: Share = 0.0
    """Largest change of contrast: a factor between 1 − this and 1 + this."""
    saturation: Share = 0.0
    """Largest change of saturation: a factor between 1 − this and 1 + this."""
    grey: Share = 0.0
    """Probability of converting the image to grey."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    erase: Share = 0.0
    """Probability of erasing a rectangle."""
    randaugment: Annotated[int, Field(ge=0, le=10)] = 0
    """Strength, 0 to 10, of two random changes of colour or sharpness."""
    mixup: NotNegative = 0.0
    """Alpha of the Beta distribution that mixes pairs of samples; 0 switches it off."""


class EmotionHead(Section):
    """Eight emotions: soft cross-entropy against a label or the shares of votes."""

    weight: NotNegative = 1.0
    """Weight of this head's loss in the total loss."""
    smoothing: Share = 0.0
    """Label smoothing."""
    votes: bool = True
    """Learn the shares of the votes where there are votes, instead of the majority."""
    imbalance: Literal["none", "weights", "logit-adjustment"] = "none"
    """``weights``: rare classes weigh more; ``logit-adjustment``: the log frequencies of the classes are added to
    the logits in training.
    """
    dropout: Share = 0.0
    """Dropout before the last layer."""
    conditioned_on_pose: bool = False
    """Modulate the features by the network's own angles; needs the pose head."""


class DirectionHead(Section):
    """Five directions: cross-entropy."""

    weight: NotNegative = 1.0
    """Weight of this head's loss in the total loss."""
    smoothing: Share = 0.0
    """Label smoothing."""
    imbalance: Literal["none", "weights", "logit-adjustment"] = "none"
    """As in the emotion head."""
    dropout: Share = 0.0
    """Dropout before the last layer."""


class PoseHead(Section):
    """Yaw, pitch and roll."""

    weight: NotNegative = 1.0
    """Weight of this head's loss in the total loss."""
    kind: Literal["bins66", "sixd"] = "bins66"
    """``bins66``: Hopenet's 66 bins, with cross-entropy plus ``alpha`` times the squared error; ``sixd``: a
    rotation as six numbers, with a geodesic loss.
    """
    alpha: NotNegative = 1.0
    """With ``bins66``: weight of the squared error (degrees²) next to the cross-entropy."""


class AffectHead(Section):
    """Valence and arousal: mean squared error."""

    weight: NotNegative = 1.0
    """Weight of this head's loss in the total loss."""


class HeadsConfig(Section):
    """The heads of the network: one is a baseline, several are learned together."""

    emotion: EmotionHead | None = None
    """Eight emotions; ``{}`` switches the head on with its defaults."""
    direction: DirectionHead | None = None
    """Five directions."""
    pose: PoseHead | None = None
    """Yaw, pitch and roll."""
    affect: AffectHead | None = None
    """Valence and arousal."""

    @model_validator(mode="after")
    def _some_head(self) -> Self:
        if not self.on:
            raise ValueError("no head is on; give at least one of emotion, direction, pose, affect")
        if self.emotion and self.emotion.conditioned_on_pose and not self.pose:
            raise ValueError("emotion.conditioned_on_pose needs the pose head; add pose: {}")
        return self

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the heads that are on."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class ModelConfig(Section):
    """The network: backbone, weights to start from, and heads."""

    backbone: str = "resnet18"
    """A name of torchvision.models, ``timm/NAME``, ``tiny``, ``resnet14``, or ``angles`` (the direction network of the
    thesis).
    """
    stem: Stem = "standard"
    """First layer of torchvision's ResNets (``resnet18``, ``resnet50`` …; not ``resnet14``, which is made for small
    images) where images have about 32 to 64 pixels: ``small`` keeps the resolution; ``half`` halves it, for a quarter
    of the work.
    """
    weights: str = "none"
    """Weights to start from: ``none``, ``hub`` (downloads them), a local file, or a run folder (the backbone of its
    best checkpoint; heads start anew).
    """
    mean: tuple[Share, Share, Share] | None = None
    """Subtracted from the pixels (0 to 1; red, green, blue). Default: what the backbone expects, that is timm's
    config for ``timm/NAME``, that of the run in ``weights``, that of torchvision's weights with ``hub``, otherwise
    ImageNet's.
    """
    std: tuple[Positive, Positive, Positive] | None = None
    """Divides the pixels; give it together with ``mean``."""
    freeze: list[str] = Field(default=[])
    """Names of layers of the backbone that do not learn."""
    heads: HeadsConfig

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or neither")
        return self


class TrainConfig(Section):
    """Optimisation. Learning rate and epoch are functions of the number of samples seen."""

    batch: BatchSize = 256
    """Samples per step over all ranks. ``auto`` finds it at the first start and keeps it in the ``config.yaml`` of
    the run: for each rank the largest power of two that fits into GPU memory, or on a CPU the one where doubling
    stops paying. It does not adapt the learning rate.
    """
    micro_batch: Count | None = None
    """Samples that go through the network at once on each rank; gradients are accumulated over them. Default: all."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """Length of the training; fractions are allowed."""
    small_epochs: NotNegative = 0.0
    """Number of first epochs that learn from images scaled to ``small_size`` (progressive resizing, Tan and Le
    2021): most of the learning for less compute. They are validated at that size; the first validation at
    ``data.size`` replaces their best checkpoint.
    """
    small_size: Side | None = None
    """Side of those images in pixels, below ``data.size``; not used while ``small_epochs`` is 0."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """``sgd`` uses Nesterov momentum of 0.9."""
    learning_rate: Positive = 1e-3
    """Highest learning rate of the schedule."""
    weight_decay: NotNegative = 0.01
    """Decay of weights; biases, norms, class tokens and position embeddings do not decay."""
    head_rate: Positive = 1.0
    """The heads' learning rate, as a multiple of the backbone's (Hopenet: 5)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer of the backbone learns this factor slower than the layer after it; layers are timm's groups for
    ``timm/NAME``, otherwise the blocks in their order.
    """
    schedule: Literal["constant", "cosine", "step", "one-cycle"] = "cosine"
    """Learning rate as a function of the samples seen."""
    step_epochs: Positive = 7.0
    """With ``step``: epochs between two drops."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """With ``step``: factor of each drop."""
    warmup_epochs: NotNegative = 0.0
    """Epochs of a linear rise at the start; refused with ``one-cycle``, which has its own."""
    clip: NotNegative = 0.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights, such as 0.999 (smaller in the first steps); 0 switches averaging off."""
    balance_losses: Literal["fixed", "learned"] = "fixed"
    """``learned``: the losses are weighed by one learned variance per head."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """``auto``: bf16 where the hardware supports it natively (GPUs of compute capability 8.0 or higher, such as
    A100 and RTX 30; CPUs with AVX512-BF16 or AMX), otherwise fp32. It never chooses fp16, which is for older GPUs
    (V100, T4). The ``config.yaml`` of the run holds the precision that was used. A resume uses the same one; where
    the machine does not support it, ``hpe train --change-precision`` resumes in another.
    """
    compile: bool = False
    """Use torch.compile."""
    sync_batch_norm: bool = False
    """Compute the statistics of batch norms over all GPUs."""
    select: str = "auto"
    """The metric that chooses the ``best`` checkpoint, such as ``emotion/macro_f1``; ``auto``: the main metric of
    the first head. Of equal values the later checkpoint is chosen, with ``patience`` the earlier one.
    """
    validate_epochs: Positive = 1.0
    """Epochs between two validations."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many validations without improvement; 0: never."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between two checkpoints; 0: only at validations."""
    keep: Count = 3
    """Number of checkpoints to keep, in addition to ``best``."""
    log_steps: Count = 20
    """Steps between two lines of the log."""
    trackers: list[Tracker] = Field(default=[])
    """Trackers that get the values of the log, beside TensorBoard, through Accelerate; the package of each must be
    installed. See ``docs/watch.md``.
    """

    def validations(self, samples_seen: float, epoch_samples: int) -> float:
        """How many validations are due within the first samples of a run."""
        return samples_seen // (self.validate_epochs * epoch_samples)

    def out_of_patience(self, samples_seen: int, best_samples: int, epoch_samples: int) -> bool:
        """Whether ``patience`` is used up after so many samples, of which the best validation had seen some."""
        # It counts from the last improvement, at the earliest from where images grow (`small_size`): values from small
        # images say nothing about those from large ones. It counts validations, not samples, as they fall on the first
        # batch behind their place: the run would end a step after one, which no checkpoint holds.
        start = max(best_samples, self.small_epochs * epoch_samples)
        without_gain = self.validations(samples_seen, epoch_samples) - self.validations(start, epoch_samples)
        return bool(self.patience) and without_gain >= self.patience


class RunConfig(Section):
    """A run of ``hpe train``."""

    run: str
    """Folder of the run; ``--run`` replaces it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of samples, augmentation and dropout."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _small_before_large(self) -> Self:
        small, epochs = self.train.small_size, self.train.small_epochs
        if not epochs:
            return self
        if small is None:
            raise ValueError(
                f"train.small_epochs: {epochs:g} epochs of small images need train.small_size; give it, or set 0"
            )
        if small >= self.data.size:
            raise ValueError(
                f"train.small_size: {small} is not below data.size, {self.data.size}; choose a smaller one"
            )
        if epochs >= self.train.epochs:
            raise ValueError(
                f"train.small_epochs: {epochs:g} epochs of small images leave no epoch at data.size, because "
                f"train.epochs is {self.train.epochs:g}; lower train.small_epochs (0 switches it off)"
            )
        return self

    @property
    def selection(self) -> str:
        """The validation metric that chooses the best checkpoint."""
        return self.train.select if self.train.select != "auto" else _SELECTION[self.model.heads.on[0]]

    def dump(self) -> str:
        """The resolved config as YAML: every default written out, ready to be loaded again."""
        return dump(self.model_dump(mode="json"))


FREE: Final = (
    "run",
    "data.workers",
    "data.stage",
    "train.log_steps",
    "train.keep",
    "train.checkpoint_steps",
    "train.micro_batch",
    "train.trackers",
)
"""Settings that may change when a run resumes, because they do not change what is learned.

``train.micro_batch`` is the exception: it changes what batch norms and dropout see, but it has to fit the memory of
the machine that resumes.
"""


def differences(before: Section, after: Section) -> list[str]:
    """The settings that differ and change what is learned, as ``train.batch: 256 -> 128``."""
    old, new = (dict(leaves(_without_idle_weights(one.model_dump(mode="json")))) for one in (before, after))
    return [
        f"{path}: {json.dumps(old.get(path))} -> {json.dumps(new.get(path))}"
        for path in sorted(old.keys() | new.keys())
        if path not in FREE and old.get(path) != new.get(path)
    ]


def _without_idle_weights(config: dict[str, Any]) -> dict[str, Any]:
    """The config without weights of datasets that change nothing: of a single one, and of validation data."""
    data = config.get("data", {})
    for sets in (data.get("val", []), data.get("train", [])[:1] if len(data.get("train", [])) == 1 else []):
        for one in sets:
            one.pop("weight", None)
    return config


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted paths."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
