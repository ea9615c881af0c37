"""The command line. Each command is a thin function: plain values in, one call into the module of its name.

Nothing heavy is imported here, so that ``hpe --help`` answers at once: a command imports its own module.
"""

import sys
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


@app.command()
def pose(
    shards: Annotated[list[str], typer.Argument(help="Folders that `hpe pack` wrote, tar files or globs.")],
    estimator: Annotated[
        Path,
        typer.Option(
            "--estimator", "-e", help="Estimator YAML, .onnx with its YAML, Hopenet weights, or a run folder."
        ),
    ],
    weights: Annotated[Path | None, typer.Option(help="Weights file, in place of the YAML's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tables' folder, in place of the estimator's.")] = None,
    crop: Annotated[str | None, typer.Option(help="Crop rule that the estimator was made for.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; default: pose/ beside the shards.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    recrop: Annotated[bool, typer.Option("--recrop", help="Crop on the fly by the record's box or landmarks.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take the pictures as they are, and skip the estimator's trial.")
    ] = False,
    flips: Annotated[bool, typer.Option("--flips", help="Average each face with its mirror image.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 (torch networks).")] = "fp32",
    compile_: Annotated[bool, typer.Option("--compile", help="Through torch.compile (torch networks).")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Faces at a time; default 16 on a CPU, 256 on a GPU.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Workers of each rank; default: its share of the cores.")
    ] = None,
    direction_network: Annotated[
        Path | None, typer.Option(help="Run folder of the thesis' direction network (backbone angles).")
    ] = None,
    rule: Annotated[Path | None, typer.Option(help="Our direction rule, as `hpe calibrate` wrote it.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the shards' true angles, write a report.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Ranks on this machine.")] = 1,
) -> None:
    """Head pose of every face in shards: one resumable, distributed pass, one table a shard.

    Example: `hpe pose shards/aflw2000 -e configs/estimators/lwpose66.yaml --weights lwpose66.onnx --check`
    """
    from hpe import ranks
    from hpe.pose import as_choice, check_tables, run

    chosen = as_choice(recrop=recrop, force=force, precision=precision)
    if processes > 1 and not ranks.launched():
        ranks.relaunch(processes, sys.argv[1:])
    code, tasks = run(
        shards, estimator=estimator, weights=weights, name=name, crop=crop, out=out, split=split,
        on_mismatch=chosen.on_mismatch, flips="averaged" if flips else "none", precision=chosen.precision,
        compiled=compile_, device=device, batch=batch, threads=threads, direction_network=direction_network, rule=rule,
    )  # fmt: skip
    if check and ranks.Ranks.from_environment().main:
        check_tables(tasks)
    raise typer.Exit(code)


@app.command()
def calibrate(
    shards: Annotated[list[str], typer.Argument(help="Shards with known directions, such as Pointing'04's.")],
    estimator: Annotated[str, typer.Option("--estimator", "-e", help="Name of the pose tables' estimator.")],
    out: Annotated[Path, typer.Option(help="Where to write the rule (JSON).")],
    poses: Annotated[
        Path | None, typer.Option(help="Folder of the pose tables; default: pose/ beside the shards.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    target: Annotated[float, typer.Option(min=0, max=1, help="Accuracy that decided faces are to have.")] = 0.9,
) -> None:
    """Fit our direction rule, with its option to abstain, and judge it on people not used to fit it.

    Example: `hpe calibrate shards/pointing04 -e lwpose66 --out ours.json`
    """
    from hpe.calibrate import run

    run(shards, poses=poses, estimator=estimator, split=split, target=target, out=out)
