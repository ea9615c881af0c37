"""Fixtures for every test: seeds, the real data beside the checkout where there is any, no network."""

import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HPE_QUIET", "1")
# The tests run side by side: threads of each would wait for those of the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numpy as np
import pytest

SHARED = Path(os.environ.get("HPE_SHARED", Path(__file__).parents[2] / "shared"))


HOME = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--one-case``."""
    parser.addoption(
        "--one-case", action="store_true",
        help="only the first case of each test, but every case of tests/*.py: the command line, the API, the launchers",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the further cases out with ``--one-case``."""
    if not config.getoption("--one-case"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid if item.path.parent == HOME else item.nodeid.partition("[")[0], item)
    kept = set(first.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU, with the reason why there is none."""
    if item.get_closest_marker("gpu"):
        from hpe.tools.gpucheck.environment import why_no_gpu

        if why := why_no_gpu():
            pytest.skip(f"no GPU: {why}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that stands beside the checkout; tests that need it are skipped elsewhere."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an interpreter that runs the given source, whatever script of the face mesh it is asked for."""

    def made(source: str) -> Path:
        number = len(list(tmp_path.glob("worker*.py")))
        worker, python = tmp_path / f"worker{number}.py", tmp_path / f"python{number}"
        worker.write_text(source)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{worker}" "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return python

    return made


@pytest.fixture
def mesh_python() -> Path:
    """The real face mesh's interpreter, or a skip."""
    from hpe.landmarks.mesh import environment

    python = Path(os.environ.get("HPE_FACE_MESH_PYTHON") or environment() / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no face mesh at {python}: `hpe landmarks install` makes it")
    return python


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw nothing for TensorBoard, which is most of the time of a validation here.

    What is drawn is judged in tests/train/test_sample_grid.py; trainings in processes of their own draw, too.
    """
    from hpe.train.log import Log

    monkeypatch.setattr(Log, "confusions", lambda *_: None)
    monkeypatch.setattr(Log, "faces", lambda *_: None)


@pytest.fixture(autouse=True)
def _no_prefix_of_ranks() -> Iterator[None]:
    """torch puts another "[rank1]: " before every later traceback, each time that a process group starts."""
    before = sys.excepthook
    yield
    sys.excepthook = before
