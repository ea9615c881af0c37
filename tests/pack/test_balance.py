"""Balance: as many of every direction and emotion, each from its own split, and the same again from a seed."""

import fcntl
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.data.images import encode_jpeg
from hpe.data.records import Record
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.pack.balance import OtherSubsetError, Subset, balance
from hpe.pack.indexing import index
from hpe.pack.verify import verify
from tests.served import served

EMOTIONS = (0, 1, 6)


def plain(shade: int) -> bytes:
    return encode_jpeg(np.full((8, 8, 3), shade, np.uint8), 90)


@pytest.fixture
def made(tmp_path) -> tuple[Path, Path]:
    """Shards of three emotions and tables of five directions: 8 a cell in train, 4 in val, and some unlabelled."""
    folder = tmp_path / "shards"
    poses = folder / "pose" / "hopenet"
    poses.mkdir(parents=True)
    rng, infos = np.random.default_rng(0), []
    for split, each in (("train", 8), ("val", 4)):
        cells = [(d, e) for d in range(5) for e in EMOTIONS for _ in range(each)]
        cells += [(None, 0), (2, None), (0, 1)]
        rng.shuffle(cells)
        for part, chosen in enumerate((cells[: len(cells) // 2], cells[len(cells) // 2 :])):
            samples = [
                Sample(
                    f"{split}-{part}-{i}",
                    plain(i),
                    "jpg",
                    Record(emotion=e, split=split),
                )
                for i, (_, e) in enumerate(chosen)
            ]
            infos.append(write_shard(folder / f"{split}-{part:06d}.tar", split, samples))
            table = pa.table({
                "key": [sample.key for sample in samples],
                **{angle: pa.array(rng.normal(size=len(samples)), pa.float32()) for angle in ANGLES},
                "direction_thesis": pa.array([d for d, _ in chosen], pa.int8()),
            })  # fmt: skip
            table = table.replace_schema_metadata({"hpe.estimator": "hopenet", "hpe.shard": infos[-1].name})
            pq.write_table(table, poses / f"{split}-{part:06d}.parquet")
    Manifest("affectnet", "2021", "research", False, "none", {"size": 8}, tuple(infos)).save(folder)
    return folder, poses


def directions(poses: Path) -> dict[str, int]:
    tables = [pq.read_table(path) for path in poses.glob("*.parquet")]
    return {
        key: direction
        for table in tables
        for key, direction in zip(
            table.column("key").to_pylist(), table.column("direction_thesis").to_pylist(), strict=True
        )
    }


def test_every_cell_has_as_many_in_each_split(made, tmp_path):
    folder, poses = made
    out = tmp_path / "out"
    manifest = balance(folder, poses, out, Subset(per_cell="5/3/0", samples_per_shard=40))
    truth = directions(poses)
    for split, number in (("train", 5), ("val", 3)):
        cells: Counter[tuple[int, int | None]] = Counter()
        for path in manifest.paths(out, split):
            for sample in read_samples(path):
                assert sample.record.split == split
                assert sample.key.startswith(split)
                cells[truth[sample.key], sample.record.emotion] += 1
        assert cells == {(d, e): number for d in range(5) for e in EMOTIONS}
    assert not verify(out)
    assert not manifest.publishable
    assert len(manifest.paths(out, "train")) == 2


def test_the_pose_tables_follow_their_samples(made, tmp_path):
    folder, poses = made
    out = tmp_path / "out"
    manifest = balance(folder, poses, out, Subset(per_cell="5/3/0"))
    before = {row["key"]: row for path in poses.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    for shard in manifest.shards:
        path = out / "pose" / "hopenet" / f"{shard.name.removesuffix('.tar')}.parquet"
        table = pq.read_table(path)
        assert table.column("key").to_pylist() == [s.key for s in read_samples(out / shard.name)]
        assert table.to_pylist() == [before[key] for key in table.column("key").to_pylist()]
        assert table.schema.metadata[b"hpe.estimator"] == b"hopenet"
        assert table.schema.metadata[b"hpe.shard_sha256"].decode() == shard.sha256


def test_the_same_seed_chooses_the_same_and_another_seed_others(made, tmp_path):
    folder, poses = made
    found = [
        balance(folder, poses, tmp_path / f"out{i}", Subset(per_cell="5/3/0", seed=seed)).shards
        for i, seed in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_cell_too_small_is_named_with_what_would_work(made, tmp_path):
    folder, poses = made
    with pytest.raises(UserError) as caught:
        balance(folder, poses, tmp_path / "out", Subset(per_cell="9/4/0"))
    text = str(caught.value)
    assert "train, left × happy: 8 of 9" in text
    assert "train, forward × happy" not in text  # that cell has nine
    assert "14 cells" in text
    assert "--per-cell 8/4/0 works" in text
    assert not (tmp_path / "out").exists()
    balance(folder, poses, tmp_path / "out", Subset(per_cell="8/4/0"))


def test_a_split_that_is_not_there_is_one_message(made, tmp_path):
    with pytest.raises(UserError, match=r"no test .*use --per-cell 5/3/0"):
        balance(made[0], made[1], tmp_path / "out", Subset(per_cell="5/3/1"))


@pytest.mark.parametrize("text", ["", "9" * 5000, "a", "1/2", "0", "-1", "0/0/0", "1/2/3/4", "1.5"])
def test_what_is_no_number_of_samples_is_one_message(made, tmp_path, text):
    with pytest.raises(UserError, match="--per-cell"):
        balance(made[0], made[1], tmp_path / "out", Subset(per_cell=text))


def test_tables_that_do_not_fit_are_one_message(made, tmp_path):
    folder, poses = made
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no such folder"):
        balance(folder, poses.with_name("other"), out, Subset(per_cell="1"))
    with pytest.raises(UserError, match="have thesis"):
        balance(folder, poses, out, Subset(per_cell="1", rule="ours"))
    path = poses / "train-000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(UserError, match="5 rows"):
        balance(folder, poses, out, Subset(per_cell="1"))
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)
    with pytest.raises(UserError, match="its keys are not the shard's: row 0 is"):
        balance(folder, poses, out, Subset(per_cell="1"))
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a pose table"):
        balance(folder, poses, out, Subset(per_cell="1"))
    path.unlink()
    with pytest.raises(UserError, match=r"no table for 1 of 4 shards, such as train-000001\.tar"):
        balance(folder, poses, out, Subset(per_cell="1"))


def test_the_command_balances_the_labels_that_are_named(made, tmp_path):
    folder, poses = made
    command = ["balance", str(folder), str(poses), str(tmp_path / "out"), "--per-cell", "2/0/0"]
    found = CliRunner().invoke(app, [*command, "--directions", "left, up", "--emotions", "happy,anger"])
    assert found.exit_code == 0
    cells = Manifest.load(tmp_path / "out").counts["cells"]["train"]
    assert cells == {f"{d} {e}": 2 for d in ("left", "up") for e in ("happy", "anger")}
    refused = CliRunner().invoke(app, [*command, "--emotions", "happy,joy"])
    assert "--emotions 'happy,joy': 'joy' is none of neutral, happy" in str(refused.exception)


def altered(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_tables_of_other_shards_of_other_columns_or_of_no_directions_are_one_message(made, tmp_path):
    folder, poses = made
    out, path = tmp_path / "out", poses / "train-000001.parquet"
    table = pq.read_table(path)
    rows = table.num_rows
    wrong = {
        "made for a shard with sha256 0123": table.replace_schema_metadata({"hpe.shard_sha256": "0123"}),
        r"before it: yaw \(double\), yaw \(float\)": altered(table, "yaw", pa.array([0.0] * rows)),
        r"before it: extra \(int64\)": table.append_column("extra", pa.array([1] * rows)),
        "column yaw holds string, expected numbers": altered(table, "yaw", pa.array(["left"] * rows)),
        "direction_thesis holds string, expected whole": altered(table, "direction_thesis", pa.array(["left"] * rows)),
        "direction_thesis holds 1.5, expected whole": altered(table, "direction_thesis", pa.array([1.5] * rows)),
    }
    for message, damaged in wrong.items():
        pq.write_table(damaged, path)
        with pytest.raises(UserError, match=message):
            balance(folder, poses, out, Subset(per_cell="1"))
        assert not out.exists()


def test_a_second_run_does_nothing_and_other_options_are_refused(made, tmp_path):
    folder, poses = made
    out = tmp_path / "out"
    first = balance(folder, poses, out, Subset(per_cell="2/1/0"))
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert balance(folder, poses, out, Subset(per_cell="2/1/0")) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(UserError, match="other options"):
        balance(folder, poses, out, Subset(per_cell="3/1/0"))


def test_a_subset_of_pose_tables_that_have_changed_is_not_taken_for_finished(made, tmp_path):
    folder, poses = made
    out = tmp_path / "out"
    first = balance(folder, poses, out, Subset(per_cell="2/0/0"))
    changed = poses / "val-000000.parquet"  # of a split that the subset has nothing of
    table = pq.read_table(changed)
    pq.write_table(table.drop_columns(["yaw"]).append_column("yaw", table["pitch"]), changed)
    assert balance(folder, poses, out, Subset(per_cell="2/0/0")) == first
    older = replace(first, options={name: value for name, value in first.options.items() if name != "tables"})
    changed = poses / "train-000000.parquet"
    table = pq.read_table(changed)
    turned = pa.array(
        [(label + 1) % 5 if label is not None else None for label in table["direction_thesis"].to_pylist()], pa.int8()
    )
    pq.write_table(table.set_column(table.column_names.index("direction_thesis"), "direction_thesis", turned), changed)
    with pytest.raises(OtherSubsetError, match=r"or pose tables \(in its manifest\.json differ: tables\)"):
        balance(folder, poses, out, Subset(per_cell="2/0/0"))
    older.save(out)  # a manifest of an older version has no digest of the tables
    assert balance(folder, poses, out, Subset(per_cell="2/0/0")) == older


@pytest.mark.parametrize("name", ["mine.tar", "notes.part", "train-000000.tar"])
def test_files_of_others_in_the_folder_are_neither_removed_nor_mixed_with(made, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=f"did not write, such as {name}"):
        balance(made[0], made[1], out, Subset(per_cell="2/1/0"))
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: "mine"}


def test_a_killed_job_is_done_again_and_a_second_one_at_once_is_refused(made, tmp_path):
    out = tmp_path / "out"
    whole = balance(made[0], made[1], tmp_path / "whole", Subset(per_cell="2/1/0"))
    (out / ".balance").mkdir(parents=True)
    (out / "train-000007.tar").write_text("of the killed job")
    with (out / ".balance" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `hpe balance`"):
            balance(made[0], made[1], out, Subset(per_cell="2/1/0"))
        assert (out / "train-000007.tar").exists()
    assert balance(made[0], made[1], out, Subset(per_cell="2/1/0")) == whole
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_of_several_rules_ours_is_taken_and_the_summary_has_its_cells(made, tmp_path):
    folder, poses = made
    for path in poses.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("direction_ours", table.column("direction_thesis")), path)
    manifest = balance(folder, poses, tmp_path / "out", Subset(per_cell="2/1/0"))
    assert manifest.options["rule"] == "ours"
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert "| train | neutral | happy | anger |" in lines
    assert "| left | 2 | 2 | 2 |" in lines


def test_what_cannot_be_written_is_one_message(made, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for out in (loop, tmp_path / ("x" * 300), Path("/proc/nowhere/out"), tmp_path / "file" / "out"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"cannot be|not a folder"):
            balance(made[0], made[1], out, Subset(per_cell="2/1/0"))


def test_nobody_reading_the_summary_is_no_mistake_of_the_subset(made, tmp_path, monkeypatch):
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        balance(made[0], made[1], tmp_path / "out", Subset(per_cell="2/1/0"))
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "record", [{"emotion": 99}, {"emotion": 1, "box": None}, {"yaw": 10**400}, {"box": [None] * 4}]
)
def test_an_impossible_record_is_one_message(made, tmp_path, monkeypatch, record):
    monkeypatch.setattr(Record, "to_json", lambda self: json.dumps(record).encode())
    folder, poses = made
    old = Manifest.load(folder)
    samples = [Sample(s.key, s.image, "jpg", s.record) for s in read_samples(folder / old.shards[0].name)]
    info = write_shard(folder / old.shards[0].name, "train", samples)
    replace(old, shards=(info, *old.shards[1:])).save(folder)
    if record == {"emotion": 1, "box": None}:
        with pytest.raises(UserError, match="too few"):
            balance(folder, poses, tmp_path / "out", Subset(per_cell="9"))
    else:
        with pytest.raises(UserError, match=r"train-000000\.tar: .*hpe verify"):
            balance(folder, poses, tmp_path / "out", Subset(per_cell="2/1/0"))
    assert not (tmp_path / "out").exists()


def test_a_path_that_no_file_system_takes_is_one_message(made, tmp_path):
    long = tmp_path / ("x" * 300)
    for shards, poses in ((long, made[1]), (made[0], long)):
        with pytest.raises(UserError, match="cannot be read"):
            balance(shards, poses, tmp_path / "out", Subset(per_cell="1/1/0"))


def test_a_remote_folder_gives_the_same_subset_and_only_its_tars_with_chosen_samples_are_fetched(
    made, tmp_path, monkeypatch
):
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    folder, poses = made
    list(index(str(folder)))
    subset = Subset(per_cell="5/0/0")
    here = balance(folder, poses, tmp_path / "here", subset)
    with served(folder) as server:
        there = balance(server.url, f"{server.url}/pose/hopenet", tmp_path / "there", subset)
        assert len(server.tars) == 2
        assert all("train" in name for name in server.tars)
        result = CliRunner().invoke(app, ["verify", server.url])
        assert isinstance(result.exception, UserError)
        assert "copy the folder here first" in str(result.exception)
    assert there == here
    assert not verify(tmp_path / "there")
    tables = [sorted((tmp_path / out / "pose/hopenet").iterdir()) for out in ("here", "there")]
    assert [path.read_bytes() for path in tables[0]] == [path.read_bytes() for path in tables[1]]
