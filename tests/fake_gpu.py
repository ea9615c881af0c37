"""GPUs that are not there: torch runs on fake ``cuda`` tensors, which have shapes, types and devices but no values.

The processor's own work is done for real; what is moved to ``cuda`` becomes fake. Mixing devices raises, as on a GPU.
What makes the host wait for the device is noted with the line that asked for it, and gets a made-up answer.
Gradients cannot be computed here: stub ``backward`` and DDP.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_numpy = Tensor.numpy


class HostWaits(TorchDispatchMode):
    """Counts by (place, kind) what waits: numbers that are read, masks that choose rows, copies that block."""

    def __init__(self, package: Path) -> None:
        super().__init__()
        self.package, self.found = package, Counter[tuple[str, str]]()

    def _note(self, kind: str) -> None:
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(self.package)]
        place = f"{Path(frames[-1].filename).relative_to(self.package)}:{frames[-1].lineno}" if frames else "elsewhere"
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
        on_gpu = isinstance(args[0], Tensor) and args[0].device.type == "cuda" if args else False
        if packet is aten._local_scalar_dense and args[0].constant is None:
            if on_gpu:
                self._note("a number is read")
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if on_gpu and packet in (aten.bincount, aten._unique2, aten._linalg_svd, aten.nonzero):
            self._note(packet.__name__)
            if packet is aten.bincount:
                return torch.zeros(
                    max(1, *args[2:3], kwargs.get("minlength", 0)), dtype=torch.int64, device=args[0].device
                )
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
        if {source.device.type, to.type} == {"cpu", "cuda"} and not (non_blocking and to.type == "cuda"):
            self._note(f"a copy from {source.device.type} to {to.type}")


@contextmanager
def fake_gpus(package: Path, count: int = 8) -> Iterator[HostWaits]:
    """``count`` GPUs inside the block; the current one is 0 until somebody sets it, as in CUDA."""
    current = [0]

    def numpy(self: Tensor, **_: object) -> Any:
        assert self.device.type == "cpu", f"numpy() of a tensor on {self.device}"
        return _numpy(torch.ones(self.shape, dtype=self.dtype) if isinstance(self, FakeTensor) else self.detach())

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

    def set_device(device: Any) -> None:
        current[0] = torch.device("cuda", getattr(device, "index", device)).index

    cuda: dict[str, Callable[..., object]] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: count,
        "is_bf16_supported": lambda *_, **__: True, "get_device_capability": lambda *_: (9, 0),
        "current_device": lambda: current[0], "max_memory_allocated": lambda *_: 0,
        "set_device": set_device,
        **dict.fromkeys(("empty_cache", "synchronize", "manual_seed_all", "_lazy_init"), lambda *_: None),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for name, function in {"numpy": numpy, "new_tensor": new_tensor, "pin_memory": lambda self, *_: self}.items():
            stack.enter_context(mock.patch.object(Tensor, name, function))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch("torch._subclasses.fake_tensor.init_gpu_context"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(HostWaits(package))
