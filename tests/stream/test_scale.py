"""The simulation in docs/scale.md runs as shown and prints what the page says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_simulation_prints_the_shards_that_the_page_states(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/scale.md", "exec"), {"__name__": "page"})
    printed = re.findall(r"(\d+) shards a node, .* (\d+) MB", capsys.readouterr().out)
    stated = re.search(r"it prints (\d+), (\d+) and (\d+) shards", PAGE)
    assert stated
    assert [shards for shards, _ in printed] == list(stated.groups())
    assert max(int(megabytes) for _, megabytes in printed) < 100
