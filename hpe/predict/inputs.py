"""The images of the command line: files, folders, globs, and the samples of shards."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.core.console import count_of
from hpe.core.errors import UserError, redacted
from hpe.core.files import short_name
from hpe.data.crops import Box
from hpe.data.image_files import Other, in_words, walk
from hpe.data.images import RGBImage
from hpe.data.remote_cache import RemoteCache
from hpe.data.shard_files import ShardFile, matching, packed_shards
from hpe.data.shard_reader import open_tar
from hpe.data.shards import MANIFEST, refuse_unfinished
from hpe.data.video import VIDEOS, is_address, is_video
from hpe.stream.shard_sets import Shard

_LARGEST_FILE: Final = 1 << 28
_LONGEST_NAME: Final = 120


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that gives no row, and the reason.

    Attributes:
        unread: whether the image could not be read, which makes the exit code 1.
        item: the image; None where the reason is that of a whole file or shard.
    """

    source: str
    key: str
    reason: str
    unread: bool = True
    item: "Item | None" = None

    def __str__(self) -> str:
        return f"{self.source}{f', {self.key}' if self.key else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file.

    Attributes:
        path: of the file.
        key: its path inside the folder on the command line, without the suffix; for a file, its stem.
    """

    path: Path
    key: str


Input = ImageFile | ShardFile | Skipped | Other
"""What is no picture in a folder is among them, so that it can be counted."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    Attributes:
        source: the file, or the shard.
        key: see :class:`ImageFile`; in a shard, the sample's key.
        place: relative path for output files about this image, without a suffix.
        data: a shard's sample, an image file or its bytes, or RGB pixels.
        boxes: where its faces are, if that is known.
    """

    source: str
    key: str
    place: str
    data: memoryview | Path | bytes | RGBImage
    boxes: tuple[Box, ...] | None = None

    def read(self) -> bytes | RGBImage:
        """The encoded image, or its pixels.

        Raises:
            OSError: it cannot be read.
            ValueError: the file is far too large for an image.
        """
        if isinstance(self.data, memoryview):
            return bytes(self.data)
        if not isinstance(self.data, Path):
            return self.data
        if (size := self.data.stat().st_size) > _LARGEST_FILE:
            raise ValueError(f"{size:,} bytes, more than the {_LARGEST_FILE:,} allowed")
        return self.data.read_bytes()


def find_inputs(named: Sequence[str], split: str | None = None) -> list[Input]:
    """The inputs, each file once, in the order of the command line; folders in order of names.

    Args:
        named: images, tar files, folders with either or both, folders that ``hpe pack`` wrote, globs.
        split: only this split of folders that ``hpe pack`` wrote.

    Raises:
        UserError: arguments match nothing; the message lists every one of them.
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


def find_videos(named: Sequence[str]) -> list[str] | None:
    """The videos of the command line, each once; None if it names images or shards, or nothing that is there.

    Args:
        named: videos as :class:`hpe.data.video.Video` takes them, globs of videos, and folders that have videos and
            neither images nor shards.

    Raises:
        UserError: images and videos together, whose tables have other columns.
    """
    videos: list[str] = []
    others = []
    for text in named:
        # "*.mp4" is a glob, though it ends as a video does; "?" in an address is its query.
        one = is_video(text) and (is_address(text) or matching(text) is None)
        if found := [text] if one else _videos_of(text):
            videos += found
        else:
            others.append(text)
    if videos and others:
        raise UserError(
            f"{videos[0]} is a video, {others[0]} is none: their tables have other columns; use one command for each"
        )
    return list(dict.fromkeys(videos)) or None


def _videos_of(text: str) -> list[str]:
    """The videos of a glob, or of a folder without images and shards."""
    path = Path(text)
    found = matching(text)
    if path.is_dir() and not (path / MANIFEST).is_file():
        found = []
        for one in walk(path):
            if isinstance(one, Path) or one.kind == ".tar":
                return []
            found.append(one.path)
    videos = [str(one) for one in found or () if one.suffix.lower() in VIDEOS and one.is_file()]
    return videos if path.is_dir() or len(videos) == len(found or ()) else []


def split_inputs(found: Sequence[Input]) -> tuple[list[ImageFile | ShardFile | Skipped], Counter[str]]:
    """The inputs to read, and how many files are passed over, by kind."""
    read = [one for one in found if not isinstance(one, Other)]
    return read, Counter(one.kind for one in found if isinstance(one, Other))


def _of(text: str, split: str | None) -> list[Input]:
    path = Path(text)
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        return [_file(path, path.parent)]
    if (matches := matching(text)) is not None:
        found: list[Input] = []
        for match in matches:
            found += _folder(match, split) if match.is_dir() else [_file(match, match.parent)]
        if found:
            return found
        raise UserError(f"{text}: matches nothing; expected images, tar files or folders")
    what = "is not a regular file" if path.exists() else "no such file or folder"
    raise UserError(f"{text}: {what}; expected an image, a folder, a tar file that `hpe pack` wrote, or a glob")


def _file(path: Path, base: Path) -> Input:
    if path.suffix.lower() == ".tar":
        return ShardFile(path)
    return ImageFile(path, path.relative_to(base).with_suffix("").as_posix())


def _folder(folder: Path, split: str | None) -> list[Input]:
    if (folder / MANIFEST).is_file():
        return list(packed_shards(folder, split))
    refuse_unfinished(folder)
    found: list[Input] = []
    for one in walk(folder):
        if isinstance(one, Path):
            found.append(_file(one, folder))
        elif one.kind == ".tar":
            found.append(ShardFile(one.path))
        elif one.lost:
            found.append(Skipped(str(one.path), "", one.kind))
        else:
            found.append(one)
    if all(isinstance(one, Other) for one in found):
        kinds = in_words(Counter(one.kind for one in found if isinstance(one, Other)))
        raise UserError(f"{folder}: no image and no tar file in this folder; found {kinds or 'nothing'}")
    return found


def images_in(inputs: Sequence[Input]) -> int | None:
    """The number of images; None if a shard has no manifest, because only a manifest gives its number."""
    counts = [one.samples if isinstance(one, ShardFile) else 1 for one in inputs if not isinstance(one, Other)]
    return None if None in counts else sum(count for count in counts if count is not None)


def items(inputs: Sequence[Input]) -> Iterator[Item | Skipped]:
    """Every image in order; of a damaged shard, the samples before the damage and then the damage."""
    for one in inputs:
        match one:
            case ImageFile():
                yield Item(printable(str(one.path)), printable(one.key), safe_place(one.key), one.path)
            case ShardFile():
                yield from _samples(str(one.path), one.path, one.samples)
            case Skipped():
                yield Skipped(printable(one.source), "", printable(one.reason))
            case Other():
                pass


def samples_of(shards: Iterable[Shard]) -> Iterator[Item | Skipped]:
    """Every image of shards, wherever they lie; remote ones are fetched first."""
    for shard in shards:
        if not shard.remote:
            yield from _samples(shard.url, Path(shard.url), shard.samples)
            continue
        with RemoteCache.of_node().opened(shard.url, shard.sha256, shard.bytes) as file:
            yield from _samples(redacted(shard.url), file, shard.samples)


def _samples(source: str, file: Path | int, samples: int | None) -> Iterator[Item | Skipped]:
    stem, source = Path(source).stem, printable(source)
    try:
        opened = open_tar(file)
    except OSError as error:
        yield Skipped(source, "", f"cannot be read ({error.strerror or error})")
        return
    for row, key in enumerate(opened.keys):
        place = safe_place(f"{stem}/{key.replace('/', '_')}")
        yield Item(source, printable(key), place, opened.image(row))
    if opened.damage:
        yield Skipped(source, "", opened.damage)
    elif samples not in (None, len(opened)):
        yield Skipped(source, "", f"{count_of(len(opened), 'sample')}, its manifest lists {samples:,}")
    elif not len(opened) and not opened.index.unpaired:
        yield Skipped(source, "", "no sample (a picture and its json) in this tar")
    if opened.index.unpaired:
        yield Skipped(source, "", opened.index.unpaired)


def printable(text: str) -> str:
    """A file name as text that can be written: bytes that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_place(text: str) -> str:
    """A relative path that stays inside its folder: no ``..``, not absolute, plain characters only, no long names.

    Keys can come from downloaded shards; without this, a key could make hpe write anywhere. A part of more than 120
    bytes ends in a hash of all of it: file systems limit names in bytes (255, or 143 where names are encrypted), and a
    letter has up to four.
    """
    parts = []
    for part in unicodedata.normalize("NFC", printable(text)).split("/"):
        plain = "".join(letter if letter.isalnum() or letter in "-_+.,= " else "_" for letter in part)
        parts.append(short_name(plain.strip(". ") or "_", _LONGEST_NAME))
    return "/".join(parts[-8:])
