"""launch/slurm.sh on a real Slurm with two nodes: every end that a job can meet, and the weights after it."""

import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpe.core.errors import EXIT_AGAIN, EXIT_USAGE
from tests.cluster.conftest import PACK, ROOT, Events, files, step, stopwatch, weights
from tests.cluster.hosts import CONTROLLER
from tests.cluster.slurm import Slurm

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SCRIPT = str(ROOT / "launch" / "slurm.sh")
OPTIONS = shlex.split("--gpus-per-node 0 --ntasks-per-node 1 --cpus-per-task 1 --nodes 2 --exclusive --time 30")
KILLED_BY_USR1 = 128 + 10


def submit(slurm: Slurm, *words: str, options: str = "", **variables: str) -> str:
    return slurm.submit(*OPTIONS, *options.split(), SCRIPT, *words, **variables)


def code(job: dict[str, str]) -> int:
    return int(job["ExitCode"].split(":")[0])


def until_step(slurm: Slurm, number: str, run: Path, least: int) -> None:
    end = time.monotonic() + 240
    while step(run) < least:
        assert time.monotonic() < end, slurm.log(number)
        assert slurm.job(number)["JobState"] in ("PENDING", "RUNNING", "CONFIGURING"), slurm.log(number)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def whole(slurm: Slurm, place: Path, events: Events) -> dict[str, bytes]:
    """The weights of a run that nothing disturbs."""
    with stopwatch() as took:
        number = submit(slurm, "train", "run.yaml", "--run", "runs/whole")
        assert slurm.until(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", slurm.log(number)
    events.add("`slurm.sh train` on two nodes, undisturbed", took[0], "done")
    return weights(place / "runs" / "whole")


def test_scancel_ends_the_job_and_submitting_it_again_resumes(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events
) -> None:
    run = place / "runs" / "cancelled"
    number = submit(slurm, "run.yaml", "--run", str(run))  # the short form, without `train`
    until_step(slurm, number, run, 40)
    with stopwatch() as took:
        slurm.tell("scancel", number)
        job = slurm.until(number, "CANCELLED", "COMPLETED", "FAILED", "PENDING")
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), slurm.log(number)
    assert f"hpe: {number} was cancelled (saved)" in slurm.log(number)
    assert "stopped by a signal" in slurm.log(number)
    seen = step(run)
    time.sleep(10)
    assert slurm.job(number)["JobState"] == "CANCELLED"
    assert step(run) == seen
    again = submit(slurm, "run.yaml", "--run", str(run))
    slurm.until(again, "COMPLETED")
    events.add("`scancel`", took[0], "saved and cancelled; submitted again: resumed", weights(run) == whole)
    assert weights(run) == whole


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """A web server for a folder, that takes requests and answers none until the event is set."""
    answers = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.wait()
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with ThreadingHTTPServer((CONTROLLER, 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{CONTROLLER}:{server.server_port}", answers
        finally:
            answers.set()
            server.shutdown()


@pytest.mark.parametrize("phase", ["start", "store"])
def test_scancel_in_any_phase_loses_nothing(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events, phase: str
) -> None:
    """While hpe imports, and while it waits for a server that accepts and says nothing."""
    run = place / "runs" / f"cancelled-{phase}"
    words = ["train", "run.yaml", "--run", str(run)]
    with served(place / "shards") as (url, answers):
        if phase == "store":
            words += ["--set", f"data.train=[{{shards: {url}, split: train}}]"]
            number = submit(slurm, *words)
            slurm.says(number, "waiting for")
        else:
            number = submit(slurm, *words)
            slurm.started(number)
        with stopwatch() as took:
            slurm.tell("scancel", number)
            job = slurm.until(number, "CANCELLED", "COMPLETED", "FAILED", "PENDING")
            slurm.says(number, f"hpe: {number} was cancelled")
        answers.set()
        again = submit(slurm, *words)
        assert slurm.until(again, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", slurm.log(again)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), slurm.log(number)
    assert "Traceback" not in slurm.log(number), slurm.log(number)
    assert slurm.ranks(f"SLURM_JOB_ID={number}") == []
    what = {"start": "hpe starts", "store": "it waits for a store"}
    events.add(f"`scancel` while {what[phase]}", took[0], "cancelled; submitted again: done", weights(run) == whole)
    assert weights(run) == whole


@pytest.mark.parametrize("partition", ["low", "notice"])
def test_a_preempted_job_goes_back_into_the_queue_and_resumes(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events, partition: str
) -> None:
    run = place / "runs" / f"preempted-{partition}"
    number = submit(slurm, "train", "run.yaml", "--run", str(run), options=f"--partition {partition}")
    until_step(slurm, number, run, 40)
    with stopwatch() as took:
        urgent = slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true")
        slurm.until(urgent, "COMPLETED")
    assert slurm.job(number)["Restarts"] == "1", slurm.log(number)
    slurm.finish(number)
    how = "with a minute's notice" if partition == "notice" else "without notice"
    events.add(f"pre-emption {how}", took[0], "saved, requeued once, resumed", weights(run) == whole)
    assert slurm.job(number)["Restarts"] == "1"
    assert weights(run) == whole


def test_the_time_limit_puts_a_job_back_into_the_queue(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events
) -> None:
    run = place / "runs" / "late"
    with stopwatch() as took:
        # Slurm warns up to a minute early: 20 s before the end of two minutes is 40 s after the start or later.
        number = submit(
            slurm, "train", "run.yaml", "--run", str(run), "--set", "train.epochs=300",
            options="--time 2 --signal USR1@20",
        )  # fmt: skip
        slurm.requeued(number)
    slurm.restarted(number)
    assert "hpe: saved; requeued as" in slurm.log(number), slurm.log(number)
    until_step(slurm, number, run, step(run) + 20)
    slurm.tell("scancel", number)
    slurm.until(number, "CANCELLED")
    events.add("time limit of 2 minutes, warned 20 s before", took[0], "saved, requeued, resumed")


def test_a_warning_before_there_is_anything_to_save_is_tried_once_more_and_then_explained(
    slurm: Slurm, place: Path, events: Events
) -> None:
    """As with a --time that is shorter than the warning's lead, for which Slurm sends the same signal."""
    with stopwatch() as took:
        number = submit(slurm, "train", "run.yaml", "--run", "runs/short")
        slurm.until(number, "RUNNING")
        warn_early(slurm, number)
        slurm.restarted(number)
        warn_early(slurm, number)
        job = slurm.until(number, "FAILED", "COMPLETED", "CANCELLED", "TIMEOUT", seconds=120)
    log = slurm.log(number)
    assert log.count("hpe: stopped by SIGUSR1; run the same command again") == 2, log
    assert "ask for a longer --time" in log
    assert (job["JobState"], code(job), job["Restarts"]) == ("FAILED", KILLED_BY_USR1, "1"), log
    events.add("warning (SIGUSR1) while hpe starts, twice", took[0], "requeued once, then ended with the reason")


def warn_early(slurm: Slurm, number: str) -> None:
    """Send the ranks SIGUSR1 while they load their modules."""
    slurm.started(number)
    slurm.tell("scancel", "--signal=USR1", number)


@pytest.mark.parametrize("end", ["link", "power"])
def test_a_node_that_is_lost_is_named_and_the_job_resumes(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events, end: str
) -> None:
    run, node = place / "runs" / f"lost-{end}", slurm.network.hosts["node2"]
    number = submit(slurm, "train", "run.yaml", "--run", str(run), HPE_RANK_TIMEOUT="20")
    until_step(slurm, number, run, 40)
    with stopwatch() as took:
        node.cut()
        if end == "power":
            node.kill()
        slurm.requeued(number)
    assert "rank 1 on node2 has been silent for 20 s" in slurm.log(number), slurm.log(number)
    if end == "power":
        node.boot()
        slurm.switch_on("node2")
    node.join()
    slurm.await_nodes()
    slurm.finish(number)
    what = "link of node 2 cut" if end == "link" else "power of node 2 lost"
    events.add(f"{what}, `HPE_RANK_TIMEOUT=20`", took[0], "node named, requeued, resumed", weights(run) == whole)
    assert weights(run) == whole


def test_a_killed_rank_ends_the_job(slurm: Slurm, place: Path, events: Events) -> None:
    """A crash that would come again must not keep a job in the queue for ever."""
    run = place / "runs" / "crashed"
    number = submit(slurm, "train", "run.yaml", "--run", str(run))
    until_step(slurm, number, run, 20)
    with stopwatch() as took:
        for pid in slurm.ranks("SLURM_PROCID=1"):
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
        job = slurm.until(number, "FAILED", "COMPLETED", "CANCELLED", "NODE_FAIL")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), slurm.log(number)
    events.add("rank 1 killed (SIGKILL)", took[0], f"ended with exit code {code(job)}, not requeued")


def test_a_mistake_ends_the_job(slurm: Slurm, events: Events) -> None:
    with stopwatch() as took:
        number = submit(slurm, "train", "run.yaml", "--run", "runs/wrong", "--set", "train.epochs=-1")
        job = slurm.until(number, "FAILED", "COMPLETED", "CANCELLED")
    assert (job["JobState"], code(job), job["Restarts"]) == ("FAILED", EXIT_USAGE, "0"), slurm.log(number)
    assert "train.epochs" in slurm.log(number)
    events.add("a mistake in the config", took[0], "message, exit code 2, not requeued")


def test_pose_and_evaluate_on_two_nodes_write_what_one_process_writes(
    slurm: Slurm, place: Path, whole: dict[str, bytes], events: Events
) -> None:
    for words, made in (
        ("pose shards -e runs/whole", "shards/pose"),
        ("evaluate runs/whole shards --split val", "runs/whole/evaluate"),
    ):
        subprocess.run([place / "bin" / "hpe", *words.split()], cwd=place, check=True, capture_output=True)
        alone = files(place, f"{made}/**/*.parquet")
        shutil.rmtree(place / made)
        with stopwatch() as took:
            number = submit(slurm, *words.split())
            job = slurm.until(number, "COMPLETED", "FAILED", "CANCELLED")
        assert job["JobState"] == "COMPLETED", slurm.log(number)
        equal = len(alone) > 0 and files(place, f"{made}/**/*.parquet") == alone
        events.add(f"`slurm.sh {words.split()[0]}` on two nodes, and one process", took[0], "done", equal)
        assert equal


def test_pack_on_two_nodes_runs_on_one_of_them(slurm: Slurm, place: Path, events: Events) -> None:
    with stopwatch() as took:
        number = submit(slurm, *shlex.split(PACK.format("packed")))
        job = slurm.until(number, "COMPLETED", "FAILED", "CANCELLED")
    assert job["JobState"] == "COMPLETED", slurm.log(number)
    assert "`hpe pack` runs on rank 0 alone" in slurm.log(number)
    equal = files(place / "packed", "*.tar") == files(place / "shards", "*.tar")
    events.add("`slurm.sh pack` on two nodes, and one process", took[0], "packed on one; the other leaves", equal)
    assert equal


def test_a_command_in_a_batch_script_without_srun_runs_as_one_process(slurm: Slurm, events: Events) -> None:
    with stopwatch() as took:
        number = slurm.submit(
            "--nodes=2", "--ntasks=2", "--output=plain-%j.log", "--wrap",
            "hpe evaluate runs/whole shards --split val --name plain",
        )  # fmt: skip
        job = slurm.until(number, "COMPLETED", "FAILED", seconds=120)
    assert job["JobState"] == "COMPLETED", slurm.log(number)
    events.add("`hpe evaluate` in a batch script of two tasks, without srun", took[0], "done as one process")


def test_an_array_trains_one_run_per_number(slurm: Slurm, place: Path, events: Events) -> None:
    with stopwatch() as took:
        number = submit(
            slurm, *shlex.split("train run.yaml --set seed=%a --set train.epochs=1 --run runs/seed-%a"),
            options="--array 1-2 --nodes 1",
        )  # fmt: skip
        for task in (1, 2):
            slurm.until(f"{number}_{task}", "COMPLETED")
    first, second = (weights(place / "runs" / f"seed-{task}") for task in (1, 2))
    assert first.keys() == second.keys()
    assert first != second
    events.add("an array of two seeds", took[0], "two runs")


def test_exit_codes_that_the_script_knows_are_those_of_hpe() -> None:
    text = Path(SCRIPT).read_text(encoding="utf-8")
    assert f"  {EXIT_AGAIN}) again=saved" in text
    assert f"  {KILLED_BY_USR1}) again=" in text
