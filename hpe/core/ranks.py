"""This process among those of its job: its numbers, by the variables of the launcher, and how it ends.

Other files ask this one; only messages, progress bars and checks of the machine read RANK themselves.

A job runs as one process (``hpe train``), as N on one machine (``hpe train --processes N``, which starts
Accelerate's launcher), under ``accelerate launch -m hpe train``, ``torchrun -m hpe train`` or ``srun hpe
train`` with one task a GPU. All of them end up as the variables RANK, WORLD_SIZE, LOCAL_RANK.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from hpe.core.console import say
from hpe.core.errors import UserError

_SLURM: Final = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
_PR_SET_PDEATHSIG: Final = 1
_PORTS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the job."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def from_environment(cls) -> Self:
        """This process as the launcher has numbered it; one rank of one without a launcher.

        Inside ``srun`` with several tasks Slurm's numbers are used (``MASTER_ADDR`` and ``MASTER_PORT`` come
        from the batch script).

        Raises:
            UserError: the variables contradict each other, or the address where the ranks meet is missing.
        """
        found = cls.numbered()
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if found.world > 1 and missing:
            by, way = "WORLD_SIZE", "start with accelerate launch or torchrun, or set them: the first node, a free port"
            if slurm_tasks() > 1:
                by, way = "SLURM_STEP_NUM_TASKS", "start with launch/slurm.sh, or with srun as it does"
            raise UserError(f"{by} is {found.world}, without {' and '.join(missing)}; {way}")
        port = os.environ.get("MASTER_PORT", "29500")
        if not (port.isdecimal() and int(port) < _PORTS):
            raise UserError(f"MASTER_PORT is {port!r}: expected a port's number, such as 29500")
        return found

    @classmethod
    def numbered(cls) -> Self:
        """As :meth:`from_environment`, for what needs no address where the ranks meet.

        Raises:
            UserError: the variables contradict each other.
        """
        env = os.environ
        if "RANK" not in env and slurm_tasks() > 1:
            for name, slurm in _SLURM.items():
                env.setdefault(name, env.get(slurm, "0"))
            env.setdefault("LOCAL_WORLD_SIZE", str(_slurm_tasks_here()))
        try:
            rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
            local_rank = int(env.get("LOCAL_RANK", "0"))
            local_world = int(env.get("LOCAL_WORLD_SIZE", str(world)))
        except ValueError as error:
            raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK: expected whole numbers ({error})") from error
        if not 0 <= rank < world:
            raise UserError(
                f"RANK is {rank} and WORLD_SIZE is {world}: expected 0 <= RANK < WORLD_SIZE; "
                "unset both, or start with accelerate launch or torchrun"
            )
        return cls(rank, world, local_rank, local_world)

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line to stderr, on rank 0 alone: N ranks would print it N times."""
        if self.main:
            say(text)


def launched() -> bool:
    """True inside a rank that some launcher has started."""
    return "RANK" in os.environ or slurm_tasks() > 1


def leave_to_rank_0(command: str) -> None:
    """On other ranks, end: the command runs in one process, with worker processes of its own on that machine.

    Raises:
        UserError: see :meth:`Ranks.from_environment`.
    """
    if not launched() or (ranks := Ranks.numbered()).main:
        return
    if ranks.rank == 1:
        others = f"the {ranks.world - 1} others have" if ranks.world > 2 else "rank 1 has"
        say(
            f"hpe: `{command}` runs on rank 0 alone, with as many workers as its node has cores; {others} nothing to do"
        )
    sys.exit(0)


def slurm_tasks() -> int:
    """How many tasks of Slurm this one is among; 1 outside of ``srun``: a batch script has its job's task count, too.

    Raises:
        UserError: the count is no whole number.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    if not tasks.isdecimal():
        raise UserError(f"SLURM_STEP_NUM_TASKS is {tasks!r}: expected a whole number; start with srun, or unset it")
    return int(tasks)


def _slurm_tasks_here() -> int:
    """Tasks of this step on this node, of a list such as ``2(x3),1``: three nodes with two tasks, and one with one."""
    listed = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    nodes = [int(tasks) for tasks, times in listed for _ in range(int(times or 1))]
    node = os.environ.get("SLURM_NODEID", "0")
    return nodes[int(node)] if node.isdecimal() and int(node) < len(nodes) else 1


def from_parent(number: int = signal.SIGTERM) -> None:
    """End with the launcher: a rank whose launcher was killed gets SIGTERM, and does not keep its GPU."""
    if "RANK" in os.environ:
        end_with_parent(number)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the process that started this one ends, however it ends."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def leave(code: int | str | None) -> NoReturn:
    """End this process as ``sys.exit`` does; a member of a process group does so without taking Python apart.

    A thread of gloo may let go of the last collective's tensor a moment after its result is there. Met by a Python
    that is being taken apart it aborts the process (exit code -6 of a job that is done), and destroying the group
    first can wait for that thread for ever, which waits for Python (pytorch/pytorch, pull request 179291).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        sys.exit(code)
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()  # as multiprocessing ends its processes
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1 if isinstance(code, str) else code or 0)
