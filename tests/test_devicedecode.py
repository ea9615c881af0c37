"""JPEGs that the training device decodes. There may be no GPU: the device is the CPU, the way is the same."""

import numpy as np
import pytest
import torch

from hpe import devicedecode, job
from hpe.decode import decode_into
from hpe.devicedecode import decode_rows, hand_on
from hpe.errors import UserError
from hpe.images import encode_jpeg
from hpe.stream import Reading, ShardSet, Stream
from tests import made

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
    monkeypatch.setattr(devicedecode, "_decode", no_nvjpeg)
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


@pytest.mark.parametrize(
    ("setting", "gpu", "chosen"),
    [("cpu", True, "cpu"), ("gpu", True, "gpu"), ("auto", True, "gpu"), ("auto", False, "cpu")],
)
def test_the_decoder_follows_config_and_machine(
    setting: str, gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "cuda", lambda: gpu)
    assert job.decoder_of(setting) == chosen


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "cuda", lambda: False)
    with pytest.raises(UserError, match=r"data\.decoder: gpu: torch sees no GPU"):
        job.decoder_of("gpu")
