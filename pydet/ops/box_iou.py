# SPDX-License-Identifier: Apache-2.0
"""Pairwise intersection over union."""

from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import check_boxes, check_same_device, check_same_dtype
from pydet.ops._library import define

_box_iou_backward = define(
    "box_iou_backward(Tensor grad_iou, Tensor boxes1, Tensor boxes2) -> (Tensor, Tensor)",
    fake=lambda grad_iou, boxes1, boxes2: (
        boxes1.new_empty(boxes1.shape),
        boxes2.new_empty(boxes2.shape),
    ),
)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_iou: Tensor) -> tuple[Tensor, Tensor]:
    grad_boxes1, grad_boxes2 = _box_iou_backward(grad_iou, *ctx.saved_tensors)
    return grad_boxes1, grad_boxes2


_box_iou = define(
    "box_iou(Tensor boxes1, Tensor boxes2) -> Tensor",
    fake=lambda boxes1, boxes2: boxes1.new_empty((*boxes1.shape[:-1], boxes2.shape[-2])),
    backward=_backward,
    save=_save,
    autocast=torch.float32,
)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: [..., N, 4] xyxy, in any one unit; floating, or integers, which are taken exactly.
        boxes2: [..., M, 4] xyxy, of the same leading dimensions, dtype, device and unit.

    Returns:
        [..., N, M] in the dtype of the boxes (the default dtype for integers), each rounded once
        from an arithmetic in float32 or better. 0 where the union is 0 (two boxes without any
        area), NaN where a coordinate is NaN or both areas are infinite. A box with x2 < x1 has a
        negative area and overlaps nothing.

    Raises:
        TypeError: Not tensors, or dtypes differ.
        ValueError: Not [..., N, 4], leading dimensions differ, or different devices.

    Differentiable in both arguments: where two edges tie, half of the gradient goes to each, as in
    torch. Source: the Jaccard index; for boxes, the overlap criterion of PASCAL VOC (Everingham et
    al., IJCV 2010, section 4.2).
    """
    check_boxes("box_iou", "boxes1", boxes1)
    check_boxes("box_iou", "boxes2", boxes2)
    check_same_dtype("box_iou", "boxes2", boxes2, "boxes1", boxes1)
    check_same_device("box_iou", "boxes2", boxes2, "boxes1", boxes1)
    if boxes1.shape[:-2] != boxes2.shape[:-2]:
        raise ValueError(
            f"box_iou: boxes2 must have the leading dimensions of boxes1 {list(boxes1.shape)}, "
            f"got {list(boxes2.shape)}"
        )
    if not boxes1.is_floating_point():
        iou: Tensor = _box_iou(boxes1.double(), boxes2.double())
        return iou.to(torch.get_default_dtype())
    iou = _box_iou(boxes1, boxes2)
    return iou
