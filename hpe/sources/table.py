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

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hpe.core.errors import UserError
from hpe.core.labels import emotion_from_word
from hpe.data.records import Record
from hpe.sources.base import Keys, Raw, Reader, Reject, Source, entries, inside, sample, shown, table_rows
from hpe.sources.columns import EMOTION_ORDERS, UNITS, Columns
from hpe.sources.folders import SPLIT_WORDS

_CHOICES: Final = {"angles": UNITS, "emotions": tuple(EMOTION_ORDERS)}
_UNKNOWN_LICENCE: Final = "not stated; ask who gave you the pictures"

# CSV and Parquet


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".csv", ".parquet") else None
    found = [e for e in entries(path) if e.suffix.lower() in (".csv", ".parquet") and e.is_file()]
    return found[0] if len(found) == 1 else None


def _header(path: Path) -> list[str]:
    """Raises: UserError: the file is no table."""
    if path.suffix.lower() == ".csv":
        _, header = next(table_rows(path), (0, []))
        if not header:
            raise UserError(f"{path}: empty; expected a header row and rows")
        return [name.strip() for name in header]
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        return parquet.read_schema(path).names
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error


def _recognise_table(path: Path) -> str | None:
    table = _table(path)
    if table is None:
        return None
    try:
        columns = Columns.of(table.name, _header(table), "", "degrees", "affectnet")
    except UserError:
        return None
    if len(columns.names) < 2:
        return None
    return f"table {table.name} with " + ", ".join(f"{field} in {name}" for field, name in columns.names.items())


def open_table(
    path: Path, *, columns: str = "", angles: str = "degrees", emotions: str = "affectnet", images: str = ""
) -> Source:
    """A CSV or Parquet table with a row per picture.

    Args:
        path: the table, or a folder with one table.
        columns: ``image=path,emotion=label,yaw=-pan,group.age=age``; usual names need no entry. A minus negates
            an angle. ``image`` is a path, or in Parquet the encoded picture itself.
        angles: ``degrees`` or ``radians``.
        emotions: meaning of integers: ``affectnet``, ``alphabetical``, ``fer2013`` or ``raf-db``; words need none.
        images: folder where the paths start; default: that of the table.

    Raises:
        UserError: no table, a column that is missing, or a bad option.
    """
    table = _table(path)
    if table is None:
        raise UserError(f"{path}: expected one .csv or .parquet file, or a folder with one in it")
    meaning = Columns.of(str(table), _header(table), columns, angles, emotions)
    root = Path(images) if images else table.parent

    def rows() -> Iterator[Raw | Reject]:
        keys, seen = Keys(), set()
        for line, row in _rows(table):
            here = f"{table.name}:{line}"
            yield row if isinstance(row, Reject) else _sample(keys, seen, meaning, root, here, row)

    return Source(
        name="table",
        variant=f"table {table.name}: " + ", ".join(f"{f}={n}" for f, n in meaning.names.items()),
        licence=_UNKNOWN_LICENCE,
        publishable=False,
        default_crop="none",
        splits=_splits_named(row.get(meaning.names["split"]) for _, row in _rows(table) if isinstance(row, dict))
        if "split" in meaning.names
        else (),
        rows=rows,
        notes=tuple(f"{name} negated" for name in sorted(meaning.negated)),
    )


def _splits_named(values: Any) -> tuple[str, ...]:
    found = {SPLIT_WORDS.get(str(value).strip().lower()) for value in values}
    return tuple(split for split in ("train", "val", "test") if split in found)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    if table.suffix.lower() == ".csv":
        lines = table_rows(table)
        _, header = next(lines)
        names = [name.strip() for name in header]
        for line, cells in lines:
            if len(cells) != len(names):
                yield line, Reject(f"{table.name}:{line}", f"{len(cells)} columns, expected {len(names)}")
            else:
                yield line, dict(zip(names, cells, strict=True))
        return
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    line = 0
    with parquet.ParquetFile(table) as file:
        batches = file.iter_batches(batch_size=256)
        while True:
            try:
                batch = next(batches, None)
            except (arrow.ArrowException, OSError) as error:
                yield line + 1, Reject(f"{table.name}:{line + 1}", f"damaged from here on: {error}")
                return
            if batch is None:
                return
            for row in batch.to_pylist():
                line += 1
                yield line, row


def _sample(
    keys: Keys, seen: set[str], meaning: Columns, root: Path, here: str, row: Mapping[str, Any],
    words: Mapping[str, list[str]] | None = None,
) -> Raw | Reject:  # fmt: skip
    value = row.get(meaning.names["image"])
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    try:
        if isinstance(data, bytes):
            image: Path | bytes = data
            source = here
        else:
            text = name if isinstance(value, dict) else data
            if not isinstance(text, str):
                return Reject(here, "no picture")
            image = inside(root, text)
            source = shown(text.strip())
            if source in seen:
                return Reject(source, f"duplicate row {here}", "copy")
            seen.add(source)
        record = meaning.record(row, source, words)
    except (ValueError, TypeError, ArithmeticError) as error:
        return Reject(here, str(error))
    return sample(keys, image, record)


# Hugging Face


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _recognise_saved(path: Path) -> str | None:
    return "a dataset saved by Hugging Face's datasets" if path.is_dir() and _is_saved(path) else None


def open_huggingface(
    path: Path, *, columns: str = "", angles: str = "degrees", emotions: str = "affectnet", config: str = ""
) -> Source:
    """A dataset of ``datasets``: saved with ``save_to_disk``, a local folder of data files, or a hub name.

    Pictures stay encoded. Class names (``ClassLabel``) are read as words for emotions. No code of the dataset is
    executed: ``datasets`` no longer supports loading scripts.

    Args:
        path: the folder, or the name on the hub as ``user/name``.
        columns, angles, emotions: as for ``table``.
        config: the hub dataset's configuration.

    Raises:
        UserError: it cannot be loaded, or has no pictures.
    """
    parts = _load(path, config)
    where = str(path)
    first = next(iter(parts.values()))
    image_columns = [n for n, feature in first.features.items() if type(feature).__name__ == "Image"]
    if image_columns and "image=" not in columns:
        columns = ",".join(filter(None, (f"image={image_columns[0]}", columns)))
    meaning = Columns.of(where, list(first.features), columns, angles, emotions)
    words = {
        name: list(feature.names) for name, feature in first.features.items() if type(feature).__name__ == "ClassLabel"
    }
    _check_words(where, meaning, words)
    splits = _splits_named(parts)

    def rows() -> Iterator[Raw | Reject]:
        keys, seen = Keys(), set()
        for part, rows_of_part in parts.items():
            for at, row in enumerate(rows_of_part):
                got = _sample(keys, seen, meaning, path, f"{part}/{at:08d}", row, words)
                split = _splits_named([part])
                yield _with_split(got, split[0]) if isinstance(got, Raw) and split else got

    return Source(
        name="huggingface",
        variant=f"{where}: " + ", ".join(f"{f}={n}" for f, n in meaning.names.items()),
        licence=(first.info.license or _UNKNOWN_LICENCE) if first.info else _UNKNOWN_LICENCE,
        publishable=False,
        default_crop="none",
        splits=splits,
        rows=rows,
        total=sum(len(part) for part in parts.values()),
    )


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
            f"{where}: classes {', '.join(unknown[:12])} of column {meaning.names['emotion']!r} are not words for "
            "an emotion; rename them in the dataset, or name another column with columns=emotion=…"
        )


def _with_split(raw: Raw, split: str) -> Raw:
    record: Record = replace(raw.record, split=raw.record.split or split)
    return replace(raw, record=record)


READERS: Final = (
    Reader("huggingface", "a folder written by save_to_disk of datasets", _recognise_saved, open_huggingface, _CHOICES),
    Reader("table", "one CSV or Parquet table with a column of pictures", _recognise_table, open_table, _CHOICES),
)
