"""Estimators: released state dicts, hostile files, descriptions that lie, and Hopenet's own numbers."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torchvision.models import resnet50

from hpe.config.run import ModelConfig, RunConfig
from hpe.config.strict_yaml import parse
from hpe.core.errors import UserError
from hpe.data.crops import CropRule
from hpe.data.directions import ABSTAIN
from hpe.estimators.diagnosis import diagnose
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator
from hpe.estimators.onnx import _outputs
from hpe.estimators.probe import probe, random_faces
from hpe.estimators.spec import VALUES, EstimatorSpec, InputSpec, OutputSpec, Signs, read_output
from hpe.models.build import build_network, load_run
from hpe.models.checkpoints import State, save_checkpoint
from hpe.models.hopenet import Hopenet, fit_state_dict
from hpe.models.multitask import angles_of
from hpe.pose.plan import load_direction_network

CPU = Compute(torch.device("cpu"))
EXAMPLE = Path(__file__).parents[2] / "configs" / "estimators" / "lwpose66.yaml"


class Original(nn.Module):
    """deep-head-pose's network, written from its description around torchvision's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = resnet50()
        self.trunk.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.heads = nn.ModuleList(nn.Linear(2048, 66) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        x = self.trunk(images)
        degrees = torch.arange(66.0) * 3 - 99
        return torch.stack([(head(x).softmax(1) * degrees).sum(1) for head in self.heads], 1)

    def released(self) -> dict[str, Tensor]:
        """Its state dict with the released names, from DataParallel, with the layer that nothing uses."""
        state = {f"module.{name}": value for name, value in self.trunk.state_dict().items()}
        for name, head in zip(("yaw", "pitch", "roll"), self.heads, strict=True):
            state |= {f"module.fc_{name}.{key}": value for key, value in head.state_dict().items()}
        state |= {"module.fc_finetune.weight": torch.zeros(3, 2051), "module.fc_finetune.bias": torch.zeros(3)}
        return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.fixture(scope="module")
def original() -> Original:
    torch.manual_seed(0)
    return Original().eval()


def test_released_hopenet_weights_give_the_originals_angles(original: Original, tmp_path: Path) -> None:
    path = tmp_path / "hopenet_alpha1.pkl"
    torch.save(original.released(), path, _use_new_zipfile_serialization=False)
    estimator = load_estimator(path, CPU)
    images = random_faces(2, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = original((images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(estimator.predict(images).angles, expected, atol=2e-3, rtol=1e-4)
    assert (estimator.name, str(estimator.crop)) == ("hopenet_alpha1", "hopenet-0.2@landmarks")


def test_wrong_parameters_are_named(original: Original) -> None:
    state = original.released()
    state["module.fc_yaw.weight"] = torch.zeros(62, 2048)
    del state["module.layer1.0.conv1.weight"]
    state["module.fc_gaze.bias"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight is missing") as caught:
        fit_state_dict(Hopenet(), state)
    assert "fc_yaw.weight is [62, 2048], expected [66, 2048]" in str(caught.value)
    assert "fc_gaze.bias is unknown" in str(caught.value)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, save: Callable[..., object]) -> None:
    marker, path = tmp_path / "ran", tmp_path / "hopenet.pkl"
    save({"fc_yaw.weight": _Bomb(marker)}, path)
    with pytest.raises(UserError, match="tensors alone"):
        load_estimator(path, CPU)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes) -> None:
    for name in ("hopenet.pkl", "net.onnx"):
        path = tmp_path / name
        path.write_bytes(content)
        path.with_suffix(".yaml").write_text(f"weights: {name}\ncrop: none\noutput: {{kind: bins66-lower}}\n")
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_estimator(path, CPU)


def test_a_description_with_mistakes_lists_them_all() -> None:
    text = "weights: a.onnx\ncrop: circle\noutput: {kind: bins65, order: [yaw, yaw, roll], signs: {yaw: 2}}\nfoo: 1\n"
    with pytest.raises(UserError) as caught:
        parse(text, "e.yaml", EstimatorSpec)
    for expected in ("crop", "output.kind", "output.order", "output.signs.yaw", "unknown key"):
        assert expected in str(caught.value)


def _angles(count: int = 40, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (count, 3)) * (70, 40, 30)


def test_outputs_are_read_by_kind_order_sign_and_unit() -> None:
    truth = _angles()
    yaw, pitch, roll = torch.from_numpy(truth).float().unbind(1)
    euler = OutputSpec(kind="euler", order=("roll", "yaw", "pitch"), signs=Signs(yaw=-1), unit="radians")
    found, deviations = read_output((torch.deg2rad(torch.stack((roll, -yaw, pitch), 1)),), euler)
    np.testing.assert_allclose(found, truth, atol=1e-3)
    assert deviations.isnan().all()
    # SciPy's extrinsic x, y, z is Rz(roll) · Ry(yaw) · Rx(pitch).
    matrix = torch.from_numpy(Rotation.from_euler("xyz", truth[:, [1, 0, 2]], degrees=True).as_matrix()).float()
    np.testing.assert_allclose(read_output((matrix,), OutputSpec(kind="matrix"))[0], truth, atol=1e-3)
    six = torch.cat((matrix[:, :, 0], matrix[:, :, 1]), 1)
    np.testing.assert_allclose(read_output((six,), OutputSpec(kind="sixd"))[0], truth, atol=1e-3)


def test_rotations_of_heads_that_are_turned_far_become_the_angles_of_upright_heads() -> None:
    yaw = np.arange(-150.0, 151.0, 1.3)  # none is ±90, where pitch and roll are one angle
    truth = np.stack((yaw, 20 * np.sin(yaw), 30 * np.cos(yaw)), 1)
    matrix = Rotation.from_euler("xyz", truth[:, [1, 0, 2]], degrees=True).as_matrix()
    given = torch.from_numpy(matrix).float()
    for outputs, kind in ((given.reshape(-1, 9), "matrix"), (torch.cat((given[:, :, 0], given[:, :, 1]), 1), "sixd")):
        found, _ = read_output((outputs,), OutputSpec.model_validate({"kind": kind}))
        np.testing.assert_allclose(found.numpy(), truth, atol=0.01)


def test_bins_give_mean_and_deviation_of_their_distribution() -> None:
    logits = torch.randn(5, 3, 66, generator=torch.Generator().manual_seed(0)) * 3
    share = logits.softmax(-1).double().numpy()
    for kind, first in (("bins66-lower", -99.0), ("bins66-centre", -97.5)):
        angles, deviations = read_output((logits,), OutputSpec.model_validate({"kind": kind}))
        degrees = first + 3 * np.arange(66)
        mean = share @ degrees
        np.testing.assert_allclose(angles, mean, atol=1e-3)
        np.testing.assert_allclose(deviations**2, share @ degrees**2 - mean**2, rtol=1e-3)
    with pytest.raises(ValueError, match="198"):
        read_output((logits[..., :62],), OutputSpec(kind="bins66-lower"))


@pytest.mark.parametrize("kind", ["bins66-lower", "bins66-centre", "euler"])
def test_deviations_that_a_network_states_are_taken_in_the_order_of_its_angles(kind: str) -> None:
    spec = OutputSpec.model_validate({"kind": kind, "deviations": "sd", "order": ("roll", "yaw", "pitch")})
    stated = torch.tensor([[3.0, 1.0, 2.0], [6.0, 4.0, 5.0]])
    found = read_output((torch.randn(2, *VALUES[spec.kind]), stated), spec)[1]
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]


class Pixels:
    """A "network" that reads the pose from the picture: a bright blob's place is yaw and pitch."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda angles: angles) -> None:
        self.change = change

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        light = images.sum(1)
        across, along = light.sum(1), light.sum(2)
        place = torch.linspace(1, -1, images.shape[-1])
        yaw = 60 * (across * place).sum(1) / across.sum(1)
        pitch = 60 * (along * place).sum(1) / along.sum(1)
        return (self.change(torch.stack((yaw, pitch, torch.zeros_like(yaw)), 1)),)


def _estimator(network: Callable[[Tensor], tuple[Tensor, ...]], **output: object) -> Estimator:
    spec = OutputSpec.model_validate({"kind": "euler", **output}, strict=False)
    plain = InputSpec(size=32, mean=(0, 0, 0), std=(1, 1, 1))
    return Estimator(
        "pixels", "0", frozenset((CropRule(),)), plain, spec, network, torch.device("cpu"), channels_last=False
    )


def _blobs(count: int = 24) -> tuple[Tensor, np.ndarray]:
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    generator = np.random.default_rng(3)
    for image, (x, y) in zip(images, generator.integers(0, 30, (count, 2)), strict=True):
        image[:, y : y + 2, x : x + 2] = 255
    (angles,) = Pixels()(images.float())
    return images, angles.numpy().astype(float)


def test_an_honest_description_passes_the_probe() -> None:
    images, truth = _blobs()
    assert probe(_estimator(Pixels()), images, truth) == []
    assert probe(_estimator(Pixels()), images, np.full_like(truth, np.nan)) == []


@pytest.mark.parametrize(
    ("change", "output", "knows_truth", "named"),
    [
        (lambda a: a[:, [1, 0, 2]], {}, False, "order: the angle called yaw does not change its sign"),
        (lambda a: torch.deg2rad(a), {}, False, "they are radians"),
        (lambda a: a, {"unit": "radians"}, False, "they are degrees"),
        (lambda a: a * torch.tensor([-1.0, 1.0, 1.0]), {}, True, "yaw negated"),
        (lambda a: a * torch.tensor([1.0, -1.0, 1.0]), {}, True, "pitch negated"),
        (lambda a: a * float("nan"), {}, False, "not finite"),
        (lambda a: a * 0, {}, False, "same angles"),
        (lambda a: a[:, :2], {}, False, "2 values per face"),
    ],
)
def test_a_lie_is_named(
    change: Callable[[Tensor], Tensor], output: dict[str, object], knows_truth: bool, named: str
) -> None:
    images, truth = _blobs()
    found = probe(_estimator(Pixels(change), **output), images, truth if knows_truth else np.full_like(truth, np.nan))
    assert named in " ".join(found)


def test_mirror_images_are_averaged_with_the_sign_law() -> None:
    images, truth = _blobs()
    shifted = _estimator(Pixels(lambda angles: angles + torch.tensor([5.0, 0.0, 0.0])))
    np.testing.assert_allclose(shifted.predict_with_flips(images).angles, truth, atol=1e-3)
    assert float((shifted.predict(images).angles - torch.from_numpy(truth)).abs().max()) > 4


def test_disagreement_with_truth_is_called_by_name() -> None:
    truth = _angles(200)
    noisy = truth + np.random.default_rng(1).normal(0, 6, truth.shape)
    assert diagnose(noisy, truth) == []
    assert "yaw negated" in diagnose(noisy * (-1, 1, 1), truth)[0]
    assert "roll negated" in diagnose(noisy * (1, 1, -1), truth)[0]
    assert "yaw and pitch swapped" in diagnose(noisy[:, [1, 0, 2]], truth)[0]
    assert "radians" in diagnose(np.deg2rad(noisy), truth)[0]
    assert "degrees interpreted as radians" in diagnose(np.rad2deg(noisy), truth)[0]
    assert diagnose(np.random.default_rng(2).normal(0, 20, truth.shape), truth) == []


@pytest.mark.real
class TestLwpose66:
    """The shared ONNX network and its example description."""

    def test_it_loads_and_gives_angles_with_deviations(self, shared: Path) -> None:
        estimator = load_estimator(EXAMPLE, CPU, weights=shared / "weights" / "lwpose66.onnx")
        poses = estimator.predict(random_faces(3, 224))
        assert poses.angles.shape == (3, 3)
        assert bool((poses.deviations > 0).all())

    def test_results_do_not_depend_on_the_callers_threads(self, shared: Path) -> None:
        estimator = load_estimator(EXAMPLE, CPU, weights=shared / "weights" / "lwpose66.onnx")
        images, before = random_faces(4, 224), torch.get_num_threads()
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(estimator.predict(images).angles)
        torch.set_num_threads(before)
        assert torch.equal(*found)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("size: 224 -> size: 128", r"input\.size"),
            ("name: image -> name: picture", r"input\.name is 'picture'"),
            ("[yaw, pitch, roll] -> [yaw, pitch, tilt]", r"no output 'tilt'"),
            ("kind: bins66-centre -> kind: euler", r"66 values per face"),
            ("name: lwpose66 -> name: ../up", r"name"),
        ],
    )
    def test_a_description_that_does_not_fit_the_graph_is_refused(
        self, shared: Path, tmp_path: Path, change: str, named: str
    ) -> None:
        before, after = change.split(" -> ")
        path = tmp_path / "e.yaml"
        path.write_text(EXAMPLE.read_text().replace(before, after, 1))
        with pytest.raises(UserError, match=named):
            load_estimator(path, CPU, weights=shared / "weights" / "lwpose66.onnx")

    def test_other_weights_than_described_are_refused(self, shared: Path, tmp_path: Path) -> None:
        path = tmp_path / "e.yaml"
        path.write_text(EXAMPLE.read_text() + f"sha256: {'a' * 64}\n")
        with pytest.raises(UserError, match="not the weights that it describes"):
            load_estimator(path, CPU, weights=shared / "weights" / "lwpose66.onnx")


def _run(folder: Path, model: str, network: nn.Module | None = None) -> Path:
    data = "{train: [{shards: gone}], val: [{shards: gone}], size: 64, grey: true}"
    config = parse(f"run: {folder}\ndata: {data}\nmodel: {model}\n", "config.yaml", RunConfig)
    folder.mkdir()
    (folder / "config.yaml").write_text(config.dump())
    made = network or build_network(config.model)
    save_checkpoint(folder, State(0, 1), made, {}, ema=None, keep=1, best=True)
    return folder


@pytest.mark.parametrize("kind", ["bins66", "sixd"])
def test_a_run_of_ours_is_an_estimator(tmp_path: Path, kind: str) -> None:
    run = _run(tmp_path / "mine", f"{{backbone: tiny, heads: {{pose: {{kind: {kind}}}, emotion: {{}}}}}}")
    with pytest.raises(UserError, match="give it with --crop"):
        load_estimator(run, CPU)
    with pytest.raises(UserError, match="has its own weights"):
        load_estimator(run, CPU, crop="none", weights=tmp_path / "other.onnx")
    estimator = load_estimator(run, CPU, crop="none")
    images = random_faces(2, 64)
    with torch.inference_mode():
        outputs = load_run(run)[0](estimator.normalise(images))["pose"]
    torch.testing.assert_close(estimator.predict(images).angles, angles_of(outputs), atol=1e-3, rtol=1e-4)
    assert (estimator.name, estimator.input.size, estimator.input.colour) == ("mine", 64, "grey")
    assert bool(estimator.predict(images).deviations.isfinite().all()) == (kind == "bins66")


def test_a_run_without_a_pose_head_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "emotion", "{backbone: tiny, heads: {emotion: {}}}")
    with pytest.raises(UserError, match="no pose head"):
        load_estimator(run, CPU, crop="none")


def test_the_direction_network_scales_with_the_scaler_in_its_weights(tmp_path: Path) -> None:
    text = "{backbone: angles, heads: {direction: {}}}"
    network = build_network(parse(text, "m", ModelConfig)).eval()
    network.backbone.fit_scale(torch.tensor([[-50.0, -40.0, -30.0], [60.0, 20.0, 10.0]]))  # pyright: ignore[reportCallIssue]
    rule, digest = load_direction_network(_run(tmp_path / "direction", text, network))
    angles = np.vstack((_angles(20), [np.nan] * 3))
    with torch.inference_mode():
        expected = network(torch.from_numpy(angles[:20]).float())["direction"].argmax(1).tolist()
    assert rule(angles, angles).tolist() == [*expected, ABSTAIN]
    assert len(digest) == 64
    with pytest.raises(UserError, match="backbone: angles"):
        load_direction_network(_run(tmp_path / "other", "{backbone: tiny, heads: {direction: {}}}"))


class _Session:
    """ONNX Runtime's session, as far as it can be told without a GPU."""

    def __init__(self, providers: list[Any]) -> None:
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image", shape=["batch", 3, 64, 64], type="tensor(float)")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="pose", shape=["batch", 3], type="tensor(float)")]

    def run(self, _: object, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [given["image"].mean((2, 3))]


@pytest.mark.parametrize(
    ("available", "loaded", "why"),
    [
        (["CPUExecutionProvider"], ["CPUExecutionProvider"], "built without CUDA"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"], "cannot load its CUDA libraries"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"], None),
    ],
)
def test_an_onnx_network_that_cannot_use_the_gpu_runs_on_the_cpu_or_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    available: list[str],
    loaded: list[str],
    why: str | None,
) -> None:
    """``--device auto`` falls back and says so; ``--device cuda`` is refused with the way out."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: _Session(loaded))
    (tmp_path / "net.onnx").write_bytes(b"x")
    write = "weights: net.onnx\ncrop: none\ninput: {size: 64}\noutput: {kind: euler}\n"
    (tmp_path / "net.yaml").write_text(write)
    gpu = torch.device("cuda", 1)
    estimator = load_estimator(tmp_path / "net.onnx", Compute(gpu, fall_back=True))
    said = capsys.readouterr().err
    if why is None:
        assert (estimator.device, said) == (gpu, "")
        return
    assert estimator.device == torch.device("cpu")
    assert "net.onnx runs on the CPU" in said
    assert why in said
    assert estimator.predict(random_faces(2, 64)).angles.device == torch.device("cpu")
    with pytest.raises(UserError, match=rf"{why}; .*pip install .*onnxruntime-gpu.*--device cpu"):
        load_estimator(tmp_path / "net.onnx", Compute(gpu))


def _graph(path: Path, shape: list[Any], kind: int, more: Sequence[str] = ()) -> None:
    """A network whose yaw, pitch and roll are the means of the picture's three channels."""
    from onnx import TensorProto, helper, save

    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Cast", ["mean"], ["pose"], to=TensorProto.FLOAT),
    ]
    image = helper.make_tensor_value_info("image", kind, shape)
    others = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in more]
    pose = helper.make_tensor_value_info("pose", TensorProto.FLOAT, [shape[0], 3])
    model = helper.make_model(
        helper.make_graph(nodes, "means", [image, *others], [pose]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    save(model, path / "net.onnx")


def _described(path: Path, about: str) -> Path:
    (path / "net.yaml").write_text(
        f"weights: net.onnx\ncrop: none\ninput: {{{about}, mean: [0, 0, 0], std: [1, 1, 1]}}\noutput: {{kind: euler}}\n"
    )
    return path / "net.onnx"


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_onnx_inputs_of_every_layout_type_and_batch_give_the_same_angles(
    kind: str, layout: str, batch: str | int, tmp_path: Path
) -> None:
    from onnx import TensorProto

    shape = [batch, 3, 32, 32] if layout == "nchw" else [batch, 32, 32, 3]
    _graph(tmp_path, shape, getattr(TensorProto, kind))
    estimator = load_estimator(_described(tmp_path, f"size: 32, layout: {layout}"), CPU)
    faces = random_faces(10, 32)
    for count in (1, 4, 10):
        found = estimator.predict(faces[:count]).angles.numpy()
        assert found.shape == (count, 3)
        np.testing.assert_allclose(found, faces[:count].float().mean((2, 3)).numpy() / 255, atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "kind", "more", "about", "told"),
    [
        (["N", 64, 64, 3], "FLOAT16", (), "size: 32",
         r"input 'image' is float16 \['N', 64, 64, 3\] \(NHWC\); .*set input.layout: nhwc and input.size: 64"),
        (["N", 3, 48, 48], "FLOAT", (), "size: 32", r"\(NCHW\); .*set input.layout: nchw and input.size: 48"),
        (["N", "h", "w", 3], "FLOAT", (), "size: 32", r"set input.layout: nhwc and input.size: 32"),
        (["N", 1, 32, 32], "FLOAT", (), "size: 32", r"export it with an input of three channels"),
        (["N", 3, 32, 48], "FLOAT", (), "size: 32", r"export it with pictures of three channels and one side"),
        (["N", 3, 32, 32], "UINT8", (), "size: 32", r"is uint8 .*export it with an input of float, float16, double"),
        (["N", 3, 32, 32], "FLOAT", ("scale",), "size: 32",
         r"has 2 inputs: 'image' \(float \['N', 3, 32, 32\] \(NCHW\)\), 'scale' \(float \[1\]\); .*as constants"),
    ],
)  # fmt: skip
def test_an_onnx_input_that_does_not_fit_is_told_with_what_was_found_and_what_would(
    shape: list[Any], kind: str, more: tuple[str, ...], about: str, told: str, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper, load, save

    _graph(tmp_path, shape, TensorProto.FLOAT, more)
    if kind == "UINT8":  # whose mean no operator takes
        model = load(tmp_path / "net.onnx")
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT))
        model.graph.node[1].input[0] = "numbers"
        save(model, tmp_path / "net.onnx")
    elif kind != "FLOAT":
        _graph(tmp_path, shape, getattr(TensorProto, kind), more)
    with pytest.raises(UserError, match=told):
        load_estimator(_described(tmp_path, about), CPU)


def test_weights_that_are_missing_or_no_network_name_the_file_that_was_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--weights \S*gone\.onnx: no such file"):
        load_estimator(EXAMPLE, CPU, weights=tmp_path / "gone.onnx")
    (tmp_path / "half.onnx").write_bytes(b"\x08\x0a\x12" * 500)
    with pytest.raises(UserError, match=r"half\.onnx: not an ONNX network .*1,500 bytes, which is damaged, or no ONNX"):
        load_estimator(EXAMPLE, CPU, weights=tmp_path / "half.onnx")


@pytest.mark.parametrize(
    ("bins", "way"),
    [(2, "set output.kind to sixd"), (62, "hpe reads bins66-lower, bins66-centre, euler")],
)
def test_outputs_with_other_numbers_of_bins_have_a_way_out(bins: int, way: str, tmp_path: Path) -> None:
    nodes = [SimpleNamespace(name=name, shape=["batch", bins], type="tensor(float)") for name in ("y", "p", "r")]
    with pytest.raises(
        UserError, match=rf"'y' is .*: {bins} values per face; .* has 66; {way}.* output\.names, or use"
    ):
        _outputs(tmp_path / "net.onnx", nodes, OutputSpec(kind="bins66-lower"))
