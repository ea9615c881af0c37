"""``python -m hpe``, ``hpe`` and ``accelerate launch -m hpe``: the command line, with errors as messages."""

import os
import sys
import time

from hpe.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_USAGE, NotFiniteError, UserError

_PATIENCE_SECONDS = 10

# OpenMP threads that wait by spinning fight the readers, and other jobs, for cores: on a busy machine of four
# cores a training step took ten times as long. A short spin costs an idle machine nothing that was measurable.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def lost_rank(error: RuntimeError) -> bool:
    """Whether a collective call failed because a peer is gone (gloo and NCCL say it in many words)."""
    told = str(error).lower()
    return "RANK" in os.environ and any(
        words in told for words in ("connection closed", "connection reset", "gloo", "nccl", "broken pipe", "timed out")
    )


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    from hpe.cli import app

    try:
        app()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"hpe: {error}", file=sys.stderr, flush=True)
        else:  # the launcher ends all ranks with the first that leaves: let that be the one that speaks
            time.sleep(_PATIENCE_SECONDS)
        sys.exit(EXIT_USAGE)
    except NotFiniteError as error:
        print(f"hpe: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_INCOMPLETE)
    except RuntimeError as error:
        if not lost_rank(error):
            raise
        print(f"hpe: rank {os.environ.get('RANK')} lost another rank and leaves", file=sys.stderr, flush=True)
        sys.exit(EXIT_INCOMPLETE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `hpe … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
