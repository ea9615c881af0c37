"""This process among those of a job: finds its rank and device, makes the Accelerator, and lets ranks agree.

Other files ask this one; only messages, progress bars and checks of the machine read RANK themselves.

A job runs as one process (``hpe train``), as N on one machine (``hpe train --processes N``, which starts
Accelerate's launcher), under ``accelerate launch -m hpe train``, ``torchrun -m hpe train`` or ``srun hpe
train`` with one task a GPU. All of them end up as the variables RANK, WORLD_SIZE, LOCAL_RANK.
"""

import atexit
import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.notices import said_while_waiting

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_SLURM: Final = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
_PR_SET_PDEATHSIG: Final = 1
_PORTS: Final = 1 << 16
_SPARE_ONE_OF: Final = 8
_NAME_SECONDS: Final = 60.0
_FIRST_WORD_SECONDS: Final = 3.0
_NAMED: Final = 5


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
        found = cls._numbered()
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
    def _numbered(cls) -> Self:
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


def accelerator(precision: str, *, find_unused: bool = False) -> "Accelerator":
    """Accelerate's object for this process: device, process group and mixed precision (fp32, bf16, fp16).

    Every setting that changes the arithmetic is given here. What is not given, Accelerate takes from ACCELERATE_*
    variables, and its launcher from a file in the home folder.

    Raises:
        UserError: the environment asks for another engine or device, or two ranks share a GPU.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import DynamoBackend, GradientAccumulationPlugin, TorchDynamoPlugin

    from_parent()
    ranks = Ranks.from_environment()
    refuse_other_engines()
    if ranks.main:
        _warn_of_unused_variables()
        report_devices()
    await_name(ranks)
    named = "no" if precision == "fp32" else precision
    # A process may train in one precision and evaluate in another (hpe study): without this Accelerate refuses the
    # second. The process group stays.
    AcceleratorState._reset_state()
    limit = _patience("nccl" if cuda() else "gloo")
    with said_while_meeting(ranks, limit):
        _ask_for_place(ranks, limit)
    try:
        with said_while_meeting(ranks, limit):
            here = Accelerator(
                mixed_precision=named,
                cpu=not cuda(),
                dynamo_plugin=TorchDynamoPlugin(
                    backend=DynamoBackend.NO,
                    mode="default",
                    fullgraph=False,
                    dynamic=False,
                    use_regional_compilation=False,
                ),
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                # Gradients are views of the buckets that ranks exchange: saves one copy of all gradients in memory.
                kwargs_handlers=[
                    DistributedDataParallelKwargs(find_unused_parameters=find_unused, gradient_as_bucket_view=True)
                ],
            )
    except (ValueError, ImportError, NotImplementedError) as error:
        given = ", ".join(sorted(name for name in os.environ if name.startswith("ACCELERATE_"))) or "none"
        why = " ".join(str(error).split())[:300]
        raise UserError(f"Accelerate does not start: {why} (its variables that are set here: {given})") from error
    _refuse_other_choices(here, named, ranks.world)
    if ranks.world > 1:
        _met(here, ranks)
    return here


def await_name(ranks: Ranks, seconds: float = _NAME_SECONDS) -> None:
    """See that the host where the ranks meet has an address: torch would look for it in silence for ten minutes.

    Args:
        ranks: of the job; one rank meets nobody.
        seconds: a name may become known a little later, as that of a pod does.

    Raises:
        UserError: the name of MASTER_ADDR leads nowhere.
    """
    host, start, told = os.environ.get("MASTER_ADDR", ""), time.monotonic(), False
    while ranks.world > 1:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            why, waited = getattr(error, "strerror", None) or error, time.monotonic() - start
            if waited >= seconds:
                raise UserError(
                    f"MASTER_ADDR is {host!r}, a name that this machine has not found for {seconds:.0f} s ({why}); "
                    "give the first node's address, or a name that every node knows"
                ) from error
            if waited >= _FIRST_WORD_SECONDS and not told:
                told = True
                say(f"hpe: rank {ranks.rank} looks for MASTER_ADDR, {host!r}, for up to {seconds:.0f} s ({why})")
        time.sleep(min(1.0, seconds))


@contextmanager
def said_while_meeting(ranks: Ranks, limit: timedelta) -> Iterator[None]:
    """Around the meeting of the ranks: says, when it takes long, where they meet, and after which time it fails."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    with (
        said_while_waiting(
            lambda: (
                f"rank {ranks.rank} on {socket.gethostname()} waits at {place} until all {ranks.world} ranks are "
                f"there; one may not be started yet, or still open its shards; gives up after {_minutes(limit)}"
            )
        )
        if ranks.world > 1
        else contextlib.nullcontext()
    ):
        yield


_calls = itertools.count()


@contextmanager
def _together() -> Iterator[None]:
    """Around a collective call: says, when it takes long, which ranks are waited for, and after which time it fails."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    store, rank, world = _get_default_store(), dist.get_rank(), dist.get_world_size()
    # All ranks make the same calls. A launcher that restarts its ranks may keep the store.
    call = f"hpe-calls/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_calls)}"
    store.set(f"{call}/{rank}", "")

    def text() -> str:
        asked = store.clone()  # the call may use the connection of the other
        missing = [str(other) for other in range(world) if not asked.check([f"{call}/{other}"])]
        named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        whom = f"rank{'s' * (len(missing) > 1)} {named}" if missing else "what the other ranks send"
        return f"rank {rank} waits for {whom}; gives up after {_minutes(_patience(dist.get_backend()))}"

    with said_while_waiting(text):
        yield


def _patience(backend: str) -> timedelta:
    """How long torch waits for other ranks, unless it is asked otherwise."""
    from torch.distributed.distributed_c10d import _get_default_timeout

    return _get_default_timeout(backend)


def _minutes(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:.0f} min"


def _met(here: "Accelerator", ranks: Ranks) -> None:
    """See, once the ranks have met, that each has a GPU of its own, and watch that all stay."""
    import torch
    from torch.distributed.distributed_c10d import _get_default_store

    from hpe.core.heartbeats import start_heartbeats

    store = _get_default_store()
    if torch.distributed.get_backend() == "nccl":
        identity = torch.cuda.get_device_properties(here.device).uuid
        refuse_shared_gpus(store, ranks, f"{socket.gethostname()} {identity}")
    start_heartbeats(store, ranks.rank, range(ranks.world) if ranks.main else (0,))


def _ask_for_place(ranks: Ranks, limit: timedelta) -> None:
    """:func:`take_place` over a connection of its own, before a process group is made, which would wait."""
    import torch.distributed as dist

    if not ranks.main and not dist.is_initialized():  # rank 0 may be the store
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        take_place(dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit), ranks)


def take_place(store: "torch.distributed.Store", ranks: Ranks) -> None:
    """Refuse a rank whose place is taken: it has met another job, at the same port.

    Rank 0 of a second job on a machine cannot open the port and ends. The others find the first job there, and would
    wait for its ranks, or take part in it.

    Args:
        store: where the ranks meet.
        ranks: this process among them.

    Raises:
        UserError: another process is this rank.
    """
    mine = f"process {os.getpid()} on {socket.gethostname()}"
    place_of_rank = f"hpe/rank/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{ranks.rank}"
    if (other := store.compare_set(place_of_rank, "", mine).decode()) != mine:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"MASTER_ADDR:MASTER_PORT is {place}, where another job meets, whose rank {ranks.rank} is {other}; "
            "start each job with a MASTER_PORT of its own"
        )


def common_accelerator(precision: str, *, asked: str) -> "Accelerator":
    """Accelerate's object for a precision that is the same on all ranks. A collective call.

    ``asked``: ``train.precision`` of the config, for the message.

    Raises:
        UserError: the ranks' devices differ, and so does the precision that they would use.
    """
    here = accelerator(precision)
    # Every rank compares and all fail together: a rank that left alone would leave the others waiting for it.
    if some_rank(agree(precision) != precision):
        raise UserError(
            f"train.precision: {asked} is {precision} on rank {Ranks.from_environment().rank} and differs between "
            "ranks, because their devices differ; set a precision that all of them support"
        )
    return here


def _refuse_other_choices(here: "Accelerator", named: str, world: int) -> None:
    """Compare what Accelerate has chosen with what hpe asked for: installed plugins can beat the arguments."""
    expected = {
        "device": "cuda" if cuda() else "cpu",
        "mixed precision": named,
        "ranks": world,
        "gradient accumulation": 1,
    }
    found = {
        "device": here.device.type,
        "mixed precision": here.mixed_precision,
        "ranks": here.num_processes,
        "gradient accumulation": here.gradient_accumulation_steps,
    }
    if wrong := [f"{name} {found[name]}" for name in expected if found[name] != expected[name]]:
        raise UserError(
            f"Accelerate chooses {', '.join(wrong)}, where hpe asks for "
            + ", ".join(f"{name} {expected[name]}" for name in expected if found[name] != expected[name])
            + "; unset the ACCELERATE_ variables, and use an environment without torch_xla and other devices' plugins"
        )


_TRUE: Final = ("1", "true", "yes", "y", "t", "on")
_ENGINES: Final = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_CONFIG_DECIDES: Final = {
    "ACCELERATE_MIXED_PRECISION": ("no", "train.precision"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "train.compile"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "train.micro_batch"),
}
"""Variables of Accelerate that are not used: the value that a launcher sets unasked, and the setting that decides."""


def refuse_other_engines() -> None:
    """Refuse variables of Accelerate that ask for what hpe does not do.

    Raises:
        UserError: they select another engine than data-parallel training, or name a device.
    """
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "").lower() in _TRUE:
            raise UserError(
                f"{variable} is {os.environ[variable]}: hpe trains data-parallel (DDP), not with {engine}; unset it. "
                "Where accelerate launch has set it, from a file that `accelerate config` wrote, start with hpe train "
                "--processes N or torchrun, or give it one of launch/*.yaml with --config_file"
            )
    if named := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE is {named}: each rank takes the GPU of its LOCAL_RANK; unset it, and choose GPUs "
            "with CUDA_VISIBLE_DEVICES, or the CPU with ACCELERATE_USE_CPU=true"
        )


def _warn_of_unused_variables() -> None:
    for variable, (usual, setting) in _CONFIG_DECIDES.items():
        if (value := os.environ.get(variable, usual)).lower() != usual:
            _tell_once(f"{variable}={value} is not used: {setting} in the run's config decides")


def refuse_shared_gpus(store: "torch.distributed.Store", ranks: Ranks, mine: str) -> None:
    """Refuse two ranks on one GPU, before NCCL fails with a message that does not name the cause.

    Args:
        store: where the ranks met.
        ranks: this process among them.
        mine: this rank's host and GPU.

    Raises:
        UserError: two ranks share a GPU.
    """
    store.set(f"hpe/gpu/{ranks.rank}", mine)
    taken: dict[str, int] = {}
    for rank in range(ranks.world):
        gpu = store.get(f"hpe/gpu/{rank}").decode()
        if gpu in taken:
            raise UserError(
                f"ranks {taken[gpu]} and {rank} have the same GPU ({gpu}): more ranks were started than GPUs are "
                "visible; start one rank per GPU (see CUDA_VISIBLE_DEVICES), or set ACCELERATE_USE_CPU=true"
            )
        taken[gpu] = rank


def agree(text: str | None) -> str | None:
    """Rank 0's text, on every rank. A collective call: all ranks continue, or fail, together."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return text
    box = [text]
    with _together():
        dist.broadcast_object_list(box, 0)
    return box[0]


def some_problem(text: str | None) -> str | None:
    """The problems of all ranks, on every rank; None if there are none. A collective call."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return text
    box: list[str | None] = [None] * dist.get_world_size()
    with _together():
        dist.all_gather_object(box, text)
    told: dict[str, list[str]] = {}
    for rank, problem in enumerate(box):
        if problem is not None:
            told.setdefault(problem, []).append(str(rank))
    lines = [f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}: {problem}" for problem, ranks in told.items()]
    return "\n".join(lines) or None


def some_rank(here: bool) -> bool:
    """Whether it is true on one rank or more. A collective call."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return here
    box = torch.tensor(int(here), device=device())
    with _together():
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return bool(box)


def cuda() -> bool:
    """True where torch sees a GPU that the user has not switched off with ``ACCELERATE_USE_CPU``."""
    return not cpu_wanted() and _sees_gpu()[0]


def cpu_wanted() -> bool:
    """True where the user has switched the GPUs off with ``ACCELERATE_USE_CPU``."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in _TRUE


def _sees_gpu() -> tuple[bool, str]:
    """Whether torch sees a GPU, and its warnings about that (of a driver that is too old, for example)."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        seen = torch.cuda.is_available()
    return seen, " ".join(" ".join(str(one.message).split()) for one in told)


_NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
_AMD_DRIVER: Final = Path("/dev/kfd")


def unused_gpu() -> str | None:
    """Why torch does not see a GPU that this machine seems to have; None if it has none, or torch sees it.

    Also None if the user has chosen the CPU.
    """
    import torch

    seen, told = _sees_gpu()
    if seen or cpu_wanted():
        return None
    if torch.backends.mps.is_available():
        return "Apple's GPU (MPS) is not supported"
    if _NVIDIA_DRIVER.is_file():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if torch.version.cuda is None:
            return (
                f"there is an NVIDIA driver, but torch {torch.__version__} is built without CUDA; install torch's "
                "build for CUDA"
            )
        if visible is not None and not (visible and visible[0].isalnum()):
            return f"there is an NVIDIA driver, and CUDA_VISIBLE_DEVICES={visible!r} hides its GPUs"
        why = told.removeprefix("CUDA initialization: ").partition(" (Triggered internally")[0]
        return (
            "there is an NVIDIA driver, and torch cannot use it: "
            + (why or "it names no reason; see nvidia-smi")[:300]
            + f" (torch {torch.__version__} is built for CUDA {torch.version.cuda})"
        )
    if _AMD_DRIVER.exists() and not torch.version.hip:
        return "there is an AMD GPU, and this torch is not built for ROCm (with which hpe is not tested)"
    return None


def rocm() -> str | None:
    """A message where the GPUs are AMD's, which torch shows as ``cuda``."""
    import torch

    if cuda() and torch.version.hip:
        return f"AMD GPUs through ROCm {torch.version.hip}: torch shows them as cuda; hpe is not tested with them"
    return None


def report_devices() -> None:
    """Print a line about GPUs that exist but are not used, or not tested."""
    if (why := unused_gpu()) is not None:
        _tell_once(f"runs on the CPU: {why}")
    if (why := rocm()) is not None:
        _tell_once(why)


@cache
def _tell_once(text: str) -> None:
    say(f"hpe: {text}")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def share_cores(workers: int) -> None:
    """On a CPU, set how many threads the network uses, unless OMP_NUM_THREADS is set.

    It gets all cores; with eight cores or more, one is left to the data workers.
    """
    import torch

    if not cuda() and "OMP_NUM_THREADS" not in os.environ:
        threads = cores()
        # Threads that share a core with a reader hold up the whole team: a step of T seconds on one core, with R of
        # reading, takes about T/n + R on all n cores and the larger of T/(n - 1) and R on all but one. For FER+ (R is
        # 2.2 % of T by CPU time) the first is shorter up to 7 cores; on 2, 275 images/s were seen with both cores
        # against 156 with one (configs/ferplus_multitask.yaml). The rule looks at the machine alone and tries nothing
        # out: another number of threads gives other last digits, and the same command must give the same bytes.
        torch.set_num_threads(threads - (workers > 0 and threads >= _SPARE_ONE_OF))


def device() -> "torch.device":
    """This rank's device, for work that needs no process group."""
    import torch

    if not cuda():
        return torch.device("cpu")
    return torch.device("cuda", Ranks._numbered().local_rank % torch.cuda.device_count())


def named_device(name: str) -> "torch.device":
    """The device that a user names; ``auto`` and ``cuda`` mean this rank's.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        if Ranks._numbered().main:
            report_devices()
        return device()
    try:
        named = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if named.type not in ("cpu", "cuda"):
        what = "Apple's GPU (MPS) is not supported" if named.type == "mps" else f"{named.type} is not supported"
        raise UserError(f"--device {name}: {what}; expected auto, cpu, cuda or cuda:N")
    if named.type == "cpu":
        return named
    if not _sees_gpu()[0]:
        why = unused_gpu()
        raise UserError(f"--device {name}: torch sees no GPU here{f': {why}' if why else ''}; use --device cpu")
    count = torch.cuda.device_count()
    if named.index is None:
        return torch.device("cuda", Ranks._numbered().local_rank % count)
    if named.index >= count:
        raise UserError(f"--device {name}: only {visible_gpus(count)} visible, numbered from 0")
    return named


def visible_gpus(count: int) -> str:
    """The number of GPUs in words, with its verb: ``1 GPU is``."""
    return f"{count} GPU{'s are' if count > 1 else ' is'}"


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


def launched() -> bool:
    """True inside a rank that some launcher has started."""
    return "RANK" in os.environ or slurm_tasks() > 1


def leave_to_rank_0(command: str) -> None:
    """On other ranks, end: the command runs in one process, with worker processes of its own on that machine.

    Raises:
        UserError: see :meth:`Ranks.from_environment`.
    """
    if not launched() or (ranks := Ranks._numbered()).main:
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
