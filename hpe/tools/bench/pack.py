"""``hpe bench pack``: raw files to shards, compared with an upper bound and with a plain loop."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

import numpy as np

from hpe.core.labels import EMOTIONS
from hpe.core.process_pool import run_jobs
from hpe.core.signals import Signals
from hpe.pack import pack
from hpe.pack.options import Options
from hpe.sources import open_source
from hpe.tools.bench import Figure, Ratio, Report, Settings

_SIDE: Final = 448
_SIZE: Final = 224
_QUALITY: Final = 95
_WARM: Final = 64
_OURS: Final = "hpe pack"
_MEMORY: Final = "decode, resize, encode from memory"
_PILLOW: Final = "a Pillow loop over the files, one process"


def measure(settings: Settings) -> Report:
    """Rates of packing pictures of 448 px as 224 px, in pictures a second.

    Raw files are made once. An untimed turn starts the processes (seconds, once in a process) and fills the
    page cache. The limit is the same decoder, resize and encoder on bytes that each process holds in memory.
    """
    raw = _raw_files(settings.folder / f"raw-{settings.samples}", settings.samples)
    few = _raw_files(settings.folder / f"raw-{_WARM}", _WARM)
    _pack(few, settings)
    turns: dict[str, list[float]] = {_OURS: [], _MEMORY: [], _PILLOW: []}
    contestants: dict[str, Callable[[], float]] = {
        _OURS: lambda: _pack(raw, settings),
        _MEMORY: lambda: _memory(raw, settings.workers),
        _PILLOW: lambda: _pillow(raw),
    }
    for _ in range(settings.repeats):
        for name, contestant in contestants.items():
            turns[name].append(contestant())
    figures = tuple(Figure(name, tuple(values)) for name, values in turns.items())

    def over(name: str) -> float:
        return float(np.median(np.divide(turns[_OURS], turns[name])))

    return Report(
        part="pack",
        unit="pictures/s",
        figures=figures,
        ratios=(
            Ratio("hpe pack over memory", over(_MEMORY), 0.85),
            Ratio("hpe pack over the Pillow loop", over(_PILLOW), float(settings.workers)),
        ),
        notes=(
            f"{settings.samples:,} JPEGs of {_SIDE} px to {_SIZE} px, {settings.workers} processes; hpe pack "
            "starts its processes, reads, splits, looks for copies, draws contact sheets and hashes its shards in "
            "that time too; the limit is the sum of the rates of all processes, without their start",
        ),
    )


def _raw_files(folder: Path, count: int) -> Path:
    from PIL import Image

    if (folder / "whole").exists():
        return folder
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / EMOTIONS[i % len(EMOTIONS)] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
        picture = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-6, 7, (_SIDE, _SIDE, 1), np.int16)  # photos compress less than smooth blobs
        Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    (folder / "whole").touch()
    return folder


def _files(raw: Path) -> list[Path]:
    return sorted(raw.glob("*/*.jpg"))


def _pack(raw: Path, settings: Settings) -> float:
    out = settings.folder / "packed"
    shutil.rmtree(out, ignore_errors=True)
    # As many shards as give every process work until near the end, as in a dataset of any size.
    options = Options(crop="none", size=_SIZE, quality=_QUALITY, samples_per_shard=125)
    begun = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        found = pack(open_source("folders", raw), out, options, workers=settings.workers)
    return found.counts["samples"] / (time.perf_counter() - begun)


def _memory(raw: Path, workers: int) -> float:
    """The sum of the rates of all processes, each on its own share."""
    files = _files(raw)
    stop = Signals()
    return sum(run_jobs(_rate, [files[part::workers] for part in range(workers)], workers=workers, stop=stop))


def _rate(paths: list[Path]) -> float:
    from hpe.data.images import crop_resize, decode_rgb, encode_jpeg

    held = [path.read_bytes() for path in paths]
    begun = time.perf_counter()
    for data in held:
        picture = decode_rgb(data)
        height, width = picture.shape[:2]
        encode_jpeg(crop_resize(picture, (0.0, 0.0, float(width), float(height)), _SIZE), _QUALITY)
    return len(held) / (time.perf_counter() - begun)


def _pillow(raw: Path) -> float:
    """On an eighth of the files: a loop's rate does not depend on how many there are."""
    import io

    from PIL import Image

    files = _files(raw)[::8]
    begun = time.perf_counter()
    for path in files:
        with Image.open(path) as opened:
            picture = opened.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
        picture.save(io.BytesIO(), "JPEG", quality=_QUALITY)
    return len(files) / (time.perf_counter() - begun)
