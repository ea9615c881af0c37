"""``hpe.tables``: labels, index and pose tables as one Dataset, judged by tarfile, json, pandas and datasets."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hpe
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.directions import OURS, direction_rules
from hpe.data.pose_labels import read_labels
from hpe.data.pose_tables import Identity, ShardPoses, table_of_shard, write_table
from hpe.data.records import Record
from hpe.data.shard_files import packed_shards
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.pack.balance import Subset, balance
from hpe.pack.indexing import index
from hpe.pose.check import join_with_truth
from hpe.study.sets import add_true_directions
from tests import made, stated
from tests.served import served
from tests.test_readme import blocks

SAMPLES = {"train": 230, "val": 90}


@pytest.fixture(scope="module")
def without_tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stated.dataset(tmp_path_factory.mktemp("stated") / "faces", SAMPLES, per_shard=100)


def with_tars(folder: Path, estimators: tuple[str, ...] = ("first",)) -> Path:
    """Shards of 12, 7 and 8 samples, every fifth of the first two unlabelled, with pose tables but no index."""
    shards = made.shards(folder, counts=(12, 7), val=8, unlabelled=5)
    rules = direction_rules(OURS)
    for estimator in estimators:
        for shard in packed_shards(shards):
            keys = [row["key"] for row in of_tar(shard.path)]
            angles = np.random.default_rng(len(keys)).normal(0, 30, (len(keys), 3)).astype(np.float32)
            angles[::4] = np.nan
            identity = Identity(
                estimator=estimator, weights_sha256="none", crop="none", estimator_crop="none", precision="none",
                flips="none", rules=rules.definitions, shard=shard.path.name, shard_sha256=shard.sha256 or "",
            )  # fmt: skip
            poses = ShardPoses(
                tuple(keys), angles, np.full_like(angles, np.nan), rules.apply(angles.astype(float), angles * np.nan),
                dict.fromkeys(range(0, len(keys), 4), "no face"),
            )  # fmt: skip
            path = table_of_shard(shards / "pose" / estimator, shard.path.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(path, poses, identity)
    return shards


def of_tar(path: Path) -> list[dict]:
    """The json members of a tar, with their keys, in order."""
    with tarfile.open(path) as tar:
        jsons = [member for member in tar if member.name.endswith(".json")]
        return [{"key": m.name.removesuffix(".json")} | json.loads(tar.extractfile(m).read()) for m in jsons]  # pyright: ignore[reportOptionalMemberAccess]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_where_there_is_an_index_no_tar_is_opened(without_tars: Path) -> None:
    assert not list(without_tars.glob("*.tar"))
    faces = hpe.tables(without_tars, pose=stated.ESTIMATOR)
    indexed = pd.concat(datasets.Dataset.from_file(str(without_tars / f"{s}.arrow")).to_pandas() for s in SAMPLES)  # pyright: ignore[reportCallIssue, reportArgumentType]
    poses = pd.read_parquet(without_tars / "pose" / stated.ESTIMATOR)
    joined: Any = indexed.merge(poses, on="key", suffixes=("", "_hat"), validate="one_to_one")
    found = cast(Any, faces.to_pandas())
    for name in (
        "key",
        "split",
        "emotion",
        "subject",
        "image_offset",
        "record_bytes",
        "yaw_hat",
        "roll_sd",
        "direction_ours",
    ):
        pd.testing.assert_series_equal(found[name], joined[name], check_dtype=False, check_names=False)
    assert found["problem"].notna().tolist() == joined["yaw_hat"].isna().tolist()
    assert found["group_age"].tolist() == [json.loads(text)["age"] for text in indexed["groups"]]
    assert found["shard"].map(lambda path: Path(path).name).unique().tolist() == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
    ]  # fmt: skip
    assert found["row"].tolist() == [row for count in (100, 100, 30, 90) for row in range(count)]


def test_tars_without_an_index_give_what_their_index_gives_and_what_tarfile_reads(tmp_path: Path) -> None:
    shards = with_tars(tmp_path / "s")
    read = hpe.tables(shards, pose="first")
    list(index(str(shards), workers=1))
    assert list(shards.glob("*.arrow"))
    indexed = hpe.tables(shards, pose="first")
    assert read.features == indexed.features
    assert read[:] == indexed[:]
    records = [record for shard in packed_shards(shards) for record in of_tar(shard.path)]
    for name in ("key", "emotion", "direction", "valence", "arousal", *ANGLES, "subject", "source", "split"):
        assert list(read[name]) == [record.get(name) for record in records], name
    row = read[9]
    with Path(row["shard"]).open("rb") as tar:
        tar.seek(row["image_offset"])
        assert tar.read(2) == b"\xff\xd8", "the first bytes of a JPEG"
        tar.seek(row["record_offset"])
        assert json.loads(tar.read(row["record_bytes"]))["source"] == row["source"]


def test_columns_are_typed_and_a_missing_label_is_null(tmp_path: Path) -> None:
    faces = hpe.tables(with_tars(tmp_path / "s"), pose="first")
    assert faces.features["emotion"].names == list(EMOTIONS)
    for name in ("direction", "direction_ours", "direction_thesis_tree"):
        assert faces.features[name].names == list(DIRECTIONS)
    kinds = {name: getattr(feature, "dtype", None) for name, feature in faces.features.items()}
    assert {kinds[name] for name in ANGLES} == {"float64"}
    assert {kinds[f"{angle}_{what}"] for angle in ANGLES for what in ("hat", "sd")} == {"float32"}
    assert faces[0]["emotion"] is faces[0]["yaw"] is faces[0]["yaw_hat"] is faces[0]["direction_ours"] is None
    for name, values in cast(dict[str, list], faces.to_dict()).items():
        assert not isinstance(faces.features[name], datasets.ClassLabel) or -1 not in values, name
        assert not any(value != value for value in values), f"{name} has NaN"


def test_all_that_a_dataset_does_is_done_in_memory(tmp_path: Path) -> None:
    """In a process of its own with an empty home; nothing is asked of the hub, and nothing written."""
    shards = with_tars(tmp_path / "s")
    before, home = files(shards), tmp_path / "home"
    home.mkdir()
    script = f"""
import hpe, warnings
warnings.simplefilter("ignore")
faces = hpe.tables({str(shards)!r}, pose="first")
assert not faces.cache_files
happy = faces.filter(lambda face: face["emotion"] == 1)
assert set(happy["emotion"]) == {{1}}
assert list(faces.select([5, 2])["row"]) == [5, 2]
assert faces.sort("key")["key"][0] == min(faces["key"])
assert len(faces.to_pandas()) == 27
assert {{name: len(part) for name, part in faces.train_test_split(7, seed=0).items()}} == {{"train": 20, "test": 7}}
assert faces.map(lambda face: {{"wide": abs(face["yaw_hat"] or 0) > 30}}).features["wide"].dtype == "bool"
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert not files(home)
    assert files(shards) == before


def test_commands_that_need_no_dataset_do_not_wait_for_its_import() -> None:
    script = (
        "import sys, hpe.cli, hpe.data.tables, hpe.pack.verify, hpe.pack.balance, hpe.stream\n"
        "assert not {'datasets', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_same_files_have_the_same_fingerprint_and_others_another(tmp_path: Path) -> None:
    shards = with_tars(tmp_path / "s", ("first", "second"))
    again = [hpe.tables(shards, pose="first")._fingerprint for _ in range(2)]
    others = [
        hpe.tables(shards), hpe.tables(shards, split="val"), hpe.tables(shards, pose="second"),
        hpe.tables(shards, pose="first", direction="ours"),
    ]  # fmt: skip
    assert len({*again, *(other._fingerprint for other in others)}) == 5


def test_a_rule_of_the_pose_tables_becomes_the_direction(tmp_path: Path) -> None:
    shards = with_tars(tmp_path / "s")
    stated_ones, ours = hpe.tables(shards, pose="first"), hpe.tables(shards, pose="first", direction="ours")
    assert list(ours["direction"]) == list(stated_ones["direction_ours"]) != list(stated_ones["direction"])
    with pytest.raises(UserError, match="no column direction_mine; direction rules in it: thesis_tree, ours"):
        hpe.tables(shards, pose="first", direction="mine")
    with pytest.raises(UserError, match="'ours' is a rule of pose tables, and none are named"):
        hpe.tables(shards, direction="ours")


def test_several_folders_splits_and_estimators_make_one_table(tmp_path: Path) -> None:
    one, other = (with_tars(tmp_path / name, ("first", "second")) for name in ("one", "other"))
    faces = hpe.tables([one, other / "train-*.tar"], pose=["first", "second"], direction="ours")
    assert len(faces) == 27 + 19
    assert {"first_yaw_hat", "second_yaw_hat", "first_problem", "second_direction_ours"} <= set(faces.column_names)
    assert list(faces["direction"]) == list(faces["first_direction_ours"])
    both = [key for split in ("val", "train") for key in hpe.tables(one, split=split)["key"]]
    assert list(hpe.tables(one, split=["val", "train"])["key"]) == both
    assert hpe.tables(one, pose=one / "pose" / "first")[:] == hpe.tables(one, pose="first")[:]
    with pytest.raises(UserError, match=r"train-000000\.parquet: two shards of this name cannot share a pose table"):
        hpe.tables([one, other], pose=one / "pose" / "first")
    with pytest.raises(UserError, match="two folders named first would give columns of the same names"):
        hpe.tables(one, pose=["first", other / "pose" / "first"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pose": "frist"}, r"s/pose/frist: no such folder; expected pose tables; did you mean \S*s/pose/first\?$"),
        ({"split": "test"}, r"there is no split 'test'; expected one of train, val"),
        ({"shards": "nowhere"}, r"nowhere: no such shards"),
        ({"shards": []}, r"no shards are named"),
    ],
)
def test_what_is_not_there_is_one_message(tmp_path: Path, arguments: dict, message: str) -> None:
    shards = with_tars(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        hpe.tables(**{"shards": shards, **arguments})


def altered(table: pa.Table, **columns: list) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


UNFIT: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "rows": ("5 rows, but train-000000.tar has 12 samples", lambda table: table.slice(0, 5)),
    "keys": (
        "its keys are not the shard's: row 1 is 'other', expected 'sample00001'",
        lambda table: altered(table, key=["sample00000", "other", *table["key"].to_pylist()[2:]]),
    ),
    "shard": (
        "made for the shard val-000000.tar, not for train-000000.tar",
        lambda table: table.replace_schema_metadata(table.schema.metadata | {b"hpe.shard": b"val-000000.tar"}),
    ),
    "column": (
        "no column pitch; direction rules in it: thesis_tree, ours", lambda table: table.drop_columns(["pitch"])
    ),
    "type": ("column yaw holds string, expected numbers", lambda table: altered(table, yaw=["1"] * 12)),
    "twice": ("more than one column yaw", lambda table: table.append_column("yaw", table["yaw"])),
    "sha256": (
        "made for a shard with sha256 000000000000…, train-000000.tar has ",
        lambda table: table.replace_schema_metadata(table.schema.metadata | {b"hpe.shard_sha256": b"0" * 64}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", UNFIT)
def test_a_pose_table_that_does_not_fit_gives_one_message_everywhere(tmp_path: Path, damage: str) -> None:
    shards = with_tars(tmp_path / "s")
    folder = shards / "pose" / "first"
    path = folder / "train-000000.parquet"
    message, alter = UNFIT[damage]
    pq.write_table(alter(pq.read_table(path)), path)
    first = packed_shards(shards)[0]
    keys = [row["key"] for row in of_tar(first.path)]
    readers: list[Callable[[], object]] = [
        lambda: hpe.tables(shards, pose="first"),
        lambda: balance(shards, folder, tmp_path / "out", Subset("1/0/0")),
        lambda: join_with_truth([(first, path)]),
        lambda: hpe.Stream([hpe.ShardSet(str(shards), "train", pose=str(folder))], reading_poses()),
    ]
    # These two are told no sha256, or read footers alone.
    readers += [lambda: read_labels(path, keys, rule=None)] * (damage != "sha256")
    readers += [lambda: add_true_directions(shards, folder, tmp_path / "true")] * (damage not in ("keys", "type"))
    readers = [reader for at, reader in enumerate(readers) if not (at == 3 and damage in ("keys", "type"))]
    told = set()
    for reader in readers:
        with pytest.raises(UserError) as caught:
            reader()
        told |= set(str(caught.value).splitlines())
    assert len(told) == 1, told
    assert told.pop().startswith(f"{path}: {message}")


def reading_poses() -> hpe.Reading:
    from hpe.stream import LabelSource

    return hpe.Reading(32, labels=LabelSource("pose", "ours"))


def test_damage_is_counted_where_it_may_be_and_refused_where_not(tmp_path: Path) -> None:
    samples = [Sample(key, b"\xff\xd8", "jpg", Record(emotion=1, source=f"{key}.jpg")) for key in "abc"]
    info = write_shard(tmp_path / "train-000000.tar", "train", samples)
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"emotion":1', b'"emotion":9', 1))
    Manifest("made", "m", "none", True, "none", {}, (info,)).save(tmp_path)
    faces = hpe.tables(tmp_path)
    assert list(faces["emotion"]) == [None, 1, 1]
    assert list(faces["damage"]) == ["damaged record: emotion 9 is not 0..7", None, None]
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-000000\.tar: truncated.*see `hpe verify"):
        hpe.tables(tmp_path)


def test_an_index_of_another_tar_is_refused(tmp_path: Path) -> None:
    shards = with_tars(tmp_path / "s")
    list(index(str(shards), workers=1))
    other = (shards / "val.arrow").read_bytes()
    (shards / "train.arrow").write_bytes(other)
    with pytest.raises(UserError, match=r"train\.arrow: sha256 is .*\(manifest\); make it again with `hpe index"):
        hpe.tables(shards)


def test_a_balanced_subset_is_planned_from_labels_alone(without_tars: Path, tmp_path: Path) -> None:
    """Which samples are taken is known before the first tar is opened, which here does not exist."""
    poses = without_tars / "pose" / stated.ESTIMATOR
    with pytest.raises(UserError, match="too few samples"):
        balance(without_tars, poses, tmp_path / "out", Subset("200"))
    with pytest.raises(UserError, match=r"\.tar: cannot be read"):
        balance(without_tars, poses, tmp_path / "out", Subset("1/1/0", directions=[0], emotions=[0, 1]))


def test_the_snippets_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with_tars(tmp_path / "shards" / "ferplus", ("lwpose66",))
    list(index(str(tmp_path / "shards" / "ferplus"), 1))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    snippets = blocks(text.partition("\n## Labels and pose tables as one Dataset\n")[2].partition("\n## ")[0], "python")
    assert snippets
    names: dict[str, object] = {"__name__": "docs"}
    for snippet in snippets:
        exec(compile(snippet, "docs/formats.md", "exec"), names)
    assert capsys.readouterr().out


def test_of_a_remote_folder_only_manifest_index_and_pose_tables_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    folder = with_tars(tmp_path / "shards")
    list(index(str(folder)))
    here = hpe.tables(folder, pose="first", direction="ours")
    with served(folder) as server:
        for pose in ("first", f"{server.url}/pose/first", folder / "pose" / "first"):
            there = hpe.tables(server.url, pose=pose, direction="ours")
            assert there.remove_columns("shard").to_list() == here.remove_columns("shard").to_list()
            assert set(there["shard"]) == {f"{server.url}/{shard.path.name}" for shard in packed_shards(folder)}
        assert len(hpe.tables(server.url, split="val")) == 8
        assert not server.tars
        with pytest.raises(UserError, match="second: no table for 3 of 3 shards"):
            hpe.tables(server.url, pose="second")
        with pytest.raises(UserError, match="expected the URL of the folder that `hpe pack` wrote"):
            hpe.tables(f"{server.url}/train-000000.tar")
        (folder / "train.arrow").write_bytes(b"no index")
        monkeypatch.setenv("HPE_CACHE", str(tmp_path / "other"))
        with pytest.raises(UserError, match=r"train.arrow: .*sha256 is .*make it again with `hpe index"):
            hpe.tables(server.url)


def test_a_remote_folder_without_an_index_is_read_by_its_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    folder = with_tars(tmp_path / "shards")
    here = hpe.tables(folder)
    with served(folder) as server:
        there = hpe.tables(server.url)
        assert len(server.tars) == 3
    assert there.remove_columns("shard").to_list() == here.remove_columns("shard").to_list()
