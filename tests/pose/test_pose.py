"""The pass: one table a shard, whatever the ranks, the threads, the kills and the damage."""

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.labels import DIRECTIONS
from hpe.core.ranks import Ranks
from hpe.data.crops import CropRule
from hpe.data.directions import OURS, direction_rules, thesis_tree
from hpe.data.images import encode_jpeg
from hpe.data.prefetch import ahead
from hpe.data.records import Record
from hpe.data.shard_files import ShardFile, find_shards
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.estimators.estimator import Estimator
from hpe.estimators.spec import InputSpec, OutputSpec
from hpe.pose.check import check_tables
from hpe.pose.passes import Task, pose_pass
from hpe.pose.plan import summary, tasks_of
from hpe.pose.preflight import reaching_beyond, refuse_without_truth
from tests import warm
from tests.served import served

SIZE = 32
RULES = direction_rules(OURS)
COLUMNS = [
    "key",
    "yaw",
    "pitch",
    "roll",
    "yaw_sd",
    "pitch_sd",
    "roll_sd",
    "direction_thesis_tree",
    "direction_ours",
    "problem",
]


class Mean:
    """A network with a known answer: yaw, pitch, roll are the means of red, green and blue, in 0..90."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.faces = seconds, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        time.sleep(self.seconds)
        self.faces += len(images)
        return (images.mean((-2, -1)) * 90,)


def estimator(network: Callable[[Tensor], tuple[Tensor, ...]], crop: str = "none", sha256: str = "aa") -> Estimator:
    plain = InputSpec(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    rule, output = frozenset((CropRule.parse(crop),)), OutputSpec(kind="euler")
    return Estimator("mean", sha256, rule, plain, output, network, torch.device("cpu"), channels_last=False)


def colour(shard: int, row: int) -> tuple[int, int, int]:
    return (40 * shard + 8 * row) % 250, (90 + 3 * row) % 250, (10 + 20 * shard) % 250


def make_shards(folder: Path, sizes: tuple[int, ...] = (7, 5, 9), crop: str = "none") -> Path:
    def samples(shard: int, count: int) -> Iterator[Sample]:
        for row in range(count):
            picture = np.zeros((64, 64, 3), np.uint8) + np.array(colour(shard, row), np.uint8)
            picture[:, 48:] = 255  # outside of the box
            yaw, pitch, roll = (value / 255 * 90 for value in colour(shard, row))
            record = Record(yaw=yaw, pitch=pitch, roll=roll, box=(0, 0, 48, 48), subject=str(row))
            yield Sample(f"s{shard}r{row}", encode_jpeg(picture, 95), "jpg", record)

    folder.mkdir(parents=True, exist_ok=True)
    infos = [write_shard(folder / f"test-{i:06d}.tar", "test", samples(i, n)) for i, n in enumerate(sizes)]
    Manifest("made", "up", "ours", True, crop, {}, tuple(infos)).save(folder)
    return folder


def tasks_for(folder: Path, network: Estimator, *, on_mismatch: str = "recrop", flips: str = "none") -> list[Task]:
    return tasks_of(
        find_shards([str(folder)]), network, RULES,
        out=None, on_mismatch=on_mismatch, precision="fp32", flips=flips,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def do(tasks: list[Task], network: Estimator, threads: int = 2, batch: int = 4) -> int:
    return pose_pass(tasks, network, RULES, flips="none", batch=batch, threads=threads, ranks=Ranks(0, 1, 0, 1))


def digests(tasks: list[Task]) -> list[str]:
    return [hashlib.sha256(task.table.read_bytes()).hexdigest() for task in tasks]


def test_every_face_gets_its_own_row_in_shard_order(tmp_path: Path) -> None:
    network = estimator(Mean(), "square-1@box")
    tasks = tasks_for(make_shards(tmp_path), network)
    assert do(tasks, network) == 0
    for shard, (task, size) in enumerate(zip(tasks, (7, 5, 9), strict=True)):
        table = pq.read_table(task.table)
        assert table.column_names == COLUMNS
        assert table["key"].to_pylist() == [f"s{shard}r{row}" for row in range(size)]
        expected = np.array([colour(shard, row) for row in range(size)]) / 255 * 90
        found = np.stack([table[name].to_numpy() for name in ("yaw", "pitch", "roll")], 1)
        np.testing.assert_allclose(found, expected, atol=1.0)
        assert table["direction_thesis_tree"].to_pylist() == thesis_tree(found.astype(float)).tolist()
        assert table["problem"].null_count == table["yaw_sd"].null_count == size
        said = table.schema.metadata
        assert said[b"hpe.shard_sha256"].decode() == hashlib.sha256(task.shard.path.read_bytes()).hexdigest()
        assert (said[b"hpe.crop"], said[b"hpe.weights_sha256"], said[b"hpe.shard"]) == (
            b"square-1@box", b"aa", task.shard.path.name.encode(),
        )  # fmt: skip


def test_finished_tables_are_kept_and_only_missing_ones_are_made(tmp_path: Path) -> None:
    mean = Mean()
    network = estimator(mean)
    tasks = tasks_for(make_shards(tmp_path), network)
    do(tasks, network, threads=1)
    before = digests(tasks)
    tasks[1].table.unlink()
    left = tasks[1].table.with_name(f".{tasks[1].table.name}.4711.part")  # of a rank that was killed as it wrote
    left.write_bytes(b"half")
    mean.faces = 0
    do(tasks, network, threads=3)
    assert mean.faces == 5
    assert digests(tasks) == before
    assert not left.exists()


@pytest.mark.parametrize("change", ["weights", "shard", "flips", "garbage"])
def test_tables_of_something_else_are_refused_with_the_way_out(tmp_path: Path, change: str) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path)
    tasks = tasks_for(folder, network)
    do(tasks, network)
    if change == "garbage":
        tasks[0].table.write_bytes(b"not parquet")
    if change == "shard":
        make_shards(folder, (8, 5, 9))
    other = estimator(Mean(), sha256="bb") if change == "weights" else network
    again = tasks_for(folder, other, flips="averaged" if change == "flips" else "none")
    named = {
        "weights": "weights_sha256 is aa",
        "shard": "shard_sha256",
        "flips": "flips is none",
        "garbage": "cannot be",
    }
    with pytest.raises(UserError, match=named[change]) as caught:
        do(again, other)
    first, *reasons = str(caught.value).splitlines()  # the cause first, each difference once
    count = 1 if change in ("garbage", "shard") else 3
    assert f": {count} pose table{'s' if count > 1 else ''} made with other settings or data; remove them" in first
    assert "--name" in first
    assert len(reasons) == 1
    assert (" and 2 more: " in reasons[0]) == (count == 3)


def test_a_crop_that_does_not_fit_is_refused_unless_the_user_says_how(tmp_path: Path) -> None:
    network = estimator(Mean(), "square-1@box")
    folder = make_shards(tmp_path)
    with pytest.raises(UserError, match=r"--recrop .*--force"):
        tasks_for(folder, network, on_mismatch="refuse")
    forced = tasks_for(folder, network, on_mismatch="force")
    assert {task.identity.crop for task in forced} == {"none"}
    assert {task.identity.estimator_crop for task in forced} == {"square-1@box"}
    with pytest.raises(UserError, match="`hpe pose` runs no detector"):
        tasks_for(folder, estimator(Mean(), "square-1@detector"))


@pytest.mark.parametrize("on_mismatch", ["refuse", "recrop"])
def test_crops_for_an_estimator_of_pictures_as_they_came_are_refused_with_both_ways(
    tmp_path: Path, on_mismatch: str
) -> None:
    folder = make_shards(tmp_path, crop="square-1.4@detector")
    with pytest.raises(UserError, match="pictures as they came") as refused:
        tasks_for(folder, estimator(Mean(), "none"), on_mismatch=on_mismatch)
    told = str(refused.value)
    assert re.search(r"use --force.* if each of those was one face|each of those was one face, use --force", told)
    assert re.search(r"were whole photos, pack again with --crop none|--crop none if they were whole photos", told)


def test_records_without_landmarks_are_offered_only_ways_out_that_work(tmp_path: Path) -> None:
    folder, network = make_shards(tmp_path), estimator(Mean(), "square-1.4@landmarks")
    for on_mismatch in ("refuse", "recrop"):
        with pytest.raises(UserError, match=r"have no landmarks|they have none") as refused:
            tasks_for(folder, network, on_mismatch=on_mismatch)
        told = str(refused.value)
        assert "square-1.4@detector" in told
        assert "--force" in told
        assert "Use --recrop" not in told
        assert "--crop square-1.4@landmarks" not in told


def test_original_bytes_are_whole_pictures(tmp_path: Path) -> None:
    kept = make_shards(tmp_path, crop="keep")
    assert {task.identity.crop for task in tasks_for(kept, estimator(Mean()), on_mismatch="refuse")} == {"none"}
    (task, *_) = tasks_for(kept, estimator(Mean(), "square-1@box"))
    assert task.crop == CropRule.parse("square-1@box")


def test_a_crop_that_reaches_beyond_the_stored_picture_is_black_there_and_said(tmp_path: Path) -> None:
    network = estimator(Mean(), "square-2@box")
    tasks = tasks_for(make_shards(tmp_path, (3,), crop="square-1@box"), network)
    assert do(tasks, network) == EXIT_OK
    yaw = pq.read_table(tasks[0].table)["yaw"].to_pylist()
    # The box begins in a corner: of the 96 pixels of its crop's side, 24 lie before it and 8 behind the picture.
    inside = 64**2 / 96**2
    truth = np.array([colour(0, row)[0] / 255 * 90 for row in range(3)])
    assert np.abs(yaw - (truth * 48 * 64 + 90 * 16 * 64) / 96**2).max() < 1
    (told,) = reaching_beyond(tasks)
    assert f"reaches beyond 3 of the first 3 pictures, and {1 - inside:.0%} of it is black there" in told
    assert told.endswith("pack with --crop square-2@box")
    assert reaching_beyond(tasks_for(make_shards(tmp_path / "fits"), estimator(Mean(), "square-1@box"))) == []


def test_of_each_folder_the_first_shard_alone_is_opened_to_see_how_far_crops_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_for(make_shards(tmp_path), estimator(Mean(), "square-1@box"))
    opens, opened = ShardFile.open, []
    monkeypatch.setattr(ShardFile, "open", lambda shard: opened.append(shard.path.name) or opens(shard))
    assert reaching_beyond(tasks) == []
    assert opened == ["test-000000.tar"]
    tasks[0].shard.path.unlink()
    assert reaching_beyond(tasks) == []


def test_faces_that_decode_to_nothing_keep_their_row_without_angles(tmp_path: Path) -> None:
    whole = encode_jpeg(np.full((SIZE, SIZE, 3), 128, np.uint8), 95)
    bytes_of = {"good": whole, "cut": whole[:-200], "text": b"hello", "empty": b"", "last": whole}
    info = write_shard(
        tmp_path / "test-000000.tar", "test", (Sample(key, data, "jpg", Record()) for key, data in bytes_of.items())
    )
    Manifest("made", "up", "ours", True, "none", {}, (info,)).save(tmp_path)
    network = estimator(Mean())
    tasks = tasks_for(tmp_path, network)
    assert do(tasks, network) == EXIT_INCOMPLETE
    table = pq.read_table(tasks[0].table)
    assert table["key"].to_pylist() == list(bytes_of)
    for name in ("yaw", "pitch", "roll", "direction_thesis_tree", "direction_ours"):
        assert [value is None for value in table[name].to_pylist()] == [False, True, True, True, False]
    assert [text is None for text in table["problem"].to_pylist()] == [True, False, False, False, True]
    (line,) = summary(tasks)
    looks = [value for value in table["direction_ours"].to_pylist() if value is not None]
    assert f"5 faces: {', '.join(f'{name} {looks.count(code)}' for code, name in enumerate(DIRECTIONS))};" in line
    assert line.startswith(f"{tasks[0].table.parent}: ")
    assert line.endswith("abstains, 0; unreadable 3")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "garbage"])
def test_damaged_shards_are_named_skipped_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path)
    tasks = tasks_for(folder, network)
    path = tasks[1].shard.path
    data = bytearray(path.read_bytes())
    data[600] ^= 255
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[:3000], "flipped": data, "garbage": b"x" * 5000}[damage])
    assert do(tasks, network) == 1
    assert f"{path}:" in capfd.readouterr().err
    assert [task.table.exists() for task in tasks] == [True, False, True]


def test_an_empty_shard_has_an_empty_table(tmp_path: Path) -> None:
    network = estimator(Mean())
    for name, count in (("full", 2), ("empty", 0)):
        samples = (
            Sample(str(i), encode_jpeg(np.zeros((SIZE, SIZE, 3), np.uint8), 95), "jpg", Record()) for i in range(count)
        )
        write_shard(tmp_path / f"{name}.tar", "test", samples)
    tasks = tasks_of(
        find_shards([str(tmp_path / "full.tar"), str(tmp_path / "empty.tar")]), network, RULES,
        out=None, on_mismatch="force", precision="fp32", flips="none",
    )  # fmt: skip
    assert do(tasks, network) == 0
    assert [pq.read_metadata(task.table).num_rows for task in tasks] == [2, 0]
    assert pq.read_schema(tasks[1].table).names == COLUMNS


def test_shards_without_a_manifest_need_the_users_word_on_their_crop(tmp_path: Path) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path)
    (folder / "manifest.json").unlink()
    shards = find_shards([str(folder / "*.tar")])
    assert len(shards) == 3
    with pytest.raises(UserError, match="unknown"):
        tasks_of(shards, network, RULES, out=None, on_mismatch="refuse", precision="fp32", flips="none")
    tasks = tasks_of(shards, network, RULES, out=None, on_mismatch="force", precision="fp32", flips="none")
    assert do(tasks, network) == do(tasks, network) == 0
    tasks[0].shard.path.write_bytes(tasks[1].shard.path.read_bytes())
    with pytest.raises(UserError, match="shard_sha256"):
        do(tasks, network)


def test_a_failing_network_ends_the_pass_with_its_error(tmp_path: Path) -> None:
    def broken(images: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("out of memory")

    tasks = tasks_for(make_shards(tmp_path), estimator(broken))
    with pytest.raises(RuntimeError, match="out of memory"):
        do(tasks, estimator(broken))
    assert not any(
        task.table.parent.glob("*") for task in tasks if task.table.parent.exists() for _ in task.table.parent.glob("*")
    )


def test_reading_ahead_keeps_order_and_stays_within_its_depth() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            drawn.append(item)
            yield item

    with ahead(lambda item: item * item, items(), threads=3, depth=4) as made:
        first = next(made)
        time.sleep(0.2)
        assert len(drawn) <= 7
        assert [first, *made] == [item * item for item in range(50)]


def test_the_check_finds_a_negated_yaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = estimator(lambda images: (Mean()(images)[0] * torch.tensor([-1.0, 1.0, 1.0]),), "square-1@box")
    tasks = tasks_for(make_shards(tmp_path, (24, 24)), network)
    do(tasks, network)
    check_tables(tasks)
    found = json.loads((tasks[0].table.parent / "_check" / "check.json").read_text())
    assert found["faces"] == 48
    assert any("yaw negated" in text for text in found["mistakes"])
    assert found["pose"]["all"]["pitch"]["value"] < 1 < 40 < found["pose"]["all"]["yaw"]["value"]
    assert (tasks[0].table.parent / "_check" / "check.png").read_bytes()[:4] == b"\x89PNG"
    assert "yaw negated" in capsys.readouterr().out
    assert len(pd.read_parquet(tasks[0].table.parent)) == 48


def test_the_check_takes_the_angles_that_a_dataset_knows(tmp_path: Path) -> None:
    def pointing(row: int) -> Sample:
        record = Record(yaw=15.0 * (row % 5), pitch=10.0 * (row % 3), subject=str(row % 4))
        level = np.array([(record.yaw or 0) + 3, (record.pitch or 0) - 2 + 20, 50]) / 90 * 255
        return Sample(
            f"r{row}", encode_jpeg(np.zeros((SIZE, SIZE, 3), np.uint8) + level.astype(np.uint8), 95), "jpg", record
        )

    info = write_shard(tmp_path / "test-000000.tar", "test", map(pointing, range(30)))
    Manifest("made", "up", "ours", True, "none", {}, (info,)).save(tmp_path)
    network = estimator(lambda images: (Mean()(images)[0] - torch.tensor([0.0, 20.0, 0.0]),))
    tasks = tasks_for(tmp_path, network)
    refuse_without_truth(tasks)
    do(tasks, network)
    check_tables(tasks)
    found = json.loads((tasks[0].table.parent / "_check" / "check.json").read_text())
    assert found["angles_without_truth"] == ["roll"]
    assert found["pose"]["all"]["yaw"]["value"] == pytest.approx(3, abs=1)
    assert found["pose"]["all"]["pitch"]["value"] == pytest.approx(2, abs=1)
    assert {"roll", "mae", "geodesic", "maev"}.isdisjoint(found["pose"]["all"])
    assert found["mistakes"] == []


def test_a_check_without_any_true_angle_is_refused_before_the_pass(tmp_path: Path) -> None:
    picture = encode_jpeg(np.zeros((SIZE, SIZE, 3), np.uint8), 95)
    info = write_shard(tmp_path / "test-000000.tar", "test", [Sample("one", picture, "jpg", Record())])
    Manifest("made", "up", "ours", True, "none", {}, (info,)).save(tmp_path)
    with pytest.raises(UserError, match="leave out --check"):
        refuse_without_truth(tasks_for(tmp_path, estimator(Mean())))


RANK = """
import os, sys
from pathlib import Path
import hpe.core.work_queue
import tests.pose.test_pose as t
hpe.core.work_queue.Claims.__init__.__kwdefaults__["dead_seconds"] = 1.5
hpe.core.work_queue.BEAT_SECONDS = 0.3
network = t.estimator(t.Mean(float(os.environ["SLOW"])))
tasks = t.tasks_for(Path(os.environ["SHARDS"]), network)
ranks = t.Ranks.from_environment()
sys.exit(t.pose_pass(tasks, network, t.RULES, flips="none", batch=4, threads=1, ranks=ranks))
"""


def start_ranks(count: int, shards: Path, slow: float) -> list[warm.Process]:
    return warm.ranks(count, "-c", RANK, env=os.environ | {"SLOW": str(slow), "SHARDS": str(shards)})


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


SIZES = (9, 8, 7, 9, 5, 9, 8, 9)


def reference(folder: Path) -> list[str]:
    network = estimator(Mean())
    tasks = tasks_for(make_shards(folder, SIZES), network)
    do(tasks, network, threads=3)
    return digests(tasks)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "killed", SIZES)
    tables = shards / "pose" / "mean"
    (killed,) = start_ranks(1, shards, 0.1)
    wait_for(lambda: len(list(tables.glob("*.parquet"))) >= 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 2 <= len(list(tables.glob("*.parquet"))) < len(SIZES)
    network = estimator(Mean())
    tasks = tasks_for(shards, network)
    assert do(tasks, network) == 0
    assert digests(tasks) == reference(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_share_the_shards_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "two", SIZES)
    first, second = start_ranks(2, shards, 0.15)
    wait_for(lambda: len(list((shards / "pose" / "mean").glob("*.parquet"))) >= 3)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert first.wait(60) == 0
    assert digests(tasks_for(shards, estimator(Mean()))) == reference(tmp_path / "one")


@pytest.mark.slow
def test_a_stop_signal_keeps_finished_tables_and_says_again(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "stopped", SIZES)
    (stopped,) = start_ranks(1, shards, 0.1)
    wait_for(lambda: len(list((shards / "pose" / "mean").glob("*.parquet"))) >= 1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 75
    assert not list((shards / "pose" / "mean").glob(".*"))


def test_remote_shards_give_the_tables_of_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    folder, network = make_shards(tmp_path / "shards"), estimator(Mean(), "square-1@box")
    local = tasks_for(folder, network)
    with served(folder) as server:
        shards = find_shards([server.url])
        with pytest.raises(UserError, match=f"{server.url}: its pose tables lie in a folder of this machine"):
            tasks_of(shards, network, RULES, out=None, on_mismatch="recrop", precision="fp32", flips="none")
        remote = tasks_of(
            shards, network, RULES, out=tmp_path / "out", on_mismatch="recrop", precision="fp32", flips="none"
        )
        assert do(remote, network) == do(local, network) == 0
        assert digests(remote) == digests(local)
        asked = len(server.tars)
        assert do(remote, network) == 0
        assert len(server.tars) == asked
