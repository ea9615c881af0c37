"""Where the pictures lie that a table names: found as a person would find them, never outside the dataset's folder."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from hpe.core.files import resolved
from hpe.data.image_files import SUFFIXES
from hpe.sources.base import shown

_Parts = tuple[str, ...]
"""A path below the dataset's folder."""
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_MOST_SHOWN: Final = 80


@dataclass(frozen=True)
class _Folder:
    """A folder's names, read once: a look at each file would take minutes on a network's disk.

    Attributes:
        names: each with whether it is a link.
        leads_out: the folder itself lies outside the dataset's, behind a link.
    """

    names: dict[str, bool]
    leads_out: bool

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """Names that differ in upper and lower case, or in the Unicode form of their letters, alone."""
        return _grouped(self.names, lambda name: unicodedata.normalize("NFC", name).casefold())

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        return _grouped(
            (name for name in self.names if os.path.splitext(name)[1].lower() in SUFFIXES),  # noqa: PTH122
            lambda name: os.path.splitext(name)[0],  # noqa: PTH122
        )

    def alike(self, name: str) -> list[str]:
        """The names that a person would take for this one, those of the same letters first."""
        composed = unicodedata.normalize("NFC", name)
        found = self._alike.get(composed.casefold(), [])
        return [n for n in found if unicodedata.normalize("NFC", n) == composed] or found

    def pictures_named(self, stem: str) -> list[str]:
        """The pictures of this name with any suffix."""
        return self._stems.get(stem, [])


def _grouped(names: "dict[str, bool] | object", by: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:  # pyright: ignore[reportGeneralTypeIssues]
        found[by(name)].append(name)
    return found


class PathError(ValueError):
    """A path that a table names leads to no picture of the dataset, for the reason in the message."""


@dataclass
class ImageFinder:
    """Finds the pictures of one reading of a table.

    A path may be relative, absolute, or absolute on the machine where the table was written; its separators may be
    those of Windows; upper and lower case, the Unicode form of letters, and a missing suffix are forgiven where one
    file alone fits. What was forgiven is counted for the manifest. Links inside the dataset's folder are followed, and
    counted where they lead out; ``..`` and absolute paths are resolved first and must end inside it.

    Attributes:
        home: the dataset's folder.
        start: where relative paths start; inside ``home``.
        encoding: of the table: a name may have been stored in the same bytes.
        way_out: what to do where nothing is found, for messages.
        way_in: what to do where a path leads out of the dataset's folder.
    """

    home: Path
    start: Path
    encoding: str = "utf-8"
    way_out: str = ""
    way_in: str = ""
    _folders: dict[_Parts, _Folder | None] = field(default_factory=dict)
    _parents: dict[str, _Parts | None] = field(default_factory=dict)
    _existing: dict[str, bool] = field(default_factory=dict)
    _prefix: _Parts = ()
    _forgiven: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._home = resolved(self.home)
        self._start: _Parts = self.start.relative_to(self.home).parts

    def find(self, text: str) -> tuple[Path, str]:
        """The picture, and its path below the dataset's folder, as records have it.

        Raises:
            PathError: the path is empty, leads out of the dataset's folder, or no or several files fit it.
        """
        name = text.strip().replace("\\", "/")
        if not name or "\0" in name:
            raise PathError("the path is empty" if not name else f"path {name[:_MOST_SHOWN]!r} has a zero byte")
        path = PurePosixPath(name)
        if path.is_absolute() or _DRIVE.match(name):
            parts = self._of_absolute(name, path)
        elif ".." in path.parts:
            parts = self._of_existing(self.start / path, text)
        else:
            parts = self._start + path.parts
        if not parts:
            raise PathError(f"path {text[:_MOST_SHOWN]!r} is the dataset's folder")
        found = self._lookup(parts)
        if found is None:
            raise PathError(f"{self._why_not(parts)}{self.way_out}")
        return self.home.joinpath(*found), shown("/".join(found))

    def notes(self) -> tuple[str, ...]:
        """What was forgiven, with counts."""
        return tuple(
            f"paths: {count:,} {kind}, such as {self._examples[kind]}" for kind, count in self._forgiven.items()
        )

    def _count(self, kind: str, example: str) -> None:
        self._forgiven[kind] += 1
        self._examples.setdefault(kind, shown(example))

    def _of_absolute(self, name: str, path: PurePosixPath) -> _Parts:
        if path.is_absolute() and self._exists(str(path.parent)):
            return self._of_existing(Path(path), name)
        # Written on another machine: what lies below the dataset's folder here is the end of the path.
        parts = PurePosixPath(name[2:] if _DRIVE.match(name) else name).parts[1:]
        if ".." in parts:
            raise PathError(f"path {name[:_MOST_SHOWN]!r} leads out of the dataset's folder {shown(self.home)}")
        places = range(len(parts))
        if self._prefix and parts[: len(self._prefix)] == self._prefix:
            places = (len(self._prefix),)
        for at in places:
            below = self._start + parts[at:]
            if parts[at:] and self._lookup(below, count=False) is not None:
                self._prefix = parts[:at]
                self._count("are absolute and of another machine; their ends are found here", name)
                return below
        raise PathError(
            f"the absolute path {name[:_MOST_SHOWN]!r} is not on this machine, and no end of it is in "
            f"{shown(self.start)}{self.way_out}"
        )

    def _exists(self, folder: str) -> bool:
        if folder not in self._existing:
            self._existing[folder] = Path(folder).is_dir()
        return self._existing[folder]

    def _of_existing(self, path: Path, text: str) -> _Parts:
        """An absolute path, or one with ``..``, as one below the dataset's folder; resolved before it is tested."""
        parent = str(path.parent)
        if parent not in self._parents:
            self._parents[parent] = self._below_home(path.parent)
        parts = self._parents[parent]
        if parts is None or path.name == "..":
            there = f", where a file is{self.way_in}" if path.is_file() else ""
            raise PathError(f"path {text[:_MOST_SHOWN]!r} leads out of the dataset's folder {shown(self.home)}{there}")
        return (*parts, path.name)

    def _below_home(self, folder: Path) -> _Parts | None:
        try:
            real = resolved(folder)
        except OSError:
            return None
        if real.is_relative_to(self._home):
            return real.relative_to(self._home).parts
        # A folder that is linked into the dataset's lies elsewhere, but it is named as one of it.
        named, home = Path(os.path.normpath(folder.absolute())), Path(os.path.normpath(self.home.absolute()))
        if ".." not in folder.parts and named.is_relative_to(home):
            return named.relative_to(home).parts
        return None

    def _folder(self, parts: _Parts) -> _Folder | None:
        if parts not in self._folders:
            path = self.home.joinpath(*parts)
            self._folders[parts] = None
            with suppress(OSError, ValueError):
                real = resolved(path)
                # A link to a folder above the dataset, such as /, would open all of the disk to the table.
                if not parts or not self._home.is_relative_to(real):
                    with os.scandir(path) as found:
                        names = {entry.name: entry.is_symlink() for entry in found}
                    self._folders[parts] = _Folder(names, not real.is_relative_to(self._home))
        return self._folders[parts]

    def _lookup(self, parts: _Parts, *, count: bool = True) -> _Parts | None:
        """The names on disk of a path; None where nothing is found.

        Raises:
            PathError: several files fit.
        """
        real: _Parts = ()
        linked = False
        for at, part in enumerate(parts):
            folder = self._folder(real)
            name = folder and self._name(folder, part, last=at == len(parts) - 1, count=count)
            if not folder or not name:
                return None
            real = (*real, name)
            linked = folder.leads_out or folder.names[name]
        if count and linked:
            self._count_link(real)
        return real

    def _name(self, folder: _Folder, name: str, *, last: bool, count: bool) -> str | None:
        if name in folder.names:
            return name
        if not name.isascii() and not self.encoding.startswith("utf"):
            stored = os.fsdecode(name.encode(self.encoding, "replace"))
            if stored in folder.names:
                return stored
        found = folder.alike(name)
        same = found and unicodedata.normalize("NFC", found[0]) == unicodedata.normalize("NFC", name)
        kind = "differ from the file's name in " + (
            "the Unicode form of letters (NFC, NFD)" if same else "upper and lower case"
        )
        if not found and last and os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH122
            found, kind = folder.pictures_named(name), "lack the file's suffix"
        if len(found) > 1:
            raise PathError(f"several files fit {name[:_MOST_SHOWN]!r}: {', '.join(map(shown, sorted(found)[:4]))}")
        if found and count:
            self._count(kind, f"{name} for {found[0]}")
        return found[0] if found else None

    def _count_link(self, parts: _Parts) -> None:
        path = self.home.joinpath(*parts)
        if not resolved(path).is_relative_to(self._home):
            places = [p for p in (*reversed(path.parents), path) if p.is_relative_to(self.home) and p != self.home]
            link = next((p for p in places if p.is_symlink()), path)
            self._count("lie behind links that lead out of the dataset's folder", f"{link} → {resolved(link)}")

    def _why_not(self, parts: _Parts) -> str:
        """The likely cause, for a path that is not there."""
        real: _Parts = ()
        for at, part in enumerate(parts):
            place = shown(self.home.joinpath(*real))
            folder = self._folder(real)
            if folder is None:
                return f"no folder {place}"
            name = self._name(folder, part, last=at == len(parts) - 1, count=False)
            if name is None:
                others = folder.pictures_named(os.path.splitext(part)[0])  # noqa: PTH122
                instead = f" ({', '.join(map(shown, others[:4]))} is there)" if others else ""
                return f"no {shown(part)[:_MOST_SHOWN]!r} in {place}{instead}"
            real = (*real, name)
        return f"{shown(self.home)} is a folder"
