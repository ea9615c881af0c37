"""Paths that users name: the same on every Python, whose pathlib is not."""

import errno
import os
from pathlib import Path

import pytest

from hpe.__main__ import ending
from hpe.core.errors import EXIT_USAGE
from hpe.core.files import resolved
from hpe.predict import read_faces


def test_a_path_is_resolved_whether_or_not_something_is_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for given in ("link", "link/x/y", "nowhere", "real/../link", "."):
        place = tmp_path / given
        assert str(resolved(place)) == os.path.realpath(place)


@pytest.mark.parametrize(("given", "number"), [("a", "ELOOP"), ("a/sub", "ELOOP"), ("x" * 300, "ENAMETOOLONG")])
def test_what_no_path_can_be_is_an_error_of_the_operating_system(tmp_path: Path, given: str, number: str) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=given[:9]) as found:
        resolved(tmp_path / given)
    assert found.value.errno == getattr(errno, number)


def test_links_in_a_circle_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="levels of symbolic links") as raised:
        read_faces._refuse_out_in_inputs(tmp_path / "loop", ["."])
    end = ending(raised.value)
    assert end is not None
    assert end.code == EXIT_USAGE
    assert end.message is not None
    assert "its links form a circle" in end.message
