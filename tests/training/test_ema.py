# SPDX-License-Identifier: Apache-2.0
"""The averaged weights."""

import torch
from torch import nn

from pydet.training.ema import WeightAverage


def test_average_follows_its_recurrence():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5)
    expected = model.weight.item()
    for step in range(30):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.model.weight.item(), expected, rtol=1e-5, atol=1e-6)


def test_buffers_follow_and_counters_are_copied():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.9)
    model(torch.randn(8, 2) + 5)
    before = average.model.running_mean.clone()
    average.update(model)
    torch.testing.assert_close(average.model.running_mean, before.lerp(model.running_mean, 0.9))
    assert average.model.num_batches_tracked == 1


def test_a_shared_weight_is_averaged_once():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})
    model["b"] = model["a"]
    average = WeightAverage(model, 0.9)
    start = average.model["a"].weight.item()
    with torch.no_grad():
        model["a"].weight.fill_(10.0)
    average.update(model)
    torch.testing.assert_close(average.model["a"].weight.item(), 0.1 * start + 0.9 * 10.0)


def test_the_average_has_no_gradients_and_its_state_goes_round():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    average.update(model)
    other = WeightAverage(nn.Linear(2, 2), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    assert torch.equal(other.model.weight, average.model.weight)
