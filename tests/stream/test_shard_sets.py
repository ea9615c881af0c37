"""What names shards, and what does not."""

from pathlib import Path

import pytest

from hpe.core.errors import UserError
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
        (ShardSet(str(tmp_path / "empty")), "names no shards"),
        (ShardSet(str(made.folder), "val"), "expected one of train"),
        (ShardSet(str(made.folder), weight=0.0), "expected more than 0"),
    ):
        with pytest.raises(UserError, match=words):
            stream(named)
