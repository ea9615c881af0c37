"""An exported network is the trained one, says what it is, and is an estimator."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.data.crops import CropRule
from hpe.data.shards import Manifest, write_shard
from hpe.export import ExportOptions, export, graph
from hpe.export.deployed import Deployed
from hpe.export.parity import compare
from hpe.models.build import load_run
from hpe.models.hopenet import Hopenet
from hpe.models.run_folder import SHARDS
from hpe.pose import PoseOptions, pose
from hpe.predict.network import open_predictor
from tests import made

CPU = torch.device("cpu")
SIXD = "model.heads={emotion: {conditioned_on_pose: true}, pose: {kind: sixd}}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("export") / "shards")


@pytest.fixture(scope="module")
def exported(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with every head, and its export."""
    folder = tmp_path_factory.mktemp("exported")
    run = made.untrained(folder / "run", shards)
    export(run, folder / "out/face.onnx", ExportOptions())
    return run, folder / "out/face.onnx"


def outputs(file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file))
    names = [one.name for one in session.get_outputs()]
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, {"images": images}), strict=True)}


@pytest.mark.parametrize("batch", [1, 7])
def test_the_graph_answers_like_the_network_in_any_batch(exported: tuple[Path, Path], batch: int) -> None:
    run, file = exported
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, made.SIDE, made.SIDE)).astype(np.float32)
    found = outputs(file, images)
    network, _, _ = load_run(run)
    with torch.inference_mode():
        raw = network((torch.from_numpy(images) / 255 - network.mean.view(3, 1, 1)) / network.std.view(3, 1, 1))
    for head in ("emotion", "direction"):
        np.testing.assert_allclose(found[head], raw[head].softmax(-1), atol=1e-5)
    shares = raw["pose"].softmax(-1).double().numpy()
    np.testing.assert_allclose(found["angles"], (shares * np.arange(66)).sum(-1) * 3 - 99, atol=1e-3)
    np.testing.assert_allclose(found["affect"], raw["affect"], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        (SIXD,),
        *(
            pytest.param((f"model.backbone={name}", "data.size=64"), marks=pytest.mark.slow)
            for name in ("mobilenet_v3_small", "googlenet")  # a ResNet is below: Hopenet
        ),
    ],
    ids=str,
)
def test_networks_of_the_study_export(shards: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    run = made.untrained(tmp_path / "run", shards, *changes)
    parity = export(run, tmp_path / "face.onnx", ExportOptions(images=16))
    assert parity.problems == []
    assert parity.images == 16


@pytest.mark.slow
def test_hopenet_exports(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Hopenet().state_dict(), tmp_path / "hopenet.pkl")
    with pytest.raises(UserError, match="--shards"):
        export(tmp_path / "hopenet.pkl", tmp_path / "face.onnx", ExportOptions())
    parity = export(tmp_path / "hopenet.pkl", tmp_path / "face.onnx", ExportOptions(shards=str(shards), images=8))
    assert parity.problems == []
    assert yaml.safe_load((tmp_path / "face.yaml").read_text())["crop"] == "hopenet-0.2@landmarks"


def test_a_file_states_its_input_outputs_and_training_and_no_path_of_this_machine(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    run, file = exported
    stated = {one.key: json.loads(one.value) for one in onnx.load(file).metadata_props}
    assert stated["hpe.emotion"] == list(EMOTIONS)
    assert stated["hpe.direction"] == list(DIRECTIONS)
    assert stated["hpe.input"]["size"] == made.SIDE
    assert stated["hpe.crop"] == "none"
    assert stated["hpe.trained_on"] == [
        {"dataset": "made", "variant": "squares", "licence": "none", "publishable": True}
    ]
    assert str(Path.cwd()).encode() not in file.read_bytes()
    assert str(run.parent).encode() not in file.read_bytes()
    export(run, tmp_path / "again.onnx", ExportOptions())
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_an_export_predicts_as_its_run_and_estimates_poses(
    exported: tuple[Path, Path], shards: Path, tmp_path: Path
) -> None:
    run, file = exported
    pixels = np.random.default_rng(1).integers(0, 256, (5, made.SIDE, made.SIDE, 3)).astype(np.uint8)
    one, two = (open_predictor(path, CPU, precision=p) for path, p in ((run, "fp32"), (file, None)))
    assert set(one.heads) == set(two.heads)
    first, second = one.answer(pixels), two.answer(pixels)
    for name in ("emotion_p", "direction_p", "direction", "angles", "deviations", "affect"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=2e-3, err_msg=name)
    copy = made.shards(tmp_path / "copy", (12,), val=5)
    assert pose([str(copy)], PoseOptions(estimator=file.with_suffix(".yaml"), on_mismatch="force")) == 0
    (table,) = (pq.read_table(path) for path in (copy / "pose/face").glob("train-*.parquet"))
    assert np.isfinite(table["yaw_sd"].to_numpy()).all()


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_smaller_files_tell_what_they_cost(exported: tuple[Path, Path], tmp_path: Path, precision: str) -> None:
    run, file = exported
    parity = export(run, tmp_path / "small.onnx", ExportOptions(precision=precision, images=24))
    assert parity.images == 24
    assert parity.accuracy["emotion"][0] == 24
    assert (tmp_path / "small.onnx").stat().st_size < file.stat().st_size
    assert str(parity.lines()[0]) in (tmp_path / "small.yaml").read_text()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_images_that_cannot_be_read_take_no_part(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated: list[np.ndarray] = []
    monkeypatch.setattr("hpe.export.write.quantise", quantise_noting(calibrated))
    run = made.untrained(tmp_path / "run", val_of(tmp_path / "shards", broken=range(0, 40, 4)))
    parity = export(run, tmp_path / "face.onnx", ExportOptions(precision=precision, images=25))
    assert (parity.images, parity.accuracy["emotion"][0]) == (25, 25)
    assert "Compared with the original on 25 images" in (tmp_path / "face.yaml").read_text()
    assert "run: could not read val-000000.tar, sample00004" in capsys.readouterr().err
    assert [image.any() for image in calibrated] == [True] * (25 if precision == "int8" else 0)
    run = made.untrained(tmp_path / "dark", val_of(tmp_path / "broken", broken=range(40)))
    with pytest.raises(UserError, match="no image of these shards can be read; give others with --shards"):
        export(run, tmp_path / "dark.onnx", ExportOptions(precision=precision))
    assert not list(tmp_path.glob("dark.*"))


def val_of(folder: Path, broken: Iterable[int]) -> Path:
    """Shards with 40 images in ``val``, some of which are no images."""
    made.shards(folder)
    samples = made.samples(40)
    for at in broken:
        samples[at] = replace(samples[at], image=b"no image")
    manifest = Manifest.load(folder)
    val = write_shard(folder / "val-000000.tar", "val", samples)
    replace(manifest, shards=(*manifest.shards[:-1], val)).save(folder)
    return folder


def quantise_noting(images: list[np.ndarray]) -> Callable[[Path, Path, Iterator[np.ndarray]], None]:
    """The export's step to int8, with the images that it is calibrated on."""
    plain = graph.quantise

    def quantise(source: Path, target: Path, batches: Iterator[np.ndarray]) -> None:
        def noted() -> Iterator[np.ndarray]:
            for batch in batches:
                images.extend(batch)
                yield batch

        plain(source, target, noted())

    return quantise


@pytest.mark.parametrize("rules", [(), ("square-1.4@box", "square-1.6@box")], ids=["unknown", "two"])
def test_an_export_knows_the_crop_rules_that_its_run_knows(
    shards: Path, tmp_path: Path, rules: tuple[str, ...]
) -> None:
    run = made.untrained(tmp_path / "run", shards)
    recorded = json.loads((run / SHARDS).read_text())
    (one,) = recorded.values()
    (run / SHARDS).write_text(json.dumps({rule: one | {"crop": rule} for rule in rules}))
    export(run, tmp_path / "face.onnx", ExportOptions(images=8))
    exported = open_predictor(tmp_path / "face.onnx", CPU)
    assert exported.crops == open_predictor(run, CPU).crops == {CropRule.parse(rule) for rule in rules}
    for source in (run, tmp_path / "face.onnx"):
        why = rf"{re.escape(str(source))}: the crop rule .* is not known \(.*{'.*'.join(rules)}.*give it with --crop"
        with pytest.raises(UserError, match=why):
            pose([str(shards)], PoseOptions(estimator=source))
    assert pose([str(shards)], PoseOptions(estimator=tmp_path / "face.onnx", crop="none", out=tmp_path / "tables")) == 0


def test_a_file_that_answers_differently_is_not_kept(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made.untrained(tmp_path / "run", shards)
    plain = graph.write_graph

    def damaged(network: Deployed, size: int, path: Path) -> list[str]:
        with torch.no_grad():
            network.network.heads["pose"][0].bias[:66] += torch.linspace(0, 1, 66)  # pyright: ignore
        return plain(network, size, path)

    monkeypatch.setattr("hpe.export.write.write_graph", damaged)
    with pytest.raises(UserError, match=r"not written, .*pose: more than 0\.05° apart for"):
        export(run, tmp_path / "face.onnx", ExportOptions())
    assert not list(tmp_path.glob("face.*"))


def test_what_exists_is_not_replaced_and_what_lies_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = exported
    with pytest.raises(UserError, match="exists; choose another name, or give --force"):
        export(run, file, ExportOptions())
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export(run, tmp_path / "face.bin", ExportOptions())
    spec = yaml.safe_load(file.with_suffix(".yaml").read_text()) | {"sha256": None}
    del spec["sha256"]
    (tmp_path / "face.onnx").write_bytes(file.read_bytes())
    for change, told in (
        ({"heads": {"emotion": "direction"}}, r"output 'direction' is \['batch', 5\]; by the YAML .* \[batch, 8\]"),
        ({"heads": {"emotion": "mood"}}, "output 'mood' is not in the graph"),
        ({"input": spec["input"] | {"size": 96}}, "input"),
    ):
        (tmp_path / "face.yaml").write_text(yaml.safe_dump(spec | change))
        with pytest.raises(UserError, match=told):
            open_predictor(tmp_path / "face.onnx", CPU)
    (tmp_path / "face.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "face.onnx").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="not an ONNX network"):
        open_predictor(tmp_path / "face.onnx", CPU)


def test_ties_and_gimbal_lock_are_no_difference() -> None:
    labels = {"emotion": np.array([0]), "direction": np.array([-1]), "angles": np.full((1, 3), np.nan, np.float32)}
    one = {"emotion": np.array([[0.500001, 0.499999]]), "angles": np.array([[90.0, 10.0, 0.0]], np.float32)}
    two = {"emotion": np.array([[0.499999, 0.500001]]), "angles": np.array([[90.0, 0.0, -10.0]], np.float32)}
    assert compare(one, two, labels).problems == []
    turned = two | {"angles": np.array([[90.0, 0.0, 10.0]], np.float32)}
    assert compare(one, turned, labels).turned == 1


def blocks(language: str) -> list[str]:
    """The code of docs/export.md in a language."""
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    return [part.partition("\n```")[0] for part in page.split(f"```{language}\n")[1:]]


def stage(folder: Path, file: Path) -> None:
    """What the documented programs read: an exported network and a face of its size."""
    shutil.copyfile(file, folder / "face.onnx")
    Image.fromarray(made.picture(1, 0, seed=5)).save(folder / "face.jpg", quality=95)


def expected(run: Path, folder: Path) -> tuple[str, list[float]]:
    row = open_predictor(run, CPU, precision="fp32")
    answers = row.answer(np.array(Image.open(folder / "face.jpg"))[None])
    assert answers.emotion_p is not None
    assert answers.angles is not None
    return EMOTIONS[int(answers.emotion_p[0].argmax())], answers.angles[0].tolist()


def test_the_documented_python_program_gives_the_networks_answer(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = exported
    stage(tmp_path, file)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "docs/export.md", "exec"), {})
    emotion, angles = expected(run, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith(emotion)
    found = [float(number) for number in printed.partition("[")[2].strip("]\n").split()]
    assert found == pytest.approx(angles, abs=0.06)  # printed with one decimal


def test_the_documented_javascript_program_gives_the_networks_answer(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    """With ``HPE_NODE_MODULES``: a folder in which ``npm install onnxruntime-node sharp`` has run."""
    modules = os.environ.get("HPE_NODE_MODULES")
    if not modules or shutil.which("node") is None:
        pytest.skip("HPE_NODE_MODULES names no folder with onnxruntime-node and sharp, or node is not installed")
    run, file = exported
    stage(tmp_path, file)
    (code,) = blocks("js")
    (tmp_path / "read.mjs").write_text(code)
    (tmp_path / "node_modules").symlink_to(Path(modules).resolve() / "node_modules")
    done = subprocess.run(
        ["node", "read.mjs", str(made.SIDE)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    emotion, angles = expected(run, tmp_path)
    assert done.stdout.startswith(emotion)
    found = [float(number) for number in re.findall(r"-?\d+\.\d", done.stdout)]
    # sharp decodes JPEG with other rounding than Pillow
    assert found == pytest.approx(angles, abs=1.0)
