"""``hpe runs``: runs side by side, with how far they are, their figures, and the settings in which they differ."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hpe.config import FREE, RunConfig, load
from hpe.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.figures import SCHEMA
from hpe.figures.markdown import headline

CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"
SHOWN: Final = ("emotion/accuracy", "emotion/macro_f1", "direction/accuracy", "direction/macro_f1", "pose/mae",
                "pose/geodesic", "affect/rmse")  # fmt: skip
"""Validation figures that the list shows."""
RUNS: Final = Path("runs")
_HEADS: Final = "model.heads."
_SAME: Final = (*FREE, "run")


@dataclass(frozen=True)
class RunLine:
    """A run as far as the list tells of it.

    Attributes:
        epoch: where its log ends; ``epochs``: where it is to end.
        best: the figure that its best checkpoint was chosen by, and the step of that; None before there is one.
        figures: validation figures at the best checkpoint, or the last ones where none was chosen.
        evaluations: by name, the headline figures as texts.
        settings: the config's values by path.
    """

    name: str
    epoch: float
    epochs: float
    best: float | None
    best_samples: int | None
    figures: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders that are named, or lie somewhere below what is named, in order of names.

    Raises:
        UserError: a folder is not there, or there is no run.
    """
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise UserError(f"{', '.join(missing)}: no such folder; expected run folders, or a folder that holds some")
    found: dict[Path, None] = {}
    for folder in folders:
        for here, below, files in os.walk(folder):
            below.sort()
            below[:] = [name for name in below if not name.startswith(".")]
            if CONFIG in files and (METRICS in files or CHECKPOINTS in below):
                found[Path(here)] = None
                below.clear()
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no run here; `hpe train` makes them")
    return list(found)


def read_line(run: Path) -> RunLine:
    """What the list tells of a run; a half-written line of its log is passed over.

    Raises:
        UserError: its config cannot be read.
    """
    config = load(run / CONFIG, RunConfig)
    state: dict[str, Any] = {}
    for name in ("best", "last"):
        if not state:
            state = _json(run / CHECKPOINTS / name / "state.json")
    best = state.get("best") if isinstance(state.get("best"), float) else None
    at = state.get("best_samples") if best is not None else None
    epoch, figures = 0.0, {}
    for said in _lines(run / METRICS):
        epoch = max(epoch, said["epoch"]) if _finite(said.get("epoch")) else epoch
        if said.get("split") == "val" and (at is None or said.get("samples") == at or not figures):
            figures = {name: float(said[name]) for name in SHOWN if _finite(said.get(name))}
    settings = {
        path: value
        for path, value in _leaves(config.model_dump(mode="json"))
        if path not in _SAME and (not path.startswith(_HEADS) or value != "null")
    }
    settings[_HEADS.rstrip(".")] = ", ".join(config.model.heads.on)
    made = {p.stem: _json(p) for p in sorted((run / "evaluate").glob("[!.]*.json"))}
    evaluations = {
        name: {title: text for title, text, _ in headline(figures)}
        for name, figures in made.items()
        if figures.get("schema") == SCHEMA
    }
    return RunLine(str(run), epoch, config.train.epochs, best, at, figures, evaluations, settings)


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(said, dict):
                yield said


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, json.dumps(value)


def differences(lines: Sequence[RunLine]) -> dict[str, dict[str, list[str]]]:
    """The settings that differ: by path, which runs have which value (``–``: the setting is not there).

    A head's settings are compared among the runs that have it.
    """
    paths = dict.fromkeys(path for line in lines for path in line.settings)
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        values: dict[str, list[str]] = {}
        for line in lines:
            if path in line.settings or not path.startswith(_HEADS):
                values.setdefault(line.settings.get(path, "–"), []).append(line.name)
        if len(values) > 1:
            found[path] = values
    return found


def to_text(lines: Sequence[RunLine]) -> str:
    """The list for people: Markdown tables of equal columns."""
    shown = [name for name in SHOWN if any(name in line.figures for line in lines)]
    head = ["run", "epochs", "best", *shown]
    rows = [
        [
            line.name,
            f"{line.epoch:.3g} of {line.epochs:.3g}",
            "–" if line.best is None else f"{line.best:.4g}",
            *(f"{line.figures[name]:.4g}" if name in line.figures else "–" for name in shown),
        ]
        for line in lines
    ]
    parts = [_table(head, rows)]
    titles = list(dict.fromkeys(t for line in lines for of in line.evaluations.values() for t in of))
    if titles:
        evaluated = [
            [line.name, name, *(of.get(title, "–") for title in titles)]
            for line in lines
            for name, of in line.evaluations.items()
        ]
        parts.append(_table(["run", "evaluated on", *titles], evaluated))
    if len(lines) > 1:
        differing = [
            [path if first else "", value, ", ".join(names)]
            for path, values in differences(lines).items()
            for first, (value, names) in zip([True] + [False] * len(values), values.items(), strict=False)
        ]
        parts.append(_table(["setting", "value", "runs"], differing) if differing else "Their configs do not differ.")
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    plain = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[column]) for row in plain)) for column in range(len(head))]
    plain.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in plain
    )


def runs(folders: Sequence[Path] | None, json_file: Path | None = None) -> int:
    """Print the list of the runs below some folders; write it as JSON too where asked for.

    Args:
        folders: run folders, or folders that hold some; None: ``runs/``, where there may be none yet.
        json_file: where to write the list as JSON.

    Returns:
        The exit code: 1 when a run could not be read (it is named).

    Raises:
        UserError: no run can be read.
    """
    lines, problems = [], []
    try:
        found = find_runs(folders or [RUNS])
    except UserError:
        if folders:
            raise
        print(f"{RUNS}/: no run here yet; `hpe train` makes them")
        return EXIT_OK
    for run in found:
        try:
            lines.append(read_line(run))
        except UserError as error:
            problems.append(str(error))
    if not lines:
        raise UserError("\n".join(problems))
    print(to_text(lines))
    for problem in problems:
        print(f"runs: passed over: {problem}", file=sys.stderr, flush=True)
    if json_file is not None:
        from dataclasses import asdict

        from hpe.files import write_json

        write_json(json_file, {"runs": [asdict(line) for line in lines], "differences": differences(lines)})
    return EXIT_INCOMPLETE if problems else EXIT_OK
