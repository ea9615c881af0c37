"""``hpe doctor --gpu``: does this package work, and how fast, on the GPUs of this machine?

Every check is a function that takes a :class:`~hpe.tools.gpucheck.place.Place` (device, folder, shards, sizes) and
yields rows. ``hpe.tools.gpucheck.command`` runs each in a process of its own with a time limit, so that one that
crashes, hangs or spoils its CUDA context says so and the others still run.

In reading order:

    command.py       the command: runs every check, prints the table, writes the report
    __main__.py      one check in its own process
    place.py         device, folder, sizes and rendered heads that the checks share
    environment.py   GPUs, driver and libraries
    training.py      precisions, torch.compile, waits of the host
    waiting.py       which lines make the host wait for the device
    processes.py     all-reduce, and gradients of all ranks
    decoding.py      JPEGs decoded by GPU and CPU
    resume.py        a killed training resumes
    speed.py         images per second
"""

import importlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from hpe.tools.gpucheck.place import Place

State = Literal["ok", "note", "skip", "bad"]


@dataclass(frozen=True, slots=True)
class Row:
    """One finding.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``note`` (worth knowing); ``skip`` (cannot be asked of this machine); ``bad``.
        text: what was found, in one line.
        values: the numbers behind it, for the JSON report.
    """

    name: str
    state: State
    text: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A check: where its function is, what it does, and after how many seconds it is ended."""

    name: str
    function: str
    title: str
    seconds: float

    def run(self, place: "Place") -> Iterator[Row]:
        """The check's rows; an error becomes the last one."""
        module, _, function = self.function.partition(":")
        try:
            yield from getattr(importlib.import_module(f"hpe.tools.gpucheck.{module}"), function)(place)
        except Exception as error:
            yield failed(self.name, error)


DATA: Final = Check("data", "place:data", "rendered heads", 180)
"""Prepares what all checks but the first need; it is not counted among :data:`CHECKS`."""
CHECKS: Final = (
    Check("environment", "environment:environment", "GPUs and versions", 60),
    Check("precision", "training:precision", "each precision trains", 120),
    Check("compile", "training:compiled", "compiled equals eager", 180),
    Check("waits", "training:waits", "the host does not wait in a training step", 90),
    Check("ranks", "processes:processes", "all-reduce, and gradients of all ranks", 120),
    Check("decoding", "decoding:decoding", "GPU decoding against CPU decoding", 90),
    Check("resume", "resume:resume", "killed and resumed", 120),
    Check("speed", "speed:speed", "images per second", 180),
)


def failed(name: str, error: Exception) -> Row:
    """The row of a check that broke; the traceback goes into its log."""
    traceback.print_exception(error)
    return Row(name, "bad", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def attempt(name: str, made: Callable[[], Row]) -> Row:
    """A row, or the one that says why there is none."""
    try:
        return made()
    except Exception as error:
        return failed(name, error)
