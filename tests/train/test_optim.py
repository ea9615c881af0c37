"""Groups of parameters, the learning rate as a function of progress, and the moving average of the weights."""

import copy
from itertools import pairwise

import pytest
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import lr_scheduler

from hpe.models.backbones import build_backbone, outline
from hpe.models.multitask import HEADS, HeadSpec, MultiTask, affect_pair
from hpe.train.average import MovingAverage
from hpe.train.optim import (
    build_optimizer,
    describe_groups,
    layers_of,
    parameter_groups,
    rate_factor,
    set_rate,
    undecayed,
)

TIMM = ["vit_tiny_patch16_224", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"]
RATE, DECAY = 1e-3, 0.05


def network_of(name: str, **more: HeadSpec) -> MultiTask:
    """A network that has shapes and no numbers."""
    with torch.device("meta"):
        return MultiTask(*outline(name), HEADS | more)  # pyright: ignore[reportArgumentType]


def groups_of(network: MultiTask, *, head_rate: float = 1.0, layer_decay: float = 1.0) -> list[dict]:
    return parameter_groups(
        network, learning_rate=RATE, weight_decay=DECAY, head_rate=head_rate, layer_decay=layer_decay
    )


def settings_by_parameter(groups: list[dict], scale: str = "scale") -> dict[int, tuple[float, float]]:
    return {id(p): (group.get(scale, 1.0), group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", TIMM)
def test_the_layers_of_timms_networks_learn_and_decay_as_timm_has_it(name: str) -> None:
    network = network_of(f"timm/{name}")
    backbone = network.backbone
    spared = getattr(backbone, "no_weight_decay", set)()
    judge = settings_by_parameter(
        param_groups_layer_decay(backbone, weight_decay=DECAY, no_weight_decay_list=spared, layer_decay=0.5),
        "lr_scale",
    )
    mine = settings_by_parameter(groups_of(network, layer_decay=0.5))
    assert {key: mine[key] for key in judge} == judge
    assert len({scale for scale, _ in judge.values()}) > 6
    judge = settings_by_parameter(param_groups_weight_decay(backbone, DECAY, no_weight_decay_list=spared))
    mine = settings_by_parameter(groups_of(network))
    assert {key: mine[key] for key in judge} == judge


def test_torchvisions_resnet_has_the_layers_of_timms() -> None:
    ours, timms = (layers_of(outline(name)[0]) for name in ("resnet50", "timm/resnet50"))
    assert ours == timms
    assert max(ours.values()) == 16


def test_torchvisions_vit_has_the_layers_of_timms() -> None:
    ours, timms = (outline(name)[0] for name in ("vit_b_32", "timm/vit_base_patch32_224"))
    places, judge = layers_of(ours), layers_of(timms)
    assert (
        (places["class_token"], places["encoder.pos_embedding"]) == (judge["cls_token"], judge["pos_embed"]) == (0, 0)
    )
    assert places["conv_proj.weight"] == judge["patch_embed.proj.weight"]
    assert places["encoder.ln.bias"] == judge["norm.bias"] == max(places.values())
    for block in range(12):
        mine = {place for name, place in places.items() if f"encoder_layer_{block}." in name}
        assert mine == {place for name, place in judge.items() if name.startswith(f"blocks.{block}.")}
    assert undecayed(ours) == {"class_token", "encoder.pos_embedding"}


@pytest.mark.parametrize(("name", "layers"), [("alexnet", 7), ("vgg11_bn", 10), ("tiny", 4), ("angles", 3)])
def test_networks_that_are_sequences_have_a_layer_for_each_weight_in_their_order(name: str, layers: int) -> None:
    backbone, _ = outline(name)
    places = list(layers_of(backbone).values())
    assert places == sorted(places)
    assert set(places) == set(range(layers))
    if name != "tiny":
        weights = [parameter.ndim > 1 for parameter in backbone.parameters()]
        assert sum(weights) == layers
        assert all(before != after for (before, after), w in zip(pairwise(places), weights[1:], strict=True) if w)


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    network = network_of("resnet18", affect=affect_pair)
    network.backbone.get_submodule("layer1").requires_grad_(False)
    found = [id(p) for group in groups_of(network, layer_decay=0.7, head_rate=5) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_without_layer_decay_groups_are_what_they_were_so_that_runs_resume() -> None:
    """An optimizer's state knows parameters by their place in the groups alone."""
    network = network_of("resnet18")
    weights, others = groups_of(network)
    assert [id(p) for p in weights["params"]] == [id(p) for p in network.parameters() if p.ndim > 1]
    assert [id(p) for p in others["params"]] == [id(p) for p in network.parameters() if p.ndim < 2]
    assert (weights["weight_decay"], others["weight_decay"]) == (DECAY, 0.0)


def test_heads_learn_at_their_rate_whatever_the_schedule() -> None:
    network = MultiTask(*build_backbone("tiny"))
    optimizer = build_optimizer("sgd", groups_of(network, head_rate=5.0), RATE)
    set_rate(optimizer, 0.25 * RATE)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(1.25 * RATE) for p in network.heads.parameters())
    assert all(rates[id(p)] == pytest.approx(0.25 * RATE) for p in network.backbone.parameters())


def test_each_group_is_told_in_a_line() -> None:
    network = network_of("tiny")
    lines = describe_groups(groups_of(network, layer_decay=0.5, head_rate=2.0))
    assert len(lines) == 10
    assert lines[0].startswith("backbone layer 0 of 0 to 3: 1,800 parameters in 1 tensors, learning rate × 0.125, ")
    assert [line for line in lines if line.startswith("heads: ") and "learning rate × 2, weight decay 0.05" in line]
    whole = describe_groups(groups_of(network))
    assert [line.partition(":")[0] for line in whole] == ["backbone, heads", "backbone, heads"]


def factors(schedule: str, epochs: int, **settings: float) -> list[float]:
    """At the start of each epoch, and at the end."""
    told = {"warmup_epochs": 0.0, "step_epochs": 1.0, "step_factor": 1.0} | settings
    return [rate_factor(schedule, epoch, epochs, **told) for epoch in range(epochs + 1)]


def torchs(make, steps: int) -> list[float]:
    """The rates of one of torch's schedulers over a rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) <= steps:
            schedule.step()
    return found


def test_cosine_is_torchs() -> None:
    judge = torchs(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=20), 20)
    assert factors("cosine", 20) == pytest.approx(judge, abs=1e-9)


def test_step_is_torchs() -> None:
    judge = torchs(lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1), 30)
    assert factors("step", 30, step_epochs=7, step_factor=0.1) == pytest.approx(judge, rel=1e-9)


def test_one_cycle_is_torchs() -> None:
    def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.OneCycleLR:
        # torch's turn comes in its step total * pct_start - 1 of total - 1: the 30th of 100
        return lr_scheduler.OneCycleLR(
            optimizer, 1.0, total_steps=101, pct_start=31 / 101, final_div_factor=1e12, cycle_momentum=False
        )

    assert factors("one-cycle", 100) == pytest.approx(torchs(one_cycle, 100), abs=1e-9)


def test_a_warm_up_rises_in_a_line_and_the_schedule_follows() -> None:
    """By hand. The first thousandth of an epoch is given, so that the first step learns, too."""
    assert factors("constant", 4, warmup_epochs=2) == pytest.approx([0.0005, 0.5005, 1, 1, 1])
    assert factors("cosine", 6, warmup_epochs=2) == pytest.approx([0.0005, 0.5005, 1, 0.85355339, 0.5, 0.14644661, 0])
    assert factors("step", 4, warmup_epochs=1, step_epochs=2, step_factor=0.1) == pytest.approx(
        [0.001, 1, 0.1, 0.1, 0.01]
    )


def test_the_rate_after_the_last_epoch_stays_at_its_end() -> None:
    settings = {"warmup_epochs": 0.0, "step_epochs": 1.0, "step_factor": 0.5}
    for schedule in ("cosine", "one-cycle"):
        assert rate_factor(schedule, 10.3, 10, **settings) == pytest.approx(0)


def averaged_after(weights: list[float], decay: float) -> float:
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, decay)  # type: ignore[arg-type]
    for weight in weights:
        nn.init.constant_(network.weight, weight)
        average.update(network)  # type: ignore[arg-type]
    (weight,) = average.module.parameters()
    return weight.item()


def test_an_average_of_few_steps_has_left_the_start_behind() -> None:
    assert averaged_after([100.0] + [0.0] * 100, 0.999) < 0.01


def test_a_long_average_decays_as_was_asked() -> None:
    before, after = averaged_after([0.0] * 200 + [1.0], 0.9), averaged_after([0.0] * 200 + [1.0, 1.0], 0.9)
    torch.testing.assert_close((before, after), (0.1, 0.19))


def test_the_statistics_of_an_average_are_those_of_the_network() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = MovingAverage(network, 0.9)  # type: ignore[arg-type]
    network.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)
    for batch in torch.randn(3, 4, 2):
        network(batch)
        average.update(network)  # type: ignore[arg-type]
        found = dict(average.module.named_buffers())
        assert found.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        for name, buffer in network.named_buffers():
            assert torch.equal(found[name], buffer), name


def test_a_small_decay_is_never_exceeded() -> None:
    assert averaged_after([8.0, 0.0, 0.0, 0.0], 0.05) <= 8 * 0.1 * 0.05**2
