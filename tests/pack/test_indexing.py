"""``hpe index``: the index that `hpe pack` writes, for shards that have none; `hpe verify` compares it with the tars"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.data.index import SCHEMA, open_index, write_index
from hpe.data.shards import Manifest
from hpe.pack import indexing
from hpe.pack.indexing import index
from hpe.pack.verify import verify
from tests import made


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return made.shards(tmp_path / "shards", counts=(9, 4, 7), val=5)


def told(folder: Path) -> str:
    return "\n".join(map(str, verify(folder)))


def relabelled(folder: Path) -> None:
    """An index with a label that its tar does not have, and a manifest that vouches for it."""
    found = open_index(folder / "val.arrow")
    (batch,) = found.batches
    labels = batch.column("emotion").to_pylist()
    labels[2] = (labels[2] + 1) % 8
    at = SCHEMA.get_field_index("emotion")
    size, sha256 = write_index(
        found.path, found.shards, [batch.set_column(at, SCHEMA[at], pa.array(labels, pa.int64()))]
    )
    manifest = Manifest.load(folder)
    train, val = manifest.indexes
    replace(manifest, indexes=(train, replace(val, bytes=size, sha256=sha256))).save(folder)


def test_the_indexes_of_all_splits_are_in_the_manifest_in_its_order(shards: Path) -> None:
    list(index(str(shards), 1))
    assert [(one.name, one.split) for one in Manifest.load(shards).indexes] == [
        ("train.arrow", "train"),
        ("val.arrow", "val"),
    ]
    assert [shard.name for shard in open_index(shards / "train.arrow").shards] == [
        path.name for path in Manifest.load(shards).paths(shards, "train")
    ]
    assert "index" not in told(shards)
    assert not (shards / ".index").exists()


def test_a_killed_job_leaves_the_old_state_and_goes_on_with_the_same_bytes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shards, tmp_path / "whole")
    list(index(str(tmp_path / "whole"), 1))
    before, save = (shards / "manifest.json").read_bytes(), indexing.save_part
    made_parts: list[str] = []

    def dies(folder: Path, tar: Path) -> None:
        if len(made_parts) == 2:
            raise KeyboardInterrupt
        made_parts.append(tar.name)
        save(folder, tar)

    monkeypatch.setattr(indexing, "save_part", dies)
    with pytest.raises(KeyboardInterrupt):
        list(index(str(shards), 1))
    assert (shards / "manifest.json").read_bytes() == before
    assert not list(shards.glob("*.arrow"))
    monkeypatch.setattr(indexing, "save_part", save)
    os.utime(shards / made_parts[0])  # younger than its part, which is then made again
    list(index(str(shards), 1))
    for name in ("train.arrow", "val.arrow", "manifest.json"):
        assert (shards / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_tar_that_is_not_the_manifests_is_refused_and_no_index_written(shards: Path) -> None:
    tar = shards / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar: 4 samples in .* its manifest lists 4 in .*hpe verify"):
        list(index(str(shards), 1))
    assert not list(shards.glob("*.arrow"))
    tar.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: cannot be read or written: No such file"):
        list(index(str(shards), 1))


def test_verify_names_the_samples_whose_labels_are_not_those_of_the_index(shards: Path) -> None:
    list(index(str(shards), 1))
    relabelled(shards)
    lie = "val-000000.tar: its index differs: run `hpe index`; samples that differ: sample10002"
    assert [line for line in told(shards).splitlines() if "index" in line] == [lie]
    data = (shards / "val.arrow").read_bytes()
    (shards / "val.arrow").write_bytes(data[:-100])
    assert "val.arrow: not an index of shards" in told(shards)
    (shards / "val.arrow").unlink()
    assert f"val.arrow: is missing; make it again with `hpe index {shards}`" in told(shards)
    list(index(str(shards), 1))
    assert "index" not in told(shards)


def test_tars_without_a_manifest_are_indexed_and_verified_with_what_is_lost(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    (shards / "cut.tar").write_bytes((shards / "val-000000.tar").read_bytes()[:3000])
    (shards / "packed.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    run = CliRunner().invoke(app, ["index", str(shards / "*-*.tar"), "--workers", "1"])
    assert run.exit_code == 1
    assert f"{shards}/index.arrow: " in run.output
    assert "cut.tar: truncated" in run.output
    assert "packed.tar: compressed with gzip, so that no sample can be read by itself: decompress it" in run.output
    faults = told(shards)
    assert "cut.tar: truncated" in faults
    assert "packed.tar: compressed with gzip" in faults
    assert "val-000000.tar" not in faults
    found = open_index(shards / "index.arrow")
    assert sum(shard.samples for shard in found.shards) - 25 == found.shards[0].samples
    (shards / "val-000000.tar").write_bytes((shards / "train-000001.tar").read_bytes())
    assert "val-000000.tar: its index has 5 samples: run `hpe index`" in told(shards)


def test_what_names_no_tars_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(UserError, match=r"names no tars.*a\.tar\.gz is compressed: decompress it first"):
        list(index(str(tmp_path)))
    with pytest.raises(UserError, match="names no tars"):
        list(index(str(tmp_path / "no-*.tar")))
    with pytest.raises(UserError, match="--workers 0: expected 1 or more"):
        list(index(str(tmp_path), 0))


def test_a_manifest_of_an_older_version_reads_and_one_with_a_strange_index_is_refused(shards: Path) -> None:
    raw = json.loads((shards / "manifest.json").read_text())
    del raw["indexes"]
    (shards / "manifest.json").write_text(json.dumps(raw))
    assert Manifest.load(shards).indexes == ()
    good = {"name": "train.arrow", "split": "train", "bytes": 9, "sha256": "0"}
    for change, message in (
        ({"name": "../train.arrow"}, r"indexes\[0\].name '../train.arrow' is not a plain file name"),
        ({"bytes": 0}, r"indexes\[0\].bytes is 0"),
        ({"sha256": None}, r"indexes\[0\].sha256 is a value"),
    ):
        (shards / "manifest.json").write_text(json.dumps(raw | {"indexes": [good | change]}))
        with pytest.raises(UserError, match=message):
            Manifest.load(shards)
