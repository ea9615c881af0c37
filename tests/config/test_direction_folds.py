"""configs/direction_folds.sh: the last part reads what the commands before it write."""

import os
import subprocess
import sys
from pathlib import Path

import typer.main

from hpe.cli import app
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load

SCRIPT = Path(__file__).parents[2] / "configs" / "direction_folds.sh"
STUB = """#!{python}
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

words = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*words, sep="\\x1f", file=log)
if words[0] == "evaluate":
    name = words[words.index("--name") + 1] if "--name" in words else "pointing04-test-angles"
    path = Path(words[1], "evaluate", name + ".parquet")
    path.parent.mkdir(parents=True)
    rows = {{"subject": ["01", "02"], "direction": [0, 1], "direction_p": [[0.9, 0.1], [0.8, 0.2]]}}
    pq.write_table(pa.table(rows), path)
"""


def test_five_folds_become_one_accuracy_in_a_folder_of_any_name(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "folds #1"
    for person in range(1, 16):
        (tmp_path / "raw" / f"Person{person:02d}").mkdir(parents=True)
        (tmp_path / "raw" / f"Person{person:02d}" / "face.jpg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/hpe").write_text(STUB.format(python=sys.executable, log=str(log)))
    (tmp_path / "bin/hpe").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT, tmp_path / "raw", "e.yaml", "e.onnx", out],
        env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all: accuracy 0.500" in done.stdout
    commands = [line.split("\x1f") for line in log.read_text().splitlines()]
    assert [words[0] for words in commands] == ["pack", "pose", "train", "evaluate"] * 5
    click = typer.main.get_command(app)
    for words in commands:
        sub = click.commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
        context = sub.make_context(words[0], words[1:])
        if words[0] == "train":
            data = load(Path(words[1]), RunConfig, context.params["overrides"]).data
            assert {str(Path(str(one.shards)).parent) for one in (*data.train, *data.val)} == {str(out)}
