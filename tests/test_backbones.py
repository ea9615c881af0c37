"""Weights from a local file: what fits, and what only looks as if it did."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from hpe.errors import UserError
from hpe.models.backbones import build_backbone


def saved(name: str, folder: Path) -> Path:
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **options)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.125)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_torchvisions_own_file_fits_and_its_classifier_is_left_out(name: str, tmp_path: Path) -> None:
    backbone, _ = build_backbone(name, weights=str(saved(name, tmp_path)))
    assert all((parameter == 0.125).all() for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("file", "name"), [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("resnet50", "resnet18")]
)
def test_weights_of_a_relative_are_refused(file: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights do not fit the backbone"):
        build_backbone(name, weights=str(saved(file, tmp_path)))


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    evil, mark = tmp_path / "evil.pth", tmp_path / "ran"
    evil.write_bytes(b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(UserError, match="not a file of tensors alone"):
        build_backbone("tiny", weights=str(evil))
    assert not mark.exists()


@pytest.mark.parametrize(("stem", "side"), [("standard", 12), ("half", 24), ("small", 48)])
def test_stems_keep_as_much_of_a_small_picture_as_they_say(stem: str, side: int) -> None:
    backbone, features = build_backbone("resnet18", stem=stem)
    sides: list[int] = []
    backbone.get_submodule("layer1").register_forward_hook(lambda *passed: sides.append(passed[2].shape[-1]))
    assert backbone.eval()(torch.zeros(1, 3, 48, 48)).shape == (1, features)
    assert sides == [side]


def test_a_stem_for_resnets_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="half is for ResNets"):
        build_backbone("mobilenet_v3_small", stem="half")
