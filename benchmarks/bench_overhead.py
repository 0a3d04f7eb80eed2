# SPDX-License-Identifier: Apache-2.0
"""What a call costs beside its work: every kind of op on next to nothing, beside torchvision."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Call, Case, peers
from benchmarks.bench_box_iou import boxes_of
from pydet import ops

_COUNT = 10


def _inputs(device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = boxes_of(_COUNT, device, generator)
    return {
        "boxes": boxes,
        "scores": torch.rand(_COUNT, generator=generator).to(device),
        "idxs": torch.randint(0, 3, (_COUNT,), generator=generator).to(device),
        "rois": torch.cat([torch.zeros(_COUNT, 1, device=device), boxes], 1),
        "features": torch.randn(1, 1, 8, 8, generator=generator).to(device),
        "logits": torch.randn(_COUNT, 3, generator=generator).to(device),
        "targets": torch.eye(3).repeat(4, 1)[:_COUNT].to(device),
    }


def _calls(lib: Any, x: dict[str, Tensor]) -> dict[str, Call]:
    """The calls that pydet and torchvision share."""
    boxes = x["boxes"]
    return {
        "nms": partial(lib.nms, boxes, x["scores"], 0.5),
        "batched_nms": partial(lib.batched_nms, boxes, x["scores"], x["idxs"], 0.5),
        "box_iou": partial(lib.box_iou, boxes, boxes),
        "generalized_box_iou": partial(lib.generalized_box_iou, boxes, boxes),
        "complete_box_iou": partial(lib.complete_box_iou, boxes, boxes),
        "generalized_box_iou_loss": partial(lib.generalized_box_iou_loss, boxes, boxes),
        "sigmoid_focal_loss": partial(
            lib.sigmoid_focal_loss, x["logits"], x["targets"], reduction="sum"
        ),
        "roi_align": partial(lib.roi_align, x["features"], x["rois"], 2, 1 / 128, 2),
        "roi_pool": partial(lib.roi_pool, x["features"], x["rois"], 2, 1 / 128),
        "ps_roi_align": partial(lib.ps_roi_align, x["features"], x["rois"], 1, 1 / 128, 2),
        "box_area": partial(lib.box_area, boxes),
        "box_convert": partial(lib.box_convert, boxes, "xyxy", "cxcywh"),
        "clip_boxes_to_image": partial(lib.clip_boxes_to_image, boxes, (800, 1333)),
    }


def cases(device: torch.device) -> Iterator[Case]:
    x = _inputs(device)
    # bench_<op>.py compares with formulas; here torchvision is the other side of the check.
    for name, call in _calls(ops, x).items():
        others = peers(torchvision=lambda lib, name=name: _calls(lib, x)[name])
        yield Case(
            name=f"{name} of {_COUNT}",
            pydet=call,
            eager=others.get("torchvision", call),
            peers=others,
            num_bytes=1,
            time_eager=False,
        )
    anchors, gt = x["boxes"], x["boxes"][:3]
    yield Case(
        name=f"match_anchors of {_COUNT} and 3",
        pydet=lambda: tuple(ops.match_anchors(anchors, gt, 0.5, 0.4, True)),
        eager=lambda: tuple(ops.match_anchors(anchors, gt, 0.5, 0.4, True)),
        peers=peers(torchvision=lambda lib: _matcher(lib, anchors, gt)),
        num_bytes=1,
        time_eager=False,
    )


def _matcher(lib: Any, anchors: Tensor, gt: Tensor) -> Call:
    from torchvision.models.detection._utils import Matcher

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return lambda: matcher(lib.box_iou(gt, anchors))
