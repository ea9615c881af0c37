"""The demo: public commands in a chain, one folder, one signal, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from hpe import cli
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.core.errors import EXIT_AGAIN, EXIT_OK, UserError
from hpe.core.launch import refuse_processes
from hpe.tools import demo

SETTINGS = {"seed": 0, "count": 1000, "people": 20}


def stages(out: Path) -> list[demo.Stage]:
    return demo.stages(out, seed=3, processes=2, count=1000, people=20)


def test_every_stage_is_a_public_command_as_a_user_types_it(tmp_path: Path) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    todo = stages(tmp_path)
    assert [stage.arguments[0] for stage in todo] == ["pack", "train", "pose", "train", "evaluate", "report"]
    for stage in todo:
        command = group.commands[stage.arguments[0]]
        context = command.make_context(stage.arguments[0], list(stage.arguments[1:]))  # raises on an unknown option
        assert context.params


def test_the_trainings_configs_load_with_the_demos_overrides(tmp_path: Path) -> None:
    out = tmp_path / "demo #1"
    for stage in stages(out):
        if stage.arguments[0] == "train":
            values = stage.arguments
            overrides = [value for flag, value in zip(values, values[1:], strict=False) if flag == "--set"]
            config = load(Path(values[1]), RunConfig, overrides)
            assert config.seed == 3
            assert config.data.train[0].shards == str(out / "shards")


def chain(monkeypatch: pytest.MonkeyPatch, *scripts: str) -> None:
    """Let the demo's stages be these Python programs."""
    todo = [demo.Stage(f"stage {number}", ("-c", script)) for number, script in enumerate(scripts)]
    monkeypatch.setattr(demo, "stages", lambda out, **settings: todo)
    real = subprocess.Popen

    def python(command: list[str], **options: object) -> subprocess.Popen:
        return real([sys.executable, *command[3:]], **options)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(subprocess, "Popen", python)


def run(out: Path, *, new: bool = False, seed: int = 0, processes: int | None = 2) -> int:
    return demo.demo(out, seed=seed, processes=processes, count=1000, people=20, new=new)


def writes(figures: Path) -> str:
    """A program that leaves the figures which the demo's table shows."""
    value = {
        "emotion": {"accuracy": {"value": 0.95}},
        "direction": {"accuracy": {"value": 0.5}},
        "pose": {"all": {"mae": {"value": 4.0}}},
    }
    return "\n".join(
        (
            "from pathlib import Path",
            f"path = Path({str(figures)!r})",
            "path.parent.mkdir(parents=True, exist_ok=True)",
            f"path.write_text({json.dumps(value)!r})",
        )
    )


def test_the_table_says_what_is_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    out = tmp_path / "demo"
    chain(monkeypatch, writes(out / "multitask" / "evaluate" / "test.json"))
    assert run(out) == EXIT_OK
    shown = capfd.readouterr().out
    assert "emotion accuracy       0.950   ok" in shown
    assert "direction accuracy     0.500   LOW" in shown
    assert "pose MAE               4.000°   ok" in shown
    assert str(out / "multitask" / "report" / "index.html") in shown
    assert f"tensorboard --logdir {out}" in shown


@pytest.mark.parametrize("on_path", [True, False])
def test_the_tensorboard_command_works_as_it_stands(monkeypatch: pytest.MonkeyPatch, on_path: bool) -> None:
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin" if on_path else "/nowhere")
    assert demo._tensorboard() == ("tensorboard" if on_path else str(programs / "tensorboard"))
    assert (programs / "tensorboard").is_file()


def test_a_second_demo_goes_on_with_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    chain(monkeypatch, writes(out / "multitask" / "evaluate" / "test.json"))
    assert run(out) == run(out, processes=1) == EXIT_OK
    assert json.loads((out / demo.STAMP).read_text()) == SETTINGS


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, cpu_wanted: bool = False) -> None:
    """Let torch see so many GPUs."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(cpu_wanted).lower())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "cpu_wanted", "expected"), [(0, False, 2), (1, False, 1), (2, False, 2), (8, False, 2), (1, True, 2)]
)
def test_the_demo_starts_as_many_processes_as_the_machine_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, cpu_wanted: bool, expected: int
) -> None:
    asked: list[int] = []
    out = tmp_path / "demo"
    chain(monkeypatch, writes(out / "multitask" / "evaluate" / "test.json"))
    chained = demo.stages
    monkeypatch.setattr(
        demo, "stages", lambda out, *, processes, **more: asked.append(processes) or chained(out, **more)
    )
    machine(monkeypatch, gpus=gpus, cpu_wanted=cpu_wanted)
    done = CliRunner().invoke(cli.app, ["demo", "--out", str(out)])
    assert (done.exit_code, asked) == (EXIT_OK, [expected])
    refuse_processes(expected)  # as the training does
    shown = CliRunner().invoke(cli.app, ["demo", "--help"], env={"COLUMNS": "200"}).output
    assert "2, or 1 on a machine with one GPU" in shown


def test_more_processes_than_gpus_are_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=1)
    chain(monkeypatch, "raise SystemExit('a stage was started')")
    with pytest.raises(UserError, match="--processes 2: only 1 GPU is visible"):
        run(tmp_path / "demo", processes=2)
    assert not (tmp_path / "demo").exists()


def test_a_demo_with_other_settings_is_refused_and_new_sets_the_first_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    chain(monkeypatch, writes(out / "multitask" / "evaluate" / "test.json"))
    run(out)
    with pytest.raises(UserError, match=r"'seed': 0.*'seed': 1.*--new"):
        run(out, seed=1)
    assert json.loads((out / demo.STAMP).read_text())["seed"] == 0
    assert run(out, seed=1, new=True) == EXIT_OK
    assert json.loads((out / demo.STAMP).read_text())["seed"] == 1
    assert json.loads((tmp_path / "demo.1" / demo.STAMP).read_text())["seed"] == 0


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(monkeypatch)
    (tmp_path / "thesis.txt").write_text("mine")
    for new in (False, True):
        with pytest.raises(UserError, match="is not empty, and was not made by a demo"):
            run(tmp_path, new=new)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("stamp", ["not json", "[]", '"seed"', "\x00"])
def test_a_spoilt_stamp_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: str) -> None:
    chain(monkeypatch)
    (tmp_path / demo.STAMP).write_text(stamp)
    with pytest.raises(UserError, match=r"demo\.json: is damaged.*--new.*--out"):
        run(tmp_path)


def test_a_file_in_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(monkeypatch)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(UserError, match="cannot write the demo here"):
            run(out)


def test_two_demos_at_once_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(monkeypatch)
    with demo._claim(tmp_path / "demo", SETTINGS, new=False):
        for new in (False, True):
            with pytest.raises(UserError, match="another demo is running here"):
                run(tmp_path / "demo", new=new)


def test_a_failed_stage_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    chain(monkeypatch, "raise SystemExit(2)", f"open({str(mark)!r}, 'w')")
    with pytest.raises(UserError, match="'stage 0' ended with exit code 2"):
        run(tmp_path / "demo")
    assert not mark.exists()


@pytest.mark.parametrize("made", [False, True])
def test_settings_bind_a_later_demo_only_where_something_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    out = tmp_path / "demo"
    shard = out / "shards" / "train-000000.tar"
    makes = f"from pathlib import Path; Path({str(shard)!r}).parent.mkdir(); Path({str(shard)!r}).touch()"
    chain(monkeypatch, f"{makes if made else 'pass'}\nraise SystemExit(2)")
    with pytest.raises(UserError, match="correct that first"):
        run(out)
    with pytest.raises(UserError, match="an earlier demo used" if made else "correct that first"):
        run(out, seed=1)


SAVES = """
import os, signal, sys, time
from pathlib import Path
def save(number, frame):
    with open(sys.argv[1], "a") as told:
        print(signal.Signals(number).name, file=told)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
Path(sys.argv[2]).write_text(str(os.getpid()))
end = time.monotonic() + 60
while not Path(sys.argv[1]).exists() and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.5)
sys.exit(75)
"""


def outer(tmp_path: Path) -> tuple[subprocess.Popen, Path, int]:
    """A demo in a process group of its own, as under a terminal, whose only stage waits for a signal."""
    told, mark, out = tmp_path / "told", tmp_path / "pid", tmp_path / "demo"
    script = f"""
import sys
from hpe.tools import demo
demo.stages = lambda out, **settings: [demo.Stage("waits", ())]
demo.sys.executable = {str(tmp_path / "python")!r}
from pathlib import Path
sys.exit(demo.demo(Path({str(out)!r}), seed=0, processes=1, count=1000, people=20, new=False))
"""
    stage = tmp_path / "python"
    stage.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[1:] = [{str(told)!r}, {str(mark)!r}]\n{SAVES}")
    stage.chmod(0o700)
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, told, int(mark.read_text())


@pytest.mark.parametrize(
    ("sent", "arrives"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGTERM")]
)
def test_a_signal_to_the_whole_terminal_reaches_the_stage_once(tmp_path: Path, sent: int, arrives: str) -> None:
    process, told, stage = outer(tmp_path)
    os.killpg(process.pid, sent)
    assert process.wait(20) == EXIT_AGAIN
    assert told.read_text().splitlines() == [arrives]
    assert not Path(f"/proc/{stage}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to children of the dead is Linux'")
def test_a_killed_demo_takes_its_stage_along(tmp_path: Path) -> None:
    process, told, stage = outer(tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{stage}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{stage}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    assert told.read_text().splitlines() == ["SIGTERM"]
