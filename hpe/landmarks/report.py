"""The table of a comparison as Markdown."""

from collections.abc import Mapping
from typing import Any

from hpe.figures.markdown import table


def markdown(summary: Mapping[str, Any]) -> str:
    """The comparison's table, the seed's rows, what was dropped, and the choice."""
    head = ("model", "features", "MAE yaw", "pitch", "roll", "mean (95 %)", "RMSE", "R²", "geodesic", "MAEV",
            "MSE rad²", "faces", "tune s", "fit s", "predict ms/face")  # fmt: skip
    lines = [_line(row) for row in summary["rows"]]
    seed_head = (
        "seed's way",
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
    return "\n\n".join(
        (
            f"{summary['faces']:,} of {summary['faces_given']:,} faces ({summary['points']}); dropped: {dropped}. "
            f"{summary['folds']} outer folds, settings tuned on inner folds of each training part; degrees. "
            f"{summary['seconds_of_this_run']:.0f} s with {summary['workers']} processes.",
            table(head, lines),
            f"Chosen: {summary['chosen']['why']}",
            table(seed_head, seeds),
            "The seed's way: one random split, unscaled features, no face dropped, radians squared.",
        )
    )


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
