"""The index beside the shards states what the tars state; whatever else stands there is refused."""

import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

import hpe
from hpe.data import index as format_
from hpe.data.index import SCHEMA, check_index, index_shard, open_index, rows_of, write_index
from hpe.data.records import Record
from hpe.data.shards import Sample, write_shard
from hpe.pack.indexing import index as make_index
from hpe.pack.verify import verify

FULL = Record(
    emotion=3, emotion_votes=(0.0, 1.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0), valence=0.1, arousal=-0.3, yaw=1 / 3, pitch=2.5,
    roll=-7.0, direction=4, box=(1.0, 2.0, 30.5, 40.0), subject="zoë", source="a/ü.jpg", split="train",
    groups={"age": "adult"},
)  # fmt: skip
HAPPY = Record(emotion=1)
RECORDS = (FULL, Record(), Record(emotion=7, split="train"), Record(yaw=-972.0, pitch=0.0, roll=0.0))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "train-000000.tar"
    write_shard(path, "train", [Sample(f"k{n}", bytes(50 * n + 9), "png", one) for n, one in enumerate(RECORDS)])
    return path


def written(tars: list[Path], path: Path) -> Path:
    entries, batches = zip(*map(index_shard, tars), strict=True)
    write_index(path, entries, batches)
    return path


def test_the_records_of_an_index_are_those_of_the_tar_to_the_last_bit(tar: Path, tmp_path: Path) -> None:
    index = open_index(written([tar], tmp_path / "i.arrow"))
    assert [row for batch in index.batches for row in rows_of(batch)] == [
        (f"k{n}", one) for n, one in enumerate(RECORDS)
    ]
    data = tar.read_bytes()
    for row in index.table.to_pylist():
        assert json.loads(data[row["record_offset"] :][: row["record_bytes"]]).get("emotion") == row["emotion"]
        assert data[row["image_offset"] :][: row["image_bytes"]] == bytes(50 * int(row["key"][1:]) + 9)


def test_the_same_tars_give_the_same_bytes_and_every_batch_is_a_tar(tar: Path, tmp_path: Path) -> None:
    other = tmp_path / "train-000001.tar"
    write_shard(other, "train", [Sample("x", b"123", "jpg", Record(emotion=1))])
    one, two = (written([tar, other], tmp_path / name) for name in ("a.arrow", "b.arrow"))
    assert one.read_bytes() == two.read_bytes()
    index = open_index(one)
    assert [(shard.name, shard.samples, shard.bytes) for shard in index.shards] == [
        (tar.name, 4, tar.stat().st_size),
        (other.name, 1, other.stat().st_size),
    ]
    assert index.table.column("shard").to_pylist() == [0, 0, 0, 0, 1]


def test_datasets_opens_an_index_memory_mapped_with_the_names_of_the_classes(tar: Path, tmp_path: Path) -> None:
    import datasets

    path = str(written([tar], tmp_path / "i.arrow"))
    found = datasets.Dataset.from_file(path)
    assert found.features["emotion"].int2str(3) == "surprise"
    assert found.features["direction"].names[4] == "down"
    assert found["emotion_votes"][0] == list(FULL.emotion_votes or ())
    assert found.cache_files == [{"filename": path}]  # it is mapped there, not copied
    assert found.data.schema.equals(SCHEMA)


def test_the_docs_show_a_stranger_how_to_read_an_index_with_pyarrow_alone(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(import json, pyarrow.*?)```", page, re.DOTALL)
    folder = tmp_path / "shards" / "ferplus"
    folder.mkdir(parents=True)
    tar = folder / "train-000000.tar"
    write_shard(tar, "train", [Sample("a", b"1", "jpg", FULL), Sample("b", b"22", "png", HAPPY)])
    written([tar], folder / "train.arrow")
    shown += "\nimport sys; print(image, 'hpe' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "b'22' False\n", done.stderr
    assert all(f"`{name}`" in page for name in SCHEMA.names)


def test_a_damaged_record_is_a_row_without_labels_and_the_end_of_a_tar_is_named(tar: Path, tmp_path: Path) -> None:
    data = tar.read_bytes().replace(b'"emotion":7', b'"emotion":9')
    tar.write_bytes(data[: data.rindex(b"k3.json") - 100])
    index = open_index(written([tar], tmp_path / "i.arrow"))
    assert [record for _, record in rows_of(index.batches[0])] == [FULL, Record(), None]
    assert "emotion 9 is not 0..7" in index.table.column("problem")[2].as_py()
    assert "truncated" in str(index.shards[0].damage)
    check_index(index.path)


def test_names_and_texts_that_are_not_unicode_are_in_an_index_too(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.tar")
    record = b'{"emotion":3,"split":"\\ud800"}'
    members = {"M\udcfcller.jpg": b"", "M\udcfcller.json": b'{"emotion":3}', "\udcfc.jpg": b"", "\udcfc.\udcfc": b""}
    try:
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            for name, data in (members | {"a.jpg": b"", "a.json": record}).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    except OSError:
        pytest.skip("this file system has no such names")
    index = open_index(written([path], tmp_path / "index.arrow"))
    (entry,) = index.shards
    assert entry.name == path.name
    assert str(entry.unpaired).startswith("1 picture without a record (NAME.json), such as \ufffd, are no samples")
    assert index.table["key"].to_pylist() == ["M\ufffdller", "a"]
    assert index.table["problem"].to_pylist() == [None, "damaged record: split is not Unicode text"]
    faces = hpe.tables(str(path))
    assert faces["key"] == ["M\ufffdller", "a"]
    assert faces["shard"][0] == f"{tmp_path}/caf\ufffd.tar"
    (indexed,) = make_index(str(path), workers=1)
    told = "\n".join(map(str, [indexed, *verify(tmp_path)]))
    assert "caf\ufffd.tar: 2 samples cannot be read: M\ufffdller, a" in told
    assert told.encode()


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """An index with a bit turned, a number made huge or negative, a part overwritten, or without its end."""
    at, kept = rng.randrange(len(data)), bytearray(data)
    match rng.randrange(4):
        case 0:
            kept[at] ^= 1 << rng.randrange(8)
        case 1:
            kept[at : at + 8] = rng.choice([b"\xff" * 8, (1 << 62).to_bytes(8, "little"), bytes(8)])
        case 2:
            kept[at : at + 64] = rng.choice([b"\xff", b"\0", b"\x80"]) * 64
        case _:
            return bytes(kept[:at])
    return bytes(kept)


def test_no_bytes_lead_a_reader_out_of_the_index_or_the_tar(tar: Path, tmp_path: Path) -> None:
    """In a process of its own: what Arrow reads outside of a file ends the process."""
    written([tar], tmp_path / "i.arrow")
    done = subprocess.run([sys.executable, "-m", __name__, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, passed = map(int, done.stdout.split())
    assert refused > 300
    assert passed > 30  # what lies between the columns is not looked at


def try_spoiled(folder: Path) -> None:
    """Spoil the index of a folder often; each is refused, or all its rows are possible ones."""
    data, rng, refused, passed = (folder / "i.arrow").read_bytes(), random.Random(0), 0, 0
    size = (folder / "train-000000.tar").stat().st_size
    for _ in range(600):
        path = folder / "spoiled.arrow"
        path.write_bytes(spoiled(data, rng))
        try:
            check_index(path)
        except ValueError as error:
            refused += str(error).startswith("not an index of shards: ")
            continue
        for batch in open_index(path).batches:
            for row in batch.to_pylist():
                assert 512 <= row["image_offset"] <= row["image_offset"] + row["image_bytes"] <= size
            assert not any(record and record.problems() for _, record in rows_of(batch))
        passed += 1
    print(refused, passed)


def test_other_columns_and_other_types_are_refused_by_name(tar: Path, tmp_path: Path) -> None:
    index = open_index(written([tar], tmp_path / "i.arrow"))
    metadata = pa.ipc.open_stream(pa.memory_map(str(index.path))).schema.metadata
    path = tmp_path / "other.arrow"
    changed = {
        "emotion": pa.array([3.0] * 4),
        "key": pa.array(["k"] * 4).dictionary_encode(),
        "yaw": pa.array([[1.0]] * 4),
    }
    for name, column in changed.items():
        table = index.table.set_column(SCHEMA.get_field_index(name), name, column).replace_schema_metadata(metadata)
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        with pytest.raises(ValueError, match=f"its columns are not those of hpe-index/1: .*{name}"):
            open_index(path)
    pa.ipc.new_stream(str(path), SCHEMA).close()
    with pytest.raises(ValueError, match=r"its schema has no metadata 'hpe\.index'"):
        open_index(path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("image_offset", -1, "a image lies outside the tar"),
        ("image_bytes", 1 << 62, "a image lies outside the tar"),
        ("record_offset", (1 << 63) - 1, "a record lies outside the tar"),
        ("emotion", 8, "emotion is not within 0..7"),
        ("valence", float("nan"), "valence is not within -1..1"),
        ("emotion_votes", [1.0], "emotion_votes is not 8 possible numbers"),
        ("box", [0.0, 0.0, float("inf"), 1.0], "box is not 4 possible numbers"),
        ("extension", "../x", "is no extension of a picture"),
        ("groups", "[" * 3000, "not an index of shards"),
        ("key", None, "key is null"),
    ],
)
def test_impossible_values_are_refused_by_shard_and_column(
    tar: Path, tmp_path: Path, name: str, value: object, told: str
) -> None:
    entry, batch = index_shard(tar)
    column = batch.column(name).to_pylist()
    column[2] = value
    at = SCHEMA.get_field_index(name)
    changed = batch.set_column(at, SCHEMA[at], pa.array(column, SCHEMA[at].type))
    write_index(tmp_path / "i.arrow", [entry], [changed])
    with pytest.raises(ValueError, match=told):
        check_index(tmp_path / "i.arrow")


def test_a_list_of_shards_that_is_none_is_refused(tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written([tar], tmp_path / "i.arrow")
    data = path.read_bytes()
    for old, new in (
        (b'"samples": 4', b'"samples": 5'),
        (b'"name": "train-000000.tar"', b'"name": "../../../a/b.tar"'),
    ):
        path.write_bytes(data.replace(old, new.ljust(len(old))))
        with pytest.raises(ValueError, match=r"lists 5 samples|is no shard"):
            open_index(path)
    monkeypatch.setattr(format_, "FORMAT", "hpe-index/9")
    written([tar], path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'hpe-index/9', expected 'hpe-index/1'"):
        open_index(path)


if __name__ == "__main__":
    try_spoiled(Path(sys.argv[1]))
