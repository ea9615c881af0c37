"""How a trained network is asked, by ``hpe evaluate`` and ``hpe predict`` alike: one precision, pieces of one size.

Both commands see the same pixels (:mod:`hpe.predict.network`), and here they go through the same arithmetic: a GPU's
libraries choose their algorithms by the shape of a batch, and what they choose shows in the last digits, in bf16
in the first decimal of an angle.
"""

from dataclasses import fields
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hpe.core.precision import Precision, chosen_precision, lacks_precision
from hpe.models.multitask import MultiTask
from hpe.models.views import Estimates, Views, estimate

_DTYPES: Final[dict[str, torch.dtype | None]] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GPU_PIECE: Final = 64
CPU_PIECE: Final = 16


def judging_precision(asked: str | None, recorded: str, device: torch.device) -> Precision:
    """The precision in which a run is judged: what the user asks for, else that of its training.

    A device that would emulate the precision of the training judges in fp32.

    Args:
        asked: ``--precision``, or None.
        recorded: ``train.precision`` in the run's config; ``auto`` in a config that is not a run's.
        device: where the network runs.

    Raises:
        UserError: this device cannot do what is asked for.
    """
    if asked is not None or recorded == "auto":
        return chosen_precision(asked or recorded, device, asked="--precision")
    if (why := lacks_precision(recorded, device, emulated=True)) is not None:
        return Precision("fp32", f"the training was in {recorded}, and {why}")
    return Precision(recorded, "as in training")


@torch.inference_mode()
def judge(network: MultiTask, inputs: Tensor, views: Views, precision: Precision, batch: int) -> Estimates:
    """A network's estimates for prepared pictures (or angles), which depend on neither the batch nor the command.

    Args:
        network: in evaluation mode, on the device of its inputs.
        inputs: a row a face.
        views: how each picture is looked at.
        precision: of the network's arithmetic.
        batch: the most rows that the user wants in memory together.
    """
    piece = min(GPU_PIECE if inputs.device.type == "cuda" else CPU_PIECE, batch)
    dtype = _DTYPES[precision.name]
    with torch.autocast(inputs.device.type, dtype, enabled=dtype is not None):
        found = [_piece(network, inputs[at : at + piece], views, piece) for at in range(0, len(inputs), piece)]
    return found[0] if len(found) == 1 else Estimates.joined(found)


def _piece(network: MultiTask, rows: Float[Tensor, "rows ..."], views: Views, piece: int) -> Estimates:
    """The estimates of some rows, filled up to a whole piece."""
    missing = piece - len(rows)
    if not missing:
        return estimate(network, rows, views)
    layout = torch.channels_last if rows.ndim == 4 else torch.contiguous_format
    filled = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)).contiguous(memory_format=layout)
    found = estimate(network, filled, views)
    return Estimates(**{name: values[: len(rows)] for name, values in _told(found).items()})


def _told(found: Estimates) -> dict[str, Tensor]:
    return {one.name: values for one in fields(found) if (values := getattr(found, one.name)) is not None}
