"""Tables that people hand over: which delimiter, encoding and decimal mark a text file has, and its rows.

Spreadsheets of many countries save a "CSV" with semicolons and decimal commas, Windows programs save UTF-16 or
Windows-1252. All of that is found out from the whole file by fixed rules, not guessed from a sample of it, so that a
table never changes its meaning with its length. The readers of ``hpe pack``, its lists, and ``hpe association`` use
this one module.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from hpe.core.errors import UserError
from hpe.core.files import open_regular

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_SUFFIXES: Final = (".csv", ".tsv")
SUFFIXES: Final = (*TEXT_SUFFIXES, ".parquet")
_DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Earlier ones win where a table can be read with several."""
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODING_NAMES: Final = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}
_SEPARATOR_LINE: Final = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""The line before the header by which Excel is told the delimiter."""
_DECIMAL_COMMA: Final = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*")
_DECIMAL_POINT: Final = re.compile(r"\s*[-+]?\d*\.\d+([eE][-+]?\d+)?\s*")
_CHUNK_BYTES: Final = 1 << 20


def encoding_of(path: Path) -> str:
    """The encoding of a text file: by its byte order mark, else UTF-16 or UTF-8, else Windows-1252 or Latin-1.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as stream:
        start = stream.read(_CHUNK_BYTES)
        for mark, name in _BYTE_ORDER_MARKS:
            if start.startswith(mark):
                return name
        for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            # Western text in UTF-16 is every second byte 0; no other encoding of text has a 0 at all.
            zeros, others = start[first::2].count(0), start[1 - first :: 2].count(0)
            if zeros > len(start) // 4 and not others:
                return name
        # Undefined bytes of Windows-1252 are left to Latin-1, which reads any file.
        candidates = {name: codecs.getincrementaldecoder(name)("strict") for name in ("utf-8", "cp1252")}
        chunk = start
        while chunk:
            for name, decoder in [*candidates.items()]:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    del candidates[name]
            chunk = stream.read(_CHUNK_BYTES)
        if "utf-8" in candidates:
            try:
                candidates["utf-8"].decode(b"", final=True)
            except UnicodeDecodeError:
                del candidates["utf-8"]
        return next(iter(candidates), "latin-1")


def read_text(path: Path) -> str:
    """The text of a small file, such as a list of pictures, in whatever encoding it is; lines end in a newline.

    Raises:
        UserError: it cannot be read.
    """
    encoding = encoding_of(path)
    with io.TextIOWrapper(_opened(path), encoding, "replace", newline=None) as stream:
        return stream.read()


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class TextTable:
    """A text file of rows and cells.

    Attributes:
        encoding: as :func:`encoding_of` names it.
        delimiter: between cells.
        announced: whether its first line is Excel's ``sep=;``, no row.
    """

    path: Path
    encoding: str
    delimiter: str
    announced: bool = False

    @classmethod
    def open(cls, path: Path, *, cells: int | None = None) -> "TextTable":
        """Find encoding and delimiter.

        The delimiter is the one that the first row has outside quotes; where it has several, the one by which most
        rows have as many cells as the first.

        Args:
            cells: how many cells the first row of this format has: a delimiter that gives as many is preferred.

        Raises:
            UserError: the file cannot be read.
        """
        encoding = encoding_of(path)
        with _text(path, encoding) as stream:
            announced = _SEPARATOR_LINE.fullmatch(stream.readline(_CHUNK_BYTES))
        if announced:
            return cls(path, encoding, announced[1], announced=True)
        tables = [cls(path, encoding, delimiter) for delimiter in _DELIMITERS]
        widths = [len(next((row for _, row in table.rows()), ())) for table in tables]
        if cells in widths:
            return tables[widths.index(cells)]
        possible = [table for table, width in zip(tables, widths, strict=True) if width > 1]
        if len(possible) < 2:
            return possible[0] if possible else tables[0]
        return max(possible, key=TextTable._regular_rows)  # the first of several that are equal

    def _regular_rows(self) -> int:
        rows = (len(row) for _, row in self.rows())
        width = next(rows)
        return sum(cells == width for cells in rows)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number (of the row's last line) and cells of each row that has any; bytes of no character as U+FFFD.

        Raises:
            UserError: the file cannot be read.
        """
        with _text(self.path, self.encoding) as stream:
            if self.announced:
                stream.readline()
            rows = csv.reader(stream, delimiter=self.delimiter)
            while True:
                before = rows.line_num + self.announced
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    row = [f"no row from line {before + 1} on: {error}"]
                if row is None:
                    return
                if row:
                    yield rows.line_num + self.announced, row

    @property
    def found(self) -> str:
        """Delimiter and encoding, for notes and messages: ``semicolons, UTF-16``."""
        encoding = _ENCODING_NAMES.get(self.encoding, self.encoding.removesuffix("-sig").upper())
        return f"{_DELIMITERS.get(self.delimiter, repr(self.delimiter))}, {encoding}"

    @property
    def usual(self) -> bool:
        """Whether it has commas and is UTF-8."""
        return self.delimiter == "," and self.encoding.startswith("utf-8")


def misfit(cells: Sequence[str], width: int) -> str:
    """Why a row of another number of cells than the header is refused."""
    if len(cells) == 1 and cells[0].startswith("no row from line"):
        return cells[0]
    lines = 1 + sum(cell.count("\n") for cell in cells)
    over = f", over {lines:,} lines: a quotation mark is not closed?" if lines > 1 else ""
    return f"{len(cells)} columns, expected {width}{over}"


def _text(path: Path, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_opened(path), encoding, "replace", newline="")


def decimal_commas(rows: Iterable[Sequence[str]]) -> frozenset[int]:
    """Which columns hold decimal commas: some cell is a number with a comma, and none one with a point."""
    comma: set[int] = set()
    point: set[int] = set()
    for cells in rows:
        for place, cell in enumerate(cells):
            if "," in cell and _DECIMAL_COMMA.fullmatch(cell):
                comma.add(place)
            elif "." in cell and _DECIMAL_POINT.fullmatch(cell):
                point.add(place)
    return frozenset(comma - point)


def with_point(cell: str) -> str:
    """A number with a decimal comma, with a point; any other text unchanged."""
    return cell.replace(",", ".") if "," in cell and _DECIMAL_COMMA.fullmatch(cell) else cell


def read_table(path: Path) -> "pa.Table":
    """A whole CSV, TSV or Parquet file, the types of its columns inferred; blank cells of a text file are null.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    import pyarrow as pa
    from pyarrow import parquet

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        return parquet.read_table(path) if suffix == ".parquet" else _read_text_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _read_text_table(path: Path) -> "pa.Table":
    """Arrow finds the types; the rows come from :class:`TextTable`, in plain CSV of decimal points."""
    from pyarrow import csv as arrow

    opened = TextTable.open(path)
    rows = [cells for _, cells in opened.rows()]
    if not rows:
        raise UserError(f"{path}: empty; expected a header row and rows")
    width = len(rows[0])
    if wrong := next(((line, cells) for line, cells in opened.rows() if len(cells) != width), None):
        line, cells = wrong
        raise UserError(f"{path}:{line}: {misfit(cells, width)} (read as {opened.found})")
    commas = decimal_commas(iter(rows[1:]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name.strip() for name in rows[0]])
    for cells in rows[1:]:
        writer.writerow([(with_point(c) if at in commas else c).strip() for at, c in enumerate(cells)])
    return arrow.read_csv(
        io.BytesIO(out.getvalue().encode("utf-8", "replace")),
        parse_options=arrow.ParseOptions(newlines_in_values=True),
        # Else a blank, or NA, is null in a column of numbers only, and a text of its own in one of words.
        convert_options=arrow.ConvertOptions(strings_can_be_null=True),
    )
