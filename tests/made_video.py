"""Small videos for tests, written with PyAV: any codec, times, rotation and sound; and rendered heads that move."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from hpe.data.crops import Box
from hpe.data.images import RGBImage
from hpe.sources.synthetic import express, face_box, person, render, shot

CLOCK = 90_000


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    rate: int = 10,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    quarter_turns: float = 0,
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of pictures (RGB, or RGBA) of one size.

    Args:
        times: of the pictures, in seconds; default: by ``rate``.
        pixels: FFmpeg's name of the pixels' format.
        quarter_turns: players turn it so often counter-clockwise.
        sound: codec of a tone that lasts as long as the video.
    """
    with av.open(str(path), "w") as made:
        stream: Any = made.add_stream(codec, rate=rate)
        stream.pix_fmt = pixels
        spoken: Any = None if sound is None else made.add_stream(sound, rate=48_000)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, CLOCK)
        if quarter_turns:
            stream.set_display_rotation(90 * quarter_turns)
        stream.options = options or {}
        count = 0
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture), "rgba" if picture.shape[2] == 4 else "rgb24"
            )
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * CLOCK), Fraction(1, CLOCK)
            made.mux(stream.encode(frame))
            count += 1
        if count:
            made.mux(stream.encode(None))
        if spoken is not None:
            seconds = count / rate if times is None else times[count - 1]
            wave = np.sin(np.arange(round(48_000 * seconds)) * 2 * np.pi * 440 / 48_000) * 0.2
            pieces = np.split(wave.astype(np.float32), range(1024, len(wave), 1024))
            for place, piece in enumerate(pieces):
                heard = av.AudioFrame.from_ndarray(piece[None], format="fltp", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 48_000, 1024 * place, Fraction(1, 48_000)
                made.mux(spoken.encode(heard))
            made.mux(spoken.encode(None))
    return path


def shades(count: int, width: int = 64, height: int = 48) -> list[RGBImage]:
    """Grey pictures that get brighter, with a white quarter at the top left."""
    made = []
    for number in range(count):
        picture = np.full((height, width, 3), 20 + number * 120 // max(count - 1, 1), np.uint8)
        picture[: height // 2, : width // 2] = 255
        made.append(picture)
    return made


@dataclass(frozen=True)
class Seen:
    """The truth of one head in one frame: its place in pixels, and yaw, pitch, roll in degrees."""

    box: Box
    angles: tuple[float, float, float]


def head(number: int, angles: tuple[float, float, float], size: int, emotion: int = 0) -> tuple[RGBImage, Box]:
    """A rendered head with these angles, in a square, and its box there."""
    who, seen = person(1, number), shot(1, number)
    units = express(emotion, 1.0, side=1)
    yaw, pitch, roll = angles
    seen = replace(
        seen, yaw=yaw, pitch=pitch, roll=roll, emotion=emotion, units=units, noise=0.0, blur=0.0, centre=(0.0, 0.0)
    )  # fmt: skip
    return render(who, seen, size), face_box(who, seen, size)


def moving_heads(
    count: int, *, width: int = 192, height: int = 96, size: int = 64, heads: int = 1, rate: float = 10
) -> list[tuple[RGBImage, list[Seen]]]:
    """Frames in which heads cross the picture while they turn, and what is true of each."""
    made = []
    for frame in range(count):
        picture = np.full((height, width, 3), 90, np.uint8)
        truth = []
        for number in range(heads):
            share = frame / max(count - 1, 1)
            share = share if number % 2 == 0 else 1 - share
            x, y = round(share * (width - size)), (number * size) % max(height - size + 1, 1)
            angles = (40 * np.sin(2 * np.pi * (frame / rate / 4 + number / 3)), 10 * np.cos(frame / rate), 5.0)
            tile, (x0, y0, x1, y1) = head(number, angles, size)
            picture[y : y + size, x : x + size] = tile
            truth.append(Seen((x + x0, y + y0, x + x1, y + y1), angles))
        made.append((picture, truth))
    return made
