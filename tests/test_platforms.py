"""What works without Linux: macOS by taking away what it does not have, and Windows by the words that refuse it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hpe.core.errors import EXIT_USAGE
from tests import made

ROOT = Path(__file__).parents[1]
WINDOWS = """\
import sys
sys.platform = "win32"
for name in ("fcntl", "resource", "pwd", "grp"): sys.modules[name] = None
"""
MACOS = """\
import multiprocessing, os, sys
import accelerate, datasets, scipy, sklearn, timm, torch, tensorboard
sys.platform = "darwin"
for name in ("posix_fadvise", "posix_fallocate", "fdatasync", "pipe2", "memfd_create"): delattr(os, name)
for name in [name for name in dir(os) if name.startswith("sched_")]: delattr(os, name)
def fork(*_): raise AssertionError("macOS ends what is forked")
multiprocessing.context.ForkContext.Process = fork
from hpe.cli import app
for line in sys.argv[1:]:
    app(line.split(), standalone_mode=False)
"""


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("from hpe.__main__ import main; main()", EXIT_USAGE),
        ("import hpe; hpe.load('runs/first')", 1),
        ("import hpe; print(hpe.__version__); raise SystemExit(3)", 3),
    ],
)
def test_windows_is_refused_with_the_way_out(call: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", WINDOWS + call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("WSL 2" in done.stderr.splitlines()[-1]) if code != 3 else not done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


@pytest.mark.everywhere
@pytest.mark.slow
def test_macos_trains_evaluates_predicts_and_exports(tmp_path: Path) -> None:
    shards = made.shards(tmp_path / "shards", counts=(16, 8), val=8)
    (tmp_path / "run.yaml").write_text(made.config(shards, tmp_path / "run", "data.workers=2").dump())
    Image.fromarray(made.picture(3, 1, 0)).resize((96, 96)).save(tmp_path / "face.png")
    done = subprocess.run(
        [
            sys.executable, "-c", MACOS, "train run.yaml", "evaluate run shards --split val",
            "predict run face.png --out faces", "export run face.onnx",
            "pose shards -e run --name self",
        ],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("data.workers: these need Linux") == 1
    for name in ("run/evaluate", "faces", "face.onnx", "shards/pose/self"):
        assert (tmp_path / name).exists(), name
