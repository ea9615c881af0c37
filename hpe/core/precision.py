"""The precision that a device computes in: one rule for every command.

Two functions build on it: :func:`training_precision` (``hpe train``: a resumed run keeps its own) and
``models/inference.py: judging_precision`` (``hpe evaluate`` and ``hpe predict``).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hpe.core.devices import device
from hpe.core.errors import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS: Final = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class Precision:
    """A precision (``bf16``, ``fp16``, ``fp32``), and why it is this one."""

    name: str
    why: str


def chosen_precision(setting: str, where: "torch.device | None" = None, *, asked: str = "train.precision") -> Precision:
    """The precision that a setting means on a device (None: this rank's): the one rule of every command.

    ``auto`` is bf16 where the hardware computes it natively, else fp32. It is never fp16, which scales losses and skips
    steps: that is for the user to choose.

    Raises:
        UserError: the device cannot do it, or it is none; ``asked`` names the option.
    """
    where = device() if where is None else where
    if setting == "auto":
        why = lacks_precision("bf16", where, emulated=True)
        return Precision("bf16", f"{_kind(where)} computes it natively") if why is None else Precision("fp32", why)
    if setting not in PRECISIONS:
        raise UserError(f"{asked}: {setting!r}: expected auto, {', '.join(PRECISIONS)}")
    if (why := lacks_precision(setting, where)) is not None:
        raise UserError(f"{asked}: {why}")
    return Precision(setting, "as asked for")


def training_precision(asked: str, recorded: str | None, *, run: str) -> Precision:
    """The precision of a start: what the config asks for; for ``auto`` that of the run so far, else the rule's choice.

    Args:
        asked: ``train.precision`` of the config.
        recorded: what the run has used until now; None: it is new, or may change.
        run: for the message.

    Raises:
        UserError: this machine does not support the precision of the run so far.
    """
    rule = chosen_precision(asked)
    if asked != "auto" or recorded is None:
        return rule
    if (why := lacks_precision(recorded, device())) is not None:
        raise UserError(
            f"{run}: train.precision: this run was trained in {recorded} until now, which this machine does not "
            f"support: {why}. To continue in {rule.name}, which changes its arithmetic from here on, add "
            f"--change-precision; or continue on a machine that supports {recorded}"
        )
    slow = lacks_precision(recorded, device(), emulated=True)
    return Precision(recorded, "as in this run until now" + (f" ({slow}: expect it to be slow)" if slow else ""))


def lacks_precision(name: str, where: "torch.device", *, emulated: bool = False) -> str | None:
    """Why a device does not do a precision, or None; with ``emulated`` also where a CPU would do it in software."""
    if name == "fp16" and where.type != "cuda":
        return "fp16 needs a GPU; use bf16, fp32 or auto on a CPU"
    if name != "bf16" or multiplies_bf16(where):
        return None
    import torch

    if where.type == "cuda":
        return (
            f"bf16 needs a GPU of compute capability 8.0 or more (A100, RTX 30 and later), and "
            f"{torch.cuda.get_device_name(where)}, {_kind(where)}, would emulate it slowly; use fp16, fp32 or auto"
        )
    return f"{_kind(where)} has no bf16 instructions" if emulated else None


def multiplies_bf16(where: "torch.device") -> bool:
    """Whether a device has instructions for bf16; what torch calls supported may be emulated (V100, T4)."""
    import torch

    if where.type != "cuda":
        return torch.cpu._is_avx512_bf16_supported()
    if torch.version.hip:  # capabilities are numbered otherwise there
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_capability(where) >= (8, 0)


def _kind(where: "torch.device") -> str:
    """What a device is, in words."""
    import torch

    if where.type != "cuda":
        return "this CPU"
    major, minor = torch.cuda.get_device_capability(where)
    return f"a GPU of compute capability {major}.{minor}"
