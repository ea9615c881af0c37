"""The notebooks of examples/ run from top to bottom, on small data, and are kept without outputs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hpe.sources.synthetic import head_at
from tests import made, warm

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]


def executed(name: str, **parameters: object) -> dict[str, Any]:
    """The names of a notebook after its last cell, as a kernel would have them; parameters replace those of its cell.

    The last expression of each cell is in ``shown``, as the outputs of the notebook.
    """
    names: dict[str, Any] = {"shown": []}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, f"{name}[{number}]", "exec"), names)
        if isinstance(last, ast.Expr):
            names["shown"].append(eval(compile(ast.Expression(last.value), f"{name}[{number}]", "eval"), names))
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) <= set(names), "a parameter that the notebook does not have"
            names |= parameters
    return names


def test_every_notebook_is_run_here_and_kept_without_outputs() -> None:
    mine = Path(__file__).read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        assert f'"{path.name}"' in mine
        code = [cell for cell in cells(path.name) if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1


@pytest.mark.slow
def test_the_notebook_of_rendered_heads_goes_from_pixels_to_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("subprocess.run", lambda command, **_: warm.run(*command[1:], cwd=tmp_path))  # of [python, …]
    torch.set_num_threads(1)
    names = executed("rendered_heads.ipynb", HEADS=160, PEOPLE=16, EPOCHS=1, SIZE=32)
    assert len(names["table"]) == names["FRAMES"]
    assert names["sheet"].size[0] > 200
    assert (tmp_path / "rendered-heads" / "read" / "drawn" / "head.mp4").is_file()
    assert names["figure"] in names["shown"]


def test_the_notebook_of_own_photos_gives_a_table_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    made.untrained(tmp_path / "run", made.shards(tmp_path / "shards", counts=(8,), val=4))
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.fromarray(head_at(number, seed=1, people=5, size=64)[1]).save(tmp_path / "photos" / f"{number}.jpg")
    names = executed("own_photos.ipynb", NETWORK="run", PHOTOS="photos", FACES=None)
    assert len(names["table"]) == 5
    assert "5 faces in 5 of 5 photos" in capsys.readouterr().out
    assert names["counts"].to_numpy().sum() == 5
    assert (tmp_path / "faces.csv").is_file()
    assert names["sheet"] in names["shown"]
