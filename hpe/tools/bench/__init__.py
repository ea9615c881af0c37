"""``hpe bench``: how fast each part of hpe is, compared with alternatives in one run on one machine.

A part is a module of this package with a function ``measure(settings) -> Report``; its contestants take
turns, so that a noisy neighbour slows all of them, and medians and their ratios are reported.

The parts:

    start.py    the time until shards are opened, counted and planned
    stream.py   reading shards, compared with the bare decoder and with other ways to read
    pack.py     raw files to shards, compared with an upper bound and with a plain loop
    pose.py     ``hpe pose``, compared with its network alone
    step.py     ``hpe train``, compared with a bare PyTorch loop
"""

import importlib
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hpe.core.devices import cores
from hpe.core.errors import UserError
from hpe.core.progress import progress
from hpe.data.provenance import processor
from hpe.data.shard_files import refuse_remote

PARTS: Final = ("start", "stream", "pack", "pose", "step")
_OF_SHARDS: Final = ("stream", "pose", "step")
"""Parts that read ``--shards``."""
_PARALLEL: Final = ("pack", "pose")
"""Parts that need a worker; readers of the stream may also work in the process itself."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a benchmark.

    Attributes:
        folder: for its data, which is kept so that the next run is faster.
        workers: processes that a contestant may use.
        repeats: measurements of each contestant.
        samples: images per measurement.
        shards: shards to use instead of rendered ones.
        config: config of a run, which ``step`` measures instead of its own.
    """

    folder: Path
    workers: int = 2
    repeats: int = 3
    samples: int = 6000
    shards: str | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One contestant's rates, one per turn."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of all turns."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our rate over another's: the median of the turns' ratios; what it should reach at least."""

    name: str
    value: float
    target: float | None = None


@dataclass(frozen=True)
class Report:
    """What a part measured."""

    part: str
    unit: str
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"medians": {figure.name: figure.median for figure in self.figures}}

    def __str__(self) -> str:
        width = max(len(name) for name in [f.name for f in self.figures] + [r.name for r in self.ratios])
        lines = [f"{self.part}, {self.unit} ({self.machine['cores']} cores, {self.machine['processor']})"]
        for figure in sorted(self.figures, key=lambda figure: -figure.median):
            turns = "  ".join(f"{value:,.0f}" for value in figure.values)
            lines.append(f"  {figure.name:<{width}}  {figure.median:>10,.0f}   turns: {turns}")
        for ratio in self.ratios:
            target = f"   target {ratio.target:g}" if ratio.target else ""
            missed = "  MISSED" if ratio.target and ratio.value < ratio.target else ""
            lines.append(f"  {ratio.name:<{width}}  {ratio.value:>10.2f}{target}{missed}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "cores": cores(),
        "processor": processor(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def refuse(part: str, settings: Settings) -> None:
    """Let only pass what can be measured.

    Raises:
        UserError: there is no such part, or an option does not fit it.
    """
    if part not in available():
        raise UserError(f"bench {part}: no such part; expected one of {', '.join(available())}")
    if part in _PARALLEL and settings.workers < 1:
        raise UserError(f"bench {part}: --workers {settings.workers}: expected 1 or more")
    if settings.shards is not None and part in _OF_SHARDS:
        refuse_remote(settings.shards, "copy the folder here first, and give the copy as --shards")


def measure(part: str, settings: Settings) -> Report:
    """Run one part.

    Raises:
        UserError: see :func:`refuse`.
    """
    refuse(part, settings)
    return importlib.import_module(f"hpe.tools.bench.{part}").measure(settings)


def available() -> tuple[str, ...]:
    """The parts that this installation has."""
    here = Path(__file__).parent
    return tuple(part for part in PARTS if (here / f"{part}.py").is_file())


def take_turns(contestants: Mapping[str, Callable[[], float]], repeats: int, title: str) -> tuple[Figure, ...]:
    """The rates of contestants that run one after another, ``repeats`` rounds, the order reversed each round."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with progress(title, repeats * len(contestants), unit="turns") as bar:
        for turn in range(repeats):
            names = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
            for name in names:
                bar.note(name)
                rates[name].append(contestants[name]())
                bar.advance()
    return tuple(Figure(name, tuple(values)) for name, values in rates.items())


def ratio(figures: Sequence[Figure], ours: str, other: str, target: float | None = None) -> Ratio:
    """Ours over another: the median over turns of the same round."""
    by_name = {figure.name: figure.values for figure in figures}
    pairs = zip(by_name[ours], by_name[other], strict=True)
    return Ratio(f"ours / {other}", statistics.median(a / b for a, b in pairs), target)
