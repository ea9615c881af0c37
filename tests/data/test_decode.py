"""The hot decoder against Pillow, which shares no code with it."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hpe.data.decode import decode_into, decode_rows
from hpe.data.images import DecodeError


def photo(height: int, width: int) -> np.ndarray:
    """A smooth colourful picture, so that decoders and resizers may only differ by rounding."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = (np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(3 * x * y + 1))
    return np.stack([(110 * plane + 128) for plane in planes], -1).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, **options)
    return held.getvalue()


def decoded(data: bytes, size: int, colour: str = "rgb") -> np.ndarray:
    out = np.full((2, size, size, 3), 77, np.uint8)
    decode_into(data, out[1], colour)  # pyright: ignore[reportArgumentType]
    assert (out[0] == 77).all()
    return out[1]


def by_pillow(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("colour", ["rgb", "grey"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("shape", [(64, 64), (150, 150), (301, 220), (48, 48), (64, 100)])
def test_every_format_and_size_gives_pillows_picture(shape: tuple[int, int], kind: str, colour: str) -> None:
    data = encoded(photo(*shape), kind, **({"quality": 95} if kind != "png" else {}))
    expected = by_pillow(data, 64).astype(int)
    found = decoded(data, 64, colour).astype(int)
    if colour == "grey":
        expected = np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L"), int)[..., None]
        assert (found == found[..., :1]).all()
    error = np.abs(found - expected)
    # Scaling while decoding drops frequencies that the resize would have dropped, within a few levels.
    assert error.mean() < 1.5
    assert error.max() <= 12


def test_a_stored_picture_of_the_right_size_is_not_touched() -> None:
    pixels = photo(64, 64)
    assert np.array_equal(decoded(encoded(pixels, "png"), 64), pixels)
    grey = np.ascontiguousarray(pixels[..., 0])
    assert np.array_equal(decoded(encoded(grey, "png"), 64), np.repeat(grey[..., None], 3, 2))
    jpeg = simplejpeg.encode_jpeg(pixels, 90)
    assert np.array_equal(decoded(jpeg, 64), np.asarray(Image.open(io.BytesIO(jpeg))))


def test_a_grey_jpeg_fills_three_channels() -> None:
    data = encoded(photo(64, 64)[..., 0], "jpeg", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decoded(data, 64), np.repeat(expected[..., None], 3, 2))
    assert decoded(encoded(photo(100, 90)[..., 1], "jpeg"), 64).shape == (64, 64, 3)


def test_what_is_unusual_is_decoded_all_the_same() -> None:
    pixels = photo(64, 64)
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(pixels, "jpeg", quality=95, exif=turned)
    upright = np.asarray(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(decoded(data, 64).astype(int) - upright).max() <= 2
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "jpeg", quality=95)
    assert np.abs(decoded(cmyk.getvalue(), 64).astype(int) - pixels).mean() < 6
    palette = io.BytesIO()
    Image.fromarray(pixels).quantize(256).save(palette, "png")
    assert np.abs(decoded(palette.getvalue(), 64).astype(int) - pixels).mean() < 8
    clear = np.dstack((pixels, np.zeros((64, 64), np.uint8)))
    assert (decoded(encoded(clear, "png"), 64) == 255).all()


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_what_is_no_whole_picture_is_refused(kind: str) -> None:
    data = encoded(photo(64, 64), kind)
    for broken in (b"", data[:10], data[: len(data) // 2], b"\0" * 500, data[:40] + bytes(60) + data[100:]):
        with pytest.raises(DecodeError):
            decoded(broken, 64)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = encoded(np.zeros((8, 8), np.uint8), "png")
    import struct
    import zlib

    huge = struct.pack(">II", 60000, 60000) + header[24:29]
    data = header[:16] + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge)) + header[33:]
    with pytest.raises(DecodeError, match="pixels"):
        decoded(data, 64)


def test_rows_of_a_batch_are_decoded_as_one_by_one() -> None:
    pixels, turned = photo(64, 64), Image.Exif()
    turned[0x0112] = 3
    plain = encoded(pixels, "jpeg")
    held = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(held, "jpeg")
    data = [
        plain, encoded(pixels, "jpeg", progressive=True), encoded(pixels, "jpeg", exif=turned), held.getvalue(),
        encoded(pixels[..., 0], "jpeg"), encoded(photo(64, 65), "jpeg"), encoded(photo(65, 64), "jpeg"),
        encoded(pixels, "png"), encoded(photo(200, 200), "webp"), plain[: len(plain) // 2], plain[:30],
        b"\xff\xd8", b"", plain[:20] + bytes(20) + plain[40:],
        plain.replace(b"\x00\x40\x00\x40", b"\xff\xff\xff\xff", 1),
    ]  # fmt: skip
    for colour in ("rgb", "grey"):
        out, expected = (np.zeros((len(data), 64, 64, 3), np.uint8) for _ in range(2))
        damage: dict[int, str] = {}
        for row, one in enumerate(data):
            try:
                decode_into(one, expected[row], colour)
            except DecodeError as error:
                damage[row] = str(error)
        assert {9, 10, 11, 12} <= damage.keys()
        found = decode_rows([memoryview(one) for one in data], range(len(data)), out, colour)
        assert found == damage
        assert all(np.array_equal(out[row], expected[row]) for row in range(len(data)) if row not in damage)
