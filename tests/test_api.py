"""``import hpe``: what it promises, that it is light, and that ``hpe.load`` reads as ``hpe predict`` does."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hpe
from hpe.core.errors import UserError
from hpe.data.images import encode_jpeg
from hpe.models.build import build_network
from hpe.models.checkpoints import State, save_checkpoint
from hpe.models.run_folder import TrainedOn, record
from hpe.predict import predict
from hpe.predict.options import PredictOptions
from tests import made

HEAVY = ("torch", "numpy", "pandas", "accelerate", "pyarrow", "PIL", "pydantic", "typer", "rich", "timm", "yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned nothing, but has weights of all heads."""
    folder = tmp_path_factory.mktemp("api")
    config = made.config(made.shards(folder / "shards", counts=(16,), val=8), folder / "run")
    run = Path(config.run)
    run.mkdir()
    record(run, config, lambda: TrainedOn({}, {}))
    torch.manual_seed(5)
    save_checkpoint(run, State(8, 1), build_network(config.model), {}, ema=None, keep=1, best=True)
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{name}.jpg" for name in "abc"]
    for number, path in enumerate(paths):
        path.write_bytes(encode_jpeg(made.picture(number, 1, 0), 95))
    return paths


def typed_names() -> set[str]:
    """Names that type checkers see: imported under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(hpe.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)
            for alias in node.names}  # fmt: skip


def test_what_is_offered_typed_and_listed_are_the_same_names() -> None:
    assert typed_names() == set(hpe.__all__) == set(hpe._PUBLIC)
    assert list(hpe.__all__) == sorted(hpe.__all__)
    assert set(hpe.__all__) <= set(dir(hpe))
    for name in hpe.__all__:
        assert getattr(hpe, name).__doc__, name


def test_no_other_name_is_offered() -> None:
    with pytest.raises(AttributeError, match="'hpe' has no attribute 'shards'"):
        hpe.shards  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def test_importing_hpe_loads_nothing_heavy() -> None:
    script = (
        "import sys; before = set(sys.modules); import hpe; dir(hpe)\n"
        f"print([name for name in {HEAVY} if name in sys.modules], len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy, _, count = done.stdout.rpartition(" ")
    assert heavy == "[]"
    assert int(count) < 40, "import hpe is to take less than 0.1 s: it loads few modules beside Python's own"


def names_on(page: str) -> set[str]:
    """Names of hpe in the Python of a page, or as `hpe.Name` in its text."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    code = [ast.parse(part.partition("```")[0]) for part in text.split("```python\n")[1:]]
    used = {
        node.attr
        for tree in code
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hpe"
    }
    return used | set(re.findall(r"`hpe\.([A-Z]\w+)`", text))


def test_the_pages_show_every_name_and_no_other() -> None:
    assert names_on("README.md") <= set(hpe.__all__)
    assert names_on("docs/api.md") | names_on("docs/python.md") == set(hpe.__all__)


def test_load_reads_as_hpe_predict_does(run: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(run, [str(path) for path in pictures], PredictOptions(device="cpu")) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    network = hpe.load(run, device="cpu")
    faces = network.read(pictures)
    assert [row for one in faces for row in one.rows()] == printed
    assert {"emotion", "direction", "pose", "affect"} == set(network.heads)
    assert len({one[0].yaw for one in faces}) == 3
    assert network.read([]) == []


def test_one_image_is_one_answer_whatever_names_it(run: Path, pictures: list[Path]) -> None:
    network, path = hpe.load(str(run), device="cpu"), pictures[0]
    one = network(path)
    assert one[0] == network(str(path))[0] == network(path.read_bytes())[0]
    assert [one] == network([path])
    assert (one.source, one.key, one.width, one.height) == (str(path), "a", made.SIDE, made.SIDE)


def test_what_cannot_be_read_is_named(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    network, broken = hpe.load(run, device="cpu"), tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for path in (broken, tmp_path / "absent.jpg"):
        with pytest.raises(UserError, match=rf"{path.name}: "):
            network.read(path)
    with pytest.warns(UserWarning, match=r"2 images could not be read: .*broken\.jpg \(.*absent\.jpg"):
        first, second, third = network.read([broken, pictures[0], tmp_path / "absent.jpg"])
    assert (len(first), len(second), len(third)) == (0, 1, 0)
    assert second == network.read(pictures[0])
    with pytest.raises(UserError, match=r"broken\.jpg: not a picture"):
        first[0]
    with pytest.raises(UserError, match="no config"):
        hpe.load(tmp_path)
