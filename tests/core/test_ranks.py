"""This process among those of its job: the launchers' variables, and how a rank ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from hpe.cli import app
from hpe.core.errors import EXIT_USAGE, UserError
from hpe.core.launch import relaunch
from hpe.core.ranks import Ranks, launched
from tests import warm
from tests.warm import ENVIRONMENT


@pytest.fixture
def _third_task_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # remembered as absent: what the code sets is taken away again
        monkeypatch.delenv(name)
    for name, value in (
        ("STEP_NUM_TASKS", "4"), ("PROCID", "3"), ("LOCALID", "1"), ("NODEID", "2"), ("STEP_TASKS_PER_NODE", "1(x2),2")
    ):  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.usefixtures("_third_task_of_four")
def test_slurms_numbers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert Ranks.from_environment() == Ranks(rank=3, world=4, local_rank=1, local_world=2)


@pytest.mark.usefixtures("_third_task_of_four")
def test_several_tasks_that_cannot_meet_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    told = "SLURM_STEP_NUM_TASKS is 4, without MASTER_ADDR; start with launch/slurm.sh, or with srun as it does"
    with pytest.raises(UserError, match=told):
        Ranks.from_environment()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 4, without MASTER_ADDR; .* torchrun"):
        Ranks.from_environment()


@pytest.mark.usefixtures("_third_task_of_four")
def test_processes_beside_slurms_tasks_are_refused_and_in_a_shell_without_tasks_are_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=r"--processes 2: Slurm has started 4 tasks here; leave --processes out"):
        relaunch(2, ["train", "x.yaml"])
    monkeypatch.delenv("SLURM_PROCID")  # the shell of salloc
    assert not launched()
    assert Ranks.from_environment().world == 1
    monkeypatch.setenv("RANK", "1")
    assert relaunch(2, ["train", "x.yaml"]) is None  # one of those processes


def test_a_batch_script_is_one_process_although_its_job_has_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen in Slurm 22.05: the script has the job's task count, but no step has been started."""
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_NPROCS", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    assert not launched()
    assert Ranks.from_environment() == Ranks(0, 1, 0, 1)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_command_of_one_process_leaves_it_to_rank_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = typer.testing.CliRunner().invoke(app, ["verify", str(tmp_path / "none")])
    assert done.output == (
        "hpe: `hpe verify` runs on rank 0 alone, with as many workers as its node has cores; "
        "the 2 others have nothing to do\n"
        if rank == 1
        else ""
    )
    if rank:
        assert done.exit_code == 0
    else:
        assert isinstance(done.exception, UserError)


@pytest.mark.slow
def test_a_command_that_slurm_starts_without_a_meeting_place_is_one_message(tmp_path: Path) -> None:
    tasks = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    done = warm.run("-m", "hpe", "evaluate", tmp_path, tmp_path, env=ENVIRONMENT | tasks)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_USAGE, 1)
    assert done.stderr.startswith("hpe: SLURM_STEP_NUM_TASKS is 2, without MASTER_ADDR and MASTER_PORT; start with")


@pytest.mark.parametrize(("rank", "world"), [("4", "4"), ("x", "2"), ("-1", "2")])
def test_impossible_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        Ranks.from_environment()


def test_a_rank_follows_its_launcher_before_the_slow_imports() -> None:
    code = (
        "import sys, hpe.core.distributed\n"
        "hpe.core.ranks.from_parent = lambda: sys.exit(8 if 'hpe.cli' in sys.modules else 7)\n"
        "from hpe.__main__ import main\n"
        "main()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


FAILS = "from hpe import __main__, cli; cli.app = lambda: 1 / 0; __main__.main()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grouped", "end", "seen"),
    [(True, "leave(75)", 75), (True, "leave(None)", 0), (True, FAILS, 1), (False, "leave(75)", 75), (False, FAILS, 1)],
)
def test_a_member_of_a_group_leaves_without_taking_python_apart(
    tmp_path: Path, grouped: bool, end: str, seen: int
) -> None:
    script = f"""
import atexit, os
from hpe.core.ranks import leave

class Last:
    def __del__(self, write=os.write):
        write(2, b"apart")

last = Last()
atexit.register(print, "at exit")
if {grouped}:
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method={(tmp_path / "meet").as_uri()!r}, rank=0, world_size=1)
print("said", end=" ")
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (seen, "said at exit\n")
    assert ("apart" in done.stderr) is not grouped
    assert done.stderr.count("ZeroDivisionError: division by zero\n") == (end == FAILS)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x': expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
    ],
)
def test_a_launchers_variables_that_are_no_numbers_are_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        Ranks.from_environment()
