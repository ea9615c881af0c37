"""``hpe evaluate`` of an exported network gives the figures of its run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import hpe
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.export import ExportOptions, export
from hpe.models.views import Views
from hpe.pack import pack_source
from hpe.pack.options import Options
from hpe.stream import ShardSet
from tests import made

USUAL = EvaluateOptions(workers=0, precision=None, replicates=30)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("judged") / "shards")


ONE_COLOUR = pytest.mark.parametrize("exported", ["rgb"], indirect=True)


@pytest.fixture(scope="module", params=["rgb", "grey"])
def exported(shards: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run and, beside it, its export of the same name."""
    folder = tmp_path_factory.mktemp("judged-run")
    run = made.untrained(folder / "face", shards, f"data.grey={str(request.param == 'grey').lower()}")
    counts = {"emotion": {"happy": 3, "sad": 4}, "direction": {"left": 7}}
    (run / "trained_on.json").write_text(json.dumps({"labels": counts, "faces": {}}))
    export(run, folder / "face.onnx", ExportOptions(images=16))
    return folder


def figures(folder: Path, name: str = "made-val") -> dict[str, Any]:
    return json.loads((folder / f"evaluate/{name}.json").read_text())


def numbers(section: Any) -> Any:
    """The figures without what names the network."""
    return {name: value for name, value in section.items() if name != "about"}


@pytest.mark.parametrize("network", ["face.onnx", "face.yaml"])
@pytest.mark.parametrize("flips", [False, True])
def test_an_export_has_the_figures_of_its_run(exported: Path, shards: Path, network: str, flips: bool) -> None:
    options = EvaluateOptions(workers=0, replicates=30, views=Views(flips=flips))
    for path in (exported / "face", exported / network):
        assert evaluate(path, [ShardSet(str(shards), "val")], options) == 0
    name = "made-val-flips" if flips else "made-val"
    one, two = figures(exported / "face", name), figures(exported / "face-onnx", name)
    for head in ("emotion", "direction"):
        assert one[head]["accuracy"] == two[head]["accuracy"]
        assert one[head]["per_class"].keys() == two[head]["per_class"].keys()
    assert one["pose"]["all"]["mae"]["value"] == pytest.approx(two["pose"]["all"]["mae"]["value"], abs=1e-3)
    assert (
        one["about"]["trained_on"] == two["about"]["trained_on"] == {"emotion": ["happy", "sad"], "direction": ["left"]}
    )
    assert [line for line in one["about"]["warnings"] if "not trained" in line] == [
        line for line in two["about"]["warnings"] if "not trained" in line
    ]
    first, second = (pq.read_table(exported / at / f"evaluate/{name}.parquet") for at in ("face", "face-onnx"))
    assert first.column_names == second.column_names
    assert first["key"] == second["key"]
    for angle in ANGLES:
        np.testing.assert_allclose(first[f"{angle}_hat"].to_numpy(), second[f"{angle}_hat"].to_numpy(), atol=0.05)
        np.testing.assert_allclose(first[f"{angle}_sd"].to_numpy(), second[f"{angle}_sd"].to_numpy(), atol=0.05)


@ONE_COLOUR
def test_options_that_do_not_fit_an_estimator_are_refused(exported: Path, shards: Path, tmp_path: Path) -> None:
    sets = [ShardSet(str(shards), "val")]
    for options, why in (
        (EvaluateOptions(which="last"), "--which and --centre"),
        (EvaluateOptions(views=Views(centre=0.9)), "--which and --centre"),
        (EvaluateOptions(precision="bf16"), "own precision"),
    ):
        with pytest.raises(UserError, match=why):
            evaluate(exported / "face.onnx", sets, options)
    with pytest.raises(UserError, match="no such run or estimator"):
        evaluate(tmp_path / "absent.onnx", sets, USUAL)
    with pytest.raises(UserError, match=r"--weights .*own weights"):
        evaluate(exported / "face", sets, EvaluateOptions(weights=tmp_path / "x.onnx"))


@pytest.mark.slow
@ONE_COLOUR
def test_a_smaller_file_says_in_which_precision_it_computes(exported: Path, shards: Path, tmp_path: Path) -> None:
    export(exported / "face", tmp_path / "half.onnx", ExportOptions(images=8, precision="fp16"))
    model = hpe.load(tmp_path / "half.onnx", device="cpu")
    assert model.precision == "fp16"
    options = EvaluateOptions(workers=0, replicates=20)
    assert evaluate(tmp_path / "half.onnx", [ShardSet(str(shards), "val")], options) == 0
    assert figures(tmp_path / "half-onnx")["about"]["precision"] == "fp16"


@ONE_COLOUR
def test_the_results_go_where_the_user_says(exported: Path, shards: Path, tmp_path: Path) -> None:
    options = EvaluateOptions(out=tmp_path / "judged", workers=0, replicates=20)
    assert evaluate(exported / "face.onnx", [ShardSet(str(shards), "val")], options) == 0
    assert figures(tmp_path / "judged")["about"]["weights"].endswith("face.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(exported: Path, shards: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="--out"):
        evaluate(exported / "face.onnx", [ShardSet(str(shards), "val")], EvaluateOptions(out=tmp_path / "a"))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("reader", "raw", "size", "heads", "pack"),
    [
        ("ferplus", "ferplus", 48, "{emotion: {}}", {"crop": "keep"}),
        ("aflw2000", "aflw2000", 64, "{pose: {kind: sixd}}", {"crop": "square-1.4@landmarks", "size": 64}),
    ],
)
def test_an_export_has_the_figures_of_its_run_on_real_images(
    shared: Path, tmp_path: Path, reader: str, raw: str, size: int, heads: str, pack: dict[str, Any]
) -> None:
    source = some_of(shared / "data" / raw, tmp_path / "raw")
    pack_source(reader, [str(source), str(tmp_path / "shards")], [], 1, Options(**pack))
    split = json.loads((tmp_path / "shards/manifest.json").read_text())["shards"][0]["split"]
    run = made.untrained(
        tmp_path / "face", tmp_path / "shards", f"data.size={size}", f"model.heads={heads}",
        f"data.val.0.split={split}", f"data.train.0.split={split}",
    )  # fmt: skip
    export(run, tmp_path / "face.onnx", ExportOptions(images=64))
    for path in (run, tmp_path / "face.onnx"):
        assert (
            evaluate(path, [ShardSet(str(tmp_path / "shards"), split)], EvaluateOptions(workers=0, replicates=20)) == 0
        )
    (name,) = (path.stem for path in (run / "evaluate").glob("*.json"))
    one, two = figures(run, name), figures(tmp_path / "face-onnx", name)
    if reader == "ferplus":
        assert one["emotion"]["n"] > 100
        assert one["emotion"]["accuracy"] == two["emotion"]["accuracy"]
    else:
        assert one["pose"]["all"]["mae"]["value"] == pytest.approx(two["pose"]["all"]["mae"]["value"], abs=0.01)


def some_of(raw: Path, target: Path) -> Path:
    """A few hundred images of a dataset, as links."""
    if raw.name == "aflw2000":
        target.mkdir()
        for path in sorted(raw.glob("image*"))[:240]:
            (target / path.name).symlink_to(path)
        return target
    for part in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (target / part).mkdir(parents=True)
        lines = (raw / part / "label.csv").read_text().splitlines()[:160]
        (target / part / "label.csv").write_text("\n".join(lines) + "\n")
        for line in lines:
            name = line.partition(",")[0]
            if (raw / part / name).is_file():
                (target / part / name).symlink_to(raw / part / name)
    return target
