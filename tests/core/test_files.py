"""Locks: only a holder keeps others out; a file system without locks stops nobody and is named."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpe.core import files
from hpe.core.errors import UserError
from hpe.core.files import aside, leftovers, locked, short_name

NO_LOCKS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds a lock."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Path]:
    """A folder on whose file system ``flock`` gives an error; elsewhere it works."""
    there, own = tmp_path / "lustre", tmp_path / "tmp"
    there.mkdir()
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    monkeypatch.setattr(files, "_warn_of_no_locks", files._warn_of_no_locks.__wrapped__)
    real = fcntl.flock

    def fails_with(number: int) -> Path:
        def flock(file: object, how: int) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
            if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(there):
                raise OSError(number, os.strerror(number))
            real(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        return there

    return fails_with


def test_what_another_process_holds_is_refused_and_free_again_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as other:
        with pytest.raises(UserError, match="taken"), locked(path, "taken"):
            pass
        other.kill()
    with locked(path, "taken"):
        pass


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_work_goes_on_with_a_warning_and_one_machine_still_keeps_order(
    no_locks: Callable[[int], Path], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = no_locks(number)
    same = folder.parent / "same"
    same.symlink_to(folder)
    with locked(folder / "lock", "taken"):
        told = capfd.readouterr().err
        assert str(folder) in told
        assert "no file locks" in told
        for path in (folder / "lock", same / "lock"):  # by another path, too
            with pytest.raises(UserError, match=r"^taken$"), locked(path, "taken"):
                pass
        with locked(folder / "another", "taken"):
            pass
    with locked(folder / "lock", "taken"):  # released
        pass


def test_a_link_planted_in_the_temporary_folder_is_not_followed(no_locks: Callable[[int], Path]) -> None:
    folder = no_locks(errno.ENOSYS)
    with locked(folder / "lock", "taken"):
        pass
    (local,) = Path(tempfile.gettempdir()).iterdir()
    victim = folder / "victim"
    local.unlink()
    local.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), locked(folder / "lock", "taken"):
        pass
    assert not victim.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_fault_of_the_disk_is_not_called_another_process(no_locks: Callable[[int], Path], number: int) -> None:
    folder = no_locks(number)
    told = rf"lock: cannot be locked \({os.strerror(number)}\)"
    with pytest.raises(UserError, match=told), locked(folder / "lock", "another process is training"):
        pass


def test_who_waits_for_a_lock_gets_it_when_its_holder_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as other:
        waited: list[float] = []

        def waiting(seconds: float) -> None:
            waited.append(seconds)
            other.kill()

        with locked(path, None, waiting):
            assert waited


def test_waiting_works_without_locks_and_names_other_faults(no_locks: Callable[[int], Path]) -> None:
    with locked(no_locks(errno.ENOSYS) / "room.lock", None):
        pass
    with pytest.raises(UserError, match="Input/output"), locked(no_locks(errno.EIO) / "room.lock", None):
        pass


@pytest.mark.parametrize("letter", ["x", "é", "顔", "\U0001f600"])
@pytest.mark.parametrize("most", [40, 255])
def test_a_name_is_cut_in_bytes_and_no_two_become_one(letter: str, most: int) -> None:
    names = [f"{letter * count}{end}" for count in (1, 9, 60, 100, 255, 4000) for end in ("", ".jpg", "-2")]
    short = [short_name(name, most) for name in names]
    assert len(set(short)) == len(names)
    assert max(len(one.encode()) for one in short) <= most
    assert all(one == name for one, name in zip(short, names, strict=True) if len(name.encode()) <= most)
    assert short == [short_name(name, most) for name in names]


def test_the_longest_name_that_a_disk_takes_is_written_aside_and_its_leftovers_are_found(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    files.refuse_unwritable(path, "--out")
    with aside(path) as part:
        part.write_text("whole")
        assert list(leftovers(path)) == [part]
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{number}').readlink().suffix or 'folder'}")
        fsync(number)

    def renamed(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    files.write_text(tmp_path / "table.csv", "a,b")
    assert done == ["sync .part", "rename", "sync folder"]
    assert (tmp_path / "table.csv").read_text() == "a,b"


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_disk_that_cannot_sync_is_used_and_one_that_fails_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match=os.strerror(number)):
            files.write_text(tmp_path / "table.csv", "a,b")
        assert list(tmp_path.iterdir()) == []
    else:
        files.write_text(tmp_path / "table.csv", "a,b")
        assert (tmp_path / "table.csv").read_text() == "a,b"
