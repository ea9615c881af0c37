"""Jobs on worker processes, results in order, which end when their parent ends."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as Waiting
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Final, Self, TypeVar

from hpe.core.errors import UserError
from hpe.core.signals import Signals

Given = TypeVar("Given")
Made = TypeVar("Made")
_AHEAD: Final = 4
"""Jobs handed out per worker: one in work, the others so that none waits for the slowest."""
_ASK_SECONDS: Final = 0.2


class Stopped(Exception):  # noqa: N818 (no error: a signal asked for it)
    """A signal asked to stop, and the jobs in work have been finished."""


class Workers:
    """Processes that start while this one goes on, and do one list of jobs after another.

    With one worker, jobs are done in this process.

    Args:
        count: processes.
        stop: after a signal the jobs in work are finished and the others are not begun.
        preload: module that is imported once, for all workers: what their jobs need and what is slow to import.
    """

    def __init__(self, count: int, stop: Signals, *, preload: str = "torch") -> None:
        self._count, self._stop, self._preload = count, stop, preload
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._count > 1:
            # Not fork: this process may have threads. The server imports once, for all workers.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([self._preload])
            forkserver.ensure_running()
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_begin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """End the processes in the midst of their jobs, which must write whole files or none."""
        for process in list(self._pool._processes.values()) if self._pool is not None else ():
            process.kill()

    def run(self, function: Callable[[Given], Made], jobs: Iterable[Given]) -> Iterator[Made]:
        """``function`` of every job, in order. Jobs are taken as workers come free, so that few are in memory.

        Raises:
            Stopped: a signal was caught.
            UserError: a worker was killed.
            Exception: the first that a job raised.
        """
        if self._pool is None:
            for job in jobs:
                if self._stop.received:
                    raise Stopped
                yield function(job)
            return
        pending: deque[Future[Made]] = deque()
        try:
            for job in jobs:
                pending.append(self._pool.submit(function, job))
                while len(pending) >= _AHEAD * self._count:
                    yield _next(pending, self._stop)
            while pending:
                yield _next(pending, self._stop)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely because memory ran out; finished work stays: run the same "
                "command again, with fewer --workers"
            ) from error


def run_jobs(
    function: Callable[[Given], Made], jobs: Iterable[Given], *, workers: int, stop: Signals
) -> Iterator[Made]:
    """One list of jobs on processes of their own; see :meth:`Workers.run`."""
    with Workers(workers, stop) as started:
        yield from started.run(function, jobs)


def _next(pending: "deque[Future[Made]]", stop: Signals) -> Made:
    while True:
        if stop.received:
            raise Stopped
        try:
            made = pending[0].result(_ASK_SECONDS)
        except Waiting:
            if not pending[0].done():
                continue
            raise
        pending.popleft()
        return made


def _begin() -> None:
    """In a worker: leave signals to the parent, die with it, and use one core."""
    import torch

    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A worker waits on a pipe that its siblings hold open too: it would outlive a parent that was killed.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
