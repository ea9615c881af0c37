"""Jobs for the pool of a study, in a file of their own: a spawned process imports it, and not what the tests need."""

import os
import signal
import time
from pathlib import Path

from hpe.core.errors import UserError
from hpe.study.jobs import NamedShards


class Job:
    """A job that can, or cannot, be done."""

    tests = (NamedShards("t", "s", "test", "p"),)
    replicates = 100

    def __init__(self, run: Path, problem: str) -> None:
        self.run, self.problem = run, problem

    def execute(self, tests: object) -> int:
        if self.problem:
            raise UserError(self.problem)
        (self.run / "evaluate").mkdir(parents=True)
        (self.run / "evaluate" / "t.parquet").touch()
        return 0


class Telling(Job):
    """A job that tells its threads."""

    def execute(self, tests: object) -> int:
        import torch  # as loaded by the pool

        (self.run.parent / "threads").write_text(str(torch.get_num_threads()))
        return super().execute(tests)


class Waiting(Job):
    """A job that asks the study to stop, and would go on for ever."""

    def execute(self, tests: object) -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(600)
        return 0


class Killed(Job):
    """A job whose process is killed, as for want of memory."""

    def execute(self, tests: object) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0
