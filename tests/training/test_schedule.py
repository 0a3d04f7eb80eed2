# SPDX-License-Identifier: Apache-2.0
"""Learning rates and parameter groups."""

import math

import pytest
import torch
from torch import nn

from pydet.training.config import TrainConfig
from pydet.training.schedule import build_optimizer, learning_rate, parameter_groups


def test_warm_up_is_linear_and_the_cosine_ends_at_its_fraction():
    config = TrainConfig(
        epochs=10, warmup_epochs=2, warmup_factor=0.1, final_factor=0.05, learning_rate=0.2,
        schedule="cosine",
    )  # fmt: skip
    assert learning_rate(0.0, config) == pytest.approx(0.2 * 0.1)
    assert learning_rate(1.0, config) == pytest.approx(0.2 * 0.55)
    assert learning_rate(2.0, config) == pytest.approx(0.2)
    assert learning_rate(6.0, config) == pytest.approx(0.2 * (0.05 + 0.95 * 0.5))
    assert learning_rate(10.0, config) == pytest.approx(0.2 * 0.05)
    assert learning_rate(11.0, config) == pytest.approx(0.2 * 0.05)
    rates = [learning_rate(2 + i / 10, config) for i in range(81)]
    assert rates == sorted(rates, reverse=True)


def test_steps_fall_at_their_epochs():
    config = TrainConfig(
        epochs=12, warmup_epochs=0, schedule="step", step_epochs=(8, 11), learning_rate=1.0
    )
    rates = [learning_rate(epoch, config) for epoch in (0, 7.99, 8, 10.9, 11, 12)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays():
    config = TrainConfig(epochs=3, warmup_epochs=0, schedule="constant", learning_rate=0.5)
    assert {learning_rate(epoch, config) for epoch in (0, 1.5, 3)} == {0.5}


def test_norms_and_biases_have_no_weight_decay_unless_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    model[2].weight.requires_grad_(False)
    decayed, free = parameter_groups(model, TrainConfig(weight_decay=0.1))
    assert decayed["params"] == [model[0].weight]
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert len(free["params"]) == 4
    (everything,) = parameter_groups(model, TrainConfig(decay_norm_and_bias=True))
    assert len(everything["params"]) == 5


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="must have trainable parameters"):
        parameter_groups(nn.ReLU(), TrainConfig())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_follow_their_definitions(name):
    """One step on f(w) = w at w = 1, by the update rules of the papers."""
    weight = nn.Parameter(torch.ones(1, 1))
    model = nn.Module()
    model.weight = weight
    config = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.01, momentum=0.9)
    optimizer = build_optimizer(model, config)
    weight.sum().backward()
    optimizer.step()
    if name == "sgd":
        expected = 1 - 0.1 * (1 + 0.01 * 1)
    else:  # Adam's first step has length lr; decay is decoupled from it
        expected = 1 * (1 - 0.1 * 0.01) - 0.1
    assert math.isclose(weight.item(), expected, rel_tol=1e-5)
