"""Run folders (contract C5): the config, the checkpoints, the log; who trains in one.

::

    runs/name/
        config.yaml                    resolved
        shards.json                    what it is trained on: dataset, crop rule, size, quality … of each manifest
        trained_on.json                how many training samples each class has, and how large the faces are
        checkpoints/
            step-00012000/
                model.safetensors      weights
                ema.safetensors        averaged weights, where train.ema is on
                optimizer.pt           optimizer and gradient scaler
                state.json             samples seen, step, best figure, ranks
            last -> step-00012000
            best -> step-00009000
        metrics.jsonl  tensorboard/  evaluate/  report/
        log.txt                        what the terminal showed, with the time
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpe.config.run import ModelConfig, RunConfig
from hpe.config.strict_yaml import load
from hpe.core.errors import UserError
from hpe.core.files import locked, rename_aside, sync, write_json
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.crops import CropRule
from hpe.data.normalise import MEAN, STD
from hpe.data.recipe import Recipe
from hpe.data.shards import MANIFEST, Manifest
from hpe.models.backbones import Triple, published_normalisation

CONFIG: Final = "config.yaml"
SHARDS: Final = "shards.json"
TRAINED_ON: Final = "trained_on.json"
CHECKPOINTS: Final = "checkpoints"
METRICS: Final = "metrics.jsonl"
MESSAGES: Final = "log.txt"
TENSORBOARD: Final = "tensorboard"
LOCK: Final = ".lock"
_CLASS_NAMES: Final = {"emotion": EMOTIONS, "direction": DIRECTIONS}
_STEP: Final = re.compile(r"step-(\d{8,})")


def normalisation_of(model: ModelConfig) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the pixels of a config's network.

    Its own numbers; else those of the run that it starts from; else what the backbone expects by its publisher.

    Raises:
        UserError: it starts from a folder that is no run.
    """
    if model.mean is not None and model.std is not None:
        return model.mean, model.std
    if model.weights not in ("none", "hub") and Path(model.weights).is_dir():
        return normalisation_of(load_config(Path(model.weights)).model)
    return published_normalisation(model.backbone, model.weights)


def with_normalisation(config: RunConfig) -> RunConfig:
    """The config with the numbers of :func:`normalisation_of`: those of its run folder, where it has one.

    Raises:
        UserError: a config in the run folder, or a run to start from, that cannot be read.
    """
    if config.model.mean is not None:
        return config
    run = Path(config.run)
    return _normalised_by(config, *normalisation_of((load_config(run) if (run / CONFIG).is_file() else config).model))


def _normalised_by(config: RunConfig, mean: Triple, std: Triple) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"mean": mean, "std": std})})


Position = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(frozen=True, slots=True)
class State:
    """The position of a run. Everything else follows from ``samples_seen``.

    ``unvalidated``: a signal ended the validation that was due here; a restart does it before the next step.
    """

    samples_seen: Position
    step: Position
    best: float | None = None
    best_samples: Position = 0
    ranks: int = 1
    unvalidated: bool = False

    @property
    def is_best(self) -> bool:
        """Whether the validation at this position gave the best value so far."""
        return self.best_samples == self.samples_seen and self.best is not None

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """The state of a checkpoint folder.

        Raises:
            UserError: it is damaged.
        """
        try:
            return TypeAdapter(cls).validate_json((checkpoint / "state.json").read_bytes(), strict=True)
        except (OSError, ValidationError) as error:
            why = str(error)
            if isinstance(error, ValidationError):
                why = "; ".join(": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors())
            raise UserError(
                f"{checkpoint}: damaged checkpoint (state.json: {why}); remove this folder to go on from the one before"
            ) from error


def save_checkpoint(
    run: Path,
    state: State,
    network: nn.Module,
    optimizer: Mapping[str, Any],
    *,
    ema: nn.Module | None,
    keep: int,
    best: bool,
) -> Path:
    """Write a checkpoint aside, rename it, point ``last`` (and ``best``) to it, remove old ones.

    A kill or a power cut at any moment leaves the checkpoint before, or this one; never half of it.

    Raises:
        UserError: it could not be written, most often because the disk is full; the checkpoint before is kept.
    """
    folder = run / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:08d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        save_file(_plain(network), part / "model.safetensors")
        if ema is not None:
            save_file(_plain(ema), part / "ema.safetensors")
        with (part / "optimizer.pt").open("wb") as stream:
            torch.save(dict(optimizer), stream)
        write_json(part / "state.json", asdict(state))
        _sync(part)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        last = checkpoints(run)[-1:]
        why = error.__context__ if isinstance(error.__context__, OSError) else error  # below torch's own words
        raise UserError(
            f"{target}: could not be written ({str(why).partition(chr(10))[0][:200]}); free some space on this disk, "
            "then run the same command again: "
            + (f"it goes on from {last[0].name}" if last else "it starts over, because nothing is saved yet")
        ) from error
    if target.exists():  # an earlier start of the run saved this step too
        shutil.rmtree(before := folder / f".{target.name}.before.part", ignore_errors=True)
        # Renamed, not removed: to remove takes longer, and a kill meanwhile would leave `last` without its target.
        target.rename(before)
    part.rename(target)
    sync(folder)  # before the links: they must never point to a name that a power cut has undone
    _link(folder / "last", target)
    if best:
        _link(folder / "best", target)
    sync(folder)  # before older checkpoints go: the links must not still point to one of them
    _prune(folder, keep)
    return target


def _sync(folder: Path) -> None:
    """Wait until the files of a folder, and their names, are on the disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in network.state_dict().items()}


def _link(link: Path, target: Path) -> None:
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    part.replace(link)


def _prune(folder: Path, keep: int) -> None:
    kept = {link.resolve() for name in ("last", "best") if (link := folder / name).exists()}
    for old in checkpoints(folder.parent)[:-keep]:
        if old.resolve() not in kept:
            shutil.rmtree(old)
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = (run / CHECKPOINTS).glob("step-*")
    return sorted((p for p in found if _STEP.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def remember_shards(run: Path, config: RunConfig) -> None:
    """Record what the training shards of a run are, once: later commands need it even if the shards were removed."""
    if (run / SHARDS).exists():
        return
    named = [one.shards for one in config.data.train]
    folders = dict.fromkeys(Path(one) for one in named if isinstance(one, str))
    manifests = {str(folder): Manifest.load(folder) for folder in folders if (folder / MANIFEST).is_file()}
    if manifests:
        known = ("dataset", "variant", "licence", "publishable", "crop", "image")
        write_json(run / SHARDS, {name: {key: getattr(m, key) for key in known} for name, m in manifests.items()})


def remember_training(run: Path, labels: Mapping[str, Sequence[int]], faces: Mapping[str, float]) -> None:
    """Record what a run is trained on, once: results on other datasets depend on it (:class:`TrainedOn`).

    Args:
        run: folder.
        labels: for ``emotion`` and ``direction``, how many training samples each class has.
        faces: see :class:`TrainedOn`.
    """
    if not (run / TRAINED_ON).exists():
        named = {head: dict(zip(_CLASS_NAMES[head], counts, strict=True)) for head, counts in labels.items()}
        write_json(run / TRAINED_ON, {"labels": named, "faces": dict(faces)})


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a run is trained on.

    Attributes:
        classes: for ``emotion`` and ``direction``, the classes with training samples; a head is missing if unknown.
        faces: how large they are in their pictures (:func:`hpe.data.face_sizes.face_shares`); empty if unknown.
    """

    classes: Mapping[str, tuple[int, ...]]
    faces: Mapping[str, float]

    @classmethod
    def load(cls, run: Path) -> Self:
        """What the folder of a run records; for runs of older versions, what the manifests of their shards contain.

        Raises:
            UserError: the record is damaged.
        """
        path = run / TRAINED_ON
        if not path.is_file():
            return cls(_classes_of_manifests(run), {})
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            classes = {
                head: tuple(i for i, name in enumerate(_CLASS_NAMES[head]) if int(counts.get(name, 0)) > 0)
                for head, counts in raw["labels"].items()
            }
            return cls(classes, {str(basis): float(share) for basis, share in raw["faces"].items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); expected what `hpe train` wrote there") from error


def _classes_of_manifests(run: Path) -> dict[str, tuple[int, ...]]:
    """The emotions of a run's training shards; none where a manifest is gone or does not count them."""
    found: set[int] = set()
    try:
        for one in load_config(run).data.train:
            if not isinstance(one.shards, str):
                return {}
            manifest = Manifest.load(Path(one.shards))
            splits = [one.split] if one.split else list(manifest.splits)
            counted = [manifest.counts["emotion"][split] for split in splits]
            found |= {i for i, name in enumerate(EMOTIONS) if any(of_split.get(name) for of_split in counted)}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}
    return {"emotion": tuple(sorted(found))} if found else {}


def crop_rules(run: Path) -> frozenset[CropRule]:
    """The crop rules of the images that a run is trained on, as far as they are known.

    Raises:
        UserError: the run's record of its shards is damaged.
    """
    if not (run / SHARDS).is_file():
        return frozenset()
    try:
        recorded = json.loads((run / SHARDS).read_text(encoding="utf-8"))
        rules = {one["crop"] for one in recorded.values()}
        return frozenset(CropRule.parse(rule) for rule in rules)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{run / SHARDS}: damaged ({error}); expected what `hpe train` wrote there") from error


def recipes(run: Path) -> frozenset[Recipe]:
    """How the images that a run is trained on were made; empty unless that is known of all of them.

    Raises:
        UserError: the run's record of its shards is damaged.
    """
    rules = crop_rules(run)
    if not rules:
        return frozenset()
    recorded = json.loads((run / SHARDS).read_text(encoding="utf-8"))
    found = [_recipe(CropRule.parse(one["crop"]), one.get("image")) for one in recorded.values()]
    return frozenset(one for one in found if one is not None) if None not in found else frozenset()


def _recipe(crop: CropRule, image: Any) -> Recipe | None:
    match image:
        case {"encoding": "original"}:
            return Recipe(None, 0, grey=False, quality=0)
        case {"encoding": "jpeg", "size": int(size), "quality": int(quality), "colour": "grey" | "rgb" as colour}:
            return Recipe(crop, size, colour == "grey", quality)
    return None  # an older hpe recorded only the rule, or the manifest lacks it


def load_config(run: Path) -> RunConfig:
    """The resolved config of a run folder; one from before configs held ``model.mean`` was trained with ImageNet's.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: no {CONFIG} here; expected a run folder that `hpe train` wrote")
    config = load(run / CONFIG, RunConfig)
    return config if config.model.mean is not None else _normalised_by(config, MEAN, STD)


def find_checkpoint(run: Path, which: str = "best") -> Path:
    """A checkpoint by ``best`` (``last`` where no best was chosen yet), ``last``, or a step's folder name.

    Raises:
        UserError: there is none.
    """
    folder = run / CHECKPOINTS
    for name in (which, "last") if which == "best" else (which,):
        if (folder / name / "state.json").is_file():
            return (folder / name).resolve()
    names = [path.name for path in checkpoints(run)]
    if which in ("last", "best") and names:  # the link points to a checkpoint that was removed
        return folder / names[-1]
    raise UserError(
        f"{run}: no checkpoint {which!r}; "
        + (f"there are {', '.join(names)}" if names else "the run has saved none yet; run hpe train first")
    )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a checkpoint.

    Raises:
        UserError: damaged or missing.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(f"{path}: cannot read these weights ({str(error).splitlines()[0]})") from error


def weights_of(run: Path, which: str = "best") -> Path:
    """The weights file of a checkpoint: the averaged weights if the run has them.

    Raises:
        UserError: no such checkpoint.
    """
    checkpoint = find_checkpoint(run, which)
    averaged = checkpoint / "ema.safetensors"
    return averaged if averaged.is_file() else checkpoint / "model.safetensors"


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    with suppress(UserError):
        return find_checkpoint(run, "last")
    return None


def set_aside(run: Path) -> Path | None:
    """Rename an earlier run of this name to ``NAME.1``, ``NAME.2`` …; its new path, or None.

    Raises:
        UserError: the folder is not a run, or another process is training it.
    """
    if not run.exists() or not any(run.iterdir()):
        return None
    load_config(run)
    with locked(run / LOCK, taken(run)):
        return rename_aside(run)


def taken(run: Path) -> str:
    """The message when another process holds the lock of a run."""
    return f"{run}: another process is training this run; wait for it, or choose another folder (--run FOLDER)"
