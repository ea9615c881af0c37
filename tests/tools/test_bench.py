"""The benchmark's arithmetic, and that every installed contestant really reads the pictures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpe import cli
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import parse
from hpe.core.errors import UserError
from hpe.core.ranks import Ranks
from hpe.data.crops import CropRule
from hpe.data.images import encode_jpeg
from hpe.data.pose_tables import Identity
from hpe.data.records import Record
from hpe.data.shard_files import ShardFile, find_shards
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.pose.passes import Task
from hpe.tools.bench import Figure, Report, Settings, available, measure, ratio, take_turns
from hpe.tools.bench import pose as pose_bench
from hpe.tools.bench import step as step_bench
from hpe.tools.bench import stream as stream_bench
from hpe.train.setup import open_job
from hpe.train.step import Learner
from tests import made


def test_contestants_take_turns_in_alternating_order() -> None:
    calls: list[str] = []

    def contestant(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = take_turns({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, 2, "test")
    assert calls == ["a", "b", "b", "a"]
    assert figures == (Figure("a", (1.0, 4.0)), Figure("b", (2.0, 3.0)))


def test_a_ratio_is_the_median_of_the_turns_ratios_and_a_missed_target_is_said() -> None:
    figures = (Figure("ours", (10.0, 30.0, 8.0)), Figure("other", (5.0, 10.0, 8.0)))
    found = ratio(figures, "ours", "other", 2.5)
    assert found.value == 2.0
    text = str(Report("stream", "samples/s", figures, (found,)))
    assert "MISSED" in text
    assert text.index("ours") < text.index("other")


def test_an_unknown_part_is_refused_with_those_there_are() -> None:
    assert "stream" in available()
    with pytest.raises(UserError, match=r"expected one of .*stream"):
        measure("speed", Settings(Path()))


@pytest.mark.parametrize("part", ["pack", "pose"])
def test_without_a_worker_nothing_is_measured_of_parts_that_need_one(part: str, tmp_path: Path) -> None:
    for one in (part, "all"):  # of all parts it is refused before the first is measured
        with pytest.raises(UserError, match=r"bench (pack|pose): --workers 0: expected 1 or more"):
            cli.bench(one, tmp_path / "bench", workers=0)
    assert not (tmp_path / "bench").exists()


def test_remote_shards_are_not_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="copy the folder here first"):
        measure("stream", Settings(tmp_path, shards="https://example.com/shards/raf-db"))


def with_pictures(folder: Path, picture: bytes, extension: str, count: int) -> str:
    folder.mkdir()
    rows = [Sample(f"k{number:04d}", picture, extension, Record(valence=0.5)) for number in range(count)]
    half = count // 2
    infos = [
        write_shard(folder / f"{split}-000000.tar", split, part)
        for split, part in (("train", rows[:half]), ("test", rows[half:]))
    ]
    Manifest("made", "noise", "none", True, "none", {}, tuple(infos)).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("size", "extension", "count", "told"),
    [
        (64, "jpg", 4, r"k0000\.jpg has 64 × 64 pixels; bench stream reads \.jpg files of 224 × 224 pixels"),
        (224, "png", 4, r"k0000\.png has 224 × 224 pixels; bench stream reads \.jpg files"),
        (224, "jpg", 6, r"6 images; a turn of bench stream needs 640 or more"),
    ],
)
def test_shards_that_not_every_contestant_can_read_are_refused(
    tmp_path: Path, size: int, extension: str, count: int, told: str
) -> None:
    picture = encode_jpeg(np.zeros((size, size, 3), np.uint8), 90)
    shards = with_pictures(tmp_path / "shards", picture, extension, count)
    with pytest.raises(UserError, match=rf"^--shards {shards}: {told}"):
        measure("stream", Settings(tmp_path, shards=shards))


def test_contestants_read_shards_of_all_splits_without_emotions(tmp_path: Path) -> None:
    picture = encode_jpeg(np.zeros((stream_bench.SIZE, stream_bench.SIZE, 3), np.uint8), 90)
    named = with_pictures(tmp_path / "shards", picture, "jpg", 640)
    shards = stream_bench.made_shards(Settings(tmp_path, shards=named))
    stream_bench._refuse_others(shards, named)
    assert sum(stream_bench._webdataset(shards, 0)) == 640
    assert sum(stream_bench._datasets(shards, 0)) == 640
    assert {row["emotion"] for row in stream_bench._plain_rows(shards)} == {-1}


@pytest.mark.slow
def test_a_start_is_measured_on_one_tar_under_many_names(tmp_path: Path) -> None:
    report = measure("start", Settings(tmp_path, repeats=1, samples=3000))
    names = ("opened first", "opened again", "first batch", "first batch at 90 %", "MB", "MB in all")
    assert [figure.name for figure in report.figures] == [f"3,000: {name}" for name in names]
    assert all(figure.median > 0 for figure in report.figures if not figure.name.endswith("MB"))
    assert len(list((tmp_path / "start-3000").glob("train-*.tar"))) == 3


@pytest.mark.slow
def test_every_contestant_of_the_stream_reads_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    report = measure("stream", Settings(tmp_path, workers=0, repeats=1, samples=640))
    assert len(report.figures) >= 6
    assert all(figure.median > 0 for figure in report.figures)
    assert report.to_json()["medians"]["hpe stream"] > 0


@pytest.mark.slow
def test_the_steps_of_a_given_config_are_measured_and_what_bounds_them_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hpe.tools.bench.step._ROUNDS", 1)
    config = tmp_path / "run.yaml"
    config.write_text(made.config(made.shards(tmp_path / "shards"), tmp_path / "unused").dump())
    report = measure("step", Settings(tmp_path, workers=0, repeats=1, config=config))
    assert len(report.figures) == 4
    assert all(figure.median > 0 for figure in report.figures)
    said = " ".join(report.notes)
    assert "one rank is bound by" in said
    assert "an all-reduce of the" in said
    assert "resumed at 90%" in said
    assert not (tmp_path / "unused").exists()


def test_the_loops_are_compared_at_one_size(tmp_path: Path) -> None:
    small = ("train.epochs=4", "train.small_epochs=2", "train.small_size=16")
    config = parse(made.config(made.shards(tmp_path / "shards"), tmp_path / "run").dump(), "a config", RunConfig, small)
    (tmp_path / "run.yaml").write_text(config.dump())
    measured, _ = step_bench._config(Settings(tmp_path, config=tmp_path / "run.yaml"))
    assert measured.train.small_epochs == 0


def test_the_step_bench_works_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "bench: #1"
    shards = str(made.shards(folder / "it's"))
    own, _ = step_bench._config(Settings(folder, shards=shards))
    (folder / "run.yaml").write_text(own.dump())
    given, _ = step_bench._config(Settings(folder, shards=shards, config=folder / "run.yaml"))
    assert own.run == given.run == str(folder / "step-run")
    assert own.data.train[0].shards[0].startswith(shards)


def test_nothing_is_validated_or_saved_while_the_clock_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    shards = made.shards(tmp_path / "shards")
    often = ("train.validate_epochs=0.1", "train.checkpoint_steps=1", "data.workers=0")
    config = parse(made.config(shards, tmp_path / "run").dump(), "a config", RunConfig, often)
    asked: list[int] = []
    ended_at: list[int] = []
    usual = step_bench._Timed.__next__
    monkeypatch.setattr(step_bench._Timed, "__next__", lambda self: asked.append(0) or usual(self))
    monkeypatch.setattr(Learner, "save", lambda *_: ended_at.append(len(asked)))
    with open_job(config, Ranks(0, 1, 0, 1)) as job:
        rate = step_bench.contestants(job, 6)[step_bench.LOOP]()
    assert rate > 0
    assert ended_at == [len(asked)]


def test_a_turn_of_the_pose_bench_has_whole_shards_and_enough_faces() -> None:
    tasks: list[Any] = [SimpleNamespace(shard=SimpleNamespace(samples=samples)) for samples in (9, 4, 7)]
    counted = [len(pose_bench._first(tasks, faces)) for faces in (1, 9, 10, 99)]
    assert counted == [1, 1, 2, 3]


def test_ranks_are_compared_on_equal_shards_that_they_share_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[list[int | None]] = []
    monkeypatch.setattr(pose_bench, "_SIZE", 16)
    monkeypatch.setattr(pose_bench, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(pose_bench, "_estimator", lambda *_: None)
    monkeypatch.setattr(pose_bench, "_faces_for", lambda *_: 256)  # of a slow machine: shards of 250 and 6 faces
    monkeypatch.setattr(pose_bench, "turns", lambda *_: ((Figure("ours", (1.0,)),), ()))
    monkeypatch.setattr(
        pose_bench, "_scaling",
        lambda folder, _: measured.append([one.samples for one in find_shards([str(folder)])]) or {},
    )  # fmt: skip
    measure("pose", Settings(tmp_path))
    ((first, *others),) = measured
    assert {*others} == {first}
    assert [(1 + len(others)) % world for world in pose_bench._PROCESSES] == [0, 0, 0]


def test_a_turn_counts_the_faces_of_tars_without_a_manifest(tmp_path: Path) -> None:
    shard, identity = made.shards(tmp_path / "shards"), cast("Identity", None)
    known = find_shards([str(shard)], "val")
    bare = [ShardFile(one.path) for one in known]
    tasks = [Task(one, tmp_path / "t.parquet", CropRule(), identity) for one in bare]
    assert [task.shard.samples for task in pose_bench._counted(tasks)] == [one.samples for one in known]


def test_a_turn_on_a_gpu_repeats_the_shards_until_it_has_enough_faces(tmp_path: Path) -> None:
    shard, identity = made.shards(tmp_path / "shards"), cast("Identity", None)
    once = [
        Task(one, tmp_path / f"{one.path.stem}.parquet", CropRule(), identity)
        for one in find_shards([str(shard)], "val")
    ]
    faces = sum(task.shard.samples or 0 for task in once)
    again = pose_bench._repeated(once, 3 * faces + 1)
    assert len(again) == 3 * len(once) + 1
    assert len({task.table for task in again}) == len(again)
    assert {task.table.parent for task in again} == {tmp_path}


@pytest.mark.slow
def test_the_pose_bench_ends_whatever_the_speed_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_bench, "_TURN_SECONDS", 0.1)
    monkeypatch.setattr(pose_bench, "_ONE_AT_A_TIME_SECONDS", 0.1)
    monkeypatch.setattr(pose_bench, "_PROCESSES", (1,))
    monkeypatch.setattr(pose_bench, "_SIZE", 64)
    report = measure("pose", Settings(tmp_path, workers=1, repeats=1))
    names = [figure.name for figure in report.figures]
    assert [name for name in names if name.startswith("resnet50")] == [
        "resnet50: hpe pose",
        "resnet50: network alone, batches in memory",
        "resnet50: decoder and network, no tables",
        "resnet50: one picture at a time",
    ]
    assert all(figure.median > 0 for figure in report.figures)
    assert [ratio.target for ratio in report.ratios if ratio.name.startswith("ours / resnet50")] == [0.95, 0.95, 1.0]
