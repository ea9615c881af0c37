"""The skin's colours: eyes, brows, mouth, folds and beard, painted at places (u, y) of the face.

All arrays run over the visible skin pixels [n]; every stroke touches only the pixels of its own window.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from hpe.sources.synthetic.anatomy import SIDES, SPREAD, Brow, Eye, Face, Mouth
from hpe.sources.synthetic.people import Colour, Head

Pixels = Float[np.ndarray, " n"]
DARK = (0.10, 0.06, 0.06)
WHITE = (0.97, 0.96, 0.94)
FAINT = 0.03  # folds of weaker action units darken the skin by less than the picture's noise


class Canvas:
    """A material's pixels: colours and places on the face; `soft` is an edge's width in head units."""

    def __init__(self, place: Float[np.ndarray, "3 n"], base: Colour, soft: float) -> None:
        self.x, self.y, self.z = place
        self.soft = np.float32(soft)
        self.colour = np.empty((len(self.x), 3), np.float32)
        self.colour[:] = base
        self.gloss = np.full(len(self.x), 0.12, np.float32)

    @cached_property
    def u(self) -> Pixels:
        """The way around the head, positive to the image right of a frontal face."""
        return np.float32(SPREAD) * np.arctan2(self.x, self.z)

    def window(self, u: tuple[float, float], y: tuple[float, float]) -> Int[np.ndarray, " few"]:
        """The pixels whose place lies between these borders."""
        return np.flatnonzero((self.u > u[0]) & (self.u < u[1]) & (self.y > y[0]) & (self.y < y[1]))

    def edge(self, distance: Pixels) -> Pixels:
        """Coverage 0..1 of a shape from the signed distance to its edge, inside positive."""
        cover = distance / self.soft
        cover += np.float32(0.5)
        return np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)

    def over(self, pixels: Int[np.ndarray, " few"], cover: Pixels, colour: Colour | np.ndarray) -> None:
        """Lays a colour over the pixels, as far as they are covered."""
        some = np.flatnonzero(cover)  # most strokes cover little of their window
        target = np.asarray(colour, np.float32)
        pixels, part = pixels[some], cover[some, None].astype(np.float32)
        old = self.colour[pixels]
        self.colour[pixels] = old + part * ((target[some] if target.ndim == 2 else target) - old)

    def shade(self, pixels: Int[np.ndarray, " few"], factor: Pixels) -> None:
        """Multiplies the pixels' colours."""
        some = np.flatnonzero(factor < 0.999)
        self.colour[pixels[some]] *= factor[some, None]


def paint_face(canvas: Canvas, head: Head, face: Face, gaze: tuple[float, float], light: float) -> None:
    """Paints one face; `light` is the light's x, which the glint in the eyes follows."""
    if head.beard > 0:
        _beard(canvas, head, face.mouth, face.jaw_drop)
    _folds(canvas, head, face)
    for side, eye, brow in zip(SIDES, face.eyes, face.brows, strict=True):
        _eye(canvas, head, side, eye, gaze, light)
        _brow(canvas, head, side, brow)
    _mouth(canvas, head, face.mouth)
    if head.glasses:
        paint_glasses(canvas, face)


def _fade(distance: Pixels, width: float) -> Pixels:
    return np.exp(-np.square(distance / np.float32(width)))


def _eye(canvas: Canvas, head: Head, side: int, eye: Eye, gaze: tuple[float, float], light: float) -> None:
    reach = (eye.u - 1.5 * eye.half, eye.u + 1.5 * eye.half)
    pixels = canvas.window(
        (min(side * reach[0], side * reach[1]), max(side * reach[0], side * reach[1])),
        (eye.y - 0.2, eye.y + 0.24),
    )
    a, y = side * canvas.u[pixels], canvas.y[pixels]
    t = (a - eye.u) / eye.half
    axis = eye.y + eye.slant * t
    bow = 1 - np.minimum(np.abs(t), 1.2) ** 2.3
    over, under = axis + eye.upper * bow - y, y - axis + eye.lower * bow
    # the socket's shadow and the crease above the lid
    canvas.shade(pixels, 1 - 0.16 * _fade(t, 1.0) * _fade(over + 0.045, 0.05))
    canvas.shade(pixels, 1 - 0.28 * canvas.edge(0.009 - np.abs(over + 0.04)) * (np.abs(t) < 1))
    inside = canvas.edge(np.minimum(over, under))
    shadow = np.clip(0.72 + 5 * over, 0.72, 1)[:, None] * np.array(WHITE, np.float32)
    canvas.over(pixels, inside, shadow)
    across = a - eye.u - side * gaze[0] * eye.half
    along = y - eye.y - 0.012 - gaze[1] * eye.half
    radius = np.sqrt(across**2 + along**2)
    iris = 0.083 * head.eye_size
    canvas.over(pixels, inside * canvas.edge(iris - radius), np.array(head.iris) * 0.55)
    canvas.over(pixels, inside * canvas.edge(0.82 * iris - radius), head.iris)
    canvas.over(pixels, inside * canvas.edge(0.45 * iris - radius), (0.03, 0.03, 0.03))
    glint = np.sqrt((across - side * 0.03 * light) ** 2 + (along - 0.03) ** 2)
    canvas.over(pixels, inside * canvas.edge(0.017 - glint), (1.0, 1.0, 1.0))
    lash = canvas.edge(0.015 - np.abs(over)) * canvas.edge(1.1 - np.abs(t)) * (under > -0.03)
    canvas.over(pixels, 0.92 * lash, DARK)
    rim = canvas.edge(0.007 - np.abs(under)) * canvas.edge(0.95 - np.abs(t)) * (over > 0)
    canvas.over(pixels, 0.5 * rim, np.array(head.skin) * 0.45)


def _brow(canvas: Canvas, head: Head, side: int, brow: Brow) -> None:
    (inner, low), (outer, high) = brow.inner, brow.outer
    bounds = sorted([side * (inner - 0.05), side * (outer + 0.05)])
    bottom = min(low, high) - 0.08
    pixels = canvas.window((bounds[0], bounds[1]), (bottom, max(low, high) + brow.arch + 0.1))
    t = (side * canvas.u[pixels] - inner) / (outer - inner)
    middle = low + (high - low) * t + 4 * brow.arch * t * (1 - t)
    half = 0.5 * brow.thickness * np.clip(1.1 - 0.75 * t * t, 0.2, 1.1)
    cover = canvas.edge(half - np.abs(canvas.y[pixels] - middle))
    cover *= canvas.edge(np.minimum(t, 1 - t) * (outer - inner) + 0.01)
    canvas.over(pixels, 0.95 * cover, head.brow)


def _mouth(canvas: Canvas, head: Head, mouth: Mouth) -> None:
    wide = max(mouth.half) + 0.08
    low = mouth.y - mouth.fall - mouth.lower_lip - 0.2
    pixels = canvas.window((-wide, wide), (low, mouth.y + mouth.rise + mouth.upper_lip + 0.2))
    u, y = canvas.u[pixels], canvas.y[pixels]
    right = u > 0
    half = np.where(right, mouth.half[1], mouth.half[0]).astype(np.float32)
    corner = np.where(right, mouth.corner[1], mouth.corner[0]).astype(np.float32)
    t = u / half
    square = np.minimum(t * t, 1.0)
    bow = (1 - square) ** np.float32(0.75 - 0.5 * mouth.square)
    line = mouth.y + corner * np.minimum(t * t, 1.3)
    lips = (1 - square) ** np.float32(0.5)
    cupid = 1 - 0.22 * _fade(u, 0.045)
    top, bottom = line + mouth.rise * bow, line - mouth.fall * bow
    above = top + mouth.upper_lip * lips * cupid - y
    below = y - bottom + mouth.lower_lip * lips
    within = canvas.edge((1.0 - np.abs(t)) * half + 0.01)
    upper, lower = canvas.edge(above) * within, canvas.edge(below) * within
    # the hollow under the lower lip
    canvas.shade(pixels, 1 - 0.18 * _fade(below + 0.05, 0.035) * (1 - square))
    canvas.over(pixels, upper * lower * (y > top), np.array(head.lip) * 0.86)
    canvas.over(pixels, upper * lower * (y <= top), np.minimum(np.array(head.lip) * 1.06, 1))
    canvas.gloss[pixels] += 0.2 * upper * lower
    opened = canvas.edge(np.minimum(top - y, y - bottom)) * within * min(1.0, (mouth.rise + mouth.fall) / 0.03)
    canvas.over(pixels, opened, (0.22, 0.05, 0.06))
    if mouth.fall > 0.09:
        tongue = canvas.edge(0.09 - np.sqrt((u * 0.55) ** 2 + (y - mouth.y + mouth.fall - 0.01) ** 2))
        canvas.over(pixels, opened * tongue, (0.78, 0.33, 0.35))
    inside = opened * canvas.edge((0.93 - np.abs(t)) * half)
    canvas.over(pixels, inside * canvas.edge(y - top + mouth.upper_teeth), WHITE)
    canvas.over(pixels, inside * canvas.edge(bottom + mouth.lower_teeth - y), (0.90, 0.88, 0.85))
    seam = canvas.edge(0.011 - np.abs(y - (top + bottom) / 2)) * within * (1 - 0.75 * (bow > 0.2) * opened)
    canvas.over(pixels, 0.85 * seam, np.array(head.lip) * 0.30)


def _folds(canvas: Canvas, head: Head, face: Face) -> None:
    au, mouth = face.units, face.mouth
    for index, side in enumerate(SIDES):
        deep = float(min(1.0, 0.75 * au[12][index] + au[10][index] + 0.7 * au[9][index] + 0.5 * au[14][index]))
        bounds = sorted([side * 0.06, side * 0.55])
        pixels = canvas.window((bounds[0], bounds[1]), (-0.75, 0.25))
        a, y = side * canvas.u[pixels], canvas.y[pixels]
        # from the nose's wing around the mouth's corner
        start, end = (0.13, -0.24), (mouth.half[index] + 0.075, mouth.y + mouth.corner[index] - 0.02)
        t = np.clip((start[1] - y) / max(start[1] - end[1], 0.05), -0.05, 1.05)
        middle = start[0] + (end[0] - start[0]) * t + 0.035 * 4 * t * (1 - t)
        within = (t > 0) & (t < 1)
        canvas.shade(pixels, 1 - (0.05 + 0.42 * deep) * canvas.edge(0.014 - np.abs(a - middle)) * within)
        # the cheek reddens, and stands out where it is raised
        blush = _fade(a - 0.33, 0.13) * _fade(y + 0.2, 0.10)
        canvas.over(pixels, (0.10 + 0.15 * float(au[6][index])) * blush, np.array(head.skin) * [1.0, 0.62, 0.60])
        raised = float(max(au[6][index], 0.8 * au[9][index]))
        if raised > FAINT:
            bag = canvas.edge(0.010 - np.abs(y - (-0.075 + 0.5 * (a - 0.27) ** 2 * 4)))
            canvas.shade(pixels, 1 - 0.35 * raised * bag * (np.abs(a - 0.27) < 0.14))
        if au[14][index] > FAINT:
            dimple = (a - mouth.half[index] - 0.05) ** 2 + (y - mouth.y - mouth.corner[index]) ** 2
            canvas.shade(pixels, 1 - 0.45 * float(au[14][index]) * _fade(np.sqrt(dimple), 0.035))
    brow_up = float(np.mean(au[1] * 0.6 + au[2] * 0.6))
    if brow_up > FAINT:
        pixels = canvas.window((-0.36, 0.36), (0.36, 0.56))
        u, y = canvas.u[pixels], canvas.y[pixels]
        lines = sum(canvas.edge(0.009 - np.abs(y - place - 0.02 * np.cos(u * 6))) for place in (0.41, 0.47, 0.53))
        canvas.shade(pixels, 1 - 0.30 * min(brow_up, 1) * lines * _fade(u, 0.27))
    frown = float(np.mean(au[4] * (1 - 0.6 * au[1])))
    if frown > FAINT:
        pixels = canvas.window((-0.1, 0.1), (0.1, 0.36))
        u, y = canvas.u[pixels], canvas.y[pixels]
        canvas.shade(pixels, 1 - 0.55 * frown * canvas.edge(0.011 - np.abs(np.abs(u) - 0.035)) * _fade(y - 0.21, 0.09))
    crinkle = float(np.mean(au[9]))
    if crinkle > FAINT:
        pixels = canvas.window((-0.16, 0.16), (-0.12, 0.16))
        u, y = canvas.u[pixels], canvas.y[pixels]
        rows = sum(canvas.edge(0.012 - np.abs(y - place + 0.6 * np.abs(u))) for place in (0.0, 0.06, 0.12))
        canvas.shade(pixels, 1 - 0.5 * crinkle * rows * (np.abs(u) < 0.12))
    nose = face.skin[11]
    pixels = canvas.window((-0.14, 0.14), (float(nose.centre[1]) - 0.14, float(nose.centre[1]) - 0.03))
    wide = 0.055 * head.nose_width * (1 + 0.2 * crinkle)
    hole = ((np.abs(canvas.x[pixels]) - wide) / 0.03) ** 2 + ((canvas.z[pixels] - nose.centre[2] + 0.03) / 0.06) ** 2
    canvas.over(pixels, 0.8 * np.clip(1.5 - hole, 0, 1) * (canvas.y[pixels] < nose.centre[1] - 0.045), DARK)
    pout = float(np.mean(au[17]))
    if pout > FAINT:
        pixels = canvas.window((-0.2, 0.2), (-0.9, -0.5))
        u, y = canvas.u[pixels], canvas.y[pixels]
        groove = np.abs(y - (mouth.y - mouth.fall - mouth.lower_lip - 0.06 - 1.5 * u * u))
        canvas.shade(pixels, 1 - 0.4 * pout * canvas.edge(0.012 - groove) * _fade(u, 0.12))


def _beard(canvas: Canvas, head: Head, mouth: Mouth, drop: float) -> None:
    pixels = canvas.window((-1.25, 1.25), (-1.2, -0.02))
    u, y = np.abs(canvas.u[pixels]), canvas.y[pixels]
    top = np.interp(u, [0.0, 0.2, 0.32, 0.5, 0.75, 1.2], [-0.31, -0.33, -0.42, -0.40, -0.12, 0.0])
    cover = np.clip((top - y) / 0.06, 0, 1) * np.clip((1.15 - u) / 0.15, 0, 1)
    bare = canvas.edge(0.12 - np.sqrt(u**2 * 0.25 + (y - mouth.y + mouth.fall / 2) ** 2)) * (mouth.fall < 0.5)
    canvas.over(pixels, head.beard * cover * (1 - 0.7 * bare * (y < mouth.y + 0.06 - drop)), np.array(head.hair) * 0.9)


def paint_glasses(canvas: Canvas, face: Face, shades: float = 0.0) -> None:
    """Glasses whose lenses hide this share of the eyes."""
    frame = (0.10, 0.10, 0.12)
    for side, eye in zip(SIDES, face.eyes, strict=True):
        bounds = sorted([side * 0.02, side * 1.05])
        pixels = canvas.window((bounds[0], bounds[1]), (-0.22, 0.26))
        a, y = side * canvas.u[pixels] - eye.u, canvas.y[pixels] - eye.y + 0.01
        ring = ((np.abs(a) / 0.21) ** 3 + (np.abs(y) / 0.165) ** 3) ** np.float32(1 / 3)
        if shades:
            canvas.over(pixels, shades * canvas.edge(0.18 * (1 - ring)), frame)
            canvas.gloss[pixels] += 0.3 * shades * (ring < 1)
        canvas.over(pixels, canvas.edge(0.013 - 0.18 * np.abs(ring - 1)), frame)
        rod = (ring > 1) & ((a > 0) | (a < -0.15))
        canvas.over(pixels, canvas.edge(0.013 - np.abs(y - 0.04)) * rod, frame)
