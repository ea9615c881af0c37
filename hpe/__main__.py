"""``python -m hpe``, ``hpe`` and ``accelerate launch -m hpe``: the command line, with errors as messages."""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from hpe.core.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_USAGE, NotFiniteError, UserError

_PATIENCE_SECONDS = 10
_WAYS_OUT = {
    errno.ENOENT: "check the path, and that nothing else moves or removes it meanwhile",
    errno.EACCES: "it needs other rights, or give a place that you may read and write",
    errno.EPERM: "it needs other rights, or give a place that you may read and write",
    errno.EEXIST: "something else lies there: move it away, or give another place",
    errno.ENOTDIR: "a file lies where a folder is to be: move it away, or give another place",
    errno.EISDIR: "a folder lies where a file is to be: move it away, or give another place",
    errno.EROFS: "give a place that can be written",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead round in a circle: name the place itself",
    errno.EFBIG: "raise the largest size of a file (ulimit -f), or give a place that takes larger files",
    errno.ENOSPC: "free some room or give a place on another disk, then run the same command again",
    errno.EDQUOT: "free some room or give a place on another disk, then run the same command again",
}

_LESS_MEMORY = (
    "hpe train: lower train.micro_batch, the pieces of a rank's share of a batch (in a run that has begun, too), "
    "or start a new run with a smaller train.batch, or train.batch=auto; evaluate, predict and pose: lower --batch"
)

_GONE = (
    "connection closed by",  # gloo: "… by peer"; NCCL: "… by remote peer"
    "connection reset by peer",
    "broken pipe",
    "connection was likely closed",  # torch's store, which is a thread of rank 0
    "remote process exited",  # NCCL's ncclRemoteError
    "timed out waiting",  # gloo, of one that is there and does not answer
    "wait timeout after",  # torch's store, of what another rank was to write
    "communicator was aborted",
)
"""How torch, NCCL and gloo word it that a rank is gone; in small letters."""
_WRONGLY_STARTED = (
    (
        "duplicate gpu detected",
        "start at most one process per GPU (--processes, --nproc_per_node), and let the launcher set LOCAL_RANK",
    ),
    ("waiting for clients", "start as many ranks as WORLD_SIZE says"),
    ("unable to find address for", "set GLOO_SOCKET_IFNAME to a network interface of this machine, or unset it"),
    ("no socket interface found", "set NCCL_SOCKET_IFNAME to a network interface of this machine, or unset it"),
)
_MEETING = "start rank 0 there, and check that this machine can reach it"
_NCCL_SAYS = "`hpe doctor` tries it without a training, NCCL_DEBUG=INFO makes NCCL say more"

# OpenMP threads that wait by spinning fight the readers, and other jobs, for cores: on a busy machine of four
# cores a training step took ten times as long. A short spin costs an idle machine nothing that was measurable.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


class Ending(NamedTuple):
    """How a command ends that an error has stopped."""

    code: int
    message: str | None = None
    waits: bool = False
    """Another rank may know the cause: it is to leave, and so to be heard, first."""


def ending(error: BaseException) -> Ending | None:
    """What the table below says of an error; None of what may be our own fault and so keeps its traceback."""
    for kind, told in _ENDINGS:
        if isinstance(error, kind) and (end := told(error)) is not None:
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
    told = f"rank {_rank()} lost a reader process and leaves: {str(error).strip()} "
    return Ending(EXIT_INCOMPLETE, told + "If memory ran out, use fewer data.workers; the same command goes on")


def _out_of_memory(error: RuntimeError) -> Ending | None:
    if type(error).__name__ != "OutOfMemoryError" and "CUDA error: out of memory" not in str(error):
        return None
    told = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")  # and then of allocators
    return Ending(EXIT_INCOMPLETE, f"rank {_rank()}: {told}. {_LESS_MEMORY}")


def _broken_group(error: RuntimeError) -> Ending | None:
    """What torch, NCCL and gloo say of ranks that cannot meet, share a GPU, are gone, or cannot talk.

    torch has types for its own and for NCCL's errors; gloo's come as RuntimeError, with the file of gloo that raised
    them. Which error it is stands in words only.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RANK" not in os.environ or not ("DistError" in kinds or "gloo/transport/" in str(error)):
        return None
    cause = cause_of(error)
    words = cause.lower()
    if any(gone in words for gone in _GONE):
        return Ending(EXIT_INCOMPLETE, f"rank {_rank()} lost another rank and leaves: {cause}", waits=True)
    for wording, way_out in _WRONGLY_STARTED:
        if wording in words:
            return _mistake(f"{cause}; {way_out}")
    if "DistNetworkError" in kinds:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        way_out = "give a port that is free" if "address already in use" in words else _MEETING
        return _mistake(f"MASTER_ADDR:MASTER_PORT is {where}: the ranks cannot meet there ({cause}); {way_out}")
    if "DistBackendError" in kinds:
        told = f"rank {_rank()}: the ranks cannot exchange data: {cause}; {_NCCL_SAYS}"
        return Ending(EXIT_INCOMPLETE, told)
    return None


def cause_of(error: RuntimeError) -> str:
    """The first line of torch's message, and NCCL's own reason, which stands some lines below it."""
    first, _, rest = str(error).strip().partition("\n")
    _, _, last = rest.partition("Last error:")
    reason = last.strip().partition("\n")[0].strip()
    return f"{first.rstrip(' .')}: {reason}" if reason else first.rstrip(" .")


def explained(error: OSError | UnicodeEncodeError) -> str | None:
    """The message of a mistake with paths or disks that no command has foreseen; None where it may be our own."""
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object!r} cannot be written in {error.encoding}; "
            "rename the file in question, or set PYTHONUTF8=1 and LC_ALL=C.UTF-8"
        )
    way_out = _WAYS_OUT.get(error.errno or 0)
    if way_out is None:
        return None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
    return f"{where}{(error.strerror or 'failed').lower()}; {way_out}"


def _foreseen(error: OSError | UnicodeEncodeError) -> Ending | None:
    message = explained(error)
    return None if message is None else _mistake(message)


def _closed_pipe(_: BrokenPipeError) -> Ending:
    """`hpe … | head`: silence, also when Python flushes what nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Ending(1)


_INTERRUPTED = Ending(EXIT_INTERRUPTED, "interrupted")

_ENDINGS: tuple[tuple[type[BaseException], Callable[[Any], Ending | None]], ...] = (
    (UserError, _mistake),
    (NotFiniteError, lambda error: Ending(EXIT_INCOMPLETE, str(error))),
    (RuntimeError, _lost_reader),
    (RuntimeError, _out_of_memory),
    (RuntimeError, _broken_group),
    (KeyboardInterrupt, lambda _: _INTERRUPTED),  # while modules load; later typer makes an exit of it
    (SystemExit, lambda end: _INTERRUPTED if end.code == EXIT_INTERRUPTED else None),
    (BrokenPipeError, _closed_pipe),
    (OSError, _foreseen),
    (UnicodeEncodeError, _foreseen),
)


def _rank() -> str:
    return os.environ.get("RANK", "0")


def main() -> NoReturn:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    from hpe.core.distributed import from_parent, leave

    from_parent()  # before the seconds of imports in which a launcher may be killed
    try:
        _run()
    except SystemExit as end:
        leave(end.code)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as Python would, and then leave as every rank does
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
        if end.waits:  # the launcher ends all ranks when the first leaves, which is to be the one that knows why
            time.sleep(_PATIENCE_SECONDS)
        if end.message is not None:
            told = f"hpe: {end.message}".encode("utf-8", "backslashreplace").decode("utf-8")
            print(told, file=sys.stderr, flush=True)
        sys.exit(end.code)


if __name__ == "__main__":
    main()
