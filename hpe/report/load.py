"""What a report reads: a run folder's config, learning curves, and evaluations."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Self

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.evaluate.gallery import read_faces
from hpe.metrics import SCHEMA, figures
from hpe.models.run_folder import TrainedOn, outdated, refuse_missing

if TYPE_CHECKING:
    import pyarrow as pa

Curves = dict[str, dict[str, list[tuple[float, float]]]]
"""Name of a metric → split → (samples seen, value)."""
_HELD_OUT: Final = {"test": 0, "val": 1}
"""Splits that were not learned from, in the order of their results; others follow."""
_SECTIONS: Final = (
    "rows", "interval", "emotion", "protocols", "direction", "pose", "valence", "arousal", "cells", "by",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation: its metrics, their provenance, and its predictions if they were kept."""

    name: str
    figures: Mapping[str, Any]
    about: Mapping[str, Any]
    table: "pa.Table | None"
    faces: Mapping[tuple[str | None, str], bytes]
    outdated: str | None = None
    """In words, where its checkpoint is no longer the best, or the last."""

    def is_of(self, weights: Path) -> bool:
        """Whether it judges these weights, of a checkpoint of its run."""
        # By the names of checkpoint and file: the run may have been moved since.
        return PurePath(str(self.about.get("weights"))).parts[-2:] == weights.resolve().parts[-2:]

    @property
    def checkpoint(self) -> str:
        """The checkpoint that it judges, such as ``step-00012000``; empty if it does not say."""
        return PurePath(str(self.about.get("weights", ""))).parent.name

    @property
    def title(self) -> str:
        """What it judges, such as ``RAF-DB test``; its name where it does not say."""
        return str(self.about.get("title") or self.name)

    @property
    def subject(self) -> str:
        """A text that two results share if they judge the same samples, with the same labels and in the same way."""
        identity = self.about.get("identity")
        if isinstance(identity, dict):
            # Where the content is known, it does not matter where the files lie.
            known = {place for content, place in (("data", "paths"), ("tables", "pose")) if identity.get(content)}
            return json.dumps({key: text for key, text in identity.items() if key not in known}, sort_keys=True)
        return json.dumps([self.name, self.about.get("shards")])

    @property
    def trained_emotions(self) -> frozenset[int] | None:
        """The emotions that the run was trained on; None: unknown."""
        trained = self.about.get("trained_on")
        names = trained.get("emotion") if isinstance(trained, dict) else None
        return None if names is None else frozenset(i for i, name in enumerate(EMOTIONS) if name in names)

    def public(self) -> Self:
        """Without its faces, unless the terms of all its datasets are known and allow sharing them."""
        allowed = self.about.get("publishable") == ["True"]
        return self if allowed else replace(self, faces={})


@dataclass(frozen=True, slots=True)
class Run:
    """What a report needs of a run folder; ``unread`` lines of its log were damaged."""

    path: Path
    name: str
    config_text: str
    config: Mapping[str, Any]
    curves: Curves
    unread: int
    evaluations: tuple[Evaluation, ...]
    trained: TrainedOn


def read_run(folder: Path) -> Run:
    """Read a run folder; its results on test pictures come first, those with training pictures last.

    Raises:
        UserError: this is not a run folder, or a file in it is damaged.
    """
    refuse_missing(folder, "run or study", "; expected a folder that `hpe train` or `hpe study` wrote")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; expected a run folder that `hpe train` wrote")
    text, config = _config(folder / "config.yaml")
    curves, unread = _curves(folder / "metrics.jsonl")
    found = {path.stem for suffix in ("json", "parquet") for path in (folder / "evaluate").glob(f"[!.]*.{suffix}")}
    names = sorted(name for name in found if not name.endswith(".faces"))
    if not text and not curves and not names:
        if (folder / "study.yaml").is_file():
            raise UserError(f"{folder}: this study is not finished, so it has no tables; run `hpe study` again")
        raise UserError(
            f"{folder}: neither config.yaml, metrics.jsonl nor evaluate/ here; expected a run folder of `hpe train`"
        )
    read = (_dated(folder, _evaluation(folder / "evaluate", name)) for name in names)
    evaluations = tuple(sorted(read, key=lambda one: _HELD_OUT.get(str(one.about.get("split")), len(_HELD_OUT))))
    return Run(folder, folder.resolve().name, text, config, curves, unread, evaluations, TrainedOn.load(folder))


def read_predictions(path: Path) -> "pa.Table":
    """A predictions table.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run `hpe evaluate` again") from error


def _evaluation(folder: Path, name: str) -> Evaluation:
    predictions = folder / f"{name}.parquet"
    table = read_predictions(predictions) if predictions.is_file() else None
    read: Any = {}
    path = folder / f"{name}.json"
    if path.is_file():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); run `hpe evaluate` again") from error
    whole = isinstance(read, dict) and read.get("schema") == SCHEMA and all(key in read for key in _SECTIONS)
    if not whole and table is None:
        raise UserError(f"{path}: not the metrics of this version of hpe; run `hpe evaluate` again")
    about = read.get("about") if isinstance(read, dict) else None
    # Metrics of another version are computed again from the predictions.
    made = read if whole or table is None else figures(table)
    about = about if isinstance(about, dict) else {}
    return Evaluation(name, made, about, table, read_faces(folder / f"{name}.faces.parquet"))


def _dated(run: Path, one: Evaluation) -> Evaluation:
    """A result with a warning where its checkpoint is no longer the best, or the last: the run was trained on."""
    if (old := outdated(run, one.about)) is None:
        return one
    warnings = one.about.get("warnings")
    told = f"{old}: run `hpe evaluate` again"
    known = warnings if isinstance(warnings, list) else []
    return replace(one, about={**one.about, "warnings": [*known, told]}, outdated=told)


def _config(path: Path) -> tuple[str, Mapping[str, Any]]:
    import yaml

    if not path.is_file():
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            # A few nested aliases can expand to gigabytes.
            raise ValueError("YAML aliases (*name) are not allowed in configs; write the value out")
        config = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    return text, config if isinstance(config, dict) else {}


def _curves(path: Path) -> tuple[Curves, int]:
    """Values by samples seen; of several lines for one point the last counts; damaged lines are counted."""
    if not path.is_file():
        return {}, 0
    points: dict[str, dict[str, dict[float, float]]] = {}
    unread = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                samples, split = float(values["samples"]), str(values["split"])
            except (ValueError, KeyError, TypeError, RecursionError):
                unread += 1
                continue
            for name, value in values.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if name not in ("step", "samples", "split") and number and math.isfinite(value):
                    points.setdefault(name, {}).setdefault(split, {})[samples] = float(value)
    return {n: {s: sorted(of.items()) for s, of in splits.items()} for n, splits in points.items()}, unread
