"""The device of a process: cores and threads of a CPU, and why a GPU is not used."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from hpe.core import devices, notices
from hpe.core.devices import named_device, share_cores, unused_gpu
from hpe.core.errors import UserError
from hpe.core.precision import chosen_precision
from hpe.train import datasets
from tests.fake_gpu import gpus

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    notices.tell_once.cache_clear()
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(1, 0, 1), (1, 2, 1), (2, 1, 2), (4, 2, 4), (7, 2, 7), (8, 2, 7), (8, 0, 8), (64, 8, 63)],
)
def test_the_network_has_every_core_of_a_small_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    given: list[int] = []
    monkeypatch.setattr("hpe.core.devices.cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores(workers)
    assert given == [threads]


@pytest.mark.parametrize(("load", "cores", "told"), [(9.0, 2, True), (2.5, 2, False), (9.0, 1, False), (9.0, 8, False)])
def test_a_busy_machine_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], load: float, cores: int, told: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("hpe.core.devices.cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores(1)
    assert ("keep the 2 cores busy (load 9)" in capsys.readouterr().err) is told


@pytest.mark.parametrize(("threads", "gpu"), [("3", False), (None, True)])
def test_threads_that_the_user_has_set_and_a_gpus_host_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("threads were set"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    share_cores(2)


def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, driver: bool, built_for: str | None) -> None:
    file = tmp_path / "version"
    if driver:
        file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1\n")
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", file)
    monkeypatch.setattr(devices, "_AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_driver_that_torch_cannot_use_is_told_in_torchs_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_gpu(monkeypatch, tmp_path, driver=True, built_for="13.0")

    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update "
            "your GPU driver. (Triggered internally at CUDAFunctions.cpp:119.)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    told = unused_gpu()
    assert told is not None
    assert "torch cannot use it: The NVIDIA driver on your system is too old (found version 11040)" in told
    assert "Triggered" not in told
    assert "built for CUDA 13.0" in told
    assert named_device("auto") == CPU
    assert named_device("auto") == CPU
    assert capsys.readouterr().err.count("runs on the CPU: there is an NVIDIA driver") == 1
    with pytest.raises(UserError, match=r"--device cuda: torch sees no GPU here: .* too old .*use --device cpu"):
        named_device("cuda")
    with pytest.raises(UserError, match=r"data\.decoder: gpu: .* too old"):
        datasets.decoder_of("gpu")


@pytest.mark.parametrize(
    ("driver", "built_for", "visible", "told"),
    [
        (True, None, None, "is built without CUDA"),
        (True, "13.0", "", "CUDA_VISIBLE_DEVICES='' hides its GPUs"),
        (True, "13.0", "-1", "CUDA_VISIBLE_DEVICES='-1' hides its GPUs"),
        (True, "13.0", "0", "it names no reason"),
        (False, "13.0", None, None),
    ],
)
def test_why_a_gpu_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    driver: bool,
    built_for: str | None,
    visible: str | None,
    told: str | None,
) -> None:
    no_gpu(monkeypatch, tmp_path, driver=driver, built_for=built_for)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = unused_gpu()
    assert found is None if told is None else told in (found or "")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "on")
    assert unused_gpu() is None  # the CPU is meant


def test_gpus_of_apple_and_amd_are_called_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_gpu(monkeypatch, tmp_path, driver=False, built_for=None)
    (tmp_path / "kfd").touch()
    assert "AMD GPU, and this torch is not built for ROCm" in (unused_gpu() or "")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert named_device("auto") == CPU
    assert "runs on the CPU: Apple's GPU (MPS) is not supported" in capsys.readouterr().err
    gpus(monkeypatch, "AMD Instinct MI300X", (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.2.0")
    assert named_device("auto") == GPU
    assert "AMD GPUs through ROCm 6.2.0: torch shows them as cuda" in capsys.readouterr().err
    assert chosen_precision("auto").name == "fp32"  # by what torch says of emulation: capabilities mean others there


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("mps", r"Apple's GPU \(MPS\) is not supported; expected auto, cpu, cuda or cuda:N"),
        ("xpu", "xpu is not supported"),
        ("cuda:7", "only 2 GPUs are visible, numbered from 0"),
    ],
)
def test_devices_that_cannot_be_used_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, device: str, told: str
) -> None:
    gpus(monkeypatch, "NVIDIA A100", (8, 0), count=2)
    with pytest.raises(UserError, match=told):
        named_device(device)
    assert named_device("cuda:1") == torch.device("cuda", 1)
    assert named_device("cpu") == CPU
