"""Verification: what is whole passes, and every damage is named with its shard and its samples."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shard_reader import index_tar
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.pack.verify import verify


@pytest.fixture
def shards(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    infos = []
    for part in range(3):
        samples = []
        for i in range(8):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(stream, "JPEG")
            samples.append(Sample(f"k{part}{i}", stream.getvalue(), "jpg", Record(emotion=i)))
        infos.append(write_shard(tmp_path / f"train-00000{part}.tar", "train", samples))
    Manifest("made", "", "none", True, "none", {}, tuple(infos), {"samples": 24}).save(tmp_path)
    return tmp_path


def tiny() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    return stream.getvalue()


def told(folder: Path) -> str:
    return "\n".join(map(str, verify(folder)))


def spoil(path: Path, at: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def test_whole_shards_pass(shards):
    assert verify(shards) == []


def test_a_single_flipped_bit_is_found(shards):
    path = shards / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert "train-000001.tar: sha256 differs" in told(shards)
    assert "train-000000" not in told(shards)


def test_a_changed_label_is_found_though_every_sample_can_be_read(shards):
    path = shards / "train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b'"emotion":5', b'"emotion":4'))
    found = told(shards)
    assert "train-000001.tar: sha256 differs" in found
    assert "it is unknown which of them changed" in found


def test_records_of_another_split_and_a_manifest_that_contradicts_itself_are_named(shards):
    manifest = Manifest.load(shards)
    first, *others = manifest.shards
    record = Record(emotion=1, split="test")
    leaked = write_shard(shards / first.name, "train", [Sample("k0", tiny(), "jpg", record)])
    counts = {"samples": 17, "splits": {"train": 16, "test": 1}}
    replace(manifest, shards=(leaked, *others), counts=counts, crop="banana").save(shards)
    found = told(shards)
    assert "k0 (split 'test' in a shard of 'train')" in found
    counted = "states {'train': 16, 'test': 1} samples in its splits; its shards have {'train': 17}"
    assert f"manifest.json: {counted}" in found
    assert "manifest.json: crop rule 'banana'" in found
    longer = replace(others[0], bytes=others[0].bytes + 512)
    replace(manifest, shards=(leaked, longer), counts={}).save(shards)
    assert f"{longer.name}: is {longer.bytes - 512:,} bytes long; expected {longer.bytes:,}" in told(shards)


@pytest.mark.parametrize("counted", [{"train": 24, "val": 0}, {"train": "24"}, [24], None])
def test_a_split_whose_pictures_were_all_refused_is_sound_and_counts_that_are_no_numbers_are_not(shards, counted):
    replace(Manifest.load(shards), counts={"samples": 24, "splits": counted}).save(shards)
    sound = counted == {"train": 24, "val": 0}
    assert told(shards) == (
        "" if sound else f"manifest.json: states {counted!r} samples in its splits; its shards have {{'train': 24}}"
    )


def test_a_damaged_picture_is_named(shards):
    path = shards / "train-000002.tar"
    index = index_tar(memoryview(path.read_bytes()))
    start = int(index.images[3, 0])
    spoil(path, start, b"not a picture at all")
    assert "1 sample cannot be read: k23" in told(shards)


def test_a_damaged_record_is_named(shards):
    path = shards / "train-000000.tar"
    index = index_tar(memoryview(path.read_bytes()))
    spoil(path, int(index.records[5, 0]), b"\xff")
    assert "cannot be read: k05" in told(shards)


def test_a_truncated_shard_says_where_and_how_many_are_left(shards):
    path = shards / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in told(shards)
    assert "expected 8" in told(shards)


def test_empty_missing_and_foreign_shards_are_named(shards):
    (shards / "train-000000.tar").write_bytes(b"")
    (shards / "train-000001.tar").unlink()
    (shards / "train-000009.tar").write_bytes(b"x")
    assert "train-000000.tar: is empty" in told(shards)
    assert "train-000001.tar: is missing, with its 8 samples" in told(shards)
    assert "train-000009.tar: is not in manifest.json" in told(shards)


def test_pictures_of_another_size_than_the_manifest_says_are_named(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["image"] = {"size": 96, "colour": "rgb"}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    told = verify(shards)
    assert {damage.what for damage in told} == {"pictures are not size 96, colour rgb as in the manifest"}
    assert len(told) == len(manifest["shards"])


def test_the_same_key_in_two_shards_is_named(shards):
    first = Manifest.load(shards).shards[0]
    (shards / "copy.tar").write_bytes((shards / first.name).read_bytes())
    manifest = Manifest.load(shards)
    copy = type(first)("copy.tar", "train", first.samples, first.bytes, first.sha256)
    Manifest("made", "", "none", True, "none", {}, (*manifest.shards, copy)).save(shards)
    assert "more than one shard: k00, k01" in told(shards)


def test_exit_code_1_names_the_damage(shards):
    from hpe.cli import app

    assert CliRunner().invoke(app, ["verify", str(shards)]).exit_code == 0
    (shards / "train-000000.tar").unlink()
    result = CliRunner().invoke(app, ["verify", str(shards)])
    assert result.exit_code == 1
    assert "train-000000.tar" in result.output


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b'{"emotion":99}', "emotion 99 is not 0..7"),
        (b'{"box":[null,1,2,3]}', "box"),
        (b'{"landmarks":[{},{}]}', "landmarks"),
        (b'{"yaw":' + b"9" * 400 + b"}", "yaw"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_an_impossible_record_is_named_though_its_shard_is_whole(shards, monkeypatch, text, what):
    manifest = Manifest.load(shards)
    monkeypatch.setattr(Record, "to_json", lambda self: text)
    sample = Sample("odd", b"no picture", "jpg", Record())
    info = write_shard(shards / "train-000000.tar", "train", [sample])
    replace(manifest, shards=(info, *manifest.shards[1:]), counts={}).save(shards)
    assert "sha256" not in told(shards)
    assert "impossible values in 1 record: odd (" in told(shards)
    assert what in told(shards)


def test_a_fifo_in_place_of_a_shard_is_named(shards):
    (shards / "train-000001.tar").unlink()
    os.mkfifo(shards / "train-000001.tar")
    assert "train-000001.tar: cannot be read: train-000001.tar: not a regular file" in told(shards)


@pytest.mark.parametrize("name", ["\ud800.tar", "..", "a/b.tar", ""])
def test_a_shards_name_that_is_none_is_one_message(shards, name):
    raw = json.loads((shards / "manifest.json").read_text())
    raw["shards"][0]["name"] = name
    (shards / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="not a plain file name"):
        verify(shards)
