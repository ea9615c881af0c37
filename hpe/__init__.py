"""Head pose and emotion, trained together on many GPUs.

The Python API is what this module offers; everything below it may change between versions.

::

    import hpe

    model = hpe.load("runs/ferplus")                  # a trained network
    model("face.jpg")[0].emotion                      # what it reads in an image: hpe.Faces, of hpe.Face
    hpe.Stream([hpe.ShardSet("shards/ferplus", "train")], hpe.Reading(size=224))   # shards as training batches
    hpe.tables("shards/ferplus", pose="lwpose66")     # labels and pose tables as a datasets.Dataset

Names are imported when they are first used, so that ``import hpe`` is fast and loads no torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hpe.core.errors import UserError
    from hpe.data.tables import tables
    from hpe.predict.face_reader import FaceReader, load
    from hpe.predict.faces import Face, Faces
    from hpe.stream import Reading, ShardSet, Stream

__version__ = "0.1.0"
__all__ = ["Face", "FaceReader", "Faces", "Reading", "ShardSet", "Stream", "UserError", "load", "tables"]

NOT_HERE: Final = (
    "hpe runs on Linux and macOS. Windows has no links, file locks and signals of the kind that keep a run whole: "
    "use WSL 2 (`wsl --install`), which is a Linux and sees the GPU"
    if sys.platform == "win32"
    else None
)
"""Why this operating system is refused; None where it is not."""

_PUBLIC: Final = {
    "Face": "hpe.predict.faces",
    "FaceReader": "hpe.predict.face_reader",
    "Faces": "hpe.predict.faces",
    "Reading": "hpe.stream",
    "ShardSet": "hpe.stream",
    "Stream": "hpe.stream",
    "UserError": "hpe.core.errors",
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
