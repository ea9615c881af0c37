"""The runs of a study: what each one does, and a pool of processes that does them."""

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
from typing import Any, Final

from hpe.config.run import RunConfig
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE, NotFiniteError, UserError
from hpe.core.files import write_json, write_text
from hpe.study.config import HOG, BoostedConfig

DONE: Final = "done.json"
_POLL_SECONDS: Final = 0.5
_GENTLE: Final = (EXIT_OK, EXIT_INCOMPLETE)


@dataclass(frozen=True, slots=True)
class Trial:
    """Shards that a run is judged on; ``split`` and ``pose`` as for ``hpe evaluate``."""

    name: str
    shards: str
    split: str
    pose: str


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Train a network, evaluate it, and write its page."""

    config: RunConfig
    tests: tuple[Trial, ...]
    replicates: int

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    def perform(self, tests: Sequence[Trial]) -> int:
        """Do it, as ``hpe train`` and ``hpe evaluate`` do."""
        from hpe.evaluate import evaluate
        from hpe.report import report
        from hpe.stream import ShardSet
        from hpe.train import train

        code = train(self.config)
        for test in tests if code in _GENTLE else ():
            shards = ShardSet(test.shards, test.split, test.pose)
            judged = evaluate(self.run, [shards], name=test.name, replicates=self.replicates)
            code = max(code, judged)
        if code in _GENTLE:
            report([self.run])
        return code


@dataclass(frozen=True, slots=True)
class BoostJob:
    """Fit AdaBoost, evaluate it, and write its page."""

    run: Path
    settings: BoostedConfig
    features: Path | None
    train: Trial
    direction: str
    seed: int
    tests: tuple[Trial, ...]
    replicates: int

    def perform(self, tests: Sequence[Trial]) -> int:
        """Do it; its settings stand in ``config.yaml`` as a run's do."""
        import yaml

        from hpe.report import report
        from hpe.stream import LabelSource, Reading
        from hpe.study import adaboost

        settings = self.settings
        self.run.mkdir(parents=True, exist_ok=True)
        said = {"adaboost": settings.model_dump(mode="json"), "seed": self.seed, "data": {"train": self.train.shards}}
        write_text(self.run / "config.yaml", yaml.safe_dump(said, sort_keys=False))
        if self.features is None:
            features = adaboost.hog_of
            reading = Reading(settings.size, "grey", LabelSource("pose", self.direction))
        else:
            features, reading = adaboost.features_of_run(self.features)
        code = adaboost.boost(
            self.run, _shards(self.train), [(test.name, _shards(test)) for test in tests], reading, features,
            described=HOG if self.features is None else f"features of {self.features.name}",
            estimators=settings.estimators, depth=settings.depth, learning_rate=settings.learning_rate,
            seed=self.seed, replicates=self.replicates,
        )  # fmt: skip
        report([self.run])
        return code


def _shards(test: Trial) -> Any:
    from hpe.stream import ShardSet

    return ShardSet(test.shards, test.split, test.pose)


Job = TrainJob | BoostJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its exit code, and the problem where there was one."""

    run: Path
    code: int
    seconds: float
    problem: str = ""


def missing(job: Job) -> list[Trial]:
    """The tests that a job has yet to be judged on; none when it is done."""
    try:
        done = json.loads((job.run / DONE).read_text(encoding="utf-8"))["tests"]
    except (OSError, ValueError, KeyError, TypeError):
        return list(job.tests)
    return [t for t in job.tests if t.name not in done or not (job.run / "evaluate" / f"{t.name}.parquet").is_file()]


def perform(job: Job, log: Path) -> Outcome:
    """Do what is missing of a job, its words going to a log; mark it done."""
    start, todo = time.monotonic(), missing(job)
    code, problem = EXIT_OK, ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as words:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            try:
                code = job.perform(todo) if todo else EXIT_OK
            except UserError as error:
                code, problem = EXIT_USAGE, str(error)
            except NotFiniteError as error:
                code, problem = EXIT_INCOMPLETE, str(error)
            except Exception as error:
                traceback.print_exc()
                code, problem = EXIT_INCOMPLETE, f"{type(error).__name__}: {str(error)[:300]}; see {log}"
        if problem:
            words.write(problem + "\n")
    if not problem and code in _GENTLE:
        write_json(job.run / DONE, {"tests": [t.name for t in job.tests], "code": code})
    return Outcome(job.run, code, time.monotonic() - start, problem)


def run_jobs(
    jobs: Sequence[Job], logs: Path, processes: int, said: Callable[[Outcome], None]
) -> tuple[list[Outcome], bool]:
    """Do jobs on several processes; a job that fails does not keep the others from being done.

    Args:
        jobs: those that are done are left out.
        logs: folder of their words.
        processes: at a time; each gets its share of the cores, and a GPU in turn.
        said: told of every job that has ended.

    Returns:
        What became of the jobs that ended, and whether a signal asked to stop.

    Raises:
        UserError: a process was killed from outside.
    """
    from hpe.core.signals import signals

    todo = deque(job for job in jobs if missing(job))
    if not todo:
        return [], False
    ended: list[Outcome] = []
    # Sums of floats depend on the threads: these must not depend on how many jobs a stopped study has left.
    threads = max(1, len(os.sched_getaffinity(0)) // min(processes, len(jobs)))
    with signals() as caught, _workers(min(processes, len(todo)), threads) as idle:
        busy: list[Connection] = []
        while (todo or busy) and caught.caught is None:
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
                        f"a process of the study was killed, perhaps for want of memory (see {logs}); finished runs "
                        "are kept: run the same command again, with fewer --jobs"
                    ) from error
                busy.remove(worker)
                idle.append(worker)
                said(ended[-1])
                if ended[-1].code == EXIT_AGAIN:
                    caught.caught = signal.SIGTERM
    return ended, caught.caught is not None


@contextmanager
def _workers(count: int, threads: int) -> Iterator[list[Connection]]:
    """Processes that do the jobs sent to them; at the end those that still work are asked to save and leave.

    Each has a pipe of its own: an executor's workers share a lock, and one that is ended while it holds the lock
    leaves the others waiting for ever.
    """
    context = multiprocessing.get_context("spawn")
    gpus = _gpus()
    connections, started = [], []
    for place in range(count):
        here, there = context.Pipe()
        gpu = gpus[place % len(gpus)] if gpus else None
        process = context.Process(target=_work, args=(there, threads, gpu, os.getpid()))
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


def _work(jobs: Connection, threads: int, gpu: str | None, parent: int) -> None:
    """Do what is sent until nothing more can come."""
    _settle(threads, gpu, parent)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            jobs.send(perform(*jobs.recv()))


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def _settle(threads: int, gpu: str | None, parent: int) -> None:
    """Settle a process before torch is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says who is to leave
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # die with the parent (PR_SET_PDEATHSIG)
            if os.getppid() != parent:
                os._exit(EXIT_INCOMPLETE)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
