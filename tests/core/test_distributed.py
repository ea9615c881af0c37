"""Several processes: the same samples and gradients as one, and what happens when one dies."""

import contextlib
import copy
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig

from hpe.core import distributed
from hpe.core.distributed import await_name
from hpe.core.errors import EXIT_USAGE, UserError
from hpe.core.launch import relaunch
from hpe.core.ranks import Ranks
from hpe.data.normalise import prepare
from hpe.models import build, checkpoints, run_folder
from hpe.models.build import build_network
from hpe.train import train
from hpe.train.setup import open_job
from tests import made, norm_free, warm
from tests.warm import ENVIRONMENT, ROOT

SIGNALS_TO_HANDLE = ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards", counts=(40, 7, 33), unlabelled=3)


def test_one_process_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object) -> None:
        raise AssertionError("Accelerate starts a single process without RANK, which would start another, without end")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch)
    assert relaunch(1, ["train", "x.yaml"]) is None


def test_more_processes_than_cores_are_refused_where_no_gpu_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", started.append)
    monkeypatch.setattr("hpe.core.launch.cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # remembered as absent: what the code sets is taken away again
    for name in (*SIGNALS_TO_HANDLE, "TORCH_CPP_LOG_LEVEL", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    with pytest.raises(
        UserError, match=r"--processes 8: torch sees no GPU .* 4 CPU cores.* use --processes 4 or fewer"
    ):
        relaunch(8, ["train", "x.yaml"])
    assert not started
    with pytest.raises(SystemExit) as end:
        relaunch(4, ["train", "x.yaml"])
    assert (end.value.code, len(started)) == (0, 1)
    assert "no GPU here: 4 processes on 4 CPU cores" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        relaunch(8, ["train", "x.yaml"])  # ACCELERATE_USE_CPU is set
    assert (len(started), capsys.readouterr().err) == (2, "")


def test_the_launcher_leaves_the_ranks_ten_minutes_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(
        "accelerate.commands.launch.launch_command",
        lambda _: left.append(getattr(LaunchConfig(1, 1, 2), "shutdown_timeout", 600)),  # torch 2.12 brought it
    )
    for name in (*SIGNALS_TO_HANDLE, "TORCH_CPP_LOG_LEVEL", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # remembered: what the code sets is taken away again
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for _ in range(2):
        with pytest.raises(SystemExit):
            relaunch(2, ["train", "x.yaml"], saves=True)
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "45")  # what a user sets counts
    assert left == [600, 45]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.find_checkpoint(run, "last") / "model.safetensors")


@pytest.mark.slow
def test_three_ranks_learn_what_one_learns_with_unevenly_missing_labels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("train.batch=12", "augment={flip: 0.5}", "train.balance_losses=learned", "train.micro_batch=3")
    changes += ("model.heads.emotion.dropout=0", "train.clip=1.0")
    monkeypatch.setattr(build, "build_backbone", norm_free.plain_backbone)
    assert train(made.config(folder, tmp_path / "one", *changes)) == 0
    done = warm.run_ranks(3, "-m", "tests.norm_free", folder, tmp_path / "many", *changes)
    assert done.returncode == 0, done.stderr
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert one.keys() == many.keys()
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=2e-4, atol=2e-5, msg=name)
    figures = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "many")
    ]
    for first, second in zip(*figures, strict=True):
        assert first["samples"] == second["samples"]
        if first["split"] == "val":
            assert first["emotion/labels"] == second["emotion/labels"] == 24
            assert first["pose/mae"] == pytest.approx(second["pose/mae"], rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_a_validation_on_all_and_the_next_start_repeats_it(
    folder: Path, tmp_path: Path
) -> None:
    changes = ("train.epochs=2", "train.batch=4", "train.ema=0.9")  # six batches in each of two validations
    for name, number in (("whole", 0), ("broken", 8)):
        done = warm.run_ranks(2, "-m", "tests.signalled", folder, tmp_path / name, number, *changes)
        assert (done.returncode != 0) == (name == "broken"), done.stderr
    state = checkpoints.State.load(checkpoints.find_checkpoint(tmp_path / "broken", "last"))
    assert (state.samples_seen, state.unvalidated) == (160, True)
    done = warm.run_ranks(2, "-m", "tests.signalled", folder, tmp_path / "broken", 0, *changes)
    assert done.returncode == 0, done.stderr
    whole, resumed = (checkpoints.find_checkpoint(tmp_path / name, "last") for name in ("whole", "broken"))
    for file in ("model.safetensors", "ema.safetensors", "state.json"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()


@pytest.mark.slow
def test_batch_norms_keep_the_mean_of_what_all_ranks_have_seen(folder: Path, tmp_path: Path) -> None:
    """Judged by one process that runs each rank's samples through the first norm, whose input no weight changes."""
    run = tmp_path / "run"
    changes = ("train.batch=8", "train.epochs=0.01", "augment={}", "train.ema=0.5")
    done = warm.run_ranks(2, "-m", "tests.signalled", folder, run, 0, *changes)
    assert done.returncode == 0, done.stderr
    checkpoint, config = checkpoints.find_checkpoint(run, "last"), run_folder.load_config(run)
    torch.manual_seed(config.seed)
    network = build_network(config.model).train()
    alone = made.config(folder, tmp_path / "alone", *changes)
    with open_job(alone, Ranks(0, 1, 0, 1)) as job, job.batches(0) as loader:
        batch = next(loader).batch
    found = []
    for rows in (slice(0, 4), slice(4, 8)):
        seeing = copy.deepcopy(network)
        seeing(prepare(batch[rows], network.normalisation))
        found.append({name: value for name, value in seeing.named_buffers() if "running" in name})
    assert not torch.allclose(*(one["backbone.stem.1.running_mean"] for one in found))
    for file in ("model.safetensors", "ema.safetensors"):
        saved = load_file(checkpoint / file)
        for name, value in found[0].items():
            torch.testing.assert_close(saved[name], (value + found[1][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_rank_is_named_and_another_number_of_ranks_goes_on(folder: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    file.write_text(made.config(folder, run, "train.epochs=400", "train.checkpoint_steps=5").dump())
    command = [sys.executable, "-m", "hpe", "train", str(file), "--processes", "2"]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 200
        while len(checkpoints.saved(run)) < 2 and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.05)
        ranks = [pid for pid in descendants(job.pid) if rank_of(pid) == 1]
        assert ranks, "the job has no rank 1"
        os.kill(ranks[0], signal.SIGKILL)
        _, told = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "rank 1 was killed by SIGKILL" in told
    assert "memory runs out" in told
    assert "data.workers" in told
    assert "Traceback" not in told
    seen = checkpoints.State.load(checkpoints.find_checkpoint(run, "last")).samples_seen
    shorter = made.config(folder, run, "train.epochs=400", "train.checkpoint_steps=5").dump()
    file.write_text(shorter)
    with warm.Process("-m", "hpe", "train", file, env=ENVIRONMENT) as job:
        while time.monotonic() < deadline + 100 and job.poll() is None:
            if checkpoints.State.load(checkpoints.find_checkpoint(run, "last")).samples_seen > seen:
                break
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, told = job.communicate(timeout=60)
    assert job.returncode == 75, told
    assert checkpoints.State.load(checkpoints.find_checkpoint(run, "last")).samples_seen > seen


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_end_bit_for_bit_as_if_never_killed(folder: Path, tmp_path: Path) -> None:
    changes = ("train.epochs=6", "train.checkpoint_steps=3", "data.workers=1", "train.ema=0.9")
    commands = {}
    for name in ("whole", "killed"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(made.config(folder, tmp_path / name, *changes).dump())
        commands[name] = ("-m", "hpe", "train", file)
    done = warm.run_ranks(2, *commands["whole"])
    assert done.returncode == 0, done.stderr
    run = tmp_path / "killed"
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(rank) for rank in warm.ranks(2, *commands["killed"])]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and ranks[0].poll() is None and not checkpoints.saved(run):
            time.sleep(0.01)
        time.sleep(random.Random(0).uniform(0, 0.2))  # in a step, between steps, or while a checkpoint is written
        for pid in [pid for rank in ranks for pid in (*descendants(rank.pid), rank.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = [rank.wait(60) for rank in ranks]
        assert ended == [-signal.SIGKILL] * 2, "the start was done before it could be killed"
    done = warm.run_ranks(2, *commands["killed"])
    assert done.returncode == 0, done.stderr
    whole, resumed = (checkpoints.find_checkpoint(tmp_path / name, "last") for name in ("whole", "killed"))
    for file in ("model.safetensors", "ema.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()


def descendants(pid: int) -> list[int]:
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def rank_of(pid: int) -> int | None:
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"RANK="):
            return int(entry[5:])
    return None


@pytest.mark.slow
def test_a_mistake_is_told_once_by_all_ranks_together(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(made.config(folder, tmp_path / "run", "model.backbone=resnet19", "train.batch=9").dump())
    done = subprocess.run(
        [sys.executable, "-m", "hpe", "train", str(file), "--processes", "2"],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == EXIT_USAGE
    assert done.stderr.count("resnet19") == 1
    assert "9 samples do not divide among 2 ranks; use 8 or 10" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mistake_that_only_another_rank_than_the_first_sees_is_told(tmp_path: Path) -> None:
    shards = made.shards(tmp_path / "shards")
    tar = shards / "val-000000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"sample10005")  # batches of 8 on two ranks: the sixth face is the second rank's
    at = data.index(b"\xff\xd8\xff", at)
    data[at : at + 64] = bytes(64)
    tar.write_bytes(data)
    file = tmp_path / "run.yaml"
    file.write_text(made.config(shards, tmp_path / "run", "data.damaged=fail").dump())
    impatient = "import hpe.__main__ as entry; entry._PATIENCE_SECONDS = 1; entry.main()"
    done = warm.run_ranks(2, "-c", impatient, "train", file)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert done.stderr.count("hpe: rank 1: val-000000.tar, sample10005") == 1
    assert "another rank is gone" not in done.stderr


def test_a_meeting_place_that_has_no_address_is_waited_for_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(host: str, _: object) -> list[object]:
        asked.append(host)
        if len(asked) in (2, 3):
            return []
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("MASTER_ADDR", "hpe-train-0")
    await_name(Ranks(0, 1, 0, 1))
    assert asked == []
    await_name(Ranks(1, 2, 0, 1), seconds=0.05)  # the second time it is there
    await_name(Ranks(1, 2, 0, 1), seconds=0.05)
    with pytest.raises(UserError, match=r"MASTER_ADDR is 'hpe-train-0', a name that .* not known"):
        await_name(Ranks(1, 2, 0, 1), seconds=0.05)
    assert len(asked) > 4


@pytest.fixture
def _soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hpe.core.notices._FIRST_WORD_SECONDS", 0.1)
    monkeypatch.setattr("hpe.core.notices._TICK_SECONDS", 0.02)


@pytest.mark.usefixtures("_soon")
def test_ranks_that_wait_for_others_to_start_say_where_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for rank in (1, 0):  # of one node: one word is enough
        with distributed.said_while_meeting(distributed.Ranks(rank, 8, rank, 4), timedelta(minutes=10)):
            time.sleep(0.3)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"hpe: rank 1 on .+ waits at node7:29500 until all 8 ranks .*; gives up after 10 min", line)
    with distributed.said_while_meeting(distributed.Ranks(0, 1, 0, 1), timedelta(minutes=10)):
        time.sleep(0.3)
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("_soon")
def test_ranks_that_wait_for_a_slow_one_name_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 -- makes the backend known

    monkeypatch.setattr(distributed, "_calls", itertools.count())
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda *_: time.sleep(0.3))
    store = dist.HashStore()
    dist.init_process_group("fake", rank=0, world_size=4, store=store)
    try:
        dist.distributed_c10d._get_default_store().set("hpe-calls/0/0/2", "")
        distributed.some_problem(None)
    finally:
        dist.destroy_process_group()
    assert "hpe: rank 0 waits for ranks 1, 3; gives up after" in capsys.readouterr().err


def test_a_rank_that_meets_another_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = dist.HashStore()
    for rank in (0, 1, 1):  # a process may ask again
        distributed.take_place(store, Ranks(rank, 2, rank, 2))
    mine = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: mine + 1)
    told = rf"node7:29500, where another job meets, whose rank 1 is process {mine} on .*; start each job with"
    with pytest.raises(UserError, match=told):
        distributed.take_place(store, Ranks(1, 2, 1, 2))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # the same ranks, started again
    distributed.take_place(store, Ranks(1, 2, 1, 2))


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_message(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(made.config(folder, tmp_path / "run").dump())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        meeting = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = warm.run("-m", "hpe", "train", file, env=ENVIRONMENT | meeting)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert f"MASTER_PORT is {port}, where another process of this machine listens already" in done.stderr
    assert "Traceback" not in done.stderr
