"""The exception for a mistake of the user, and the exit codes of every command."""

import errno
import os
import re
from collections.abc import Iterable
from typing import Final

EXIT_OK = 0
EXIT_INCOMPLETE = 1
"""The command finished, but some input was damaged, skipped or lost (it is listed); or it could not continue."""
EXIT_USAGE = 2
"""A mistake of the user: one message, nothing written."""
EXIT_AGAIN = 75
"""Stopped by a signal with everything saved (EX_TEMPFAIL of sysexits.h): run the same command again to resume."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 plus the number of SIGINT, as in shells."""


# Up to the last @ before the path: a password may hold one, or a quote, that nobody has escaped.
_USER: Final = re.compile(r"(?<=://)[^/\s]+@")
_QUERY: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"?]*)\?[^\s'\",;)\]]*[^\s'\",;:.)\]]")


def redacted(text: str) -> str:
    """A text whose URLs show neither ``user:password@`` nor their query, which may be a signature."""
    return _QUERY.sub(r"\1?…", _USER.sub("***@", text))


_WAYS_OUT: Final = {
    errno.ENOENT: "check the path, and that nothing else moves or removes it",
    errno.EACCES: "change its permissions, or choose a place that you may read and write",
    errno.EPERM: "change its permissions, or choose a place that you may read and write",
    errno.EEXIST: "something else is already there: move it away, or choose another place",
    errno.ENOTDIR: "part of this path is a file: move it away, or choose another place",
    errno.EISDIR: "this is a folder, but a file is needed: move it away, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "its links form a circle: use the path of the file or folder itself",
    errno.EMFILE: "raise the limit of open files with `ulimit -n 1024` before this command, or lower data.workers",
    errno.ENFILE: "end other programs, or raise the machine's limit of open files (fs.file-max)",
    errno.EFBIG: "raise the maximum file size (ulimit -f), or choose a place that takes larger files",
    errno.ENOSPC: "free some space or choose another disk, then run the same command again",
    errno.EDQUOT: "free some space or choose another disk, then run the same command again",
}
DISK_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


def way_out(error: OSError) -> str | None:
    """What a user can do about an error with a path or a disk; None where it may be a bug."""
    return _WAYS_OUT.get(error.errno or 0)


class UserError(ValueError):
    """A mistake that the user can correct: one message without a traceback, and exit code 2.

    The message gives the place, what was found, what was expected and the way out:
    ``train.batch: 256 samples do not divide among 3 ranks; use 255 or 258``.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


def unwritable(told: str, error: Exception, elsewhere: str = "choose another place") -> UserError:
    """The message for a place that a user named and that cannot be written to: where, why, and the way out.

    Args:
        told: how the user named it: ``--out results``.
        error: of the system, or of a library that writes and hides the system's (safetensors, Arrow).
        elsewhere: the way out where the reason does not tell a better one.
    """
    if not isinstance(error, OSError) or not error.errno:
        return UserError(f"{told}: cannot be written ({error}); {elsewhere}")
    return UserError(f"{told}: cannot be written ({os.strerror(error.errno)}); {way_out(error) or elsewhere}")


def mistakes(problems: Iterable[str]) -> str:
    """Several mistakes as one message, their number first; an indented line belongs to the one above."""
    lines = [line for problem in dict.fromkeys(problems) for line in problem.splitlines()]
    count = sum(not line.startswith(" ") for line in lines)
    return "\n".join([f"{count} mistakes:"] * (count > 1) + lines)


class NotFiniteError(ArithmeticError):
    """The loss is NaN or infinite; the message names the step, the batch and the last good checkpoint."""
