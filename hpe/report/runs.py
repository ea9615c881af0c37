"""``hpe runs``: a list of runs with their progress, their metrics, and the settings in which they differ."""

import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hpe.config.run import FREE, RunConfig
from hpe.config.strict_yaml import load
from hpe.core.console import say
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import open_regular
from hpe.core.nearest import did_you_mean
from hpe.metrics import SCHEMA
from hpe.metrics.markdown import headline
from hpe.models.run_folder import CHECKPOINTS, CONFIG, METRICS, is_finite, logged, outdated
from hpe.report.tables import leaves

SHOWN: Final = ("emotion/accuracy", "emotion/macro_f1", "direction/accuracy", "direction/macro_f1", "pose/mae",
                "pose/geodesic", "affect/rmse")  # fmt: skip
"""Validation metrics that the list shows."""
RUNS: Final = Path("runs")
_UNLIMITED: Final = 1_000_000
_MOST_COLUMNS: Final = 4
"""Runs whose settings are shown side by side: with more, 80 characters are too few for their values."""
_MOST_ROWS: Final = 60
_MOST_VALUES: Final = 6
_HEADS: Final = "model.heads."
_IGNORED: Final = (*FREE, "run")
"""Settings that do not make two runs different."""


@dataclass(frozen=True)
class RunLine:
    """What the list shows of a run.

    Attributes:
        epoch: where its log ends.
        epochs: where the training is to end.
        chosen_by: the metric that chooses the best checkpoint.
        best: its value at the best checkpoint; None before there is one.
        best_samples: samples seen until then.
        figures: validation metrics at the best checkpoint, or the last ones if there is none.
        evaluations: by name, the headline metrics as texts.
        settings: the config's values by path.
    """

    name: str
    epoch: float
    epochs: float
    chosen_by: str
    best: float | None
    best_samples: int | None
    figures: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among some folders and below them, sorted by name.

    Raises:
        UserError: a folder does not exist, or there is no run.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError(
            f"{', '.join(map(str, missing))}: no such folder; expected run folders, or folders that contain run folders"
            + did_you_mean(missing[0])
        )
    found: dict[Path, None] = {}
    for folder in folders:
        for here, below, files in os.walk(folder):
            below.sort()
            below[:] = [name for name in below if not name.startswith(".")]
            if CONFIG in files and Path(here, CONFIG).is_file() and (METRICS in files or CHECKPOINTS in below):
                found[Path(here)] = None
                below.clear()
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no run here; `hpe train` makes them")
    return list(found)


def read_line(run: Path) -> RunLine:
    """What the list shows of a run; a half-written line of its log is ignored.

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
    for line in logged(run):
        epoch = max(epoch, line["epoch"]) if is_finite(line.get("epoch")) else epoch
        if line.get("split") == "val" and (at is None or line.get("samples") == at or not figures):
            figures = {name: float(line[name]) for name in SHOWN if is_finite(line.get(name))}
    settings = {
        path: json.dumps(value)
        for path, value in leaves(config.model_dump(mode="json"))
        if path not in _IGNORED and (not path.startswith(_HEADS) or value is not None)
    }
    settings[_HEADS.rstrip(".")] = ", ".join(config.model.heads.on)
    made = {p.stem: _json(p) for p in sorted((run / "evaluate").glob("[!.]*.json"))}
    evaluations = {
        _title(run, name, figures): _headline(figures)
        for name, figures in made.items()
        if figures.get("schema") == SCHEMA
    }
    return RunLine(str(run), epoch, config.train.epochs, config.selection, best, at, figures, evaluations, settings)


def _headline(figures: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {title: text for title, text, _ in headline(figures)}
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return {}  # not written by hpe evaluate: its row shows dashes


def _title(run: Path, name: str, figures: Mapping[str, Any]) -> str:
    """What a result is on, its name where it does not say; and whether the run was trained on since."""
    about = figures.get("about")
    if not isinstance(about, dict):
        return name
    old = outdated(run, about)
    return str(about.get("title", name)) + (f" (old: {old})" if old else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            read = json.loads(stream.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def differences(lines: Sequence[RunLine]) -> dict[str, dict[str, list[str]]]:
    """The settings that differ: for each path, which runs have which value (``–``: the setting is absent).

    A head's settings are compared only among the runs that have the head.
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


def to_text(lines: Sequence[RunLine], width: int | None = None) -> str:
    """The list for people, as tables that name each run by its number in the first one.

    Args:
        lines: the runs.
        width: characters of a terminal's line, at which cells are folded; None: one line per row, for grep and scripts.
    """
    numbered = list(enumerate(lines, 1))
    rows = [
        [
            str(number),
            line.name,
            f"{line.epoch:.3g} of {line.epochs:.3g}",
            "–" if line.best is None else f"{line.best:.4g}",
            line.chosen_by,
        ]
        for number, line in numbered
    ]
    parts = [_table(["#", "run", "epochs", "best", "chosen by"], rows, width)]
    if shown := [name for name in SHOWN if any(name in line.figures for line in lines)]:
        rows = [
            [str(number), *(f"{line.figures[name]:.4g}" if name in line.figures else "–" for name in shown)]
            for number, line in numbered
        ]
        titles = shown if width is None else [name.replace("/", "\n") for name in shown]
        parts.append(_table(["#", *titles], rows, width))
    # Values with intervals are long: a row for each fits every terminal, where a column for each would not.
    rows = [
        [evaluation, title, str(number), line.evaluations[evaluation].get(title, "–")]
        for evaluation in dict.fromkeys(name for line in lines for name in line.evaluations)
        for title in dict.fromkeys(title for line in lines for title in line.evaluations.get(evaluation, {}))
        for number, line in numbered
        if evaluation in line.evaluations
    ]
    if rows:
        parts.append(_table(["evaluated on", "metric", "#", "value"], rows, width))
    if len(lines) > 1:
        parts.append(_settings(lines, width))
    return "\n\n".join(parts)


def _settings(lines: Sequence[RunLine], width: int | None) -> str:
    """The settings that differ, of a few runs with a column per run, of many with a row per value."""
    found = differences(lines)
    if not found:
        return "Their configs do not differ."
    number_of = {line.name: number for number, line in enumerate(lines, 1)}
    if len(lines) <= _MOST_COLUMNS:
        head = ["setting", *map(str, number_of.values())]
        rows = [[path, *(line.settings.get(path, "–") for line in lines)] for path in found]
    else:
        head = ["setting", "value", "runs (#)"]
        rows = [row for path, values in found.items() for row in _value_rows(path, values, number_of)]
    if len(rows) <= _MOST_ROWS:
        return _table(head, rows, width)
    cut = sum(1 for row in rows[_MOST_ROWS:] if row[0])
    hint = f"… and {cut} more settings differ: name fewer runs (`hpe runs A B`), or write all of them with --json FILE"
    return f"{_table(head, rows[:_MOST_ROWS], width)}\n{textwrap.fill(hint, width) if width else hint}"


def _value_rows(path: str, values: Mapping[str, Sequence[str]], number_of: Mapping[str, int]) -> list[list[str]]:
    """A row per value of a setting with the runs that have it; the values beyond the first few share one row."""
    shown = [(value, [number_of[name] for name in names]) for value, names in values.items()]
    if len(shown) > _MOST_VALUES:
        rest = shown[_MOST_VALUES - 1 :]
        shown[_MOST_VALUES - 1 :] = [(f"… {len(rest)} more values", sorted(n for _, some in rest for n in some))]
    return [["" if at else path, value, _ranges(numbers)] for at, (value, numbers) in enumerate(shown)]


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in order, as ``1-3, 5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """A Markdown table whose cells are folded to the width, if there is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.MARKDOWN)
    for title in head:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(text)) for text in row))
    shown = io.StringIO()
    Console(file=shown, width=width or _UNLIMITED, color_system=None).print(table)
    return shown.getvalue().strip()


def _plain(text: str) -> str:
    """A text that can neither break a table nor control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")


def runs(folders: Sequence[Path] | None, json_file: Path | None = None) -> int:
    """Print the list of the runs below some folders, and write it as JSON if a file is given.

    Args:
        folders: run folders, or folders that contain run folders; None: ``runs/``, which may be missing or empty.
        json_file: where to write the list as JSON.

    Returns:
        The exit code: 1 if a run could not be read (it is named).

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
    print(to_text(lines, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    for problem in problems:
        say(f"runs: skipped: {problem}")
    if json_file is not None:
        from dataclasses import asdict

        from hpe.core.files import write_json

        write_json(json_file, {"runs": [asdict(line) for line in lines], "differences": differences(lines)})
    return EXIT_INCOMPLETE if problems else EXIT_OK
