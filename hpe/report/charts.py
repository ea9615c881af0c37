"""Charts as inline SVG, without script, font or file. Colours come from the page's CSS (light and dark)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

Point = tuple[float, float]
_WIDTH, _HEIGHT = 348, 226
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40
_MOST_POINTS: Final = 300
SERIES: Final = 6
"""Colours in the page's CSS (``--s0`` …); additional series repeat them."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its points, and the ends of the interval at each point if there are intervals."""

    name: str
    points: Sequence[Point]
    band: Sequence[Point] | None = None
    colour: int = 0
    dots: bool = False


@dataclass(frozen=True, slots=True)
class _Axes:
    """Data to pixels."""

    x: Point
    y: Point
    height: int = _HEIGHT

    def at(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        wide, high = _WIDTH - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return round(_LEFT + across * wide, 1), round(_TOP + (1 - up) * high, 1)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover a range: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        low, high = low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's text: ``1.5M``, ``20k``, ``0.25``."""
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return signed(f"{value / bound:g}{unit}")
    return signed(f"{value:.4g}")


def percents(value: float) -> str:
    """A share as a tick's text."""
    return signed(f"{100 * value:g} %")


def degrees(value: float) -> str:
    """An angle as a tick's text."""
    return signed(f"{value:g}°")


def signed(text: str) -> str:
    """The text with a real minus sign."""
    return text.replace("-", "−", 1) if text.startswith("-") else text


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    x_text: Callable[[float], str] = short,
    y_text: Callable[[float], str] = short,
    from_zero: bool = False,
) -> Markup:
    """Lines over a common x, with bands for their intervals.

    Args:
        from_zero: whether y starts at 0 (for errors, whose size matters) or near the data.
    """
    series = [_thinned(one) for one in series if one.points]
    if not series:
        return Markup("")
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ends = [end for one in series for pair in one.band or () for end in pair]
    # The wide interval of one step with few samples must not flatten the lines.
    top = max(ys) + 0.6 * (max(ys) - min(ys) + 1e-9)
    ys += [min(end, top) for end in ends]
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = [t for t in ticks(min(xs), max(xs)) if min(xs) - 1e-9 <= t <= max(xs) + 1e-9]
    low, high = min(xs), max(xs)
    axes = _Axes((low, high) if high > low else (low - 0.5, low + 0.5), (y_ticks[0], y_ticks[-1]))
    parts = [*_grid(axes, x_ticks, y_ticks, x_label, x_text, y_text)]
    for one in series:
        parts += _line(axes, one, x_text, y_text)
    return _svg(parts, title)


def reliability(bins: Sequence[Mapping[str, Any]], *, title: str) -> Markup:
    """Accuracy of each bin of confidence with Wilson's interval; on the diagonal, confidence equals accuracy."""
    axes = _Axes((0.0, 1.0), (0.0, 1.0))
    parts = list(_grid(axes, ticks(0, 1), ticks(0, 1), "confidence", percents, percents))
    (x0, y0), (x1, y1) = axes.at(0, 0), axes.at(1, 1)
    most = max((one["n"] for one in bins), default=0) or 1
    for one in bins:
        if one["n"]:
            left, bottom = axes.at(one["low"], 0)
            right, _ = axes.at(one["high"], 0)
            high = 0.22 * (y0 - y1) * one["n"] / most
            box = f'x="{left + 0.5:.1f}" y="{bottom - high:.1f}" width="{right - left - 1:.1f}" height="{high:.1f}"'
            parts.append(f'<rect class="count" {box}><title>{one["n"]:,} samples</title></rect>')
    parts.append(f'<line class="even" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    shown = [one for one in bins if one["n"]]
    for one in shown:
        accuracy = one["accuracy"]
        x, low = axes.at(one["confidence"], accuracy["low"])
        _, high = axes.at(one["confidence"], accuracy["high"])
        parts.append(f'<line class="s0 whisker" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
    points = [(one["confidence"], one["accuracy"]["value"]) for one in shown]
    parts += _line(axes, Series("accuracy", points, dots=True), percents, percents)
    return _svg(parts, title)


def scatter(points: Sequence[Point], *, title: str, x_label: str) -> Markup:
    """Predicted over true degrees, with the diagonal where both agree."""
    if not points:
        return Markup("")
    values = [value for point in points for value in point]
    span = ticks(min(values), max(values), 6)
    axes = _Axes((span[0], span[-1]), (span[0], span[-1]), height=318)
    parts = list(_grid(axes, span, span, x_label, degrees, degrees))
    (x0, y0), (x1, y1) = axes.at(span[0], span[0]), axes.at(span[-1], span[-1])
    parts.append(f'<line class="even" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    # One path of zero-length strokes takes a tenth of the bytes of as many circles.
    dots = "".join("M{} {}h0".format(*axes.at(x, y)) for x, y in points)
    parts.append(f'<path class="s0 cloud" d="{dots}"/>')
    return _svg(parts, title, height=318)


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    *,
    title: str,
    text: Callable[[float], str] = short,
) -> Markup:
    """One row per name: the value as a dot, its interval as a line."""
    if not rows:
        return Markup("")
    ends = [end for _, value, low, high in rows for end in (value, low, high) if end is not None]
    if len(set(ends)) == 1:  # one value without an interval: draw it from 0
        ends.append(0.0 if ends[0] else 1.0)
    span = ticks(min(ends), max(ends), 4)
    pitch, left = 28, 128
    height = _TOP + pitch * len(rows) + 28

    def place(value: float) -> float:
        return round(left + (value - span[0]) / (span[-1] - span[0]) * (_WIDTH - left - _RIGHT - 6), 1)

    bottom = _TOP + pitch * len(rows)
    parts = []
    for tick in span:
        parts.append(f'<line class="grid" x1="{place(tick)}" y1="{_TOP}" x2="{place(tick)}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{place(tick)}" y="{bottom + 17}" text-anchor="middle">{text(tick)}</text>')
    for index, (name, value, low, high) in enumerate(rows):
        y, colour = _TOP + pitch * (index + 0.5), f"s{index % SERIES}"
        cut = name if len(name) <= 19 else name[:18] + "…"  # what fits left of the axis; the tip shows all of it
        parts.append(f'<text class="name" x="0" y="{y + 4}">{escape(cut)}<title>{escape(name)}</title></text>')
        if low is not None and high is not None:
            parts.append(f'<line class="{colour} whisker" x1="{place(low)}" y1="{y}" x2="{place(high)}" y2="{y}"/>')
        tip = f"{text(value)}" if low is None or high is None else f"{text(value)} ({text(low)} to {text(high)})"
        parts.append(f'<circle class="{colour} dot" cx="{place(value)}" cy="{y}" r="5"><title>{tip}</title></circle>')
    return _svg(parts, title, height=height)


def _thinned(series: Series) -> Series:
    """At most a few hundred points: means of neighbours, which keep the shape of a noisy loss."""
    points = sorted(series.points) if series.band is None else list(series.points)
    # A band has a pair of ends for each point: means of points would no longer lie between them.
    if len(points) <= _MOST_POINTS or series.band is not None:
        return Series(series.name, points, series.band, series.colour, series.dots)
    step = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return Series(series.name, means, None, series.colour, series.dots)


def _grid(
    axes: _Axes,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> Iterator[str]:
    bottom = axes.at(axes.x[0], axes.y[0])[1]
    for tick in y_ticks:
        x, y = axes.at(axes.x[0], tick)
        yield f'<line class="grid" x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>'
        yield f'<text class="tick" x="{x - 7}" y="{y + 4}" text-anchor="end">{y_text(tick)}</text>'
    for tick in x_ticks:
        x, _ = axes.at(tick, axes.y[0])
        yield f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{x_text(tick)}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text class="label" x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(x_label)}</text>'


def _line(axes: _Axes, one: Series, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> Iterator[str]:
    colour = f"s{one.colour % SERIES}"
    if one.band is not None:
        low = [axes.at(x, max(axes.y[0], a)) for (x, _), (a, _) in zip(one.points, one.band, strict=True)]
        high = [axes.at(x, min(axes.y[1], b)) for (x, _), (_, b) in zip(one.points, one.band, strict=True)]
        ring = " ".join(f"{x},{y}" for x, y in [*high, *reversed(low)])
        yield f'<polygon class="{colour} band" points="{ring}"/>'
    placed = [axes.at(x, y) for x, y in one.points]
    if len(placed) > 1:
        yield f'<polyline class="{colour} line" points="{" ".join(f"{x},{y}" for x, y in placed)}"/>'
    if one.dots or len(placed) == 1:
        for (x, y), (cx, cy) in zip(one.points, placed, strict=True):
            tip = f"{escape(one.name)}: {y_text(float(f'{y:.4g}'))} at {x_text(float(f'{x:.4g}'))}"
            yield f'<circle class="{colour} dot" cx="{cx}" cy="{cy}" r="3"><title>{tip}</title></circle>'


def _svg(parts: Sequence[str], title: str, height: int = _HEIGHT) -> Markup:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 (names are escaped where they enter)
