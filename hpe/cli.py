"""The command line. Each command is a thin function: plain values in, one call into the module of its name.

Nothing heavy is imported here, so that ``hpe --help`` answers at once: a command imports its own module.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpe import __version__
from hpe.landmarks.commands import app as landmarks

app = typer.Typer(
    name="hpe",
    help="Train, on many GPUs, networks that read a face's head pose and its emotion together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Processes = Annotated[
    int | None, typer.Option("--processes", "-p", metavar="N", help="Start N processes (one a GPU) on this machine.")
]
Flips = Annotated[bool, typer.Option("--flips", help="Average each face with its mirror image; takes twice as long.")]
JudgedPrecision = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16, fp16 or auto; default: that of the run's training.")
]
Centre = Annotated[
    float, typer.Option(min=0.5, max=1.0, help="Look at the centre crop of this share of the side, as timm's crop_pct.")
]

app.add_typer(landmarks)


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
def pack(
    source: Annotated[
        str, typer.Argument(help="`auto`, the name of a reader such as pointing04 or synthetic, or `list`.")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RAW] OUT", help="The raw dataset (rendered heads have none); the shards' folder."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="Rule such as square-1.4@landmarks, none (centre square), or keep (the original bytes)."),
    ] = None,
    detector: Annotated[str, typer.Option(help="mtcnn or hog, for rules such as square-1.4@detector.")] = "mtcnn",
    size: Annotated[int, typer.Option(help="Side of the stored pictures, pixels.")] = 224,
    grey: Annotated[bool, typer.Option("--grey/--colour", help="One channel, as in the thesis, or three.")] = False,
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.")] = 95,
    splits: Annotated[
        str, typer.Option(help="own, drawn (anew), or a folder of train.txt, val.txt, test.txt: a key or path a line.")
    ] = "own",
    val_share: Annotated[float | None, typer.Option(help="Share for val, where it is drawn; default: 0.1.")] = None,
    test_share: Annotated[float | None, typer.Option(help="Share for test, where it is drawn; default: 0.1.")] = None,
    drop_duplicates: Annotated[
        str, typer.Option(help="none (copies are only reported), exact, or near (a second reading of all pictures).")
    ] = "none",
    samples_per_shard: Annotated[int, typer.Option(help="At most.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the splits and of the order.")] = 0,
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the reader; may be repeated.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: all cores. The bytes do not depend on it.")
    ] = None,
) -> None:
    """Turn a raw dataset into clean, verified shards, with a record of what was done.

    Killed and started again, it makes only what is missing, with the same bytes. What cannot become a sample
    is named in `quarantine.jsonl`; look at `summary.md` and `contact-*.png`. `hpe pack list` names the readers,
    what each looks for, and what --option it takes.

    Examples: `hpe pack auto raw/AFLW2000 data/aflw2000 --crop square-1.4@landmarks`,
    `hpe pack synthetic data/heads --option count=2000 --option people=50`
    """
    from hpe.pack import list_readers, pack_source
    from hpe.pack.job import Options

    if source == "list" and not paths:
        print(list_readers())
        return
    manifest = pack_source(
        source, paths or [], option or [], workers,
        Options(
            crop=crop, size=size, grey=grey, quality=quality, samples_per_shard=samples_per_shard, seed=seed,
            splits=splits if splits in ("own", "drawn") else Path(splits),  # pyright: ignore[reportArgumentType]
            val_share=val_share, test_share=test_share, detector=detector, drop=drop_duplicates,  # pyright: ignore[reportArgumentType]
        ),
    )  # fmt: skip
    out = shlex.quote((paths or [""])[-1])
    if "train" in manifest.splits:
        sets = (f" --set data.{split}.0.shards={out}" for split in ("train", "val") if split in manifest.splits)
        then = f"hpe train CONFIG{''.join(sets)}"
    else:
        then = f"hpe evaluate RUN {out} --split {manifest.splits[0]}"
    print(
        f"\nWritten to {out}; look at {out}/contact-*.png. Next: hpe pose {out} --estimator ESTIMATOR for angles, "
        f"or {then}"
    )


@app.command()
def verify(shards: Annotated[Path, typer.Argument(help="Folder that `hpe pack` or `hpe balance` wrote.")]) -> None:
    """Check every shard against its sha256 and count, and name what is damaged (exit code 1).

    Example: `hpe verify data/aflw2000`
    """
    from hpe.core.errors import EXIT_INCOMPLETE
    from hpe.pack.verify import verify

    damage = verify(shards)
    for found in damage:
        print(found)
    print(f"{shards}: " + (f"faults found: {len(damage)}" if damage else "every shard is as its manifest says"))
    if damage:
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def balance(
    shards: Annotated[Path, typer.Argument(help="Folder that `hpe pack` wrote.")],
    poses: Annotated[Path, typer.Argument(help="Pose tables of these shards: SHARDS/pose/ESTIMATOR.")],
    out: Annotated[Path, typer.Argument(help="Folder for the subset.")],
    per_cell: Annotated[str, typer.Option(help="Samples per direction and emotion, in train/val/test.")] = "80/40/20",
    rule: Annotated[
        str | None,
        typer.Option(
            help="Direction rule: a direction_RULE column of the tables; default: the only one, or else ours."
        ),
    ] = None,
    directions: Annotated[str | None, typer.Option(help="Only these, such as forward,left,right.")] = None,
    emotions: Annotated[str | None, typer.Option(help="Only these; default: all that the shards have.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    samples_per_shard: Annotated[int, typer.Option(help="At most.")] = 1000,
) -> None:
    """Write a subset with as many samples of every direction and emotion, as the thesis does.

    Example: `hpe balance data/affectnet data/affectnet/pose/hopenet data/balanced --per-cell 221/30/30`
    """
    from hpe.core.labels import DIRECTIONS, EMOTIONS
    from hpe.pack.balance import balance, labels_of

    balance(
        shards, poses, out, per_cell=per_cell, rule=rule, seed=seed, samples_per_shard=samples_per_shard,
        directions=labels_of("--directions", directions, DIRECTIONS),
        emotions=labels_of("--emotions", emotions, EMOTIONS),
    )  # fmt: skip


@app.command()
def pose(
    shards: Annotated[list[str], typer.Argument(help="Folders that `hpe pack` wrote, tar files or globs.")],
    estimator: Annotated[
        Path,
        typer.Option(
            "--estimator",
            "-e",
            help="Estimator YAML, .onnx with its YAML, Hopenet weights, a run folder, or a landmark model's folder.",
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
    flips: Flips = False,
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
    processes: Processes = None,
) -> None:
    """Head pose of every face in shards: one resumable, distributed pass, one table a shard.

    Example: `hpe pose shards/aflw2000 -e configs/estimators/lwpose66.yaml --weights lwpose66.onnx --check`
    """
    from hpe.core import distributed
    from hpe.pose import pose as run
    from hpe.pose.plan import as_choice, check_tables

    chosen = as_choice(recrop=recrop, force=force, precision=precision)
    _relaunch(processes)
    code, tasks = run(
        shards, estimator=estimator, weights=weights, name=name, crop=crop, out=out, split=split,
        on_mismatch=chosen.on_mismatch, flips="averaged" if flips else "none", precision=chosen.precision,
        compiled=compile_, device=device, batch=batch, threads=threads, direction_network=direction_network, rule=rule,
        check=check,
    )  # fmt: skip
    if check and distributed.Ranks.from_environment().main:
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

    Example: `hpe calibrate shards/pointing04 -e lwpose66 --out ours.json`, then `hpe pose … --rule ours.json`
    """
    from hpe.pose.calibrate import run

    run(shards, poses=poses, estimator=estimator, split=split, target=target, out=out)


Config = Annotated[Path, typer.Argument(help="YAML config of the run; `hpe configs` lists some.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: train.learning_rate=3e-4.")
]
Run = Annotated[Path, typer.Argument(help="Run folder that `hpe train` wrote.", show_default=False)]


def _relaunch(processes: int | None, *done: str) -> None:
    """Start this very command on N processes; returns in those processes, and where no N is asked for.

    Args:
        processes: N.
        done: options that this process has done for all of them.
    """
    from hpe.core import launch

    if processes is not None:
        launch.relaunch(processes, [one for one in sys.argv[1:] if one not in done])


@app.command()
def train(
    config: Config,
    overrides: Set = None,
    processes: Processes = None,
    run: Annotated[Path | None, typer.Option(help="Run folder, instead of the config's run:.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start over; an earlier run becomes RUN.1, RUN.2 …")] = False,
    change_precision: Annotated[
        bool,
        typer.Option("--change-precision", help="Let a run that has begun go on in another precision (other GPUs)."),
    ] = False,
) -> None:
    """Train a network; the same command goes on with a run that was stopped or killed.

    Exit codes: 0 done, 1 done but some samples could not be read, 2 a mistake in the config, 75 stopped by
    a signal with everything saved (run it again).

    Example: `hpe train configs/ferplus_multitask.yaml --processes 2 --set train.learning_rate=0.03`
    """
    from hpe.config.run import RunConfig, load
    from hpe.core.distributed import launched
    from hpe.core.errors import UserError
    from hpe.core.launch import refuse_processes

    changes = [*(overrides or ()), *([f"run={run}"] if run else [])]
    loaded = load(config, RunConfig, changes)
    if new:
        if launched():
            raise UserError(
                f"--new: a launcher may start its ranks again, which would set aside what {loaded.run} has learned; "
                "rename that folder first, or give another run:"
            )
        from hpe.models.run_folder import set_aside

        refuse_processes(processes or 1)  # or the earlier run would be aside for nothing
        set_aside(Path(loaded.run))
    _relaunch(processes, "--new")
    from hpe import train as module

    raise typer.Exit(module.train(loaded, change_precision=change_precision))


@app.command()
def evaluate(
    run: Run,
    shards: Annotated[str, typer.Argument(help="Folder that `hpe pack` wrote, tar, glob or URL.", show_default=False)],
    split: Annotated[str | None, typer.Option(help="Split, where SHARDS is a folder.")] = "test",
    pose: Annotated[Path | None, typer.Option(help="Pose tables, for angles and directions.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the result; default: the split (with -flips, -centre0.9).")
    ] = None,
    which: Annotated[str, typer.Option(help="Checkpoint: best, last, or step-00001234.")] = "best",
    batch: Annotated[int, typer.Option(min=1, help="Samples of a batch over all processes.")] = 256,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Reader processes a rank; default: as in training.")
    ] = None,
    flips: Flips = False,
    centre: Centre = 1.0,
    precision: JudgedPrecision = None,
    processes: Processes = None,
) -> None:
    """Evaluate a run on shards: every sample once, figures with intervals, predictions as a table.

    Example: `hpe evaluate runs/ferplus shards/ferplus --split test --pose shards/ferplus/pose/lwpose66`
    """
    _relaunch(processes)
    from hpe import evaluate as module
    from hpe.models.views import Views
    from hpe.stream import ShardSet

    folder = Path(shards).is_dir()
    one = ShardSet(shards, split if folder else None, str(pose) if pose else None)
    plain = "".join(letter if letter.isalnum() or letter in "-_.=+" else "_" for letter in Path(shards).stem)
    views = Views(flips, centre)
    usual = (split if folder and split else plain.strip("_.")) or "evaluate"
    called = name or f"{usual}{'-flips' * flips}{f'-centre{centre:g}' if centre < 1 else ''}"
    code = module.evaluate(
        run, [one], name=called, which=which, batch=batch, workers=workers, views=views, precision=precision
    )
    raise typer.Exit(code)


@app.command()
def predict(
    network: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder, estimator (YAML, .onnx with its YAML), or landmark model."),
    ],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, tars, folders of shards, globs.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results; without it rows are printed.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="jsonl, csv or parquet.")] = "jsonl",
    draw: Annotated[str, typer.Option(help="Annotated pictures with axes or cube; or none.")] = "none",
    faces: Annotated[
        str,
        typer.Option(help="given (a picture is a face), mtcnn or hog; with a landmark model largest, centre or all."),
    ] = "given",
    which: Annotated[str, typer.Option(help="Checkpoint: best, last, or step-00001234.")] = "best",
    batch: Annotated[int, typer.Option(min=1, help="Faces that go through the network together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="An estimator's weights, in place of its YAML's.")] = None,
    crop: Annotated[
        str | None, typer.Option(help="Crop of detected faces; default: that of the network's training shards.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of folders of shards.")] = None,
    flips: Flips = False,
    centre: Centre = 1.0,
    precision: JudgedPrecision = None,
) -> None:
    """Read head pose, direction and emotion of every face in pictures or shards: a row a face.

    Pictures that cannot be read (exit code 1) and those without a face are counted and named.

    Example: `hpe predict runs/joint photos/ 'more/*.jpg' --faces mtcnn --draw axes --out read`
    """
    from hpe import predict as module
    from hpe.models.views import Views

    code = module.predict(
        network, inputs, out=out, form=form, draw=draw, faces=faces, which=which, batch=batch, device=device,
        weights=weights, crop=crop, split=split, views=Views(flips, centre), precision=precision,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command("runs")
def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders that contain some.", show_default="runs")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the list to this file.")] = None,
) -> None:
    """List runs with their progress, their metrics, and the settings in which they differ.

    Example: `hpe runs runs/baseline runs/joint`
    """
    from hpe.report import runs as module

    raise typer.Exit(module.runs(folders, json_file))


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="YAML config of the study; see configs/study/.", show_default=False)],
    overrides: Set = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each in its own process.")] = 1,
    new: Annotated[bool, typer.Option("--new", help="Set an earlier study of this folder aside.")] = False,
) -> None:
    """Rebuild the thesis from shards and pose tables to its tables: every model, set and seed, with tests.

    Stopped or killed and started again, it goes on; finished runs are not run again. Further seeds (behind the
    first) and models may be added to a study. Another --jobs changes figures by rounding: it divides the cores.
    Exit codes: 1 some runs failed (they are named), 75 stopped by a signal.

    Example: `hpe study configs/study/tiny.yaml --jobs 2`
    """
    from hpe.config.run import load
    from hpe.study import study as module
    from hpe.study.config import StudyConfig

    raise typer.Exit(module(load(config, StudyConfig, overrides or ()), jobs=jobs, new=new))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders and study folders; several runs are also compared.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page, or of the comparison; default: report/ in the run, or beside the runs."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Leave out the faces of datasets whose terms forbid sharing them.")
    ] = False,
) -> None:
    """Write a page and a model card for each run, and a page for each study; a page is one file that works offline.

    Example: `hpe report runs/baseline runs/joint --out runs/report`
    """
    from hpe import report as module

    for page in module.report(runs, out, public=public):
        print(page)


@app.command()
def association(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file with a row per image.")],
    rows: Annotated[str, typer.Option(help="Column of TABLE whose values become the rows.")] = "direction",
    columns: Annotated[str, typer.Option(help="Column of TABLE whose values become the columns.")] = "emotion",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("association"),
    replicates: Annotated[int, typer.Option(min=20, help="Number of bootstrap draws and of permutations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws and permutations.")] = 0,
) -> None:
    """Measure the association of two columns: cross tables, χ², Cramér's V, residuals, permutations.

    Writes JSON, Markdown and a heat map, and for a table of predictions also the emotion accuracy by direction.

    Example: `hpe association runs/ferplus/evaluate/test.parquet`
    """
    from hpe.report import association as module

    made = module.write_association(table, out, rows=rows, columns=columns, replicates=replicates, seed=seed)
    print("\n".join(made["sentences"]))
    print(f"{out}/association.md")


@app.command("configs")
def list_configs(
    out: Annotated[Path | None, typer.Argument(help="Folder to copy them to; without it they are listed.")] = None,
) -> None:
    """List the configs that come with hpe, or copy them to a folder, to run and to edit.

    Example: `hpe configs configs`
    """
    from hpe.config import recipes as module

    if out is None:
        for name, title in module.described():
            print(f"{name:30}{title}")
    else:
        for path in module.copy(out):
            print(path)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs and shards will be written.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Leave the two-process test out.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Judge the GPUs instead: 8 checks, at most 8 minutes.")] = False,
    device: Annotated[str, typer.Option(help="For --gpu: auto, or cpu to try its checks without a GPU.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="For --gpu: the JSON report.", show_default="FOLDER/gpu-report.json")
    ] = None,
) -> None:
    """Check versions, devices, disk, a two-process all-reduce and the conventions for angles and colours.

    With --gpu: train in each precision, compile, sum over all GPUs, decode, kill and resume, and measure speeds.
    Exit codes: 1 something is bad, 2 no GPU.

    Example: `hpe doctor /data`
    """
    if gpu:
        from hpe.tools.gpucheck.command import gpu_doctor

        raise typer.Exit(gpu_doctor(folder, device=device, out=out))
    if device != "auto" or out is not None:
        from hpe.core.errors import UserError

        raise UserError("--device and --out of hpe doctor go with --gpu; add it, or leave them out")
    from hpe.tools import doctor as module

    raise typer.Exit(module.doctor(folder, quick=quick))


@app.command()
def bench(
    part: Annotated[str, typer.Argument(help="stream, pack, …; all: every part that is there.")] = "all",
    folder: Annotated[Path, typer.Option(help="Where its data is made and kept.")] = Path("hpe-bench"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that each contestant may use.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each contestant; medians are reported.")] = 3,
    samples: Annotated[int, typer.Option(min=640, help="Pictures of a turn.")] = 6000,
    shards: Annotated[str | None, typer.Option(help="Use these 224 px shards instead of made ones.")] = None,
    config: Annotated[Path | None, typer.Option(help="step: measure this run's config, and what bounds it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Measure how fast each part is beside what else one could use, in turns on this machine.

    Example: `hpe bench stream --workers 4 --json bench.json`
    """
    from hpe.core.files import make_folder, write_json
    from hpe.tools import bench as module

    settings = module.Settings(folder, workers, repeats, samples, shards, config)
    make_folder(folder, f"--folder {folder}")
    reports = []
    for name in module.available() if part == "all" else (part,):
        reports.append(module.measure(name, settings))
        print(reports[-1], flush=True)
    if json_file:
        write_json(json_file, [report.to_json() for report in reports])


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything that the demo writes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the heads and of both trainings.")] = 0,
    processes: Annotated[
        int | None,
        typer.Option(
            *("--processes", "-p"),
            min=1,
            metavar="N",
            help="For the joint training.",
            show_default="2, or 1 on a machine with one GPU",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1000, max=1_000_000, help="Rendered pictures.")] = 5600,
    people: Annotated[int, typer.Option(min=20, help="Rendered people; 70 % to learn from.")] = 320,
    new: Annotated[bool, typer.Option("--new", help="Set an earlier demo aside and start over.")] = False,
) -> None:
    """Run the whole pipeline on rendered heads: pack, pose, train, evaluate, report, in a few minutes.

    Stopped and started again, it goes on where it stood.

    Example: `hpe demo --seed 1 --out runs/demo1`
    """
    from hpe.tools.demo import demo

    raise typer.Exit(demo(out, seed=seed, processes=processes, count=count, people=people, new=new))
