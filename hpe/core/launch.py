"""Starts a command again as several processes of this machine (``--processes N``), through Accelerate's launcher."""

import logging
import os
import signal
import sys
import tempfile
from typing import Final

from hpe.core.console import say
from hpe.core.devices import cores, cpu_wanted, cuda, visible_gpus
from hpe.core.distributed import refuse_other_engines
from hpe.core.errors import EXIT_AGAIN, UserError
from hpe.core.ranks import launched, slurm_tasks

_LAUNCH_CONFIG: Final = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: {processes}
machine_rank: 0
gpu_ids: all
mixed_precision: "no"
use_cpu: false
debug: false
"""
_OUT_OF_MEMORY: Final = (
    ". The kernel kills processes when memory runs out. Each process holds a network, its data workers and its share "
    "of the batch: lower --processes, data.workers or train.batch, then run the same command again"
)
_SAVING_SECONDS: Final = 600
"""How long ranks may take to save after a signal; ``launch/slurm.sh`` gives them as much."""
_ALWAYS_TRIED: Final = 2
"""Processes that even a single core may run: enough to see that a command works on several."""
_EXPLAINED: Final = frozenset((0, 1, 2, 75, 130, 138, 143))
"""Exit codes after which the rank itself has printed why."""


def refuse_processes(processes: int) -> None:
    """Refuse more processes than this machine has GPUs or cores.

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
                f"--processes {processes}: only {visible_gpus(torch.cuda.device_count())} visible; start no more, "
                "or set ACCELERATE_USE_CPU=true for CPU processes"
            )
    elif processes > (most := max(_ALWAYS_TRIED, cores())) and not cpu_wanted():
        raise UserError(
            f"--processes {processes}: torch sees no GPU here (see `hpe doctor`), and there are only "
            f"{cores()} CPU cores, and each process needs its own memory; use --processes {most} or fewer, or "
            "set ACCELERATE_USE_CPU=true to start them anyway"
        )


def several() -> int:
    """How many processes show that a command works on several: two; one on a machine with a single GPU."""
    import torch

    return min(_ALWAYS_TRIED, torch.cuda.device_count()) if cuda() else _ALWAYS_TRIED


def relaunch(processes: int, arguments: list[str], *, saves: bool = False) -> None:
    """Run ``hpe ARGUMENTS`` on N processes of this machine through Accelerate's launcher, and exit.

    Returns in those processes, and if N is 1.

    The launcher's own default is one process for a CPU, so the ranks are asked for as "multi GPU" with
    ``ACCELERATE_USE_CPU``, which gives gloo processes. With ``saves``, they have minutes to save when asked to stop.

    Raises:
        UserError: see :func:`refuse_processes`; or Slurm has started several tasks already.
        SystemExit: with the exit code of the first rank that failed, else 0.
    """
    if "RANK" in os.environ:
        return
    if launched():
        raise UserError(
            f"--processes {processes}: Slurm has started {slurm_tasks()} tasks here; leave --processes "
            "out, or start one task alone (srun --ntasks 1)"
        )
    refuse_processes(processes)
    refuse_other_engines()
    if processes == 1:
        return  # Accelerate starts a single process without RANK: it would start another, and so on without end
    if not cuda():
        if not cpu_wanted():
            say(f"hpe: torch sees no GPU here: {processes} processes on {cores()} CPU cores")
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # A pre-emption signal must reach the ranks, which save and exit.
    for name in ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE"):  # newer and older torch
        os.environ.setdefault(name, "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    if saves:  # the launcher must leave them the time: torch kills them after 30 s, and lets that be changed since 2.12
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_SECONDS))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    import torch.distributed.run  # noqa: F401 -- its loggers are set up on import, so before they are hushed
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _hush("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.elastic.agent.server.api")
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # `--multi_gpu` is what makes real processes, on a CPU too.
    options += ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
    try:
        # With its own file: Accelerate would fill in missing options from what `accelerate config` wrote in the home
        # folder.
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="hpe-launch-") as config:
            config.write(_LAUNCH_CONFIG.format(processes=processes))
            config.flush()
            options += ["--config_file", config.name]
            launch_command(launch_command_parser().parse_args([*options, "-m", "hpe", *arguments]))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        _explain(rank, failure.exitcode)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException:  # the ranks got the signal, and had time to save
        sys.exit(EXIT_AGAIN)
    sys.exit(0)


def _explain(rank: int, code: int) -> None:
    """Print how the first rank that failed has ended, where the rank cannot have done so itself."""
    if code >= 0 and code in _EXPLAINED:
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = _OUT_OF_MEMORY if code == -signal.SIGKILL else ""
    say(f"hpe: rank {rank} {how}; the other ranks were ended{why}")


def _hush(*names: str) -> None:
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
