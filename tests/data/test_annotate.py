"""Where the drawn axes end, judged by an independent rotation; the mirror; and that nothing else is touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from hpe.core.labels import AXIS_COLOURS
from hpe.data.annotate import Marker, Overlay, annotate, axis_ends, card, photo, with_axes, with_box, with_cube

GREY = 118
degrees = st.floats(-85, 85)


def blank(width: int = 240, height: int = 240) -> Image.Image:
    return Image.new("RGB", (width, height), (GREY, GREY, GREY))


def near_colour(image: Image.Image, colour: str) -> np.ndarray:
    """Rows and columns of the pixels that have about this colour."""
    wanted = np.array(list(bytes.fromhex(colour[1:])), float)
    away = np.abs(np.asarray(image, float) - wanted).max(-1)
    return np.argwhere(away < 24)


@given(degrees, degrees, degrees)
@settings(max_examples=30, deadline=None)
def test_axes_end_where_scipys_rotation_puts_them(yaw: float, pitch: float, roll: float) -> None:
    ends = axis_ends((yaw, pitch, roll), (50.0, 60.0), 40.0)
    seen = Rotation.from_euler("ZYX", (roll, yaw, pitch), degrees=True).inv()
    for end, axis in zip(ends, ((1, 0, 0), (0, -1, 0), (0, 0, 1)), strict=True):
        x, y, _ = seen.apply(axis)
        assert end == pytest.approx((50 + 40 * x, 60 - 40 * y), abs=1e-9)


@pytest.mark.parametrize(
    ("angles", "side", "sign"),
    [((50.0, 0, 0), 1, -1), ((-50.0, 0, 0), 1, 1), ((0, 40.0, 0), 0, -1), ((0, -40.0, 0), 0, 1)],
)
def test_blue_points_where_the_face_looks(angles: tuple[float, float, float], side: int, sign: int) -> None:
    """Yaw + looks to the picture's left, pitch + looks up."""
    image = with_axes(blank(), Overlay((60, 60, 180, 180), angles))
    pixels = near_colour(image, AXIS_COLOURS[2])
    assert len(pixels) > 30
    reach = (pixels - 120)[:, side] * sign
    assert reach.max() > 25
    assert reach.min() > -8


@pytest.mark.parametrize("paint", [with_axes, with_cube])
def test_mirrored_angles_give_the_mirrored_drawing_of_what_lies_in_depth(paint: Marker) -> None:
    """The blue parts (out of the face) mirror; red keeps pointing to the picture's right, as in Hopenet."""
    box = (60.0, 60.0, 180.0, 180.0)
    blue = [
        near_colour(paint(blank(), Overlay(box, angles)), AXIS_COLOURS[2])
        for angles in ((35.0, 12.0, 0.0), (-35.0, 12.0, 0.0))
    ]
    mirrored = blue[1].copy()
    mirrored[:, 1] = 239 - mirrored[:, 1]
    first, second = ({tuple(p) for p in pixels} for pixels in (blue[0], mirrored))
    assert len(first & second) / len(first | second) > 0.8


@pytest.mark.parametrize("paint", [with_axes, with_cube, with_box])
def test_pixels_away_from_the_face_keep_their_bytes(paint: Marker) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    drawn = np.asarray(paint(image, Overlay((100, 100, 180, 180), (20.0, 10.0, 5.0))))
    changed = (drawn != pixels).any(-1)
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert rows.min() > 60
    assert rows.max() < 230
    assert columns.min() > 60
    assert columns.max() < 230
    assert (np.asarray(image) == pixels).all()


def test_without_angles_nothing_is_drawn() -> None:
    image = blank()
    assert with_axes(image, Overlay((0, 0, 9, 9))) is image
    assert with_cube(image, Overlay((0, 0, 9, 9))) is image


def test_lines_are_antialiased() -> None:
    image = np.asarray(with_axes(blank(), Overlay((60, 60, 180, 180), (25.0, 15.0, 20.0))))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("box", [(-50, -50, 30, 30), (0, 0, 1, 1), (900, 900, 950, 950), (-2000, -2000, 4000, 4000)])
def test_boxes_at_and_beyond_the_border_are_drawn_as_far_as_they_are_seen(
    box: tuple[float, float, float, float],
) -> None:
    overlay = Overlay(box, (20.0, 10.0, 5.0), 3, [0.125] * 8, "hostile <b>\u202e\n")
    drawn = annotate(blank(), [overlay], with_cube)
    assert drawn.size == (240, 240)


def test_a_card_is_as_high_as_asked_and_shows_the_bars_of_the_emotions() -> None:
    overlay = Overlay((20, 20, 90, 90), (0.0, 0.0, 0.0), 1, [0.02] * 7 + [0.86], "truth: sad")
    drawn = card(blank(112, 112), overlay, height=256)
    assert drawn.height == 256
    assert drawn.width > 256
    assert len(near_colour(drawn, "#a0785a")) > len(near_colour(drawn, "#8e5bb5")) + 50  # contempt, fear


@pytest.mark.parametrize(("box", "beside"), [((20, 20, 430, 430), True), ((20, 150, 120, 260), False)])
def test_the_panel_of_a_face_that_fills_the_picture_comes_beside_it(
    box: tuple[float, float, float, float], beside: bool
) -> None:
    face = Overlay(box, (10.0, 0, 0), 2, [0.125] * 8, "y +10°")
    drawn = photo(blank(450, 450), [face])
    assert (drawn.width > drawn.height == 800) is beside
    assert photo(blank(450, 450), [face], widen=False).size == (800, 800)  # frames of a video
    assert photo(blank(450, 450), [Overlay(box, (10.0, 0, 0))]).size == (800, 800)  # no panel, nothing beside


def test_panels_of_several_faces_leave_the_picture_its_size() -> None:
    faces = [Overlay((x, 40, x + 60, 100), (10.0, 0, 0), 2, [0.125] * 8) for x in (10, 300, 560)]
    assert annotate(blank(640, 300), faces).size == (640, 300)


@pytest.mark.parametrize("size", [(3000, 1), (1, 5000), (40_000, 2)])
def test_a_card_of_a_picture_that_is_nearly_a_line_stays_of_a_size_that_jpeg_and_readers_take(
    size: tuple[int, int],
) -> None:
    drawn = card(Image.new("RGB", size), Overlay((0, 0, *size), (20.0, 10.0, 5.0), 1, [0.125] * 8), height=256)
    assert drawn.height == 256
    assert drawn.width < 1200
