"""Shards: tarfile and webdataset read what we write, the index is tarfile's, and damage is named."""

import collections
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shard_reader import index_tar, read_samples
from hpe.data.shards import Manifest, Sample, ShardInfo, write_shard


def made(count: int, first: int = 0) -> list[Sample]:
    kinds = ("jpg", "png", "webp")
    return [
        Sample(f"key{i}", bytes([i % 256]) * (i * 101 % 1500), kinds[i % 3], Record(emotion=i % 8, source=f"ä/{i}"))
        for i in range(first, first + count)
    ]


def manifest(*shards: ShardInfo) -> Manifest:
    return Manifest("made", "by a test", "none", True, "none", {"size": 32}, shards)


def test_tarfile_reads_every_member(tmp_path):
    samples = made(50)
    write_shard(tmp_path / "a.tar", "train", samples)
    with tarfile.open(tmp_path / "a.tar") as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        members = {name: stream.read() for name, stream in found.items() if stream}
    expected = {f"{s.key}.{s.extension}": s.image for s in samples}
    expected |= {f"{s.key}.json": s.record.to_json() for s in samples}
    assert members == expected


def test_webdataset_reads_every_sample(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    samples = made(30)
    write_shard(tmp_path / "a.tar", "train", samples)
    with (tmp_path / "a.tar").open("rb") as stream:  # webdataset's own opener leaves the file open
        found = list(group_by_keys(tar_file_expander([{"url": "a.tar", "stream": stream}])))
    assert [(s["__key__"], s["json"]) for s in found] == [(s.key, s.record.to_json()) for s in samples]


def test_same_samples_same_bytes_and_the_stated_sha256(tmp_path):
    one = write_shard(tmp_path / "a.tar", "train", made(20))
    two = write_shard(tmp_path / "b.tar", "train", iter(made(20)))
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    assert one.sha256 == two.sha256 == hashlib.sha256(data).hexdigest()
    assert (one.bytes, one.samples) == (len(data), 20)


def test_what_is_written_is_read(tmp_path):
    write_shard(tmp_path / "a.tar", "train", made(40))
    assert list(read_samples(tmp_path / "a.tar")) == made(40)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a\\b", "a\0b", "k" * 95, "é" * 48])
def test_keys_that_are_no_plain_names_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "a.tar", "train", [Sample(key, b"x", "jpg", Record())])
    assert not list(tmp_path.iterdir())


def test_a_key_twice_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="used twice"):
        write_shard(tmp_path / "a.tar", "train", made(3) + made(1))
    assert not list(tmp_path.iterdir())


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_index_is_where_tarfile_finds_the_members(tmp_path, kind):
    names = ["a.jpg", "a.json", "b.json", "b.png", "c.cls", "c.jpg", "d" * 90 + ".jpg", "d" * 90 + ".json"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["e" * 160 + ".jpg", "e" * 160 + ".json", "ü.jpg", "ü.json"]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name) * 7
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        offsets = {member.name: (member.offset_data, member.size) for member in tar}
    index = index_tar(memoryview(stream.getvalue()))
    assert index.damage is None
    expected = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    assert list(index.keys) == expected
    for key, extension, image, record in zip(
        index.keys, index.extensions, index.images.tolist(), index.records.tolist(), strict=True
    ):
        assert tuple(image) == offsets[f"{key}.{extension}"]
        assert tuple(record) == offsets[f"{key}.json"]


def test_a_truncated_tar_gives_the_samples_before_the_end_and_says_so(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, "train", made(20))
    path.write_bytes(path.read_bytes()[:9000])
    found: list[Sample] = []
    with pytest.raises(ValueError, match=r"a\.tar: truncated"):
        collections.deque(map(found.append, read_samples(path)), maxlen=0)
    assert 0 < len(found) < 20
    assert found == made(20)[: len(found)]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 20_000), spoil=st.binary(min_size=1, max_size=600))
@example(at=119, spoil=b"\0\0\0\0\0\x80")  # a size of 2**80 bytes
def test_no_bytes_crash_the_index(tmp_path_factory, at: int, spoil: bytes):
    path = tmp_path_factory.mktemp("x") / "a.tar"
    write_shard(path, "train", made(12))
    data = bytearray(path.read_bytes())
    data[at : at + len(spoil)] = spoil
    index = index_tar(memoryview(bytes(data)))
    assert len(index.keys) == len(index.images) == len(index.records)
    if len(index):
        ends = np.concatenate((index.images, index.records)).sum(1)
        assert ends.max() <= len(data)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    info = write_shard(tmp_path / "train-000000.tar", "train", made(5))
    saved = manifest(info)
    saved.save(tmp_path)
    assert Manifest.load(tmp_path) == saved
    assert saved.paths(tmp_path, "train") == [tmp_path / "train-000000.tar"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "hpe-shards/99"}', '{"format": "hpe-shards/1"}', "\xff"])
def test_what_is_no_manifest_is_one_message(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": "x"}, 'shards is text ("x"), expected a list'),
        ({"shards": []}, "shards is empty, expected at least one"),
        ({"shards": ["x"]}, 'shards[0] is text ("x"), expected an object'),
        ({"samples": -3}, "shards[0].samples is -3, expected 1 or more"),
        ({"samples": "12"}, 'shards[0].samples is text ("12"), expected a whole number'),
        ({"samples": 10**15}, "shards[0].samples is 1000000000000000, more than fit into its "),
        ({"samples": 10**15, "bytes": 10**19}, "shards[0].bytes is 10000000000000000000, expected at most "),
        ({"samples": True}, "shards[0].samples is true or false (true), expected a whole number"),
        ({"bytes": None}, "shards[0].bytes is a value (null), expected a whole number"),
        ({"colour": 1}, "shards[0].colour: no such field"),
        ({"notes": [1]}, "notes are not all text"),
        ({"image": 3}, "image is a whole number (3), expected an object"),
        ({"publishable": "no"}, 'publishable is text ("no"), expected true or false'),
    ],
)
def test_a_manifest_of_wrong_types_is_one_message_that_names_the_place(tmp_path, change, message):
    manifest(write_shard(tmp_path / "train-000000.tar", "train", made(5))).save(tmp_path)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    whole = {"shards", "notes", "image", "publishable"}
    (raw if change.keys() & whole else raw["shards"][0]).update(change)
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"not a manifest of `hpe pack`: " + re.escape(message)):
        Manifest.load(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    manifest(ShardInfo("../../etc/passwd", "train", 1, 1, "0")).save(tmp_path)
    with pytest.raises(UserError, match="plain file name"):
        Manifest.load(tmp_path)


def test_a_folder_without_manifest_is_one_message(tmp_path: Path):
    with pytest.raises(UserError, match="hpe pack"):
        Manifest.load(tmp_path)
