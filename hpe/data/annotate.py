"""Predictions drawn on the picture: axes or a cube, the direction, bars of emotions.

Everything is painted some times larger and scaled down, so that lines are smooth. Colours are those of
``hpe.core.labels``; the axes are Hopenet's (red to the picture's right for a frontal face, green down, blue out of
the face), and only :func:`hpe.core.geometry.axes_in_picture` computes where they end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from hpe.core import geometry
from hpe.core.labels import AXIS_COLOURS, DIRECTION_COLOURS, DIRECTIONS, EMOTION_COLOURS, EMOTIONS
from hpe.data.crops import Box

Angles = tuple[float, float, float]
FINER: Final = 4
_MOST_PIXELS: Final = 4096
"""Longest side of the enlarged layer; large faces in large photos are enlarged less than four times."""
_AXIS_SHARE: Final = 0.5
"""Length of an axis as a fraction of the face box's side, as Hopenet draws it."""
_PHOTO_SIDES: Final = (800, 2400)
_SMALLEST: Final = 11
"""Size of the smallest letters, pixels."""
_LINES: Final = 17
"""Letters of this part of a picture's height make the largest panel as high as the picture."""
_EDGE: Final = 0.02
"""Fraction of a face's box that a panel may hide before it comes beside the picture."""
_WIDEST: Final = 3
"""Largest width of a card's picture, as a multiple of its height: JPEG allows 65,535 pixels per side."""
_PANEL: Final = (18, 20, 24, 205)
_INK: Final = (255, 255, 255, 255)
_FAINT: Final = (255, 255, 255, 150)
_TRACK: Final = (255, 255, 255, 40)
_HALO: Final = (0, 0, 0, 110)


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is drawn on one face, its predictions or its labels; None: not known.

    Attributes:
        box: the face in pixels of the picture, x0, y0, x1, y1.
        angles: yaw, pitch, roll in degrees.
        direction: 0..4, as the viewer sees it.
        emotion_p: a probability per emotion.
        note: a line of text above the bars.
        label: a short name above the box.
        finer: how many times larger than the picture it is painted; half as many take a third of the time (videos).
    """

    box: Box
    angles: Angles | None = None
    direction: int | None = None
    emotion_p: Sequence[float] | None = None
    note: str = ""
    label: str = ""
    finer: int = FINER

    @property
    def centre(self) -> tuple[float, float]:
        """Where the axes start."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def side(self) -> float:
        """The longer side of the box."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0, 1.0)


Marker = Callable[[Image.Image, Overlay], Image.Image]


def axis_ends(angles: Angles, centre: tuple[float, float], length: float) -> Float[np.ndarray, "3 2"]:
    """Where the red, green and blue axes end, in pixels of the picture."""
    ends = geometry.axes_in_picture(torch.tensor(angles, dtype=torch.float64)).numpy()
    return np.asarray(centre) + length * ends


def with_axes(image: Image.Image, overlay: Overlay) -> Image.Image:
    """The RGB picture with the three axes of a head (unchanged without angles)."""
    if overlay.angles is None:
        return image
    length = _AXIS_SHARE * overlay.side
    ends, start = axis_ends(overlay.angles, overlay.centre, length), np.asarray(overlay.centre)
    width = max(length / 16, 1.2)
    depth = _depths(overlay.angles, np.array(((1.0, 0, 0), (0, -1.0, 0), (0, 0, 1.0))))
    order = np.argsort(depth, kind="stable")  # the nearest is painted last

    def paint(draw: ImageDraw.ImageDraw, at: "_Map") -> None:
        for index in order:
            _arrow(draw, at(start), at(ends[index]), at.scale * width, _rgba(AXIS_COLOURS[index]))
        radius = at.scale * width * 0.9
        x, y = at(start)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_INK, outline=_HALO)

    return _painted(image, _around(overlay.centre, length * 1.25), paint, overlay.finer)


def with_cube(image: Image.Image, overlay: Overlay) -> Image.Image:
    """The picture with a cube turned as the head is; its front side is outlined in blue."""
    if overlay.angles is None:
        return image
    half = 0.36 * overlay.side
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    rotation = geometry.rotation_from_euler(torch.tensor(overlay.angles, dtype=torch.float64))
    corners = geometry.project(torch.from_numpy(signs * half), rotation).numpy()
    at_pixels = corners[:, :2] + np.asarray(overlay.centre)
    sides = []
    for axis in range(3):
        for sign in (-1, 1):
            ring = [i for i in range(8) if signs[i, axis] == sign]
            ring = [ring[0], ring[1], ring[3], ring[2]]
            front = axis == 2 and sign == 1
            colour = _rgba(AXIS_COLOURS[2 if front else min(axis, 1)])
            sides.append((corners[ring, 2].mean(), ring, colour, front))
    width = max(half / 18, 1.2)

    def paint(draw: ImageDraw.ImageDraw, at: "_Map") -> None:
        for depth, ring, colour, front in sorted(sides, key=lambda side: side[0]):
            points = [at(at_pixels[i]) for i in ring]
            if depth > 0:
                draw.polygon(points, fill=(*colour[:3], 70 if front else 38))
            strength = 255 if front else 230 if depth > 0 else 90
            line = round(at.scale * width * (1.35 if front else 1.0 if depth > 0 else 0.6))
            closed = [*points, points[0], points[1]]
            draw.line(closed, fill=(*colour[:3], strength), width=max(line, 1), joint="curve")

    return _painted(image, _around(overlay.centre, half * 2.0), paint, overlay.finer)


def with_box(image: Image.Image, overlay: Overlay) -> Image.Image:
    """The picture with the corners of the face box, in the direction's colour."""
    x0, y0, x1, y1 = overlay.box
    arm, width = 0.18 * min(x1 - x0, y1 - y0), max(overlay.side / 130, 1.2)
    colour = _rgba("#ffffff" if overlay.direction is None else DIRECTION_COLOURS[overlay.direction])

    def paint(draw: ImageDraw.ImageDraw, at: "_Map") -> None:
        for shade, wide in ((_HALO, 2.2), (colour, 1.0)):
            for x, y, dx, dy in ((x0, y0, 1, 1), (x1, y0, -1, 1), (x0, y1, 1, -1), (x1, y1, -1, -1)):
                bend = [at((x + dx * arm, y)), at((x, y)), at((x, y + dy * arm))]
                draw.line(bend, fill=shade, width=max(round(at.scale * width * wide), 1), joint="curve")

    return _painted(image, (x0 - width * 2, y0 - width * 2, x1 + width * 2, y1 + width * 2), paint, overlay.finer)


def annotate(image: Image.Image, overlays: Sequence[Overlay], marker: Marker = with_axes) -> Image.Image:
    """A photo with every face marked, and a panel of direction and emotions beside each.

    Args:
        image: RGB; not altered.
        overlays: boxes in its pixels.
        marker: :func:`with_axes` or :func:`with_cube`.
    """
    drawn = image.convert("RGB")
    drawn = _marked(drawn, overlays, marker)
    taken = [overlay.box for overlay in overlays]
    for overlay in overlays:
        drawn = _with_panel(drawn, overlay, taken)
    return drawn


def _marked(image: Image.Image, overlays: Sequence[Overlay], marker: Marker) -> Image.Image:
    for overlay in sorted(overlays, key=lambda one: one.side):
        image = marker(with_box(image, overlay), overlay)
    for overlay in overlays:
        image = _with_label(image, overlay)
    return image


def photo(
    image: Image.Image, overlays: Sequence[Overlay], marker: Marker = with_axes, *, widen: bool = True
) -> Image.Image:
    """:func:`annotate` at a readable size: the longer side is 800 to 2400 pixels.

    Args:
        image: RGB; not altered.
        overlays: boxes in its pixels.
        marker: see :func:`annotate`.
        widen: the panel of a single face, which it would hide, comes beside the picture.
    """
    scale = float(np.clip(max(image.size), *_PHOTO_SIDES)) / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    image = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
    placed = [_scaled(overlay, scale) for overlay in overlays]
    if widen and len(placed) == 1 and _has_panel(one := placed[0]) and _hides_its_face(one, image.size):
        letters = min(_letters(one, image.size), image.height / _LINES)
        return _beside(_marked(image.convert("RGB"), placed, marker), one, letters)
    return annotate(image, placed, marker)


def _scaled(overlay: Overlay, scale: float) -> Overlay:
    x0, y0, x1, y1 = (side * scale for side in overlay.box)
    return replace(overlay, box=(x0, y0, x1, y1))


def angles_note(angles: Angles) -> str:
    """A note of yaw, pitch and roll."""
    return "  ".join(f"{n} {round(a):+d}°" for n, a in zip("ypr", angles, strict=True))


def card(image: Image.Image, overlay: Overlay, *, height: int = 256, marker: Marker = with_axes) -> Image.Image:
    """A face scaled to ``height`` with its axes, and the panel to its right: for grids of small crops.

    A picture more than three times as wide as high is scaled to that width, and is lower than ``height``.
    """
    scale = min(height / image.height, _WIDEST * height / image.width)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    placed = _scaled(overlay, scale)
    picture = marker(picture, placed)
    whole = Image.new("RGB", (picture.width, height), _PANEL[:3])
    whole.paste(picture, (0, (height - picture.height) // 2))
    return _beside(whole, placed, height / _LINES)


def _beside(picture: Image.Image, overlay: Overlay, letters: float) -> Image.Image:
    """The picture with an overlay's panel to its right."""
    width, _ = _panel_size(overlay, letters)
    whole = Image.new("RGB", (round(picture.width + width), picture.height), _PANEL[:3])
    whole.paste(picture, (0, 0))
    region = (float(picture.width), 0.0, float(whole.width), float(whole.height))
    corner = (float(picture.width), 0.0)
    return _painted(whole, region, lambda draw, at: _panel(draw, at, overlay, letters, corner), overlay.finer)


def _with_label(image: Image.Image, overlay: Overlay) -> Image.Image:
    """The picture with an overlay's label above the top left corner of its box, inside the picture."""
    if not overlay.label:
        return image
    size = _letters(overlay, image.size)
    width, height = size * (0.7 * len(overlay.label) + 0.9), size * 1.5
    x = min(max(overlay.box[0], 0.0), max(image.width - width, 0.0))
    y = max(overlay.box[1] - height - size * 0.3, 0.0)

    def paint(draw: ImageDraw.ImageDraw, at: "_Map") -> None:
        draw.rounded_rectangle((*at((x, y)), *at((x + width, y + height))), radius=at.scale * size * 0.4, fill=_PANEL)
        _text(draw, at, (x + width / 2, y + height / 2), overlay.label, size, _INK, anchor="mm")

    return _painted(image, (x, y, x + width, y + height), paint, overlay.finer)


def _letters(overlay: Overlay, image: tuple[int, int]) -> float:
    """The size of the letters beside a face, pixels: of a large face those that can be read in the whole picture."""
    return max(min(overlay.side / 15, min(image) / 40), _SMALLEST)


def _has_panel(overlay: Overlay) -> bool:
    return overlay.emotion_p is not None or overlay.direction is not None or bool(overlay.note)


def _with_panel(image: Image.Image, overlay: Overlay, taken: list[Box]) -> Image.Image:
    """The picture with an overlay's panel; the panel's box is appended to ``taken``."""
    if not _has_panel(overlay):
        return image
    size = _letters(overlay, image.size)
    width, height = _panel_size(overlay, size)
    x, y = _panel_corner(overlay, (width, height), image.size, taken)
    taken.append((x, y, x + width, y + height))

    def paint(draw: ImageDraw.ImageDraw, at: "_Map") -> None:
        corner, opposite = at((x, y)), at((x + width, y + height))
        draw.rounded_rectangle((*corner, *opposite), radius=at.scale * size * 0.5, fill=_PANEL)
        _panel(draw, at, overlay, size, (x, y))

    return _painted(image, (x, y, x + width, y + height), paint, overlay.finer)


def _panel_corner(
    overlay: Overlay, panel: tuple[float, float], image: tuple[int, int], taken: Sequence[Box]
) -> tuple[float, float]:
    """Where the panel hides least of faces and other panels; preferably right of the face, then left, below, above.

    The middle of a face, with eyes and mouth, counts four times.
    """
    (width, height), (x0, y0, x1, y1), gap = panel, overlay.box, 0.13 * overlay.side
    beside = [(x, y) for y in (y0, y1 - height) for x in (x1 + gap, x0 - gap - width)]
    stacked = [(x, y) for y in (y1 + gap, y0 - gap - height) for x in (x0, x1 - width)]
    corners = [(x, y) for y in (float(image[1]), 0.0) for x in (float(image[0]), 0.0)]

    def hidden(corner: tuple[float, float]) -> float:
        x, y = corner
        covered = (x, y, x + width, y + height)
        return sum(_shared(covered, box) + 3 * _shared(covered, _middle(box)) for box in taken)

    inside = [
        (min(max(x, 0.0), max(image[0] - width, 0.0)), min(max(y, 0.0), max(image[1] - height, 0.0)))
        for x, y in beside + stacked + corners
    ]
    return min(inside, key=lambda corner: round(hidden(corner)))


def _hides_its_face(overlay: Overlay, image: tuple[int, int]) -> bool:
    """Whether the panel, where it hides least, still hides more of its face than an edge."""
    panel = _panel_size(overlay, _letters(overlay, image))
    x, y = _panel_corner(overlay, panel, image, [overlay.box])
    x0, y0, x1, y1 = overlay.box
    return _shared((x, y, x + panel[0], y + panel[1]), overlay.box) > _EDGE * (x1 - x0) * (y1 - y0)


def _shared(one: Box, two: Box) -> float:
    """The area that two boxes share, pixels."""
    width, height = min(one[2], two[2]) - max(one[0], two[0]), min(one[3], two[3]) - max(one[1], two[1])
    return max(width, 0.0) * max(height, 0.0)


def _middle(box: Box) -> Box:
    x0, y0, x1, y1 = box
    x, y = 0.2 * (x1 - x0), 0.2 * (y1 - y0)
    return x0 + x, y0 + y, x1 - x, y1 - y


def _panel_size(overlay: Overlay, size: float) -> tuple[float, float]:
    lines = bool(overlay.note) + (overlay.direction is not None)
    bars = 0 if overlay.emotion_p is None else len(overlay.emotion_p)
    return size * 12.5, size * (1.0 + 1.6 * lines + (0.3 if lines and bars else 0) + 1.4 * bars)


def _panel(draw: ImageDraw.ImageDraw, at: "_Map", overlay: Overlay, size: float, corner: tuple[float, float]) -> None:
    x, y = corner[0] + size * 0.7, corner[1] + size * 0.5
    if overlay.note:
        _text(draw, at, (x, y + size * 0.8), overlay.note[:24], size, _INK)
        y += size * 1.6
    if overlay.direction is not None:
        colour = _rgba(DIRECTION_COLOURS[overlay.direction])
        _pointer(draw, at, (x + size * 0.5, y + size * 0.8), size * 0.55, overlay.direction, colour)
        _text(draw, at, (x + size * 1.5, y + size * 0.8), DIRECTIONS[overlay.direction], size, _INK)
        y += size * 1.6
    if overlay.emotion_p is None:
        return
    if y > corner[1] + size:
        y += size * 0.3
    best = int(np.argmax(overlay.emotion_p))
    for index, (name, share) in enumerate(zip(EMOTIONS, overlay.emotion_p, strict=True)):
        middle, ink = y + size * 0.7, _INK if index == best else _FAINT
        _text(draw, at, (x, middle), name, size * 0.92, ink)
        left, right = x + size * 5.0, corner[0] + size * 9.15
        high = size * 0.26
        track = (*at((left, middle - high)), *at((right, middle + high)))
        draw.rounded_rectangle(track, radius=at.scale * high, fill=_TRACK)
        end = left + max((right - left) * float(np.clip(share, 0, 1)), 2 * high)
        bar = (*at((left, middle - high)), *at((end, middle + high)))
        draw.rounded_rectangle(bar, radius=at.scale * high, fill=_rgba(EMOTION_COLOURS[index]))
        _text(draw, at, (corner[0] + size * 11.9, middle), f"{100 * share:.0f} %", size * 0.88, ink, anchor="rm")
        y += size * 1.4


def _pointer(
    draw: ImageDraw.ImageDraw,
    at: "_Map",
    middle: tuple[float, float],
    radius: float,
    direction: int,
    colour: tuple[int, int, int, int],
) -> None:
    """A triangle that points where the viewer sees the face turn; a ring for forward."""
    towards = {1: (-1.0, 0.0), 2: (1.0, 0.0), 3: (0.0, -1.0), 4: (0.0, 1.0)}.get(direction)
    x, y = at(middle)
    r = radius * at.scale
    if towards is None:
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(round(r * 0.42), 1))
        return
    dx, dy = towards
    tip, across = (x + dx * r, y + dy * r), (-dy * r * 0.95, dx * r * 0.95)
    base = (x - dx * r * 0.75, y - dy * r * 0.75)
    points = [tip, (base[0] + across[0], base[1] + across[1]), (base[0] - across[0], base[1] - across[1])]
    draw.polygon(points, fill=colour)


@dataclass(frozen=True, slots=True)
class _Map:
    """From pixels of the picture to pixels of the enlarged layer."""

    left: float
    top: float
    scale: float

    def __call__(self, point: Sequence[float] | np.ndarray) -> tuple[float, float]:
        return (float(point[0]) - self.left) * self.scale, (float(point[1]) - self.top) * self.scale


def _painted(
    image: Image.Image, region: Box, paint: Callable[[ImageDraw.ImageDraw, _Map], None], finer: int
) -> Image.Image:
    """The RGB picture with one region painted on at a larger scale; paint outside the region is cut."""
    x0, y0 = max(int(np.floor(region[0])), 0), max(int(np.floor(region[1])), 0)
    x1, y1 = min(int(np.ceil(region[2])), image.width), min(int(np.ceil(region[3])), image.height)
    if x1 <= x0 or y1 <= y0:
        return image
    scale = max(1, min(finer, _MOST_PIXELS // max(x1 - x0, y1 - y0)))
    # Enlarged without smoothing and averaged back, pixels that are not painted on keep their exact values.
    large = image.crop((x0, y0, x1, y1)).resize(((x1 - x0) * scale, (y1 - y0) * scale), Image.Resampling.NEAREST)
    paint(ImageDraw.Draw(large, "RGBA"), _Map(x0, y0, scale))
    whole = image.copy()
    whole.paste(large.reduce(scale), (x0, y0))
    return whole


def _around(centre: tuple[float, float], reach: float) -> Box:
    return centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach


def _depths(angles: Angles, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    rotation = geometry.rotation_from_euler(torch.tensor(angles, dtype=torch.float64))
    return geometry.project(torch.from_numpy(points), rotation).numpy()[:, 2]


def _arrow(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float,
    colour: tuple[int, int, int, int],
) -> None:
    """An arrow with a dark rim; nothing if it points at the viewer, where the dot of the centre is."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    if length < width:
        return
    unit = along / length
    across = np.array((-unit[1], unit[0]))
    head = min(width * 3.2, length * 0.6)
    neck = np.asarray(end) - unit * head
    for shade, grown in ((_HALO, width * 0.45), (colour, 0.0)):
        thick = round(width + 2 * grown)
        draw.line((*start, *(neck + unit * head * 0.2)), fill=shade, width=max(thick, 1))
        wing = across * (width * 1.35 + grown * 1.6)
        tip = np.asarray(end) + unit * grown * 1.6
        back = neck - unit * grown
        draw.polygon([tuple(tip), tuple(back + wing), tuple(back - wing)], fill=shade)


def _text(
    draw: ImageDraw.ImageDraw,
    at: _Map,
    point: tuple[float, float],
    text: str,
    size: float,
    ink: tuple[int, int, int, int],
    anchor: str = "lm",
) -> None:
    draw.text(at(point), text, font=ImageFont.load_default(max(size * at.scale, 1.0)), fill=ink, anchor=anchor)


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255
