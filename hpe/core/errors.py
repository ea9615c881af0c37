"""The exception for a mistake of the user, and the exit codes of every command."""

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


class UserError(ValueError):
    """A mistake that the user can correct: one message without a traceback, and exit code 2.

    The message gives the place, what was found, what was expected and the way out:
    ``train.batch: 256 samples do not divide among 3 ranks; use 255 or 258``.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


def mistakes(problems: Iterable[str]) -> str:
    """Several mistakes as one message, their number first; an indented line belongs to the one above."""
    lines = [line for problem in dict.fromkeys(problems) for line in problem.splitlines()]
    count = sum(not line.startswith(" ") for line in lines)
    return "\n".join([f"{count} mistakes:"] * (count > 1) + lines)


class NotFiniteError(ArithmeticError):
    """The loss is NaN or infinite; the message names the step, the batch and the last good checkpoint."""
