"""``python -m hpe``, ``hpe`` and ``accelerate launch -m hpe``: the command line, with errors as messages."""

import errno
import os
import sys
import time
from typing import NoReturn

from hpe.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_USAGE, NotFiniteError, UserError

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

# OpenMP threads that wait by spinning fight the readers, and other jobs, for cores: on a busy machine of four
# cores a training step took ten times as long. A short spin costs an idle machine nothing that was measurable.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def lost_rank(error: RuntimeError) -> bool:
    """Whether a collective call failed because a peer is gone (gloo and NCCL say it in many words)."""
    told = str(error).lower()
    return "RANK" in os.environ and any(
        words in told
        for words in (
            "connection closed",
            "likely closed",
            "connection reset",
            "gloo",
            "nccl",
            "broken pipe",
            "timed out",
        )
    )


def lost_reader(error: RuntimeError) -> bool:
    """Whether torch's DataLoader says that one of its processes is gone."""
    return "DataLoader worker" in str(error)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a GPU's memory is full."""
    return type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in str(error)


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


def _leave(message: str) -> None:
    """Tell a user's mistake once, and end."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        _let_others_speak()
        message = f"rank {rank}: {message}"
    told = f"hpe: {message}".encode("utf-8", "backslashreplace").decode("utf-8")
    print(told, file=sys.stderr, flush=True)
    sys.exit(EXIT_USAGE)


def _let_others_speak() -> None:
    """Wait to be ended: the launcher does so to all ranks when the first leaves, which is to be the one that knows why.

    Who is still there afterwards has seen what no other rank has.
    """
    time.sleep(_PATIENCE_SECONDS)


def main() -> NoReturn:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    from hpe.ranks import from_parent, leave

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
    except UserError as error:
        _leave(str(error))
    except NotFiniteError as error:
        print(f"hpe: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_INCOMPLETE)
    except RuntimeError as error:
        if lost_reader(error):
            print(
                f"hpe: rank {os.environ.get('RANK', '0')} lost a reader process and leaves: {str(error).strip()} "
                "If memory ran out, use fewer data.workers; the same command goes on",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            sys.exit(EXIT_INCOMPLETE)
        if out_of_memory(error):
            told = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")  # and then of allocators
            rank = os.environ.get("RANK", "0")
            print(f"hpe: rank {rank}: {told}. {_LESS_MEMORY}", file=sys.stderr, flush=True)
            sys.exit(EXIT_INCOMPLETE)
        if not lost_rank(error):
            if type(error).__name__ != "DistNetworkError":
                raise
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            told = str(error).partition(". ")[0].partition("\n")[0]
            _leave(
                f"MASTER_ADDR:MASTER_PORT is {where}: the ranks cannot meet there ({told}); give a port that is free"
            )
        _let_others_speak()  # or its exit code, and this line, may pass for the cause
        print(f"hpe: rank {os.environ.get('RANK')} lost another rank and leaves", file=sys.stderr, flush=True)
        sys.exit(EXIT_INCOMPLETE)
    except KeyboardInterrupt:  # while modules load; later typer makes an exit of it
        print("hpe: interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            print("hpe: interrupted", file=sys.stderr, flush=True)
        raise
    except BrokenPipeError:  # `hpe … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, UnicodeEncodeError) as error:
        message = explained(error)
        if message is None:
            raise
        _leave(message)


if __name__ == "__main__":
    main()
