"""The runs of a study: what each one does, and the processes that do them."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import dump
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE, NotFiniteError, UserError
from hpe.core.files import write_json, write_text
from hpe.study.config import BoostedConfig

if TYPE_CHECKING:
    from hpe.stream import ShardSet

DONE: Final = "done.json"
_POLL_SECONDS: Final = 0.5
_FINISHED: Final = (EXIT_OK, EXIT_INCOMPLETE)
"""Exit codes of a training or an evaluation that was carried out; with the second, some samples were unreadable."""


@dataclass(frozen=True, slots=True)
class NamedShards:
    """Shards for training or evaluation; ``split`` and ``pose`` as for ``hpe evaluate``."""

    name: str
    shards: str
    split: str
    pose: str

    def open(self) -> "ShardSet":
        """As the stream takes it."""
        from hpe.stream import ShardSet

        return ShardSet(self.shards, self.split, self.pose)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Train a network, evaluate it, and write its report."""

    config: RunConfig
    tests: tuple[NamedShards, ...]
    replicates: int

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    def execute(self, tests: Sequence[NamedShards]) -> int:
        """Train and evaluate as ``hpe train`` and ``hpe evaluate`` do; returns the exit code."""
        from hpe.evaluate import EvaluateOptions, evaluate
        from hpe.report import report
        from hpe.train import train

        code = train(self.config)
        for test in tests if code in _FINISHED else ():
            code = max(
                code, evaluate(self.run, [test.open()], EvaluateOptions(name=test.name, replicates=self.replicates))
            )
        if code in _FINISHED:
            report([self.run])
        return code


@dataclass(frozen=True, slots=True)
class BoostJob:
    """Fit AdaBoost, evaluate it, and write its report; ``seed`` is that of its trees."""

    run: Path
    settings: BoostedConfig
    features: Path | None
    train: NamedShards
    direction: str
    seed: int
    tests: tuple[NamedShards, ...]
    replicates: int

    def execute(self, tests: Sequence[NamedShards]) -> int:
        """Fit and evaluate; returns the exit code. The settings are written to ``config.yaml``, as those of a run."""
        from hpe.report import report
        from hpe.stream import LabelSource, Reading
        from hpe.study import adaboost

        self.run.mkdir(parents=True, exist_ok=True)
        written = {
            "adaboost": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "data": {"train": self.train.shards},
        }
        write_text(self.run / "config.yaml", dump(written))
        if self.features is None:
            features = adaboost.hog_features(Reading(self.settings.size, "grey", LabelSource("pose", self.direction)))
        else:
            features = adaboost.features_of_run(self.features)
        boosting = adaboost.Boosting(
            self.settings.estimators, self.settings.depth, self.settings.learning_rate, self.seed
        )
        opened = [(test.name, test.open()) for test in tests]
        code = adaboost.boost(self.run, self.train.open(), opened, features, boosting, replicates=self.replicates)
        report([self.run])
        return code


StudyJob = TrainJob | BoostJob


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: its exit code, and the problem if there was one."""

    run: Path
    code: int
    seconds: float
    problem: str = ""


def missing_tests(job: StudyJob) -> list[NamedShards]:
    """The evaluations that a job still has to do; none when it is done."""
    try:
        done = json.loads((job.run / DONE).read_text(encoding="utf-8"))["tests"]
    except (OSError, ValueError, KeyError, TypeError):
        return list(job.tests)
    return [t for t in job.tests if t.name not in done or not (job.run / "evaluate" / f"{t.name}.parquet").is_file()]


def run_job(job: StudyJob, log: Path) -> JobResult:
    """Do what a job still has to do, with its output in a log file; mark it done."""
    start, todo = time.monotonic(), missing_tests(job)
    code, problem = EXIT_OK, ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                code = job.execute(todo) if todo else EXIT_OK
            except UserError as error:
                code, problem = EXIT_USAGE, str(error)
            except NotFiniteError as error:
                code, problem = EXIT_INCOMPLETE, str(error)
            except Exception as error:
                traceback.print_exc()
                code, problem = EXIT_INCOMPLETE, f"{type(error).__name__}: {str(error)[:300]}; see {log}"
        if problem:
            output.write(problem + "\n")
    if not problem and code in _FINISHED:
        write_json(job.run / DONE, {"tests": [t.name for t in job.tests], "code": code})
    return JobResult(job.run, code, time.monotonic() - start, problem)


def run_jobs(
    jobs: Sequence[StudyJob], logs: Path, processes: int, on_end: Callable[[JobResult], None]
) -> tuple[list[JobResult], bool]:
    """Run jobs on several processes; a job that fails does not stop the others.

    Args:
        jobs: those that are done are skipped.
        logs: folder of their logs.
        processes: number of jobs at a time; each gets its share of the cores, and the GPUs in turn.
        on_end: called with the result of every job that has ended.

    Returns:
        The results of the jobs that ended, and whether a signal asked to stop.

    Raises:
        UserError: a process was killed from outside.
    """
    from hpe.core.devices import cores
    from hpe.core.signals import signals

    todo = deque(job for job in jobs if missing_tests(job))
    if not todo:
        return [], False
    ended: list[JobResult] = []
    # Sums of floats depend on the number of threads. Counted from all jobs, not from those that are left, it stays
    # the same when a stopped study is resumed, and so do the results.
    threads = max(1, cores() // min(processes, len(jobs)))
    with signals() as stop_signal, _workers(min(processes, len(todo)), threads) as idle:
        busy: list[Connection] = []
        while (todo or busy) and not stop_signal.received:
            while todo and idle:
                job = todo.popleft()
                idle[-1].send((job, logs / f"{job.run.name}.log"))
                busy.append(idle.pop())
            for worker in wait(busy, _POLL_SECONDS):
                assert isinstance(worker, Connection)
                try:
                    ended.append(worker.recv())
                except (EOFError, ConnectionError) as error:
                    raise UserError(
                        f"a process of the study was killed, perhaps as memory ran out (see {logs}); finished runs are "
                        "kept: run the same command again, with fewer --jobs"
                    ) from error
                busy.remove(worker)
                idle.append(worker)
                on_end(ended[-1])
                if ended[-1].code == EXIT_AGAIN:  # this process alone got the signal; the study stops as a whole
                    stop_signal.number = signal.SIGTERM
    return ended, stop_signal.received


@contextmanager
def _workers(count: int, threads: int) -> Iterator[list[Connection]]:
    """Processes that do the jobs sent to them; at the end, those still at work are asked to save and exit.

    Each has a pipe of its own. The workers of an executor share a lock, and one that is terminated while it holds the
    lock leaves the others waiting forever.
    """
    # Spawned: a forked process could not choose its GPU any more, as torch has looked for GPUs here.
    context = multiprocessing.get_context("spawn")
    gpus = _gpus()
    connections, started = [], []
    for place in range(count):
        here, there = context.Pipe()  # the worker sees the end of its work by the end of this pipe
        gpu = gpus[place % len(gpus)] if gpus else None
        process = context.Process(target=_serve, args=(there, threads, gpu, os.getpid()))
        process.start()
        there.close()
        connections.append(here)
        started.append(process)
    try:
        yield list(connections)
    finally:
        for process in started:
            process.terminate()
        for here in connections:
            here.close()
        for process in started:
            process.join()


def _serve(jobs: Connection, threads: int, gpu: str | None, parent: int) -> None:
    """Do the jobs that are sent, until the other end of the pipe is closed."""
    _configure_process(threads, gpu, parent)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            jobs.send(run_job(*jobs.recv()))


def _gpus() -> list[str]:
    """The values of CUDA_VISIBLE_DEVICES for one GPU each."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def _configure_process(threads: int, gpu: str | None, parent: int) -> None:
    """Set signals, threads and GPU of a new process, before torch is imported and reads them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides which to end
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # end with the parent (PR_SET_PDEATHSIG)
            if os.getppid() != parent:  # it had ended before the line above, which then has no effect
                os._exit(EXIT_INCOMPLETE)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
