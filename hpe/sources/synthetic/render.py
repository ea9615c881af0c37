"""One picture: solids to depth, normals and skin places, light, then a camera with blur and noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from hpe.sources.synthetic import anatomy, wild
from hpe.sources.synthetic.paint import Canvas, paint_face, paint_glasses
from hpe.sources.synthetic.people import Colour, Head
from hpe.sources.synthetic.shots import Shot
from hpe.sources.synthetic.solids import (
    FAR,
    Cut,
    Matrix,
    Screen,
    Solid,
    clipped,
    ellipsoid,
    nearer,
    rotation,
    spindle,
    stretched,
)
from hpe.sources.synthetic.wild import Scene

FINE = 2  # rays per pixel and axis
HAIR_THICKNESS = {
    "cropped": 0.025, "short": 0.07, "fringe": 0.08, "bob": 0.09, "long": 0.08, "bun": 0.05, "curly": 0.2,
}  # fmt: skip
IMAGE_FROM_VIEW = np.diag([1.0, -1.0, 1.0])
Image = UInt8[np.ndarray, "size size 3"]


def project(points: Float[np.ndarray, "points 3"], shot: Shot, size: int) -> Float[np.ndarray, "points 2"]:
    """Head-frame points to pixels by F·Rᵀ·X: x right, y down, the first pixel's centre at 0.5."""
    turned = nearer(points @ rotation(*shot.turn), shot.near) @ IMAGE_FROM_VIEW
    return size * (0.5 + np.array(shot.centre) + shot.scale * turned[:, :2])


def landmarks(head: Head, shot: Shot, size: int) -> Float[np.ndarray, "20 2"]:
    """The points named by `anatomy.LANDMARKS`, in pixels, hidden ones too."""
    return project(model_points(head, shot), shot, size)


def model_points(head: Head, shot: Shot) -> Float[np.ndarray, "20 3"]:
    """The same points in the head frame, under the shot's expression."""
    return anatomy.model_points(anatomy.face_of(head, shot.units)) * [head.wide, 1, 1]


def face_box(head: Head, shot: Shot, size: int) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels of the head from chin to crown without hair, cut at the picture's border."""
    face = anatomy.face_of(head, shot.units)
    into, _ = stretched(rotation(*shot.turn), head.wide)
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for solid in face.skin[:4]:
        centre = project(solid.centre[None] * [head.wide, 1, 1], shot, size)[0]
        half = size * shot.scale * np.linalg.norm(into.T @ solid.axes, axis=1)[:2]
        low, high = np.minimum(low, centre - half), np.maximum(high, centre + half)
    x0, y0, x1, y1 = np.clip([*low, *high], 0, size).tolist()
    return x0, y0, x1, y1


def render(head: Head, shot: Shot, size: int, scene: Scene | None = None) -> Image:
    """The picture of a head, RGB, in a scene of :mod:`wild`, if any. A pure function: equal arguments, equal bytes."""
    rows = (np.arange(size * FINE) + 0.5) / FINE
    x = (rows / size - 0.5 - shot.centre[0]) / shot.scale
    y = -(rows / size - 0.5 - shot.centre[1]) / shot.scale
    colour, cover = _figure(head, shot, x, y, soft=1.2 / (FINE * size * shot.scale), scene=scene)
    colour, cover = _per_pixel(colour), _per_pixel(cover)
    if scene is not None:
        rng = np.random.default_rng([*scene.seed, 1])
        picture = (1 - cover[..., None]) * wild.background(rng, size) + colour
        return wild.compressed(_bytes(wild.camera(picture, rng)), rng)
    picture = (1 - cover[..., None]) * _background(shot, size)
    picture += colour
    if shot.blur > 0:
        picture = ndimage.gaussian_filter(picture, (shot.blur * size, shot.blur * size, 0), truncate=2.5)
    if shot.noise > 0:
        noise = np.random.default_rng([shot.grain, 1]).standard_normal(picture.shape, dtype=np.float32)
        noise *= np.float32(shot.noise)
        picture += noise
    return _bytes(picture)


def _bytes(picture: np.ndarray) -> Image:
    picture = clipped(picture)
    picture *= 255
    picture += 0.5
    return picture.astype(np.uint8)


def _per_pixel(rays: np.ndarray) -> np.ndarray:
    # the mean over FINE × FINE rays, as sums of slices: four times as fast as a mean over two axes
    total = rays[::FINE, ::FINE].copy()
    for row, column in list(np.ndindex(FINE, FINE))[1:]:
        total += rays[row::FINE, column::FINE]
    return total / FINE**2


def _figure(
    head: Head, shot: Shot, x: np.ndarray, y: np.ndarray, soft: float, scene: Scene | None
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width"]]:
    """Colours, black where nothing is, and coverage 0 or 1, both per ray."""
    matrix = rotation(*shot.turn)
    into, back = stretched(matrix, head.wide)
    face = anatomy.face_of(head, shot.units)
    layers: list[tuple[Screen, str]] = []

    def layer(name: str, solids: list[Solid], keep: Cut | None = None, frame: Matrix | None = None) -> None:
        screen = Screen(x, y)
        if frame is None:
            screen.add(solids, matrix, keep, wide=head.wide, near=shot.near)
        else:
            screen.add(solids, frame, keep, near=shot.near)
        layers.append((screen, name))

    layer("skin", face.skin)
    if head.hair_style not in ("bob", "long"):
        layer("ears", face.ears)
    for name, solids, keep in _hair(head):
        layer(name, solids, keep)
    for number, part in enumerate(scene.parts if scene else ()):
        layer(f"part {number}", list(part.solids), part.cut, None if part.turns else np.eye(3))
    body = rotation(scene.body_yaw if scene else 0.35 * shot.yaw, 0.0, 0.0)
    top, bottom = into.T @ np.array([0, -0.42, -0.2]), np.array([0.0, -1.5, -0.42])
    layer("neck", [spindle(top, bottom, 0.31 * head.wide, melt=0.1)], frame=np.eye(3))
    layer("cloth", [ellipsoid((0, -1.56, -0.42), scene.shoulders if scene else (1.05, 0.55, 0.5))], frame=body)

    depth = np.full((len(y), len(x)), FAR, np.float32)
    owner = np.full(depth.shape, -1, np.int8)
    for number, (screen, _) in enumerate(layers):
        window = screen.touched
        nearer = screen.depth[window] > depth[window]
        np.copyto(depth[window], screen.depth[window], where=nearer)
        np.copyto(owner[window], number, where=nearer)
    seen = owner >= 0

    colour = np.zeros((depth.size, 3), np.float32)
    x, y = x.astype(np.float32), y.astype(np.float32)
    occlusion = _occlusion(depth, seen, soft)
    for number, (screen, name) in enumerate(layers):
        rays = np.flatnonzero(owner == number)
        if len(rays) == 0:
            continue
        at = rays // len(x)
        place = np.stack([x[rays - at * len(x)], y[at], depth.take(rays)])
        place = back.astype(np.float32) @ (place / (1 + np.float32(shot.near) * place[2]))
        paint, gloss = _material(name, head, face, shot, place, soft, scene)
        normal = screen.normal.reshape(3, -1).take(rays, axis=1)
        factor, shine = _light(shot, normal, gloss, occlusion.take(rays), scene)
        paint *= factor
        paint += shine
        colour[rays] = paint
    return colour.reshape(*depth.shape, 3), seen.astype(np.float32)


def _material(
    name: str, head: Head, face: anatomy.Face, shot: Shot, place: np.ndarray, soft: float, scene: Scene | None
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [n, 3] and gloss [n] of a material at places [3, n] of the head frame."""
    base: dict[str, Colour] = {"cloth": head.cloth, "hair": head.hair, "back": head.hair}
    if scene is not None:
        base |= {f"part {number}": part.colour for number, part in enumerate(scene.parts)}
    canvas = Canvas(place, base.get(name, head.skin), soft)
    if name == "skin":
        paint_face(canvas, head, face, shot.gaze, shot.light[0])
        if scene is not None and scene.shades >= 0:
            paint_glasses(canvas, face, scene.shades)
    elif name == "ears":
        hollow = ((place[1] + 0.01) / 0.13) ** 2 + ((place[2] + 0.07) / 0.075) ** 2
        canvas.colour *= (1 - 0.3 * np.clip(1.3 - hollow, 0, 1))[:, None]
    elif name in ("hair", "back"):
        around = np.arctan2(np.abs(place[0]), place[1] + 0.9) * 26 + 3.0 * abs(head.parting)
        strand = 0.10 * np.cos(around + 2.5 * place[2]) + 0.06 * np.cos(2.7 * around - 4 * place[2])
        if head.hair_style == "curly":
            strand = 0.3 * np.cos(26 * place[0]) * np.cos(26 * place[1]) * np.cos(26 * place[2] + 1)
        canvas.colour *= (1 + strand)[:, None]
        canvas.gloss[:] = 0.05 if head.hair_style in ("cropped", "curly") else 0.22
    elif name == "neck":
        canvas.colour *= 0.86
        canvas.gloss[:] = 0.03
    else:
        canvas.gloss[:] = 0.0
    if scene is not None:
        rng = np.random.default_rng([*scene.seed, 2, sum(map(ord, name))])
        most = 0.12 if name in ("skin", "ears", "neck") else 0.45
        canvas.colour *= wild.textured(place, rng, float(rng.uniform(0, most)))
        canvas.gloss *= np.float32(rng.uniform(0, 2))
    return canvas.colour, canvas.gloss


def _light(
    shot: Shot, normal: np.ndarray, gloss: np.ndarray, open_sky: np.ndarray, scene: Scene | None
) -> tuple[np.ndarray, np.ndarray]:
    """Factor [n, 3] on the material's colour, by wrapped Lambert, and highlight [n, 1] to add, by Blinn."""
    light = np.array(shot.light, np.float32)
    halfway = light + np.array([0, 0, 1], np.float32)
    halfway /= np.linalg.norm(halfway)
    facing, shine = np.stack([light, halfway]) @ normal
    rim = 1 - np.float32(0.25) * np.square(clipped(1 - normal[2]))
    wrap = np.float32(scene.wrap if scene else 0.3)
    diffuse = clipped((facing + wrap) * (1 / (1 + wrap)))
    diffuse *= rim
    sky = np.float32(0.14 * shot.ambient) * normal[1] + np.float32(0.86 * shot.ambient)
    sky *= open_sky
    sky *= rim
    strength = 1.22 - shot.ambient if scene is None else (1.22 - shot.ambient) * scene.shadow
    warm = [strength * part for part in shot.light_colour]
    factor = np.stack([diffuse, sky]).T @ np.array([warm, [1, 1, 1]], np.float32)
    if scene is not None and any(scene.fill_colour):
        other = clipped(np.array(scene.fill, np.float32) @ normal)
        factor += other[:, None] * np.array(scene.fill_colour, np.float32)
    power = clipped(shine) ** 2  # the 24th power by squares: a general power takes ten times as long
    power *= power
    power *= power
    shine = gloss * (power * np.square(power))
    return factor, shine[:, None]


def _occlusion(depth: np.ndarray, seen: np.ndarray, soft: float) -> np.ndarray:
    """How much sky a ray's end sees, 0.5..1, judged by how far it lies behind its surroundings."""
    width = max(3, int(0.16 / soft) // FINE)
    cover, deep = _per_pixel(seen.astype(np.float32)), _per_pixel(depth * seen)  # smooth: a value a pixel is enough
    weight = ndimage.uniform_filter(cover, width, mode="nearest")
    around = ndimage.uniform_filter(deep, width, mode="nearest") / np.maximum(weight, 1e-3)
    behind = around.repeat(FINE, axis=0).repeat(FINE, axis=1)
    behind -= depth
    behind *= np.float32(1.6)
    return 1 - np.minimum(np.maximum(behind, 0, out=behind), np.float32(0.5), out=behind)


def _hair(head: Head) -> list[tuple[str, list[Solid], Cut | None]]:
    """Name, solids and cut of each part of the hair: a cap over the skull, and what hangs behind the face."""
    if head.hair_style == "bald":
        return []
    more = HAIR_THICKNESS[head.hair_style]
    front = 0.56 + head.hairline - (0.16 if head.hair_style == "fringe" else 0.0)
    hanging = head.hair_style in ("bob", "long")
    temple, ear, nape = (-0.45, -0.55, -0.7) if hanging else (0.12, 0.17, -0.35)
    angles = np.radians([0, 25, 48, 66, 80, 100, 125, 180])
    heights = np.array([front, front - 0.02, front - 0.10, front - 0.26, temple, ear, nape, nape - 0.05])
    parting = 0.09 * head.parting if head.hair_style in ("short", "fringe", "bob", "long") else 0.0

    def cut(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        # the cap's border over the way around the head, by a table: np.interp of every ray is slow
        steps = np.interp(np.linspace(0, np.pi, 128), angles, heights).astype(np.float32)
        around = np.arctan2(np.abs(x), z)
        border = steps[(around * np.float32(127 / np.pi)).astype(np.intp)]
        if parting:
            border = border + np.float32(parting) * np.sin(4 * x) * (z > 0)
        return y > border

    cap = ellipsoid((0, 0.27 + 0.3 * more, -0.15), (0.70 * head.width + more, 0.70 * head.crown + more, 0.80 + more))
    parts: list[tuple[str, list[Solid], Cut | None]] = [("hair", [cap], cut)]
    if head.hair_style == "bun":
        parts.append(("back", [ellipsoid((0, 0.75, -0.78), (0.27, 0.25, 0.25))], None))
    if hanging:
        low = -0.28 if head.hair_style == "bob" else -0.55

        def behind(_x: np.ndarray, _y: np.ndarray, z: np.ndarray) -> np.ndarray:
            return z < 0.12

        curtain = [
            ellipsoid((0, low + 0.2, -0.30), (0.80 * head.width, 0.75 - 0.5 * low - 0.1, 0.55)),
            *(
                ellipsoid((side * 0.64 * head.width, low + 0.15, -0.05), (0.16, 0.62 - 0.3 * low, 0.26))
                for side in (-1, 1)
            ),
        ]
        parts.append(("back", curtain, behind))
    return parts


def _background(shot: Shot, size: int) -> Float[np.ndarray, "size size 3"]:
    """A gradient between two colours, with soft blobs."""
    first, second = np.array(shot.background, np.float32)
    angle = np.radians(shot.background_angle)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = 0.5 + 0.7 * (np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None])
    picture = first + ramp[..., None] * (second - first)
    if shot.blobs > 0:
        coarse = np.random.default_rng([shot.grain, 0]).standard_normal((7, 7, 3), dtype=np.float32)
        coarse = 0.3 * coarse + 0.7 * coarse[..., :1]  # more light and dark than hue
        place = np.linspace(0, 5.999, size, dtype=np.float32)
        cell, part = place.astype(int), place % 1
        part = part * part * (3 - 2 * part)
        share = np.zeros((size, 7), np.float32)  # how much of each coarse row, and column, a pixel shows
        share[np.arange(size), cell], share[np.arange(size), cell + 1] = 1 - part, part
        tall = (share @ (np.float32(shot.blobs) * coarse).reshape(7, 21)).reshape(size, 7, 3)
        picture += share @ tall
    return clipped(picture)
