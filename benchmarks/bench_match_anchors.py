# SPDX-License-Identifier: Apache-2.0
"""match_anchors: the anchors of RetinaNet with the objects of one image and of a batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Case, compiled, num_bytes, peers
from benchmarks.bench_box_iou import eager_box_iou
from pydet.ops import match_anchors

_FOREGROUND, _BACKGROUND = 0.5, 0.4


def _anchors(device: torch.device) -> Tensor:
    """[201600, 4] xyxy: nine a location, strides 8 to 128, of an image of 800 x 1344 pixels."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        height, width = -(-800 // stride), -(-1344 // stride)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 1, 2) * float(stride)
        sides = [
            (
                4 * stride * 2 ** (octave / 3) * ratio**-0.5,
                4 * stride * 2 ** (octave / 3) * ratio**0.5,
            )
            for ratio in (0.5, 1.0, 2.0)
            for octave in range(3)
        ]
        half = torch.tensor(sides) / 2
        levels.append(torch.cat([centre - half, centre + half], -1).reshape(-1, 4))
    return torch.cat(levels).to(device)


def _objects(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """[count, 4] xyxy of sides 16 to 400 within the image."""
    sides = 16 * 25 ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([1344.0, 800]) - sides)
    return torch.cat([corners, corners + sides], 1).to(device)


def _eager(anchors: Tensor, gt_boxes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix, maximum, thresholds and the low-quality rule, image by image."""
    idxs, ious = [], []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        matrix = eager_box_iou(gt_boxes[begin:end], anchors)
        best, own = matrix.max(0)
        matched = own.clone()
        matched[best < _FOREGROUND] = -2
        matched[best < _BACKGROUND] = -1
        tied = (matrix == matrix.max(1, keepdim=True).values).any(0)
        matched[tied] = own[tied]
        idxs.append(matched)
        ious.append(best)
    return torch.stack(idxs), torch.stack(ious)


def _torchvision(
    anchors: Tensor, gt_boxes: Tensor, offsets: Tensor
) -> Callable[[Any], Callable[[], Any]]:
    """torchvision's own way: box_iou and Matcher, image by image."""

    def make(ops: Any) -> Callable[[], Any]:
        from torchvision.models.detection._utils import Matcher

        matcher = Matcher(_FOREGROUND, _BACKGROUND, allow_low_quality_matches=True)
        parts = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
        return lambda: [matcher(ops.box_iou(gt_boxes[i:j], anchors)) for i, j in parts]

    return make


def _one_image(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Of one image, without indexing by masks: what torch.compile makes most of."""
    matrix = eager_box_iou(gt_boxes, anchors)
    best, own = matrix.max(0)
    matched = torch.where(best < _FOREGROUND, -2, own)
    matched = torch.where(best < _BACKGROUND, -1, matched)
    tied = (matrix == matrix.amax(1, keepdim=True)).any(0)
    return torch.where(tied, own, matched)


def _compiled(anchors: Tensor, gt_boxes: Tensor) -> Callable[[Any], Callable[[], Any]]:
    return lambda _: lambda: compiled(_one_image)(anchors, gt_boxes)


def _eager_ssd(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The rule of SSD on the matrix: as the low-quality rule, but each has one best anchor."""
    matrix = eager_box_iou(gt_boxes, anchors)
    best, matched = matrix.max(0)
    matched[best < _FOREGROUND] = -1
    matched[matrix.argmax(1)] = torch.arange(len(gt_boxes), device=anchors.device)
    return matched, best


def _ssd_matcher(anchors: Tensor, gt_boxes: Tensor) -> Callable[[Any], Callable[[], Any]]:
    def make(ops: Any) -> Callable[[], Any]:
        from torchvision.models.detection._utils import SSDMatcher

        matcher = SSDMatcher(_FOREGROUND)
        return lambda: matcher(ops.box_iou(gt_boxes, anchors))

    return make


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    anchors = _anchors(device)
    for images, objects in ((1, 1), (1, 8), (1, 30), (1, 100), (1, 500), (8, 8), (8, 100)):
        gt = _objects(images * objects, device, generator)
        offsets = torch.arange(images + 1, device=device) * objects
        yield Case(
            name=f"{images} x {len(anchors)} x {objects}",
            pydet=lambda gt=gt, offsets=offsets: tuple(
                match_anchors(anchors, gt, _FOREGROUND, _BACKGROUND, True, offsets=offsets)
            ),
            eager=lambda gt=gt, offsets=offsets: _eager(anchors, gt, offsets),
            peers=peers(
                torchvision=_torchvision(anchors, gt, offsets), compile=_compiled(anchors, gt)
            )
            if images == 1
            else peers(torchvision=_torchvision(anchors, gt, offsets)),
            num_bytes=num_bytes(anchors, gt) + images * len(anchors) * (8 + 4),
            series=f"{len(anchors)} anchors x boxes" if images == 1 else "",
            size=objects,
        )
    for objects in (8, 100):
        gt = _objects(objects, device, generator)
        yield Case(
            name=f"SSD, {len(anchors)} x {objects}",
            pydet=lambda gt=gt: tuple(
                match_anchors(anchors, gt, _FOREGROUND, _FOREGROUND, best_anchor_for_each_gt=True)
            ),
            eager=lambda gt=gt: _eager_ssd(anchors, gt),
            peers=peers(torchvision=_ssd_matcher(anchors, gt)),
            num_bytes=num_bytes(anchors, gt) + len(anchors) * (8 + 4),
        )
