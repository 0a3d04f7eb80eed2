# SPDX-License-Identifier: Apache-2.0
"""Losses of paired boxes with their gradient: what each step of training a box regression does."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks._harness import Case, compiled, num_bytes, peers
from benchmarks.bench_box_iou import boxes_of, eager_overlap
from pydet import ops

_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], boxes1: Tensor, boxes2: Tensor) -> Tensor:
    leaf = boxes1.detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf, boxes2), leaf)
    return grad


def _formula(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: (1 - eager_overlap(name, a, b)).mean()


_FORMULAS = {name: _formula(name) for name in _LOSSES}


def _case(name: str, boxes1: Tensor, boxes2: Tensor) -> Case:
    def loss_of(library: object) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda a, b: getattr(library, name)(a, b, reduction="mean")

    return Case(
        name=f"{name} with gradient {len(boxes1)}",
        pydet=lambda: _gradient(loss_of(ops), boxes1, boxes2),
        eager=lambda: _gradient(_FORMULAS[name], boxes1, boxes2),
        peers=peers(
            torchvision=lambda tv: lambda: _gradient(loss_of(tv), boxes1, boxes2),
            compile=lambda _: lambda: _gradient(compiled(_FORMULAS[name]), boxes1, boxes2),
        ),
        num_bytes=2 * num_bytes(boxes1, boxes2) + num_bytes(boxes1),
        series=f"{name}, with gradient",
        size=len(boxes1),
    )


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # The positives of a batch: some thousand; a dense head without sampling: a hundred thousand.
    for count in (10, 2_000, 100_000, 1_000_000):
        boxes1 = boxes_of(count, device, generator)
        boxes2 = boxes1 + torch.rand(count, 4, generator=generator).to(device) * 4
        for name in _LOSSES:
            yield _case(name, boxes1, boxes2)
