"""What names shards, and what does not."""

from pathlib import Path

import pytest

from hpe.core.errors import UserError
from hpe.data.shard_files import names_folder
from hpe.stream import ShardSet
from tests.stream.tiny import COUNTS, Made, stream


def test_a_folder_a_glob_a_brace_pattern_and_a_list_name_the_same_shards(made: Made) -> None:
    folder = str(made.folder)
    ways = [
        f"{folder}/train-*.tar",
        f"{folder}/train-{{000000..000004}}.tar",
        sorted(map(str, made.folder.glob("*.tar"))),
    ]
    for way in ways:
        assert stream(ShardSet(way)).counts == (COUNTS,)
    assert stream(ShardSet(folder, "train")).counts == (COUNTS,)


def test_what_names_no_shards_is_refused_with_a_way_out(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for named, words in (
        (ShardSet(str(tmp_path / "no")), "no such file or folder"),
        (ShardSet(str(tmp_path / "empty")), "names no shards; .* `hpe pack auto RAW OUT` makes from a raw dataset"),
        (ShardSet(str(made.folder), "val"), "only train; `hpe pack` draws val"),
        (ShardSet(str(made.folder), weight=0.0), "expected more than 0"),
    ):
        with pytest.raises(UserError, match=words):
            stream(named)


def test_a_mistake_in_a_config_names_the_setting(made: Made, tmp_path: Path) -> None:
    folder, key = str(made.folder), "data.train.0"
    for named, setting in (
        (ShardSet(str(tmp_path / "no"), key=key), "shards"),
        (ShardSet(folder, "tarin", key=key), "split"),
        (ShardSet(folder, "train", str(tmp_path / "no"), key=key), "pose"),
    ):
        with pytest.raises(UserError, match=rf"^data\.train\.0\.{setting}: "):
            stream(named)


@pytest.mark.parametrize(
    ("named", "has_splits"),
    [
        ("https://host/shards", True),
        ("s3://bucket/shards/", True),
        ("https://host/a.tar?sig=x", False),
        ("s3://bucket/train-*.tar", False),
        ("pipe:cat a", False),
        ("absent", False),
    ],
)
def test_a_folder_in_a_store_has_splits_as_a_local_one_has(named: str, has_splits: bool) -> None:
    assert names_folder(named) == has_splits
