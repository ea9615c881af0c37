"""Fixtures for every test: seeds, the real data beside the checkout where there is any, no network."""

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HPE_QUIET", "1")
# The tests run side by side: threads of each would wait for those of the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numpy as np
import pytest

SHARED = Path(os.environ.get("HPE_SHARED", Path(__file__).parents[2] / "shared"))


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
