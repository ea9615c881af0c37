"""Exported files from strangers: what lies, is cut, or asks for more than a network may, is one message."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import hpe
from hpe.core.errors import UserError
from hpe.export import ExportOptions, export
from tests import made

PIXELS = np.random.default_rng(0).integers(0, 256, (made.SIDE, made.SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    run = made.untrained(folder / "run", made.shards(folder / "shards"))
    export(run, folder / "face.onnx", ExportOptions(images=8))
    return folder / "face.onnx"


def graph(
    nodes: Sequence[Any], constants: Sequence[Any] = (), outputs: Sequence[tuple[str, int]] = (("angles", 3),),
    opset: int = 18,
) -> onnx.ModelProto:  # fmt: skip
    """A graph whose ``m`` is the mean of each channel, and what follows."""
    mean = helper.make_node("GlobalAveragePool", ["images"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["m"])
    side = made.SIDE
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, side, side])]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in outputs]
    made_graph = helper.make_graph([mean, flat, *nodes], "g", inputs, given, list(constants))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("evil", 1)]
    return helper.make_model(made_graph, opset_imports=imports, ir_version=9)


def beside(folder: Path, model: onnx.ModelProto | bytes, **changes: Any) -> Path:
    """A file with a YAML that describes its pose."""
    folder.mkdir(exist_ok=True)
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    described = {
        "weights": "net.onnx",
        "crop": "none",
        "input": {"name": "images", "size": made.SIDE, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "output": {"kind": "euler", "names": ["angles"]},
    }
    (folder / "net.yaml").write_text(yaml.safe_dump(described | changes))
    return path


def same(name: str = "angles") -> Any:
    return helper.make_node("Identity", ["m"], [name])


def test_a_plain_graph_of_an_older_or_newer_opset_is_read(tmp_path: Path) -> None:
    for opset in (7, 11, 17, 18, 20):
        path = beside(tmp_path / str(opset), graph([same()], opset=opset))
        face = hpe.load(path, device="cpu")(PIXELS)[0]
        assert face.angles is not None
        np.testing.assert_allclose(face.angles, PIXELS.mean((0, 1)) / 255, atol=1e-4)


def external(location: str) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def of_a_secret(tmp_path: Path, location: str) -> bytes:
    (tmp_path / "secret.bin").write_bytes(np.ones(3, np.float32).tobytes())
    return graph([helper.make_node("Add", ["m", "w"], ["angles"])], [external(location)]).SerializeToString()


HUGE = numpy_helper.from_array(np.array([1 << 20, 1 << 22], np.int64), "shape")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda _: b"", "not an ONNX network"),
        (lambda _: b"\x08\x07" + b"\xff" * 400, "not an ONNX network"),
        (lambda _: graph([same()], opset=999), "not an ONNX network"),
        (lambda _: graph([helper.make_node("Bomb", ["m"], ["angles"], domain="evil")]), "Bomb"),
        (lambda at: of_a_secret(at, "../secret.bin"), "not an ONNX network"),
        (lambda at: of_a_secret(at, str(at / "secret.bin")), "not an ONNX network"),
        (
            lambda _: graph([helper.make_node("Concat", ["m", "m"], ["angles"], axis=1)], outputs=(("angles", 6),)),
            "6 values per face",
        ),
        (lambda _: graph([same("other")], outputs=(("other", 3),)), "no output 'angles'"),
        (
            lambda _: graph(
                [
                    helper.make_node("ConstantOfShape", ["shape"], ["big"]),
                    helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
                    helper.make_node("Add", ["m", "sum"], ["angles"]),
                ],
                [HUGE],
            ),
            "fails on 1 pictures",
        ),
    ],
    ids=["empty", "noise", "opset", "custom op", "above", "absolute", "values", "names", "memory"],
)  # fmt: skip
def test_graphs_that_lie_or_reach_out_are_one_message(
    tmp_path: Path, model: Callable[[Path], onnx.ModelProto | bytes], why: str
) -> None:
    path = beside(tmp_path / "net", model(tmp_path))
    with pytest.raises(UserError, match=why):
        hpe.load(path, device="cpu")(PIXELS)


def test_a_truncated_file_is_one_message_at_any_length(exported: Path, tmp_path: Path) -> None:
    data = exported.read_bytes()
    for number, share in enumerate((0.01, 0.3, 0.9, 0.999)):
        path = beside(tmp_path / str(number), data[: int(len(data) * share)])
        with pytest.raises(UserError, match="not an ONNX network"):
            hpe.load(path, device="cpu")
    shortened = tmp_path / "face.onnx"
    shortened.write_bytes(data[:-1])
    (tmp_path / "face.yaml").write_text(exported.with_suffix(".yaml").read_text())
    with pytest.raises(UserError, match="not the weights that it describes"):
        hpe.load(shortened, device="cpu")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"input": {"size": 64}}, r"set input.layout: nchw and input.size: 32"),
        ({"input": {"size": 10**9}}, "size"),
        ({"input": {"name": "pictures", "size": 32}}, "input.name is 'pictures'"),
        ({"output": {"kind": "bins66-lower", "names": ["angles"]}}, "3 values per face"),
        ({"output": None, "heads": {"emotion": "angles"}}, r"should be \[batch, 8\]"),
        ({"output": None, "heads": {"emotion": "absent"}}, "is not in the graph"),
        ({"weights": "../../etc/passwd"}, "net.yaml: weights|expected .onnx"),
        ({"learned": {"emotion": ["joy"]}}, "joy"),
        ({"learned": {"faces": {"box": -1}}}, "faces"),
        ({"crop": "circle-3@nose"}, "crop rule"),
    ],
)
def test_descriptions_that_lie_are_one_message(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    beside(tmp_path / "net", graph([same()]), **changes)
    with pytest.raises(UserError, match=why):
        hpe.load(tmp_path / "net/net.yaml", device="cpu")(PIXELS)


def test_probabilities_that_are_none_are_refused(tmp_path: Path) -> None:
    eight = [helper.make_node("Concat", ["m", "m", "m"], ["nine"], axis=1),
             helper.make_node("Slice", ["nine", "from", "to", "axis"], ["emotion"])]  # fmt: skip
    constants = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("from", 0), ("to", 8), ("axis", 1))
    ]
    path = beside(
        tmp_path / "net", graph(eight, constants, (("emotion", 8),)), output=None, heads={"emotion": "emotion"}
    )
    with pytest.raises(UserError, match="emotion: its values are no probabilities"):
        hpe.load(path, device="cpu")(PIXELS)


def test_metadata_are_no_orders(exported: Path, tmp_path: Path) -> None:
    """The YAML decides; what a file says about itself is for people and other programs."""
    model = onnx.load(exported)
    for entry in model.metadata_props:
        entry.value = '{"size": 7, "name": "../../x"}'
    onnx.save(model, tmp_path / "face.onnx")
    text = exported.with_suffix(".yaml").read_text()
    (tmp_path / "face.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("sha256")))
    one, two = (hpe.load(path, device="cpu")(PIXELS)[0] for path in (exported, tmp_path / "face.onnx"))
    assert one == two
