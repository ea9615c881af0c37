"""What lies in a raw dataset's folder and became neither a sample nor a line of the quarantine: counted by kind.

Readers yield what they understand; this looks at the folder itself, so that the counts add up whatever the reader:
every file is a row's picture, or is counted here.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hpe.data.image_files import in_words, walk
from hpe.sources.base import shown

UNNAMED: Final = "picture that no row names"


class TakenFiles:
    """The pictures that rows name, and the targets of those that are links.

    A number for each, so that a dataset of millions fits in memory.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()

    def add(self, path: Path) -> None:
        """Add the file of a row."""
        place = _place(path)
        self._known.add(hash(place))
        if os.path.islink(place):  # noqa: PTH114 (a path is not made of every text)
            self._known.add(hash(os.path.realpath(place)))

    def __contains__(self, path: Path) -> bool:
        return hash(_place(path)) in self._known


def _place(path: Path) -> str:
    """The path with links in its folders followed: readers may resolve them, a walk does not."""
    folder, name = os.path.split(os.fspath(path))
    return f"{_real_folder(folder)}/{name}"


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@dataclass
class NotTaken:
    """What a raw dataset's folder holds beside the pictures of its rows.

    Attributes:
        kinds: how many of each kind.
        example: the first picture that no row names.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    example: str | None = None

    def notes(self) -> list[str]:
        """In sentences for the manifest and ``summary.md``."""
        others = self.kinds.copy()
        unnamed = others.pop(UNNAMED, 0)
        found = []
        if unnamed:
            found.append(f"not packed: {unnamed:,} × {UNNAMED}, such as {self.example}")
        if others:
            found.append(f"other files and links in the folder, label files among them: {in_words(others)}")
        return found


def not_taken(raw: Path, taken: TakenFiles, home: Path, refused: Iterable[str]) -> NotTaken:
    """What is in the folder ``raw`` beside the files that rows name.

    Args:
        taken: the files of rows that may become samples.
        home: the folder that the sources of rows start from.
        refused: the sources of the others, as far as they name a picture.
    """
    for source in refused:
        if "\0" not in source:
            taken.add(home / source)
    found = NotTaken()
    for one in walk(raw):
        if not isinstance(one, Path):
            if one.path not in taken:  # such as a link to a picture here, which is the one that a row names
                found.kinds[one.kind] += 1
        elif one not in taken:
            found.kinds[UNNAMED] += 1
            found.example = found.example or shown(one.relative_to(raw))
    return found
