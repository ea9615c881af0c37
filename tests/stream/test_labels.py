"""Laws of labels: they come from records, votes and pose tables, and belong to their samples."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.data.shards import Sample, write_shard
from hpe.stream import Balance, LabelSource, ShardSet, Stream
from tests.stream.tiny import Made, make, picture, pose_table, pose_tables, stream, taken


def test_angles_and_directions_are_joined_from_pose_tables(made: Made, tmp_path: Path) -> None:
    pose_tables(made, tmp_path / "pose")
    one = ShardSet(str(made.folder), pose=str(tmp_path / "pose"))
    batch = next(iter(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))).batch
    assert batch.angles_mask.tolist() == [False] + [True] * 6
    assert batch.angles[1:, 0].tolist() == [11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    assert batch.direction_mask.tolist() == [True, False] * 3 + [True]
    assert batch.direction[batch.direction_mask].tolist() == [0, 2, 4, 1]
    record = next(iter(stream(one, labels=LabelSource("record", "ours")).once(batch=7))).batch
    assert record.angles[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_dataset_without_pose_tables_keeps_its_own_angles_beside_one_that_has_them(
    made: Made, tmp_path: Path
) -> None:
    pose_tables(made, tmp_path / "pose")
    sets = ShardSet(str(made.folder), pose=str(tmp_path / "pose")), ShardSet(str(made.folder))
    labels = LabelSource("pose", "ours")
    yaws = [made_of.tolist() for made_of in _first_yaws(stream(*sets, labels=labels), len(made.keys), 7)]
    assert yaws == [[11.0, 12.0, 13.0, 14.0, 15.0, 16.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]


def _first_yaws(both: Stream, samples: int, rows: int) -> list[torch.Tensor]:
    """Of each of two datasets of so many samples: the yaws of the first rows that have them."""
    batches = [loaded.batch for loaded in both.once(batch=rows)]
    angles = torch.cat([batch.angles for batch in batches])
    mask = torch.cat([batch.angles_mask for batch in batches])
    return [angles[start : start + rows, 0][mask[start : start + rows]] for start in (0, samples)]


def test_a_pose_table_that_does_not_match_its_shard_is_refused(made: Made, tmp_path: Path) -> None:
    labels = LabelSource("pose")

    def opened(name: str) -> Stream:
        return stream(ShardSet(str(made.folder), pose=str(tmp_path / name)), labels=labels)

    pose_tables(made, tmp_path / "other")
    pose_table(tmp_path / "other", made.infos[0], made.keys[:7], **{"hpe.shard_sha256": "0" * 64})
    pose_table(tmp_path / "other", made.infos[4], made.keys[:3])
    with pytest.raises(UserError, match=r"sha256 0{12}(.|\n)*3 rows, but train-000004.tar has 9"):
        opened("other")
    pose_tables(made, tmp_path / "keys")
    pose_table(tmp_path / "keys", made.infos[0], made.keys[1:7] + made.keys[:1])
    with pytest.raises(UserError, match=r"its keys are not the shard's: row 0"):
        list(opened("keys").once(batch=8))
    pose_tables(made, tmp_path / "rule")
    with pytest.raises(UserError, match=r"no column direction_thesis; direction rules in it: ours"):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "rule")), labels=LabelSource("record", "thesis"))
    (tmp_path / "rule" / "train-000001.parquet").unlink()
    with pytest.raises(UserError, match=r"no pose table of 1 of 5 shards, such as train-000001.parquet"):
        opened("rule")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"yaw": ["x"] * 7}, "column yaw holds string, expected numbers"),
        ({"direction_ours": [[1.0]] * 7}, "column direction_ours holds list"),
        ({"direction_ours": [0.5] * 7}, "column direction_ours holds 0.5, expected whole numbers"),
        ({"key": [1] * 7}, "column key holds int64, expected text"),
        ({"yaw": [float("nan"), float("inf")] + [5.0] * 5, "direction_ours": [-3.0, 9.0, 1e30] + [1.0] * 4}, None),
    ],
)
def test_what_no_pose_table_says_is_masked_or_refused(
    made: Made, tmp_path: Path, changed: dict[str, list[Any]], told: str | None
) -> None:
    pose_tables(made, tmp_path / "pose")
    path = tmp_path / "pose" / "train-000000.parquet"
    table = pq.read_table(path)
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    one = ShardSet(str(made.folder / "train-000000.tar"), pose=str(tmp_path / "pose"))
    if told:
        with pytest.raises(UserError, match=rf"train-000000\.parquet: {told}"):
            stream(one, labels=LabelSource("pose", "ours"))
            list(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))
        return
    batch = next(iter(stream(one, labels=LabelSource("pose", "ours")).once(batch=7))).batch
    assert batch.angles_mask.tolist() == [False] * 2 + [True] * 5
    assert batch.direction_mask.tolist() == [False] * 3 + [True] * 4
    assert torch.isfinite(batch.angles).all()


def test_labels_are_counted_and_balanced_batches_follow(tmp_path: Path) -> None:
    made = make(tmp_path / "sorted", (40, 40), emotion=lambda n: 3 if n < 70 else 6)
    shards = stream(made.folder)
    assert shards.label_counts().emotion == (0, 0, 0, 70, 0, 0, 10, 0)
    batches = taken(shards.endless(seed=0, batch=100, balance=Balance()), 10)
    emotions = torch.cat([loaded.batch.emotion for loaded in batches])
    assert Counter(emotions.tolist()) == {3: 500, 6: 500}
    with pytest.raises(UserError, match="no sample of these shards has this label"):
        shards.endless(seed=0, batch=10, balance=Balance(by="direction"))


def test_votes_become_shares_and_the_cache_gives_the_same_labels_again(tmp_path: Path) -> None:
    record = Record(emotion=2, emotion_votes=(1, 0, 3, 0, 0, 0, 0, 0), valence=0.5, arousal=-0.5, direction=4)
    (tmp_path / "s").mkdir()
    write_shard(tmp_path / "s" / "a.tar", "train", [Sample("k", picture(9), "jpg", record)])
    for _ in range(2):
        batch = next(iter(stream(tmp_path / "s").once(batch=4))).batch
        assert batch.emotion_target.tolist() == [[0.25, 0, 0.75, 0, 0, 0, 0, 0]]
        assert batch.affect.tolist() == [[0.5, -0.5]]
        assert batch.direction.tolist() == [4]


def test_a_folder_without_pose_tables_is_told_also_where_no_label_comes_from_them(made: Made, tmp_path: Path) -> None:
    (tmp_path / "pose").mkdir()
    with pytest.raises(
        UserError, match=r"no pose table of 5 of 5 shards, such as train-000000\.parquet; run `hpe pose`"
    ):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "pose")))
    with pytest.raises(
        UserError, match=r"pose/net: no such folder; expected pose tables; `hpe pose SHARDS` writes them"
    ):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "pose" / "net")))
    pose_tables(made, tmp_path / "pose" / "net66")
    pose_tables(made, tmp_path / "pose" / "other")
    for named in ("pose/net", "pose/nte66", "net66"):  # misspelt, or without the folder above
        with pytest.raises(UserError, match=rf"{named}: no such folder; .* did you mean \S*/pose/net66\?$"):
            stream(ShardSet(str(made.folder), pose=str(tmp_path / named)))
    with pytest.raises(UserError, match=r"5 of 5 .*; did you mean \S*/pose/net66 or \S*/pose/other\?$"):
        stream(ShardSet(str(made.folder), pose=str(tmp_path / "pose")))


def test_a_shard_with_the_longest_name_of_a_disk_has_a_pose_table(tmp_path: Path) -> None:
    samples = [Sample(f"k{n}", picture(n), "jpg", Record(yaw=0.0)) for n in range(5)]
    long = tmp_path / ("x" * 251 + ".tar")
    info = write_shard(long, "train", samples)
    pose_table(tmp_path / "pose", info, [sample.key for sample in samples])
    one = ShardSet(str(long), pose=str(tmp_path / "pose"))
    batch = next(iter(stream(one, labels=LabelSource("pose")).once(batch=5))).batch
    assert batch.angles[1:, 0].tolist() == [11.0, 12.0, 13.0, 14.0]
