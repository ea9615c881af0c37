"""Opening a shard: whole, damaged, empty, or no file at all; and the local shards that a user names."""

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shard_files import ShardFile, matching, packed_shards, with_manifests
from hpe.data.shard_reader import open_shard, open_tar, utf8
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.stream import ShardSet
from hpe.stream.shard_sets import resolve


def samples(count: int) -> list[Sample]:
    return [Sample(f"k{n}", bytes([n]) * (700 * n + 1), "png", Record(emotion=n % 8)) for n in range(count)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Two shards to train and one to validate, each with another number of samples."""
    infos = [
        write_shard(tmp_path / f"{split}-00000{number}.tar", split, samples(count))
        for split, number, count in (("train", 0, 3), ("train", 1, 2), ("val", 0, 1))
    ]
    Manifest("test", "v", "none", True, "square-1.4@box", {}, tuple(infos)).save(tmp_path)
    return tmp_path


def test_a_path_and_a_descriptor_open_the_same_samples_which_are_tarfiles(packed: Path) -> None:
    path = packed / "train-000000.tar"
    with path.open("rb") as stream:
        by_descriptor = open_tar(stream.fileno())
    by_path = open_tar(path)
    with tarfile.open(path) as tar:
        expected = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]
    for shard in (by_path, by_descriptor):  # the descriptor is closed by now: the map outlives it
        found = {f"{key}.png": bytes(shard.image(row)) for row, key in enumerate(shard.keys)}
        found |= {f"{key}.json": shard.record_bytes(row) for row, key in enumerate(shard.keys)}
        assert found == expected
        assert [shard.sample(row) for row in range(len(shard))] == samples(3)
        assert shard.damage is None


def test_a_damaged_tar_opens_up_to_the_damage_and_is_no_whole_shard(packed: Path) -> None:
    path = packed / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:4000])
    shard = open_tar(path)
    assert "truncated" in str(shard.damage)
    assert [shard.sample(row) for row in range(len(shard))] == samples(3)[: len(shard)]
    assert len(shard) < 3
    with pytest.raises(ValueError, match="truncated"):
        open_shard(path)
    path.write_bytes(b"")
    assert (open_tar(path).damage, len(open_tar(path))) == ("empty file", 0)
    with pytest.raises(ValueError, match="empty file"):
        open_shard(path)


def with_header(path: Path, kind: bytes, data: bytes) -> Path:
    """A sample, and another one behind a member that names its picture."""
    with tarfile.open(path, "w") as tar:
        for name, member in (("a.png", b"a"), ("a.json", b"{}"), ("", data), ("b.png", b"b"), ("b.json", b"{}")):
            info = tarfile.TarInfo(name or "header")
            info.type, info.size = kind if not name else tarfile.REGTYPE, len(member)
            tar.addfile(info, io.BytesIO(member))
    return path


@pytest.mark.parametrize("data", [b"9" * 5000 + b" path=x\n", b"4 a\n" * 200_000, b"7" * (1 << 20), b"0 a=x\n", b"5"])
def test_a_header_of_nonsense_names_nothing_and_is_read_at_once(tmp_path: Path, data: bytes) -> None:
    start = time.process_time()
    shard = open_tar(with_header(tmp_path / "a.tar", tarfile.XHDTYPE, data))
    assert time.process_time() - start < 2
    assert (shard.keys, shard.damage) == (("a", "b"), None)


def test_a_name_longer_than_any_is_damage(tmp_path: Path) -> None:
    shard = open_tar(with_header(tmp_path / "a.tar", tarfile.GNUTYPE_LONGNAME, b"n" * ((1 << 20) + 1)))
    assert shard.keys == ("a",)
    assert shard.damage == "damaged tar header at byte 2048: a name of 1,048,577 bytes"


@pytest.mark.parametrize("keyword", [b"SCHILY.xattr.user.x", b"path"])
def test_attributes_longer_than_any_name_are_passed_over(tmp_path: Path, keyword: bytes) -> None:
    record = b"2097152 " + keyword + b"="
    shard = open_tar(with_header(tmp_path / "a.tar", tarfile.XHDTYPE, record.ljust((2 << 20) - 1, b"n") + b"\n"))
    assert (shard.keys, shard.damage) == (("a", "b"), None)


def test_any_text_can_be_told() -> None:
    assert [utf8(text) for text in ("M\udcfcller", "half \ud800", "Müller")] == ["M\ufffdller", "half \ufffd", "Müller"]


@pytest.mark.parametrize(
    ("kind", "before"), [(tarfile.XHDTYPE, b"12 mtime=12\n313 path="), (tarfile.GNUTYPE_LONGNAME, b"")]
)
def test_a_long_name_is_that_of_the_member_behind_it(tmp_path: Path, kind: bytes, before: bytes) -> None:
    shard = open_tar(with_header(tmp_path / "a.tar", kind, before + b"n" * 299 + b".png\n"[: 5 if before else 4]))
    assert shard.index.unpaired is not None
    assert f"such as {'n' * 299}, are no samples" in shard.index.unpaired


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")  # an open that waited for a writer would never return
    with pytest.raises(OSError, match="not a regular file"):
        open_tar(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match=r"cannot be read \(.*No such file"):
        open_shard(tmp_path / "no.tar")


def test_a_packed_folder_gives_its_shards_by_split_with_what_its_manifest_contains(packed: Path) -> None:
    shards = Manifest.load(packed).shards
    every = [ShardFile(packed / s.name, s.samples, s.sha256, "square-1.4@box", s.bytes) for s in shards]
    assert packed_shards(packed) == every
    assert packed_shards(packed, "val") == every[2:]
    assert with_manifests([packed / "val-000000.tar", packed / "other.tar"]) == [
        every[2],
        ShardFile(packed / "other.tar"),
    ]
    with pytest.raises(UserError, match="there is no split 'test'; expected one of train, val"):
        packed_shards(packed, "test")


def test_shards_without_val_do_not_lead_to_validating_on_train(tmp_path: Path) -> None:
    info = write_shard(tmp_path / "train-000000.tar", "train", samples(2))
    Manifest("made", "m", "none", True, "none", {}, (info,)).save(tmp_path)
    with pytest.raises(UserError) as refused:
        resolve([ShardSet(str(tmp_path), "val", key="data.val.0")])
    told = str(refused.value)
    assert told.startswith(
        f"data.val.0.split: {tmp_path}: there is no split 'val', only train; `hpe pack` draws val from "
    )
    assert "--val-share 0.1" in told
    assert "expected one of" not in told


def test_a_file_whose_name_looks_like_a_glob_is_that_file(packed: Path) -> None:
    assert matching(f"{packed}/train-*.tar") == [packed / "train-000000.tar", packed / "train-000001.tar"]
    assert matching(f"{packed}/test-*.tar") == []
    assert matching(str(packed / "val-000000.tar")) is None
    (packed / "train-[0].tar").touch()
    assert matching(str(packed / "train-[0].tar")) is None


def test_a_shard_is_opened_without_torch() -> None:
    """Commands that only look into shards would else wait for its import."""
    read = "import sys, hpe.data.shard_files, hpe.data.shard_reader, hpe.pack.verify; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout == "False\n"
