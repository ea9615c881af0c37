"""Pictures that a user names for prediction: files, folders, globs, and the samples of shards."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.data.shard_files import ShardFile, matching, packed_shards
from hpe.data.shard_reader import open_tar
from hpe.data.shards import MANIFEST

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
"""What is taken for a picture in a folder; a file that is named itself may have any suffix."""
VIDEOS: Final = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))
_LARGEST_FILE: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that gives no row, and why; ``unread`` where it is the input's fault."""

    source: str
    key: str
    reason: str
    unread: bool = True

    def __str__(self) -> str:
        return f"{self.source}{f', {self.key}' if self.key else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file.

    Attributes:
        path: of the file.
        key: its path inside the folder that was named, without the suffix; a file's stem.
    """

    path: Path
    key: str


Input = PictureFile | ShardFile | Skipped


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded picture.

    Attributes:
        source: the file, or the shard.
        key: see :class:`PictureFile`; the sample's key where it comes from a shard.
        place: path of what may be written for it, from some folder on, without a suffix.
        data: the bytes, or the file that holds them.
    """

    source: str
    key: str
    place: str
    data: memoryview | Path

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            OSError: it cannot be read.
            ValueError: the file is far larger than pictures are.
        """
        if not isinstance(self.data, Path):
            return bytes(self.data)
        if (size := self.data.stat().st_size) > _LARGEST_FILE:
            raise ValueError(f"{size:,} bytes, more than the {_LARGEST_FILE:,} allowed")
        return self.data.read_bytes()


def find_inputs(named: Sequence[str], split: str | None = None) -> list[Input]:
    """What the arguments name, each file once, in order; folders are walked in order of names.

    Args:
        named: pictures, tars, folders of either (or of both), folders that ``hpe pack`` wrote, globs.
        split: only this split of folders that ``hpe pack`` wrote.

    Raises:
        UserError: every argument that names nothing.
    """
    found: list[Input] = []
    problems = []
    for text in named:
        try:
            found += _of(text, split)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    seen: set[Path] = set()
    return [one for one in found if isinstance(one, Skipped) or not (one.path in seen or seen.add(one.path))]


def _of(text: str, split: str | None) -> list[Input]:
    path = Path(text)
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        if path.suffix.lower() in VIDEOS:
            raise UserError(f"{text}: a video; pictures are read here: write its frames into a folder and name that")
        return [_file(path, path.parent)]
    if (matches := matching(text)) is not None:
        found: list[Input] = []
        for match in matches:
            found += _folder(match, split) if match.is_dir() else [_file(match, match.parent)]
        if found:
            return found
        raise UserError(f"{text}: matches nothing; expected pictures, tars or folders (quote it, or let the shell do)")
    what = "is no regular file" if path.exists() else "there is no such file or folder"
    raise UserError(f"{text}: {what}; expected a picture, a folder, a tar that `hpe pack` wrote, or a glob")


def _file(path: Path, base: Path) -> Input:
    if path.suffix.lower() == ".tar":
        return ShardFile(path)
    return PictureFile(path, path.relative_to(base).with_suffix("").as_posix())


def _folder(folder: Path, split: str | None) -> list[Input]:
    if (folder / MANIFEST).is_file():
        return list(packed_shards(folder, split))
    found: list[Input] = []

    def lost(error: OSError) -> None:
        found.append(Skipped(str(error.filename), "", error.strerror or str(error)))

    for here, folders, files in os.walk(folder, onerror=lost):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(here, name)
            known = path.suffix.lower() in SUFFIXES or path.suffix.lower() == ".tar"
            if not known or name.startswith("."):
                continue
            if path.is_file():
                found.append(_file(path, folder))
            else:
                found.append(Skipped(str(path), "", "no regular file: a broken link, a pipe or a device"))
    if not found:
        raise UserError(f"{folder}: no picture ({', '.join(sorted(SUFFIXES))}) and no tar in this folder")
    return found


def pictures_in(inputs: Sequence[Input]) -> int | None:
    """How many pictures there are; None where a shard without a manifest does not tell."""
    counts = [one.samples if isinstance(one, ShardFile) else 1 for one in inputs]
    return None if None in counts else sum(count for count in counts if count is not None)


def items(inputs: Sequence[Input]) -> Iterator[Item | Skipped]:
    """Every picture in order; of a damaged shard what lies before the damage, and then the damage."""
    for one in inputs:
        match one:
            case PictureFile():
                yield Item(printable(str(one.path)), printable(one.key), safe_place(one.key), one.path)
            case ShardFile():
                yield from _samples(one)
            case Skipped():
                yield Skipped(printable(one.source), "", printable(one.reason))


def _samples(shard: ShardFile) -> Iterator[Item | Skipped]:
    source = printable(str(shard.path))
    try:
        opened = open_tar(shard.path)
    except OSError as error:
        yield Skipped(source, "", f"cannot be read ({error.strerror or error})")
        return
    for row, key in enumerate(opened.keys):
        place = safe_place(f"{shard.path.stem}/{key.replace('/', '_')}")
        yield Item(source, printable(key), place, opened.image(row))
    if opened.damage:
        yield Skipped(source, "", opened.damage)
    elif shard.samples not in (None, len(opened)):
        yield Skipped(source, "", f"{len(opened)} samples, its manifest says {shard.samples}")
    elif not len(opened):
        yield Skipped(source, "", "no sample (a picture and its json) in this tar")


def printable(text: str) -> str:
    """A file name as text that can be written; bytes that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_place(text: str) -> str:
    """A path that stays inside its folder: no ``..``, no absolute path, plain characters only."""
    parts = []
    for part in printable(text).split("/"):
        plain = "".join(letter if letter.isalnum() or letter in "-_+.,= " else "_" for letter in part)
        parts.append(plain.strip(". ")[:120] or "_")
    return "/".join(parts[-8:])
