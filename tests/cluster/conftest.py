"""Fixtures of the cluster tests, which need root, namespaces and Slurm; only ``make cluster`` runs them."""

import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.hosts import why_not
from tests.cluster.slurm import PROGRAMS, Slurm, environment

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CONFIG = """\
run: runs/first
data:
  train: [{shards: shards, split: train}]
  val: [{shards: shards, split: val}]
  size: 64
  workers: 1
augment: {flip: 0.5}
model: {backbone: tiny, heads: {emotion: {dropout: 0.2}, pose: {kind: bins66, alpha: 0.01}}}
train: {batch: 32, epochs: 16, learning_rate: 4e-3, precision: fp32, checkpoint_steps: 20, validate_epochs: 8}
"""
PACK = "pack synthetic {} --size 64 --option count=400 --option people=40 --workers 1"
_TABLE = pytest.StashKey[list[tuple[str, ...]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the cluster tests out unless they are asked for: they take minutes and start daemons."""
    if "cluster" in config.option.markexpr:
        return
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if not item.path.is_relative_to(HERE)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what happened, as a table for docs/clusters.md."""
    if rows := config.stash.get(_TABLE, []):
        terminalreporter.write_line("\n| event | seconds | outcome | bytes equal |\n|---|---|---|---|")
        for row in rows:
            terminalreporter.write_line(f"| {' | '.join(row)} |")


class Events:
    """What was done to the cluster, how long it took to answer, and whether the files are those of a quiet run."""

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self._rows = rows

    def add(self, event: str, seconds: float, outcome: str, equal: bool | None = None) -> None:
        """Add a row; ``equal`` is None where no bytes are compared."""
        self._rows.append((event, f"{seconds:.0f}", outcome, "" if equal is None else "yes" if equal else "NO"))


@pytest.fixture(scope="session")
def events(request: pytest.FixtureRequest) -> Events:
    return Events(request.config.stash.setdefault(_TABLE, []))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every host sees, with shards of rendered heads, a config, and ``hpe`` in ``bin``."""
    if why := why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("cluster")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged asks for it
    program = folder / "bin" / "hpe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m hpe "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "run.yaml").write_text(CONFIG)
    subprocess.run(
        [program, *shlex.split(PACK.format("shards"))],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def slurm(place: Path) -> Iterator[Slurm]:
    if why := why_not(*PROGRAMS):
        pytest.skip(why)
    with Slurm(place, environment(place)) as started:
        yield started


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The bytes of all files that fit, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def weights(run: Path) -> dict[str, bytes]:
    """The last checkpoint's weights and state."""
    return files(run, "checkpoints/last/*.safetensors", "checkpoints/last/state.json")


def slow_disk(place: Path) -> Path:
    """A folder for PYTHONPATH that makes the second checkpoint of a process slow."""
    folder = place / "slow"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "fsync, calls = os.fsync, []\n"
        "def slow(number):\n"
        "    calls.append(number)\n"
        "    if len(calls) == 12: time.sleep(25)\n"
        "    fsync(number)\n"
        "os.fsync = slow\n"
    )
    return folder


def step(run: Path) -> int:
    """The number of the last checkpoint's step; 0 before the first."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return int(names[-1].removeprefix("step-")) if names else 0


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Seconds of the block, as the only item of the list."""
    seconds: list[float] = []
    start = time.monotonic()
    yield seconds
    seconds.append(time.monotonic() - start)
