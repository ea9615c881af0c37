"""Which sample is for training, validation and test, so that no person or photo appears in two of them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from hpe.core.errors import UserError
from hpe.core.labels import SPLITS
from hpe.core.table_files import read_text

_SEVERAL: Final = 10
"""With this many subjects or more, one person alone would be a poor test."""


@dataclass(frozen=True, slots=True)
class Row:
    """What splitting needs to know of a sample."""

    key: str
    subject: str | None
    emotion: int | None
    split: str | None
    """The dataset's own split."""
    source: str | None = None
    photo: str | None = None
    """The picture, which may have several faces."""


def order(seed: int, name: str) -> int:
    """A number that sorts names into a random order: the same on every machine, whatever names are asked before."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


def draw(rows: Sequence[Row], *, seed: int, val_share: float, test_share: float, official: Sequence[str]) -> list[str]:
    """The split of each row: the dataset's own where it has one, the rest drawn by subject and by emotion.

    Rows of one subject stay together, and the faces of one picture. Within each emotion (of a subject: its most
    frequent one) subjects are sorted in a seeded order; the first ``test_share`` of the samples are test, the next
    ``val_share`` val. The result is a function of the set of rows, whatever their order. With three subjects or more,
    no split with a share is empty; with ten or more, each gets at least two subjects.

    Args:
        official: the dataset's own splits to use. () draws all three; with train and test, val is cut from train;
            with val or all three, nothing is drawn.
    """
    if not official:
        return _draw(rows, seed, val_share, test_share)
    split = [row.split or "train" for row in rows]
    if "val" in official or not val_share:
        return split
    free = [i for i, row in enumerate(rows) if row.split == "train"]
    drawn = _draw([rows[i] for i in free], seed, val_share, 0.0)
    for i, name in zip(free, drawn, strict=True):
        split[i] = name
    return split


def _draw(rows: Sequence[Row], seed: int, val_share: float, test_share: float) -> list[str]:
    groups = together(rows)
    size = Counter(groups)
    emotions: dict[str, Counter[int]] = defaultdict(Counter)
    for row, group in zip(rows, groups, strict=True):
        emotions[group][-1 if row.emotion is None else row.emotion] += 1  # rows without one are a stratum, too
    strata: dict[int, list[str]] = defaultdict(list)
    for group, counted in emotions.items():
        strata[min(counted, key=lambda e: (-counted[e], e))].append(group)

    split: dict[str, str] = {}
    for members in strata.values():
        members.sort(key=lambda group: (order(seed, group), group))
        total, before = sum(size[group] for group in members), 0
        for group in members:
            # A group goes where the middle of its samples falls. Decided by its start or end, groups with many samples
            # would make the splits too large or too small on average.
            middle = (before + size[group] / 2) / total
            split[group] = "test" if middle < test_share else "val" if middle < test_share + val_share else "train"
            before += size[group]
    _fill_empty(split, seed, [name for name, share in (("test", test_share), ("val", val_share)) if share])
    return [split[group] for group in groups]


def together(rows: Sequence[Row]) -> list[str]:
    """The group of each row: rows that share a subject or a picture, perhaps by way of others, have the same."""
    # The prefix: a subject and a key with the same text must not become one group.
    names = [f"subject {row.subject}" if row.subject is not None else f"key {row.key}" for row in rows]
    faces = Counter(row.photo for row in rows if row.photo is not None)
    of_photo: dict[str, set[str]] = defaultdict(set)
    for row, name in zip(rows, names, strict=True):
        if row.photo is not None and faces[row.photo] > 1:
            of_photo[row.photo].add(name)
    parent: dict[str, str] = {}

    def first(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    for members in of_photo.values():
        if len(members) > 1:
            # Of several the smallest name: the groups do not depend on the order of rows.
            roots = sorted({first(member) for member in members})
            parent.update(dict.fromkeys(roots[1:], roots[0]))
    return [first(name) for name in names] if parent else names


def _fill_empty(split: dict[str, str], seed: int, wanted: Sequence[str]) -> None:
    if len(split) <= len(wanted):
        return
    # Small sets: by the shares alone, rounding could leave a split without anyone.
    least = 2 if len(split) >= _SEVERAL else 1
    for name in (*wanted, "train"):
        while (counted := Counter(split.values()))[name] < least:
            most, _ = counted.most_common(1)[0]
            first = min((g for g in split if split[g] == most), key=lambda group: (order(seed, group), group))
            split[first] = name


class Lists:
    """Lists of samples, one per line, in ``train.txt``, ``val.txt`` and ``test.txt``.

    A line is a key, the path inside the raw dataset, that path without its extension, or the file's name with
    or without extension where only one sample has it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the lists.

        Raises:
            UserError: no list there, or a line appears in two lists.
        """
        self.folder = folder
        self.unused: list[str] = []
        """After :meth:`assign`: the lines that name no sample, or one that an earlier line names."""
        self._split: dict[str, str] = {}
        paths = [path for name in SPLITS if (path := folder / f"{name}.txt").is_file()]
        if not paths:
            expected = ", ".join(f"{name}.txt" for name in SPLITS)
            raise UserError(f"--splits {folder}: no lists there; expected {expected}, one sample per line")
        for path in paths:
            for line in read_text(path).split("\n"):
                name = line.strip().replace("\\", "/").removeprefix("./")
                if name and self._split.setdefault(name, path.stem) != path.stem:
                    raise UserError(
                        f"--splits: {name!r} appears in {self._split[name]}.txt and in {path.name}; "
                        "a sample belongs to one split: remove it from the other"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that have a list."""
        return tuple(name for name in SPLITS if name in self._split.values())

    def assign(self, rows: Sequence[Row]) -> list[str | None]:
        """The split of each row; None for rows in no list.

        Raises:
            UserError: no line of one of the lists names any of the rows.
        """
        # Counted by source, not by row: the faces of one picture share its name, and a line means all of them.
        short = Counter(name for source in {row.source for row in rows} for name in _short_names(source))
        found: list[str | None] = []
        used: set[str] = set()
        for row in rows:
            names = [*_long_names(row), *(name for name in _short_names(row.source) if short[name] == 1)]
            names = [name for name in names if name in self._split]
            used.update(names)
            found.append(self._split[names[0]] if names else None)
        self.unused = [name for name in self._split if name not in used]
        for split in self.names if rows else ():
            lines = [name for name in self._split if self._split[name] == split]
            if used.isdisjoint(lines):
                raise UserError(
                    f"--splits {self.folder}: none of the {len(lines):,} lines of {split}.txt names a sample; "
                    f"its first line is {lines[0]!r}, the first sample {rows[0].source or rows[0].key!r}"
                )
        return found


def _long_names(row: Row) -> list[str]:
    if row.source is None:
        return [row.key]
    return list(dict.fromkeys((row.key, row.source, str(PurePosixPath(row.source).with_suffix("")))))


def _short_names(source: str | None) -> list[str]:
    if source is None:
        return []
    path = PurePosixPath(source)
    return list(dict.fromkeys((path.name, path.stem)))


def shared(names: Sequence[str | None], splits: Sequence[str | None]) -> Mapping[str, tuple[str, ...]]:
    """Subjects or pictures that appear in more than one split, with those splits: a leak, unless it is intended.

    Args:
        names: of each row's subject or picture.
        splits: of each row.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for name, split in zip(names, splits, strict=True):
        if name is not None and split is not None:
            seen[name].add(split)
    return {s: tuple(n for n in SPLITS if n in names) for s, names in sorted(seen.items()) if len(names) > 1}
