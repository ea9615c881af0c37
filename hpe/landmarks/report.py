"""A comparison as a Markdown table and as a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hpe.core.console import count_of
from hpe.core.files import aside
from hpe.metrics.markdown import table

_SEED: Final = (
    "The seed is the project that this one is modelled on. Its protocol: one random split, unscaled features, no face "
    "dropped, radians squared."
)
_COLOURS: Final = {"six": "#e9c46a", "all": "#8d99ae", "aligned": "#3a86ff"}


def markdown(summary: Mapping[str, Any]) -> str:
    """The comparison's table, the seed's rows, what was dropped, and the choice."""
    head = ("model", "features", "MAE yaw", "pitch", "roll", "mean (95 %)", "RMSE", "R²", "geodesic", "MAEV",
            "MSE rad²", "faces", "tune s", "fit s", "predict ms/face")  # fmt: skip
    lines = [_line(row) for row in summary["rows"]]
    seed_head = (
        "seed's protocol",
        "published MSE rad²",
        "MSE rad², all",
        "within ±99°",
        "mean MAE within ±99°",
        "test faces",
    )
    seeds = [
        (row["model"], row["published_mse_radians2"], f"{row['mse_radians2']:.4f}",
         f"{row['mse_radians2_within_99']:.4f}", f"{row['mean_mae_within_99']:.2f}°", row["test_faces"])
        for row in summary["seed"]
    ]  # fmt: skip
    dropped = "; ".join(f"{count:,}: {reason}" for reason, count in summary["dropped"].items()) or "none"
    parted = "" if summary.get("people") is None else f" by person ({summary['people']:,}{_alone(summary)})"
    left_out = "".join(f" Not compared: {model}, because {why}." for model, why in summary["left_out"].items())
    return "\n\n".join(
        (
            f"{summary['faces']:,} of {summary['faces_given']:,} faces ({summary['points']}); dropped: {dropped}. "
            f"{summary['folds']} outer folds{parted}, settings tuned on inner folds of each training part; degrees. "
            f"{summary['seconds_of_this_run']:.0f} s with {summary['workers']} processes.{left_out}",
            table(head, lines),
            f"Chosen: {summary['chosen']['why']}",
            *((table(seed_head, seeds), _SEED) if seeds else ()),
        )
    )


def _alone(summary: Mapping[str, Any]) -> str:
    count = summary["faces_of_unknown_people"]
    return f"; {count_of(count, 'face')} of unknown people split at random" if count else ""


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    score = row["scores"]
    low, high = score["mean_mae_interval"]
    times = (row["tune_seconds"], row["fit_seconds"], row["predict_milliseconds"])
    return (
        row["model"],
        row["features"],
        *(f"{value:.2f}" for value in score["mae"]),
        f"{score['mean_mae']:.2f} ({low:.2f}–{high:.2f})",
        " / ".join(f"{value:.1f}" for value in score["rmse"]),
        " / ".join(f"{value:.3f}" for value in score["r2"]),
        f"{score['geodesic']:.2f}",
        f"{score['maev']:.2f}",
        f"{score['mse_radians2']:.4f}",
        f"{score['faces']:,}",
        *("–" if value is None else f"{value:.2f}" for value in times),
    )


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
