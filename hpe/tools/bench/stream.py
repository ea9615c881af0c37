"""Samples per second of the stream, compared with the bare decoder and with other ways to read the same images.

Every contestant hands out batches of 64 pictures as uint8 of 3 × 224 × 224 from the same encoded pictures,
with as many worker processes. A turn is one pass; its rate is that in the middle of the pass: neither starting
processes counts, nor what readers have made before their first batch is asked for.
"""

import importlib
import itertools
import json
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.data.images import image_size
from hpe.data.records import Record
from hpe.data.shard_files import names_folder
from hpe.data.shard_reader import read_samples
from hpe.data.shards import MANIFEST, Manifest, Sample, write_shard
from hpe.tools.bench import Report, Settings, ratio, take_turns

SIZE: Final = 224
BATCH: Final = 64
_ASIDE: Final = 16
"""Batches at both ends of a pass: more than any contestant keeps ready."""
_FEWEST: Final = 10 * BATCH
_PER_SHARD: Final = 500
_DISTINCT: Final = 500
_OURS: Final = "hpe stream"
_DECODER: Final = "decoder alone, bytes in memory"


def measure(settings: Settings) -> Report:
    """Measure every contestant that is installed."""
    shards = made_shards(settings)
    if settings.shards:
        _refuse_others(shards, settings.shards)
    folder = _image_folder(settings.folder, shards)
    workers = settings.workers
    contestants: dict[str, Callable[[], float]] = {
        _OURS: lambda: _pass(_ours(shards, workers)),
        _DECODER: lambda: _decoder_alone(shards, workers),
        "ImageFolder + Pillow": lambda: _pass(_torch_folder(folder, workers, _with_pillow)),
        "ImageFolder + simplejpeg": lambda: _pass(_torch_folder(folder, workers, _with_simplejpeg)),
        "WebDataset + simplejpeg": lambda: _pass(_webdataset(shards, workers)),
        "datasets streaming + simplejpeg": lambda: _pass(_datasets(shards, workers)),
    }
    absent = []
    for module, (name, prepare) in _OPTIONAL.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # what another version of a dependency breaks raises anything
            absent.append(f"{name} is left out: {error}")
            continue
        contestants[name] = _contestant(prepare(settings.folder, shards, workers))
    figures = take_turns(contestants, settings.repeats, "bench stream")
    targets = {
        _DECODER: 0.92, "ImageFolder + Pillow": 2.5, "ImageFolder + simplejpeg": 1.6, "WebDataset + simplejpeg": 2.0,
        "datasets streaming + simplejpeg": 2.2, "litdata + simplejpeg": 2.2,
    }  # fmt: skip
    others = [figure.name for figure in figures if figure.name != _OURS]
    ratios = tuple(ratio(figures, _OURS, name, targets.get(name, 1.0)) for name in others)
    size = sum(path.stat().st_size for path in shards) // sum(1 for path in shards for _ in read_samples(path))
    notes = (f"{workers} workers, batches of {BATCH}, {size:,} bytes a sample, files in the page cache", *absent)
    return Report("stream", "samples/s", figures, ratios, notes)


def _refuse_others(shards: list[Path], named: str) -> None:
    """Let only pass what every contestant can read: JPEGs of one size, and enough of them for a turn.

    Raises:
        UserError: these shards have others.
    """
    count = 0
    try:
        for sample in itertools.chain.from_iterable(map(read_samples, shards)):
            width, height = image_size(sample.image)
            if (sample.extension, width, height) != ("jpg", SIZE, SIZE):
                raise UserError(
                    f"--shards {named}: {sample.key}.{sample.extension} has {width} × {height} pixels; bench stream "
                    f"reads .jpg files of {SIZE} × {SIZE} pixels, as `hpe pack --size {SIZE}` writes"
                )
            count += 1
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"--shards {named}: {error}; give shards without damage (`hpe verify` finds it)") from error
    if count < _FEWEST:
        raise UserError(f"--shards {named}: {count} images; a turn of bench stream needs {_FEWEST} or more")


def _contestant(batches: Callable[[], Iterator[int]]) -> Callable[[], float]:
    return lambda: _pass(batches())


def _pass(batches: Iterable[Any]) -> float:
    """Samples a second: the slope of samples over time, by least squares, without the ends of the pass.

    From the first batch to the last, whoever reads furthest ahead would have read part of it before the clock starts.
    A slope, because batches may come several at once.
    """
    arrived = [(time.perf_counter(), rows) for rows in batches]
    times, rows = np.asarray(arrived).T
    aside = min(_ASIDE, len(arrived) // 4)
    middle = slice(aside, len(arrived) - aside)
    return float(np.polyfit(times[middle] - times[0], np.cumsum(rows)[middle], 1)[0])


def _ours(shards: list[Path], workers: int) -> Iterator[int]:
    from hpe.stream import Reading, ShardSet, Stream

    stream = Stream([ShardSet([str(path) for path in shards])], Reading(size=SIZE, workers=workers))
    batches = stream.samples // BATCH
    with stream.endless(seed=0, batch=BATCH) as loader:
        for loaded, _ in zip(loader, range(batches), strict=False):
            yield len(loaded.batch)


def _decoder_alone(shards: list[Path], workers: int) -> float:
    """Each process decodes its share of the pictures into one buffer, again and again."""
    pictures = [sample.image for path in shards for sample in read_samples(path)]
    context = multiprocessing.get_context("fork")
    processes = max(1, workers)
    ready = context.Barrier(processes + 1)
    shares = [pictures[number::processes] for number in range(processes)]
    running = [context.Process(target=_decode, args=(share, ready)) for share in shares]
    for process in running:
        process.start()
    ready.wait()
    start = time.perf_counter()
    ready.wait()
    rate = len(pictures) / (time.perf_counter() - start)
    for process in running:
        process.join()
    return rate


def _decode(pictures: list[bytes], ready: Any) -> None:
    import simplejpeg

    buffer = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8)
    ready.wait()
    for number, picture in enumerate(pictures):
        simplejpeg.decode_jpeg(picture, buffer=buffer[number % BATCH])
    ready.wait()


def _rows(loader: Iterable[Any]) -> Iterator[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for pictures, *_ in loader:
            assert tuple(pictures.shape[1:]) == (3, SIZE, SIZE)
            yield len(pictures)


def _loader(dataset: Any, workers: int, **options: Any) -> Iterator[int]:
    from torch.utils.data import DataLoader

    # Importing litdata makes spawning the default, and a start of seconds would count for the others.
    context = "fork" if workers else None
    return _rows(DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options))


def _with_pillow(path: str) -> Any:
    import torch
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _with_simplejpeg(path: str) -> Any:
    return _tensor(Path(path).read_bytes())


def _tensor(data: bytes) -> Any:
    import simplejpeg
    import torch

    return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)


def _label(emotion: int | None) -> int:
    """A label to hand out beside each picture, also of records without emotion; nothing learns from it."""
    return -1 if emotion is None else emotion


def _torch_folder(folder: Path, workers: int, read: Callable[[str], Any]) -> Iterator[int]:
    from torchvision.datasets import ImageFolder

    return _loader(ImageFolder(str(folder), loader=read), workers, batch_size=BATCH, shuffle=True)


def _webdataset(shards: list[Path], workers: int) -> Iterator[int]:
    import webdataset.compat as webdataset

    def decoded(sample: dict[str, Any]) -> tuple[Any, int]:
        return _tensor(sample["jpg"]), _label(json.loads(sample["json"]).get("emotion"))

    urls = [str(path) for path in shards]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).map(decoded).batched(BATCH)
    return _loader(pipeline, workers, batch_size=None)


def _datasets(shards: list[Path], workers: int) -> Iterator[int]:
    import datasets

    datasets.disable_progress_bars()
    table: Any = datasets.load_dataset(
        "webdataset", data_files={"train": [str(path) for path in shards]}, split="train", streaming=True
    )
    table = table.cast_column("jpg", datasets.Image(decode=False))
    return _loader(table.map(_decoded_row).remove_columns(["jpg", "json", "__key__", "__url__"]), workers,
                   batch_size=BATCH, collate_fn=_stacked)  # fmt: skip


def _decoded_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"pixels": _tensor(row["jpg"]["bytes"]), "emotion": _label(row["json"].get("emotion"))}


def _stacked(rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    import torch

    return torch.stack([row["pixels"] for row in rows]), torch.tensor([row["emotion"] for row in rows])


def _litdata(folder: Path, shards: list[Path], workers: int) -> Callable[[], Iterator[int]]:
    import litdata  # pyright: ignore[reportMissingImports]

    made = folder / f"litdata-{_identity(shards)}"
    if not (made / "index.json").is_file():
        litdata.optimize(_same, list(_plain_rows(shards)), str(made), chunk_bytes="16MB", num_workers=1)

    def batches() -> Iterator[int]:
        table = litdata.StreamingDataset(str(made), shuffle=True, transform=_decoded_plain)
        yield from _rows(litdata.StreamingDataLoader(table, batch_size=BATCH, num_workers=workers))

    return batches


def _mosaicml(folder: Path, shards: list[Path], workers: int) -> Callable[[], Iterator[int]]:
    import streaming  # pyright: ignore[reportMissingImports]

    made = folder / f"mosaicml-{_identity(shards)}"
    if not (made / "index.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        with streaming.MDSWriter(out=str(made), columns={"jpg": "bytes", "emotion": "int"}) as out:
            for row in _plain_rows(shards):
                out.write(row)

    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> tuple[Any, int]:
            return _decoded_plain(super().__getitem__(at))

    def batches() -> Iterator[int]:
        streaming.base.util.clean_stale_shared_memory()
        table = Decoded(local=str(made), shuffle=True, batch_size=BATCH)
        yield from _loader(table, workers, batch_size=BATCH)

    return batches


def _spdl(_: Path, shards: list[Path], workers: int) -> Callable[[], Iterator[int]]:
    import spdl.io  # pyright: ignore[reportMissingImports]
    import spdl.pipeline  # pyright: ignore[reportMissingImports]
    import torch

    def samples() -> Iterator[tuple[bytes, int]]:
        for path in shards:
            with path.open("rb") as tar:
                picture = b""
                for name, content in spdl.io.iter_tarfile(tar):
                    if name.endswith(".jpg"):
                        picture = bytes(content)
                    else:
                        yield picture, _label(json.loads(bytes(content)).get("emotion"))

    def decoded(rows: list[tuple[bytes, int]]) -> tuple[Any, Any]:
        import simplejpeg

        pixels = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
        for (picture, _), out in zip(rows, pixels, strict=True):
            simplejpeg.decode_jpeg(picture, buffer=out)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([emotion for _, emotion in rows])

    def batches() -> Iterator[int]:
        threads = max(1, workers)
        builder = spdl.pipeline.PipelineBuilder().add_source(samples()).aggregate(BATCH)
        pipeline = builder.pipe(decoded, concurrency=threads).add_sink(threads * 2).build(num_threads=threads + 1)
        with pipeline.auto_stop():
            yield from _rows(pipeline)

    return batches


def _dali(_: Path, shards: list[Path], workers: int) -> Callable[[], Iterator[int]]:
    from nvidia.dali import fn, pipeline_def  # pyright: ignore[reportMissingImports]

    @pipeline_def(batch_size=BATCH, num_threads=max(1, workers), device_id=None)
    def reader() -> tuple[Any, Any]:
        paths = [str(path) for path in shards]
        picture, record = fn.readers.webdataset(
            paths=paths, ext=["jpg", "json"], random_shuffle=True, name="reader", missing_component_behavior="error"
        )
        return fn.decoders.image(picture, device="cpu"), record

    def batches() -> Iterator[int]:
        pipeline: Any = reader()
        pipeline.build()
        for _ in range(pipeline.epoch_size("reader") // BATCH):
            pictures, records = pipeline.run()
            for row in range(BATCH):
                json.loads(bytes(records.at(row)))
            assert tuple(pictures.as_tensor().shape()) == (BATCH, SIZE, SIZE, 3)
            yield BATCH

    return batches


_OPTIONAL: Final = {
    "litdata": ("litdata + simplejpeg", _litdata),
    "streaming": ("MosaicML Streaming + simplejpeg", _mosaicml),
    "spdl.pipeline": ("SPDL + simplejpeg", _spdl),
    "nvidia.dali": ("DALI's CPU reader", _dali),
}
"""Contestants that hpe does not depend on: by module, a name and what makes its batches."""


def _plain_rows(shards: list[Path]) -> Iterator[dict[str, Any]]:
    for path in shards:
        for sample in read_samples(path):
            yield {"jpg": sample.image, "emotion": _label(sample.record.emotion)}


def _decoded_plain(row: dict[str, Any]) -> tuple[Any, int]:
    return _tensor(row["jpg"]), row["emotion"]


def _same(row: Any) -> Any:
    return row


def _identity(shards: list[Path]) -> int:
    """What tells made copies of one set of shards from those of another."""
    return sum(path.stat().st_size for path in shards)


def made_shards(settings: Settings) -> list[Path]:
    """The given shards, or made ones: smoothed noise, which compresses like a photo (about 18 kB at 224 px)."""
    if settings.shards:
        from hpe.stream.shard_sets import ShardSet, resolve

        every = ShardSet(settings.shards, "all" if names_folder(settings.shards) else None)
        return [Path(shard.url) for shard in resolve([every])[0]]
    folder = settings.folder / f"shards-{settings.samples}"
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [picture(number) for number in range(min(_DISTINCT, settings.samples))]
        infos = []
        for first in range(0, settings.samples, _PER_SHARD):
            numbers = range(first, min(first + _PER_SHARD, settings.samples))
            samples = (Sample(f"n{n:07d}", pictures[n % _DISTINCT], "jpg", _record(n)) for n in numbers)
            infos.append(write_shard(folder / f"train-{first // _PER_SHARD:06d}.tar", "train", samples))
        Manifest("bench", "noise", "none", True, "none", {}, tuple(infos)).save(folder)
    return Manifest.load(folder).paths(folder, "train")


def _record(number: int) -> Record:
    return Record(emotion=number % len(EMOTIONS), valence=0.25, arousal=-0.5, yaw=10.0, pitch=-5.0, roll=1.5)


def picture(seed: int) -> bytes:
    """A JPEG of noise at several scales."""
    import simplejpeg
    from PIL import Image

    random = np.random.default_rng(seed)
    pixels = np.full((SIZE, SIZE, 3), 128.0)
    for cells in (4, 8, 16, 32, 64, 112):
        noise = (random.normal(size=(cells, cells, 3)) * 120 / cells**0.5).astype(np.float32)
        for channel in range(3):
            scaled = Image.fromarray(noise[..., channel]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(scaled)
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), 90, colorsubsampling="420")


def _image_folder(folder: Path, shards: list[Path]) -> Path:
    """The same pictures as class folders, the way of torchvision and the thesis."""
    made = folder / f"folders-{_identity(shards)}"
    if not (made / "done").is_file():
        for path in shards:
            for sample in read_samples(path):
                target = made / "images" / EMOTIONS[sample.record.emotion or 0]
                target.mkdir(parents=True, exist_ok=True)
                (target / f"{sample.key}.jpg").write_bytes(sample.image)
        (made / "done").write_bytes(b"")
    return made / "images"
