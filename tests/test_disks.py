"""Where a command cannot write it says where, why and the way out: a read-only disk, no rights, a full disk."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import SafetensorError

from hpe.__main__ import ending
from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.share import share
from tests import made

REASONS = {
    errno.EROFS: "choose a place that can be written|choose another folder",
    errno.EACCES: "change its permissions|choose another folder",
    errno.ENOSPC: "[Ff]ree some space",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a run, a config, a study and raw pictures; commands are to write below ``disk``."""
    place = tmp_path_factory.mktemp("disks")
    (place / "disk").mkdir()
    run = made.untrained(place / "run", made.shards(place / "shards"))
    shutil.copytree(place / "shards", place / "disk" / "shards")
    (place / "raw" / "happy").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(place / "raw" / "happy" / f"{number}.png")
    text = (run / "config.yaml").read_text().replace(str(run), str(place / "disk" / "new"))
    (place / "train.yaml").write_text(text)
    study = Path("configs/study/tiny.yaml").read_text().replace("runs/study_tiny_heads", str(place / "shards"))
    (place / "study.yaml").write_text(study.replace("study: runs/study_tiny", f"study: {place}/disk/new"))
    return place


@pytest.fixture
def refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes ``disk`` refuse new folders, with an error of the system."""
    make = os.mkdir

    def refusing(number: int) -> None:
        def refuse(path: Any, *args: Any, **settings: Any) -> None:
            if Path(path).is_relative_to(place / "disk"):
                raise OSError(number, os.strerror(number), str(path))
            make(path, *args, **settings)

        monkeypatch.setattr(os, "mkdir", refuse)

    return refusing


@pytest.mark.parametrize("number", REASONS)
@pytest.mark.parametrize(
    "command",
    [
        "pack folders {0}/raw {0}/disk/new --workers 1",
        "index {0}/disk/shards --workers 1",
        "train {0}/train.yaml",
        "evaluate {0}/run {0}/shards --split val --out {0}/disk/new",
        "report {0}/run --out {0}/disk/new",
        "export {0}/run {0}/disk/new/face.onnx",
        "share {0}/run {0}/disk/new/face",
        "study {0}/study.yaml",
    ],
)
def test_a_command_that_cannot_write_says_where_why_and_the_way_out(
    place: Path, refused: Callable[[int], None], capsys: pytest.CaptureFixture[str], command: str, number: int
) -> None:
    refused(number)
    with pytest.raises((UserError, OSError)) as error:
        app(command.format(place).split(), standalone_mode=False)
    end = ending(error.value)
    assert end is not None
    assert end.code == 2
    told = str(end.message)
    assert str(place / "disk") in told
    assert os.strerror(number) in told
    assert re.search(REASONS[number], told), told
    assert "exporting" not in capsys.readouterr().err  # a target that cannot be written is found before the work


def test_a_disk_that_fills_up_while_a_file_is_written_is_named_by_that_file(tmp_path: Path) -> None:
    target, source = tmp_path / "face.onnx", tmp_path / "made.onnx"
    for error in (
        OSError(errno.ENOSPC, "full"),  # of a write
        OSError(errno.ENOSPC, "full", str(source), None, "PART"),  # of a copy
        OSError(errno.EACCES, "no rights", "PART"),
    ):
        with pytest.raises(OSError, match=str(target)) as raised, aside(target) as part:
            if error.filename2:
                error.filename2 = str(part)
            elif error.filename:
                error.filename = str(part)
            raise error
        assert (raised.value.filename, raised.value.filename2) == (str(target), None)
    with pytest.raises(OSError, match="source") as raised, aside(target):
        raise OSError(errno.EACCES, "no rights", "source")
    assert raised.value.filename == "source"


def test_a_library_that_hides_the_system_s_error_is_one_message(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hpe.models.checkpoints.save_file", full)
    with pytest.raises(UserError, match=r"face: cannot be written \(I/O error: No space.*\); free some space"):
        share(place / "run", str(tmp_path / "face"))
