"""The table that ``hpe predict`` writes, as JSON lines, CSV or Parquet (columns: ``hpe.predict.read_faces``)."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.predict.network import Answers

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "csv", "parquet"]
Row = dict[str, Any]
BOX: Final = ("x0", "y0", "x1", "y1")
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


def columns(heads: Sequence[str]) -> dict[str, type]:
    """The columns of a network's table, and their types (``float`` is single precision)."""
    found: dict[str, type] = {"source": str, "key": str, "face": int, **dict.fromkeys(BOX, float), "score": float}
    if "emotion" in heads:
        found |= {"emotion": str, **{f"emotion_{name}": float for name in EMOTIONS}}
    if "direction" in heads or "pose" in heads:
        found["direction"] = str
    if "direction" in heads:
        found |= {f"direction_{name}": float for name in DIRECTIONS}
    if "pose" in heads:
        found |= {**dict.fromkeys(ANGLES, float), **{f"{angle}_sd": float for angle in ANGLES}}
    if "affect" in heads:
        found |= {"valence": float, "arousal": float}
    return found


def answer_columns(answers: Answers, row: int) -> Row:
    """The columns of one face that come from the network; None for NaN and infinity."""
    found: Row = {}
    if answers.emotion_p is not None:
        shares = answers.emotion_p[row]
        found["emotion"] = EMOTIONS[int(shares.argmax())] if np.isfinite(shares).all() else None
        found |= {f"emotion_{name}": _number(share) for name, share in zip(EMOTIONS, shares, strict=True)}
    if answers.direction is not None:
        direction = int(answers.direction[row])
        found["direction"] = DIRECTIONS[direction] if direction >= 0 else None
    if answers.direction_p is not None:
        shares = answers.direction_p[row]
        found |= {f"direction_{name}": _number(share) for name, share in zip(DIRECTIONS, shares, strict=True)}
    if answers.angles is not None and answers.deviations is not None:
        found |= {angle: _number(value) for angle, value in zip(ANGLES, answers.angles[row], strict=True)}
        found |= {f"{angle}_sd": _number(value) for angle, value in zip(ANGLES, answers.deviations[row], strict=True)}
    if answers.affect is not None:
        found["valence"], found["arousal"] = map(_number, answers.affect[row])
    return found


def _number(value: np.floating | float) -> float | None:
    """The shortest decimal number for this single-precision number; None for NaN and infinity."""
    return float(str(np.float32(value))) if math.isfinite(value) else None


@contextmanager
def open_table(
    path: Path | None, form: Format, kinds: Mapping[str, type]
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """A function that writes a batch of rows, to a file or to the standard output. After an error, an older file stays.

    Args:
        path: of the file; None: the standard output.
        form: of the file.
        kinds: the columns, and their types as :func:`hpe.predict.faces.columns` gives them.

    Raises:
        UserError: Parquet for the standard output.
    """
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

    types = {str: pa.string(), int: pa.int32(), float: pa.float32()}
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])
