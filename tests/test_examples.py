"""The scripts of examples/ run as their first lines say, on rendered heads."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hpe.data.shards import Manifest
from hpe.pack import pack_source
from hpe.pack.options import Options
from hpe.sources.synthetic import heads
from tests.test_readme import ROOT, parse_line

FOLDER = ROOT / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples") / "heads"
    options = ["count=400", "people=20", "size=32"]
    pack_source("synthetic", [str(out)], options, 1, Options(size=32))
    return out


def run(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    torch.set_num_threads(1)
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_plain_loop_learns_and_resumes_where_it_stopped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (str(shards), "--size", "32", "--batch", "32", "--checkpoint", str(tmp_path / "loop.pt"))
    first = run("plain_loop.py", monkeypatch, capsys, *given, "--epochs", "1")
    assert "resumed" not in first
    seen = re.findall(r"([\d,]+) of", first)[-1]
    second = run("plain_loop.py", monkeypatch, capsys, *given, "--epochs", "2")
    assert f"resumed after {seen} samples" in second
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", first + second)]
    assert losses[-1] < 2.2
    assert float(re.findall(r"accuracy ([\d.]+)", second)[0]) > 0.05


def test_the_own_head_learns_yaw_and_knows_where_it_is_sure(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run("own_head.py", monkeypatch, capsys, str(shards), "--size", "32", "--batch", "32", "--epochs", "6")
    losses = [float(value) for value in re.findall(r"loss (-?[\d.]+)", shown)]
    assert losses[-1] < losses[0]
    assert float(re.findall(r"error ([\d.]+) degrees", shown)[0]) < 40  # always "forward" is wrong by 20 or more


def test_the_own_reader_packs_its_layout_and_quarantines_what_is_no_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, lines = tmp_path / "raw", []
    (raw / "img").mkdir(parents=True)
    moods = {0: "calm", 1: "joy", 2: "grief", 3: "awe", 4: "dread", 6: "rage"}
    for number, (_, picture, labels) in enumerate(heads(60, seed=0, people=12, size=48)):
        name, mood = f"img/{number:04d}.png", moods.get(labels.emotion)
        Image.fromarray(picture).save(raw / name)
        face = {"file": name, "who": labels.subject, "turn_left": labels.yaw, "nod_up": labels.pitch}
        lines.append(json.dumps(face | {"face": labels.box} | ({"mood": mood} if mood else {})))
    lines += ["no json", json.dumps({"file": "img/0000.png", "mood": "bored"}), json.dumps({"file": "../secret.png"})]
    (raw / "faces.jsonl").write_text("\n".join(lines))
    run("own_reader.py", monkeypatch, capsys, str(raw), str(tmp_path / "out"), "--size", "32")
    manifest = Manifest.load(tmp_path / "out")
    assert sum(shard.samples for shard in manifest.shards) == 60
    assert manifest.crop == "square-1.4@box"
    rejected = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [one["reason"].split(":")[0] for one in rejected] == ["not a face", "not a face", "../secret.png"]


def test_every_script_is_run_here_and_says_how_to_call_it() -> None:
    mine = Path(__file__).read_text(encoding="utf-8")
    assert len(SCRIPTS) >= 3
    for script in SCRIPTS:
        assert f'"{script.name}"' in mine, "no test runs it"
        head = script.read_text(encoding="utf-8").split('"""')[1]
        assert f"python examples/{script.name} " in head
        for line in re.findall(r"^    (hpe .+)$", head, re.MULTILINE):
            parse_line(script, line)
