"""Laws of the index beside the shards: it says what the tars say, and where they differ no label is trained on."""

import os
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hpe.core.errors import UserError
from hpe.data.index import SCHEMA, open_index, write_index
from hpe.data.records import Record
from hpe.data.shards import IndexInfo, Manifest, Sample, write_shard
from hpe.pack.indexing import index
from hpe.stream import Balance, LabelSource, ShardSet, Stream
from tests.stream.tiny import COUNTS, SAMPLES, Made, keys_of, make, picture, pose_tables, same, stream, taken


@pytest.fixture
def indexed(made: Made) -> Made:
    list(index(str(made.folder), 1))
    return made


def _batches(shards: Stream) -> list[object]:
    return [loaded.batch for loaded in taken(shards.endless(seed=3, batch=6, window=2), 12)]


def _no_tar(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tar was opened")

    monkeypatch.setattr("hpe.stream.open_files.OpenFiles.open", refuse)
    monkeypatch.setattr("hpe.stream.shard_table.open_tar", refuse)


def test_with_an_index_the_batches_are_those_without(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "with")
    list(index(str(tmp_path / "with"), 1))
    assert Manifest.load(tmp_path / "with").indexes
    one, other = (_batches(stream(folder)) for folder in (made.folder, tmp_path / "with"))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))  # pyright: ignore[reportArgumentType]


def test_to_open_count_plan_balance_and_read_labels_needs_no_tar(
    indexed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = stream(indexed.folder)
    _no_tar(monkeypatch)
    shards = stream(indexed.folder)
    assert shards.samples == SAMPLES
    assert shards.label_counts().emotion == tuple(int(n) for n in np.bincount(np.arange(SAMPLES) % 8, minlength=8))
    assert shards.label_counts().angles == SAMPLES
    assert [key for _, key, _ in shards.records()] == indexed.keys
    shards.endless(seed=0, batch=8, balance=Balance())
    monkeypatch.undo()
    assert keys_of(list(shards.once(batch=8))) == keys_of(list(without.once(batch=8))) == indexed.keys


def test_pose_tables_are_joined_without_a_tar_also_from_the_cache(
    indexed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pose_tables(indexed, tmp_path / "pose")
    _no_tar(monkeypatch)
    one = ShardSet(str(indexed.folder), pose=str(tmp_path / "pose"))
    for _ in range(2):
        counts = stream(one, labels=LabelSource("pose", "ours")).label_counts()
        assert counts.angles == SAMPLES - len(COUNTS)  # the first pitch of each table is null
        assert sum(counts.direction) == sum(-(-count // 2) for count in COUNTS)
        monkeypatch.setattr("hpe.stream.shard_table.read_labels", None)


def _rewritten(made: Made, number: int, records: Callable[[int], Record]) -> Path:
    """A shard packed again with other records, as somebody does who forgets its index; the keys stay."""
    first = sum(COUNTS[:number])
    samples = [
        Sample(made.keys[n], picture(4 * (n % 60)), "jpg", records(n)) for n in range(first, first + COUNTS[number])
    ]
    path = made.folder / made.infos[number].name
    write_shard(path, "train", samples)
    return path


def test_a_tar_that_was_packed_again_gives_no_label_even_if_its_size_is_the_same(indexed: Made) -> None:
    before = (indexed.folder / indexed.infos[2].name).stat().st_size
    path = _rewritten(indexed, 2, lambda n: Record(emotion=(n + 1) % 8, yaw=float(n), pitch=1.0, roll=-2.0))
    assert path.stat().st_size == before
    loader = stream(indexed.folder).once(batch=SAMPLES)
    (loaded,) = list(loader)
    assert loader.damaged_samples == COUNTS[2]
    assert "changed after its index was made; make it again with `hpe index" in loader.named_damage[0].reason
    lost = range(sum(COUNTS[:2]), sum(COUNTS[:3]))
    assert not loaded.batch.emotion_mask[list(lost)].any()
    assert int(loaded.batch.emotion_mask.sum()) == SAMPLES - COUNTS[2]
    with pytest.raises(UserError, match="changed after its index was made"):
        list(stream(indexed.folder, damaged="fail").once(batch=SAMPLES))


def test_a_tar_with_a_new_date_and_the_same_bytes_is_read_as_before(indexed: Made) -> None:
    for info in indexed.infos:
        (indexed.folder / info.name).touch()
    loader = stream(indexed.folder).once(batch=8)
    assert keys_of(list(loader)) == indexed.keys
    assert not loader.damaged_samples


def test_a_truncated_tar_keeps_the_samples_before_its_end(indexed: Made) -> None:
    path = indexed.folder / indexed.infos[2].name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    loader = stream(indexed.folder).once(batch=SAMPLES)
    (loaded,) = list(loader)
    assert 0 < loader.damaged_samples < COUNTS[2]
    assert "truncated" in loader.named_damage[0].reason
    assert int(loaded.batch.emotion_mask.sum()) == SAMPLES - loader.damaged_samples


def test_an_index_that_lies_about_places_gives_no_picture_to_its_labels(indexed: Made) -> None:
    """Its sha256 and all its values are right; only the places of two pictures of one size are exchanged."""
    found = open_index(indexed.folder / "train.arrow")
    batches = list(found.batches)
    offsets = batches[4].column("image_offset").to_pylist()
    sizes = batches[4].column("image_bytes").to_pylist()
    one, two = next((a, b) for a in range(9) for b in range(a) if sizes[a] == sizes[b])
    offsets[one], offsets[two] = offsets[two], offsets[one]
    batches[4] = batches[4].set_column(3, SCHEMA[3], pa.array(offsets))
    size, sha256 = write_index(indexed.folder / "train.arrow", found.shards, batches)
    manifest = Manifest.load(indexed.folder)
    changed = (IndexInfo("train.arrow", "train", size, sha256),)
    Manifest(**{**vars(manifest), "indexes": changed}).save(indexed.folder)
    loader = stream(indexed.folder).once(batch=8)
    keys_of(list(loader))
    assert {damage.key for damage in loader.named_damage} == {indexed.keys[25 + one], indexed.keys[25 + two]}
    assert "not at its place" in loader.named_damage[0].reason


@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_damaged_index_is_one_message_with_the_way_out(indexed: Made, part: float) -> None:
    path = indexed.folder / "train.arrow"
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train\.arrow: .*make it again with `hpe index ") as told:
        stream(indexed.folder).label_counts()
    assert str(told.value).count("\n") == 0
    list(index(str(indexed.folder), 1))
    assert stream(indexed.folder).label_counts().samples == SAMPLES


def test_an_index_of_other_shards_is_refused_and_a_missing_one_is_done_without(indexed: Made, tmp_path: Path) -> None:
    path, manifest = indexed.folder / "train.arrow", Manifest.load(indexed.folder)
    found = open_index(path)
    size, sha256 = write_index(tmp_path / "fewer.arrow", found.shards[:4], found.batches[:4])
    shutil.copy(tmp_path / "fewer.arrow", path)
    changed = (IndexInfo("train.arrow", "train", size, sha256),)
    Manifest(**{**vars(manifest), "indexes": changed}).save(indexed.folder)
    with pytest.raises(UserError, match=r"does not list train-000004\.tar; make it again"):
        stream(indexed.folder).label_counts()
    path.unlink()
    assert stream(indexed.folder).label_counts().samples == SAMPLES


def _tar(path: Path, names: Sequence[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            path.with_name("member").write_bytes(picture(8) if name.lower().endswith("jpg") else b'{"emotion": 1}')
            tar.add(path.with_name("member"), name)
    return path


HAND_MADE = {
    "apart": [f"{n:02d}.jpg" for n in range(9)] + [f"{n:02d}.json" for n in range(9)],
    "half": [f"{n:02d}.{e}" for n in range(4) for e in ("jpg", "json")]
    + [f"{n:02d}.{e}" for e in ("jpg", "json") for n in range(4, 9)],
    "dot-slash": [
        "./08.json",
        *(f"./{n:02d}.{e}" for e in ("json", "jpg") for n in (3, 1, 2, 0, 7, 5, 6, 4)),
        "./08.jpg",
    ],
    "dots": [f"d/S01.cam0.{n:02d}.{e}" for n in range(9) for e in ("jpg", "json")],
    "capitals": [f"{n:02d}.{e}" for n in range(9) for e in ("JPG", "json")],
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_tars_that_people_make_by_hand_give_all_their_samples(tmp_path: Path, name: str) -> None:
    tar = _tar(tmp_path / "a.tar", HAND_MADE[name])
    loader = stream(tar).once(batch=4)
    assert len(set(keys_of(list(loader)))) == 9
    assert not loader.damaged_samples
    assert stream(tar).label_counts().emotion[1] == 9


def test_halves_of_samples_are_counted_with_the_likely_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.jpg", "a.json", "a.seg.png", "b.jpg", "b.cls", "c.jpg", "c.cls", "d.json", "._a.jpg"]
    assert stream(_tar(tmp_path / "a.tar", names)).samples == 1
    told = capsys.readouterr().err
    assert "a.tar: 2 pictures without a record (NAME.json) and 1 record without a picture" in told
    assert "2 of them have a .cls file instead, which hpe does not read" in told
    with pytest.raises(UserError, match=r"no sample in these shards: b\.tar: 1 picture without a record"):
        stream(_tar(tmp_path / "b.tar", ["b.jpg"]))
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(UserError, match=r"c\.tar: compressed with gzip.*decompress it"):
        stream(tmp_path / "c.tar")


def test_tars_without_a_manifest_have_an_index_too_and_one_added_later_is_read_itself(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made.folder / "manifest.json").unlink()
    late = made.folder / made.infos[4].name
    late.rename(made.folder / "late")
    (written,) = list(index(str(made.folder), 1))
    assert written.path.name == "index.arrow"
    (made.folder / "late").rename(late)
    assert keys_of(list(stream(made.folder).once(batch=8))) == made.keys
    late.unlink()
    _no_tar(monkeypatch)
    assert stream(made.folder).label_counts().samples == SAMPLES - COUNTS[4]
    shards = stream(ShardSet([str(made.folder / info.name) for info in made.infos[1:3]]))
    assert [key for _, key, _ in shards.records()] == made.keys[7:20]
    os.truncate(made.folder / "index.arrow", 900)
    with pytest.raises(UserError, match=r"index\.arrow: not an index.*or remove it"):
        stream(made.folder)


def _age(*files: Path) -> None:
    """Two months old, and not used since."""
    for file in files:
        os.utime(file, (before := time.time() - 60 * 86_400, before))


def test_tables_of_the_node_that_nobody_has_used_for_a_month_are_removed(made: Made, tmp_path: Path) -> None:
    other, tables = make(tmp_path / "other"), tmp_path / "cache" / "tables"

    def opened(one: Made) -> set[Path]:
        pose = tmp_path / f"pose-{one.folder.name}"
        pose_tables(one, pose)
        shards = ShardSet(str(one.folder), pose=pose.as_uri())  # a URL: its tables are copied
        stream(shards, labels=LabelSource("pose")).label_counts()
        return {path for path in tables.rglob("*.*") if path.suffix != ".lock"}

    mine = opened(made)
    theirs = opened(other) - mine
    (tables / ".left.table.part").touch()
    _age(*(path for path in tables.rglob("*.*") if path.is_file()))
    opened(made)  # uses its own, and looks for nothing: today that was done
    _age(tables / "searched")
    left = opened(made)
    assert not theirs & left
    assert tables / ".left.table.part" not in left
    # The copies of its pose tables and the labels of its shards have not been made again. The joined ones have: their
    # names depend on the dates of those copies.
    kept = Counter(path.suffix for path in mine & left if path.stat().st_mtime < time.time() - 86_400)
    assert kept == {".parquet": len(COUNTS), ".table": len(COUNTS)}
    assert sum(path.is_dir() for path in tables.iterdir()) == len(COUNTS)
    assert opened(other)
