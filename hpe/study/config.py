"""The config of a study, as strict as a run's (:mod:`hpe.config.run`), and the config of each run that follows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from hpe.config.run import (
    AugmentConfig,
    Count,
    DataConfig,
    DirectionHead,
    EmotionHead,
    HeadsConfig,
    ModelConfig,
    Positive,
    RunConfig,
    ShardsConfig,
    Stem,
    TrainConfig,
    leaves,
)
from hpe.config.strict_yaml import Section, dump, load
from hpe.core.errors import UserError

CONFIG_FILE: Final = "study.yaml"
RUNS: Final = "runs"
NATURAL: Final = "natural"
"""Name of the evaluation on all test faces, as they occur in the dataset."""
FROM_RECORDS: Final = "record"
AUTO: Final = "auto"
HOG: Final = "hog"
NETWORK_RULE: Final = "thesis_network"
OUR_RULE: Final = "ours"
DIRECTION_SET: Final = "direction"
SetName = Literal["baseline", "proposed"]
SETS: Final[tuple[SetName, ...]] = ("baseline", "proposed")
_NAME: Final = r"[a-z0-9][a-z0-9_]*"
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
EmotionName = Literal["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class SetConfig(Section):
    """A balanced set: samples of each direction and emotion in train/val/test, and the direction rule.

    ``rule: auto`` uses the direction network (a column ``direction_thesis_network`` of the pose tables, or the network
    that the study trains itself under ``directions``) where there is one, else ``ours``. ``directions`` and
    ``emotions`` restrict the set where a dataset has too few samples of the others.
    """

    per_cell: Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*/[1-9]\d*$")]
    rule: str = AUTO
    directions: Annotated[list[Literal["forward", "left", "right", "up", "down"]], Field(min_length=1)] | None = None
    emotions: Annotated[list[EmotionName], Field(min_length=2)] | None = None


class SetsConfig(Section):
    """The two sets of the thesis."""

    baseline: SetConfig
    proposed: SetConfig


class PicturesConfig(Section):
    """How images are read, for every model."""

    size: Annotated[int, Field(ge=16, le=1024)] = 224
    grey: bool = True
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    window: Count = 64
    sampling: Literal["natural", "balanced"] = "natural"


class NetworkConfig(Section):
    """A network of the study; its ``augment`` and ``train`` override the study's, key by key."""

    name: Name
    backbone: str
    stem: Stem = "standard"
    weights: str = "none"
    freeze: list[str] = Field(default_factory=list)
    heads: HeadsConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    sets: list[SetName] = Field(default_factory=lambda: list(SETS), min_length=1)


class BoostedConfig(Section):
    """AdaBoost (scikit-learn's) on HOG features, or on the features of a network of this study, by its name.

    On HOG it is run only once, as its seed is fixed: see :meth:`seed_of_trees`.
    """

    name: Name = "adaboost"
    features: Name = HOG
    size: Annotated[int, Field(ge=32, le=256, multiple_of=8)] = 64
    estimators: Count = 50
    depth: Annotated[int, Field(ge=1, le=10)] = 1
    learning_rate: Positive = 1.0
    sets: list[SetName] = Field(default_factory=lambda: list(SETS), min_length=1)

    @property
    def fixed_seed(self) -> bool:
        """Whether every seed of the study gives the same result."""
        return self.features == HOG

    def seed_of_trees(self, seed: int) -> int:
        """The seed by which trees decide between equally good splits, in a run with this seed of the study.

        On HOG nothing else differs between seeds, so that one seed, always the same, stands for all.
        """
        return 0 if self.fixed_seed else seed


class DirectionsConfig(Section):
    """Table 3.4: networks that predict the direction, on shards whose records hold true directions."""

    shards: str
    pose: str
    networks: Annotated[list[NetworkConfig], Field(min_length=1)]


class StudyConfig(Section):
    """A study of ``hpe study``.

    ``pose`` is the folder of the shards' pose tables, or ``record`` for the angles in the records.
    ``shown`` is the model of the tables per direction and emotion; ``ours`` is compared with it.
    """

    study: str
    shards: str
    pose: str
    seeds: Annotated[list[Seed], Field(min_length=1)]
    balance_seed: Seed = 0
    sets: SetsConfig
    pictures: PicturesConfig = PicturesConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    networks: Annotated[list[NetworkConfig], Field(min_length=1)]
    boosted: list[BoostedConfig] = Field(default_factory=list)
    shown: str
    ours: str | None = None
    directions: DirectionsConfig | None = None
    natural_test: bool = True
    replicates: Annotated[int, Field(ge=100)] = 1000

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := list(self._contradictions()):
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Settings that contradict each other."""
        networks = {one.name: one for one in self.networks}
        names = [one.name for one in (*self.networks, *self.boosted)]
        if len(set(names)) < len(names):
            yield "two models have one name; names of networks and boosted must differ, as each is a row of the tables"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds: {self.seeds} names a seed twice"
        for key, wanted in (("shown", self.shown), ("ours", self.ours)):
            if wanted is not None and wanted not in names:
                yield f"{key}: {wanted!r} is not a model of this study; it has {', '.join(names)}"
        for one in self.networks:
            if one.heads is not None and one.heads.emotion is None:
                yield f"networks: {one.name} has no emotion head; add emotion: {{}}"
        for one in self.boosted:
            if one.features == HOG:
                continue
            given = networks.get(one.features)
            if given is None:
                yield (
                    f"boosted: features {one.features!r} are neither hog nor a network of this study "
                    f"({', '.join(networks)})"
                )
            elif lacking := set(one.sets) - set(given.sets):
                yield f"boosted: {one.name} needs {one.features} on the sets {', '.join(sorted(lacking))}"
        of_directions = self.directions.networks if self.directions else []
        if len({one.name for one in of_directions}) < len(of_directions):
            yield "directions.networks: two networks have one name; names must differ, as each names its run folders"
        for one in of_directions:
            if one.heads is not None and one.heads.direction is None:
                yield f"directions.networks: {one.name} has no direction head; add direction: {{}}"
        problems: dict[str, list[str]] = {}  # one problem of many networks is the study's own
        for where, network, heads in every_network(self):
            try:
                trial_config(self, network, heads)
            except ValidationError as invalid:
                for error in invalid.errors():
                    message = error["msg"].removeprefix("Value error, ").replace("data.size", "pictures.size")
                    problems.setdefault(message, []).append(where)
        yield from (f"{', '.join(networks)}: {message}" for message, networks in problems.items())

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.study)

    @property
    def angle_network(self) -> NetworkConfig | None:
        """The network on angles that the study trains itself, if it does."""
        found = self.directions.networks if self.directions else ()
        return next((one for one in found if one.backbone == "angles"), None)

    @property
    def sets_may_need_network(self) -> bool:
        """Whether a set's rule may be that of the direction network."""
        return any(getattr(self.sets, name).rule in (AUTO, NETWORK_RULE) for name in SETS)

    def dump(self) -> str:
        """The resolved config as YAML."""
        return dump(self.plain())

    def plain(self) -> dict[str, Any]:
        """As JSON.

        Models hold only the keys that were set: an unset key means "as in the study", and its default, written out,
        would override the study's value when it is read back.
        """
        whole = self.model_dump(mode="json")
        for key in ("networks", "boosted"):
            whole[key] = [one.model_dump(mode="json", exclude_unset=True) for one in getattr(self, key)]
        if self.directions:
            whole["directions"] = self.directions.model_dump(mode="json", exclude_unset=True)
        return whole


_NOT_OF_RUNS: Final = re.compile(
    r"(study|shown|ours|natural_test|replicates|pictures\.workers)$|train\.(log_steps|keep)$"
)
"""Settings that no run depends on."""


_ANGLES: Final = "directions.networks, the first with backbone angles"


def changes(before: StudyConfig, after: StudyConfig) -> list[str]:
    """Differences that would change existing results; additional seeds and models would not."""
    old, new = _by_name(before), _by_name(after)
    if new["seeds"][: len(old["seeds"])] == old["seeds"]:
        new["seeds"] = old["seeds"]
    if old["directions"] is None:
        new["directions"] = None
    for known, section in ((old, new), (old["directions"] or {}, new["directions"] or {})):
        for key in {"networks", "boosted"} & section.keys():
            section[key] = {name: one for name, one in section[key].items() if name in known[key]}
    was, is_now = dict(leaves(old)), dict(leaves(new))
    return [
        f"{path}: {json.dumps(was.get(path))} -> {json.dumps(is_now.get(path))}"
        for path in sorted(was.keys() | is_now.keys())
        if not _NOT_OF_RUNS.match(path) and was.get(path) != is_now.get(path)
    ]


def _by_name(study: StudyConfig) -> dict[str, Any]:
    """The config with models by name instead of by position, so that a difference names the model."""
    whole = study.plain()
    for section in (whole, whole["directions"] or {}):
        for key in ("networks", "boosted"):
            if key in section:
                section[key] = {one.get("name", "adaboost"): one for one in section[key]}
    # The first network on angles may decide the directions of a set.
    angles = study.angle_network if study.sets_may_need_network else None
    return whole | {_ANGLES: angles.name if angles else None}


S = TypeVar("S", bound=Section)


def _merged(base: S, over: S) -> S:
    return base.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})


def run_folder(study: StudyConfig, set_name: str, model: str, seed: int) -> Path:
    """Where a run of the study is."""
    return study.folder / RUNS / f"{set_name}-{model}-seed{seed}"


def set_folder(study: StudyConfig, set_name: str) -> Path:
    """Where a balanced set of the study is."""
    return study.folder / "sets" / set_name


def evaluation_names(study: StudyConfig) -> tuple[str, ...]:
    """Names of the evaluations of every model of emotion."""
    return (*SETS, NATURAL) if study.natural_test else SETS


def load_study(folder: Path) -> StudyConfig:
    """The config of a study's folder.

    Raises:
        UserError: not the folder of a study.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: no {CONFIG_FILE} here; expected a folder that `hpe study` wrote")
    return load(folder / CONFIG_FILE, StudyConfig)


def run_config(
    study: StudyConfig,
    network: NetworkConfig,
    *,
    run: Path,
    seed: int,
    shards: Path,
    pose: Path,
    direction: str,
    heads: HeadsConfig,
) -> RunConfig:
    """The config of one run.

    Args:
        run: its folder.
        shards, pose: training data.
        direction: source of the directions: a rule, or ``record``.
        heads: those of a network whose config names none.
    """
    train, val = ([ShardsConfig(shards=str(shards), split=split, pose=str(pose))] for split in ("train", "val"))
    pictures = study.pictures.model_dump()
    return RunConfig(
        run=str(run),
        seed=seed,
        data=DataConfig(train=train, val=val, angles="pose", direction=direction, **pictures),
        augment=_merged(study.augment, network.augment),
        model=ModelConfig(
            backbone=network.backbone,
            stem=network.stem,
            weights=network.weights,
            freeze=network.freeze,
            heads=network.heads or heads,
        ),
        train=_merged(study.train, network.train),
    )


def every_network(study: StudyConfig) -> Iterator[tuple[str, NetworkConfig, HeadsConfig]]:
    """Every network: where the config has it, and the heads that it gets where it names none."""
    for one in study.networks:
        yield f"networks.{one.name}", one, EMOTION_ALONE
    for one in study.directions.networks if study.directions else ():
        yield f"directions.networks.{one.name}", one, DIRECTION_ALONE


def trial_config(study: StudyConfig, network: NetworkConfig, heads: HeadsConfig) -> RunConfig:
    """The config of a network's runs but for their places, so that it can be checked before there are any."""
    run = shards = pose = Path()
    return run_config(study, network, run=run, seed=0, shards=shards, pose=pose, direction=OUR_RULE, heads=heads)


def seeds_of(study: StudyConfig, model: str) -> list[int]:
    """The seeds that a model is trained with."""
    once = any(one.fixed_seed for one in study.boosted if one.name == model)
    return study.seeds[:1] if once else study.seeds


EMOTION_ALONE: Final = HeadsConfig(emotion=EmotionHead())
DIRECTION_ALONE: Final = HeadsConfig(direction=DirectionHead())


def emotion_models(study: StudyConfig) -> Iterator[NetworkConfig | BoostedConfig]:
    """Every model of emotion, in the order of the tables."""
    yield from study.networks
    yield from study.boosted
