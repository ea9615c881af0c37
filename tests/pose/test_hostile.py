"""What hostile shards, tables and networks do to the pass, the check and the fit: one message, nothing doubled."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from hpe.core.errors import EXIT_INCOMPLETE, UserError
from hpe.core.files import refuse_unwritable
from hpe.data.directions import OURS, direction_rules
from hpe.data.shards import write_shard
from hpe.estimators.load import Compute, load_estimator
from hpe.estimators.onnx import load_onnx
from hpe.estimators.probe import probe, random_faces
from hpe.estimators.spec import EstimatorSpec, OutputSpec, read_output
from hpe.pose import calibrate, plan
from hpe.pose.check import join_with_truth
from hpe.pose.options import PoseOptions
from hpe.pose.preflight import first_faces, try_estimator
from tests import warm
from tests.pose.test_pose import Mean, do, estimator, make_shards, tasks_for, wait_for


def constant(degrees: float) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return lambda images: (torch.full((len(images), 3), degrees) * images.mean((-2, -1)),)


def test_a_rank_of_the_pass_dies_with_its_launcher(tmp_path: Path) -> None:
    rank = (
        "import hpe.pose.plan as p, os, time\n"
        f"def network(*a, **k):\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
        "p.load_estimator = network\n"
        "p.pose([], p.PoseOptions(estimator=None, device='cpu'))\n"
    )
    launcher = f"import os\nif os.fork(): os.wait()\nelse: exec({rank!r})"
    (started,) = warm.ranks(1, "-c", launcher)
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    started.send_signal(signal.SIGKILL)
    started.wait(60)

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_for(gone, 20)


def test_the_trial_gathers_faces_over_shards_and_says_when_they_are_too_few(tmp_path: Path) -> None:
    swapped = estimator(lambda images: (Mean()(images)[0][:, [1, 0, 2]],))
    many = tasks_for(make_shards(tmp_path / "many", (5,) * 8), swapped)
    assert len(first_faces(many, 32)[0]) == 32
    with pytest.raises(UserError, match="contradicts"):
        try_estimator(Path("e.yaml"), swapped, many)
    few = try_estimator(Path("e.yaml"), swapped, tasks_for(make_shards(tmp_path / "few", (5,)), swapped))
    assert "could not be tried: 5 faces" in str(few)


def test_absurd_angles_get_a_problem_and_no_direction(tmp_path: Path) -> None:
    network = estimator(constant(2e35))
    tasks = tasks_for(make_shards(tmp_path, (3,)), network)
    assert do(tasks, network) == EXIT_INCOMPLETE
    table = pq.read_table(tasks[0].table)
    assert table["problem"].to_pylist() == ["angles beyond ±360°"] * 3
    assert table["yaw"].null_count == table["direction_ours"].null_count == 3
    assert "beyond ±360°" in probe(network, random_faces(4, 32), np.full((4, 3), np.nan))[0]
    assert probe(estimator(constant(100)), random_faces(4, 32), np.full((4, 3), np.nan)) == []


def test_a_tar_with_a_key_twice_is_skipped_as_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path, (3, 2))
    path = folder / "test-000000.tar"
    data = path.read_bytes()[:-1024]
    path.write_bytes(data + data + bytes(1024))
    tasks = tasks_for(folder, network)
    assert do(tasks, network) == EXIT_INCOMPLETE
    assert f"{path}: the key 's0r0' appears more than once" in capfd.readouterr().err
    assert [task.table.exists() for task in tasks] == [False, True]


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "x\0", "x" * 65])
def test_a_name_that_is_no_plain_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        load_estimator(Path("none.yaml"), Compute(torch.device("cpu")), name=name)


def test_tables_say_their_batch_and_another_is_refused(tmp_path: Path) -> None:
    network = estimator(Mean())
    tasks = tasks_for(make_shards(tmp_path, (3,)), network)
    do(tasks, network)
    said = [replace(task, identity=replace(task.identity, batch=16)) for task in tasks]
    assert do(said, network) == 0  # a table of before, which does not say
    tasks[0].table.unlink()
    do(said, network)
    other = [replace(task, identity=replace(task.identity, batch=8)) for task in tasks]
    with pytest.raises(UserError, match="batch is 16, expected 8"):
        do(other, network)


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "x.json", Path("/proc/x/y.json"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="--out"):
            refuse_unwritable(place, "--out it")
    refuse_unwritable(tmp_path / "new" / "x.json", "--out it")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match="is a folder"):
        calibrate.run(["none"], poses=None, estimator="x", split=None, target=0.9, out=tmp_path)


def test_what_the_trial_refuses_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_shards(tmp_path / "s", (5,) * 8)
    swapped = estimator(lambda images: (Mean()(images)[0][:, [1, 0, 2]],))
    monkeypatch.setattr(plan, "load_estimator", lambda *_, **__: swapped)
    options = PoseOptions(estimator=Path("e.yaml"), device="cpu")
    with pytest.raises(UserError, match="contradicts"):
        plan.pose([str(folder)], options)
    assert not (folder / "pose").exists()
    (folder / "pose").write_text("in the way")
    with pytest.raises(UserError, match=r"\(--out\): cannot be made"):
        plan.pose([str(folder)], replace(options, on_mismatch="force"))


def test_a_pass_ends_with_the_commands_that_use_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_shards(tmp_path / "s", (5,))
    monkeypatch.setattr(plan, "load_estimator", lambda *_, **__: estimator(Mean()))
    assert plan.pose([str(folder)], PoseOptions(estimator=Path("e.yaml"), device="cpu", on_mismatch="force")) == 0
    (tables,) = (folder / "pose").iterdir()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"Next: hpe train CONFIG --set data.train.0.pose={tables} --set data.val.0.pose={tables}, or"
    )
    assert "--check" in last


def test_of_two_rules_only_what_differs_is_told(tmp_path: Path) -> None:
    network = estimator(Mean())
    tasks = tasks_for(make_shards(tmp_path, (3,)), network)
    do(tasks, network)
    rules = direction_rules(replace(OURS, down=OURS.down + 1), (lambda angles, _: angles[:, 0], "cc")).definitions
    other = [replace(task, identity=replace(task.identity, rules=rules)) for task in tasks]
    with pytest.raises(UserError) as refused:
        do(other, network)
    cause, told = str(refused.value).splitlines()
    assert "1 pose table made with other settings or data; remove them" in cause
    told = told.removeprefix(f"  {tasks[0].table}: ")
    assert sorted(told.split("; ")) == [
        "rules.ours.down is 20.0, expected 21.0",
        "rules.thesis_network is (absent), expected sha256:cc",
    ]
    long = [replace(task, identity=replace(task.identity, estimator="x" * 80)) for task in tasks]
    tasks[0].table.unlink()
    do(long, network)
    longer = [replace(task, identity=replace(task.identity, estimator="x" * 40 + "y" + "x" * 39)) for task in tasks]
    with pytest.raises(UserError, match=r"is …x{40}, expected …yx{39}$"):
        do(longer, network)


def test_a_fit_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path / "s", (3,))
    do(tasks_for(folder, network), network)
    with pytest.raises(UserError, match="expected at least 5 people"):
        calibrate.run(
            [str(folder)], poses=None, estimator="mean", split=None, target=0.9, out=tmp_path / "new" / "ours.json"
        )
    assert not (tmp_path / "new").exists()


def test_outputs_of_another_kind_are_named(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    with pytest.raises(UserError, match="one number for all faces"):
        read_output((torch.tensor(1.0),), OutputSpec(kind="euler"))
    with pytest.raises(UserError, match="gives 1 poses for 2"):
        estimator(lambda _: (torch.zeros(1, 3),)).predict(random_faces(2, 32))
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["image"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
         helper.make_node("Cast", ["f"], ["pose"], to=TensorProto.STRING)],
        "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("pose", TensorProto.STRING, ["n", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    save(model, tmp_path / "text.onnx")
    spec = EstimatorSpec(weights="text.onnx", crop="none", output=OutputSpec(kind="euler"))
    with pytest.raises(UserError, match=r"'pose' is tensor\(string\)"):
        load_onnx(tmp_path / "text.onnx", spec, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "told"),
    [("text", "holds string"), ("absent", "no column pitch"), ("nested", "holds list"), ("boolean", "holds bool"),
     ("gone", "run `hpe pose`"), ("garbage", "not a pose table")],
)  # fmt: skip
def test_tables_that_are_none_are_named(tmp_path: Path, change: str, told: str) -> None:
    network = estimator(Mean())
    task = tasks_for(make_shards(tmp_path, (3,)), network)[0]
    do([task], network)
    table = pq.read_table(task.table)
    at = table.column_names.index("pitch")
    values = {"text": ["1"] * 3, "nested": [[1.0]] * 3, "boolean": [True] * 3}
    if change in values:
        pq.write_table(table.set_column(at, "pitch", pa.array(values[change])), task.table)
    elif change == "absent":
        pq.write_table(table.remove_column(at), task.table)
    elif change == "gone":
        task.table.unlink()
    else:
        task.table.write_bytes(b"no table")
    with pytest.raises(UserError, match=told) as caught:
        join_with_truth([(task.shard, task.table)])
    assert str(task.table) in str(caught.value)


def test_absurd_rows_and_damaged_records_are_ignored_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = estimator(Mean())
    task = tasks_for(make_shards(tmp_path, (4,)), network)[0]
    data = task.shard.path.read_bytes()
    task.shard.path.write_bytes(data.replace(b'"subject":"1"', b'"subject":[1]', 1))
    task = replace(task, shard=replace(task.shard, sha256=None))
    do([task], network)
    table = pq.read_table(task.table)
    yaw = pa.array([2e35, *table["yaw"].to_pylist()[1:]], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("yaw"), "yaw", yaw), task.table)
    rows = join_with_truth([(task.shard, task.table)])
    assert np.isfinite(rows.predicted).all(1).tolist() == [False, True, True, True]
    assert np.isfinite(rows.truth).all(1).tolist() == [True, False, True, True]
    told = capsys.readouterr().err
    assert "1 rows have angles beyond ±360°" in told
    assert "1 records are damaged" in told


def test_a_tar_without_samples_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = estimator(Mean())
    folder = make_shards(tmp_path, (3,))
    task = tasks_for(folder, network)[0]
    write_shard(task.shard.path, "test", [])
    do([replace(task, shard=replace(task.shard, sha256=None))], network)
    assert f"{task.shard.path}: holds no samples" in capfd.readouterr().err
