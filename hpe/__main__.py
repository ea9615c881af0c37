"""``python -m hpe``, ``hpe`` and ``accelerate launch -m hpe``: the command line, with errors as messages."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from hpe import NOT_HERE
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_USAGE, NotFiniteError, UserError, way_out

_PATIENCE_SECONDS = 10

_LESS_MEMORY = (
    "hpe train: lower train.micro_batch, which splits the batch of each rank (a run that resumes may change it, too), "
    "or start a new run with a smaller train.batch or train.batch=auto; evaluate, predict and pose: lower --batch"
)

_GONE = (
    "connection closed by",  # gloo: "… by peer"; NCCL: "… by remote peer"
    "connection reset by peer",
    "broken pipe",
    "connection was likely closed",  # torch's store, which is a thread of rank 0
    "remote process exited",  # NCCL's ncclRemoteError
    "timed out waiting",  # gloo, when a rank is alive but does not answer
    "wait timeout after",  # torch's store, when another rank has not written its part
    "communicator was aborted",
)
"""Parts of the messages of torch, NCCL and gloo when a rank is gone; in lower case."""
_WRONGLY_STARTED = (
    (
        "duplicate gpu detected",
        "start at most one process per GPU (--processes, --nproc_per_node), and let the launcher set LOCAL_RANK",
    ),
    ("waiting for clients", "start as many ranks as WORLD_SIZE, or correct WORLD_SIZE"),
    ("unable to find address for", "set GLOO_SOCKET_IFNAME to a network interface of this machine, or unset it"),
    ("no socket interface found", "set NCCL_SOCKET_IFNAME to a network interface of this machine, or unset it"),
)
_START_RANK_0 = "start rank 0 there, and check that this machine can reach it"
_TRY_NCCL = "`hpe doctor` tests it without a training, and NCCL_DEBUG=INFO makes NCCL report more"

# OpenMP threads that wait by spinning take cores from the readers and from other jobs: on a busy machine with four
# cores a training step took ten times as long. On an idle machine a short spin had no measurable cost.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


class Ending(NamedTuple):
    """How a command ends after an error: exit code, message, and whether to let other ranks report first."""

    code: int
    message: str | None = None
    waits: bool = False
    """Exit late: another rank may know the cause, and the launcher stops all ranks after the first that exits."""


def ending(error: BaseException) -> Ending | None:
    """The ending of a known error, by the table below; None for what may be a bug, which keeps its traceback."""
    for kind, ending_of in _ENDINGS:
        if isinstance(error, kind) and (end := ending_of(error)) is not None:
            return end
    return None


def _mistake(error: Exception | str) -> Ending:
    rank = _rank()
    if rank == "0":
        return Ending(EXIT_USAGE, str(error))
    return Ending(EXIT_USAGE, f"rank {rank}: {error}", waits=True)


def _lost_reader(error: RuntimeError) -> Ending | None:
    if "DataLoader worker" not in str(error):
        return None
    problem = f"rank {_rank()}: a reader process died: {str(error).strip()} "
    return Ending(
        EXIT_INCOMPLETE, problem + "If memory ran out, lower data.workers; run the same command again to resume"
    )


def _out_of_memory(error: RuntimeError) -> Ending | None:
    if type(error).__name__ != "OutOfMemoryError" and "CUDA error: out of memory" not in str(error):
        return None
    # Three sentences: how much was asked for and how much there is. The others are about allocators.
    problem = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")
    return Ending(EXIT_INCOMPLETE, f"rank {_rank()}: {problem}. {_LESS_MEMORY}")


def _broken_group(error: RuntimeError) -> Ending | None:
    """Ranks that cannot connect, share a GPU, are gone, or cannot exchange data, as torch, NCCL and gloo report it.

    torch has exception types for its own errors and NCCL's; those of gloo are RuntimeErrors that name gloo's source
    file. Which of the cases it is can only be read from the words.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RANK" not in os.environ or not ("DistError" in kinds or "gloo/transport/" in str(error)):
        return None
    cause = cause_of(error)
    words = cause.lower()
    if any(gone in words for gone in _GONE):
        return Ending(EXIT_INCOMPLETE, f"rank {_rank()} stops because another rank is gone: {cause}", waits=True)
    for wording, cure in _WRONGLY_STARTED:
        if wording in words:
            return _mistake(f"{cause}; {cure}")
    if "address already in use" in words:
        port = os.environ.get("MASTER_PORT")
        return _mistake(
            f"MASTER_PORT is {port}, where another process of this machine listens already, such as another training; "
            f"set MASTER_PORT to a free port for this one (`hpe train --processes N` finds one itself): {cause}"
        )
    if "DistNetworkError" in kinds:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return _mistake(
            f"MASTER_ADDR:MASTER_PORT is {where}, but the ranks cannot connect there ({cause}); {_START_RANK_0}"
        )
    if "DistBackendError" in kinds:
        return Ending(EXIT_INCOMPLETE, f"rank {_rank()}: the ranks cannot exchange data: {cause}; {_TRY_NCCL}")
    return None


def cause_of(error: RuntimeError) -> str:
    """The first line of torch's message, and NCCL's own reason, which follows some lines later."""
    first, _, rest = str(error).strip().partition("\n")
    _, _, last = rest.partition("Last error:")
    reason = last.strip().partition("\n")[0].strip()
    return f"{first.rstrip(' .')}: {reason}" if reason else first.rstrip(" .")


def explained(error: OSError | UnicodeEncodeError) -> str | None:
    """The message for an error with paths or disks that no command handles itself; None if it may be a bug."""
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object!r} cannot be written as {error.encoding}; "
            "rename the file, or set PYTHONUTF8=1 and LC_ALL=C.UTF-8"
        )
    if error.errno is None or (found := way_out(error)) is None:
        return None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
    return f"{where}{os.strerror(error.errno).lower()}; {found}"  # not strerror, in whose place Arrow has its own words


def _failed_system_call(error: OSError | UnicodeEncodeError) -> Ending | None:
    message = explained(error)
    return None if message is None else _mistake(message)


def _closed_pipe(_: BrokenPipeError) -> Ending:
    """`hpe … | head`: no message, and none when Python flushes the rest of its output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Ending(1)


_INTERRUPTED = Ending(EXIT_INTERRUPTED, "interrupted")

_ENDINGS: tuple[tuple[type[BaseException], Callable[[Any], Ending | None]], ...] = (
    (UserError, _mistake),
    (NotFiniteError, lambda error: Ending(EXIT_INCOMPLETE, str(error))),
    (RuntimeError, _lost_reader),
    (RuntimeError, _out_of_memory),
    (RuntimeError, _broken_group),
    (KeyboardInterrupt, lambda _: _INTERRUPTED),  # while modules load; later typer turns it into a SystemExit
    (SystemExit, lambda end: _INTERRUPTED if end.code == EXIT_INTERRUPTED else None),
    (BrokenPipeError, _closed_pipe),
    (OSError, _failed_system_call),
    (UnicodeEncodeError, _failed_system_call),
)


def _rank() -> str:
    return os.environ.get("RANK", "0")


def main() -> NoReturn:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    if NOT_HERE is not None:
        print(f"hpe: {NOT_HERE}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    from hpe.core.signals import end_on_signals  # it asks for signals that Windows does not have

    end_on_signals()  # first: imports take seconds, and a signal may come meanwhile
    from hpe.core.ranks import from_parent, leave

    from_parent()  # the launcher may be killed meanwhile, too
    try:
        _run()
    except SystemExit as end:
        leave(end.code)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as Python does; then exit like every rank
        leave(1)
    leave(0)


def _run() -> None:
    try:
        from hpe.cli import app

        app()
    except BaseException as error:
        end = ending(error)
        if end is None:
            raise
        # So that the rank that knows the cause exits first: the launcher then stops the others, which need not tell.
        if end.waits and _stopped_while_waiting():
            sys.exit(end.code)
        if end.message is not None:
            printable = f"hpe: {end.message}".encode("utf-8", "backslashreplace").decode("utf-8")
            print(printable, file=sys.stderr, flush=True)
        sys.exit(end.code)


def _stopped_while_waiting() -> bool:
    """Wait a while for the launcher's signal; true when it comes."""
    from hpe.core.signals import signals

    with signals() as stop:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until and not stop.received:
            time.sleep(0.1)
        return stop.received


if __name__ == "__main__":
    main()
