"""The protocol of most papers on head pose, by the commands of the config's head comment, on trees in that format."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from typer.testing import CliRunner

from hpe.cli import app

CONFIG = Path(__file__).parents[2] / "configs/300w_lp_pose.yaml"
TINY = (
    "model.backbone=tiny", "model.weights=none", "data.size=32", "data.workers=0", "train.batch=8", "train.epochs=1",
    "train.precision=fp32", "train.warmup_epochs=0",
)  # fmt: skip
RNG = np.random.default_rng(0)


def face(path: Path, yaw: float, points: str, count: int) -> None:
    """A picture of 120 pixels with its ``.mat``; landmarks lie within 30..90."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (120, 120, 3), np.uint8)).save(path)
    pose = np.array([[*np.deg2rad((5.0, yaw, -3.0)), 10, 20, 0, 1e-3]])
    where = RNG.uniform(30, 90, (3 if points == "pt3d_68" else 2, count))
    scipy.io.savemat(path.with_suffix(".mat"), {"Pose_Para": pose, points: where})


def raw(folder: Path) -> None:
    """300W-LP with views and flips of twenty photos, AFLW2000 with one face beyond ±99°, BIWI with two sequences."""
    for photo in range(20):
        for view, yaw in enumerate((-40.0, 0.0, 40.0)):
            name = f"{'AFW' if photo % 2 else 'HELEN'}_{1000 + photo}_1_{view}"
            face(folder / "300W_LP" / name.split("_")[0] / f"{name}.jpg", yaw, "pt2d", 68)
            flipped = name.replace("_", "_Flip_", 1)
            face(folder / "300W_LP" / f"{name.split('_')[0]}_Flip" / f"{flipped}.jpg", -yaw, "pt2d", 68)
    for number, yaw in enumerate((-60.0, -20.0, 0.0, 10.0, 70.0, 120.0)):
        face(folder / "AFLW2000" / f"image{number:05d}.jpg", yaw, "pt3d_68", 68)
    for sequence in ("01", "02"):
        home = folder / "hpdb" / sequence
        home.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(RNG.integers(0, 256, (60, 80, 3), np.uint8)).save(home / f"frame_{number:05d}_rgb.png")
            (home / f"frame_{number:05d}_pose.txt").write_text("1 0 0\n0 1 0\n0 0 1\n\n0 0 1000\n")
        (home / "rgb.cal").write_text("100 0 40\n0 100 30\n0 0 1\n\n0 0 0 0\n\n1 0 0\n0 1 0\n0 0 1\n\n0 0 0\n")


def commands() -> list[list[str]]:
    """The commands of the head comment."""
    lines = re.findall(r"^#   hpe (.+)$", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_commands_of_the_config_give_errors_by_the_usual_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(tmp_path / "RAW")
    monkeypatch.chdir(tmp_path)
    shown = commands()
    assert [words[0] for words in shown] == ["pack", "pack", "pack", "train", "evaluate", "evaluate"]
    for words in shown:
        changed = [str(CONFIG) if word == "configs/300w_lp_pose.yaml" else word for word in words]
        if words[0] == "pack":
            changed = ["32" if word == "256" else word for word in changed] + ["--workers", "1"]
            if "protocol=fsanet" in words:  # whose crop needs a detector's weights
                changed += ["--crop", "square-1.2@box"]
        elif words[0] == "train":
            changed = [*changed[: changed.index("--processes")], *(part for one in TINY for part in ("--set", one))]
        done = CliRunner().invoke(app, changed)
        assert done.exit_code == 0, f"{changed}: {done.output}"
    counts = json.loads((tmp_path / "shards/300w_lp/manifest.json").read_text())["counts"]
    assert counts["samples"] == 120
    results = tmp_path / "runs/300w_lp/evaluate"
    found = json.loads((results / "aflw2000-test.json").read_text())
    pose = found["pose"]
    assert (pose["all"]["n"], pose["within_99"]["n"], pose["within_99"]["dropped"]) == (6, 5, 1)
    assert all(pose["within_99"][name]["value"] > 0 for name in ("yaw", "pitch", "roll", "mae", "geodesic", "maev"))
    assert found["about"]["machine"].startswith("cpu: ")
    assert found["about"]["variant"] == ["AFLW2000-3D, all of it as test"]
    assert found["about"]["warnings"] == []  # of other crops above all
    page = (results / "aflw2000-test.md").read_text()
    assert "Data: AFLW2000-3D, all of it as test; crop hopenet-0.2@landmarks." in page
    assert "no angle beyond ±99°, angles of Rx Ry Rz" in page
    biwi = (results / "biwi-test.md").read_text()
    assert "Data: protocol fsanet: frames with a face found by MTCNN, as test" in biwi
    assert "crop square-1.2@box" in biwi
    assert re.search(r"square-1.2@box.* trained on hopenet-0.2@landmarks", biwi)
