"""The checks of ``hpe doctor --gpu``: each passes on what is right, and fails on what is broken.

Without a GPU they run on the CPU, on a few coloured squares. The tests marked ``gpu`` run the very checks, each
in its own process on rendered heads, as the command does.
"""

import dataclasses
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.precision import Precision
from hpe.core.ranks import Ranks
from hpe.tools.bench import Figure
from hpe.tools.gpucheck import CHECKS, Check, Row, command, decoding, environment, processes, resume, speed, training
from hpe.tools.gpucheck.place import CPU, GPU, Place, data
from hpe.tools.gpucheck.waiting import Watch
from hpe.train.step import Learner
from tests import made

SMALL = dataclasses.replace(
    CPU, pixels=made.SIDE, side=made.SIDE, batch=8, steps=24, speed_batch=8, turn_seconds=0.01, turns=1, reduce_mib=1,
    resume_steps=20, pose_shards="val-*.tar",
)  # fmt: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("squares") / "shards")


@pytest.fixture
def place(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A CPU place, on a machine with GPUs too."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    AcceleratorState._reset_state(reset_partial_state=True)
    made_here = Place("cpu", tmp_path, squares, SMALL)
    made_here.save()
    yield made_here
    AcceleratorState._reset_state(reset_partial_state=True)


def states(rows: Iterator[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


# precision


def test_precisions_train_and_fp16_is_left_out_on_a_cpu(place: Place) -> None:
    found = states(training.precision(place))
    assert [found[name].state for name in ("fp32", "bf16", "fp16")] == ["ok", "ok", "skip"], found
    assert found["fp32"].values["last_loss"] < found["fp32"].values["first_loss"]


def test_a_loss_that_does_not_fall_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "rate", lambda *_: 0.0)
    row = training._trains(place, "fp32")
    assert row.state == "bad"
    assert "did not fall" in row.text


def test_a_precision_that_is_not_the_one_asked_for_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpe.train.setup.training_precision", lambda *_, **__: Precision("fp32", "patched"))
    row = training._trains(place, "bf16")
    assert (row.state, row.text) == ("bad", "convolutions computed in torch.float32, expected torch.bfloat16")


def test_a_precision_that_the_hardware_lacks_is_skipped_with_the_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "lacks_precision", lambda name, _: f"{name} needs a newer GPU")
    assert {(row.name, row.state, row.text) for row in training.precision(place)} == {
        (name, "skip", f"{name} needs a newer GPU") for name in ("fp32", "bf16", "fp16")
    }


# compile


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch.compile without its compiler, which takes a minute: the graphs are taken and run as they are."""
    right = torch.compile
    quick = lambda network, **_: right(network, backend="eager")  # noqa: E731
    monkeypatch.setattr(torch, "compile", quick)
    return quick


def test_compiled_steps_are_eager_steps(place: Place, quick_compile: Any) -> None:
    row = states(training.compiled(place))["compile"]
    assert row.state == "ok", row
    assert row.values["graphs"] >= 1


def test_a_compiler_that_changes_results_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch, quick_compile: Any
) -> None:
    def wrong(network: torch.nn.Module, **_: Any) -> Any:
        run = quick_compile(network)
        return lambda images: {head: 1.2 * output for head, output in run(images).items()}

    monkeypatch.setattr(torch, "compile", wrong)
    row = states(training.compiled(place))["compile"]
    assert row.state == "bad"
    assert "of what 4 steps changed" in row.text


def test_a_compiler_that_is_not_used_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    row = states(training.compiled(place))["compile"]
    assert (row.state, row.text) == ("bad", "train.compile: true compiled nothing")


# waits


def watched(step: Any) -> Row:
    watch = Watch("cpu")
    with watch.during("note"):
        step()
    return watch.row("step", 1)


def test_a_step_that_reads_nothing_passes() -> None:
    weight, kept = torch.ones(4, requires_grad=True), torch.empty(())
    optimizer = torch.optim.AdamW([weight])

    def step() -> None:
        loss = (weight * F.one_hot(torch.tensor([1]), 4)).sum()
        loss.backward()
        optimizer.step()
        kept.copy_(loss.detach(), non_blocking=True)
        assert float(kept) == 1.0  # of the host's own copy
        assert float(loss.detach().to("cpu", non_blocking=True)) == 1.0
        weight.detach()[weight.detach() > 2] = 0.0

    assert watched(step).state == "ok"


def test_a_step_may_read_what_the_step_before_has_copied() -> None:
    watch, loss = Watch("cpu"), torch.ones(4)
    with watch.during("off"):
        kept = loss.sum().to("cpu", non_blocking=True)
    with watch.during("note"):
        assert float(kept) == 4.0
    assert watch.row("step", 1).state == "ok"
    with watch.during("note"):
        assert float(loss.sum().cpu()) == 4.0
    assert watch.row("step", 1).state == "bad"


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_a_step_that_reads_from_the_device_is_named(read: Any) -> None:
    row = watched(lambda: read(torch.ones(3)))
    assert row.state == "bad"
    assert "tests/tools/test_gpu_checks.py:" in row.text


def test_a_learner_that_reads_is_named_by_its_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import hpe.train.optim

    right = hpe.train.optim.set_rate

    def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
        right(optimizer, rate)
        float(optimizer.param_groups[0]["params"][0].detach().sum())

    monkeypatch.setattr(hpe.train.optim, "set_rate", set_rate)
    row = training._waits(place, "plain step", ())
    source, first = inspect.getsourcelines(Learner.step)
    called = first + next(place for place, line in enumerate(source) if "optim.set_rate(" in line)
    assert row.state == "bad"
    assert row.values["lines"][f"hpe/train/step.py:{called}"] == training._WATCHED_STEPS


# ranks


@pytest.mark.slow
def test_two_ranks_sum_and_have_the_gradient_of_one(place: Place) -> None:
    found = states(processes.processes(place))
    assert found["all-reduce"].state == "ok", found
    assert found["all-reduce"].values["ranks"] == 2
    assert found["gradient of all ranks"].state == "ok", found
    assert found["batch norms over ranks"].state == "skip"


def test_one_gpu_is_told_as_a_world_of_one(place: Place) -> None:
    one = {"backend": "nccl", "wrong": 0, "gigabytes_per_second": 0.0, "mib": 1}
    row = processes._reduced(one, 1)
    assert (row.state, row.text) == ("ok", "nccl, world size 1 (one GPU)")


@pytest.mark.parametrize(
    ("reduce", "wrong"), [(lambda x: x.mul_(3), False), (lambda x: None, True), (lambda x: x.mul_(3)[5].add_(1), True)]
)
def test_a_wrong_sum_is_found(place: Place, reduce: Any, wrong: bool) -> None:
    found = processes.reduce_all(place, Ranks(0, 2, 0, 2), reduce)  # rank 0 gives the pattern once, rank 1 twice
    row = processes._reduced(found | {"backend": "gloo"}, 2)
    assert row.state == ("bad" if wrong else "ok")
    assert ("are not the sum" in row.text) == wrong


def test_a_gradient_of_half_the_ranks_is_found(place: Place) -> None:
    right = processes.gradient(place, "frozen", Ranks(0, 1, 0, 1))
    assert float(right.norm()) > 0
    assert processes.judged("x", right * (1 + 1e-6), right, 2, 1e-3).state == "ok"
    for wrong in (right / 2, right * 2, torch.zeros_like(right), right * torch.nan):
        assert processes.judged("x", wrong, right, 2, 1e-3).state == "bad"


@pytest.mark.slow
def test_ranks_that_end_say_why(place: Place) -> None:
    broken = dataclasses.replace(place, shards=place.folder / "nowhere")
    broken.save()
    with pytest.raises(RuntimeError, match=r"2 ranks: rank \d: UserError: .*nowhere"):
        processes._launched(broken, 2)


# decoding


def test_both_decoders_give_the_same_images(place: Place) -> None:
    found = states(decoding.decoding(place))
    assert found["same images"].state == "ok"
    assert found["same images"].values["largest_difference"] <= 2
    assert found["decoders' speed"].state == "ok"


@pytest.mark.parametrize("wrong", [lambda image: image.flip(0), lambda image: image.roll(2, -1)])
def test_a_wrong_decoder_is_found(place: Place, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    import torchvision.io

    right = torchvision.io.decode_jpeg
    monkeypatch.setattr(
        torchvision.io, "decode_jpeg", lambda *a, **k: [wrong(image).contiguous() for image in right(*a, **k)]
    )
    assert decoding.compared(place).state == "bad"


def test_a_torchvision_without_a_gpu_decoder_is_worth_a_note(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("The torchvision build must be built with nvJPEG")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuses)
    (row,) = decoding.decoding(place)
    assert row.state == "note"
    assert "nvJPEG" in row.text


# resume


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(place: Place) -> None:
    row = states(resume.resume(place))["kill and resume"]
    assert row.state == "ok", row
    assert row.values["largest_weight_difference"] == 0
    assert 0 < row.values["killed_after_steps"] < SMALL.resume_steps


@pytest.mark.parametrize(
    ("change", "again", "words"),
    [
        ({}, True, "began anew"),
        ({"samples_seen": 152}, False, "expected 160"),
        ({"largest_weight_difference": 1e-9}, False, "must be equal"),
        ({"largest_weight_difference": float("nan")}, False, "must be equal"),
    ],
)
def test_a_training_that_does_not_resume_is_found(change: dict[str, float], again: bool, words: str) -> None:
    right = {
        "killed_after_steps": 3,
        "samples_seen": 160,
        "expected_samples": 160,
        "largest_weight_difference": 0.0,
    }
    assert resume.judged(right, again=False, whole=160, exact=True).state == "ok"
    row = resume.judged(right | change, again=again, whole=160, exact=True)
    assert row.state == "bad"
    assert words in row.text


def test_a_training_that_ends_by_itself_was_not_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True)
    with pytest.raises(RuntimeError, match="exit code 3 before it could be killed"):
        resume._kill_after(process, tmp_path)


# speed


@pytest.mark.slow
def test_speeds_are_measured_with_their_share_of_the_limit(place: Place) -> None:
    found = states(speed.speed(place))
    assert "bad" not in {row.state for row in found.values()}, found
    assert {"network alone", "the stream alone", "hpe train, from shards", "pose pass"} <= found.keys()
    assert all(row.values["images_per_second"] > 0 for row in found.values())


def test_a_slow_stage_is_noted_with_what_it_could_do() -> None:
    rates = {"network alone": 1000.0, speed.LOOP: 960.0, speed.TRAIN: 300.0, speed.STREAM: 400.0, speed.BARE: 990.0}
    figures = {name: Figure(name, (rate,)) for name, rate in rates.items()}
    found = {row.name: row for row in speed.rows(figures, {speed.TRAIN: 1234.0}, "resnet50")}
    assert found[speed.LOOP].state == "ok"
    assert found[speed.TRAIN].state == "note"
    assert "75% of the slower of network and stream, 1,234 MiB" in found[speed.TRAIN].text


# the command


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Replaces the checks' processes by a shell script that gets NAME and FOLDER."""

    def stubbed(script: str, *names: str, seconds: float = 20) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nname=$3 folder=$4\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr(command, "_PATIENCE", {"cpu": 1.0})
        monkeypatch.setattr(command, "CHECKS", tuple(Check(name, "", f"about {name}", seconds) for name in names))

    return stubbed


GOOD = """[ $name = data ] || echo '{"name": "x", "state": "ok", "text": "fine", "values": {}}' > $folder/$name.jsonl"""


def judge(folder: Path) -> tuple[int, dict[str, Any]]:
    code = command.gpu_doctor(folder, device="cpu", out=None)
    return code, json.loads((folder / command.REPORT).read_text())


def test_all_good_ends_with_0_and_leaves_only_the_report(tmp_path: Path, stub: Any, capfd: Any) -> None:
    stub(GOOD, "a", "b")
    code, report = judge(tmp_path / "here")
    assert (code, report["complete"], report["bad"]) == (0, True, 0)
    assert [row["check"] for row in report["rows"]] == ["a", "b"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == [command.REPORT]
    out, err = capfd.readouterr()
    assert "check 2 of 2: about b" in err
    assert "fine" in out


@pytest.mark.parametrize(
    ("break_", "words"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("echo no kernel image >&2; exit 3", "ended with exit code 3: no kernel image"),
        ("sleep 60", "did not finish within 1 s"),
    ],
)
def test_a_check_that_breaks_is_one_line_and_the_others_go_on(
    tmp_path: Path, stub: Any, break_: str, words: str
) -> None:
    stub(f"if [ $name = b ]; then {break_}; fi\n{GOOD}", "a", "b", "c", seconds=1)
    code, report = judge(tmp_path / "here")
    assert code == 1
    assert [(row["check"], row["state"]) for row in report["rows"]] == [("a", "ok"), ("b", "bad"), ("c", "ok")]
    assert words in report["rows"][1]["text"]
    assert set(report["logs"]) == {"b"}


def test_a_check_whose_time_is_up_leaves_no_process_and_keeps_its_rows(tmp_path: Path, stub: Any) -> None:
    pid = tmp_path / "pid"
    stub(f"{GOOD}\n[ $name = data ] || {{ sleep 60 & echo $! > {pid}; wait; }}", "a", seconds=1)
    code, report = judge(tmp_path / "here")
    assert code == 1
    assert [row["state"] for row in report["rows"]] == ["ok", "bad"]
    time.sleep(0.1)
    status = Path(f"/proc/{pid.read_text().strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_check_that_ends_leaves_no_helper(tmp_path: Path, stub: Any) -> None:
    pid = tmp_path / "pid"
    stub(f"{GOOD}\n[ $name = data ] || {{ sleep 60 & echo $! > {pid}; }}", "a")
    code, _ = judge(tmp_path / "here")
    assert code == 0
    time.sleep(0.1)
    status = Path(f"/proc/{pid.read_text().strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_checks_after_the_whole_time_are_said_not_to_have_run(
    tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(GOOD, "a", "b")
    monkeypatch.setattr(command, "_SECONDS", -1)
    code, report = judge(tmp_path / "here")
    assert (code, report["complete"]) == (1, False)
    assert all("not run" in row["text"] for row in report["rows"])


def test_ctrl_c_shows_what_there_is(tmp_path: Path, stub: Any, capfd: Any) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    stub(f"{GOOD}\n[ $name != b ] || {{ sleep 0.5; kill -INT $PPID; sleep 60; }}", "a", "b", "c")
    try:
        code, report = judge(tmp_path / "here")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, report["complete"]) == (130, False)
    assert ("a", "ok") in {(row["check"], row["state"]) for row in report["rows"]}
    assert "not all checks ran" in capfd.readouterr().out


def test_numbers_that_are_not_finite_are_texts_in_the_report() -> None:
    report = command.Report("cpu", {"a": [Row("x", "bad", "broken", {"loss": float("nan")})]})
    assert report.to_json()["rows"][0]["values"] == {"loss": "NaN"}


@pytest.mark.parametrize(
    ("variables", "patches", "words"),
    [
        ({"ACCELERATE_USE_CPU": "true"}, {}, "ACCELERATE_USE_CPU=true switches GPUs off; unset it"),
        ({}, {"torch.version.cuda": None}, "is built for CPUs only"),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"torch.version.cuda": "13.2"}, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ({}, {"torch.version.cuda": "13.2", "pathlib.Path.exists": lambda _: False}, "no NVIDIA driver is visible"),
        ({}, {"torch.version.cuda": "13.2", "pathlib.Path.exists": lambda _: True}, "too old (found version 11040)"),
    ],
)
def test_without_a_gpu_the_command_says_why_and_ends_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    patches: dict[str, Any],
    words: str,
) -> None:
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "cuda", lambda: False)
    monkeypatch.setattr("torch.version.hip", None)

    def refuses() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", refuses)
    for name, value in patches.items():
        monkeypatch.setattr(name, value)
    why = environment.why_no_gpu()
    assert why is not None
    assert words in why
    with pytest.raises(UserError, match=r"torch sees no GPU: .*--device cpu"):
        command._kind("auto")


def test_options_of_the_gpu_checks_need_gpu(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["doctor", str(tmp_path), "--device", "cpu"])
    assert isinstance(found.exception, UserError)
    found = CliRunner().invoke(app, ["doctor", str(tmp_path), "--gpu", "--device", "tpu"])
    assert "expected auto or cpu" in str(found.exception)


def test_the_environment_is_told(place: Place) -> None:
    found = states(environment.environment(place))
    assert found["versions"].values["torch"] == torch.__version__
    assert found["GPU"].state == "skip"


def test_a_gpu_that_computes_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count = "Test GPU", 9, 0, 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch, "ones", lambda shape, device: torch.full(shape, 1.0))
    assert environment._gpu(0).state == "ok"
    monkeypatch.setattr(torch, "ones", lambda shape, device: torch.full(shape, 1.01))
    assert environment._gpu(0).state == "bad"


# on a GPU


@pytest.fixture(scope="session")
def gpu_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Rendered heads beside a GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    place = Place("cuda", folder, folder / "heads", GPU)
    place.save()
    assert [row.state for row in data(place)] == ["ok"]
    return place


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_check_passes_on_this_gpu(gpu_place: Place, check: Check) -> None:
    log = gpu_place.folder / f"{check.name}.log"
    code = command._ended(check.name, gpu_place.folder, gpu_place.environment(), log, 2 * check.seconds)
    rows = command._read(gpu_place.folder / f"{check.name}.jsonl")
    assert code == 0, "\n".join(command._tail(log))
    assert rows
    assert [f"{row.name}: {row.text}" for row in rows if row.state == "bad"] == []
