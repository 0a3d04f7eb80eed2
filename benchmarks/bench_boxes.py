# SPDX-License-Identifier: Apache-2.0
"""Area, format, clipping and size: all anchors of an image, and of a batch of eight; masks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes, peers
from pydet import ops


def _boxes(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 1333
    sides = torch.rand(count, 2, generator=generator) * 256
    return torch.cat([corners, corners + sides], 1).to(device)


def _eager_convert(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)


def _eager_clip(boxes: Tensor) -> Tensor:
    x, y = boxes[:, 0::2].clamp(0, 1333), boxes[:, 1::2].clamp(0, 800)
    return torch.stack((x, y), 2).reshape(boxes.shape)


def _eager_removal(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.where((sides >= 16).all(1))[0]


def _eager_masks(masks: Tensor) -> Tensor:
    boxes = []
    for mask in masks:
        y, x = torch.where(mask)
        ends = [x.min(), y.min(), x.max(), y.max()] if len(x) else [x.new_zeros(())] * 4
        boxes.append(torch.stack(ends))
    return torch.stack(boxes).float()


def _masks(count: int, device: torch.device) -> Tensor:
    """[count, 800, 1333] bool: discs of 20 to 200 pixels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(count, 2, generator=generator) * 800
    radii = torch.rand(count, generator=generator) * 180 + 20
    y, x = torch.arange(800)[:, None], torch.arange(1333)
    discs = [
        (x - cx) ** 2 + (y - cy) ** 2 < r**2 for (cx, cy), r in zip(centres, radii, strict=True)
    ]
    return torch.stack(discs).to(device)


_SIZE = (800, 1333)
# Name, call on a library of ops, formula, bytes written a box.
_CALLS: tuple[tuple[str, Callable[[Any, Tensor], Tensor], Callable[[Tensor], Tensor], int], ...] = (
    ("box_area", lambda lib, b: lib.box_area(b), lambda b: (b[:, 2:] - b[:, :2]).prod(1), 4),
    ("box_convert", lambda lib, b: lib.box_convert(b, "xyxy", "cxcywh"), _eager_convert, 16),
    (
        "clip_boxes_to_image",
        lambda lib, b: lib.clip_boxes_to_image(b, (800, 1333)),
        _eager_clip,
        16,
    ),
    ("remove_small_boxes", lambda lib, b: lib.remove_small_boxes(b, 16), _eager_removal, 8),
)


def cases(device: torch.device) -> Iterator[Case]:
    for count in (10, 1_000, 200_000, 1_600_000):
        boxes = _boxes(count, device)
        for name, call, eager, written in _CALLS:
            yield Case(
                name=f"{name} {count}",
                pydet=lambda c=call, b=boxes: c(ops, b),
                eager=lambda e=eager, b=boxes: e(b),
                peers=peers(torchvision=lambda lib, c=call, b=boxes: lambda: c(lib, b)),
                num_bytes=num_bytes(boxes) + written * count,
                series=name,
                size=count,
            )
    masks = _masks(30, device)
    yield Case(
        name="masks_to_boxes 30 x 800 x 1333",
        pydet=lambda: ops.masks_to_boxes(masks),
        eager=lambda: _eager_masks(masks),
        peers=peers(torchvision=lambda lib: lambda: lib.masks_to_boxes(masks)),
        num_bytes=num_bytes(masks),
    )
