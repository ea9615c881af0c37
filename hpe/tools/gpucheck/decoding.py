"""JPEGs decoded by the GPU (nvJPEG) and by the processor: the same images, and how many a second."""

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from hpe.core.devices import cores
from hpe.data.decode import decode_into
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest
from hpe.stream import Reading, ShardSet, Stream
from hpe.tools.gpucheck import Row, attempt
from hpe.tools.gpucheck.place import Place
from hpe.tools.gpucheck.training import finish

_SAME: Final = 3.0
"""Mean difference of 255 levels. Another way to scale colours up gives 1.4 to 1.7 on rendered heads, images that are
one pixel off 4, and red taken for blue 27 (measured)."""
_BATCH: Final = 64
_TIMED: Final = 256
_SECONDS: Final = 1.0


def decoding(place: Place) -> Iterator[Row]:
    """Check 6: what the stream gives with ``data.decoder: gpu`` and ``cpu``, and the speed of both decoders."""
    if why := _refused(place):
        yield Row("same images", "note", f"{why}: data.decoder: gpu decodes on the CPU here")
        return
    yield attempt("same images", lambda: compared(place))
    yield attempt("decoders' speed", lambda: _speeds(place))


def _refused(place: Place) -> str | None:
    """Why torchvision cannot decode on this device."""
    try:
        _decode_batch(_jpegs(place, 1), place)
    except RuntimeError as error:
        return f"torchvision cannot decode here ({' '.join(str(error).split())[:160]})"
    return None


def compared(place: Place) -> Row:
    """How far the images of the two decoders lie apart."""
    gpu, cpu = (_images(place, decoder).double() for decoder in ("gpu", "cpu"))
    apart = (gpu - cpu).abs()
    mean, largest = float(apart.mean()), float(apart.max())
    values = {"mean_difference": mean, "largest_difference": largest, "images": len(gpu)}
    text = f"{len(gpu)} images differ by {mean:.2g} of 255 levels on average, {largest:.0f} at most"
    if not mean <= _SAME:
        return Row("same images", "bad", f"{text}; decoders explain a mean of at most {_SAME:g}", values)
    return Row("same images", "ok", text, values)


def _images(place: Place, decoder: Literal["gpu", "cpu"]) -> Tensor:
    """The first batch as a training gets it."""
    stream = Stream([ShardSet(str(place.shards), "train")], Reading(size=place.sizes.pixels, decoder=decoder))
    with stream.endless(seed=0, batch=_BATCH) as loader:
        loaded = next(loader)
        if loaded.damage:
            raise RuntimeError(f"{decoder}: {loaded.damage[0]}")
        return loaded.batch.images.cpu().clone()


def _speeds(place: Place) -> Row:
    jpegs = _jpegs(place, _TIMED)
    size = place.sizes.pixels

    def device_batch() -> None:
        _decode_batch(jpegs, place)
        finish(place)

    with ThreadPoolExecutor(cores()) as pool:
        rows = np.empty((len(jpegs), size, size, 3), np.uint8)

        def cpu_batch() -> None:
            list(pool.map(lambda row: decode_into(jpegs[row], rows[row]), range(len(jpegs))))

        fast, slow = _rate(device_batch, len(jpegs)), _rate(cpu_batch, len(jpegs))
    name = "GPU" if place.kind == "cuda" else "torchvision on the CPU"
    text = f"{name} {fast:,.0f} images/s, CPU {slow:,.0f} images/s on {cores()} cores ({size} pixels)"
    return Row("decoders' speed", "ok", text, {"device_images_per_second": fast, "cpu_images_per_second": slow})


def _rate(once: Callable[[], None], images: int) -> float:
    once()
    start, turns = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        once()
        turns += 1
    return turns * images / (time.perf_counter() - start)


def _jpegs(place: Place, count: int) -> list[bytes]:
    paths = Manifest.load(place.shards).paths(place.shards, "train")
    found = [sample.image for path in paths for sample in read_samples(path)]
    return found[:count]


def _decode_batch(jpegs: list[bytes], place: Place) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy()) for jpeg in jpegs]
    with warnings.catch_warnings(action="ignore"):  # some versions speak of a successor
        decode_jpeg(encoded, mode=ImageReadMode.RGB, device=place.device)
