"""What every test of the stream starts from: a cache of its own, and a small folder of shards."""

from pathlib import Path

import pytest

from tests.stream.tiny import Made, make


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "shards")
