"""Two hosts without Slurm: a lost link ends every rank and every launcher in time, and slow work ends nothing."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpe.core.errors import EXIT_AGAIN
from tests.cluster.conftest import ROOT, Events, slow_disk, step, stopwatch, weights
from tests.cluster.hosts import Host, Network, why_not
from tests.cluster.slurm import environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
LAUNCHERS = {
    "torchrun": "torchrun --nnodes 2 --nproc-per-node 1 --node-rank {rank} --master-addr {first} --master-port 29533 "
    "-m hpe train run.yaml --set run={run}",
    "accelerate": "accelerate launch --config_file {root}/launch/nodes.yaml --num_processes 2 --machine_rank {rank} "
    "--main_process_ip {first} --main_process_port 29533 -m hpe train run.yaml --set run={run}",
    "hpe": "hpe train run.yaml --set run={run}",
}
MOST_SECONDS = 180
"""After the last sign of life, with the default time limit."""


@pytest.fixture(scope="module")
def hosts(place: Path) -> Iterator[list[Host]]:
    if why := why_not():
        pytest.skip(why)
    with Network(place, "host1", "host2") as network:
        yield list(network.hosts.values())


def start(hosts: list[Host], place: Path, launcher: str, run: Path, **variables: str) -> "list[subprocess.Popen[str]]":
    """The same training on both hosts."""
    programs = Path(sys.executable).parent
    jobs = []
    for rank, host in enumerate(hosts):
        words = LAUNCHERS[launcher].format(rank=rank, first=hosts[0].address, root=ROOT, run=run)
        alone = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        meeting = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29533"}
        given = environment(place) | {
            "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        } | (alone | meeting if launcher == "hpe" else {}) | variables  # fmt: skip
        given["PATH"] += f":{programs}"
        with (place / f"{run.name}-{host.name}.log").open("w") as log:
            jobs.append(host.popen(shlex.split(words), place, env=given, stdout=log, stderr=log))
    return jobs


def logs(place: Path, run: Path) -> list[str]:
    return [(place / f"{run.name}-host{number}.log").read_text() for number in (1, 2)]


def until_step(jobs: "list[subprocess.Popen[str]]", place: Path, run: Path, least: int) -> None:
    end = time.monotonic() + 240
    while step(run) < least:
        assert time.monotonic() < end, logs(place, run)
        assert all(job.poll() is None for job in jobs), logs(place, run)
        time.sleep(0.2)


def ends(jobs: "list[subprocess.Popen[str]]", seconds: float) -> list[float | None]:
    """When each ended, in seconds from now; None where it has not."""
    start = time.monotonic()
    found: list[float | None] = [None] * len(jobs)
    while None in found and time.monotonic() - start < seconds:
        for number, job in enumerate(jobs):
            if found[number] is None and job.poll() is not None:
                found[number] = time.monotonic() - start
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def whole(hosts: list[Host], place: Path, events: Events) -> dict[str, bytes]:
    """The weights of a run that nothing disturbs."""
    run = place / "runs" / "hosts"
    with stopwatch() as took:
        jobs = start(hosts, place, "hpe", run)
        assert [job.wait(300) for job in jobs] == [0, 0], logs(place, run)
    events.add("`hpe train` on two hosts, undisturbed", took[0], "done")
    return weights(run)


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_lost_link_ends_both_hosts_in_time_and_the_same_command_resumes(
    hosts: list[Host], place: Path, whole: dict[str, bytes], events: Events, launcher: str
) -> None:
    run = place / "runs" / f"cut-{launcher}"
    seconds = "30" if launcher == "hpe" else "120"  # the default
    jobs = start(hosts, place, launcher, run, HPE_RANK_TIMEOUT=seconds)
    until_step(jobs, place, run, 40)
    hosts[1].cut()
    left = ends(jobs, MOST_SECONDS * 2)
    for job in jobs:
        job.kill()
    hosts[1].join()
    first, second = logs(place, run)
    assert f"rank 1 on host2 has been silent for {seconds} s" in first, first
    assert f"rank 0 on {hosts[0].address} has not answered for" in second, second
    codes = [job.wait() for job in jobs]
    if launcher == "hpe":
        assert codes == [EXIT_AGAIN, EXIT_AGAIN]
    jobs = start(hosts, place, launcher, run)
    assert [job.wait(300) for job in jobs] == [0, 0], logs(place, run)
    for host, after in zip(hosts, left, strict=True):
        event = f"link cut under {launcher}, `HPE_RANK_TIMEOUT={seconds}`: {host.name} leaves"
        events.add(event, after or -1, "other host named; resumed", weights(run) == whole)
    assert weights(run) == whole
    assert all(after is not None and after <= MOST_SECONDS for after in left), left


def test_a_checkpoint_slower_than_the_time_limit_ends_nothing(
    hosts: list[Host], place: Path, whole: dict[str, bytes], events: Events
) -> None:
    """Rank 0 writes for 25 s, with a limit of 10 s, while the other rank waits for it."""
    run = place / "runs" / "slow"
    with stopwatch() as took:
        jobs = start(hosts, place, "hpe", run, HPE_RANK_TIMEOUT="10", PYTHONPATH=f"{slow_disk(place)}:{ROOT}")
        assert [job.wait(300) for job in jobs] == [0, 0], logs(place, run)
    events.add("a checkpoint of 25 s, `HPE_RANK_TIMEOUT=10`", took[0], "done", weights(run) == whole)
    assert weights(run) == whole


def test_a_frozen_rank_is_named_and_a_suspended_job_goes_on(
    hosts: list[Host], place: Path, whole: dict[str, bytes], events: Events
) -> None:
    """A job that Slurm suspends stands still on all hosts; what it misses is nobody's silence."""
    run = place / "runs" / "frozen"
    jobs = start(hosts, place, "hpe", run, HPE_RANK_TIMEOUT="10")
    until_step(jobs, place, run, 40)
    groups = [pids_of(run, rank) for rank in (0, 1)]
    signal_all("STOP", *groups)
    time.sleep(30)
    signal_all("CONT", *groups, [job.pid for job in jobs])  # nsenter stops with its command
    seen = step(run)
    until_step(jobs, place, run, seen + 20)
    signal_all("STOP", groups[1])
    with stopwatch() as took:
        assert jobs[0].wait(60) == EXIT_AGAIN, logs(place, run)
    assert "rank 1 on host2 has been silent for 10 s" in logs(place, run)[0]
    signal_all("KILL", groups[1])
    signal_all("CONT", [jobs[1].pid])
    jobs[1].wait(30)
    jobs = start(hosts, place, "hpe", run)
    assert [job.wait(300) for job in jobs] == [0, 0], logs(place, run)
    events.add(
        "both ranks suspended for 30 s, then one frozen, `HPE_RANK_TIMEOUT=10`", took[0],
        "went on; then the frozen one named; resumed", weights(run) == whole,
    )  # fmt: skip
    assert weights(run) == whole


def pids_of(run: Path, rank: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            found.append(int(folder.name))
    assert found
    return found


def signal_all(name: str, *groups: list[int]) -> None:
    for pid in (pid for group in groups for pid in group):
        if os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
            subprocess.run(["kill", f"-{name}", str(pid)], check=False)
