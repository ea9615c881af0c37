"""The moving average of the weights."""

import torch
from torch import nn

from hpe.average import MovingAverage


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


def test_a_small_decay_is_never_exceeded() -> None:
    assert averaged_after([8.0, 0.0, 0.0, 0.0], 0.05) <= 8 * 0.1 * 0.05**2
