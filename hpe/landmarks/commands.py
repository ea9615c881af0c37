"""``hpe landmarks …``: install the face mesh, extract points, compare regressors, draw axes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from hpe.core.console import count_of, say
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, UserError

app = typer.Typer(
    name="landmarks",
    help="Head pose from face points: find them, compare ten regressors, use the best one.",
    no_args_is_help=True,
)

_MOST_NAMED: Final = 20
"""Unreadable pictures that the terminal lists; `extract.json` lists all."""
_Python = Annotated[
    Path | None, typer.Option(help="Python interpreter that has the mesh; default: from `hpe landmarks install`.")
]
_Views = Annotated[str, typer.Option(help="plain (fastest), mirror or many: average 1, 2 or 7 views of each face.")]
_Faces = Annotated[str, typer.Option(help="Which faces of a picture: the largest, the one nearest the centre, or all.")]
_MaxMegapixels = Annotated[
    float,
    typer.Option("--max-megapixels", help="A picture of more megapixels is listed and left out, before it is decoded."),
]
_Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.")]


@app.command()
def install(
    folder: Annotated[Path | None, typer.Option(help="Where to install it; default: the user's cache.")] = None,
) -> None:
    """Install the face mesh (MediaPipe 0.10.21) in its own environment, because it needs an older protobuf.

    Example: `hpe landmarks install`
    """
    from hpe.landmarks import mesh

    print(f"face mesh: {mesh.install(folder or mesh.environment())}")


@app.command()
def extract(
    source: Annotated[Path, typer.Argument(help="A picture, a folder of pictures, or a folder of shards.")],
    out: Annotated[Path, typer.Argument(help="Folder to write faces-*.parquet and extract.json to.")],
    views: _Views = "many",
    faces: _Faces = "largest",
    max_megapixels: _MaxMegapixels = 64,
    workers: _Workers = None,
    python: _Python = None,
) -> None:
    """Find 468 points on every face in pictures or shards. Run the same command again to resume.

    Set HPE_FACE_MESH_MODEL to a .tflite file to use another model of the mesh.
    Pictures without a face are normal; extract.json lists them. The exit code is 1 if pictures or shards
    cannot be read (they are named). With --faces all, an installed face detector finds the faces first.

    Example: `hpe landmarks extract raw/AFLW2000 data/points`
    """
    from hpe.data.images import pixels_of
    from hpe.landmarks import mesh
    from hpe.landmarks.extract import NO_FACE, extract
    from hpe.landmarks.table import SUMMARY

    which = _which(faces)
    most = pixels_of(max_megapixels)
    interpreter = mesh.interpreter(python)
    done = extract(source, out, python=interpreter, views=views, which=which, workers=workers, max_pixels=most)
    rate = f", {done['images_per_second']} images/s" if "images_per_second" in done else ""
    print(f"{out}: {done['images_with_a_face']:,} of {done['images']:,} pictures have a face{rate}")
    if done["images_without_a_face"]:
        print(f"{done['images_without_a_face']:,} have none: {out / SUMMARY} lists them")
    _name_without_points(done.get("detected_without_points", 0))
    _name_passed_over(done["passed_over"])
    unread = [f"{key}: {status}" for key, status in done["failed"].items() if status != NO_FACE]
    _name_unread(unread, f"{out / SUMMARY} lists all")
    for problem in done["skipped_shards"].values():
        print(f"skipped: {problem}")
    if done["skipped_shards"]:
        print(f"shards skipped: {len(done['skipped_shards']):,}; repair them and run the same command again")
    if unread or done["skipped_shards"]:
        raise typer.Exit(EXIT_INCOMPLETE)


# One parameter per option, because Typer reads the options from the signature.
@app.command()
def compare(
    points: Annotated[Path, typer.Argument(help="Folder of `hpe landmarks extract`, an .npz file, or raw AFLW2000.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the table, the plot and the model to.")],
    labels: Annotated[Path | None, typer.Option(help="Folder with the angles, a .mat file per picture.")] = None,
    own_points: Annotated[
        str | None, typer.Option(help="Use the raw dataset's own points (pt3d_68): 3d, or 2d for x and y only.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Some of the regressors, with commas, such as svr,ridge.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Some of the features six,all,aligned; without aligned there is no stack.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Outer folds; each needs 20 faces.")] = 5,
    keep_outliers: Annotated[bool, typer.Option("--keep-outliers", help="Keep faces with angles beyond ±99°.")] = False,
    picture_width: Annotated[
        float, typer.Option(help="Width of the pictures in pixels, which solve-PnP takes as the focal length.")
    ] = 450.0,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Use what is there of an extraction that was stopped.")
    ] = False,
    workers: _Workers = None,
    seed_rows: Annotated[
        bool,
        typer.Option(
            "--seed-rows",
            help="With --models: also add the rows with the settings of the seed, the project that this one is "
            "modelled on. Without --models they are always added.",
        ),
    ] = False,
) -> None:
    """Compare regressors by nested cross-validation and save the best one, without pickle.

    Needs at least 100 faces with known angles, and 20 per outer fold.

    Examples: `hpe landmarks compare data/points runs/landmarks`; or
    `hpe landmarks compare raw/AFLW2000 runs/points68 --own-points 3d`
    """
    from hpe.core.files import write_text
    from hpe.core.process_pool import Stopped
    from hpe.landmarks import table
    from hpe.landmarks.compare import CompareOptions, compare
    from hpe.landmarks.disk import writing
    from hpe.landmarks.regress import FEATURES
    from hpe.landmarks.report import markdown, plot_comparison

    if own_points not in (None, "3d", "2d"):
        raise UserError(f"--own-points {own_points}: expected 3d or 2d")
    if not (math.isfinite(picture_width) and picture_width > 0):
        raise UserError(f"--picture-width {picture_width:g}: expected pixels above 0")
    if own_points is None and points.is_dir():
        _warn_of_parts(points, accepted=unfinished)
    views = _views_of(points)
    faces = table.read_faces(points, labels) if own_points is None else table.read_mat_faces(points, own_points)
    options = CompareOptions(
        models=models.split(",") if models else None,
        features=features.split(",") if features else tuple(FEATURES),
        folds=folds,
        limit_degrees=math.inf if keep_outliers else table.LIMIT_DEGREES,
        picture_width=picture_width,
        views=views,
        seed_rows=seed_rows or models is None,
    )
    with writing(out):
        try:
            summary = compare(faces, out, options, workers=workers)
        except Stopped:
            print(f"{out}: stopped; run the same command again to resume")
            raise typer.Exit(EXIT_AGAIN) from None
        text = markdown(summary)
        write_text(out / "compare.md", text + "\n")
        plot_comparison(summary, out / "compare.png")
    print(text)


@app.command()
def draw(
    model: Annotated[Path, typer.Argument(help="Folder that `hpe landmarks compare` wrote.")],
    source: Annotated[Path, typer.Argument(help="A picture, a folder of pictures or of shards, or a video.")],
    out: Annotated[Path, typer.Argument(help="File to write: .png or .jpg; for a video .mp4.")],
    count: Annotated[int, typer.Option(min=1, help="Pictures on the sheet at most, chosen evenly from SOURCE.")] = 36,
    faces: _Faces = "largest",
    steady: Annotated[
        float,
        typer.Option(
            help="Videos: smoothing of a still head, as a cutoff in hertz: lower is smoother, inf is no smoothing."
        ),
    ] = 1.0,
    max_megapixels: _MaxMegapixels = 64,
    workers: _Workers = None,
    python: _Python = None,
) -> None:
    """Draw axes on the faces of a picture, of several on one sheet, or of a video, smoothed over its frames.

    The exit code is 1 if pictures or shards cannot be read (they are named).

    Examples: `hpe landmarks draw runs/landmarks photos axes.png --count 24`; or
    `hpe landmarks draw runs/landmarks talk.mp4 axes.mp4 --faces all`
    """
    which = _which(faces)
    from hpe.data.images import pixels_of
    from hpe.data.video import is_video
    from hpe.landmarks.draw import draw_pictures
    from hpe.landmarks.video import draw_video

    if is_video(str(source)):
        found, shown, unread = draw_video(
            model, source, out, which=which, python=python, slowest_hertz=steady, workers=workers,
            max_pixels=pixels_of(max_megapixels),
        )  # fmt: skip
        print(f"{out}: {found:,} of {shown:,} frames have a face")
        _name_unread(unread)
        if unread:
            raise typer.Exit(EXIT_INCOMPLETE)
    else:
        most = pixels_of(max_megapixels)
        drawn = draw_pictures(model, source, out, count=count, which=which, python=python, max_pixels=most)
        written = f"{out}: " if drawn.read else ""
        print(f"{written}{drawn.with_a_face:,} of {drawn.read + len(drawn.unread):,} pictures have a face")
        _name_without_points(drawn.without_points)
        _name_passed_over(drawn.passed_over)
        _name_unread(drawn.unread)
        if drawn.unread:
            raise typer.Exit(EXIT_INCOMPLETE)


def _name_without_points(faces: int) -> None:
    if faces:
        print(f"faces that the detector finds and the mesh does not: {faces:,}; they have no points")


def _name_passed_over(kinds: Mapping[str, int]) -> None:
    from hpe.data.image_files import in_words

    if kinds:
        print(f"{count_of(sum(kinds.values()), 'other file')} passed over: {in_words(Counter(kinds))}")


def _name_unread(problems: Sequence[str], where: str = "") -> None:
    """Print what could not be read, the first of many."""
    for problem in problems[:_MOST_NAMED]:
        say(f"landmarks: {problem}")
    if len(problems) > _MOST_NAMED:
        say(f"landmarks: and {len(problems) - _MOST_NAMED:,} more{where and '; '}{where}")


def _which(faces: str):
    if faces not in ("largest", "centre", "all"):
        raise UserError(f"--faces {faces}: expected largest, centre or all")
    return faces


def _warn_of_parts(points: Path, *, accepted: bool) -> None:
    """Name what is missing in the folder of an extraction.

    Raises:
        UserError: it was stopped, and the user has not accepted that.
    """
    from hpe.landmarks import table

    if (so_far := table.unfinished(points)) is not None:
        if not accepted:
            raise UserError(
                f"{points}: unfinished, {so_far}; run the same `hpe landmarks extract` again to finish it, or use "
                "what is there with --unfinished"
            )
        say(f"landmarks: WARNING: {points}: unfinished, {so_far}")
    if shards := table.skipped_shards(points):
        say(
            f"landmarks: WARNING: {points}: without the faces of {len(shards):,} shards that could not be read: "
            f"{', '.join(shards[:_MOST_NAMED])}"
        )


def _views_of(points: Path) -> str | None:
    from hpe.landmarks.disk import read_object

    settings = points / "extract.json"
    if not settings.is_file():
        return None
    views = read_object(settings).get("views")
    return views if isinstance(views, str) else None
