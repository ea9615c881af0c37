"""The pass on a GPU that is not there: what is asked of it in which order, and where the host waits."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import hpe
from hpe.core.ranks import Ranks
from hpe.data.crops import CropRule
from hpe.estimators.estimator import Estimator
from hpe.estimators.spec import VALUES, InputSpec, Kind, OutputSpec, Signs
from hpe.pose.passes import Flips, _Inference, pose_pass
from tests.fake_gpu import HostWaits, fake_gpus, skip_elsewhere
from tests.pose.test_pose import RULES, SIZE, make_shards, tasks_for

HERE = torch.device("cuda", 3)


class Current(threading.local):
    """The current GPU, which each thread has of its own, as in CUDA."""

    index = 0


class Gpu:
    """Events of the pass in their order, and the GPU that was current where memory was page-locked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waits: HostWaits) -> None:
        self.order: list[str] = []
        self.pinned: list[tuple[bool, int]] = []
        self.current, gpu, empty = Current(), self, torch.empty

        class Event:
            count = 0

            def __init__(self, **_: object) -> None:
                Event.count += 1
                self.number = Event.count

            def record(self, stream: object) -> None:
                gpu.order.append(f"launched {self.number}")

            def synchronize(self) -> None:
                gpu.order.append(f"waited for {self.number}")

        def locked(*size: Any, pin_memory: bool = False, **named: Any) -> Tensor:
            if pin_memory:
                reading = threading.current_thread() is not threading.main_thread()
                self.pinned.append((reading, self.current.index))
                return waits.pinned(empty(*size, **named))
            return empty(*size, **named)

        monkeypatch.setattr(torch, "empty", locked)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)

    def set_device(self, device: torch.device) -> None:
        self.current.index = device.index


def network(kind: Kind) -> Estimator:
    shape = VALUES[kind]
    output = OutputSpec(kind=kind, order=("pitch", "yaw", "roll"), signs=Signs(yaw=-1))

    def values(images: Tensor) -> tuple[Tensor, ...]:
        return (images.mean((1, 2, 3))[:, None].expand(-1, torch.Size(shape).numel()).reshape(-1, *shape),)

    plain = InputSpec(size=SIZE, colour="grey")
    return Estimator("mean", "aa", frozenset((CropRule(),)), plain, output, values, HERE, channels_last=True)


@pytest.mark.parametrize("kind", ["bins66-lower", "euler", "sixd"])
@pytest.mark.parametrize("flips", ["none", "averaged"])
def test_a_batch_is_launched_before_the_one_before_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, flips: Flips
) -> None:
    skip_elsewhere()
    there = network(kind)
    tasks = tasks_for(make_shards(tmp_path), there, flips=flips)
    with fake_gpus(Path(hpe.__file__).parent) as waits, monkeypatch.context() as patch:
        gpu = Gpu(patch, waits)  # after the fake GPUs, whose events do nothing
        patch.setattr(torch.cuda, "set_device", gpu.set_device)
        there.normalise(torch.zeros((1, 3, SIZE, SIZE), dtype=torch.uint8, device=HERE))  # its constants, copied once
        waits.found.clear()
        code = pose_pass(tasks, there, RULES, flips=flips, batch=4, threads=2, ranks=Ranks(0, 1, 0, 1))
    batches = 2 + 2 + 3
    assert code in (0, 1)  # the numbers are made up
    assert [pq.read_metadata(task.table).num_rows for task in tasks] == [7, 5, 9]
    between = [text for n in range(2, batches + 1) for text in (f"launched {n}", f"waited for {n - 1}")]
    assert gpu.order == ["launched 1", *between, f"waited for {batches}"]
    # Both ways go through page-locked memory without blocking: nothing but the events makes the host wait.
    assert waits.found == {}
    assert {device for _, device in gpu.pinned} == {3}
    assert sorted(reading for reading, _ in gpu.pinned) == [False] * batches + [True] * batches


@pytest.mark.parametrize("kind", ["bins66-centre", "euler", "sixd", "matrix"])
@pytest.mark.parametrize("flips", ["none", "averaged"])
def test_the_way_over_a_device_gives_the_angles_of_the_processors_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, flips: Flips
) -> None:
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(12, torch.Size(VALUES[kind]).numel()))).float()
    there = replace(
        network(kind), device=torch.device("cpu"), network=lambda x: (x[..., :2, ::16].flatten(1) @ weights,)
    )
    tables = []
    for name in ("_on_cpu", "_on_device"):
        monkeypatch.setattr(_Inference, "_on_cpu", getattr(_Inference, name))
        tasks = tasks_for(make_shards(tmp_path / name), there, flips=flips)
        pose_pass(tasks, there, RULES, flips=flips, batch=4, threads=2, ranks=Ranks(0, 1, 0, 1))
        tables.append(pa.concat_tables(pq.read_table(task.table) for task in tasks).to_pandas())
    assert tables[0]["yaw"].notna().all()
    pd.testing.assert_frame_equal(*tables, atol=1e-3)
