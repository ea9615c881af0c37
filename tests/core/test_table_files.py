"""A table means the same however it was saved: judged by the rows that were written."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpe.core.errors import UserError
from hpe.core.table_files import TextTable, decimal_commas, encoding_of, misfit, read_table, read_text, with_point

ROWS = [["image", "emotion", "note"], ["p0.png", "happy", "Zoë, Müller\nsecond line"], ["p1.png", "sad", "a;b\tc|d"]]


def saved(path: Path, rows: list[list[str]], delimiter: str, encoding: str, start: str = "") -> Path:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    path.write_bytes((start + out.getvalue()).encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_delimiter_in_every_encoding_gives_the_same_rows(tmp_path: Path, delimiter: str, encoding: str) -> None:
    table = TextTable.open(saved(tmp_path / "t.csv", ROWS, delimiter, encoding))
    assert [cells for _, cells in table.rows()] == ROWS
    assert table.delimiter == delimiter
    assert table.usual == (delimiter == "," and encoding.startswith("utf-8"))


def test_excels_line_with_the_delimiter_is_followed_and_is_no_row(tmp_path: Path) -> None:
    table = TextTable.open(saved(tmp_path / "t.csv", ROWS, ";", "utf-8-sig", "sep=;\r\n"))
    assert [*table.rows()] == [(2, ROWS[0]), (4, ROWS[1]), (5, ROWS[2])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text("abcxyz_ ", min_size=1, max_size=5), min_size=2, max_size=5),
    cells=st.lists(st.lists(st.text("ab,;\t|\"'\n. é0-9", max_size=6), min_size=5, max_size=5), max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-16", "cp1252"]),
)
def test_a_header_of_plain_names_decides_whatever_is_in_the_cells(tmp_path: Path, names, cells, delimiter, encoding):
    rows = [names, *(row[: len(names)] for row in cells)]
    table = TextTable.open(saved(tmp_path / "t.csv", rows, delimiter, encoding))
    assert [found for _, found in table.rows()] == rows


def test_rows_of_a_known_number_of_cells_are_found_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a.jpg,1,2;3;4;5,6\nb.jpg,1,2;3;4;5,6\nc.jpg,1\n")  # by semicolons 4 cells each, but for the last
    assert TextTable.open(path, cells=4).delimiter in ",;"
    path.write_text("a.jpg,1,2;3;4,6\n")
    assert TextTable.open(path, cells=4).delimiter == ","
    assert TextTable.open(path, cells=3).delimiter == ";"


def test_a_mark_that_is_never_closed_says_how_many_lines_it_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,emotion\na.png,"happy\n' + "b.png,sad\n" * 8)
    (_, _), (line, cells) = TextTable.open(path).rows()
    assert line == 10
    assert cells[0] == "a.png"
    assert misfit(cells, 3) == "2 columns, expected 3, over 10 lines: a quotation mark is not closed?"
    path.write_text('image,emotion\na.png,"' + "x" * 200_000 + "\n")
    _, (_, cells) = TextTable.open(path).rows()
    assert misfit(cells, 2).startswith("no row from line 2 on: field larger than field limit")


def test_a_column_has_decimal_commas_if_no_number_of_it_has_a_point() -> None:
    rows = [["1,5", "1,5", "a,b", "1,5"], ["-,25", "2.5", "1,5", ""], ["3", "3", "c", "2,5e-1"]]
    assert decimal_commas(rows) == {0, 2, 3}
    assert [*map(with_point, ("1,5", "-,25", "2,5e-1", "a,b", "1,2,3", "1.5", ""))] == [
        "1.5", "-.25", "2.5e-1", "a,b", "1,2,3", "1.5", "",
    ]  # fmt: skip


def test_a_table_of_semicolons_and_decimal_commas_is_as_one_of_commas_and_points(tmp_path: Path) -> None:
    plain = [["Direction", "Emotion", "yaw"], ["left", "happy", "1.5"], ["up", "sad", "-20.25"], ["up", "", ""]]
    commas = [[cell.replace(".", ",") for cell in row] for row in plain]
    expected = read_table(saved(tmp_path / "a.csv", plain, ",", "utf-8"))
    assert read_table(saved(tmp_path / "b.csv", commas, ";", "utf-16")) == expected
    assert read_table(saved(tmp_path / "c.tsv", plain, "\t", "cp1252")) == expected
    assert expected.column("yaw").to_pylist() == [1.5, -20.25, None]


def test_a_blank_cell_is_no_value_in_columns_of_words_too(tmp_path: Path) -> None:
    rows = [["direction", "age"], ["left", "old"], ["", " "], ["up", "NA"]]
    assert read_table(saved(tmp_path / "t.csv", rows, ";", "cp1252")).to_pydict() == {
        "direction": ["left", None, "up"],
        "age": ["old", None, None],
    }


def test_lists_are_read_in_any_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "l.txt").write_bytes("Zoë.png\r\nMüller.png\r\n".encode(encoding))
        assert read_text(tmp_path / "l.txt") == "Zoë.png\nMüller.png\n"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_any_bytes_have_an_encoding_and_rows(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    assert len(data.decode(encoding_of(path), "replace")) <= len(data)
    assert all(cells for _, cells in TextTable.open(path).rows())
    read_text(path)


def test_what_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        TextTable.open(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="not a regular file"):
        read_text(tmp_path)
    (tmp_path / "ragged.csv").write_text("a;b\n1;2\n3\n")
    with pytest.raises(UserError, match=r"ragged.csv:3: 1 columns, expected 2 \(read as semicolons, UTF-8\)"):
        read_table(tmp_path / "ragged.csv")
