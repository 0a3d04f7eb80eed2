# SPDX-License-Identifier: Apache-2.0
"""box_iou and its kin: ground truth against anchors, detections against each other; gradients."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Case, compiled, num_bytes, peers
from pydet import ops

_FAMILY = ("generalized_box_iou", "distance_box_iou", "complete_box_iou")


def boxes_of(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """[count, 4] xyxy of sides 4 to 260 in a square of 1333 pixels."""
    corners = torch.rand(count, 2, generator=generator) * 1333
    sides = torch.rand(count, 2, generator=generator) * 256 + 4
    return torch.cat([corners, corners + sides], 1).to(device)


def eager_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The formula as torchvision writes it; other benchmarks build on it, too."""
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(2)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(1)
    return intersection / (area1[:, None] + area2 - intersection)


def eager_overlap(name: str, a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """The overlap called `name` of boxes [..., 4] that broadcast, as a user would write it."""
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    shared, (size_a, size_b) = inner.clamp(min=0), (x[..., 2:] - x[..., :2] for x in (a, b))
    intersection = shared[..., 0] * shared[..., 1]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - intersection
    iou = intersection / union
    if name.startswith("generalized"):
        around = outer[..., 0] * outer[..., 1]
        return iou - (around - union) / around
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    overlap = iou - centres.square().sum(-1) / (outer.square().sum(-1) + eps)
    if name.startswith("distance"):
        return overlap
    angles = [(size[..., 0] / size[..., 1]).atan() for size in (size_a, size_b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    alpha = (v / (1 - iou + v + eps)).detach()
    return overlap - alpha * v


def _gradients(function: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor) -> tuple[Any, ...]:
    leaves = [boxes.detach().requires_grad_() for boxes in (boxes1, boxes2)]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


def _check_gradients(ours: tuple[Any, ...], eager: tuple[Any, ...]) -> None:
    """Sums over thousands of pairs, in float32 and in another order."""
    for x, y in zip(ours, eager, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * y.abs().max().item())


def _formula(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "box_iou":
        return eager_box_iou
    return lambda a, b: eager_overlap(name, a[:, None], b)


# Of a pair: what the formulas cannot do without and compute exactly.
_DIVISIONS = {
    "box_iou": 1,
    "generalized_box_iou": 2,
    "distance_box_iou": 2,
    "complete_box_iou": 3,
}
_FORMULAS = {name: _formula(name) for name in ("box_iou", *_FAMILY)}


def _forward(name: str, boxes1: Tensor, boxes2: Tensor, series: str = "") -> Case:
    formula = _FORMULAS[name]
    return Case(
        name=f"{name} {len(boxes1)} x {len(boxes2)}",
        pydet=lambda: getattr(ops, name)(boxes1, boxes2),
        eager=lambda: formula(boxes1, boxes2),
        peers=peers(
            torchvision=lambda tv: lambda: getattr(tv, name)(boxes1, boxes2),
            compile=lambda _: lambda: compiled(formula)(boxes1, boxes2),
        ),
        num_bytes=num_bytes(boxes1, boxes2) + boxes1.shape[0] * boxes2.shape[0] * 4,
        arithmetic=("division", _DIVISIONS[name] * len(boxes1) * len(boxes2)),
        series=series,
        size=len(boxes1) * len(boxes2) if series else 0,
    )


def _with_gradients(name: str, boxes1: Tensor, boxes2: Tensor) -> Case:
    formula = _FORMULAS[name]
    return Case(
        name=f"{name} with gradients {len(boxes1)} x {len(boxes2)}",
        pydet=lambda: _gradients(getattr(ops, name), boxes1, boxes2),
        eager=lambda: _gradients(formula, boxes1, boxes2),
        peers=peers(
            torchvision=lambda tv: lambda: _gradients(getattr(tv, name), boxes1, boxes2),
            compile=lambda _: lambda: _gradients(compiled(formula), boxes1, boxes2),
        ),
        num_bytes=3 * num_bytes(boxes1, boxes2) + 3 * boxes1.shape[0] * boxes2.shape[0] * 4,
        check=_check_gradients,
    )


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def pair(count1: int, count2: int) -> tuple[Tensor, Tensor]:
        return boxes_of(count1, device, generator), boxes_of(count2, device, generator)

    for count in (10, 100, 1_000, 5_000):
        boxes1, boxes2 = pair(count, count)
        yield _forward("box_iou", boxes1, boxes2, series="box_iou N x N")
    # RetinaNet at 800 x 1333 has 200,000 anchors, SSD300 8,732; an image has 8 to 100 objects.
    for count1, count2 in ((8, 8_732), (100, 100_000)):
        yield _forward("box_iou", *pair(count1, count2))
    for name in _FAMILY:
        for count in (10, 100):
            yield _forward(name, *pair(count, count), series=f"{name} N x N")
    for count1, count2 in ((1_000, 1_000), (100, 20_000)):
        boxes1, boxes2 = pair(count1, count2)
        for name in ("box_iou", *_FAMILY):
            if name != "box_iou":
                square = f"{name} N x N" if count1 == count2 else ""
                yield _forward(name, boxes1, boxes2, square)
            yield _with_gradients(name, boxes1, boxes2)
    for name in _FAMILY:
        yield _forward(name, *pair(3_000, 3_000), series=f"{name} N x N")
