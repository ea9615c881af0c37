"""``hpe runs``: runs side by side, with how far they are, their figures, and the settings in which they differ."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hpe.config import FREE, RunConfig, load
from hpe.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.figures import SCHEMA
from hpe.figures.markdown import headline
from hpe.files import open_regular

CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"
SHOWN: Final = ("emotion/accuracy", "emotion/macro_f1", "direction/accuracy", "direction/macro_f1", "pose/mae",
                "pose/geodesic", "affect/rmse")  # fmt: skip
"""Validation figures that the list shows."""
RUNS: Final = Path("runs")
_PAPER: Final = (120, 40)
"""Columns and lines where there is no terminal."""
_MOST_ROWS: Final = 60
_MOST_VALUES: Final = 6
_HEADS: Final = "model.heads."
_SAME: Final = (*FREE, "run")


@dataclass(frozen=True)
class RunLine:
    """A run as far as the list tells of it.

    Attributes:
        epoch: where its log ends; ``epochs``: where it is to end.
        chosen_by: name of the figure that chooses the best checkpoint.
        best: that figure at it, and the samples seen until it; None before there is one.
        figures: validation figures at the best checkpoint, or the last ones where none was chosen.
        evaluations: by name, the headline figures as texts.
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
            if CONFIG in files and Path(here, CONFIG).is_file() and (METRICS in files or CHECKPOINTS in below):
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
    evaluations = {name: _headline(figures) for name, figures in made.items() if figures.get("schema") == SCHEMA}
    return RunLine(str(run), epoch, config.train.epochs, config.selection, best, at, figures, evaluations, settings)


def _headline(figures: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {title: text for title, text, _ in headline(figures)}
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return {}  # not what hpe evaluate wrote: its row holds dashes


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            read = json.loads(stream.read())
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


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


def to_text(lines: Sequence[RunLine], width: int) -> str:
    """The list for people: Markdown tables of equal columns, which name each run by its number in the first.

    Args:
        lines: the runs.
        width: characters of a line; a table that is wider goes on below itself.
    """
    shown = [name for name in SHOWN if any(name in line.figures for line in lines)]
    head = ["#", "run", "epochs", "best", "chosen by", *shown]
    rows = [
        [
            str(number),
            line.name,
            f"{line.epoch:.3g} of {line.epochs:.3g}",
            "–" if line.best is None else f"{line.best:.4g}",
            line.chosen_by,
            *(f"{line.figures[name]:.4g}" if name in line.figures else "–" for name in shown),
        ]
        for number, line in enumerate(lines, 1)
    ]
    parts = [_table(head, rows, width)]
    titles = list(dict.fromkeys(t for line in lines for of in line.evaluations.values() for t in of))
    if titles:
        evaluated = [
            [str(number), name, *(of.get(title, "–") for title in titles)]
            for number, line in enumerate(lines, 1)
            for name, of in line.evaluations.items()
        ]
        parts.append(_table(["#", "evaluated on", *titles], evaluated, width))
    if len(lines) > 1:
        parts.append(_settings(lines, width) or "Their configs do not differ.")
    return "\n\n".join(parts)


def _settings(lines: Sequence[RunLine], width: int) -> str:
    """The settings that differ: a column a run where that fits, else a row a value; empty where none differ."""
    found = differences(lines)
    numbers = {line.name: number for number, line in enumerate(lines, 1)}
    head = ["setting", *map(str, numbers.values())]
    rows = []
    for path, values in found.items():
        shorts = _shorts(list(values), width // 3)
        value_of = {name: short for short, names in zip(shorts, values.values(), strict=True) for name in names}
        rows.append([path, *(value_of.get(name, "–") for name in numbers)])
    if found and sum(_widths([head, *rows])) + 3 * len(head) + 1 > width:
        rows = []
        for path, values in found.items():
            shorts = _shorts(list(values), width // 4)
            told = [[short, [numbers[n] for n in of]] for short, of in zip(shorts, values.values(), strict=True)]
            if len(told) > _MOST_VALUES:
                rest = told[_MOST_VALUES - 1 :]
                told[_MOST_VALUES - 1 :] = [[f"… {len(rest)} more values", sorted(n for _, some in rest for n in some)]]
            rows += [["" if at else path, *cells] for at, cells in enumerate(told)]
        left = width - sum(_widths([row[:2] for row in rows])) - 10
        head, rows = ["setting", "value", "runs (#)"], [[path, value, _ranges(of, left)] for path, value, of in rows]
    if not rows:
        return ""
    if len(rows) <= _MOST_ROWS:
        return _table(head, rows, width)
    cut = sum(1 for row in rows[_MOST_ROWS:] if row[0])
    hint = f"… and {cut} more settings differ: name fewer runs (`hpe runs A B`), or write all of them with --json FILE"
    return f"{_table(head, rows[:_MOST_ROWS], width)}\n{textwrap.fill(hint, width)}"


def _shorts(values: Sequence[str], longest: int) -> list[str]:
    """Texts without their middle; where two would look alike, without the start that all share."""
    start = longest // 3
    shorts = [v if len(v) <= longest else f"{v[:start]}…{v[start + 1 - longest :]}" for v in values]
    if len(set(shorts)) == len(values):
        return shorts
    same = next((at for at, found in enumerate(zip(*values, strict=False)) if len(set(found)) > 1), 0)
    return [v if len(v) <= longest else f"…{v[same : same + longest - 2]}…" for v in values]


def _ranges(numbers: Sequence[int], longest: int) -> str:
    """Whole numbers in order, as ``1-3, 5``; what is longer is cut and counted."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    told = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    text = ", ".join(told)
    if len(text) <= longest:
        return text
    end = f" … ({len(numbers)} runs)"
    while len(told) > 1 and len(", ".join(told)) + len(end) > longest:
        told.pop()
    return ", ".join(told) + end


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A Markdown table; columns that do not fit into the width follow below, beside the first one again."""
    plain = [[_plain(text) for text in row] for row in [head, *rows]]
    widths = _widths(plain)
    blocks, taken = [[0]], widths[0] + 4
    for column in range(1, len(head)):
        if len(blocks[-1]) > 1 and taken + widths[column] + 3 > width:
            blocks.append([0])
            taken = widths[0] + 4
        blocks[-1].append(column)
        taken += widths[column] + 3
    plain.insert(1, ["-" * width for width in widths])
    return "\n\n".join(
        "\n".join("| " + " | ".join(row[c].ljust(widths[c]) for c in block) + " |" for row in plain) for block in blocks
    )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(3, *map(len, column)) for column in zip(*rows, strict=True)]


def _plain(text: str) -> str:
    """A text that can neither break a table nor steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")


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
    print(to_text(lines, shutil.get_terminal_size(_PAPER).columns))
    for problem in problems:
        print(f"runs: passed over: {problem}", file=sys.stderr, flush=True)
    if json_file is not None:
        from dataclasses import asdict

        from hpe.files import write_json

        write_json(json_file, {"runs": [asdict(line) for line in lines], "differences": differences(lines)})
    return EXIT_INCOMPLETE if problems else EXIT_OK
