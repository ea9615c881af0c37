"""GPUs that are not there: torch code runs on fake ``cuda`` tensors, with shapes, types and devices but no values.

The processor's own work is done for real; what is moved to ``cuda`` becomes fake. Mixing devices raises, as on a GPU.
What makes the host wait for the device is noted with the line that asked for it, and gets a made-up answer.
Gradients cannot be computed here: ``backward`` makes zeros, and DDP passes everything on. It judges devices, types and
waits; it cannot judge numbers, speed, memory, NCCL or cuDNN.

Private parts of torch: tried on the version named in ``TRIED``, and skipped with a reason on others.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from hpe.stream import augment

TRIED: Final = "2.15"
RANK, WORLD = 1, 8
aten = torch.ops.aten
_numpy = Tensor.numpy


def skip_elsewhere() -> None:
    """Skip a test where torch is another version than the one whose private parts are used here."""
    if not torch.__version__.startswith(f"{TRIED}."):
        pytest.skip(f"fake GPUs use private parts of torch {TRIED}; this is {torch.__version__}")


class HostWaits(TorchDispatchMode):
    """Counts by (place, kind) what waits: numbers that are read, masks that choose rows, copies that block.

    A copy to the device waits where the host's memory is pageable, whatever it is asked for: CUDA then empties its
    stream first.
    """

    def __init__(self, package: Path) -> None:
        super().__init__()
        self.package, self.found = package, Counter[tuple[str, str]]()
        self._pinned: dict[int, Tensor] = {}  # kept, so that no other tensor gets its memory

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy in what counts as page-locked memory."""
        with _disable_current_modes():
            copied = tensor.clone()
            self._pinned[copied.untyped_storage().data_ptr()] = copied
            return copied

    def _note(self, kind: str) -> None:
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(self.package)]
        place = f"{Path(frames[-1].filename).relative_to(self.package)}:{frames[-1].name}" if frames else "elsewhere"
        self.found[place, kind] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        given = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in given):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):  # inference mode hands on operations that are made of others
            with self:
                return func.decompose(*args, **kwargs)
        if packet is aten._fused_sgd_:
            return None  # has no fake kernel; what it changes are values, which are not there
        on_gpu = isinstance(args[0], Tensor) and args[0].device.type == "cuda" if args else False
        if packet is aten._local_scalar_dense and args[0].constant is None:
            if on_gpu:
                self._note("a number is read")
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if on_gpu and packet in (aten.bincount, aten._unique2, aten._linalg_svd, aten.nonzero):
            self._note(packet.__name__)
            if packet is aten.bincount:
                bins = max(1, *args[2:3], kwargs.get("minlength", 0))
                return torch.zeros(bins, dtype=torch.int64, device=args[0].device)
            if packet is aten._unique2:
                return args[0].flatten(), *(torch.zeros_like(args[0].flatten(), dtype=torch.int64) for _ in range(2))
        if on_gpu and packet is aten.index:
            args = (args[0], [self._index(args[0], index) for index in args[1]])
        if packet is aten._to_copy:
            self._note_copy(args[0], torch.device(kwargs.get("device") or args[0].device), kwargs.get("non_blocking"))
        if packet is aten.copy_:
            self._note_copy(args[1], args[0].device, kwargs.get("non_blocking") or args[2:3] == (True,))
        return func(*args, **kwargs)

    def _index(self, values: Tensor, index: Tensor | None) -> Tensor | None:
        if index is None or (index.device == values.device and index.dtype != torch.bool):
            return index
        self._note("a mask chooses rows" if index.dtype == torch.bool else "an index comes from the host")
        if index.device.type == "cuda" and index.device != values.device:
            raise RuntimeError(f"values on {values.device} are indexed from {index.device}")
        return torch.arange(len(index), device=values.device) if index.dtype == torch.bool else index  # as if all were

    def _note_copy(self, source: Tensor, to: torch.device, non_blocking: object) -> None:
        kinds = (source.device.type, to.type)
        if kinds == ("cuda", "cpu") and not non_blocking:  # otherwise torch makes page-locked memory for it
            self._note("a copy from cuda to cpu")
        if kinds == ("cpu", "cuda"):
            ready = not isinstance(source, FakeTensor) and source.untyped_storage().data_ptr() in self._pinned
            if not (non_blocking and ready):
                self._note("a copy from cpu to cuda" if ready else "a copy from pageable memory to cuda")


@contextmanager
def fake_gpus(package: Path, count: int = WORLD) -> Iterator[HostWaits]:
    """``count`` GPUs inside the block; the current one is 0 until somebody sets it, as in CUDA."""
    current = [0]
    waits = HostWaits(package)

    def numpy(self: Tensor, **_: object) -> Any:
        assert self.device.type == "cpu", f"numpy() of a tensor on {self.device}"
        return _numpy(torch.ones(self.shape, dtype=self.dtype) if isinstance(self, FakeTensor) else self.detach())

    def tolist(self: Tensor) -> Any:
        here = self.cpu()
        return [tolist(one) for one in here] if here.ndim else here.item()

    def apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in self.children() if recurse else ():  # torch's own swaps fake parameters, and refuses that
            child._apply(function)
        with torch.no_grad():
            for name, value in self._parameters.items():
                if value is not None and (moved := function(value)) is not value:
                    self._parameters[name] = nn.Parameter(moved, value.requires_grad)
            self._buffers.update({name: function(value) for name, value in self._buffers.items() if value is not None})
        return self

    def new_tensor(self: Tensor, data: object, *, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)  # torch: of the device guard

    cuda: dict[str, Callable[..., object]] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: count,
        "is_bf16_supported": lambda *_, **__: True, "get_device_capability": lambda *_: (9, 0),
        "current_device": lambda: current[0], "max_memory_allocated": lambda *_: 0,
        "set_device": lambda device: current.__setitem__(0, getattr(device, "index", device)),
        "Event": lambda **_: SimpleNamespace(record=lambda _: None, synchronize=lambda: None),
        "current_stream": lambda *_: None,
        **dict.fromkeys(("empty_cache", "synchronize", "manual_seed_all", "_lazy_init"), lambda *_: None),
    }  # fmt: skip
    tensors = {"numpy": numpy, "new_tensor": new_tensor, "pin_memory": lambda self, *_: waits.pinned(self)}
    with ExitStack() as stack:
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for name, function in tensors.items():
            stack.enter_context(mock.patch.object(Tensor, name, function))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))  # its own reads one by one
        stack.enter_context(mock.patch.object(nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch("torch._subclasses.fake_tensor.init_gpu_context"))
        stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copies of fake networks do
        augment._constant.cache_clear()
        stack.callback(augment._constant.cache_clear)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(waits)


class _PassThrough(nn.Module):
    """What DDP looks like from outside; its gradients cannot be computed on fake tensors."""

    def __init__(self, module: nn.Module, **_: object) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        yield


def _backward(self: Accelerator, loss: Tensor, **_: object) -> None:
    """Zero gradients for every parameter that wants one, by way of the gradient scaler where there is one."""
    if self.scaler is not None:
        loss = self.scaler.scale(loss)
    assert loss.requires_grad
    assert loss.ndim == 0
    for model in self._models:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


@contextmanager
def fake_rank(monkeypatch: pytest.MonkeyPatch, package: Path) -> Iterator[HostWaits]:
    """Rank 1 of 8 on a node of eight fake GPUs, as a launcher would have started it."""
    skip_elsewhere()
    from torch.testing._internal.distributed.fake_pg import FakeStore

    variables = {"RANK": RANK, "LOCAL_RANK": RANK, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": 29500}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("HPE_RANK_TIMEOUT", "0")  # the other ranks have no heart
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", _PassThrough)
    monkeypatch.setattr(Accelerator, "backward", _backward)
    for name in ("hpe.train.resume.agree", "hpe.train.setup.agree", "hpe.core.distributed.agree"):
        monkeypatch.setattr(name, lambda text: text)
    monkeypatch.setattr("hpe.core.distributed.some_rank", lambda mine: mine)
    monkeypatch.setattr("hpe.core.ranks.from_parent", lambda *_: None)  # the test is not to die with its parent
    AcceleratorState._reset_state(reset_partial_state=True)
    dist.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    try:
        with fake_gpus(package) as waits:
            yield waits
    finally:
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def gpus(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], count: int = 1) -> None:
    """A machine with GPUs for which torch, as it does, calls bf16 supported though they may emulate it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
