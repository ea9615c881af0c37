"""Readers of raw datasets, chosen by name or recognised from what lies in the folder.

In reading order:

    base.py               what a reader yields (Raw or Reject), and what readers share
    paths.py              the pictures that a table names, found on disk
    affectnet.py          AffectNet as released
    affectnet_copies.py   copies of AffectNet in circulation
    ferplus.py            FER+
    fer2013.py            FER2013 as a CSV
    mat.py                small arrays from MATLAB files, without trusting them
    faces3d.py            AFLW2000-3D and 300W-LP
    biwi.py               BIWI Kinect
    pointing04.py         Pointing'04
    folders.py            a folder per class: RAF-DB, and anybody's own
    columns.py            the meaning of a table's columns
    units.py              the unit of a table's angles and boxes
    table.py              any CSV or Parquet table, any dataset of Hugging Face
    rendered.py           rendered heads as a source
    synthetic/            the renderer of these heads

To add a reader: copy a small one (fer2013.py) to NAME.py, which ends with ``READERS``; add ``"NAME"`` to ``_MODULES``
below, before ``folders`` and ``table``, and a line to the list above; test it in tests/sources/ on a small tree in the
documented format. The section "A dataset" of docs/architecture.md describes each step.
"""

import difflib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.core.labels import with_nearest
from hpe.sources.base import ImageData, Raw, Reader, Reject, Source, shown, subfolders

__all__ = ["ImageData", "Raw", "Reader", "Recognised", "Reject", "Source", "open_source", "readers", "recognise"]

_MODULES: Final = (
    "affectnet",
    "affectnet_copies",
    "faces3d",
    "pointing04",
    "biwi",
    "ferplus",
    "fer2013",
    "folders",
    "table",
    "rendered",
)
"""In the order in which ``auto`` tries them: readers that look for more come first."""
_BY_NAMES: Final = ("aflw2000", "300w-lp", "pointing04")
"""Readers that recognise a dataset by the names of pictures anywhere below a folder."""
_GENERAL: Final = ("folders", "table", "huggingface")
"""Readers for any dataset: a part of a particular dataset may look like one of these, too."""
_WITHOUT_FOLDER: Final = ("huggingface", "synthetic")
"""Readers that need none: of datasets by their name on the hub, and of rendered heads."""
_MOST_SUBFOLDERS: Final = 40
_MOST_SAID: Final = 3
_WORKBOOKS: Final = (".xlsx", ".xls", ".ods")
_ARCHIVES: Final = (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
"""How files of zip, gzip, 7z, rar, bzip2 and xz begin."""
_RAW: Final = "expected the folder of a raw dataset (paths are relative to the current folder)"
_TAR_MARK: Final = slice(257, 262)


@dataclass(frozen=True, slots=True)
class Recognised:
    """Which reader fits a folder, and why."""

    name: str
    why: str


def readers() -> dict[str, Reader]:
    """Every reader by name, the most specific first."""
    modules = (importlib.import_module(f"hpe.sources.{name}") for name in _MODULES)
    return {reader.name: reader for module in modules for reader in module.READERS}


def recognise(path: Path) -> Recognised:
    """The most specific reader that recognises ``path``.

    Raises:
        UserError: none does (the message lists what each looks for), or several datasets lie there.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; {_RAW}")
    _refuse_other_files(path)
    found = _first(path)
    several = _several(path, found)
    if len(set(several.values())) > 1:
        listed = ", ".join(f"{folder}/ ({name})" for folder, name in several.items())
        raise UserError(
            f"{path}: several datasets here: {listed}; give one of them, such as {path}/{next(iter(several))}"
        )
    if found:
        return found
    known = "\n".join(f"  {reader.name}: {reader.looks_for}" for reader in readers().values())
    raise UserError(
        f"{path}: not recognised; it holds {contents(path)}. {_likely(path)}The readers look for:\n{known}\n"
        "Give one of these names, or use `table` with a column mapping"
    )


def _likely(path: Path) -> str:
    """What was probably meant: a dataset one folder further down, or folders of classes with an unknown one."""
    from hpe.sources.folders import unknown_classes
    from hpe.sources.table import why_no_table

    said = [f"As a table: {why}." for why in (why_no_table(path),) if why]
    for folder in (path, *subfolders(path)[:_MOST_SUBFOLDERS]):
        if folder != path and (found := _first(folder)):
            said.append(f"Did you mean {shown(folder)} ({found.name}: {found.why})?")
        elif unknown := unknown_classes(folder):
            strange = ", ".join(with_nearest(name, "emotion", "direction") for name in unknown[:4])
            said.append(
                f"{shown(folder)} has class folders, but {strange} name no emotion or direction: rename them, or use "
                f"`hpe pack folders {shown(folder)}` with --option classes={unknown[0]}=… or {unknown[0]}=skip."
            )
    if not said and any(next(folder.glob("*.json"), None) for folder in (path, path / "annotations")):
        said.append("Annotations in JSON are not read: write a CSV with columns for picture, box and label (`table`).")
    return "".join(f"{text} " for text in said[:_MOST_SAID])


def _refuse_other_files(path: Path) -> None:
    """Say what to do with a file that holds a dataset in another form."""
    if not path.is_file():
        return
    ways = {
        _WORKBOOKS: "a workbook; save its sheet as CSV, and give that",
        (".json", ".jsonl"): "JSON is not read; write a CSV with columns for picture and labels (reader `table`)",
    }
    for suffixes, way in ways.items():
        if path.name.lower().endswith(suffixes):
            raise UserError(f"{path}: {way}")
    with open_regular(path) as stream:
        start = stream.read(_TAR_MARK.stop)
    if start.startswith(_ARCHIVES) or start[_TAR_MARK] == b"ustar":
        raise UserError(f"{path}: an archive, or a workbook; unpack it and give the folder, or save the sheet as CSV")


def _first(path: Path) -> Recognised | None:
    found = ((reader.name, reader.recognise(path)) for reader in readers().values())
    return next((Recognised(name, why) for name, why in found if why), None)


def _several(path: Path, found: Recognised | None) -> dict[str, str]:
    """The subfolders that are datasets of their own, and which dataset each is."""
    if found and found.name not in _BY_NAMES:
        return {}
    below = {folder.name: _first(folder) for folder in subfolders(path)[:_MOST_SUBFOLDERS]}
    return {shown(name): its.name for name, its in below.items() if its and its.name not in _GENERAL}


def open_source(name: str, path: Path, /, **options: str) -> Source:
    """The dataset at ``path``, opened by the reader of that name (``auto``: the one that recognises it).

    Raises:
        UserError: no such reader or option, or the folder is not what the reader looks for.
    """
    if name == "auto":
        name = recognise(path).name
    _refuse_other_files(path)
    known = readers()
    if name not in known:
        near = [one for one in known if one.startswith(name)] or difflib.get_close_matches(name, known)
        meant = f"did you mean {', '.join(near)}? " * bool(near)
        raise UserError(f"unknown reader {name!r}; {meant}`hpe pack list` shows all, auto finds it from the files")
    allowed = [p.name for p in inspect.signature(known[name].open).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise UserError(f"source {name}: no option {option!r}; it takes {', '.join(allowed) or 'no options'}")
    if name not in _WITHOUT_FOLDER and not path.exists():
        raise UserError(f"{path}: there is no such file or folder; {_RAW}")
    reader = known[name]
    try:
        return reader.open(path, **options)
    except UserError as error:
        if name in _WITHOUT_FOLDER or reader.recognise(path) or not (near := _near(reader, path)):
            raise
        if str(error).endswith(f" {near}: give that folder"):
            raise
        raise UserError(f"{error}; did you mean {near}?") from error


def _near(reader: Reader, path: Path) -> str | None:
    """The folder above or below a path that a reader recognises, if there is one."""
    above = path / ".." if path.name in ("", "..") else path.parent
    folders = (above, *(subfolders(path)[:_MOST_SUBFOLDERS] if path.is_dir() else ()))
    return next((shown(folder) for folder in folders if reader.recognise(folder)), None)


def contents(path: Path, most: int = 8) -> str:
    """The content of a folder in a few words, for messages."""
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
