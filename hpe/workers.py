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
from multiprocessing.connection import wait
from typing import Final, Protocol, TypeVar

from hpe.errors import UserError

Given = TypeVar("Given")
Made = TypeVar("Made")
_AHEAD: Final = 4
"""Jobs handed out per worker: one in work, the others so that none waits for the slowest."""
_ASK_SECONDS: Final = 0.2


class Stopped(Exception):  # noqa: N818 (no error: a signal asked for it)
    """A signal asked to stop, and the jobs in work have been finished."""


class Stop(Protocol):
    """Tells whether a signal was caught (:class:`hpe.ranks.Signals`)."""

    caught: int | None


def run_jobs(function: Callable[[Given], Made], jobs: Iterable[Given], *, workers: int, stop: Stop) -> Iterator[Made]:
    """``function`` of every job, in order; with one worker in this process.

    Jobs are taken from the iterable only as workers come free, so that few are held in memory. After an error
    or a signal the jobs in work are finished and the others are not begun.

    Raises:
        Stopped: ``stop`` has caught a signal.
        UserError: a worker was killed.
        Exception: the first that a job raised.
    """
    if workers == 1:
        for job in jobs:
            if stop.caught is not None:
                raise Stopped
            yield function(job)
        return
    # Not fork: this process may have threads. The server imports torch once, for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpe.shardjob"])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    pending: deque[Future[Made]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, job))
            while len(pending) >= _AHEAD * workers:
                yield _next(pending, stop)
        while pending:
            yield _next(pending, stop)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; finished work stays: run the same "
            "command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _next(pending: "deque[Future[Made]]", stop: Stop) -> Made:
    while True:
        if stop.caught is not None:
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
