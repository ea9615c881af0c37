"""Which lines make the host wait for the device.

On a GPU torch itself tells (``torch.cuda.set_sync_debug_mode``): reading a number, choosing rows by a mask,
copying from memory that is not pinned. On a CPU nothing waits, and only the reads are found, by watching every
operation; so a test without a GPU sees a part of it.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpe.tools.gpucheck import Row

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_HIDDEN: Final = (Path(__file__).resolve().parent, Path(torch.__file__).resolve().parent)
"""Lines of these are not named: those that call them are."""
_MESSAGE: Final = "synchronizing CUDA operation"
_OPTIMIZERS: Final = ("adam.py", "adamw.py", "sgd.py", "optimizer.py")
_READS: Final = frozenset(
    ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
)
_SHOWN: Final = 8


class Watch:
    """Watches steps, and collects where they wait.

    Attributes:
        lines: how often each line has waited, as ``hpe/train/step.py:120``.
    """

    def __init__(self, kind: Literal["cuda", "cpu"]) -> None:
        self.kind = kind
        self.lines: Counter[str] = Counter()
        self._reads = _Reads(self._note)

    @contextmanager
    def during(self, mode: Literal["off", "note", "refuse"]) -> Iterator[None]:
        """Watch what runs inside: note its waits, or on a GPU end it at the first with torch's RuntimeError."""
        with ExitStack() as stack:
            if self.kind == "cpu":
                # What a step copies the next one reads: an unwatched step is followed too.
                self._reads.paused = mode == "off"
                stack.enter_context(self._reads)
                stack.enter_context(_Unread(self._reads))
            elif mode != "off":
                stack.enter_context(self._on_gpu(mode))
            yield

    @contextmanager
    def _on_gpu(self, mode: str) -> Iterator[None]:
        def note(message: Warning | str, *_: Any, **__: Any) -> None:
            if _MESSAGE in str(message):
                self._note()

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("error" if mode == "refuse" else "warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def _note(self) -> None:
        frames = [
            frame
            for frame in traceback.extract_stack()
            if not any(Path(frame.filename).is_relative_to(hidden) for hidden in _HIDDEN)
        ]
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
        last = ours[-1] if ours else frames[-1]
        file = Path(last.filename)
        where = file.relative_to(_PACKAGE.parent) if file.is_relative_to(_PACKAGE.parent) else file.name
        self.lines[f"{where}:{last.lineno}"] += 1

    def row(self, name: str, steps: int) -> Row:
        """What was found in so many steps."""
        told = "waits" if self.kind == "cuda" else "reads from the device"
        if not self.lines:
            return Row(name, "ok", f"nothing {told} in {steps} steps")
        found = [f"{line} ({count / steps:.3g} × a step)" for line, count in self.lines.most_common()]
        more = f" and {len(found) - _SHOWN} more lines" if len(found) > _SHOWN else ""
        return Row(name, "bad", f"{told} at {', '.join(found[:_SHOWN])}{more}", {"lines": dict(self.lines)})


class _Reads(TorchDispatchMode):
    """Notes operations whose result the host reads, on any device.

    Two reads are left out, as they do not wait on a GPU either: of memory that a copy has filled (what a training
    copies to the host and looks at a step later), and an optimizer's own counters, which lie on the host.
    """

    def __init__(self, note: Any) -> None:
        super().__init__()
        self._note, self._copies = note, {}
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "copy_":
            self.copied(args[0])
        if not self.paused and (name in _READS or _chooses_by_mask(name, args)) and not self._on_host(args[0]):
            self._note()
        return func(*args, **(kwargs or {}))

    def copied(self, tensor: Tensor) -> None:
        """A tensor lies on the host, once a copy is done that nobody waits for."""
        storage = tensor.untyped_storage()
        self._copies[storage._cdata] = StorageWeakRef(storage)

    def _on_host(self, tensor: Tensor) -> bool:
        known = self._copies.get(tensor.untyped_storage()._cdata)
        if known is not None and not known.expired():
            return True
        return any(
            frame.filename.endswith(tuple(f"torch/optim/{name}" for name in _OPTIMIZERS))
            for frame in traceback.extract_stack()
        )


class _Unread(TorchFunctionMode):
    """Leaves out functions that look at their input on a CPU only, where a GPU's kernel checks it by itself.

    And notes copies to the host that nobody waits for (``to("cpu", non_blocking=True)``), which on a CPU copy nothing.
    """

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self._reads.paused = self._reads.paused, self._reads.paused or func is F.one_hot
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._reads.paused = before
        if func is Tensor.to and args[1:] == ("cpu",) and (kwargs or {}).get("non_blocking"):
            self._reads.copied(result)
        return result


def _chooses_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation must count a mask first; writing one number where a mask is true needs no count."""
    if name not in ("index", "index_put", "index_put_") or (name != "index" and args[2].numel() == 1):
        return False
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
