"""The config of a run (contract C6): one YAML file, strict, every mistake at once with its place in the file."""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hpe.core.errors import UserError

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
Stem = Literal["standard", "small", "half"]
_SELECTION: Final = {
    "emotion": "emotion/macro_f1", "direction": "direction/macro_f1", "pose": "pose/mae", "affect": "affect/rmse",
}  # fmt: skip
Places = dict[tuple[Any, ...], str]


class Section(BaseModel):
    """A part of a config: unknown keys and wrong types are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


T = TypeVar("T", bound=Section)


class ShardsConfig(Section):
    """One dataset of shards.

    ``shards`` is a folder that ``hpe pack`` wrote (with ``split``), a path, glob, brace pattern or URL, or a
    list of them; ``pose`` is the folder of pose tables, and ``weight`` its share among several datasets.
    """

    shards: str | list[str]
    split: str | None = None
    pose: str | None = None
    weight: Positive = 1.0


class DataConfig(Section):
    """What is streamed: where from, in which order and with which labels."""

    train: Annotated[list[ShardsConfig], Field(min_length=1)]
    val: Annotated[list[ShardsConfig], Field(min_length=1)]
    size: Side = 224
    grey: bool = False
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    window: Count = 64
    sampling: Literal["natural", "balanced"] = "natural"
    angles: Literal["record", "pose"] = "record"
    direction: str = "record"
    decoder: Literal["cpu", "gpu", "auto"] = "cpu"
    damaged: Literal["skip", "fail"] = "skip"


class AugmentConfig(Section):
    """Batched augmentation; see ``hpe.stream.augment``. Everything off is ``augment: {}``."""

    crop_scale: tuple[Positive, Positive] = (1.0, 1.0)
    crop_ratio: tuple[Positive, Positive] = (1.0, 1.0)
    shift: Share = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    flip: Share = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    grey: Share = 0.0
    blur: Share = 0.0
    erase: Share = 0.0
    randaugment: Annotated[int, Field(ge=0, le=10)] = 0
    mixup: NotNegative = 0.0


class EmotionHead(Section):
    """Eight emotions: soft cross-entropy against a label or the votes' shares."""

    weight: NotNegative = 1.0
    smoothing: Share = 0.0
    votes: bool = True
    imbalance: Literal["none", "weights", "logit-adjustment"] = "none"
    dropout: Share = 0.0
    conditioned_on_pose: bool = False


class DirectionHead(Section):
    """Five directions: cross-entropy."""

    weight: NotNegative = 1.0
    smoothing: Share = 0.0
    imbalance: Literal["none", "weights", "logit-adjustment"] = "none"
    dropout: Share = 0.0


class PoseHead(Section):
    """Yaw, pitch, roll: ``bins66`` is Hopenet's cross-entropy + alpha · MSE; ``sixd`` a geodesic loss."""

    weight: NotNegative = 1.0
    kind: Literal["bins66", "sixd"] = "bins66"
    alpha: NotNegative = 1.0


class AffectHead(Section):
    """Valence and arousal: mean squared error."""

    weight: NotNegative = 1.0


class HeadsConfig(Section):
    """The heads that are on; one head is a baseline, several are the joint network."""

    emotion: EmotionHead | None = None
    direction: DirectionHead | None = None
    pose: PoseHead | None = None
    affect: AffectHead | None = None

    @model_validator(mode="after")
    def _some_head(self) -> Self:
        if not self.on:
            raise ValueError("no head is on: give at least one of emotion, direction, pose, affect")
        if self.emotion and self.emotion.conditioned_on_pose and not self.pose:
            raise ValueError("emotion.conditioned_on_pose needs the pose head: add pose: {}")
        return self

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the heads that are on."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class ModelConfig(Section):
    """The network: a backbone by name, weights (``none``, ``hub``, or a local file), heads.

    ``mean`` and ``std`` normalise the pixels (0..1, red, green, blue). Left out, they are those that the backbone
    expects (see ``hpe.models.run_folder.normalisation_of``); a run's config holds the numbers that it was trained with.
    """

    backbone: str = "resnet18"
    stem: Stem = "standard"
    weights: str = "none"
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    freeze: list[str] = []
    heads: HeadsConfig

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or neither")
        return self


class TrainConfig(Section):
    """Optimisation. ``batch`` counts samples over all ranks; the rate is a pure function of samples seen.

    ``batch: auto`` is found at the run's first start (see ``hpe.train.auto_batch``) and kept in its config. The first
    ``small_epochs`` epochs learn from pictures scaled to ``small_size``: most of what there is to learn, for less
    (progressive resizing, as in Tan and Le, EfficientNetV2, 2021). They are validated so, too, and the best of them
    is forgotten with the first validation in ``data.size``.
    """

    batch: BatchSize = 256
    micro_batch: Count | None = None
    epochs: Positive = 10.0
    small_epochs: NotNegative = 0.0
    small_size: Side | None = None
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    head_rate: Positive = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    schedule: Literal["constant", "cosine", "step", "one-cycle"] = "cosine"
    step_epochs: Positive = 7.0
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NotNegative = 0.0
    clip: NotNegative = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    balance_losses: Literal["fixed", "learned"] = "fixed"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    sync_batch_norm: bool = False
    select: str = "auto"
    validate_epochs: Positive = 1.0
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    keep: Count = 3
    log_steps: Count = 20


class RunConfig(Section):
    """A run of ``hpe train``."""

    run: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
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
            raise ValueError(f"train.small_epochs: {epochs:g} epochs of small pictures need a train.small_size")
        if small >= self.data.size:
            raise ValueError(f"train.small_size: {small} is not below data.size, {self.data.size}")
        if epochs >= self.train.epochs:
            raise ValueError(
                f"train.small_epochs: {epochs:g} epochs of small pictures leave none of train.epochs, "
                f"{self.train.epochs:g}, to those of data.size; lower it too (0: none are small)"
            )
        return self

    @property
    def selection(self) -> str:
        """The validation figure that chooses the best checkpoint."""
        return self.train.select if self.train.select != "auto" else _SELECTION[self.model.heads.on[0]]

    def dump(self) -> str:
        """The resolved config as YAML: every default written out, ready to be loaded again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


FREE: Final = (
    "run",
    "data.workers",
    "train.log_steps",
    "train.keep",
    "train.checkpoint_steps",
    "train.micro_batch",
)
"""Settings that may change between two starts of one run: they do not change what is learned.

A micro-batch does change what batch norms and dropout see, but must follow the memory of the machine that goes on.
"""


def differences(before: Section, after: Section) -> list[str]:
    """The settings that differ in what is learned, as ``train.batch: 256 -> 128``."""
    old, new = dict(leaves(before.model_dump(mode="json"))), dict(leaves(after.model_dump(mode="json")))
    return [
        f"{path}: {json.dumps(old.get(path))} -> {json.dumps(new.get(path))}"
        for path in sorted(old.keys() | new.keys())
        if path not in FREE and old.get(path) != new.get(path)
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted paths."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def load(path: Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """The config in a YAML file, with ``--set`` overrides such as ``train.learning_rate=3e-4``.

    Raises:
        UserError: every mistake of the file and the overrides, one a line with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this config: {getattr(error, 'strerror', None) or error}") from error
    return parse(text, str(path), schema, overrides)


def parse(text: str, name: str, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """As :func:`load`, from a text; ``name`` stands for the file in messages."""
    raw, places = _compose(text, name)
    for override in overrides:
        _override(raw, places, override)
    try:
        # JSON mode is strict about types, yet takes YAML's lists where the schema has tuples; dates are texts.
        return schema.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as invalid:
        raise UserError("\n".join(_messages(invalid, schema, name, places))) from invalid
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with YAML 1.2 numbers: PyYAML's YAML 1.1 reads ``1e-3`` as a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
# PyYAML tries resolvers in order, and its own integers come first for plain digits.
_FILE_LIMIT: Final = 1 << 20
_DEEPEST: Final = 32
_SHOWN: Final = 200


def _compose(text: str, name: str) -> tuple[dict[str, Any], Places]:
    with _told(name) as loader_of:
        loader = loader_of(text)
        node = loader.get_single_node()
        places: Places = {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{name}: expected sections such as data:, model:, train:, found no mapping")
        _places(node, (), name, places)
        return loader.construct_document(node), places


@contextmanager
def _told(name: str) -> Iterator[Callable[[str], _Loader]]:
    """A maker of loaders for texts that were looked through; what YAML finds wrong becomes one message."""
    try:
        yield partial(_loader, name=name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark and not name.startswith("--set") else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{place}: not YAML: {problem}") from error
    except UserError:
        raise
    except (OverflowError, ValueError) as error:
        raise UserError(f"{name}: not a config: {error}") from error


def _loader(text: str, name: str) -> _Loader:
    """A loader of a text that is neither huge nor deep and repeats nothing: Python's own limits are not reached."""
    if len(text) > _FILE_LIMIT:
        raise UserError(f"{name}: {len(text):,} characters; a config has less than {_FILE_LIMIT:,}")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{name}: YAML aliases (*name) are not used in configs; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{name}: lists and mappings lie more than {_DEEPEST} deep; no config needs that")
    return _Loader(text)


def _places(node: yaml.Node, path: tuple[Any, ...], name: str, places: Places) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            where = f"{name}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise UserError(f"{where}: the key {getattr(key, 'value', key)!r} stands here twice or is no text")
            seen.add(key.value)
            places[*path, key.value] = where
            _places(value, (*path, key.value), name, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[*path, index] = f"{name}:{value.start_mark.line + 1}:{value.start_mark.column + 1}"
            _places(value, (*path, index), name, places)


def _override(raw: dict[str, Any], places: Places, given: str) -> None:
    dotted, equals, text = given.partition("=")
    override = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}…"
    if not equals or not dotted:
        raise UserError(f"--set {override}: expected PATH=VALUE, for example --set train.learning_rate=3e-4")
    with _told(f"--set {override}") as loader_of:
        value = loader_of(text).get_single_data()
    path = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    at: Any = raw
    for part, following in zip(path[:-1], path[1:], strict=True):
        if isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        elif isinstance(at, dict):
            if not isinstance(at.get(part), dict | list):
                if isinstance(following, int):
                    raise UserError(f"--set {override}: there is no list {part!r} in the config to change")
                at[part] = {}
            at = at[part]
        else:
            raise UserError(f"--set {override}: the config has nothing at {part!r}")
    last = path[-1]
    if isinstance(at, list) and not (isinstance(last, int) and last < len(at)):
        raise UserError(f"--set {override}: the list has {len(at)} items, numbered from 0")
    at[last] = value  # pyright: ignore[reportCallIssue, reportArgumentType] (a list by number, a mapping by name)
    places[tuple(path)] = f"--set {override}"
    for end in range(1, len(path)):
        places.setdefault(tuple(path[:end]), f"--set {override}")


def _messages(invalid: ValidationError, schema: type[Section], name: str, places: Places) -> Iterator[str]:
    for error in invalid.errors(include_url=False):
        location = tuple(part for part in error["loc"] if not _is_union_tag(part))
        where = next((places[location[:end]] for end in range(len(location), 0, -1) if location[:end] in places), name)
        dotted = ".".join(map(str, location)) or "config"
        message = error["msg"].removeprefix("Value error, ")
        match error["type"]:
            case "extra_forbidden":
                known = _known_keys(schema, location[:-1])
                close = difflib.get_close_matches(str(location[-1]), known, 1)
                message = "unknown key" + (
                    f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
                )
            case "missing":
                message = "is missing"
            case _ if error["type"] != "value_error":
                message = f"{message[0].lower()}{message[1:]}, found {json.dumps(error['input'])[:80]}"
        yield f"{where}: {dotted}: {message}"


def _is_union_tag(part: object) -> bool:
    """Pydantic puts the tried member of a union into the path: ``str``, ``list[str]``."""
    return isinstance(part, str) and (part in ("str", "bool", "int", "float") or part.startswith("list["))


def _known_keys(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    at: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part)
        at = _model_of(field.annotation) if field else None
        if at is None:
            return []
    return list(at.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_of(a))), None)
