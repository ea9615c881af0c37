"""Readers of raw datasets, chosen by name or recognised from what lies in the folder."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.errors import UserError
from hpe.sources.base import ImageData, Raw, Reader, Reject, Source

__all__ = ["ImageData", "Raw", "Reader", "Recognised", "Reject", "Source", "open_source", "readers", "recognise"]

_MODULES: Final = (
    "affectnet",
    "affectnet_copies",
    "faces3d",
    "pointing04",
    "biwi",
    "fer",
    "folders",
    "table",
    "rendered",
)
"""In the order in which they are asked: what looks for much before what looks for little."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """Which reader fits a folder, and why."""

    name: str
    why: str


def readers() -> dict[str, Reader]:
    """Every reader by name, the most particular first."""
    modules = (importlib.import_module(f"hpe.sources.{name}") for name in _MODULES)
    return {reader.name: reader for module in modules for reader in module.READERS}


def recognise(path: Path) -> Recognised:
    """The most particular reader that knows what lies at ``path``.

    Raises:
        UserError: none does; the message says what each looks for.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; expected the folder of a raw dataset")
    for reader in readers().values():
        if why := reader.recognise(path):
            return Recognised(reader.name, why)
    looked = "\n".join(f"  {reader.name}: {reader.looks_for}" for reader in readers().values())
    raise UserError(
        f"{path}: not recognised; it holds {contents(path)}. Known are\n{looked}\n"
        "Name one of them, or use `table` with a column mapping"
    )


def open_source(name: str, path: Path, **options: str) -> Source:
    """The dataset at ``path``, opened by the reader of that name (``auto``: the one that recognises it).

    Raises:
        UserError: no such reader or option, or the folder is not what the reader looks for.
    """
    if name == "auto":
        name = recognise(path).name
    known = readers()
    if name not in known:
        raise UserError(f"source {name!r} is not known; expected auto or one of {', '.join(known)}")
    allowed = [p.name for p in inspect.signature(known[name].open).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise UserError(f"source {name}: no option {option!r}; it takes {', '.join(allowed) or 'no options'}")
    return known[name].open(path, **options)


def contents(path: Path, most: int = 8) -> str:
    """What lies in a folder, in a few words, for messages."""
    if not path.is_dir():
        return "no folder" if not path.exists() else f"a file of {path.stat().st_size:,} bytes"
    names: list[str] = []
    entries: Iterator[Path] = path.iterdir()
    for entry in entries:
        names.append(entry.name + "/" * entry.is_dir())
        if len(names) == 1000:
            break
    names.sort()
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
