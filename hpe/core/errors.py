"""The one exception that is a user's mistake, and the exit codes of every command."""

EXIT_OK = 0
EXIT_INCOMPLETE = 1
"""The command finished, but some of its input was damaged, skipped or lost (it is named)."""
EXIT_USAGE = 2
"""A user's mistake: one message, nothing written."""
EXIT_AGAIN = 75
"""Stopped by a signal with everything saved (sysexits' EX_TEMPFAIL): run the same command again."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells count it."""


class UserError(ValueError):
    """A mistake that the user can mend: shown as one message, without a traceback, exit code 2.

    The message says where, what was found, what was expected and the way out:
    ``train.batch: 256 samples do not divide among 3 ranks; use 255 or 258``.
    """


class NotFiniteError(ArithmeticError):
    """The loss is NaN or infinite; the message names the step, the batch and the last good checkpoint."""
