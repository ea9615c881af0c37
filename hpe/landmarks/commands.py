"""``hpe landmarks …``: the mesh's environment, extraction, the comparison, drawn axes."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from hpe.errors import EXIT_AGAIN, EXIT_INCOMPLETE, UserError

app = typer.Typer(
    name="landmarks",
    help="Head pose from face points: mesh, ten regressors compared, the best one used; looks, from head and eyes.",
    no_args_is_help=True,
)

_NAMED: Final = 20
_Python = Annotated[
    Path | None, typer.Option(help="Interpreter with the mesh, in place of the one of `hpe landmarks install`.")
]
_Views = Annotated[str, typer.Option(help="plain (fastest), mirror, or many: the mean of 1, 2 or 7 views a face.")]
_Faces = Annotated[str, typer.Option(help="Of several faces: largest, centre (nearest to it), or all.")]
_Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; all cores by default.")]


@app.command()
def install(
    folder: Annotated[Path | None, typer.Option(help="Where; by default in the user's cache.")] = None,
) -> None:
    """Make the face mesh's own environment (MediaPipe 0.10.21, which no protobuf of today suits).

    Example: `hpe landmarks install`
    """
    from hpe.landmarks import mesh

    print(f"face mesh: {mesh.install(folder or mesh.environment())}")


@app.command()
def extract(
    source: Annotated[Path, typer.Argument(help="A picture, a folder of pictures, or of shards.")],
    out: Annotated[Path, typer.Argument(help="Folder of faces-*.parquet and extract.json.")],
    views: _Views = "many",
    faces: _Faces = "largest",
    workers: _Workers = None,
    python: _Python = None,
    eyes: Annotated[
        bool, typer.Option("--eyes", help="Irises and the eyes' pictures, too, for `hpe landmarks look`.")
    ] = False,
    insist: Annotated[
        bool, typer.Option("--insist", help="Every picture shows a face: doubt less, look again turned and enlarged.")
    ] = False,
) -> None:
    """Find 468 points a face in pictures or shards; killed and started again, it goes on.

    HPE_FACE_MESH_MODEL names another .tflite of the mesh, in place of the package's.
    Pictures without a face are listed in extract.json and are no fault; exit code 1 where pictures or shards
    cannot be read (they are named).

    Example: `hpe landmarks extract raw/AFLW2000 data/aflw2000/landmarks`
    """
    from hpe.landmarks import mesh
    from hpe.landmarks.extract import NO_FACE, SUMMARY, extract

    which = _which(faces)
    done = extract(
        source, out, python=mesh.interpreter(python), views=views, which=which, workers=workers,
        eyes=eyes, insist=insist,
    )  # fmt: skip
    rate = f", {done['images_per_second']} images/s" if "images_per_second" in done else ""
    print(f"{out}: {done['images_with_a_face']:,} of {done['images']:,} pictures have a face{rate}")
    if done["images_without_a_face"]:
        print(f"{done['images_without_a_face']:,} have none: see {out / SUMMARY}")
    unread = [f"{key}: {status}" for key, status in done["failed"].items() if status != NO_FACE]
    _say(unread, f"{out / SUMMARY} names all")
    for told in done["skipped_shards"].values():
        print(f"skipped: {told}")
    if done["skipped_shards"]:
        print(f"shards skipped: {len(done['skipped_shards']):,}; mend them, and the same command does what is missing")
    if unread or done["skipped_shards"]:
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def compare(
    points: Annotated[Path, typer.Argument(help="Folder of `hpe landmarks extract`, an .npz, or raw AFLW2000.")],
    out: Annotated[Path, typer.Argument(help="Folder of the table, the plot and the model.")],
    labels: Annotated[Path | None, typer.Option(help="Folder of <stem>.mat with the angles.")] = None,
    own_points: Annotated[
        str | None, typer.Option(help="Take the raw dataset's own pt3d_68: 3d, or 2d (x and y only).")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Some of them, with commas, such as svr,ridge.")] = None,
    features: Annotated[str | None, typer.Option(help="Some of six,all,aligned.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Outer folds; each needs 20 faces.")] = 5,
    keep_outliers: Annotated[bool, typer.Option("--keep-outliers", help="Keep angles beyond ±99°.")] = False,
    picture_width: Annotated[float, typer.Option(help="Pixels: the focal length that solve-PnP guesses.")] = 450.0,
    workers: _Workers = None,
    seed_rows: Annotated[
        bool,
        typer.Option(
            "--seed-rows",
            help="With --models too: rows by the settings of the project this one is modelled on (the seed); "
            "they are there whenever all models are.",
        ),
    ] = False,
) -> None:
    """Compare regressors by nested cross-validation, choose, and save the chosen one without pickle.

    Needs 100 faces with known angles, and 20 for each outer fold.

    Examples: `hpe landmarks compare data/aflw2000/landmarks runs/landmarks`,
    `hpe landmarks compare raw/AFLW2000 runs/points68 --own-points 3d`
    """
    from hpe.files import write_text
    from hpe.landmarks import table
    from hpe.landmarks.compare import compare
    from hpe.landmarks.disk import writing
    from hpe.landmarks.regress import FEATURES, MODELS, STACK
    from hpe.landmarks.report import markdown, plot_comparison
    from hpe.workers import Stopped

    if own_points not in (None, "3d", "2d"):
        raise UserError(f"--own-points {own_points}: expected 3d or 2d")
    if not (math.isfinite(picture_width) and picture_width > 0):
        raise UserError(f"--picture-width {picture_width:g}: expected pixels above 0")
    views = _views_of(points)
    faces = table.read_faces(points, labels) if own_points is None else table.read_mat_faces(points, own_points)
    with writing(out):
        try:
            summary = compare(
                faces,
                out,
                models=models.split(",") if models else (*MODELS, STACK),
                features=features.split(",") if features else tuple(FEATURES),
                folds=folds,
                workers=workers,
                limit_degrees=math.inf if keep_outliers else table.LIMIT_DEGREES,
                picture_width=picture_width,
                views=views,
                seed_rows=seed_rows or models is None,
            )
        except Stopped:
            print(f"{out}: stopped; the same command goes on from here")
            raise typer.Exit(EXIT_AGAIN) from None
        text = markdown(summary)
        write_text(out / "compare.md", text + "\n")
        plot_comparison(summary, out / "compare.png")
    print(text)


@app.command()
def look(
    points: Annotated[Path, typer.Argument(help="Folder of `hpe landmarks extract SHARDS --eyes`.")],
    out: Annotated[Path, typer.Argument(help="Folder of look.md, look.json and look.parquet (every face's answer).")],
    pose: Annotated[Path | None, typer.Option(help="Pose tables of the same shards, read beside.")] = None,
) -> None:
    """Tell where people look from head and eyes, and judge it by leaving each person out in turn.

    For sets whose records name person, yaw, pitch and direction, such as Pointing'04. Pictures in which the mesh
    found no face are judged by the angles of --pose alone; without it they count as wrong.

    Example: `hpe landmarks look data/looks runs/look --pose shards/wide/pose/lwpose66`
    """
    from hpe.landmarks.look import look, markdown

    print(markdown(look(points, out, pose)))


@app.command()
def draw(
    model: Annotated[Path, typer.Argument(help="Folder that `hpe landmarks compare` wrote.")],
    source: Annotated[Path, typer.Argument(help="A picture, a folder of pictures or of shards, or a video.")],
    out: Annotated[Path, typer.Argument(help="A .png or .jpg: one picture, or a sheet; of a video: .mp4 or .avi.")],
    count: Annotated[int, typer.Option(min=1, help="Most pictures on the sheet, evenly over the source.")] = 36,
    faces: _Faces = "largest",
    steady: Annotated[
        float, typer.Option(help="Video: hertz below which a still head's trembling is smoothed; inf: not at all.")
    ] = 1.0,
    workers: _Workers = None,
    python: _Python = None,
) -> None:
    """Draw the axes on a picture, on a sheet of several, or on every frame of a video, smoothed as rotations.

    Exit code 1 where pictures or shards cannot be read (they are named).

    Examples: `hpe landmarks draw runs/landmarks photos axes.png --count 24`,
    `hpe landmarks draw runs/landmarks talk.mp4 axes.mp4 --faces all`
    """
    which = _which(faces)
    from hpe.landmarks.draw import draw_pictures
    from hpe.landmarks.video import VIDEOS, draw_video

    if source.suffix.lower() in VIDEOS:
        found, shown = draw_video(
            model, source, out, which=which, python=python, slowest_hertz=steady, workers=workers
        )  # fmt: skip
        print(f"{out}: {found:,} of {shown:,} frames have a face")
    else:
        drawn = draw_pictures(model, source, out, count=count, which=which, python=python)
        written = f"{out}: " if drawn.read else ""
        print(f"{written}{drawn.with_a_face:,} of {drawn.read + len(drawn.unread):,} pictures have a face")
        _say(drawn.unread)
        if drawn.unread:
            raise typer.Exit(EXIT_INCOMPLETE)


def _say(unread: Sequence[str], where: str = "") -> None:
    """Name what could not be read, the first of many."""
    for told in unread[:_NAMED]:
        print(f"landmarks: {told}", file=sys.stderr)
    if len(unread) > _NAMED:
        print(f"landmarks: and {len(unread) - _NAMED:,} more{where and '; '}{where}", file=sys.stderr)


def _which(faces: str):
    if faces not in ("largest", "centre", "all"):
        raise UserError(f"--faces {faces}: expected largest, centre or all")
    return faces


def _views_of(points: Path) -> str | None:
    from hpe.landmarks.disk import read_object

    settings = points / "extract.json"
    if not settings.is_file():
        return None
    views = read_object(settings).get("views")
    return views if isinstance(views, str) else None
