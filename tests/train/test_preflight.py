"""What is refused before the first step, and what must not be."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpe.core.ranks import Ranks
from hpe.models.backbones import Tiny, build_backbone
from hpe.models.multitask import HEADS, MultiTask, affect_pair
from hpe.train.preflight import impossible, unreached, without_gradient
from tests import made


class Forgetful(Tiny):
    """A backbone with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(4, 4)


class Counting(Tiny):
    """A backbone that needs numbers, not shapes alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 + images.sum().item())


def without_grad(network: MultiTask, side: int) -> list[str]:
    """The judge: what autograd leaves without a gradient."""
    network.train().zero_grad()
    torch.stack([output.sum() for output in network(torch.randn(2, 3, side, side)).values()]).sum().backward()
    return [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def forgetful(*frozen: str) -> MultiTask:
    network = MultiTask(Forgetful(), Tiny().features, conditioned=True)
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    return network


@pytest.mark.parametrize(
    "network",
    [
        forgetful(),
        forgetful("backbone.forgotten"),
        forgetful("heads.pose"),
        MultiTask(*build_backbone("resnet18"), HEADS | {"affect": affect_pair}),
        MultiTask(*build_backbone("timm/mobilenetv3_small_100")),
        MultiTask(Counting(), Tiny().features),
    ],
    ids=["unused layer", "frozen", "frozen head", "resnet18", "timm", "needs numbers"],
)
def test_what_is_found_to_get_no_gradient_is_what_gets_none(network: MultiTask) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = unreached(network, (2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert found == without_grad(network, 32)


def test_a_layer_that_would_never_learn_is_refused_by_name(tmp_path: Path) -> None:
    config = made.config(tmp_path, tmp_path / "run")
    (problem,) = without_gradient(forgetful(), config)
    assert "2 parameters that get no gradient (backbone.forgotten.weight, backbone.forgotten.bias)" in problem
    assert without_gradient(forgetful("backbone.forgotten"), config) == []


def test_learned_weights_of_losses_do_not_count_as_unused(tmp_path: Path) -> None:
    network = MultiTask(*build_backbone("tiny"), learned_weights=True)
    assert without_gradient(network, made.config(tmp_path, tmp_path / "run")) == []


def test_a_warm_up_beside_one_cycle_is_refused(tmp_path: Path) -> None:
    ranks = Ranks.from_environment()
    (problem,) = impossible(
        made.config(tmp_path, tmp_path / "run", "train.schedule=one-cycle", "train.warmup_epochs=0.5"), ranks
    )
    assert problem.startswith(
        "train.warmup_epochs: 0.5 does not work with train.schedule: one-cycle, which has its own warm-up"
    )
    for changes in (["train.schedule=one-cycle"], ["train.warmup_epochs=0.5"]):
        assert impossible(made.config(tmp_path, tmp_path / "run", *changes), ranks) == []
