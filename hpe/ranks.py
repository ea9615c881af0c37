"""Who am I among the processes of a job: the one file that knows ranks, launchers and signals.

A job runs as one process (``hpe train``), as N on one machine (``hpe train --processes N``, which starts
Accelerate's launcher), under ``accelerate launch -m hpe train``, ``torchrun -m hpe train`` or ``srun hpe
train`` with one task a GPU. All of them end up as the variables RANK, WORLD_SIZE, LOCAL_RANK.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Self

from hpe.errors import EXIT_AGAIN, UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_SLURM: Final = {
    "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}  # fmt: skip
_PR_SET_PDEATHSIG: Final = 1
_PORTS: Final = 1 << 16
_SPARE_ONE_OF: Final = 8


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the job."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def from_environment(cls) -> Self:
        """The ranks that the launcher has set, which can find each other; alone when there is none.

        Inside ``srun`` with several tasks Slurm's numbers are used (``MASTER_ADDR`` and ``MASTER_PORT`` come
        from the batch script).

        Raises:
            UserError: the variables contradict each other, or do not say where the ranks meet.
        """
        found = cls._numbered()
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if found.world > 1 and missing:
            by, way = "WORLD_SIZE", "start with accelerate launch or torchrun, or set them: the first node, a free port"
            if _slurm_tasks() > 1:
                by, way = "SLURM_NTASKS", "start with srun as launch/slurm.sh does, or unset SLURM_NTASKS"
            raise UserError(f"{by} is {found.world}, without {' and '.join(missing)}; {way}")
        port = os.environ.get("MASTER_PORT", "29500")
        if not (port.isdecimal() and int(port) < _PORTS):
            raise UserError(f"MASTER_PORT is {port!r}: expected a port's number, such as 29500")
        return found

    @classmethod
    def _numbered(cls) -> Self:
        env = os.environ
        if "RANK" not in env and _slurm_tasks() > 1:
            for name, slurm in _SLURM.items():
                env.setdefault(name, env.get(slurm, "1"))
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


def accelerator(precision: str, *, find_unused: bool = False) -> "Accelerator":
    """Accelerate's object for this process: device, process group and mixed precision (no, bf16, fp16)."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    from_parent()
    Ranks.from_environment()
    # A process may train in one precision and evaluate in another (hpe study); the process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=precision,
        cpu=not cuda(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused)],
    )


def precision_of(setting: str) -> str:
    """Accelerate's name of ``train.precision``; ``auto`` is bf16 where the hardware multiplies it, else fp32."""
    import torch

    if setting == "auto":
        fast = torch.cuda.is_bf16_supported() if cuda() else torch.cpu._is_avx512_bf16_supported()
        return "bf16" if fast else "no"
    return "no" if setting == "fp32" else setting


def agree(text: str | None) -> str | None:
    """Rank 0's text on every rank: a collective call, so that all ranks go on, or fail, alike."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return text
    box = [text]
    dist.broadcast_object_list(box, 0)
    return box[0]


def some_rank(said: bool) -> bool:
    """Whether it is so on one rank or more: a collective call."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return said
    box = torch.tensor(int(said), device=device())
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return bool(box)


def cuda() -> bool:
    """True where torch sees a GPU that the user has not switched off with ``ACCELERATE_USE_CPU``."""
    import torch

    return not _cpu_wanted() and torch.cuda.is_available()


def _cpu_wanted() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(workers: int) -> None:
    """On a CPU, give the network's threads the cores, where nobody has set OMP_NUM_THREADS.

    Readers run beside them; of eight cores and more one is left to the readers.
    """
    import torch

    if not cuda() and "OMP_NUM_THREADS" not in os.environ:
        threads = cores()
        # Threads that share a core with a reader hold up the whole team: a step of T seconds on one core, with R of
        # reading, takes about T/n + R on all n cores and the larger of T/(n - 1) and R on all but one. For FER+ (R is
        # 2.2 % of T by CPU time) the first is shorter up to 7 cores; on 2, 253 images/s were seen with both cores
        # against 152 with one (configs/ferplus_multitask.yaml). The rule looks at the machine alone and tries nothing
        # out: another number of threads gives other last digits, and the same command must give the same bytes.
        torch.set_num_threads(threads - (workers > 0 and threads >= _SPARE_ONE_OF))


def device() -> "torch.device":
    """This rank's device, for work that needs no process group."""
    import torch

    if not cuda():
        return torch.device("cpu")
    return torch.device("cuda", Ranks._numbered().local_rank % torch.cuda.device_count())


def named_device(name: str) -> "torch.device":
    """The device that a user names: ``auto`` and ``cuda`` are this rank's.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        return device()
    try:
        named = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if named.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU here; use --device cpu")
    return device() if name == "cuda" else named


def from_parent(number: int = signal.SIGTERM) -> None:
    """Die with the launcher: a rank whose launcher was killed gets SIGTERM instead of living on alone."""
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


def launched() -> bool:
    """True inside a rank that some launcher has started."""
    return "RANK" in os.environ or _slurm_tasks() > 1


def _slurm_tasks() -> int:
    """How many tasks of Slurm this one is among; 1 outside of them, as in the shell of ``salloc``."""
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    if not tasks.isdecimal():
        raise UserError(f"SLURM_NTASKS is {tasks!r}: expected a whole number; start with srun, or unset it")
    return int(tasks)


def refuse_processes(processes: int) -> None:
    """See that this machine is one for so many processes.

    Raises:
        UserError: more processes than GPUs, or, where there are none, than cores (``ACCELERATE_USE_CPU`` says that
            they are meant for the CPU, however many); or fewer than one.
    """
    if processes < 1:
        raise UserError(f"--processes {processes}: expected 1 or more")
    if cuda():
        import torch

        if processes > torch.cuda.device_count():
            raise UserError(
                f"--processes {processes}: this machine shows {torch.cuda.device_count()} GPUs; use at most that, "
                "or ACCELERATE_USE_CPU=true for CPU processes"
            )
    elif processes > (most := max(_ALWAYS_TRIED, cores())) and not _cpu_wanted():
        raise UserError(
            f"--processes {processes}: torch sees no GPU here (`hpe doctor` says what it sees), and there are "
            f"{cores()} CPU cores, where each process takes memory of its own; use --processes {most} or fewer, or "
            "ACCELERATE_USE_CPU=true to do it all the same"
        )


def relaunch(processes: int, arguments: list[str]) -> None:
    """Run ``hpe ARGUMENTS`` on N processes of this machine through Accelerate's launcher, and exit.

    Returns in those processes, and where one is asked for.

    The launcher's own default is one process for a CPU, so the ranks are asked for as "multi GPU" with
    ``ACCELERATE_USE_CPU``, which gives gloo processes.

    Raises:
        UserError: see :func:`refuse_processes`; or Slurm has started several tasks already.
        SystemExit: with the exit code of the first rank that failed, else 0.
    """
    if "RANK" in os.environ:
        return
    if launched():
        raise UserError(
            f"--processes {processes}: Slurm has started {_slurm_tasks()} tasks here; start with srun as "
            "launch/slurm.sh does, without --processes, or unset SLURM_NTASKS"
        )
    refuse_processes(processes)
    if processes == 1:
        return  # Accelerate starts a single process without RANK: it would start another, and so on without end
    if not cuda():
        if not _cpu_wanted():
            told = f"hpe: torch sees no GPU here: {processes} processes on {cores()} CPU cores"
            print(told, file=sys.stderr, flush=True)
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # A pre-emption signal must reach the ranks, which save and leave.
    for name in ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE"):  # newer and older torch
        os.environ.setdefault(name, "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    import torch.distributed.run  # noqa: F401 -- its loggers are set up on import, so before they are hushed
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _hush("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.elastic.agent.server.api")
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # `--multi_gpu` is what makes real processes, on a CPU too.
    options += ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
    parsed = launch_command_parser().parse_args([*options, "-m", "hpe", *arguments])
    try:
        launch_command(parsed)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        if code < 0 or code not in _SPOKEN:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            why = _OUT_OF_MEMORY if code == -signal.SIGKILL else ""
            print(f"hpe: rank {rank} {how}; the other ranks were ended{why}", file=sys.stderr, flush=True)
        sys.exit(code if code > 0 else 1)
    except SignalException:  # the ranks were told, and had time to save
        sys.exit(EXIT_AGAIN)
    sys.exit(0)


_OUT_OF_MEMORY: Final = (
    ". The kernel does so when memory runs out: every process holds a network, its workers and its share of the batch, "
    "so lower --processes, the workers (data.workers) or the batch (train.batch); then run it again"
)
_ALWAYS_TRIED: Final = 2
"""Processes that a CPU of a single core may run too: enough to see that a command works on several."""
_SPOKEN: Final = frozenset((0, 1, 2, 75, 130))
"""Exit codes after which the rank itself has printed why."""


def _hush(*names: str) -> None:
    import logging

    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Signals:
    """SIGTERM, SIGUSR1 (Slurm's pre-emption) and SIGINT as a wish to stop, asked for between two steps."""

    def __init__(self) -> None:
        self.caught: int | None = None

    def __call__(self, number: int, _frame: object) -> None:
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


@contextmanager
def signals() -> Iterator[Signals]:
    """Catch the stop signals inside the block; a second Ctrl-C stops at once."""
    caught = Signals()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before: dict[int, Callable[..., object] | int | None] = {n: signal.signal(n, caught) for n in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
