"""``hpe export``: a trained network as one ONNX file, checked against the network that it came from.

In reading order:

    write.py         the command: what is exported, checked, then renamed into place
    deployed.py      the network as users call it: bytes of pixels in, probabilities and degrees out
    graph.py         torch → ONNX: the graph, its metadata, int8
    parity.py        both networks on real images: how far apart they are, and what that costs in accuracy
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.export.write import ExportOptions, export

__all__ = ["ExportOptions", "export"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "write"))
