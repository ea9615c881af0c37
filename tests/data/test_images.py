"""Pictures: what is hostile is refused with a reason, what is unusual is read right, crops agree with Pillow."""

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError, features

from hpe.data import images
from hpe.data.decode import decode_into
from hpe.data.image_files import image_format
from hpe.data.images import (
    DecodeError,
    crop_resize,
    decode_rgb,
    decode_small,
    encode_jpeg,
    image_size,
    map_box,
    map_points,
    to_grey,
)

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that JPEG keeps well, with no symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack((255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9 + y / 17)), -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    picture = smooth(40, 60)
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(picture), kind)), picture)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_come_back_nearly(kind: str, options: dict[str, int]) -> None:
    picture = smooth(64, 48)
    assert difference(decode_rgb(encoded(Image.fromarray(picture), kind, **options)), picture) < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    picture = smooth(48, 80)
    # What each value of the tag does to the stored picture, written out from the EXIF standard.
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation](picture)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode_rgb(encoded(Image.fromarray(picture), kind, exif=exif, **options))
    assert got.shape == upright.shape
    assert difference(got, upright) < 6


FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_to_a_pictures_size_gives_that_of_the_upright_picture(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth(24, 40)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    (tmp_path / "picture").write_bytes(data)
    assert image_size(data) == image_size(tmp_path / "picture") == upright.size
    assert decode_rgb(data).shape[1::-1] == upright.size
    assert difference(decode_rgb(data), np.asarray(upright)) < 3
    square = np.zeros((16, 16, 3), np.uint8)
    decode_into(data, square)
    left, top = (upright.width - 24) // 2, (upright.height - 24) // 2
    middle = upright.crop((left, top, left + 24, top + 24))
    assert difference(square, np.asarray(middle.resize((16, 16), Image.Resampling.BILINEAR))) < 5


def test_an_orientation_in_xmp_or_behind_a_comment_is_applied_too() -> None:
    plain = encoded(Image.fromarray(smooth(24, 40)), "JPEG", quality=95)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    exif = Image.Exif()
    exif[0x0112] = 6
    comment = b"\xff\xfe" + struct.pack(">H", 9) + b"comment" + b"\xff"
    for segment in (
        b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp,
        comment + b"\xff\xe1" + struct.pack(">H", len(exif.tobytes()) + 2) + exif.tobytes(),
    ):
        data = plain[:2] + segment + plain[2:]
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
        assert upright.size == (24, 40)
        assert image_size(data) == upright.size
        assert difference(decode_rgb(data), np.asarray(upright)) < 3
        row = np.zeros((24, 24, 3), np.uint8)
        decode_into(data, row)
        assert difference(row, np.asarray(upright)[8:32]) < 3


def test_a_format_is_known_by_its_first_bytes() -> None:
    for kind in (*FORMATS, "BMP", "GIF", "PPM"):
        assert image_format(encoded(Image.fromarray(smooth(8, 8)), kind)[:64]) == kind
    for start, kind in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", None), (b"BMW is no picture", None), (b"%PDF-1.7", None),
        (b"P4 is short", "PPM"), (b"", None), (b"RIFF\0\0\0\0WAVE", None),
    ):  # fmt: skip
        assert image_format(start) == kind


def test_heic_names_the_way_to_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._heif.cache_clear()
    heic = b"\0\0\0\x18ftypheic" + bytes(200)
    for read in (decode_rgb, image_size):
        with pytest.raises(DecodeError, match="pip install pillow-heif"):
            read(heic)


def test_heic_is_read_upright_where_its_decoder_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    heif.from_pillow(Image.fromarray(smooth(64, 96))).save(out, exif=exif.tobytes())
    upright = np.rot90(smooth(64, 96), -1)
    assert image_size(out.getvalue()) == (64, 96)
    assert difference(decode_rgb(out.getvalue()), upright) < 6


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    got = decode_rgb(encoded(Image.fromarray(levels), "PNG"))
    assert np.array_equal(got[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(levels), "TIFF")), got)


def test_grey_palette_and_one_bit_pictures_become_rgb() -> None:
    grey = smooth(32, 32)[..., 0]
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(grey), "PNG"))[..., 2], grey)
    assert difference(decode_rgb(encoded(Image.fromarray(grey), "JPEG", quality=95))[..., 1], grey) < 2
    palette = Image.fromarray(smooth(32, 32)).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode_rgb(encoded(palette, "PNG")), expected)
    assert np.array_equal(decode_rgb(encoded(palette, "GIF")), expected)
    bits = Image.fromarray(grey > 100)
    assert set(np.unique(decode_rgb(encoded(bits, "PNG")))) == {0, 255}


def test_cmyk_has_the_colours_it_was_made_from() -> None:
    flat = np.empty((32, 32, 3), np.uint8)
    flat[:] = (200, 40, 90)
    cmyk = Image.fromarray(flat).convert("CMYK")
    assert difference(decode_rgb(encoded(cmyk, "JPEG", quality=95)), flat) < 4
    assert difference(decode_rgb(encoded(cmyk, "TIFF")), flat) < 2


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    rgba[2] = (0, 0, 0, 128)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        got = decode_rgb(encoded(Image.fromarray(rgba), kind, **options))
        assert got[0, 0].tolist() == [255, 0, 0]
        assert got[2, 0].tolist() == pytest.approx([127] * 3, abs=1)
        assert got[3, 0].tolist() == [255, 255, 255]
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    assert decode_rgb(encoded(palette, "PNG", transparency=0))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_a_truncated_picture_is_refused_at_every_length(kind: str) -> None:
    whole = encoded(Image.fromarray(smooth(64, 64)), kind)
    for length in (0, 1, 3, 11, 30, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(DecodeError):
            decode_rgb(whole[:length])


def test_a_progressive_jpeg_is_read_and_half_of_it_is_refused() -> None:
    whole = encoded(Image.fromarray(smooth(128, 128)), "JPEG", progressive=True)
    assert difference(decode_rgb(whole), smooth(128, 128)) < 8
    with pytest.raises(DecodeError, match="truncated"):
        decode_rgb(whole[: len(whole) // 2])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    whole = encoded(Image.fromarray(smooth(64, 64)), "JPEG")
    assert np.array_equal(decode_rgb(whole + b"\0garbage" * 100), decode_rgb(whole))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000, 2_000_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(DecodeError, match="pixels"):
        decode_rgb(png_header(side, side))


def test_the_limit_is_the_callers_and_exact() -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(Image.fromarray(smooth(10, 10)), kind)
        assert decode_rgb(data, max_pixels=100).shape == (10, 10, 3)
        with pytest.raises(DecodeError, match="10 × 10 pixels"):
            decode_rgb(data, max_pixels=99)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"%PDF-1.7 ...", b"\0" * 500, b"<svg/>"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_rgb(data)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
def test_any_damage_gives_a_picture_or_a_decode_error(kind: str, changes: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(encoded(Image.fromarray(smooth(24, 24)), kind))
    for at, value in changes:
        data[int(at * len(data))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture = decode_rgb(bytes(data[: int(kept * len(data)) + 1]), max_pixels=10**6)
        except DecodeError:
            return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


# Crops


@pytest.mark.parametrize(("box", "size"), [((10, 20, 110, 120), 32), ((0, 0, 200, 200), 224), ((30, 5, 80, 55), 64)])
def test_a_crop_is_pillows_within_one_level(box: tuple[int, int, int, int], size: int) -> None:
    picture = smooth(200, 200)
    expected = Image.fromarray(picture).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    got = crop_resize(picture, box, size)
    assert np.abs(got.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_what_lies_beyond_the_border_is_black() -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    got = crop_resize(white, (-50, -50, 50, 50), 50)
    assert not got[:24, :24].any()
    assert (got[26:, 26:] == 255).all()
    got = crop_resize(white, (50, 50, 150, 150), 50)
    assert (got[:24, :24] == 255).all()
    assert not got[26:, :].any()


def test_a_crop_that_is_not_square_keeps_the_proportions() -> None:
    picture = smooth(100, 300)
    assert np.array_equal(crop_resize(picture, (0, 0, 300, 100), 64), crop_resize(picture, (100, 0, 200, 100), 64))


def test_antialiasing_gives_the_mean_of_a_fine_pattern() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = crop_resize(stripes, (0, 0, 512, 512), 64)[8:-8, 8:-8]
    assert np.abs(inner.astype(int) - 127).max() <= 3


@settings(max_examples=60, deadline=None)
@given(st.integers(-30, 60), st.integers(-30, 60), st.integers(20, 90), st.integers(20, 90), st.integers(40, 200))
def test_a_dot_lands_where_map_points_says(x: int, y: int, width: int, height: int, size: int) -> None:
    box = (float(x), float(y), float(x + width), float(y + height))
    side, dot = min(width, height), 5
    at_x, at_y = x + width // 2 - 2, y + height // 2 - 2  # a white dot of 5 × 5 in the middle
    if not (0 <= at_x < 95 and 0 <= at_y < 95):
        return
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[at_y : at_y + dot, at_x : at_x + dot] = 255
    crop = crop_resize(picture, box, size)[..., 0].astype(float)
    rows, columns = np.mgrid[:size, :size] + 0.5
    centre = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    ((mapped_x, mapped_y),) = map_points(np.array([[at_x + 2.5, at_y + 2.5]]), box, size)
    assert centre == pytest.approx([mapped_x, mapped_y], abs=0.3 * max(size / side, 1))
    x0, y0, x1, y1 = map_box((at_x, at_y, at_x + dot, at_y + dot), box, size)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((mapped_x, mapped_y))
    assert x1 - x0 == pytest.approx(dot * size / side)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 5, 50), "empty"), ((50, 50, 5, 5), "empty"), ((100, 0, 150, 50), "outside"),
        ((-50, 0, 0, 50), "outside"), ((0, 0, float("nan"), 9), "four numbers"),
        ((0, 0, float("inf"), 9), "four numbers"), ((-1e9, -1e9, 1e9, 1e9), "far larger"),
    ],
)  # fmt: skip
def test_an_impossible_box_is_refused(box: tuple[float, float, float, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        crop_resize(smooth(100, 100), box, 64)


# Encoding


def test_jpeg_comes_back_in_colour_and_grey_and_is_the_same_every_time() -> None:
    picture = smooth(96, 96)
    data = encode_jpeg(picture, 92)
    assert data == encode_jpeg(picture.copy(), 92)
    opened = Image.open(io.BytesIO(data))
    assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (96, 96))
    assert JpegImagePlugin.get_sampling(opened) == 2  # 4:2:0
    assert difference(np.asarray(opened), picture) < 4
    grey = to_grey(picture)
    assert np.array_equal(grey, np.asarray(Image.fromarray(picture).convert("L")))
    opened = Image.open(io.BytesIO(encode_jpeg(grey, 92)))
    assert opened.mode == "L"
    assert difference(np.asarray(opened), grey) < 2
    assert difference(decode_rgb(encode_jpeg(grey, 92))[..., 1], grey) < 2


def test_a_jpeg_that_pillow_does_not_recognise_is_damaged_and_what_is_none_is_no_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = bytearray(encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90))
    damaged[3:8] = bytes(5)

    def unknown(*_: object, **__: object) -> None:  # as Pillow 11 and 12.0 do with some
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", unknown)
    with pytest.raises(DecodeError, match="damaged"):
        decode_rgb(bytes(damaged))
    with pytest.raises(DecodeError, match="not a picture: it starts with b'GARBAGE"):
        decode_rgb(b"GARBAGE" * 9)


def test_a_jpeg_is_decoded_no_larger_than_asked_for_and_shows_the_same():
    picture = smooth(300, 400)
    small = decode_small(encode_jpeg(picture, 95), 100)
    assert min(small.shape[:2]) >= 100
    assert max(small.shape[:2]) <= 150
    expected = np.asarray(Image.fromarray(picture).resize(small.shape[1::-1], Image.Resampling.BOX), int)
    assert np.abs(small.astype(int) - expected).mean() < 2
    assert decode_small(encode_jpeg(picture, 95), 1000).shape == picture.shape


def test_only_jpegs_are_decoded_smaller():
    picture = smooth(40, 50)
    assert np.array_equal(decode_small(encoded(Image.fromarray(picture), "PNG"), 8), picture)
    with pytest.raises(DecodeError):
        decode_small(encode_jpeg(picture, 95)[:-40], 8)
