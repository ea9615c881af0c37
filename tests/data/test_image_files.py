"""What a folder holds: every file is a picture or is named by kind, once, whatever the links and the names."""

import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hpe.data.image_files import SUFFIXES, Other, counted, in_words, walk


def picture(path: Path, form: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (10, 200, 30)).save(path, form)
    return path


def found(folder: Path) -> tuple[list[str], Counter[str]]:
    entries = list(walk(folder))
    pictures = [one.relative_to(folder).as_posix() for one in entries if isinstance(one, Path)]
    return pictures, counted(one for one in entries if isinstance(one, Other))


def test_every_file_is_a_picture_or_is_counted_by_kind(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jfif", "c.tif", "Zoë 顔.webp", "deep/er/d.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"the suffix is enough")
    for name in ("no suffix", "IMG_1.jpg_large", "scan.001", "deep/x.dat"):
        picture(tmp_path / name)
    for name in ("a.txt", "b.TXT", "deep/poses.mat", "README", "notes.dat", "scan.002", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_text("no picture")
    picture(tmp_path / ".hidden/e.png")
    pictures, kinds = found(tmp_path)
    assert pictures == [
        "IMG_1.jpg_large", "Zoë 顔.webp", "a.JPG", "b.jfif", "c.tif", "deep/er/d.bmp", "deep/x.dat", "no suffix",
        "scan.001",
    ]  # fmt: skip
    assert kinds == {
        ".txt": 2, ".mat": 1, ".dat": 1, ".db": 1, "without a suffix, no picture": 1,
        "with an unusual suffix, no picture": 1, "hidden (a name that begins with a dot)": 2,
    }  # fmt: skip
    assert in_words(kinds).startswith("2 × .txt, 2 × hidden")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_pictures_suffix_counts_in_any_case(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix.upper()}").touch()
    assert found(tmp_path)[0] == [f"x{suffix.upper()}"]


def test_linked_folders_are_entered_once_and_circles_end(tmp_path: Path) -> None:
    raw, pool = tmp_path / "raw", tmp_path / "pool"
    picture(raw / "own/a.png")
    picture(pool / "b.png")
    picture(pool / "below/c.png")
    (raw / "linked").symlink_to(pool)
    (raw / "linked again").symlink_to(pool)
    (raw / "part").symlink_to(pool / "below")
    (raw / "to own").symlink_to(raw / "own")
    (raw / "own/up").symlink_to(raw)
    (pool / "circle").symlink_to(tmp_path)
    pictures, kinds = found(raw)
    assert pictures == ["linked/b.png", "linked/below/c.png", "own/a.png"]
    assert kinds == {"link to a folder that is read anyway": 4, "link to a folder above it": 1}
    assert found(tmp_path)[0] == ["pool/b.png", "pool/below/c.png", "raw/own/a.png"]


def test_a_linked_file_and_its_target_count_once_and_hidden_targets_count(tmp_path: Path) -> None:
    here, store = tmp_path / "here", tmp_path / "store"
    picture(here / "a.png")
    picture(store / "b.png")
    picture(here / ".annex/0a1b")
    for name, target in (
        ("link.png", here / "a.png"), ("b1.png", store / "b.png"), ("b2.png", store / "b.png"),
        ("c.png", here / ".annex/0a1b"),
    ):  # fmt: skip
        (here / name).symlink_to(target)
    pictures, kinds = found(here)
    assert pictures == ["a.png", "b1.png", "c.png"]
    assert kinds["link to a file that is read anyway"] == 2


def test_what_may_hide_pictures_is_marked_as_lost(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone folder").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.txt").touch()
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{place}/s")  # a socket's whole path may have no more than 107 bytes
        os.close(place)
        lost = {one.path.name: one.kind for one in walk(tmp_path) if isinstance(one, Other) and one.lost}
    assert lost.keys() == {"gone.jpg", "gone folder", "itself", "pipe.jpg", "s"}
    assert lost["gone.jpg"] == "broken link (No such file or directory)"
    assert lost["pipe.jpg"] == lost["s"] == "no regular file: a pipe, a socket or a device"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_marked_as_lost(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (only,) = walk(tmp_path)
    assert isinstance(only, Other)
    assert only.lost
    assert "cannot be read (Permission denied)" in only.kind


def test_a_tree_deeper_than_pythons_stack_is_walked(tmp_path: Path) -> None:
    there = tmp_path
    for _ in range(1050):
        there = there / "d"
        there.mkdir()
    picture(there / "x.png")
    try:
        assert len(found(tmp_path)[0]) == 1
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # what Python's own removal cannot


def test_names_that_are_no_text_are_walked(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb"):  # noqa: PTH123 (a name that is no text)
        pass
    with open(os.fsencode(tmp_path) + b"/x.\xff", "wb"):  # noqa: PTH123
        pass
    pictures, kinds = found(tmp_path)
    assert len(pictures) == 1
    assert kinds == {"with an unusual suffix, no picture": 1}


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list(walk(tmp_path / "nowhere")) == []
