"""Head pose and emotion, trained together on many GPUs.

The Python API is what this module offers; everything below it may change between versions.

::

    import hpe

    hpe.load("runs/ferplus").read("face.jpg")         # a trained network: predictions as a dict
    hpe.Stream([hpe.ShardSet("shards/ferplus", "train")], hpe.Reading(size=224))   # shards as training batches
    hpe.tables("shards/ferplus", pose="lwpose66")     # labels and pose tables as a datasets.Dataset

Names are imported when they are first used, so that ``import hpe`` is fast and loads no torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hpe.data.tables import tables
    from hpe.predict.face_reader import load
    from hpe.stream import Reading, ShardSet, Stream

__version__ = "0.1.0"
__all__ = ["Reading", "ShardSet", "Stream", "load", "tables"]

NOT_HERE: Final = (
    "hpe runs on Linux and macOS. Windows has no links, file locks and signals of the kind that keep a run whole: "
    "use WSL 2 (`wsl --install`), which is a Linux and sees the GPU"
    if sys.platform == "win32"
    else None
)
"""Why this operating system is refused; None where it is not."""

_PUBLIC: Final = {
    "Reading": "hpe.stream",
    "ShardSet": "hpe.stream",
    "Stream": "hpe.stream",
    "load": "hpe.predict.face_reader",
    "tables": "hpe.data.tables",
}
"""Name → module that defines it."""


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if NOT_HERE is not None:
        raise ImportError(NOT_HERE)
    found = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
