"""``hpe.models.views``: a mirror image has mirrored estimates, and both views together have symmetric ones."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.special
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.geometry import euler_from_rotation, geodesic_degrees, rotation_from_euler
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.models.backbones import build_backbone
from hpe.models.multitask import HEADS, MultiTask, affect_pair, bins_deviation, bins_mean, pose_6d, pose_bins
from hpe.models.views import Estimates, Views, estimate
from hpe.stream import ShardSet
from tests.evaluate.test_evaluate import pack, said, untrained


@pytest.fixture(params=["bins66", "sixd"])
def network(request: pytest.FixtureRequest) -> MultiTask:
    torch.manual_seed(1)
    pose = {"bins66": pose_bins, "sixd": pose_6d}[request.param]
    made = MultiTask(*build_backbone("tiny"), HEADS | {"pose": pose, "affect": affect_pair}).eval()
    for name, parameter in made.named_parameters():
        if name.startswith("heads") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=3.0)
    return made


@torch.inference_mode()
def test_with_the_mirror_image_a_flipped_picture_gets_flipped_estimates(network: MultiTask) -> None:
    pictures = torch.randn(6, 3, 32, 32)
    upright = estimate(network, pictures, Views(flips=True))
    flipped = estimate(network, pictures.flip(-1), Views(flips=True))
    for mine, other in ((upright.angles, flipped.angles), (upright.direction_p, flipped.direction_p)):
        assert mine is not None
        assert other is not None
        assert not torch.allclose(mine, other, atol=1e-2), "the pictures are too symmetric to tell"
    assert upright.angles is not None
    assert flipped.angles is not None
    turned = (upright.angles * torch.tensor((-1.0, 1.0, -1.0)) - flipped.angles + 180).remainder(360) - 180
    torch.testing.assert_close(turned, torch.zeros_like(turned), atol=1e-3, rtol=0)
    assert upright.direction_p is not None
    assert flipped.direction_p is not None
    torch.testing.assert_close(upright.direction_p[:, [0, 2, 1, 3, 4]], flipped.direction_p)
    torch.testing.assert_close(upright.emotion_p, flipped.emotion_p)
    torch.testing.assert_close(upright.affect, flipped.affect)
    if upright.deviations is not None:
        torch.testing.assert_close(upright.deviations, flipped.deviations)


@torch.inference_mode()
def test_mixed_precision_is_the_networks_alone(network: MultiTask) -> None:
    seen: list[torch.Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.randn(6, 3, 32, 32)
    views = Views(flips=True, centre=0.75)
    exact = estimate(network, pictures, views)
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate(network, pictures, views)
        outputs, mirrored = network(seen[0]), network(seen[0].flip(-1))
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=0)  # the centre crop
    expected = Estimates.of(outputs).mean(Estimates.of(mirrored).mirrored())
    for name in ("emotion_p", "angles", "deviations", "affect"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    assert exact.angles is not None
    assert found.angles is not None
    assert not torch.equal(found.angles, exact.angles), "the network itself was not in bfloat16"


def test_the_mean_of_bins_is_exact_in_mixed_precision() -> None:
    logits = torch.randn(50, 66) * 3
    shares = scipy.special.softmax(logits.double().numpy(), -1)
    with torch.autocast("cpu", torch.bfloat16):
        mean, deviation = bins_mean(logits), bins_deviation(logits)
    bins = np.arange(66) * 3.0 - 99
    expected = shares @ bins
    np.testing.assert_allclose(mean, expected, atol=1e-3)
    np.testing.assert_allclose(deviation, np.sqrt((shares * (bins - expected[:, None]) ** 2).sum(-1)), atol=1e-3)


@torch.inference_mode()
def test_one_view_is_what_the_network_says(network: MultiTask) -> None:
    pictures = torch.randn(3, 3, 32, 32)
    outputs = network(pictures)
    found = estimate(network, pictures)
    torch.testing.assert_close(found.emotion_p, outputs["emotion"].softmax(-1))
    torch.testing.assert_close(found.affect, outputs["affect"])
    assert (found.deviations is None) == (outputs["pose"].ndim == 2)


def test_the_centre_is_what_pillow_cuts_and_resizes(network: MultiTask) -> None:
    seen: list[torch.Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y, x = np.mgrid[:32, :32] / 31
    smooth = np.stack((x, y, x * y)).astype(np.float32)
    estimate(network, torch.from_numpy(smooth)[None], Views(centre=0.75))
    for channel, cut in zip(smooth, seen[0][0].numpy(), strict=True):
        theirs = Image.fromarray(channel).resize((32, 32), Image.Resampling.BILINEAR, box=(4, 4, 28, 28))
        np.testing.assert_allclose(cut, np.asarray(theirs), atol=2e-3)


def test_a_network_without_numbers_has_no_mean_rotation() -> None:
    broken = Estimates(angles=torch.tensor([[float("nan"), 0.0, 0.0], [10.0, 0.0, 0.0]]))
    mean = broken.mean(broken).angles
    assert mean is not None
    assert mean[0].isnan().all()
    torch.testing.assert_close(mean[1], torch.tensor([10.0, 0.0, 0.0]))


@torch.inference_mode()
def test_rotations_meet_halfway_also_near_a_profile() -> None:
    """Two estimates 8° from a profile on either side: their mean is nearer to both than they are to each other."""
    truth = Rotation.from_euler("y", 88, degrees=True)
    off = np.random.default_rng(0).normal(size=(500, 3))
    off *= np.radians(8) / np.linalg.norm(off, axis=1, keepdims=True)
    matrices = [torch.tensor((Rotation.from_rotvec(sign * off) * truth).as_matrix()) for sign in (1, -1)]
    one, other = (euler_from_rotation(matrix).float() for matrix in matrices)
    mean = Estimates(angles=one).mean(Estimates(angles=other)).angles
    assert mean is not None
    assert float(mean.abs().max()) <= 180
    straight = rotation_from_euler(mean).double()
    assert float(geodesic_degrees(straight, torch.tensor(truth.as_matrix())).max()) < 0.1
    assert float((one - other).abs().max()) > 90, "no head here whose three angles jump"


def test_bins_meet_angle_by_angle_beyond_a_profile() -> None:
    one, other = (Estimates(angles=torch.tensor([[yaw, 0.0, 2.0]]), deviations=torch.ones(1, 3)) for yaw in (88, 98))
    assert one.mean(other).angles.tolist() == [[93.0, 0.0, 2.0]]  # type: ignore[union-attr]
    assert one.mean(other).emotion_p is None


def test_evaluate_and_predict_judge_both_views_where_asked(tmp_path: Path) -> None:
    run, shards = untrained(tmp_path / "run"), pack(tmp_path / "shards", said(), (6,))
    shares = {}
    for name, options in (("plain", []), ("both", ["--flips", "--centre", "0.9"])):
        done = CliRunner().invoke(app, ["evaluate", str(run), str(shards), "--name", name, "--workers", "0", *options])
        assert done.exit_code == 0, done.output
        shares[name] = pq.read_table(run / "evaluate" / f"{name}.parquet")["emotion_p"].to_pylist()
        about = json.loads((run / "evaluate" / f"{name}.json").read_text())["about"]
        assert ("views" in about) == ("mirror image" in done.output) == bool(options)
        out = tmp_path / name
        done = CliRunner().invoke(
            app, ["predict", str(run), str(shards), "--out", str(out), "--format", "parquet", *options]
        )
        assert done.exit_code == 0, done.output
        told = pq.read_table(out / "predictions.parquet")["emotion_neutral"].to_pylist()
        assert told == pytest.approx([row[0] for row in shares[name]], abs=2e-2)
    assert shares["plain"] != shares["both"]


def test_what_has_no_mirror_image_is_refused(tmp_path: Path) -> None:
    angles = tmp_path / "angles"
    untrained(angles, "model.backbone=angles", "model.heads={direction: {}}")
    shards = pack(tmp_path / "shards", said(), (6,))
    with pytest.raises(UserError, match="--flips and --centre are for networks of images"):
        evaluate(
            angles, [ShardSet(str(shards), "test")], EvaluateOptions(name="test", workers=0, views=Views(centre=0.9))
        )
