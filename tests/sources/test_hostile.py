"""Whatever stands in a raw dataset's files, a reader gives a sample or a reject for it and goes on."""

import csv
import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpe.core.errors import UserError
from hpe.data.records import Record
from hpe.sources import Raw, Reject, open_source, recognise
from hpe.sources.affectnet import COLUMNS, npy_numbers
from hpe.sources.base import LARGEST_FILE_BYTES, images, number
from hpe.sources.mat import mat_arrays
from hpe.sources.paths import ImageFinder, PathError

ANY_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

CELLS = st.one_of(
    st.sampled_from(
        ["", "NULL", "nan", "inf", "-2", "8", "1", "3.7", "1e400", "../x", "a/b.jpg", "-1", "\0", '"', ";"]
    ),
    st.text(max_size=12),
    st.floats(allow_nan=True).map(str),
    st.integers().map(str),
)


def written(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def check(rows: list[Raw | Reject]) -> None:
    keys = [row.key for row in rows if isinstance(row, Raw)]
    assert len(set(keys)) == len(keys)
    for row in rows:
        if isinstance(row, Reject):
            assert row.reason
            row.source.encode()
        else:
            assert not set(row.key) & set("./\\\0 ")
            assert row.record.problems() == []
            row.record.to_json()


@ANY_FOLDER
@given(st.lists(st.lists(CELLS, min_size=1, max_size=10), max_size=8))
def test_any_rows_of_affectnet_are_samples_or_rejects(tmp_path: Path, rows: list[list[str]]) -> None:
    (tmp_path / "Manually_Annotated_Images").mkdir(exist_ok=True)
    (tmp_path / "training.csv").write_bytes(written([[*COLUMNS], *rows]))
    found = [*open_source("affectnet-2017", tmp_path).read()]
    check(found)
    with (tmp_path / "training.csv").open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        assert len(found) == sum(1 for row in csv.reader(stream) if row) - 1


@ANY_FOLDER
@given(st.binary(max_size=400))
def test_any_bytes_as_tables_give_rows_or_one_message(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "Manually_Annotated_Images").mkdir(exist_ok=True)
    (tmp_path / "FER2013Train").mkdir(exist_ok=True)
    (tmp_path / "training.csv").write_bytes(data)
    (tmp_path / "FER2013Train" / "label.csv").write_bytes(data)
    (tmp_path / "list_patition_label.txt").write_bytes(data)
    (tmp_path / "aligned").mkdir(exist_ok=True)
    for name in ("affectnet-2017", "ferplus", "raf-db", "table"):
        with suppress(UserError):
            check([*open_source(name, tmp_path).read()])


@ANY_FOLDER
@given(st.lists(st.lists(CELLS, min_size=1, max_size=12), max_size=8))
def test_any_votes_of_ferplus_are_samples_or_rejects(tmp_path: Path, rows: list[list[str]]) -> None:
    (tmp_path / "FER2013Train").mkdir(exist_ok=True)
    (tmp_path / "FER2013Train" / "label.csv").write_bytes(written(rows))
    check([*open_source("ferplus", tmp_path).read()])


@ANY_FOLDER
@given(st.lists(st.lists(CELLS, min_size=6, max_size=6), max_size=8))
def test_any_rows_of_a_table_are_samples_or_rejects(tmp_path: Path, rows: list[list[str]]) -> None:
    header = ["path", "emotion", "yaw", "pitch", "valence", "subject"]
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "b.jpg").touch()
    (tmp_path / "t.csv").write_bytes(written([header, *rows]))
    found = [*open_source("table", tmp_path, angles="degrees").read()]
    check(found)
    assert len(found) == len(rows)


@ANY_FOLDER
@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_any_bytes_as_arrays_give_numbers_or_a_value_error(tmp_path: Path, data: bytes, seed: int) -> None:
    whole = io.BytesIO()
    np.save(whole, np.array("0.5"))
    damaged = bytearray(whole.getvalue())
    random = np.random.default_rng(seed)
    for at in random.integers(0, len(damaged), 4):
        damaged[at] = random.integers(256)
    for content in (data, b"\x93NUMPY" + data, bytes(damaged)):
        for name, read in (("a.npy", npy_numbers), ("a.mat", lambda path: mat_arrays(path, ("Pose_Para",)))):
            (tmp_path / name).write_bytes(content)
            with suppress(ValueError):
                read(tmp_path / name)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_a_damaged_mat_gives_arrays_or_a_value_error(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"Pose_Para": np.arange(7.0)[None], "pt2d": np.ones((2, 21))}, do_compression=bool(seed % 2))
    data, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at in random.integers(0, len(data), random.integers(1, 6)):
        data[at] = random.integers(256)
    path.write_bytes(data[: random.integers(1, len(data) + 1)] if seed % 3 == 0 else data)
    with suppress(ValueError):
        for array in mat_arrays(path, ("Pose_Para", "pt2d")).values():
            assert array.dtype == np.float64


PLACES = ("", ".", "..", "a", "A", "a.png", "A.PNG", "secret.png", "~", "C:", "img", "e\u0301.png", "\u00e9.png", "set")


@ANY_FOLDER
@given(
    st.lists(st.sampled_from(PLACES), max_size=6),
    st.sampled_from(["", "/", "//", "C:/", "\\", "{root}/"]),
    st.text(max_size=4),
)
def test_no_path_of_a_table_leads_out_of_the_dataset(tmp_path: Path, parts: list[str], start: str, end: str) -> None:
    root = tmp_path / "set"
    for name in ("a.png", "img/a.png", "img/A/e\u0301.png", "../secret.png", "../img/secret.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for text in ("/".join((start.replace("{root}", str(root)), *parts)), "\\".join((*parts, end)), end):
        try:
            path, source = ImageFinder(root, root).find(text)
        except PathError:
            continue
        assert path.resolve().is_relative_to(root.resolve())
        assert path.exists()
        assert path == root / source
        assert path != root


@pytest.mark.parametrize("text", ["", " ", "NULL", "N/A", "None", None])
def test_an_empty_cell_is_no_number(text: str | None) -> None:
    assert number("yaw", text) is None


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", float("nan"), "inf", "1e999", "x"])
def test_a_cell_of_nan_or_no_number_is_refused_by_its_name(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"^yaw .*(NaN|not a)"):
        number("yaw", text)


def test_what_cannot_be_a_picture_is_refused_when_it_is_read(tmp_path: Path) -> None:
    def raw(path: Path) -> Raw:
        return Raw("key", path, Record())

    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match="empty file"):
        raw(tmp_path / "empty.jpg").read()
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        raw(tmp_path / "folder.jpg").read()
    with (tmp_path / "sparse.jpg").open("wb") as stream:
        stream.truncate(LARGEST_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="more than the"):
        raw(tmp_path / "sparse.jpg").read()
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        raw(tmp_path / "pipe.jpg").read()


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    for word in ("happy", "sad"):
        (tmp_path / word).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / word / "a.png")
        (tmp_path / word / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len([*open_source("auto", tmp_path).read()]) == 2


def test_a_fifo_in_place_of_labels_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "image00002.jpg").write_bytes(b"x")
    scipy.io.savemat(tmp_path / "image00002.mat", {"Pose_Para": np.zeros((1, 7))})
    (tmp_path / "image00004.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "image00004.mat")
    found = [*open_source("aflw2000", tmp_path).read()]
    assert isinstance(found[0], Raw)
    assert isinstance(found[1], Reject)
    assert "not a regular file" in found[1].reason


def test_several_datasets_below_one_folder_are_named(tmp_path: Path) -> None:
    for name, stem in (("one", "image00002"), ("two", "AFW_134212_1_0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{stem}.jpg").write_bytes(b"x")
        scipy.io.savemat(tmp_path / name / f"{stem}.mat", {"Pose_Para": np.zeros((1, 7))})
    with pytest.raises(UserError, match=r"several datasets here: one/ \(aflw2000\), two/ \(300w-lp\)"):
        recognise(tmp_path)
    assert recognise(tmp_path / "one").name == "aflw2000"
    rows = {row.source: row for row in open_source("aflw2000", tmp_path).read() if isinstance(row, Reject)}
    assert "not named as a picture of AFLW2000" in rows["two/AFW_134212_1_0.jpg"].reason


def test_a_folder_that_cannot_be_read_is_not_lost_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root reads whatever its mode is
    with pytest.raises(UserError, match="closed: cannot be read"):
        list(images(tmp_path))


def test_a_label_in_other_digits_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "aligned").mkdir()
    (tmp_path / "list_patition_label.txt").write_text("train_00001.jpg ²\ntrain_00002.jpg 3\n")
    found = [*open_source("raf-db", tmp_path).read()]
    assert [type(row) for row in found] == [Reject, Raw]


@pytest.mark.parametrize("option", ["name", "path"])
def test_the_names_of_our_own_arguments_are_no_options(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match="no option"):
        open_source("synthetic", tmp_path, **{option: "x"})


def test_a_number_of_5000_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a whole number"):
        open_source("synthetic", tmp_path, count="9" * 5000)
