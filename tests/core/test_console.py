"""Messages reach the terminal and the log of the run."""

from pathlib import Path

import pytest

from hpe.core.console import count_of, log_to, say


def test_a_log_holds_what_was_said_while_it_was_open_and_why_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.txt"
    say("before")
    with pytest.raises(ValueError, match="boom"), log_to(path):
        say("epoch 1")
        raise ValueError("boom")
    with log_to(path):
        say("again")
    said = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    assert said == ["epoch 1", "ValueError: boom", "again"]
    assert "before" in capsys.readouterr().err


def test_one_is_singular() -> None:
    assert [count_of(number, "shard") for number in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
