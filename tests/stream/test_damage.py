"""Laws of damaged shards: what cannot be read is named, counted and masked, and nothing else moves."""

import os
from pathlib import Path

import pytest
import torch

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shards import Sample, write_shard
from hpe.stream import ShardSet
from tests.stream.tiny import COUNTS, SAMPLES, Made, keys_of, picture, stream, taken


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_what_a_tar_without_a_manifest_has_lost_is_named(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("hpe.data.store._FIRST_PAUSE", 0.01)
    cut = tmp_path / "cut.tar"
    cut.write_bytes((made.folder / "train-000002.tar").read_bytes()[:7000])
    loader = stream(ShardSet(str(cut) if way == "file" else f"pipe:head -c 9999 {cut}")).once(batch=8)
    keys = keys_of(list(loader))
    assert 0 < len(keys) - 1 < COUNTS[2]
    assert keys[:-1] == made.keys[8 : 8 + len(keys) - 1]
    assert loader.damaged_samples == 1
    assert "truncated" in loader.named_damage[0].reason
    with pytest.raises(UserError, match=r"truncated.*damaged: skip"):
        list(stream(cut, damaged="fail").once(batch=8))
    cut.write_bytes(b"")
    with pytest.raises(UserError, match="no sample in these shards"):
        stream(cut)


def test_a_truncated_shard_is_named_counted_and_masked_and_the_order_stays(made: Made) -> None:
    whole = keys_of(taken(stream(made.folder).endless(seed=3, batch=6, window=2), 6))
    shard = made.folder / made.infos[2].name
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    loader = stream(made.folder).endless(seed=3, batch=6, window=2)
    batches = taken(loader, 6)
    lost = {f"{made.folder.name}-{n:04d}" for n in range(8, 20)}
    for key, place in zip(whole, range(36), strict=True):
        batch, row = batches[place // 6].batch, place % 6
        assert batch.keys[row] == key or (key in lost and batch.keys[row].startswith("row-"))
        if batch.keys[row].startswith("row-"):
            assert not batch.emotion_mask[row]
            assert not batch.angles_mask[row]
            assert not batch.images[row].any()
    assert loader.damaged_samples == sum(key.startswith("row-") for key in keys_of(batches)) > 0
    assert all(damage.shard == shard.name and "truncated" in damage.reason for damage in loader.named_damage)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_fatal_where_that_is_asked_for(made: Made, workers: int) -> None:
    shard = made.folder / made.infos[0].name
    data = bytearray(shard.read_bytes())
    scan = data.index(b"\xff\xda", 512)
    data[scan : scan + 12] = bytes(12)
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard.name}, {made.keys[0]}: damaged.*damaged: skip"):
        list(stream(made.folder, damaged="fail", workers=workers).once(batch=8))


@pytest.mark.parametrize("decoder", ["cpu", "gpu"])
def test_a_sample_with_the_key_of_a_damaged_one_stays_readable(tmp_path: Path, decoder: str) -> None:
    good = picture(80)
    scan = good.index(b"\xff\xda")
    bad = good[:scan] + bytes(12) + good[scan + 12 :]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, second in zip(folders, (good, bad), strict=True):
        folder.mkdir()
        samples = [Sample(f"{n:04d}", data, "jpg", Record(emotion=3)) for n, data in enumerate((good, second, good))]
        write_shard(folder / "train-000000.tar", "train", samples)
    (loaded,) = taken(stream(*(ShardSet(f"{folder}/*.tar") for folder in folders), decoder=decoder).once(batch=6), 1)
    assert loaded.batch.keys == ("0000", "0001", "0002") * 2
    assert loaded.readable == loaded.batch.emotion_mask.tolist() == [True] * 4 + [False, True]
    assert [str(one).split(":")[0] for one in loaded.damage] == ["train-000000.tar, 0001"]


def test_a_shard_that_is_replaced_gives_the_old_samples_and_one_written_over_is_named(made: Made) -> None:
    shard, other = (made.folder / made.infos[n].name for n in (2, 4))
    loader = stream(ShardSet(str(shard)), workers=0).once(batch=4)
    first = next(loader)
    shard.touch()
    other.rename(shard)
    assert keys_of([first, next(loader)]) == made.keys[8:16]
    assert not loader.damaged_samples
    loader = stream(ShardSet([str(shard)])).once(batch=4)
    assert keys_of([next(loader)]) == made.keys[25:29]
    shard.touch()
    assert keys_of([next(loader)]) == made.keys[29:33]
    assert not loader.damaged_samples
    shard.write_bytes((made.folder / made.infos[0].name).read_bytes())
    assert not next(loader).batch.emotion_mask.any()
    assert "written over" in loader.named_damage[0].reason


def test_a_shard_that_becomes_a_pipe_is_named_and_nobody_waits_for_it(made: Made) -> None:
    reading = stream(made.folder)
    (made.folder / made.infos[2].name).unlink()
    os.mkfifo(made.folder / made.infos[2].name)
    with reading.once(batch=7) as loader:
        assert sum(len(loaded.batch) for loaded in loader) == SAMPLES
    assert loader.damaged_samples == COUNTS[2]
    assert "not a regular file" in str(loader.named_damage[0])


def test_a_batch_of_more_shards_than_are_kept_open_has_the_pictures_of_its_own_samples(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor's number is given to the next shard as soon as it is closed: read too late, it gives another's."""
    monkeypatch.setattr("hpe.stream.open_files._MOST_OPEN", 2)
    loader = stream(made.folder).endless(seed=0, batch=3 * SAMPLES, window=5)
    batch = next(loader).batch
    numbers = torch.tensor([int(key.rpartition("-")[2]) for key in batch.keys])
    assert set(numbers.tolist()) == set(range(SAMPLES))
    assert torch.allclose(batch.images.float().mean((1, 2, 3)), 4.0 * (numbers % 60), atol=1.5)
    assert not loader.damaged_samples
    open_files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert sum(name.startswith(str(made.folder)) for name in open_files) <= 2
