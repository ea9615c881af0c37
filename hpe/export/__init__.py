"""``hpe export``: a trained network as one ONNX file, checked against the network that it came from.

In reading order:

    write.py         the command: what is exported, checked, then renamed into place
    deployed.py      the network as users call it: bytes of pixels in, probabilities and degrees out
    graph.py         torch → ONNX: the graph, its metadata, int8
    parity.py        both networks on real images: how far apart they are, and what that costs in accuracy
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.export.write import ExportOptions, export

__all__ = ["ExportOptions", "export"]


def __getattr__(name: str) -> object:
    # Imported late, so that importing one file of this package does not import everything that the command needs.
    if name in __all__:
        from hpe.export import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
