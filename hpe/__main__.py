"""``python -m hpe``, ``hpe`` and ``accelerate launch -m hpe``: the command line, with errors as messages."""

import os
import sys

from hpe.errors import EXIT_USAGE, UserError


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    from hpe.cli import app

    try:
        app()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"hpe: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)
    except BrokenPipeError:  # `hpe … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
