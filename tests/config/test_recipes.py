"""The configs that come with hpe can be taken out, run and edited, and are never written over."""

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from hpe.config import recipes
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.core.errors import UserError
from hpe.estimators.load import Compute, load_estimator

ROOT = Path(__file__).parents[2]


def test_every_config_is_listed_with_what_it_is_for() -> None:
    listed = dict(recipes.described())
    files = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert set(listed) == {path.relative_to(ROOT / "configs").as_posix() for path in files}
    assert all(len(title) > 20 and not title.startswith("#") for title in listed.values())
    assert [title for title in listed.values() if not title.endswith((".", "…"))] == [], "a whole sentence"
    assert not any("hpe pack" in title for title in listed.values()), "and no command"


def test_copies_are_the_same_bytes_and_may_be_taken_again(tmp_path: Path) -> None:
    first = recipes.copy(tmp_path / "mine")
    assert first == recipes.copy(tmp_path / "mine")
    for path in first:
        own = ROOT / "configs" / path.relative_to(tmp_path / "mine")
        assert path.read_bytes() == own.read_bytes()
        assert os.access(path, os.X_OK) == os.access(own, os.X_OK)  # a script can be run


def test_an_edited_config_is_kept(tmp_path: Path) -> None:
    (tmp_path / "pose.yaml").write_text("run: mine\n")
    with pytest.raises(UserError, match=r"pose\.yaml: differs"):
        recipes.copy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pose.yaml"]
    assert (tmp_path / "pose.yaml").read_text() == "run: mine\n"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        recipes.copy(tmp_path / "file")


def test_a_disk_that_fills_up_leaves_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = Path.write_text, []

    def until_full(path: Path, text: str, encoding: str | None = None) -> int:
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", until_full)
    with pytest.raises(UserError, match="No space left"):
        recipes.copy(tmp_path / "mine")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_wheel_carries_configs_templates_and_the_typed_marker(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hpe/recipes/{name}" for name, _ in recipes.described()} <= names
    assert {"hpe/py.typed", "hpe/report/templates/base.html"} <= names
    assert not [name for name in names if not name.startswith(("hpe/", "hpe-"))]


@pytest.mark.parametrize(
    ("named", "command"),
    [
        ("configs/pose.yaml", "hpe configs configs"),
        ("my configs/estimators/lwpose66.yaml", "hpe configs 'my configs'"),
        ("pose.yaml", "hpe configs ."),
        ("lwpose66.yaml", None),
        ("configs/mine.yaml", None),
    ],
)
def test_where_a_config_of_hpe_is_missing_the_command_that_copies_it_is_told(named: str, command: str | None) -> None:
    told = recipes.way_to(Path(named))
    assert told == (f"; `{command}` copies the configs of hpe there" if command else "")


def test_a_missing_config_and_a_missing_estimator_are_told_with_that_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"expected a YAML file; `hpe configs configs` copies"):
        load(Path("configs/pose.yaml"), RunConfig)
    with pytest.raises(UserError, match=r"no such run or estimator; .*; `hpe configs configs` copies"):
        load_estimator(Path("configs/estimators/lwpose66.yaml"), Compute(torch.device("cpu")))
    with pytest.raises(UserError, match=r"expected a YAML file \(`hpe configs` lists those of hpe\)"):
        load(Path("configs/mine.yaml"), RunConfig)
