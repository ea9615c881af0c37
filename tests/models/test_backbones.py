"""Every backbone that is offered: its features, its weights from a file or the hub, its norms over many ranks."""

from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
import torchvision
from timm.layers import BatchNormAct2d, SyncBatchNormAct  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from hpe.core.errors import UserError
from hpe.models.backbones import build_backbone, outline, synchronised
from hpe.models.multitask import HEADS, MultiTask, affect_pair
from hpe.models.normalisation import published_normalisation
from hpe.train.preflight import sizes_refused, unreached
from tests import made

INCEPTIONS = ("googlenet", "inception_v3")
TORCHVISION = torchvision.models.list_models(module=torchvision.models)
QUICK = (
    "alexnet",
    "googlenet",
    "inception_v3",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "vgg11_bn",
    "vit_b_32",
)
TIMM = (
    "resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "inception_v3", "levit_128", "densenet121", "vovnet39a",
    "ghostnet_100", "mobilenetv3_small_100", "regnety_002", "mobilevit_xxs", "cspresnet50", "convnext_tiny",
    "swin_tiny_patch4_window7_224", "deit3_small_patch16_224", "beit_base_patch16_224", "vit_base_patch16_clip_224",
    "maxvit_tiny_tf_224", "eva02_tiny_patch14_224", "nf_resnet50", "mixer_s16_224",
)  # fmt: skip
QUICK_ONES = (*QUICK, *(f"timm/{name}" for name in TIMM[:5]))
NAMES = [
    name if name in ("tiny", "resnet14", "angles", *QUICK_ONES) else pytest.param(name, marks=pytest.mark.slow)
    for name in ("tiny", "resnet14", "angles", *TORCHVISION, *(f"timm/{name}" for name in TIMM))
    if not name.startswith("squeezenet")
]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_backbone_gets_a_gradient(name: str) -> None:
    backbone, features = outline(name)
    shape = (2, 3) if name == "angles" else (2, 3, 224, 224)
    assert backbone.eval()(torch.zeros(shape, device="meta")).shape == (2, features)
    with torch.device("meta"):
        network = MultiTask(backbone, features, HEADS | {"affect": affect_pair})
    assert unreached(network, shape) == []


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_network_without_a_linear_classifier_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"model.backbone: {name} has no linear classifier to replace; choose another"):
        build_backbone(name)


def test_a_tag_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="timm has no weights 'nobody' for resnet18; timm/resnet18 has its default"):
        build_backbone("timm/resnet18.nobody")


def of_its_own(name: str) -> dict[str, Tensor]:
    """A network's own random weights, as the hub would send it better ones."""
    options: dict[str, Any] = {"aux_logits": True, "init_weights": False} if name in INCEPTIONS else {}
    torch.manual_seed(5)
    return torchvision.models.get_model(name, weights=None, **options).state_dict()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's hub, which answers here without a network."""
    urls = {one.url: name for name in TORCHVISION for one in torchvision.models.get_model_weights(name)}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **_: of_its_own(urls[url]))


@pytest.mark.parametrize("name", [*INCEPTIONS, "resnet18"])
def test_a_network_of_the_hub_is_the_one_that_evaluate_rebuilds(name: str, hub: None) -> None:
    backbone, features = build_backbone(name, weights="hub")
    names = list(backbone.state_dict())
    assert names == list(build_backbone(name)[0].state_dict())
    assert unreached(MultiTask(backbone, features), (2, 3, 96, 96)) == []
    given = of_its_own(name)
    assert all(torch.equal(value, given[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", [*INCEPTIONS, "resnet18"])
def test_a_network_of_the_hub_gets_the_pixels_that_it_was_trained_on(name: str, hub: None) -> None:
    """Judged by torchvision's own network behind torchvision's own preset."""
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    judge = torchvision.models.get_model(name, weights="DEFAULT").eval()
    judge.fc = nn.Identity()
    preset = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    mean, std = published_normalisation(name, "hub")
    mine = build_backbone(name, weights="hub")[0].eval()
    with torch.no_grad():
        expected = judge(tv.normalize(images, preset.mean, preset.std))
        found = mine(tv.normalize(images, list(mean), list(std)))
        other = mine(tv.normalize(images, [0.4, 0.4, 0.4], [0.3, 0.3, 0.3]))
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-4 * scale
    assert float((other - expected).abs().max()) > 1e-3 * scale


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("efficientnet_v2_l", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("tiny", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_the_normalisation_of_torchvisions_weights_is_the_published_one(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    assert published_normalisation(name, "hub") == (mean, std)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert published_normalisation(name, "none") == published_normalisation(name, "file.pth") == imagenet


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "vit_base_patch16_clip_224", "inception_v3.tv_in1k", "mixer_s16_224"]
)
def test_the_normalisation_of_timms_networks_is_that_of_timms_own_transform(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))  # pyright: ignore
    judge = transform.transforms[-1]  # pyright: ignore[reportAttributeAccessIssue]
    for weights in ("none", "hub"):
        mean, std = published_normalisation(f"timm/{name}", weights)
        torch.testing.assert_close((torch.tensor(mean), torch.tensor(std)), (judge.mean, judge.std))


def test_vit_h_14_of_the_hub_names_the_size_that_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def big(url: str, **_: object) -> dict[str, Tensor]:
        return torchvision.models.get_model("vit_h_14", weights=None, image_size=518).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", big)
    config = made.config(tmp_path, tmp_path, "model.backbone=vit_h_14", "data.size=224")
    with torch.device("meta"):  # the real one takes 2.5 GB
        network = MultiTask(*build_backbone("vit_h_14", weights="hub"))
        (problem,) = sizes_refused(network, config)
    assert "data.size: vit_h_14 does not accept images of 224 pixels (" in problem
    assert "518" in problem


def randomised(network: nn.Module) -> nn.Module:
    """Norms that have counted something: their fresh ones hide what follows them."""
    drawn = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.5, generator=drawn)
            layer.running_var.uniform_(0.5, 1.5, generator=drawn)
    return network.eval()


def kinds(network: nn.Module) -> dict[str, type]:
    """The modules by name; a norm over many ranks counts as the norm that it took the place of."""
    known = {nn.SyncBatchNorm: nn.BatchNorm2d, nn.BatchNorm1d: nn.BatchNorm2d, SyncBatchNormAct: BatchNormAct2d}
    return {name: known.get(type(layer), type(layer)) for name, layer in network.named_modules()}


SYNCHRONISED = [
    *("tiny", "resnet14", "resnet18", "timm/efficientnet_b0", "timm/mobilenetv3_small_100", "timm/regnety_002"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "mobilenet_v3_small", "inception_v3", "densenet121", "timm/mobilevit_xxs", "timm/inception_v3",
            "timm/densenet121", "timm/vovnet39a", "timm/cspresnet50", "timm/ghostnet_100", "timm/levit_128",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", SYNCHRONISED)
def test_norms_that_count_over_all_ranks_leave_the_rest_of_a_network_alone(name: str) -> None:
    torch.manual_seed(0)
    network = randomised(build_backbone(name)[0])
    images = torch.randn(2, 3, *[224 if "levit" in name else 96] * 2)
    with torch.no_grad():
        before, names, modules = network(images), list(network.state_dict()), kinds(network)
        changed = synchronised(network)
        after = changed.eval()(images)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in changed.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in changed.modules())
    assert torch.equal(after, before)
    assert (list(changed.state_dict()), kinds(changed)) == (names, modules)


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
    for name in ("mobilenet_v3_small", "resnet14"):  # the second is called a ResNet, too
        with pytest.raises(UserError, match=rf"half is for torchvision's ResNets \(resnet18, .*and {name} is none"):
            build_backbone(name, stem="half")


def test_weights_that_cannot_be_downloaded_are_told_with_the_setting_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(UserError, match=r"cannot download .*: --set model\.weights=none$"):
        build_backbone("resnet18", weights="hub")
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match=r"cannot download .*: --set model\.weights=none$"):
        build_backbone("timm/resnet18", weights="hub")
