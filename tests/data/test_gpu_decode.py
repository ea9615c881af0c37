"""JPEGs that the training device decodes. There may be no GPU: the device is the CPU, the way is the same."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpe.core.errors import UserError
from hpe.data import gpu_decode
from hpe.data.decode import decode_into
from hpe.data.gpu_decode import decode_rows, hand_on
from hpe.data.images import encode_jpeg
from hpe.data.shards import write_shard
from hpe.stream import Reading, ShardSet, Stream, decoding, loader
from hpe.stream.batch_block import BatchBlock
from hpe.train import datasets
from tests import made
from tests.fake_gpu import skip_elsewhere

CPU = torch.device("cpu")
SIZE = 64


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    whole = torch.from_numpy(coarse).permute(2, 0, 1)[None].float()
    smooth = torch.nn.functional.interpolate(whole, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    return encode_jpeg(smooth.byte().numpy(), 95)


@pytest.mark.parametrize("colour", ["rgb", "grey"])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (96, 80), (48, 100)])
def test_the_device_gives_the_readers_pixels(shape: tuple[int, int], colour: str) -> None:
    rows = torch.zeros(3, SIZE, SIZE, 3, dtype=torch.uint8)
    expected = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    lengths = []
    for row in range(2):
        lengths.append(hand_on(jpeg(*shape, seed=row), rows[row].numpy()))
        decode_into(jpeg(*shape, seed=row), expected[row], colour)  # type: ignore[arg-type]
    decode_into(jpeg(*shape, seed=2), expected[2], colour)  # type: ignore[arg-type]
    rows[2] = torch.from_numpy(expected[2])  # one that its reader has decoded
    assert min(lengths) > 0
    images, damage = decode_rows(rows, [*lengths, 0], colour, CPU)  # type: ignore[arg-type]
    assert not damage
    difference = (images.permute(0, 2, 3, 1).int() - torch.from_numpy(expected).int()).abs()
    assert difference.max() <= (1 if shape == (SIZE, SIZE) else 12)  # the readers scale while they decode
    assert difference.float().mean() < 0.7
    assert difference[2].max() == 0


def test_what_is_no_plain_whole_jpeg_or_too_large_stays_with_the_reader() -> None:
    row = np.full((SIZE, SIZE, 3), 7, np.uint8)
    good = jpeg(SIZE, SIZE)
    turned = good[:2] + b"\xff\xe1\x00\x08Exif\0\0" + good[2:]
    for data in (b"", b"GIF89a", good[:-40], turned, good + bytes(SIZE * SIZE * 3)):
        assert hand_on(data, row) == 0
    assert (row == 7).all()


def test_one_bad_picture_is_named_and_the_others_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(3, SIZE, SIZE, 3, dtype=torch.uint8)
    lengths = [hand_on(jpeg(SIZE, SIZE, seed=row), rows[row].numpy()) for row in range(3)]
    broken = rows[1].view(-1)
    broken[300 : lengths[1] - 2] = 255
    images, damage = decode_rows(rows, lengths, "rgb", CPU)
    assert list(damage) == [1]
    assert (images[1] == 0).all()
    assert (images[0].float().mean() > 10) & (images[2].float().mean() > 10)


def test_a_device_that_cannot_decode_leaves_it_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_nvjpeg(*_: object) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    rows = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    length = hand_on(jpeg(SIZE, SIZE), rows[0].numpy())
    expected = np.zeros((SIZE, SIZE, 3), np.uint8)
    decode_into(jpeg(SIZE, SIZE), expected)
    monkeypatch.setattr(gpu_decode, "_decode", no_nvjpeg)
    images, damage = decode_rows(rows, [length], "rgb", CPU)
    assert not damage
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_decoded_by_the_device_has_the_same_samples_and_labels(tmp_path, workers: int) -> None:
    folder = made.shards(tmp_path / "shards", unlabelled=5)
    read = {}
    for decoder in ("cpu", "gpu"):
        stream = Stream([ShardSet(str(folder), "train")], Reading(made.SIDE, workers=workers, decoder=decoder))
        with stream.once(batch=16) as loader:
            read[decoder] = [one.batch.clone() for one in loader]
    for ours, theirs in zip(read["gpu"], read["cpu"], strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.angles_mask, theirs.angles_mask)
        assert torch.equal(ours.emotion_target, theirs.emotion_target)
        assert (ours.images.int() - theirs.images.int()).abs().float().mean() < 2


class Current(threading.local):
    """The current GPU and stream, which each thread has of its own, as in CUDA."""

    index = 0
    stream: Any = None

    def set_device(self, device: torch.device | int) -> None:
        self.index = getattr(device, "index", device)


class Copies(TorchDispatchMode):
    """Copies from the host to another device: how many, and whether they block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].device == CPU != kwargs.get("device", CPU):
            self.blocking.append(not kwargs.get("non_blocking"))
        return func(*args, **kwargs)


@pytest.mark.parametrize("decodes", [True, False], ids=["the device decodes", "the processor decodes"])
def test_what_the_processor_has_decoded_goes_to_the_device_in_one_copy_that_nobody_waits_for(
    decodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(encoded: list[torch.Tensor], _: object, device: torch.device) -> list[torch.Tensor]:
        if not decodes:
            raise RuntimeError("no nvJPEG here")
        return [torch.empty(3, 80, 96, dtype=torch.uint8, device=device) for _ in encoded]

    monkeypatch.setattr(gpu_decode, "_decode", decode)
    rows = torch.zeros(5, SIZE, SIZE, 3, dtype=torch.uint8)
    lengths = [hand_on(jpeg(SIZE, SIZE), rows[row].numpy()) for row in range(3)]
    with Copies() as copies:
        images, damage = decode_rows(rows, [*lengths, 0, 0], "rgb", torch.device("meta"))
    assert images.shape == (5, 3, SIZE, SIZE)
    assert not damage
    assert copies.blocking == [False]


def taken_apart(tmp_path: Path, bad: tuple[int, ...] = (), **reading: Any) -> Stream:
    """A stream of twelve pictures for the device; the bad ones have a JPEG's head and end, and nothing between."""
    samples = made.samples(12)
    for number in bad:
        whole = samples[number].image
        samples[number] = replace(samples[number], image=whole[:300] + b"\xff" * (len(whole) - 302) + whole[-2:])
    write_shard(tmp_path / "train-000000.tar", "train", samples)
    return Stream([ShardSet(str(tmp_path / "train-000000.tar"))], Reading(made.SIDE, decoder="gpu", **reading))


def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Have ``before`` called with the number of each batch that is to be decoded."""
    real, numbers = decoding.decode_rows, iter(range(100))

    def decode(*args: Any) -> Any:
        before(next(numbers))
        return real(*args)

    monkeypatch.setattr(decoding, "decode_rows", decode)


def test_the_next_batch_is_decoded_while_the_trainer_has_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = [threading.Event() for _ in range(4)]
    threads: set[str] = set()

    def before(number: int) -> None:
        threads.add(threading.current_thread().name)
        begun[number].set()

    watched(monkeypatch, before)
    with taken_apart(tmp_path).once(batch=3) as batches:
        for number, _ in enumerate(batches):
            assert number == 3 or begun[number + 1].wait(10), "nobody decodes while the trainer is busy"
            assert number > 1 or not begun[number + 2].is_set(), "more is decoded than the batch after this one"
    assert threading.main_thread().name not in threads


def test_waiting_for_the_decoder_counts_as_waiting_and_what_overlaps_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def before(number: int) -> None:
        if number == 0:
            time.sleep(0.3)
        if number == 1:
            done.set()

    watched(monkeypatch, before)
    with taken_apart(tmp_path).once(batch=6) as batches:
        next(batches)
        first = batches.waited_seconds
        assert first >= 0.3
        assert done.wait(10)
        time.sleep(0.5)  # the trainer's step
        next(batches)
        assert batches.waited_seconds - first < 0.3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_decoded_is_told_with_its_own_batch(tmp_path: Path, workers: int) -> None:
    with taken_apart(tmp_path, bad=(5,), workers=workers).once(batch=3) as batches:
        counted = []
        for loaded in batches:
            counted.append(batches.damaged_samples)
            assert [one.key for one in loaded.damage] == (["sample00005"] if loaded.first == 3 else [])
            assert loaded.batch.emotion_mask.tolist() == [key != "sample00005" for key in loaded.batch.keys]
            assert bool((loaded.batch.images[2] == 0).all()) == (loaded.first == 3)
    assert counted == [0, 1, 1, 1]
    with taken_apart(tmp_path, bad=(5,), workers=workers, damaged="fail").once(batch=3) as batches:
        assert next(batches).first == 0
        with pytest.raises(UserError, match="sample00005"):
            next(batches)


def test_the_trainers_stream_waits_for_the_pictures_and_their_memory_waits_for_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    current = Current()

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_event(self, event: "Event") -> None:
            order.append(f"the trainer's waits for the one on {event.where}")

    class Event:
        where: torch.device | None = None

        def record(self, stream: Stream) -> None:
            self.where = stream.device
            order.append(f"recorded on {self.where}")

    def decode(rows: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[int, str]]:
        order.append(f"decoded on {current.index}, {current.stream.device}")
        return rows.permute(0, 3, 1, 2).clone(), {}

    trainers = Stream(torch.device("cuda", 3))  # of another thread
    monkeypatch.setattr(decoding, "decode_rows", decode)
    for name, value in {
        "Stream": Stream, "Event": Event, "current_stream": lambda _: trainers, "set_device": current.set_device,
        "set_stream": lambda stream: setattr(current, "stream", stream),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: order.append(f"kept: {stream is trainers}"))
    with taken_apart(tmp_path).once(batch=12) as batches:
        monkeypatch.setattr(loader, "device", lambda: torch.device("cuda", 3))
        next(batches)
    decoded = ["decoded on 3, cuda:3", "recorded on cuda:3"]
    assert order == [*decoded, "the trainer's waits for the one on cuda:3", "kept: True"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_page_locked_for_this_ranks_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    skip_elsewhere()  # what DataLoader asks of a GPU changes with torch
    current, pinned = Current(), []

    def pin(block: BatchBlock) -> BatchBlock:
        pinned.append(current.index)
        return block

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for name, function in {
        "cuda.is_available": lambda: True, "cuda.device_count": lambda: 8, "cuda.set_device": current.set_device,
        "accelerator.is_available": lambda: True, "accelerator.current_accelerator": lambda: torch.device("cuda"),
        "accelerator.current_device_index": lambda: current.index, "accelerator.set_device_index": current.set_device,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"torch.{name}", function)
    monkeypatch.setattr(BatchBlock, "pin_memory", pin)
    folder = made.shards(tmp_path / "shards")
    with Stream([ShardSet(str(folder), "train")], Reading(made.SIDE, workers=workers)).once(batch=32) as batches:
        assert len(list(batches)) == 3
    assert pinned == [3, 3, 3]


def test_a_run_on_the_cpu_of_a_gpu_machine_page_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked: list[bool] = []
    import webdataset

    real = webdataset.WebLoader
    monkeypatch.setattr(webdataset, "WebLoader", lambda *a, **k: asked.append(k["pin_memory"]) or real(*a, **k))
    next(Stream([ShardSet(str(made.shards(tmp_path / "shards")), "train")], Reading(made.SIDE)).once(batch=8))
    assert asked == [False]


@pytest.mark.parametrize(
    ("setting", "gpu", "chosen"),
    [("cpu", True, "cpu"), ("gpu", True, "gpu"), ("auto", True, "gpu"), ("auto", False, "cpu")],
)
def test_the_decoder_follows_config_and_machine(
    setting: str, gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "cuda", lambda: gpu)
    assert datasets.decoder_of(setting) == chosen


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "cuda", lambda: False)
    with pytest.raises(UserError, match=r"data\.decoder: gpu: torch sees no GPU"):
        datasets.decoder_of("gpu")
