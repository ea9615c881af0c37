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
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpe.config import RunConfig
from hpe.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE, NotFiniteError, UserError
from hpe.files import write_json, write_text
from hpe.studyconfig import HOG, BoostedConfig

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

        from hpe import adaboost
        from hpe.report import report
        from hpe.stream import LabelSource, Reading

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
    from hpe.ranks import signals

    todo = [job for job in jobs if missing(job)]
    if not todo:
        return [], False
    context = multiprocessing.get_context("spawn")
    turn, processes = context.Value("i", 0), min(processes, len(todo))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    ended: list[Outcome] = []
    with signals() as caught:
        pool = ProcessPoolExecutor(processes, context, _begin, (turn, threads, _gpus(), os.getpid()))
        try:
            waiting: set[Future[Outcome]] = {pool.submit(perform, job, logs / f"{job.run.name}.log") for job in todo}
            while waiting and caught.caught is None:
                finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    ended.append(future.result())
                    said(ended[-1])
                    if ended[-1].code == EXIT_AGAIN:
                        caught.caught = signal.SIGTERM
        except BrokenProcessPool as error:
            if caught.caught is None:
                raise UserError(
                    f"a process of the study was killed, perhaps for want of memory (see {logs}); finished runs are "
                    "kept: run the same command again, with fewer --jobs"
                ) from error
        finally:
            for process in multiprocessing.active_children() if caught.caught is not None else ():
                process.terminate()  # training saves and leaves
            pool.shutdown(cancel_futures=True)
    return ended, caught.caught is not None


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def _begin(turn: Any, threads: int, gpus: list[str], parent: int) -> None:
    """Settle a process of the pool before torch is there."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # die with the parent (PR_SET_PDEATHSIG)
            if os.getppid() != parent:
                os._exit(EXIT_INCOMPLETE)
    with turn.get_lock():
        place = turn.value
        turn.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
