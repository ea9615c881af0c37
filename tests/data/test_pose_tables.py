"""Pose tables: what is written is read back, and what is not a pose table is one message that names the file."""

from pathlib import Path

import numpy as np
import pytest

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.data.pose_tables import Identity, ShardPoses, read_metadata, read_pose_table, table_of_shard, write_table

KEYS = ("a", "b", "c")
IDENTITY = Identity(
    estimator="e", weights_sha256="aa", crop="none", estimator_crop="none", precision="fp32", flips="none",
    rules={"ours": "1"}, shard="test-000000.tar", shard_sha256="bb",
)  # fmt: skip


def written(folder: Path, keys: tuple[str, ...] = KEYS) -> Path:
    angles = np.array([[1, 2, 3], [4, 5, 6], [np.nan] * 3], np.float32)
    poses = ShardPoses(keys, angles, np.full((3, 3), np.nan), {"ours": np.array([0, 4, -1], np.int8)}, {2: "no face"})
    path = table_of_shard(folder, IDENTITY.shard)
    write_table(path, poses, IDENTITY)
    return path


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert path == tmp_path / "test-000000.parquet"
    table = read_pose_table(path)
    assert table["key"].to_pylist() == list(KEYS)
    assert [table[angle].to_pylist() for angle in ANGLES] == [[1, 4, None], [2, 5, None], [3, 6, None]]
    assert table["direction_ours"].to_pylist() == [0, 4, None]
    footer = read_metadata(path)
    assert (footer.rows, footer.rules, footer.entries["hpe.shard_sha256"]) == (3, ("ours",), "bb")


def test_keys_that_are_not_utf8_are_those_of_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, ("M\udcfcller", "b", "c"))
    assert read_pose_table(path)["key"].to_pylist() == ["M\ufffdller", "b", "c"]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    table = read_pose_table(written(tmp_path), ["problem", "key"])
    assert sorted(table.column_names) == ["key", "problem"]
    assert table["problem"].to_pylist() == [None, None, "no face"]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (None, None, "no pose table of this shard; run `hpe pose`"),
        (b"PAR1 no more", None, "not a pose table: .*; remove it and run `hpe pose` again"),
        (b"", ["key"], "not a pose table: .*; remove it and run `hpe pose` again"),
        ("whole", ["key", "direction_thesis"], "no column direction_thesis; remove it and run `hpe pose` again"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(
    tmp_path: Path, content: bytes | str | None, columns: list[str] | None, message: str
) -> None:
    path = written(tmp_path)
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"test-000000\.parquet: {message}"):
        read_pose_table(path, columns)
    if content != "whole":
        with pytest.raises(UserError, match=rf"test-000000\.parquet: {message}"):
            read_metadata(path)
