# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model's weights (Polyak averaging)."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """A second copy of a model that follows it: ``average += (1 - d) * (weights - average)``.

    The decay d of update n (from 0) is ``min(decay, (1 + n) / (10 + n))``: an average that starts
    from random weights forgets them within its first steps, however short the training.

    Floating buffers (running statistics) are averaged as weights are; others are copied.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
        updates: number of updates so far.
    """

    def __init__(self, model: M, decay: float) -> None:
        """Copy `model` (on its device, in its memory format) and average with `decay` in [0, 1)."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`, the one that this was copied from."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for average, weight in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Weights and number of updates, loadable with ``weights_only=True``."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Saved parameters and buffers, a shared one once; not those rebuilt at will (anchors)."""
    distinct = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return list(distinct.values())
