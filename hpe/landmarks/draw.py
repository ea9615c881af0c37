"""The result to look at: axes on faces, a sheet of pictures, and the plot of the comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageOps

from hpe import draw
from hpe.files import aside
from hpe.images import Picture
from hpe.landmarks.estimator import PosedFace

_TILE: Final = 224
_COLOURS: Final = {"six": "#e9c46a", "all": "#8d99ae", "aligned": "#3a86ff"}


def with_axes(picture: Picture, faces: Sequence[PosedFace]) -> Image.Image:
    """An RGB picture with each face's axes, as :func:`hpe.draw.with_axes` paints them."""
    image = Image.fromarray(picture)
    for face in faces:
        yaw, pitch, roll = (float(angle) for angle in face.angles)
        image = draw.with_axes(image, draw.Reading(face.box, (yaw, pitch, roll)))
    return image


def sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int = 6) -> Image.Image:
    """Pictures with a caption each, in rows."""
    rows = -(-len(tiles) // columns)
    height = _TILE + 16
    page = Image.new("RGB", (columns * _TILE, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for at, (picture, caption) in enumerate(tiles):
        x, y = at % columns * _TILE, at // columns * height
        page.paste(ImageOps.pad(picture, (_TILE, _TILE), color="white"), (x, y))
        pen.text((x + 3, y + _TILE + 2), caption, fill="black")
    return page


def plot_comparison(summary: Mapping[str, Any], path: Path) -> None:
    """Mean MAE of every row with its interval, and MAE by angle, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(summary["rows"], key=lambda row: -row["scores"]["mean_mae"])
    figure = Figure((9, 0.6 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for at, row in enumerate(rows):
        score = row["scores"]
        low, high = score["mean_mae_interval"]
        colour = _COLOURS[row["features"]]
        axes.barh(at, score["mean_mae"], color=colour, height=0.7, alpha=0.55 if row["settings"] is None else 1.0)
        axes.plot((low, high), (at, at), color="black", linewidth=1)
        axes.plot(score["mae"], [at] * 3, linestyle="none", marker="|", color="#444444", markersize=5)
    axes.set_yticks(range(len(rows)), [f"{row['model']} · {row['features']}" for row in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("mean absolute error, degrees (line: 95 % interval of the mean; ticks: yaw, pitch, roll)")
    axes.set_title(f"{summary['faces']:,} faces, {summary['folds']} outer folds, {summary['points']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with aside(path) as part:
        figure.savefig(part, format="png", dpi=130)
