"""Any CSV or Parquet table of pictures and labels, and any dataset of Hugging Face's ``datasets``.

On disk:

    labels.csv, or labels.parquet           one table, one row per picture; usual column names are recognised
    a/b.jpg …                               paths in the table start at its folder
    dataset_dict.json, train/ …             or a folder written by ``save_to_disk``

Labels: what the columns hold (see :class:`hpe.sources.columns.Columns`): a minus before a column negates an angle,
``angles`` gives its unit, ``emotions`` the order of its integers.
Splits: those of a column split, or of the Hugging Face dataset; otherwise none.
Licence: not stated, unless the Hugging Face dataset has one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.files import resolved
from hpe.core.labels import EMOTIONS, SPLITS, emotion_from_word, split_from_word, with_nearest
from hpe.core.table_files import SUFFIXES, TEXT_SUFFIXES, TextTable, decimal_commas, misfit
from hpe.sources.base import (
    Faces,
    Raw,
    Reader,
    Reject,
    Source,
    Unread,
    choice,
    entries,
    shown,
    to_pixels,
)
from hpe.sources.columns import EMOTION_ORDERS, Columns
from hpe.sources.paths import ImageFinder
from hpe.sources.units import ANGLES, ASK, BOXES, Units

_CHOICES: Final = {"angles": ANGLES, "boxes": BOXES, "emotions": tuple(EMOTION_ORDERS)}
_UNKNOWN_LICENCE: Final = "not stated; ask who gave you the pictures"
_MOST_NAMED: Final = 6
_LARGE_BYTES: Final = 16 << 20
"""About 300,000 rows, which take 4 seconds."""
_WAYS: Final = (
    "; if the paths start in another folder, name it with --option images=FOLDER",
    "; if it is part of the dataset, name the folder that holds all of it with --option root=FOLDER",
)
"""The way out for a path with no picture, and for one that leaves the dataset's folder."""
_Row = Mapping[str, Any] | Reject

# What both readers do


@dataclass(frozen=True, slots=True)
class _Stated:
    """The options of a user about what the columns mean."""

    columns: str
    angles: str
    boxes: str
    emotions: str

    def meaning(self, reader: str, where: str, found: list[str]) -> Columns:
        """Raises: UserError: a bad option, or a column that is missing."""
        choice(reader, "angles", self.angles, ANGLES)
        choice(reader, "boxes", self.boxes, BOXES)
        meaning = Columns.of(where, found, self.columns, self.emotions)
        for option, value, has in (
            ("angles", self.angles, meaning.has_angles), ("boxes", self.boxes, meaning.has_box),
        ):  # fmt: skip
            if value != ASK and not has:
                expected = "yaw, pitch or roll" if option == "angles" else "x0, y0 with x1, y1 or width, height"
                raise UserError(
                    f"{where}: option {option}={value} has nothing to apply to: no column {expected} among "
                    f"{', '.join(found)[:300]}; name it with columns=…, or leave the option out"
                )
        return meaning


def _survey(
    where: str, meaning: Columns, stated: _Stated, rows: Iterable[Mapping[str, Any]]
) -> tuple[Columns, tuple[str, ...]]:
    """The columns with the units that all rows together show, and the splits that the rows name.

    Raises:
        UserError: a unit must be stated, or ``emotions`` is and no emotion is a number.
    """
    units, numbered, words = Units(where), False, set[str | None]()
    split = meaning.names.get("split", "")
    for row in rows:
        units.add(*meaning.sizes(row))
        numbered = numbered or meaning.is_numbered(row)
        words.add(split_from_word(str(row.get(split, ""))))
    units.check(angles=stated.angles, boxes=stated.boxes)
    if stated.emotions != "affectnet" and not numbered:
        raise UserError(
            f"{where}: option emotions={stated.emotions} has nothing to apply to: no emotion is a number; leave it out"
        )
    return replace(meaning, radians=stated.angles == "radians"), tuple(s for s in SPLITS if s in words)


def _sample(
    faces: Faces, pictures: ImageFinder, meaning: Columns, here: str, row: Mapping[str, Any],
    words: Mapping[str, list[str]] | None = None,
) -> Raw | Reject:  # fmt: skip
    value = row.get(meaning.names["image"])
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    text = name if isinstance(value, dict) else data
    source = here
    try:
        if isinstance(data, bytes):
            image: Path | bytes = data
        elif isinstance(text, str):
            source = shown(text.strip()) or here
            image, source = pictures.find(text)
        else:
            return Reject(here, "no picture")
        record = meaning.record(row, source, words)
    except (ValueError, TypeError, ArithmeticError) as error:
        return Reject(source, f"{error} ({here})")
    return faces.sample(image, record, here)


# CSV and Parquet


def _tables(path: Path) -> list[Path]:
    """The table that is meant, or those that lie in a folder."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    return [e for e in entries(path) if e.suffix.lower() in SUFFIXES and e.is_file()]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table on disk.

    Attributes:
        columns: its names.
        text: None for Parquet.
        embedded: whether a column can hold pictures themselves.
    """

    path: Path
    columns: list[str]
    text: TextTable | None = None
    embedded: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: Path) -> "_Table":
        """Raises: UserError: the file is no table."""
        if path.suffix.lower() in TEXT_SUFFIXES:
            text = TextTable.open(path)
            _, header = next(text.rows(), (0, []))
            if not header:
                raise UserError(f"{path}: empty; expected a header row and rows")
            return cls(path, [name.strip() for name in header], text)
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        try:
            schema = parquet.read_schema(path)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        kinds = dict(zip(schema.names, schema.types, strict=True))
        embedded = [n for n, k in kinds.items() if arrow.types.is_struct(k) or arrow.types.is_binary(k)]
        return cls(path, schema.names, None, frozenset(embedded))

    @property
    def where(self) -> str:
        """The table, and how it was read where that is not the usual, for messages."""
        return f"{self.path}" + ("" if self.text is None or self.text.usual else f" (read as {self.text.found})")

    def rows(self, only: Iterable[str] | None = None) -> Iterator[tuple[int, _Row]]:
        """Line number and values of each row; of Parquet's columns those of ``only``."""
        if self.text is None:
            yield from _parquet_rows(self.path, only)
            return
        lines = self.text.rows()
        next(lines)
        for line, cells in lines:
            if len(cells) != len(self.columns):
                yield line, Reject(f"{self.path.name}:{line}", misfit(cells, len(self.columns)))
            else:
                yield line, dict(zip(self.columns, cells, strict=True))

    def commas(self, names: Iterable[str]) -> frozenset[str]:
        """Which of these columns have decimal commas."""
        if self.text is None:
            return frozenset()
        names = tuple(names)
        rows = ([row[name] for name in names] for _, row in self.rows() if not isinstance(row, Reject))
        return frozenset(names[place] for place in decimal_commas(rows))


def _parquet_rows(path: Path, only: Iterable[str] | None) -> Iterator[tuple[int, _Row]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    line = 0
    with parquet.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=256, columns=None if only is None else [*only])
        while True:
            try:
                batch = next(batches, None)
            except (arrow.ArrowException, OSError) as error:
                yield line + 1, Reject(f"{path.name}:{line + 1}", f"damaged from here on: {error}")
                return
            if batch is None:
                return
            for row in batch.to_pylist():
                line += 1
                yield line, row


def _recognise_table(path: Path) -> str | None:
    tables = _tables(path)
    if len(tables) != 1:
        return None
    try:
        columns = Columns.of(tables[0].name, _Table.open(tables[0]).columns)
    except UserError:
        return None
    if len(columns.names) < 2:
        return None
    return f"table {tables[0].name} with " + ", ".join(f"{field} in {name}" for field, name in columns.names.items())


def why_no_table(path: Path) -> str | None:
    """Why a folder or file with tables is not recognised as one."""
    tables = _tables(path)
    if len(tables) > 1:
        return f"several tables here ({', '.join(shown(t.name) for t in tables[:_MOST_NAMED])}); give one of them"
    try:
        for table in tables:
            opened = _Table.open(table)
            Columns.of(opened.where, opened.columns)
    except UserError as error:
        return str(error)
    return None


def open_table(
    path: Path, *, columns: str = "", angles: str = ASK, boxes: str = ASK, emotions: str = "affectnet",
    images: str = "", root: str = "",
) -> Source:  # fmt: skip
    """A CSV or Parquet table with a row per face.

    Delimiter, encoding and decimal mark of a CSV are found from the whole file.

    Args:
        path: the table, or a folder with one table.
        columns: ``image=path,emotion=label,yaw=-pan,group.age=age``; usual names need no entry. A minus negates
            an angle. ``image`` is a path, or in Parquet the encoded picture itself.
        angles: ``degrees`` or ``radians``; ``ask``: degrees, unless nearly all of them could be radians.
        boxes: ``pixels`` or ``fractions`` of the picture; ``ask``: pixels, unless nearly all could be fractions.
        emotions: meaning of integers: ``affectnet``, ``alphabetical``, ``fer2013`` or ``raf-db``; words need none.
        images: folder where the paths start; default: that of the table.
        root: the dataset's folder, which no path may leave, where that is not the folder where the paths start.

    Raises:
        UserError: no table, a column that is missing, a unit that must be stated, or a bad option.
    """
    table = _only_table(path)
    stated = _Stated(columns, angles, boxes, emotions)
    meaning = stated.meaning("table", table.where, table.columns)
    start, home = _folders(table.path, images, root)
    if images and meaning.names["image"] in table.embedded:
        raise UserError(f"{path}: option images is not used: column {meaning.names['image']!r} holds the pictures")
    if table.path.stat().st_size > _LARGE_BYTES:
        say(f"{table.path}: reading all of it once, to tell units and decimal marks")
    meaning = replace(meaning, commas=table.commas(meaning.numbers))
    needed = [*meaning.numbers, *(meaning.names[n] for n in ("split",) if n in meaning.names)]
    surveyed = (row for _, row in table.rows(needed) if not isinstance(row, Reject))
    meaning, splits = _survey(table.where, meaning, stated, surveyed)
    encoding = table.text.encoding if table.text else "utf-8"
    finder = partial(ImageFinder, home, start, encoding, *_WAYS)
    pictures = [finder()]

    def rows() -> Iterator[Raw | Reject | Unread]:
        faces, pictures[0] = Faces(), finder()
        for line, row in table.rows():
            here = f"{table.path.name}:{line}"
            got = row if isinstance(row, Reject) else _sample(faces, pictures[0], meaning, here, row)
            yield to_pixels(got) if boxes == "fractions" else got

    return Source(
        name="table",
        variant=f"table {table.path.name}: " + ", ".join(f"{f}={n}" for f, n in meaning.names.items()),
        licence=_UNKNOWN_LICENCE,
        publishable=False,
        default_crop="none",
        splits=splits,
        rows=rows,
        home=home,
        notes=tuple(_notes(table, meaning)),
        late_notes=lambda: pictures[0].notes(),
    )


def _notes(table: _Table, meaning: Columns) -> Iterator[str]:
    """How the table was read where that is not as usual, and what in it may be meant otherwise."""
    if table.text is not None and not table.text.usual:
        yield f"{table.path.name} was read as {table.text.found}"
    if meaning.commas:
        yield f"decimal commas in {', '.join(sorted(meaning.commas))}"
    yield from (f"{name} negated" for name in sorted(meaning.negated))
    yield from meaning.misspelt(table.columns)


def _only_table(path: Path) -> _Table:
    """The table of a path: the file, or the only one of its folder.

    Raises:
        UserError: there is none or more than one, or it is no table.
    """
    tables = _tables(path)
    if len(tables) != 1:
        expected = f"expected one file that ends in {', '.join(SUFFIXES)}, or a folder with one in it"
        raise UserError(f"{path}: {why_no_table(path) or expected}")
    return _Table.open(tables[0])


def _folders(table: Path, images: str, root: str) -> tuple[Path, Path]:
    """Where paths start, and the dataset's folder."""
    start = Path(images) if images else table.parent
    home = Path(root) if root else start
    for option, text in (("images", images), ("root", root)):
        if text and not Path(text).is_dir():
            raise UserError(f"source table: option {option}={text}: no such folder")
    if not resolved(start).is_relative_to(resolved(home)):
        raise UserError(
            f"source table: option root={root}: {start}, where the paths start, is not in it; name the folder that "
            "holds both, or give images=FOLDER"
        )
    return (start, home) if start.is_relative_to(home) else (resolved(start), resolved(home))


# Hugging Face


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _recognise_saved(path: Path) -> str | None:
    return "a dataset saved by Hugging Face's datasets" if path.is_dir() and _is_saved(path) else None


def open_huggingface(
    path: Path, *, columns: str = "", angles: str = ASK, boxes: str = ASK, emotions: str = "affectnet",
    config: str = "",
) -> Source:  # fmt: skip
    """A dataset of ``datasets``: saved with ``save_to_disk``, a local folder of data files, or a hub name.

    Pictures stay encoded. Class names (``ClassLabel``) are read as words for emotions. No code of the dataset is
    executed: ``datasets`` no longer supports loading scripts.

    Args:
        path: the folder, or the name on the hub as ``user/name``.
        columns, angles, boxes, emotions: as for ``table``.
        config: the hub dataset's configuration.

    Raises:
        UserError: it cannot be loaded, has no pictures, or as ``table``.
    """
    if config and _is_saved(path):
        raise UserError(f"{path}: option config={config} is not used: a folder of save_to_disk has no configurations")
    parts = _load(path, config)
    where = str(path)
    first = next(iter(parts.values()))
    image_columns = [n for n, feature in first.features.items() if type(feature).__name__ == "Image"]
    if image_columns and "image=" not in columns:
        columns = ",".join(filter(None, (f"image={image_columns[0]}", columns)))
    stated = _Stated(columns, angles, boxes, emotions)
    meaning = stated.meaning("huggingface", where, list(first.features))
    words = {
        name: list(feature.names) for name, feature in first.features.items() if type(feature).__name__ == "ClassLabel"
    }
    _check_words(where, meaning, words)
    needed = [*meaning.numbers, *(meaning.names[n] for n in ("split",) if n in meaning.names)]
    surveyed = (row for part in parts.values() for row in part.select_columns(needed)) if needed else ()
    meaning, named = _survey(where, meaning, stated, surveyed)
    home = path if path.is_dir() else _cache()

    def rows() -> Iterator[Raw | Reject | Unread]:
        faces, pictures = Faces(), ImageFinder(home, home)
        for part, rows_of_part in parts.items():
            split = split_from_word(part)
            for at, row in enumerate(rows_of_part):
                got = _sample(faces, pictures, meaning, f"{part}/{at:08d}", row, words)
                got = _with_split(got, split) if isinstance(got, Raw) and split else got
                yield to_pixels(got) if boxes == "fractions" else got

    return Source(
        name="huggingface",
        variant=f"{where}: " + ", ".join(f"{f}={n}" for f, n in meaning.names.items()),
        licence=(first.info.license or _UNKNOWN_LICENCE) if first.info else _UNKNOWN_LICENCE,
        publishable=False,
        default_crop="none",
        splits=tuple(s for s in SPLITS if s in {*map(split_from_word, parts), *named}),
        rows=rows,
        total=sum(len(part) for part in parts.values()),
    )


def _cache() -> Path:
    """Where ``datasets`` keeps the pictures of the hub's datasets."""
    import datasets

    return Path(datasets.config.HF_CACHE_HOME)  # pyright: ignore[reportAttributeAccessIssue]


def _load(path: Path, config: str) -> dict[str, Any]:
    """Every split, pictures not decoded."""
    import datasets

    try:
        loaded: Any
        if _is_saved(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path), config or None)
    except Exception as error:  # datasets, its readers and the network raise exceptions of many types
        raise UserError(
            f"{path}: Hugging Face's datasets cannot load it ({type(error).__name__}: {str(error)[:300]}); "
            "expected a folder written by save_to_disk, a folder of data files, or a name on the hub"
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}
    for name, part in parts.items():
        for column, feature in part.features.items():
            if isinstance(feature, datasets.Image):
                parts[name] = part = part.cast_column(column, datasets.Image(decode=False))
    return parts


def _check_words(where: str, meaning: Columns, words: Mapping[str, list[str]]) -> None:
    names = words.get(meaning.names.get("emotion", ""), [])
    unknown = [name for name in names if emotion_from_word(name) is None and not name.isdigit()]
    if unknown:
        raise UserError(
            f"{where}: classes {', '.join(with_nearest(name, 'emotion') for name in unknown[:12])} of column "
            f"{meaning.names['emotion']!r} are not words for an emotion ({', '.join(EMOTIONS)}); rename them "
            "in the dataset, or name another column with columns=emotion=…"
        )


def _with_split(raw: Raw, split: str) -> Raw:
    return replace(raw, record=replace(raw.record, split=raw.record.split or split))


READERS: Final = (
    Reader("huggingface", "a folder written by save_to_disk of datasets", _recognise_saved, open_huggingface, _CHOICES),
    Reader("table", "one CSV or Parquet table with a column of pictures", _recognise_table, open_table, _CHOICES),
)
