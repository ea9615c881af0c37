"""The ranks of a job together: they meet, make the Accelerator, and agree; where they do not agree, all end."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from hpe.core.console import say
from hpe.core.devices import TRUE, cuda, device, report_devices
from hpe.core.errors import UserError
from hpe.core.notices import said_while_waiting, tell_once
from hpe.core.ranks import Ranks, from_parent

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_NAME_SECONDS: Final = 60.0
_FIRST_WORD_SECONDS: Final = 3.0
_NAMED: Final = 5


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
        UserError: the precision that the ranks would use differs, as their devices do, or what they see of the run.
    """
    here = accelerator(precision)
    # Every rank compares and all fail together: a rank that left alone would leave the others waiting for it.
    if some_rank(agree(precision) != precision):
        raise UserError(
            f"train.precision: {asked} is {precision} on rank {Ranks.from_environment().rank} and differs between "
            "ranks, because their devices differ or some do not see the run's config.yaml yet; set a precision that "
            "all of them support, or run the same command again"
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
        if os.environ.get(variable, "").lower() in TRUE:
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
            tell_once(f"{variable}={value} is not used: {setting} in the run's config decides")


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
