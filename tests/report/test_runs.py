"""``hpe runs``: figures at the best checkpoint, what differs, and damaged runs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.files import write_json
from hpe.metrics import SCHEMA
from hpe.report.runs import differences, find_runs, read_line, runs, to_text
from tests import made


def fake(folder: Path, *overrides: str, best: int | None = 16) -> Path:
    """A run folder as training leaves it: two validations, the first of which was the better."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(made.config(Path("shards"), folder, *overrides).dump(), encoding="utf-8")
    lines = [
        {"samples": 16, "split": "train", "epoch": 0.5},
        {"samples": 16, "split": "val", "emotion/macro_f1": 0.5, "pose/mae": 4.25},
        {"samples": 32, "split": "train", "epoch": 1.0},
        {"samples": 32, "split": "val", "emotion/macro_f1": 0.25, "pose/mae": 3.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"samples": 40, "spl'  # the half line of a kill
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if best is not None:
        (folder / "checkpoints" / "best").mkdir(parents=True)
        write_json(folder / "checkpoints" / "best" / "state.json", {"best": 0.5, "best_samples": best})
    return folder


def test_figures_are_those_of_the_best_checkpoint_and_else_the_last(tmp_path: Path) -> None:
    line = read_line(fake(tmp_path / "a"))
    assert (line.epoch, line.epochs, line.best, line.best_samples) == (1.0, 1.0, 0.5, 16)
    assert line.figures == {"emotion/macro_f1": 0.5, "pose/mae": 4.25}
    assert read_line(fake(tmp_path / "b", best=None)).figures == {"emotion/macro_f1": 0.25, "pose/mae": 3.5}


def test_a_result_of_an_older_checkpoint_is_named_as_old(tmp_path: Path) -> None:
    run = fake(tmp_path / "a")
    (run / "checkpoints/best").rename(run / "checkpoints/step-00000002")
    (run / "checkpoints/best").symlink_to("step-00000002")
    judged = {"identity": {"checkpoint": "best"}, "weights": "/gone/step-00000001/model.safetensors"}
    about = {"title": "Made test", **judged}
    (run / "evaluate").mkdir()
    write_json(run / "evaluate/old.json", {"schema": SCHEMA, "about": about})
    told = "Made test (old: step-00000001 was judged, and the best checkpoint is now step-00000002)"
    assert list(read_line(run).evaluations) == [told]
    about["weights"] = "/gone/step-00000002/model.safetensors"
    write_json(run / "evaluate/old.json", {"schema": SCHEMA, "about": about})
    assert list(read_line(run).evaluations) == ["Made test"]


def test_runs_are_found_below_a_folder_and_not_inside_runs(tmp_path: Path) -> None:
    names = ["group/b", "a", "group/deep/c"]
    for name in names:
        fake(tmp_path / name)
    fake(tmp_path / "a" / "checkpoints" / "copy")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("of: something else")
    assert find_runs([tmp_path]) == [tmp_path / name for name in sorted(names)]
    with pytest.raises(UserError, match="no run here"):
        find_runs([tmp_path / "other"])
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_exactly_the_changed_settings_differ(tmp_path: Path) -> None:
    lines = [
        read_line(fake(tmp_path / "a")),
        read_line(fake(tmp_path / "b", "train.learning_rate=0.5", "data.workers=1")),
        read_line(fake(tmp_path / "c", "model.heads.affect=null", "seed=7")),
    ]
    a, b, c = (line.name for line in lines)
    assert differences(lines) == {
        "train.learning_rate": {"0.002": [a, c], "0.5": [b]},
        "seed": {"0": [a, b], "7": [c]},
        "model.heads": {"emotion, direction, pose, affect": [a, b], "emotion, direction, pose": [c]},
    }


def test_a_damaged_run_is_named_and_the_others_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(tmp_path / "good")
    fake(tmp_path / "bad")
    (tmp_path / "bad" / "config.yaml").write_text("run: [1", encoding="utf-8")
    assert runs([tmp_path], tmp_path / "list.json") == 1
    said = capsys.readouterr()
    assert str(tmp_path / "good") in said.out
    assert str(tmp_path / "bad") not in said.out
    assert str(tmp_path / "bad") in said.err
    assert [one["name"] for one in json.loads((tmp_path / "list.json").read_text())["runs"]] == [str(tmp_path / "good")]


def test_hostile_files_of_a_run_neither_stop_nor_hang_the_list(tmp_path: Path) -> None:
    run = fake(tmp_path / "plain").rename(tmp_path / "run\x1b[31m")
    huge = "1" + "0" * 400
    (run / "metrics.jsonl").write_text(f'{{"samples": 1, "split": "val", "pose/mae": {huge}, "epoch": {huge}}}\n')
    (run / "checkpoints" / "best" / "state.json").unlink()
    os.mkfifo(run / "checkpoints" / "best" / "state.json")
    (run / "evaluate").mkdir()
    os.mkfifo(run / "evaluate" / "pipe.json")
    write_json(run / "evaluate" / "bare.json", {"schema": SCHEMA})
    line = read_line(run)
    assert (line.epoch, line.best, line.figures, line.evaluations) == (0.0, None, {}, {"bare": {}})
    assert "\x1b" not in to_text([line], 80)
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    with pytest.raises(UserError, match="no run here"):
        find_runs([tmp_path])


def test_the_settings_of_a_few_runs_stand_side_by_side_and_the_best_says_of_what(tmp_path: Path) -> None:
    lines = [read_line(fake(tmp_path / "a")), read_line(fake(tmp_path / "b", "seed=7", "train.select=pose/mae"))]
    said = [[cell.strip() for cell in row.split("|")[1:-1]] for row in to_text(lines, 400).splitlines()]
    assert ["setting", "1", "2"] in said
    assert ["seed", "0", "7"] in said
    assert [row[4] for row in said if row[:1] in (["1"], ["2"]) and len(row) > 4] == ["emotion/macro_f1", "pose/mae"]


def test_the_list_of_many_unlike_runs_fits_the_terminal_and_a_few_screens(tmp_path: Path) -> None:
    one = read_line(fake(tmp_path / "a"))
    same = "/much/the/same/path"
    many = [
        replace(one, name=f"/runs/run{n}", settings={f"s{s}": f"{same}/{s}/{n // 5}/heads/lwpose66" for s in range(40)})
        for n in range(50)
    ]
    text = to_text(many, 80)
    assert max(map(len, text.splitlines())) <= 80
    settings = text[text.index("| setting") :]
    assert len(settings.splitlines()) < 70
    assert settings.count("/runs/") == 0
    assert "1-5 " in settings
    assert "more settings differ" in settings
    values = [row.split("|")[2].strip() for row in settings.splitlines()[2:7]]
    assert len(set(values)) == 5


def test_a_pipe_gets_a_line_per_row_and_a_terminal_all_of_a_folded_cell(tmp_path: Path) -> None:
    shown = {"Emotion accuracy": "86.3 % (85.0–87.5)"}
    name = "/runs/" + "x" * 150
    line = replace(read_line(fake(tmp_path / "a")), name=name, evaluations={"val": shown})
    piped = [[cell.strip() for cell in row.split("|")[1:-1]] for row in to_text([line]).splitlines()]
    assert ["val", "Emotion accuracy", "1", "86.3 % (85.0–87.5)"] in piped
    assert [row[1] for row in piped if row[:1] == ["1"]] == [name, "0.5"]
    folded = to_text([line], 60).split("\n\n")[0].splitlines()
    assert max(map(len, folded)) <= 60
    assert "".join(row.split("|")[2].strip() for row in folded[2:]) == name


def test_the_command_lists(tmp_path: Path) -> None:
    fake(tmp_path / "a")
    result = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "4.25" in result.output


def test_before_the_first_run_there_is_nothing_to_complain_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs(None) == 0
    (tmp_path / "runs").mkdir()
    assert runs(None) == 0
    assert capsys.readouterr().out.splitlines() == ["runs/: no run here yet; `hpe train` makes them"] * 2
    with pytest.raises(UserError, match="no run here"):
        runs([tmp_path / "runs"])
