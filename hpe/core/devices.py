"""What this process computes on: its GPU, or the cores and threads of the CPU; and why a GPU is not used."""

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hpe.core.errors import UserError
from hpe.core.notices import tell_once
from hpe.core.ranks import Ranks

if TYPE_CHECKING:
    import torch

_SPARE_ONE_OF: Final = 8
_BUSY: Final = 1.5
"""Load per core from which on a team of threads is slow: 9.6 images/s against 80 with one thread, at 8 on two cores."""
TRUE: Final = ("1", "true", "yes", "y", "t", "on")
"""What switches a variable of Accelerate on."""
_NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
_AMD_DRIVER: Final = Path("/dev/kfd")


def cuda() -> bool:
    """True where torch sees a GPU that the user has not switched off with ``ACCELERATE_USE_CPU``."""
    return not cpu_wanted() and _sees_gpu()[0]


def cpu_wanted() -> bool:
    """True where the user has switched the GPUs off with ``ACCELERATE_USE_CPU``."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in TRUE


def _sees_gpu() -> tuple[bool, str]:
    """Whether torch sees a GPU, and its warnings about that (of a driver that is too old, for example)."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        seen = torch.cuda.is_available()
    return seen, " ".join(" ".join(str(one.message).split()) for one in told)


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
        tell_once(f"runs on the CPU: {why}")
    if (why := rocm()) is not None:
        tell_once(why)


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
        load = os.getloadavg()[0]
        if threads > 1 and load > _BUSY * threads and Ranks.numbered().main:
            tell_once(
                f"other programs keep the {threads} cores busy (load {load:.0f}), and threads that share a core wait "
                "for each other: if this is slow, set OMP_NUM_THREADS=1"
            )


def device() -> "torch.device":
    """This rank's device, for work that needs no process group."""
    import torch

    if not cuda():
        return torch.device("cpu")
    return torch.device("cuda", Ranks.numbered().local_rank % torch.cuda.device_count())


def named_device(name: str) -> "torch.device":
    """The device that a user names; ``auto`` and ``cuda`` mean this rank's.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        if Ranks.numbered().main:
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
        return torch.device("cuda", Ranks.numbered().local_rank % count)
    if named.index >= count:
        raise UserError(f"--device {name}: only {visible_gpus(count)} visible, numbered from 0")
    return named


def visible_gpus(count: int) -> str:
    """The number of GPUs in words, with its verb: ``1 GPU is``."""
    return f"{count} GPU{'s are' if count > 1 else ' is'}"
