"""The command line. Each command is a thin function: plain values in, one call into the package of its name.

Nothing heavy is imported here, so that ``hpe --help`` answers at once: a command imports its package when it runs.
Typer reads one parameter per option, so commands with many options are long; each passes them on in one call.
"""

import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperOption

from hpe import __version__
from hpe.landmarks.commands import app as landmarks


def _type_shown(option: TyperOption, ctx: Any) -> str | None:
    return None if option.is_flag else option.display_type(ctx)


# A flag takes no value. Typer 0.29 shows the type of its parameter all the same: `--new <bool>`.
TyperOption.display_type_rich = _type_shown  # pyright: ignore[reportAttributeAccessIssue]

_SAME: Final = (
    ("faces", "detector", "face-detector"),
    ("out", "run", "output", "output-dir", "output-folder", "out-dir", "save-dir", "dest"),
    ("device", "gpu", "cuda", "cpu", "gpus"),
    ("processes", "gpus", "nproc", "nproc-per-node", "num-processes", "ranks"),
    ("workers", "num-workers", "jobs", "threads"),
    ("batch", "batch-size"),
    ("learning-rate", "lr"),
    ("which", "checkpoint", "ckpt"),
    ("size", "image-size", "img-size"),
    ("val-share", "val-split", "val-size"),
    ("test-share", "test-split", "test-size"),
    ("new", "force", "overwrite", "restart"),
    ("estimator", "model", "network", "run"),
)
"""Names of options that other programs, or other commands of hpe, have for the same thing."""


class _Command(TyperCommand):
    """For an unknown option the message names the one that is probably meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)  # of NoSuchOption, which lies in a private module of typer
            if isinstance(option, str) and (ways := self.ways(option, given)):
                vars(error).update(possibilities=None, message=f"No such option: {option}; use {' or '.join(ways)}")
            raise

    def ways(self, option: str, given: list[str]) -> list[str]:
        """What to use in place of an unknown option."""
        own = {name for parameter in self.params for name in parameter.opts if name.startswith("--")}
        return [f"--{name}" for name in _other_names(option) if f"--{name}" in own]


def _other_names(option: str) -> list[str]:
    """What an option may be called elsewhere."""
    name = option.lstrip("-").replace("_", "-")
    return list(dict.fromkeys(other for names in _SAME if name in names for other in names if other != name))


class _ConfigCommand(_Command):
    """A command with a config: for an unknown option that is a key of it, the message names the ``--set`` to use."""

    def ways(self, option: str, given: list[str]) -> list[str]:
        """See :class:`_Command`."""
        if found := [*_settings(self.name, option, option.lstrip("-"), given), *super().ways(option, given)]:
            return found
        return [way for name in _other_names(option) for way in _settings(self.name, option, name, given)]


def _settings(command: str | None, option: str, name: str, given: list[str]) -> list[str]:
    """``--set`` for each key of a command's config with this name, with the value that was given for an option."""
    from hpe.config.run import RunConfig
    from hpe.config.strict_yaml import paths_to
    from hpe.study.config import StudyConfig

    words = [part for word in given for part in word.split("=", 1)]
    value = next((value for word, value in pairwise(words) if word == option), "…")
    schema = StudyConfig if command == "study" else RunConfig
    return [f"--set {shlex.quote(f'{path}={value}')}" for path in paths_to(schema, name.replace("-", "_"))]


class _App(typer.Typer):
    """Typer whose commands are :class:`_Command` unless they are something else."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = _Command, **settings: Any) -> Any:
        """See :meth:`typer.Typer.command`."""
        return super().command(name, cls=cls, **settings)


app = _App(
    name="hpe",
    help="Train, on many GPUs, networks that read a face's head pose and its emotion together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Panels of `hpe --help`, in the order of the pipeline; the first command of a panel decides where it appears.
_DATA: Final = "Data"
_POSE: Final = "Pose"
_TRAINING: Final = "Training"
_EVALUATION: Final = "Evaluation"
_STUDY: Final = "Study"
_TOOLS: Final = "Tools"
# Panels of the options of a command that has many.
_WHAT: Final = "What to read and write"
_HOW: Final = "How"
_MACHINE: Final = "Machine"


Processes = Annotated[
    int | None,
    typer.Option(
        *("--processes", "-p"),
        metavar="N",
        help="Start N processes on this machine, one per GPU.",
        rich_help_panel=_MACHINE,
    ),
]
Flips = Annotated[
    bool,
    typer.Option("--flips", help="Average each face with its mirror image; takes twice as long.", rich_help_panel=_HOW),
]
JudgedPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, bf16, fp16 or auto; default: the precision of the training.",
        rich_help_panel=_HOW,
    ),
]
Centre = Annotated[
    float,
    typer.Option(
        min=0.5,
        max=1.0,
        help="Use a central crop with this fraction of the image's side, like timm's crop_pct.",
        rich_help_panel=_HOW,
    ),
]

MaxMegapixels = Annotated[
    float,
    typer.Option(
        "--max-megapixels",
        help="A picture of more megapixels is listed and left out, before it is decoded.",
        rich_help_panel=_HOW,
    ),
]

app.add_typer(landmarks, rich_help_panel=_POSE)


def _version(value: bool) -> None:
    if value:
        from hpe.data.provenance import about_package

        commit = about_package()["commit"]
        print(f"hpe {__version__}" + f" (commit {commit})" * (commit is not None))
        raise typer.Exit


_ON_EVERY_RANK: Final = frozenset(("train", "evaluate", "pose", "doctor"))
"""Commands that a launcher may start on many ranks: doctor because each machine is checked on its own."""


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and a checkout's commit."),
    ] = False,
) -> None:
    if context.invoked_subcommand not in _ON_EVERY_RANK:
        from hpe.core.ranks import leave_to_rank_0

        leave_to_rank_0(f"hpe {context.invoked_subcommand}")


@app.command(rich_help_panel=_DATA)
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Reader of the dataset, such as pointing04. `auto`: find the reader from the files; "
            "`hpe pack list`: show all."
        ),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="RAW and OUT: the raw dataset (left out for `synthetic`), then the folder for the shards.",
        ),
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            help="own (the dataset's), drawn (new random ones), or a folder with train.txt, val.txt and test.txt, "
            "one key or path per line.",
            rich_help_panel=_WHAT,
        ),
    ] = "own",
    val_share: Annotated[
        float | None,
        typer.Option(help="Fraction of the samples to draw for val; default: 0.1.", rich_help_panel=_WHAT),
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(help="Fraction of the samples to draw for test; default: 0.1.", rich_help_panel=_WHAT),
    ] = None,
    drop_duplicates: Annotated[
        str,
        typer.Option(
            help="none (only report copies), exact (the same stored image), or near (reads all images twice).",
            rich_help_panel=_WHAT,
        ),
    ] = "none",
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the reader; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            help="Crop rule such as square-1.4@landmarks, none (centre square), or keep (the original bytes).",
            rich_help_panel=_HOW,
        ),
    ] = None,
    detector: Annotated[
        str,
        typer.Option(help="Face detector for rules such as square-1.4@detector: mtcnn or hog.", rich_help_panel=_HOW),
    ] = "mtcnn",
    size: Annotated[int, typer.Option(help="Side of the stored images in pixels.", rich_help_panel=_HOW)] = 224,
    grey: Annotated[
        bool,
        typer.Option("--grey/--colour", help="Store one channel, as in the thesis, or three.", rich_help_panel=_HOW),
    ] = False,
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.", rich_help_panel=_HOW)] = 95,
    samples_per_shard: Annotated[
        int, typer.Option(help="Maximum number of samples in a shard.", rich_help_panel=_HOW)
    ] = 1000,
    seed: Annotated[
        int, typer.Option(help="Seed of the drawn splits and of the order of samples.", rich_help_panel=_HOW)
    ] = 0,
    max_megapixels: MaxMegapixels = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes; default: one per core. The output does not depend on it.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
) -> None:
    """Turn a raw dataset into clean, verified shards, with a record of what was done.

    Run the same command again to resume: it writes only what is missing, with the same bytes. Files that cannot
    become samples are listed in `quarantine.jsonl`. Check `summary.md` and `contact-*.jpg` before you train.
    `hpe pack list` shows the readers, what each one looks for, and its --option keys. Exit code 1: done, but more than
    half of the rows were lost because of words that a column cannot have (they are named).

    Examples: `hpe pack auto raw/AFLW2000 shards/aflw2000 --crop square-1.4@landmarks`; or
    `hpe pack synthetic shards/heads --option count=2000 --option people=50`
    """
    from hpe.pack import list_readers, pack_source
    from hpe.pack.closing import closing
    from hpe.pack.options import Options

    if source == "list" and not paths:
        print(list_readers())
        return
    manifest = pack_source(
        source, paths or [], option or [], workers,
        Options(
            crop=crop, size=size, grey=grey, quality=quality, samples_per_shard=samples_per_shard, seed=seed,
            splits=splits if splits in ("own", "drawn") else Path(splits),  # pyright: ignore[reportArgumentType]
            val_share=val_share, test_share=test_share, detector=detector, drop=drop_duplicates,  # pyright: ignore[reportArgumentType]
            max_megapixels=max_megapixels,
        ),
    )  # fmt: skip
    lines, code = closing(manifest, (paths or [""])[-1])
    print("", *lines, sep="\n")
    raise typer.Exit(code)


@app.command(rich_help_panel=_DATA)
def index(
    shards: Annotated[str, typer.Argument(help="Folder of shards, a tar, or a glob of tars.")],
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Write the index of shards that were packed by an older version or by other tools.

    With an index, commands know every label without opening a tar. `hpe pack` and `hpe balance` write it themselves, so
    you need this command only for tars of an older version or of another tool, when a start takes long.

    Example: `hpe index shards/ferplus`
    """
    from hpe.core.errors import EXIT_INCOMPLETE
    from hpe.pack.indexing import index

    missing = False
    for written in index(shards, workers):
        print(written)
        missing = missing or any(shard.missing for shard in written.shards)
    if missing:
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command(rich_help_panel=_DATA)
def verify(shards: Annotated[str, typer.Argument(help="Folder that `hpe pack` or `hpe balance` wrote.")]) -> None:
    """Check every shard against its sha256 and sample count, and list what is damaged (exit code 1).

    Example: `hpe verify shards/aflw2000`
    """
    from hpe.core.errors import EXIT_INCOMPLETE
    from hpe.data.shard_files import refuse_remote
    from hpe.pack.verify import verify

    refuse_remote(
        shards, "copy the folder here first; training compares each shard that it fetches with its sha256 anyway"
    )
    damage = verify(Path(shards))
    for found in damage:
        print(found)
    print(f"{shards}: " + (f"faults found: {len(damage)}" if damage else "nothing wrong was found"))
    if damage:
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command(rich_help_panel=_DATA)
def balance(
    shards: Annotated[str, typer.Argument(help="Folder that `hpe pack` wrote, or its URL.")],
    poses: Annotated[str, typer.Argument(help="Pose tables of these shards: SHARDS/pose/ESTIMATOR.")],
    out: Annotated[Path, typer.Argument(help="Folder for the subset.")],
    per_cell: Annotated[str, typer.Option(help="Samples per direction and emotion, in train/val/test.")] = "80/40/20",
    rule: Annotated[
        str | None,
        typer.Option(
            help="Direction rule: NAME of a column direction_NAME of the tables; default: the only one, else ours."
        ),
    ] = None,
    directions: Annotated[str | None, typer.Option(help="Only these directions, such as forward,left,right.")] = None,
    emotions: Annotated[str | None, typer.Option(help="Only these emotions; default: all in the shards.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
    samples_per_shard: Annotated[int, typer.Option(help="Maximum number of samples in a shard.")] = 1000,
) -> None:
    """Write a subset with equal numbers of samples per direction and emotion, as in the thesis.

    Example: `hpe balance shards/affectnet shards/affectnet/pose/hopenet shards/balanced --per-cell 221/30/30`
    """
    from hpe.core.labels import DIRECTIONS, EMOTIONS
    from hpe.pack.balance import Subset, balance, labels_of

    subset = Subset(
        per_cell, rule, seed=seed, samples_per_shard=samples_per_shard,
        directions=labels_of("--directions", directions, DIRECTIONS),
        emotions=labels_of("--emotions", emotions, EMOTIONS),
    )  # fmt: skip
    balance(shards, poses, out, subset)


@app.command(rich_help_panel=_POSE)
def pose(
    shards: Annotated[list[str], typer.Argument(help="Folders that `hpe pack` wrote, tar files, globs or URLs.")],
    estimator: Annotated[
        Path,
        typer.Option(
            "--estimator",
            "-e",
            help="YAML of an estimator, .onnx file with a YAML beside it, Hopenet weights, run folder, or folder "
            "of a landmark model.",
            rich_help_panel=_WHAT,
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Weights file to use instead of the YAML's.", rich_help_panel=_WHAT)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.", rich_help_panel=_WHAT)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables; default: pose/ beside the shards.", rich_help_panel=_WHAT),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the folder inside --out; default: the estimator's name.", rich_help_panel=_WHAT),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare the angles with the labels of the shards, and write a report.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    crop: Annotated[
        str | None, typer.Option(help="Crop rule that the estimator was trained with.", rich_help_panel=_HOW)
    ] = None,
    recrop: Annotated[
        bool,
        typer.Option(
            "--recrop",
            help="Crop the faces on the fly, by the boxes or landmarks in the records.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Use the images as they are, whatever their crop rule, and do not test the estimator first.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    flips: Flips = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 (torch networks).", rich_help_panel=_HOW)] = "fp32",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile (torch networks).", rich_help_panel=_HOW)
    ] = False,
    direction_network: Annotated[
        Path | None,
        typer.Option(
            help="Run folder of the thesis' direction network (backbone `angles`): adds its directions.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    rule: Annotated[
        Path | None,
        typer.Option(help="Direction rule that `hpe calibrate` wrote.", rich_help_panel=_HOW),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)] = "auto",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Faces per batch; default: 16 on a CPU, 256 on a GPU.", rich_help_panel=_MACHINE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Reader threads of each process; default: the cores divided among the processes.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    processes: Processes = None,
) -> None:
    """Estimate the head pose of every face in shards, on any number of processes; write one table per shard.

    Run the same command again to resume.

    Example: `hpe pose shards/aflw2000 -e configs/estimators/lwpose66.yaml --weights lwpose66.onnx --check`
    """
    _refuse_absent(estimator, direction_network)
    from hpe.pose import PoseOptions
    from hpe.pose import pose as run
    from hpe.pose.options import on_mismatch_of, precision_of

    options = PoseOptions(
        estimator=estimator, weights=weights, name=name, crop=crop, out=out, split=split,
        on_mismatch=on_mismatch_of(recrop=recrop, force=force), flips="averaged" if flips else "none",
        precision=precision_of(precision), compiled=compile_, device=device, batch=batch, threads=threads,
        direction_network=direction_network, rule=rule, check=check,
    )  # fmt: skip
    _relaunch(processes)
    raise typer.Exit(run(shards, options))


@app.command(rich_help_panel=_POSE)
def calibrate(
    shards: Annotated[list[str], typer.Argument(help="Shards with known directions, such as Pointing'04's.")],
    estimator: Annotated[str, typer.Option("--estimator", "-e", help="Name of the folder of pose tables.")],
    out: Annotated[Path, typer.Option(help="JSON file to write the rule to.")],
    poses: Annotated[
        Path | None, typer.Option(help="Folder of the pose tables; default: pose/ beside the shards.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    target: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy that the rule must reach on the faces that it decides.")
    ] = 0.9,
) -> None:
    """Fit the rule `ours`, which turns angles into a direction or abstains, and evaluate it on other people.

    Example: `hpe calibrate shards/pointing04 -e lwpose66 --out ours.json`; use it with `hpe pose … --rule ours.json`
    """
    from hpe.pose.calibrate import run

    run(shards, poses=poses, estimator=estimator, split=split, target=target, out=out)


Config = Annotated[
    Path,
    typer.Argument(help="YAML config of the run; `hpe configs` lists those that come with hpe.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a setting, such as train.learning_rate=3e-4; may be repeated."
    ),
]
Run = Annotated[Path, typer.Argument(help="Run folder that `hpe train` wrote.", show_default=False)]


def _refuse_absent(*networks: Path | None) -> None:
    """Refuse paths that lead to no trained network, before a command loads torch."""
    from hpe.models.run_folder import refuse_absent

    for network in networks:
        if network is not None:
            refuse_absent(network)


def _relaunch(processes: int | None, *done: str, saves: bool = False) -> None:
    """Run this same command in N processes. Returns only inside those processes, or if N is None.

    Args:
        processes: N.
        done: options that this process has already carried out, so that the new processes must not repeat them.
        saves: whether the processes need time to save when they are asked to stop.
    """
    from hpe.core import launch

    if processes is not None:
        launch.relaunch(processes, [one for one in sys.argv[1:] if one not in done], saves=saves)


@app.command(cls=_ConfigCommand, rich_help_panel=_TRAINING)
def train(
    config: Config,
    overrides: Set = None,
    processes: Processes = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: `run` of the config.")] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Start over; an existing run is renamed to RUN.1, RUN.2 …")
    ] = False,
    change_precision: Annotated[
        bool,
        typer.Option("--change-precision", help="Resume in another precision, for example on other GPUs."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the resolved config and the steps, and stop.")
    ] = False,
) -> None:
    """Train a network. Run the same command again to resume a run that was stopped or killed.

    Exit codes: 0 done; 1 done, but some samples could not be read, or the training cannot continue (the loss
    became NaN or infinite, a process died); 2 a mistake in the config; 75 stopped by a signal, with everything
    saved; 130 (Ctrl-C), 138 (SIGUSR1), 143 (SIGTERM) stopped before there was anything to save.

    Example: `hpe train configs/ferplus_multitask.yaml --processes 2 --set train.learning_rate=0.03`
    """
    from hpe.config.run import RunConfig
    from hpe.config.strict_yaml import load, setting
    from hpe.core.errors import UserError
    from hpe.core.launch import refuse_processes
    from hpe.core.ranks import launched

    changes = [*(overrides or ()), *([setting("run", str(run))] if run else [])]
    loaded = load(config, RunConfig, changes)
    if new and dry_run:
        raise UserError("--new renames the earlier run, --dry-run changes nothing; give one of them")
    if new:
        if launched():
            raise UserError(
                f"--new: a launcher may restart its ranks, and each restart would rename {loaded.run} again; "
                "rename that folder yourself, or choose another one with --run"
            )
        from hpe.models.run_folder import set_aside

        refuse_processes(processes or 1)  # before the earlier run is renamed, which would be for nothing
        set_aside(Path(loaded.run))
    _relaunch(processes, "--new", saves=True)
    from hpe import train as module

    if dry_run:
        module.plan(loaded, change_precision=change_precision)
        return
    code = module.train(loaded, change_precision=change_precision)
    if not code:
        from hpe.core.ranks import Ranks

        Ranks.from_environment().say(f"next: {module.next_command(loaded)}")
    raise typer.Exit(code)


@app.command(rich_help_panel=_EVALUATION)
def evaluate(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run folder, exported network (.onnx or its YAML), or another estimator.",
            show_default=False,
        ),
    ],
    shards: Annotated[str, typer.Argument(help="Folder that `hpe pack` wrote, tar, glob or URL.", show_default=False)],
    split: Annotated[
        str, typer.Option(help="Split to evaluate, or all, if SHARDS is a folder.", rich_help_panel=_WHAT)
    ] = "test",
    pose: Annotated[
        Path | None, typer.Option(help="Folder of pose tables, for angles and directions.", rich_help_panel=_WHAT)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the result; default: dataset and split, such as raf-db-test, plus pose tables, -flips, "
            "-centre0.9, and another checkpoint or precision.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose evaluate/ gets the result; default: the run, or a folder such as face-onnx beside the "
            "weights of an estimator.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    which: Annotated[
        str, typer.Option(help="Checkpoint of a run: best, last, or step-00001234.", rich_help_panel=_HOW)
    ] = "best",
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights file to use instead of that of an estimator's YAML.", rich_help_panel=_HOW),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size over all processes.", rich_help_panel=_MACHINE)] = 256,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Reader processes of each process; default: as in training.", rich_help_panel=_MACHINE
        ),
    ] = None,
    flips: Flips = False,
    centre: Centre = 1.0,
    precision: JudgedPrecision = None,
    processes: Processes = None,
) -> None:
    """Evaluate a network on shards: metrics with confidence intervals, and a table of the predictions.

    Every sample is evaluated exactly once. The results of an exported network can be compared with those of its run:
    `hpe report RUN FOLDER`.

    Example: `hpe evaluate runs/ferplus shards/ferplus --split test --pose shards/ferplus/pose/lwpose66`
    """
    _refuse_absent(network)
    _relaunch(processes)
    from hpe import evaluate as module
    from hpe.data.shard_files import names_folder
    from hpe.models.views import Views
    from hpe.stream import ShardSet

    one = ShardSet(shards, split if names_folder(shards) else None, str(pose) if pose else None)
    options = module.EvaluateOptions(
        name=name, out=out, which=which, weights=weights, batch=batch, workers=workers, views=Views(flips, centre),
        precision=precision,
    )  # fmt: skip
    raise typer.Exit(module.evaluate(network, [one], options))


@app.command(rich_help_panel=_EVALUATION)
def predict(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Run folder, estimator (YAML, or .onnx with a YAML beside it), or landmark model."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Images, folders, tar files, folders of shards, globs; or videos: files, addresses such as "
            "rtsp://…, 0 for a camera, - for the standard input.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results; default: print them.", rich_help_panel=_WHAT),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="jsonl, csv or parquet.", rich_help_panel=_WHAT)] = "jsonl",
    draw: Annotated[
        str,
        typer.Option(
            help="Also write annotated images or videos: axes, cube or none; auto: axes for videos, none for images.",
            rich_help_panel=_WHAT,
        ),
    ] = "auto",
    faces: Annotated[
        str,
        typer.Option(
            help="Where the faces are: given (each image is one face), or found by mtcnn or hog; auto: given for "
            "images, the detector that is installed for videos. A landmark model finds them itself: largest, centre "
            "or all.",
            rich_help_panel=_WHAT,
        ),
    ] = "auto",
    split: Annotated[
        str | None, typer.Option(help="With folders of shards: read only this split.", rich_help_panel=_WHAT)
    ] = None,
    which: Annotated[
        str, typer.Option(help="Checkpoint of the run: best, last, or step-00001234.", rich_help_panel=_HOW)
    ] = "best",
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights file to use instead of that of an estimator's YAML.", rich_help_panel=_HOW),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="Crop rule for detected faces; default: that of the training shards.", rich_help_panel=_HOW),
    ] = None,
    flips: Flips = False,
    centre: Centre = 1.0,
    max_megapixels: MaxMegapixels = 64,
    precision: JudgedPrecision = None,
    steady: Annotated[
        float,
        typer.Option(
            help="Videos: smoothing of a still head, as a cutoff in hertz: lower is smoother, inf is no smoothing.",
            rich_help_panel=_HOW,
        ),
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Faces per batch.", rich_help_panel=_MACHINE)] = 64,
) -> None:
    """Predict head pose, direction and emotion of every face in images, shards or videos: one row per face.

    Images that cannot be read (exit code 1) and images without a face are counted and listed. In videos, faces are
    followed over the frames, with raw and smoothed values (docs/video.md); Ctrl-C ends a camera.

    Examples: `hpe predict runs/joint photos/ 'more/*.jpg' --faces mtcnn --draw axes --out read`; or
    `hpe predict runs/joint talk.mp4 -o read`; or `hpe predict runs/joint 0 -o read`
    """
    _refuse_absent(network)
    from hpe import predict as module
    from hpe.models.views import Views
    from hpe.predict.options import PredictOptions

    options = PredictOptions(
        out=out, form=form, draw=draw, faces=faces, which=which, batch=batch, device=device, weights=weights,
        crop=crop, split=split, views=Views(flips, centre), precision=precision, max_megapixels=max_megapixels,
        steady=steady,
    )  # fmt: skip
    raise typer.Exit(module.predict(network, inputs, options))


@app.command("app", rich_help_panel=_EVALUATION)
def show_app(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Run folder, estimator (YAML, or .onnx with a YAML beside it), or landmark model."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")] = 7860,
    faces: Annotated[
        str,
        typer.Option(
            help="Where the faces are: mtcnn or hog finds them, or given (each image is one face); auto: the detector "
            "that is installed. A landmark model finds them itself: largest, centre or all."
        ),
    ] = "auto",
    which: Annotated[str, typer.Option(help="Checkpoint of the run: best, last, or step-00001234.")] = "best",
    weights: Annotated[
        Path | None, typer.Option(help="Weights file to use instead of that of an estimator's YAML.")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="Crop rule for detected faces; default: that of the training shards.")
    ] = None,
    precision: JudgedPrecision = None,
    max_megapixels: MaxMegapixels = 64,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest video that can be uploaded, MB.")] = 500,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Show a network in the browser: photos, camera and videos, on a page of this machine alone.

    Nothing leaves the machine. For a server, forward the port: `ssh -L 7860:127.0.0.1:7860 server`.

    Example: `hpe app runs/joint`
    """
    _refuse_absent(network)
    from hpe.app import app as module
    from hpe.app.server import AppOptions

    options = AppOptions(
        port=port, faces=faces, which=which, weights=weights, crop=crop, precision=precision, device=device,
        max_megapixels=max_megapixels, max_megabytes=max_megabytes,
    )  # fmt: skip
    raise typer.Exit(module(network, options))


@app.command(rich_help_panel=_EVALUATION)
def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or Hopenet weights.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write, such as face.onnx; face.yaml goes beside it.")],
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 (weights and activations), or int8 (static, calibrated on the shards).")
    ] = "fp32",
    shards: Annotated[
        str | None, typer.Option(help="Shards to compare on; default: the validation shards of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of these shards, if SHARDS is a folder.")] = "val",
    images: Annotated[int, typer.Option(min=1, help="Images to compare on, and to calibrate int8 with.")] = 512,
    which: Annotated[str, typer.Option(help="Checkpoint: best, last, or step-00001234.")] = "best",
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write a trained network as ONNX, after a comparison of both on real images.

    The graph takes RGB values of 0 to 255 in any batch size and gives probabilities and degrees. Its metadata and the
    YAML beside it describe input, outputs, crop rule, angles, licence and training data; with that YAML, `hpe pose`,
    `predict` and `evaluate` take the file as an estimator.

    Example: `hpe export runs/ferplus ferplus.onnx`
    """
    _refuse_absent(source)
    from hpe.export import ExportOptions
    from hpe.export import export as write

    options = ExportOptions(which=which, precision=precision, shards=shards, split=split, images=images, force=force)
    print("\n".join(write(source, out, options).lines()))
    print(f"{out}, {out.with_suffix('.yaml')}")


@app.command(rich_help_panel=_EVALUATION)
def share(
    run: Run,
    target: Annotated[str, typer.Argument(metavar="FOLDER|hf://ORG/NAME", help="New folder, or repository on a hub.")],
    which: Annotated[str, typer.Option(help="Checkpoint: best, last, or step-00001234.")] = "best",
    permitted: Annotated[
        str | None,
        typer.Option(
            help="If a dataset's terms forbid passing on its images: why weights that were trained on it may be "
            "published; the model card quotes it."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="On a hub: for you and your organisation alone.")] = False,
) -> None:
    """Share a trained network: safetensors, config and model card, without paths of this machine.

    `hpe.load` and the other commands read the folder like a run; `hpe.load("hf://org/name")` fetches it. If the
    terms of a training dataset are unknown or forbid passing on its images, the network is refused without --permitted.

    Example: `hpe share runs/demo/multitask shared/heads`
    """
    _refuse_absent(run)
    from hpe.share import share as write

    print(write(run, target, which=which, permitted=permitted, private=private))


@app.command("runs", rich_help_panel=_EVALUATION)
def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders that contain run folders.", show_default="runs")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the list to this file.")] = None,
) -> None:
    """List runs with their progress, metrics, and the settings that differ between them.

    Example: `hpe runs runs/baseline runs/joint`
    """
    from hpe.report import runs as module

    raise typer.Exit(module.runs(folders, json_file))


@app.command(rich_help_panel=_EVALUATION)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders and study folders; several runs are also compared with each other."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the page or the comparison; default: report/ in the run folder, or beside the runs."
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Leave out faces of datasets whose terms forbid sharing them.")
    ] = False,
) -> None:
    """Write an HTML page for each run and study, and a model card for each run.

    Each page is one file that works offline.

    Example: `hpe report runs/baseline runs/joint --out runs/report`
    """
    from hpe import report as module
    from hpe.models.run_folder import refuse_missing

    for run in runs:  # before what draws the pages is loaded
        refuse_missing(run, "run or study", "; expected a folder that `hpe train` or `hpe study` wrote")
    for page in module.report(runs, out, public=public):
        print(page)


@app.command(cls=_ConfigCommand, rich_help_panel=_STUDY)
def study(
    config: Annotated[
        Path, typer.Argument(help="YAML config of the study, such as configs/study/tiny.yaml.", show_default=False)
    ],
    overrides: Set = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of runs to train at the same time.")] = 1,
    new: Annotated[
        bool, typer.Option("--new", help="Start over; an existing study is renamed to STUDY.1, STUDY.2 …")
    ] = False,
) -> None:
    """Rebuild the tables of the thesis from shards and pose tables: every model, set and seed, with tests.

    Run the same command again to resume; finished runs are kept. You may add models and additional seeds (after
    the existing ones) to a study. Changing --jobs can alter the last digits, because it divides the cores among
    the runs. Exit codes: 1 some runs failed (they are listed), 75 stopped by a signal.

    Example: `hpe study configs/study/tiny.yaml --jobs 2`
    """
    from hpe.config.strict_yaml import load
    from hpe.study import study as module
    from hpe.study.config import StudyConfig

    raise typer.Exit(module(load(config, StudyConfig, overrides or ()), jobs=jobs, new=new))


@app.command(rich_help_panel=_STUDY)
def association(
    table: Annotated[
        str,
        typer.Argument(help="CSV or Parquet file with a row per image, or a folder that `hpe pack` wrote, or its URL."),
    ],
    rows: Annotated[str, typer.Option(help="Column of TABLE whose values become the rows.")] = "direction",
    columns: Annotated[str, typer.Option(help="Column of TABLE whose values become the columns.")] = "emotion",
    pose: Annotated[
        str | None, typer.Option(help="Of shards: estimator (or folder) of the pose tables that give the directions.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Direction rule of the pose tables; default: the only one, else ours.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of shards: only this split.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("association"),
    replicates: Annotated[int, typer.Option(min=20, help="Number of bootstrap samples, and of permutations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and the permutations.")] = 0,
) -> None:
    """Measure how strongly two columns are associated: cross table, χ², Cramér's V, residuals, permutation test.

    Writes JSON, Markdown and a heat map; for a table of predictions also the accuracy of emotion per direction.

    Example: `hpe association shards/ferplus --pose lwpose66`
    """
    from hpe.report import association as module

    labels = module.ShardLabels(split, pose, rule)
    made = module.write_association(
        table, out, rows=rows, columns=columns, replicates=replicates, seed=seed, labels=labels
    )
    print("\n".join(made["sentences"]))
    print(f"{out}/association.md")


@app.command("configs", rich_help_panel=_TOOLS)
def list_configs(
    out: Annotated[Path | None, typer.Argument(help="Folder to copy the configs to; default: list them.")] = None,
) -> None:
    """List the configs that come with hpe, or copy them to a folder where you can edit them.

    Example: `hpe configs configs`
    """
    from hpe.config import recipes as module

    if out is None:
        for name, title in module.described():
            print(f"{name:30}{title}")
    else:
        for path in module.copy(out):
            print(path)


@app.command(rich_help_panel=_TOOLS)
def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder where runs and shards will be written.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Skip the test with two processes.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Check the GPUs instead: 8 checks in at most 8 minutes.")] = False,
    device: Annotated[str, typer.Option(help="With --gpu: auto, or cpu to try the checks without a GPU.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="With --gpu: file for the JSON report.", show_default="FOLDER/gpu-report.json")
    ] = None,
) -> None:
    """Check versions, devices, disk, communication of two processes, and the conventions for angles and colours.

    With --gpu it checks training in each precision, torch.compile, communication between GPUs, decoding,
    resuming and speed instead. Exit codes: 1 a check failed, 2 no GPU.

    Example: `hpe doctor /data`
    """
    if gpu:
        from hpe.tools.gpucheck.command import gpu_doctor

        raise typer.Exit(gpu_doctor(folder, device=device, out=out))
    if device != "auto" or out is not None:
        from hpe.core.errors import UserError

        raise UserError("doctor: --device and --out need --gpu; add it, or leave them out")
    from hpe.tools import doctor as module

    raise typer.Exit(module.doctor(folder, quick=quick))


@app.command(rich_help_panel=_TOOLS)
def bench(
    part: Annotated[str, typer.Argument(help="Part to measure: start, stream, pack, pose, step or all.")] = "all",
    folder: Annotated[Path, typer.Option(help="Folder for the data that it makes; kept for the next time.")] = Path(
        "hpe-bench"
    ),
    workers: Annotated[int, typer.Option(min=0, help="Processes that each candidate may use.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each candidate; the median is reported.")] = 3,
    samples: Annotated[int, typer.Option(min=640, help="Images per measurement.")] = 6000,
    shards: Annotated[str | None, typer.Option(help="Use these shards (224 pixels) instead of rendered ones.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="With step: measure the training of this config, and find its bottleneck.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Measure how fast each part of hpe is, compared with alternatives on the same machine.

    Example: `hpe bench stream --workers 4 --json bench.json`
    """
    from hpe.core.files import make_folder, write_json
    from hpe.tools import bench as module

    settings = module.Settings(folder, workers, repeats, samples, shards, config)
    parts = module.available() if part == "all" else (part,)
    for name in parts:
        module.refuse(name, settings)  # before the minutes of the parts before it
    make_folder(folder, f"--folder {folder}")
    reports = []
    for name in parts:
        reports.append(module.measure(name, settings))
        print(reports[-1], flush=True)
    if json_file:
        write_json(json_file, [report.to_json() for report in reports])


@app.command(rich_help_panel=_TOOLS)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered heads and of both trainings.")] = 0,
    processes: Annotated[
        int | None,
        typer.Option(
            *("--processes", "-p"),
            min=1,
            metavar="N",
            help="Processes of the joint training.",
            show_default="2, or 1 on a machine with one GPU",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1000, max=1_000_000, help="Number of rendered images.")] = 5600,
    people: Annotated[int, typer.Option(min=20, help="Number of rendered people; 70 % are for training.")] = 320,
    new: Annotated[
        bool, typer.Option("--new", help="Start over; an existing demo is renamed to OUT.1, OUT.2 …")
    ] = False,
) -> None:
    """Run the whole pipeline on rendered heads in a few minutes: pack, pose, train, evaluate, report.

    Run the same command again to resume.

    Example: `hpe demo --seed 1 --out runs/demo1`
    """
    from hpe.tools.demo import demo

    raise typer.Exit(demo(out, seed=seed, processes=processes, count=count, people=people, new=new))
