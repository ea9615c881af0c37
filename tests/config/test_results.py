"""configs/results.sh: its commands are real, their settings load, and a second start repeats nothing that is packed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from hpe.cli import app
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.study.config import StudyConfig

ROOT = Path(__file__).parents[2]
STUB = """#!{python}
import sys
from pathlib import Path

with open({log!r}, "a") as log:
    print(*sys.argv[1:], sep="\\x1f", file=log)
words = sys.argv[1:]
made = dict(
    pack=lambda: Path(words[2 if words[1] == "synthetic" else 3], "summary.md"),
    evaluate=lambda: Path(words[1], "evaluate", words[words.index("--name") + 1] + ".json"),
    study=lambda: Path(next(w for w in words if w.startswith("study=")).partition("=")[2].strip('"'), "study.json"),
)
if words[0] in made:
    path = made[words[0]]()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text({result!r})
"""
MAJORITY = {"group_votes": {"majority": {"value": 0.8}}}
RESULT = {"by": {"group_votes": {"majority": {"emotion": {"n": 5, "accuracy": {"value": 0.8}}}}, "yaw": {"wide": {}}}}


def run(what: str, folder: Path, *, code: int = 0) -> list[list[str]]:
    """The commands that one measurement gives; hpe itself is a stub that writes them down."""
    log = folder / "log"
    log.write_text("")
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/hpe").write_text(STUB.format(python=sys.executable, log=str(log), result=json.dumps(RESULT)))
    (folder / "bin/hpe").chmod(0o755)
    people = folder / "pointing04" / "Person01"
    people.mkdir(parents=True, exist_ok=True)
    for number in range(900):
        (people / f"person011{number:03d}+0+0.jpg").touch()
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OUT": str(folder / "out #1"), "RESULTS": str(folder / "results"), "SEEDS": "0 1", "FERPLUS": "raw/ferplus",
        "POINTING04": str(folder / "pointing04"), "AFLW2000": "raw/aflw", "LWPOSE": "lwpose66.onnx",
    }  # fmt: skip
    done = subprocess.run(
        [ROOT / "configs/results.sh", what], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return [line.split("\x1f") for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("what", "trainings"),
    [("ferplus", 2), ("joint", 10), ("pointing04", 6), ("aflw2000", 4), ("cross", 10), ("study", 0)],
)
def test_every_command_parses_and_every_config_loads_with_its_settings(
    what: str, trainings: int, tmp_path: Path
) -> None:
    commands = run(what, tmp_path)
    click = typer.main.get_command(app)
    for words in commands:
        sub = click.commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
        context = sub.make_context(words[0], words[1:], resilient_parsing=False)
        if words[0] in ("train", "study"):
            loaded = load(
                Path(words[1]), StudyConfig if words[0] == "study" else RunConfig, context.params["overrides"]
            )
            data = loaded if isinstance(loaded, StudyConfig) else loaded.data.train[0]
            assert str(data.shards).startswith(str(tmp_path / "out #1" / "shards"))
    assert [words[0] for words in commands].count("train") == trainings
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()}
    judged = {(words[1], words[words.index("--name") + 1]) for words in commands if words[0] == "evaluate"}
    assert len(kept) == max(len(judged), 1)
    made = [one["made"] for one in kept.values()]
    assert all(one["command"].startswith("configs/results.sh") and one["machine"] for one in made)
    assert all(one["emotion_by"] == MAJORITY and "by" not in one for one in kept.values())
    again = run(what, tmp_path)
    assert "pack" not in [words[0] for words in again]
    assert [words for words in again if words[0] == "train"] == [words for words in commands if words[0] == "train"]


def test_a_random_split_holds_every_picture_once(tmp_path: Path) -> None:
    run("pointing04", tmp_path)
    parts = [(tmp_path / "out #1/lists" / f"{part}.txt").read_text().split() for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [63, 279, 558]
    assert len({name for part in parts for name in part}) == 900


def test_without_a_measurement_the_choices_are_listed(tmp_path: Path) -> None:
    assert run("help", tmp_path, code=2) == []
