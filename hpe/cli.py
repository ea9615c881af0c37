"""The command line. Each command is a thin function: plain values in, one call into the module of its name.

Nothing heavy is imported here, so that ``hpe --help`` answers at once: a command imports its own module.
"""

from pathlib import Path
from typing import Annotated

import typer

from hpe import __version__

app = typer.Typer(
    name="hpe",
    help="Train, on many GPUs, networks that read a face's head pose and its emotion together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"hpe {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
