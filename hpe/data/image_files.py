"""The pictures in a folder, and everything else in it by kind: what every command that reads folders takes.

A picture is a file with one of ``SUFFIXES``, or any other file that begins as a picture does; suffixes that are never
pictures' are not opened. Linked folders are entered, but no folder twice: links in a circle end, and a link to what is
read anyway is passed over with that reason. So is a linked file whose target is in the same folder.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.files import open_regular

SUFFIXES: Final = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".heic", ".heif", ".hif", ".avif",
))  # fmt: skip
"""Suffixes of pictures, in lower case."""
_NOT_READ: Final = frozenset((
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".mat", ".npy", ".npz",
    ".parquet", ".arrow", ".h5", ".hdf5", ".pts", ".lst", ".log", ".ini", ".py", ".ipynb", ".m", ".sh", ".pdf", ".tar",
    ".zip", ".gz", ".tgz", ".7z", ".rar", ".xls", ".xlsx", ".doc", ".docx", ".obj", ".ply", ".bin", ".cal", ".wav",
    ".mp3", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".svg", ".psd", ".exr", ".jp2",
    ".jxl", ".dng", ".nef", ".arw", ".cr2", ".cr3", ".orf", ".rw2",
))  # fmt: skip
"""Not opened to look for a picture that hpe reads: a dataset may have a million label files, and the raw files of
cameras begin as TIFF does."""
START_BYTES: Final = 64
"""Enough of a file to recognise its format."""
_STARTS: Final = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)  # fmt: skip
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_HEIF_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_LONGEST_SUFFIX: Final = 12
_MOST_KINDS: Final = 12
HIDDEN: Final = "hidden (a name that begins with a dot)"
NOT_REGULAR: Final = "no regular file: a pipe, a socket or a device"
UNREADABLE: Final = "folder that cannot be read"


def image_format(start: bytes) -> str | None:
    """The format of a picture by its first 64 bytes, such as ``JPEG`` or ``HEIC``; None: not a picture hpe knows.

    ``HEIC`` and ``AVIF`` are told apart by the brands of their container (ISO/IEC 23008-12).
    """
    for known, name in _STARTS:
        if start.startswith(known):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # two letters alone would make pictures of texts
        return "BMP"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
        return "PPM"
    if start[4:8] == b"ftyp":
        brands = {start[at : at + 4] for at in range(8, min(int.from_bytes(start[:4], "big"), len(start)), 4)}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        return "HEIC" if brands & _HEIF_BRANDS else None
    return None


@dataclass(frozen=True, slots=True)
class Other:
    """What is not taken as a picture.

    Attributes:
        path: of the file, link or folder.
        kind: why, in words that many files can share, such as ``.txt``.
        lost: whether pictures may be lost with it: what cannot be read, or leads nowhere.
    """

    path: Path
    kind: str
    lost: bool = False


def walk(folder: Path) -> Iterator[Path | Other]:
    """Every picture of a folder and below as a path, and everything else as :class:`Other`.

    In the order of names as bytes, files and folders together. Paths begin with ``folder`` as it is given, also
    behind links.
    """
    yield from _Walker(folder).below(os.fspath(folder))


def counted(others: Iterable[Other]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(other.kind for other in others)


def in_words(kinds: Counter[str]) -> str:
    """Such as ``2,000 × .mat, 3 × .txt``, the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_KINDS:])
    words = [f"{count:,} × {kind}" for kind, count in ordered[:_MOST_KINDS]]
    return ", ".join(words + ([f"{rest:,} of other kinds"] if rest else []))


class _Walker:
    """One walk: what was read so far, so that nothing is read twice."""

    def __init__(self, folder: Path) -> None:
        self._roots = [os.path.realpath(folder)]
        self._done: set[tuple[int, int]] = set()
        self._targets: set[str] = set()

    def below(self, folder: str) -> Iterator[Path | Other]:
        # A list of open folders, not recursion: a tree can be deeper than Python's stack.
        levels: list[Iterator[os.DirEntry[str] | Other]] = [iter(self._entries(folder))]
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
                continue
            found = entry if isinstance(entry, Other) else self._look_at(entry)
            if isinstance(found, str):
                levels.append(iter(self._entries(found)))
            else:
                yield found

    def _entries(self, folder: str) -> Sequence[os.DirEntry[str] | Other]:
        try:
            known = os.stat(folder)  # noqa: PTH116 (a path is made of text only for what is yielded)
            if (place := (known.st_dev, known.st_ino)) in self._done:
                return [Other(Path(folder), "folder that is read by another name")]
            self._done.add(place)
            with os.scandir(folder) as found:  # a type for each entry at once: no stat of a million files
                entries: list[os.DirEntry[str]] = sorted(found, key=lambda entry: os.fsencode(entry.name))
            return entries
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            return [Other(Path(folder), f"{UNREADABLE} ({error.strerror})", lost=True)]

    def _look_at(self, entry: os.DirEntry[str]) -> Path | Other | str:
        """A picture, something else, or a folder to enter (text)."""
        if entry.name.startswith("."):
            return Other(Path(entry.path), HIDDEN)
        if entry.is_symlink():
            return self._link(entry)
        if entry.is_dir(follow_symlinks=False):
            return entry.path
        if entry.is_file(follow_symlinks=False):
            return _file(entry)
        return Other(Path(entry.path), NOT_REGULAR, lost=True)

    def _link(self, entry: os.DirEntry[str]) -> Path | Other | str:
        path = Path(entry.path)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            return Other(path, f"broken link ({error.strerror})", lost=True)
        target = os.path.realpath(path)
        if stat.S_ISDIR(mode):
            if self._is_read(target):
                return Other(path, "link to a folder that is read anyway")
            if any(_is_above(target, root) for root in self._roots):
                return Other(path, "link to a folder above it")
            self._roots.append(target)
            return entry.path
        if not stat.S_ISREG(mode):
            return Other(path, NOT_REGULAR, lost=True)
        if self._is_read(target) or target in self._targets:
            return Other(path, "link to a file that is read anyway")
        self._targets.add(target)
        return _file(entry)

    def _is_read(self, target: str) -> bool:
        """Whether a real path is in a folder that is walked; below a hidden one it is not."""
        return any(_is_above(root, target) and f"{os.sep}." not in target[len(root) :] for root in self._roots)


def _is_above(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _file(entry: os.DirEntry[str]) -> Path | Other:
    """A picture by its suffix or its first bytes, or what it is instead."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a hundredth of a Path's time)
    path = Path(entry.path)
    if suffix in SUFFIXES:
        return path
    if suffix not in _NOT_READ:
        try:
            with open_regular(path) as stream:
                if image_format(stream.read(START_BYTES)) is not None:
                    return path
        except OSError as error:
            return Other(path, f"file that cannot be read ({error.strerror})", lost=True)
    if not suffix:
        return Other(path, "without a suffix, no picture")
    plain = suffix[1:].isalnum() and not suffix[1:].isdigit() and len(suffix) <= _LONGEST_SUFFIX
    return Other(path, suffix if plain else "with an unusual suffix, no picture")
