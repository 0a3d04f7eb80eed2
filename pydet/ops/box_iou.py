# SPDX-License-Identifier: Apache-2.0
"""Pairwise overlaps of boxes: IoU, generalised, distance and complete IoU."""

from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    NUMERIC,
    check_boxes,
    check_choice,
    check_dtype,
    check_not_negative,
    check_same_device,
    check_same_dtype,
)
from pydet.ops._library import define
from pydet.ops.boxes import box_convert

_FORMATS = ("xyxy", "xywh", "cxcywh")


# --- registration ------------------------------------------------------------------------------
# The overlaps are float32 for 16-bit boxes; gradients have the dtype of what they are of.

_box_iou_double_backward = define(
    "box_iou_double_backward(Tensor v1, Tensor v2, Tensor grad_iou, Tensor boxes1, Tensor boxes2, "
    "str overlap, float eps) -> (Tensor, Tensor, Tensor)",
    fake=lambda v1, v2, grad_iou, boxes1, boxes2, *_: (
        grad_iou.new_empty(grad_iou.shape),
        boxes1.new_empty(boxes1.shape),
        boxes2.new_empty(boxes2.shape),
    ),
)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.overlap, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, v1: Tensor, v2: Tensor) -> tuple[Tensor | None, ...]:
    grads = _box_iou_double_backward(v1, v2, *ctx.saved_tensors, ctx.overlap, ctx.eps)
    return (*grads, None, None)


_box_iou_backward = define(
    "box_iou_backward(Tensor grad_iou, Tensor boxes1, Tensor boxes2, str overlap, float eps) "
    "-> (Tensor, Tensor)",
    fake=lambda grad_iou, boxes1, boxes2, *_: (
        boxes1.new_empty(boxes1.shape),
        boxes2.new_empty(boxes2.shape),
    ),
    backward=_double_backward,
    save=_save_backward,
)


def _backward(ctx: Any, grad_iou: Tensor) -> tuple[Tensor | None, ...]:
    grads = _box_iou_backward(grad_iou, *ctx.saved_tensors, ctx.overlap, ctx.eps)
    return (*grads, None, None)


def _fake(boxes1: Tensor, boxes2: Tensor, *_: Any) -> Tensor:
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty((*boxes1.shape[:-1], boxes2.shape[-2]), dtype=dtype)


_box_iou = define(
    "box_iou(Tensor boxes1, Tensor boxes2, str overlap, float eps) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save_backward,
    autocast=torch.float32,
)


# --- functions ---------------------------------------------------------------------------------


def _check_pair(op: str, boxes1: Any, boxes2: Any) -> None:
    check_boxes(op, "boxes1", boxes1)
    check_boxes(op, "boxes2", boxes2)
    check_dtype(op, "boxes1", boxes1, NUMERIC)
    check_same_dtype(op, "boxes2", boxes2, "boxes1", boxes1)
    check_same_device(op, "boxes2", boxes2, "boxes1", boxes1)


def _pairwise(op: str, overlap: str, boxes1: Tensor, boxes2: Tensor, eps: float = 0.0) -> Tensor:
    _check_pair(op, boxes1, boxes2)
    if boxes1.shape[:-2] != boxes2.shape[:-2]:
        try:
            leading = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"{op}: boxes2 must have leading dimensions that broadcast with those of boxes1 "
                f"{list(boxes1.shape)}, got {list(boxes2.shape)}"
            ) from None
        boxes1 = boxes1.expand(*leading, *boxes1.shape[-2:])
        boxes2 = boxes2.expand(*leading, *boxes2.shape[-2:])
    pairs: Tensor
    if not boxes1.is_floating_point():
        pairs = _box_iou(boxes1.double(), boxes2.double(), overlap, eps)
        return pairs.to(torch.get_default_dtype())
    pairs = _box_iou(boxes1, boxes2, overlap, eps)
    return pairs


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: [..., N, 4], in any one unit; floating, or integers, which are taken exactly.
        boxes2: [..., M, 4] of the same dtype, device and unit; the leading dimensions broadcast.
        fmt: How both are written: "xyxy", "xywh" or "cxcywh".

    Returns:
        [..., N, M] in float32, or float64 for float64 (the default dtype for integers), from an
        arithmetic in that dtype. 0 where the union is 0 (two boxes without any area), NaN where a
        coordinate is NaN or both areas are infinite. A box with x2 < x1 has a negative area and
        overlaps nothing. Nothing of the size of the result is made beside it.

    Raises:
        TypeError: Not tensors, a dtype that is no number, or dtypes differ.
        ValueError: Not [..., N, 4], leading dimensions that do not broadcast, different devices, or
            an unknown format.

    Differentiable twice in both arguments, finite for all finite boxes: where two edges tie, half
    of the gradient goes to each, as in torch; a pair without a union has none. Source: the Jaccard
    index; for boxes, the overlap criterion of PASCAL VOC (Everingham et al., IJCV 2010, section
    4.2).
    """
    op = "box_iou"
    check_choice(op, "fmt", fmt, _FORMATS)
    if fmt != "xyxy":
        _check_pair(op, boxes1, boxes2)
        # The corners of 16-bit boxes and the centres of integers need more bits.
        dtype = torch.float64 if not boxes1.is_floating_point() else torch.float32
        dtype = torch.promote_types(boxes1.dtype, dtype)
        a, b = (box_convert(boxes.to(dtype), fmt, "xyxy") for boxes in (boxes1, boxes2))
        iou = _pairwise(op, "iou", a, b)
        return iou if boxes1.is_floating_point() else iou.to(torch.get_default_dtype())
    return _pairwise(op, "iou", boxes1, boxes2)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of every pair of boxes: IoU less the empty share of the enclosing box.

    With the union U and the area C of the smallest box around both: IoU - (C - U) / C, in (-1, 1].

    Args:
        boxes1: [..., N, 4] xyxy, in any one unit; floating, or integers, which are taken exactly.
        boxes2: [..., M, 4] of the same dtype, device and unit; the leading dimensions broadcast.

    Returns:
        [..., N, M] as :func:`box_iou`. A quotient whose denominator is 0 counts as 0: two equal
        points give 0, two points of which neither coordinate is equal give -1. NaN where a
        coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, or dtypes differ.
        ValueError: Not [..., N, 4], leading dimensions that do not broadcast, or different devices.

    Differentiable twice in both arguments, as :func:`box_iou`. Source: Rezatofighi et al.,
    Generalized Intersection over Union (arXiv:1902.09630), algorithm 1.
    """
    return _pairwise("generalized_box_iou", "generalized", boxes1, boxes2)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Distance IoU of every pair of boxes: IoU less the distance of the centres.

    With the distance d of the centres and the diagonal c of the smallest box around both:
    IoU - d^2 / (c^2 + eps), in (-1, 1].

    Args:
        boxes1: [..., N, 4] xyxy, in any one unit; floating, or integers, which are taken exactly.
        boxes2: [..., M, 4] of the same dtype, device and unit; the leading dimensions broadcast.
        eps: Added to the squared diagonal; at least 0.

    Returns:
        [..., N, M] as :func:`box_iou`. A quotient whose denominator is 0 counts as 0. NaN where a
        coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., N, 4], leading dimensions that do not broadcast, different devices, or
            a negative eps.

    Differentiable twice in both arguments, as :func:`box_iou`. Source: Zheng et al., Distance-IoU
    Loss (arXiv:1911.08287), equation 6.
    """
    op = "distance_box_iou"
    check_not_negative(op, "eps", eps)
    return _pairwise(op, "distance", boxes1, boxes2, eps)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of every pair of boxes: distance IoU less the unlikeness of their aspects.

    The distance IoU less alpha v, with v = (2 / pi (atan(w1 / h1) - atan(w2 / h2)))^2 and
    alpha = v / (1 - IoU + v + eps), which is a constant for the gradient, as in the paper.

    Args:
        boxes1: [..., N, 4] xyxy, in any one unit; floating, or integers, which are taken exactly.
        boxes2: [..., M, 4] of the same dtype, device and unit; the leading dimensions broadcast.
        eps: Added to the squared diagonal and to the denominator of alpha; at least 0.

    Returns:
        [..., N, M] as :func:`box_iou`. A quotient whose denominator is 0 counts as 0, and a box
        without width has the angle 0. NaN where a coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., N, 4], leading dimensions that do not broadcast, different devices, or
            a negative eps.

    Differentiable twice in both arguments, as :func:`box_iou`. Source: Zheng et al., Distance-IoU
    Loss (arXiv:1911.08287), equations 8 to 11.
    """
    op = "complete_box_iou"
    check_not_negative(op, "eps", eps)
    return _pairwise(op, "complete", boxes1, boxes2, eps)
