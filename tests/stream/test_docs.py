"""What docs/stream.md shows runs as shown: its blocks in order, in one namespace, as a reader would paste them."""

from pathlib import Path

import pytest
import torch

from tests import made
from tests.test_readme import fenced

PAGE = Path(__file__).parents[2] / "docs" / "stream.md"
BLOCKS = [one for one in fenced(PAGE.read_text(encoding="utf-8")) if one.language == "python"]


@pytest.fixture(autouse=True)
def _beside_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.shards(tmp_path / "shards" / "faces", counts=(40, 24))
    # `datasets` keeps what it has read; elsewhere than in the home of whoever runs the tests.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


# Stock WebDataset leaves a tar that was not read to its end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_blocks_of_the_page_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for one in BLOCKS:
        if not one.needs:
            exec(compile(one.code, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert "['positions', 'places', 'data', 'pixels', 'stamp', 'batch']" in shown
    assert "64 sample00000 (32, 32) 0" in shown  # stock datasets: rows, key, pixels, emotion


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_the_block_for_lightning_runs_where_lightning_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    (block,) = (one.code for one in BLOCKS if one.needs == "lightning")
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block, str(PAGE), "exec"), names)
    assert names["faces"].samples_seen == 2 * 4 * 16  # type: ignore[attr-defined]
