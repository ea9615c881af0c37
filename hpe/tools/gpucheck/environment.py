"""Which GPUs, driver and libraries there are; and why there are none."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from hpe.core.devices import cores, cuda
from hpe.data.provenance import about_package
from hpe.tools.gpucheck import Row, attempt
from hpe.tools.gpucheck.place import Place

_TENSOR_CORES: Final = 7
"""Compute capability from which fp16 is fast; bf16 comes with the next one."""
_DRIVERS: Final = ("/dev/nvidiactl", "/dev/dxg")
"""Of Linux, and of Linux inside Windows."""
_SIDE: Final = 256


def why_no_gpu() -> str | None:
    """Why hpe would run on the CPU here, and the way out; None where it sees a GPU."""
    if cuda():
        return None
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes"):
        return f"ACCELERATE_USE_CPU={os.environ['ACCELERATE_USE_CPU']} switches GPUs off; unset it"
    if torch.version.cuda is None and torch.version.hip is None:
        if torch.backends.mps.is_available():
            return "this is an Apple GPU (MPS); these checks are for NVIDIA GPUs"
        return f"torch {torch.__version__} is built for CPUs only; install a build of torch with CUDA"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU; unset it"
    if torch.version.cuda is not None and not any(Path(driver).exists() for driver in _DRIVERS):
        return (
            "no NVIDIA driver is visible (/dev/nvidiactl does not exist); "
            "install the driver, or start the container with --gpus all"
        )
    return f"{_refusal()}; `nvidia-smi` shows what the driver sees"


def _refusal() -> str:
    """What CUDA says when it is started."""
    with warnings.catch_warnings(action="ignore"):
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return " ".join(str(error).split())[:300].rstrip(". ")
    return "torch finds no usable GPU"


def environment(place: Place) -> Iterator[Row]:
    """Check 1: what there is. A GPU for which torch has no kernels is bad."""
    yield _versions()
    if place.kind == "cpu":
        yield Row("GPU", "skip", "left alone (--device cpu): the checks run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        yield attempt(f"GPU {index}", lambda index=index: _gpu(index))


def _versions() -> Row:
    package = about_package()
    values = {
        **package,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "accelerate": _version("accelerate"),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if cuda() else None,
        "nccl": _nccl() if cuda() else None,
        "driver": _driver() if cuda() else None,
        "cores": cores(),
        "gpus": torch.cuda.device_count() if cuda() else 0,
    }
    names = ("torch", "cuda", "cudnn", "nccl", "driver")
    told = ", ".join(f"{name} {values[name]}" for name in names if values[name] is not None)
    commit = f" ({package['commit'][:12]})" if package["commit"] else ""
    text = f"hpe {package['hpe']}{commit}, Python {values['python']}, {told}, {cores()} cores"
    return Row("versions", "note" if torch.version.hip else "ok", text + _rocm(), values)


def _rocm() -> str:
    return "; ROCm was never tried with this package" if torch.version.hip else ""


def _nccl() -> str | None:
    from torch.cuda import nccl

    try:
        return ".".join(map(str, nccl.version()))
    except (AttributeError, RuntimeError):  # builds without it
        return None


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    asked = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] if told else None


def _gpu(index: int) -> Row:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = f"{properties.major}.{properties.minor}"
    values = {
        "name": properties.name,
        "compute_capability": capability,
        "memory_gib": round(total / 2**30, 1),
        "free_gib": round(free / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }
    # Sums of whole numbers below 2^11 are exact in every arithmetic: a kernel that runs gives just this.
    ones = torch.ones((_SIDE, _SIDE), device=torch.device("cuda", index))
    if not bool((ones @ ones == _SIDE).all()):
        return Row(f"GPU {index}", "bad", f"{properties.name}: a matrix product is wrong", values)
    text = f"{properties.name}, compute capability {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if properties.major < _TENSOR_CORES:
        return Row(f"GPU {index}", "note", f"{text}; it has no tensor cores: mixed precision gains little", values)
    if free < total / 2:
        return Row(f"GPU {index}", "note", f"{text}; others use this GPU: expect lower speeds", values)
    return Row(f"GPU {index}", "ok", text, values)
