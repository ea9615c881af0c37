"""The table that ``hpe predict`` writes, as JSON lines, CSV or Parquet (columns: ``hpe.predict.read_faces``)."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.predict.faces import Row

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "csv", "parquet"]
DRAWN: Final = "drawn"
"""Folder of the annotated images and videos."""
_GROUP_ROWS: Final = 16_384


def format_of(name: str) -> Format:
    """The format of this name.

    Raises:
        UserError: there is no such format.
    """
    for known in get_args(Format):
        if name == known:
            return known
    raise UserError(f"--format {name}: expected {', '.join(get_args(Format))}")


def table_in(out: Path, form: str) -> Path:
    """The file of the table in a folder of results."""
    return out / f"predictions.{form}"


def written(out: Path | None, form: str, *, drawn: bool) -> list[Path]:
    """What the user looks for in the folder of results: the table, and the folder of drawings; [] without a folder."""
    return [] if out is None else [table_in(out, form)] + [out / DRAWN] * drawn


@contextmanager
def open_table(path: Path | None, form: Format, kinds: Mapping[str, type]) -> Iterator[Callable[[Sequence[Row]], None]]:
    """A function that writes a batch of rows, to a file or to the standard output. After an error, an older file stays.

    Args:
        path: of the file; None: the standard output.
        form: of the file.
        kinds: the columns, and their types as :func:`hpe.predict.faces.columns` gives them.

    Raises:
        UserError: Parquet for the standard output.
    """
    if path is not None:
        _tell_of_older(path)
    if form == "parquet":
        if path is None:
            raise UserError("--format parquet: cannot be printed; choose a folder with --out")
        with aside(path) as part:
            yield from _parquet(part, kinds)
        return
    write = _jsonl if form == "jsonl" else _csv
    if path is None:
        yield write(sys.stdout, kinds)
        sys.stdout.flush()
        return
    with aside(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        yield write(stream, kinds)


def _tell_of_older(path: Path) -> None:
    beside = [table_in(path.parent, form) for form in get_args(Format)]
    older = [one for one in beside if one.exists()]
    if older:
        ends = [f"{one.name} {'is replaced' if one == path else 'stays'}" for one in older]
        ends += [f"older pictures in {DRAWN} stay unless a new one has their name"] * (path.parent / DRAWN).is_dir()
        say(f"predict: {path.parent} holds an earlier result: {', '.join(ends)}; another --out keeps both apart")


def _jsonl(stream: IO[str], _: Mapping[str, type]) -> Callable[[Sequence[Row]], None]:
    def write(rows: Sequence[Row]) -> None:
        stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    return write


def _csv(stream: IO[str], kinds: Mapping[str, type]) -> Callable[[Sequence[Row]], None]:
    writer = csv.DictWriter(stream, list(kinds), lineterminator="\n")
    writer.writeheader()
    return writer.writerows


def _parquet(part: Path, kinds: Mapping[str, type]) -> Iterator[Callable[[Sequence[Row]], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(kinds)
    held: list[Row] = []

    with pq.ParquetWriter(part, schema, compression="zstd") as file:

        def write(rows: Sequence[Row]) -> None:
            held.extend(rows)
            if len(held) >= _GROUP_ROWS:
                file.write_table(pa.Table.from_pylist(held, schema))
                held.clear()

        yield write
        if held:
            file.write_table(pa.Table.from_pylist(held, schema))


def _schema(kinds: Mapping[str, type]) -> "pa.Schema":
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int32(), float: pa.float32(), np.float64: pa.float64()}
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])
