"""``hpe doctor``: is this machine fit for the job, and does this build keep its conventions?"""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe import __version__
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK
from hpe.core.files import resolved

_PACKAGES: Final = (
    "torch", "torchvision", "accelerate", "datasets", "webdataset", "torchmetrics", "typer", "tensorboard",
    "timm", "simplejpeg",
)  # fmt: skip
_ONNX_BUILDS: Final = ("onnxruntime", "onnxruntime-gpu")
_LOW_DISK_GIB: Final = 10
_LOW_SHARED_GIB: Final = 1
_FULL_DISK_GIB: Final = 1
_REDUCE_SECONDS: Final = 90
_GRACE_SECONDS: Final = 20
_REDUCE: Final = """
import os, sys
try:
    import torch
    import torch.distributed as dist
    backend = os.environ["HPE_BACKEND"]
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend)
    value = torch.tensor([float(rank + 1)], device=device)
    dist.all_reduce(value)
    assert value.item() == 3.0, f"1 + 2 gave {value.item()}"
    os._exit(0)  # neither destroys the group nor takes Python apart: see hpe.core.ranks.leave
except Exception as error:
    sys.exit("reason: " + " ".join(str(error).split()))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: ``ok``, ``note`` (worth knowing) or ``bad`` (something will not work)."""

    name: str
    state: str
    text: str


def doctor(folder: Path, *, quick: bool) -> int:
    """Print every finding; the exit code says whether one is bad. ``quick`` leaves the all-reduce out."""
    code = EXIT_OK
    checks = {"packages": _versions, "devices": _devices, "disk": lambda: _disk(folder), "conventions": _conventions}
    if not quick:
        checks["all-reduce"] = _all_reduce
    for name, check in checks.items():
        for finding in _guarded(name, check):
            print(f"{finding.state:5}{finding.name:14}{finding.text}", flush=True)
            if finding.state == "bad":
                code = EXIT_INCOMPLETE
    return code


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that breaks, say by a package that is not there or does not load, is a finding itself."""
    try:
        yield from check()
    except Exception as error:  # whatever it is, the other checks still say something
        yield Finding(name, "bad", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _versions() -> Iterator[Finding]:
    yield Finding("hpe", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    builds = [f"{name} {importlib.metadata.version(name)}" for name in _ONNX_BUILDS if _installed(name)]
    yield Finding("packages", "ok", ", ".join((*found, *builds)))
    if len(builds) > 1:
        yield Finding(
            "packages", "bad",
            f"{' and '.join(builds)} contain the same files, so either may be broken; pip uninstall -y onnxruntime, "
            "then pip install --force-reinstall --no-deps onnxruntime-gpu",
        )  # fmt: skip
    if not builds:
        missing.append(_ONNX_BUILDS[0])
    if missing:
        yield Finding("packages", "bad", f"not installed: {', '.join(missing)}; run pip install hpe again")


def _installed(name: str) -> bool:
    return any(importlib.metadata.distributions(name=name))


def _devices() -> Iterator[Finding]:
    import torch
    import torchvision.ops  # noqa: F401 (a torchvision that does not fit torch breaks here)

    from hpe.core.devices import cores, rocm, unused_gpu
    from hpe.core.precision import chosen_precision

    yield Finding("processors", "ok", f"{cores()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        why = unused_gpu()
        found = "torch sees no GPU: everything runs on the CPU, and training is slow"
        yield Finding("GPU", "bad" if why else "note", f"{found}; {why}" if why else found)
        return
    if why := rocm():
        yield Finding("GPU", "note", why)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = chosen_precision("auto", torch.device("cuda", index)).name
        mixed = "mixed precision bf16" if precision == "bf16" else "fp32, or mixed with train.precision: fp16"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Finding("GPU", "ok", f"{index}: {properties.name}, {memory}, {mixed}")


def _disk(folder: Path) -> Iterator[Finding]:
    try:
        named = resolved(folder)
        there = next(place for place in (named, *named.parents) if place.is_dir())
        free = shutil.disk_usage(there).free / 2**30
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        yield Finding("disk", "bad", f"cannot read {folder} ({reason}); choose a folder that you may read and write")
    else:
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("disk", "bad", f"cannot write in {there}; choose a folder that you may write")
        state = "bad" if free < _FULL_DISK_GIB else "note" if free < _LOW_DISK_GIB else "ok"
        yield Finding("disk", state, f"{free:.1f} GiB free in {there}")
    shared = Path("/dev/shm")  # noqa: S108 (measured, not written to)
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        enough = free > _LOW_SHARED_GIB
        state = "ok" if enough else "bad"
        hint = "" if enough else "; batches travel through it: start the container with --shm-size 16g"
        yield Finding("shared memory", state, f"{free:.1f} GiB free{hint}")


def _conventions() -> Iterator[Finding]:
    """Sign, order, unit and colour order, each checked against a fact that does not come from our formula."""
    import numpy as np
    import torch
    from scipy.spatial.transform import Rotation

    from hpe.core.geometry import axes_in_picture, mirror_angles, rotation_from_euler
    from hpe.data.images import decode_rgb, encode_jpeg

    angles = torch.tensor([40.0, -20.0, 10.0], dtype=torch.float64)
    reference = Rotation.from_euler("xyz", [-20.0, 40.0, 10.0], degrees=True).as_matrix()
    left, up = axes_in_picture(torch.tensor([[40.0, 0, 0], [0, 20.0, 0]]))[:, 2]
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    rotation = rotation_from_euler(angles)
    for name, right, text in (
        ("order, unit", np.allclose(rotation.numpy(), reference), "Rz(roll) Ry(yaw) Rx(pitch) in degrees, as SciPy"),
        ("sign", bool(left[0] < 0 and up[1] < 0), "yaw + looks to the left edge, pitch + looks up"),
        ("mirror", torch.allclose(rotation_from_euler(mirror_angles(angles)), mirror @ rotation @ mirror),
         "a flip negates yaw and roll"),
        ("colour order", decode_rgb(encode_jpeg(red, 95))[8, 8].argmax() == 0, "red stays red through a JPEG"),
    ):  # fmt: skip
        yield Finding(name, "ok" if right else "bad", text)


def _all_reduce() -> Iterator[Finding]:
    import torch

    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # They meet as those of `hpe train --processes` do. The c10d rendezvous would look up this host's own name, which
    # many containers cannot.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    environment = os.environ | {"HPE_BACKEND": backend, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    text = f"two processes sum over {backend}"
    code, output = _answer([*command, sys.executable, "-c", _REDUCE], environment, _REDUCE_SECONDS)
    reason = next((line.partition("reason: ")[2] for line in output.splitlines() if "reason: " in line), "")
    if code is None:
        yield Finding("all-reduce", "bad", f"{text}: no answer within {_REDUCE_SECONDS} s")
    elif code:
        yield Finding("all-reduce", "bad", f"{text}: {reason or f'exit code {code}'}")
    else:
        yield Finding("all-reduce", "ok", text)


def _answer(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None when the time was up) and standard error of a command, of which no process is left."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, output = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            process.terminate()  # the launcher ends its ranks with it: they are in sessions of their own
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
