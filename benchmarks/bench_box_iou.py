# SPDX-License-Identifier: Apache-2.0
"""box_iou: ground truth against anchors, and detections against each other."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes, peers
from pydet.ops import box_iou


def _boxes(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
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


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # RetinaNet at 800 x 1333 has 200,000 anchors, SSD300 8,732; an image has 8 to 100 objects.
    for count1, count2 in ((8, 8_732), (100, 100_000), (1_000, 1_000), (5_000, 5_000)):
        boxes1 = _boxes(count1, device, generator)
        boxes2 = _boxes(count2, device, generator)
        yield Case(
            name=f"{count1} x {count2} float32",
            pydet=lambda a=boxes1, b=boxes2: box_iou(a, b),
            eager=lambda a=boxes1, b=boxes2: eager_box_iou(a, b),
            peers=peers(torchvision=lambda ops, a=boxes1, b=boxes2: lambda: ops.box_iou(a, b)),
            num_bytes=num_bytes(boxes1, boxes2) + count1 * count2 * 4,
        )
