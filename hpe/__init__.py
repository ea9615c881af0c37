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
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hpe.data.tables import tables
    from hpe.predict.face_reader import load
    from hpe.stream import Reading, ShardSet, Stream

__version__ = "0.1.0"
__all__ = ["Reading", "ShardSet", "Stream", "load", "tables"]

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
    found = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
