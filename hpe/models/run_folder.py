"""Run folders (contract C5): the config, what the run is trained on, who trains in one; for checkpoints see
``hpe.models.checkpoints``.

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

import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final, Self

from hpe.config.recipes import way_to
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import dump, load, parse
from hpe.core.errors import UserError
from hpe.core.files import leftovers, locked, rename_aside, write_json, write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.nearest import did_you_mean
from hpe.data.crops import CropRule
from hpe.data.recipe import Recipe
from hpe.data.shards import MANIFEST, Manifest

CONFIG: Final = "config.yaml"
SHARDS: Final = "shards.json"
TRAINED_ON: Final = "trained_on.json"
CHECKPOINTS: Final = "checkpoints"
STATE: Final = "state.json"
"""Of a finished checkpoint."""
PRETRAINED: Final = "config.json"
"""Of a folder of ``save_pretrained``: config, records and terms in one file (:mod:`hpe.share`)."""
FORMAT: Final = 1
METRICS: Final = "metrics.jsonl"
MESSAGES: Final = "log.txt"
TENSORBOARD: Final = "tensorboard"
LOCK: Final = ".lock"
DONE_SHARE: Final = 0.999
"""Fraction of the epochs at which a training counts as finished: its last step may end a little earlier."""
_LARGEST_CONFIG: Final = 1 << 20
_LONGEST_NAME: Final = 80
_LARGEST_SIDE: Final = 4096
_MOST_NAMED: Final = 3
_CLASS_NAMES: Final = {"emotion": EMOTIONS, "direction": DIRECTIONS}


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a run is trained on: results on other datasets depend on it.

    Attributes:
        labels: for ``emotion`` and ``direction``, training samples per class; a head is missing if unknown.
        faces: how large they are in their pictures (:func:`hpe.data.face_sizes.face_shares`); empty if unknown.
    """

    labels: Mapping[str, tuple[int, ...]]
    faces: Mapping[str, float]

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """The classes of each head that have training samples."""
        return {head: tuple(i for i, count in enumerate(counts) if count) for head, counts in self.labels.items()}

    @classmethod
    def load(cls, run: Path) -> Self:
        """What the folder of a run records; nothing is known of a run without a record.

        Raises:
            UserError: the record is damaged.
        """
        path = run / TRAINED_ON
        try:
            if (raw := _recorded(run, TRAINED_ON)) is None:
                return cls({}, {})
            labels = {
                head: tuple(int(counts.get(name, 0)) for name in _CLASS_NAMES[head])
                for head, counts in raw["labels"].items()
            }
            faces = {str(basis): float(share) for basis, share in raw["faces"].items()}
            known = [*itertools.chain(*labels.values()), *faces.values()]
            if not all(0 <= number < math.inf for number in known):
                raise ValueError("a number below 0, or none")
            return cls(labels, faces)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({error!r}); expected what `hpe train` wrote there") from error

    def dump(self) -> dict[str, Any]:
        """As the file of a run folder holds it."""
        named = {head: dict(zip(_CLASS_NAMES[head], counts, strict=True)) for head, counts in self.labels.items()}
        return {"labels": named, "faces": dict(self.faces)}


def record(run: Path, config: RunConfig, trained_on: Callable[[], TrainedOn]) -> None:
    """Write the resolved config of a run; at its first start also what it is trained on.

    Later commands need that even if the shards were removed. A later start keeps the record of the first.

    Args:
        run: folder.
        config: with nothing left open.
        trained_on: called at the first start only, as it reads the shards.
    """
    once: dict[str, Any] = {}
    if not (run / SHARDS).exists() and (known := _manifests(config)):
        once[SHARDS] = known
    if not (run / TRAINED_ON).exists():
        once[TRAINED_ON] = trained_on().dump()
    write_text(run / CONFIG, config.dump())  # first: a folder without it counts as something else
    for name, content in once.items():
        write_json(run / name, content)


def _manifests(config: RunConfig) -> dict[str, dict[str, Any]]:
    """What the manifests of the training shards state about the images; only folders on this machine have one here."""
    named = [one.shards for one in config.data.train]
    folders = dict.fromkeys(Path(one) for one in named if isinstance(one, str))
    manifests = {str(folder): Manifest.load(folder) for folder in folders if (folder / MANIFEST).is_file()}
    known = ("dataset", "variant", "licence", "publishable", "crop", "image")
    return {name: {key: getattr(manifest, key) for key in known} for name, manifest in manifests.items()}


def crop_rules(run: Path) -> frozenset[CropRule]:
    """The crop rules of the images that a run is trained on, as far as they are known.

    Raises:
        UserError: the run's record of its shards is damaged.
    """
    try:
        rules = {one["crop"] for one in (_recorded(run, SHARDS) or {}).values()}
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
    recorded = _recorded(run, SHARDS) or {}
    found = [_recipe(CropRule.parse(one["crop"]), one.get("image")) for one in recorded.values()]
    return frozenset(one for one in found if one is not None) if None not in found else frozenset()


def _recipe(crop: CropRule, image: Any) -> Recipe | None:
    match image:
        case {"encoding": "original"}:
            return Recipe(None, 0, grey=False, quality=0)
        case {"encoding": "jpeg", "size": int(size), "quality": int(quality), "colour": "grey" | "rgb" as colour}:
            if not (1 <= size <= _LARGEST_SIDE and 1 <= quality <= 100):
                raise UserError(f"{SHARDS}: damaged: images of {size:,} pixels and quality {quality:,}")
            return Recipe(crop, size, colour == "grey", quality)
    return None  # an older hpe recorded only the rule, or the manifest lacks it


def _recorded(run: Path, name: str) -> Any:
    """A record of a run's folder, or of one of ``save_pretrained``; None: there is none."""
    if (run / name).is_file():
        return json.loads((run / name).read_text(encoding="utf-8"))
    known = pretrained(run)
    return None if known is None else known.get(name.removesuffix(".json"))


def training_sets(run: Path) -> list[Mapping[str, Any]]:
    """What is recorded of each dataset that a run is trained on: ``dataset``, ``licence``, ``publishable`` ….

    Raises:
        UserError: the record is damaged.
    """
    try:
        return [dict(one) for one in (_recorded(run, SHARDS) or {}).values()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{run / SHARDS}: damaged ({error}); expected what `hpe train` wrote there") from error


def pretrained(folder: Path) -> Mapping[str, Any] | None:
    """What ``config.json`` of a folder of ``save_pretrained`` holds; None: it is no such folder.

    Raises:
        UserError: the file is damaged, or of a version of hpe that this one does not know.
    """
    path = folder / PRETRAINED
    if (folder / CONFIG).is_file() or not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"more than {_LARGEST_CONFIG:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({str(error)[:200]}); expected what hpe share wrote") from error
    if not isinstance(found, dict) or found.get("library_name") != "hpe":
        raise UserError(f"{path}: is not of hpe; expected a folder that hpe share or save_pretrained wrote")
    if found.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {found.get('format')!r}, this hpe reads {FORMAT}; install the hpe that wrote it"
        )
    fits = all(isinstance(found.get(name), dict) for name in ("config", "shards", "trained_on"))
    if not fits or not isinstance(found.get("permitted"), str | None):
        raise UserError(f"{path}: damaged; expected config, shards and trained_on, as hpe share writes them")
    return found


def name_of(run: Path) -> str:
    """The name of a run: its folder's; of a folder of ``save_pretrained``, which may be named by a hash, its run's.

    Raises:
        UserError: its config is damaged.
    """
    if pretrained(run) is None:
        return run.resolve().name
    named = "".join(letter for letter in Path(load_config(run).run).name if letter.isprintable())
    return named[:_LONGEST_NAME] or run.resolve().name


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, or a folder of ``save_pretrained``, which commands read as one."""
    return (path / CONFIG).is_file() or (path / PRETRAINED).is_file()


def outdated(run: Path, about: Mapping[str, Any]) -> str | None:
    """In words, that a result is not of the run's present checkpoint; None: it is, or it does not say.

    Args:
        run: folder.
        about: the facts of a result of ``hpe evaluate``.
    """
    identity, named = about.get("identity"), about.get("weights")
    which = identity.get("checkpoint") if isinstance(identity, dict) else None
    if named is None or which not in ("best", "last") or not (link := run / CHECKPOINTS / which).is_dir():
        return None
    judged, now = PurePath(str(named)).parent.name, link.resolve().name
    return None if judged == now else f"{judged} was judged, and the {which} checkpoint is now {now}"


def logged(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; what a kill has left half-written is left out."""
    path = run / METRICS
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                yield values


def reached_epoch(run: Path) -> float | None:
    """Where the log of a run ends; None: it has none."""
    return max((line["epoch"] for line in logged(run) if is_finite(line.get("epoch"))), default=None)


def is_finite(value: object) -> bool:
    """Whether a value of a foreign file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def refuse_missing(path: Path, what: str, expected: str = "") -> None:
    """Refuse a path where nothing is, with what was probably meant.

    Raises:
        UserError: nothing is there.
    """
    if not path.exists():
        raise UserError(f"{path}: no such {what}{expected}{did_you_mean(path)}{way_to(path)}")


def refuse_absent(path: Path) -> None:
    """Refuse a path that cannot lead to a trained network, before seconds go by while torch is loaded.

    Raises:
        UserError: nothing is there, or a folder of shards or of runs, or a run without a checkpoint.
    """
    refuse_missing(
        path,
        "run or estimator",
        "; expected a run folder, an estimator's YAML, an ONNX file with a YAML beside it, Hopenet weights, or a "
        "landmark model's folder",
    )
    if is_run(path):
        if not (path / CONFIG).is_file() or any((path / CHECKPOINTS).glob(f"[!.]*/{STATE}")):
            return
        if _is_in_training(path):
            raise UserError(
                f"{path}: this run has no checkpoint yet; another process is training it: wait for the first one "
                f"({path / MESSAGES} shows how far it is)"
            )
        raise UserError(
            f"{path}: this run is not trained yet: it has no checkpoint; train it with `hpe train "
            f"{shlex.quote(str(path / CONFIG))}`"
        )
    if (path / MANIFEST).is_file():
        raise UserError(
            f"{path}: shards that `hpe pack` wrote; expected a run folder or an estimator here. "
            "Were two arguments swapped?"
        )
    if path.is_dir() and (runs := [str(one.parent) for one in sorted(path.glob(f"*/{CONFIG}"))]):
        more = ", …" if len(runs) > _MOST_NAMED else ""
        raise UserError(f"{path}: holds runs, and is none; give one of them: {', '.join(runs[:_MOST_NAMED])}{more}")


def _is_in_training(run: Path) -> bool:
    if not (run / LOCK).is_file():
        return False
    try:
        with locked(run / LOCK, taken(run)):
            return False
    except UserError:
        return True
    except OSError:  # somebody else's run
        return False


def load_config(run: Path) -> RunConfig:
    """The resolved config of a run folder, or of a folder of ``save_pretrained``.

    Raises:
        UserError: neither of them.
    """
    if (known := pretrained(run)) is not None:
        try:
            return parse(dump(known["config"]), f"{run / PRETRAINED}: config", RunConfig)
        except RecursionError as error:
            raise UserError(f"{run / PRETRAINED}: config: damaged: its values are nested too deeply") from error
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: no {CONFIG} here; expected a run folder that `hpe train` wrote")
    return load(run / CONFIG, RunConfig)


def set_aside(run: Path) -> Path | None:
    """Rename an earlier run of this name to ``NAME.1``, ``NAME.2`` …; its new path, or None if nothing has begun there.

    Raises:
        UserError: the folder is not a run, or another process is training it.
    """
    if not run.exists() or not any(strangers_in(run)):
        return None
    load_config(run)
    with locked(run / LOCK, taken(run)):
        return rename_aside(run)


def strangers_in(run: Path) -> Iterator[Path]:
    """What a folder holds beside the traces of a start that was killed before it wrote the config."""
    traces = {run / LOCK, *leftovers(run / CONFIG)}
    return (path for path in run.iterdir() if path not in traces)


def taken(run: Path) -> str:
    """The message when another process holds the lock of a run."""
    return f"{run}: another process is training this run; wait for it, or choose another folder (--run FOLDER)"
