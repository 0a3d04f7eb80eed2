# SPDX-License-Identifier: Apache-2.0
"""Regression losses by the overlap of paired boxes: IoU, generalised, distance and complete."""

import math
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    NUMERIC,
    check_choice,
    check_dtype,
    check_not_negative,
    check_number,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define

_REDUCTIONS = ("none", "mean", "sum")


# --- registration ------------------------------------------------------------------------------
# Losses are float32 for 16-bit boxes; gradients have the dtype of what they are of.

_box_loss_double_backward = define(
    "box_loss_double_backward(Tensor v1, Tensor v2, Tensor grad_loss, Tensor boxes1, "
    "Tensor boxes2, str overlap, str reduction, float eps) -> (Tensor, Tensor, Tensor)",
    fake=lambda v1, v2, grad_loss, boxes1, boxes2, *_: (
        grad_loss.new_empty(grad_loss.shape),
        boxes1.new_empty(boxes1.shape),
        boxes2.new_empty(boxes2.shape),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, overlap, reduction, eps = inputs
    ctx.settings = overlap, reduction, eps
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, v1: Tensor, v2: Tensor) -> tuple[Tensor | None, ...]:
    grads = _box_loss_double_backward(v1, v2, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None)


_box_loss_backward = define(
    "box_loss_backward(Tensor grad_loss, Tensor boxes1, Tensor boxes2, str overlap, "
    "str reduction, float eps) -> (Tensor, Tensor)",
    fake=lambda grad_loss, boxes1, boxes2, *_: (
        boxes1.new_empty(boxes1.shape),
        boxes2.new_empty(boxes2.shape),
    ),
    backward=_double_backward,
    save=_save,
)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    grads = _box_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None)


def _fake(boxes1: Tensor, boxes2: Tensor, overlap: str, reduction: str, eps: float) -> Tensor:
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty(boxes1.shape[:-1] if reduction == "none" else (), dtype=dtype)


_box_loss = define(
    "box_loss(Tensor boxes1, Tensor boxes2, str overlap, str reduction, float eps) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
    autocast=torch.float32,
)


# --- functions ---------------------------------------------------------------------------------


def _loss(op: str, overlap: str, boxes1: Any, boxes2: Any, reduction: str, eps: float) -> Tensor:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_tensor(op, name, boxes)
        check_shape(op, name, boxes, "[..., 4]", lambda s: len(s) >= 1 and s[-1] == 4)
    check_dtype(op, "boxes1", boxes1, NUMERIC)
    check_same_dtype(op, "boxes2", boxes2, "boxes1", boxes1)
    check_same_device(op, "boxes2", boxes2, "boxes1", boxes1)
    check_choice(op, "reduction", reduction, _REDUCTIONS)
    if boxes1.shape != boxes2.shape:
        try:
            boxes1, boxes2 = torch.broadcast_tensors(boxes1, boxes2)
        except RuntimeError:
            raise ValueError(
                f"{op}: boxes2 must have a shape that broadcasts with that of boxes1 "
                f"{list(boxes1.shape)}, got {list(boxes2.shape)}"
            ) from None
    if not boxes1.is_floating_point():
        boxes1, boxes2 = boxes1.float(), boxes2.float()
    loss: Tensor = _box_loss(boxes1, boxes2, overlap, reduction, eps)
    return loss


def iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """The negative logarithm of the IoU of each pair of boxes: -ln IoU.

    The IoU is held at eps from below: boxes that do not overlap have the loss -ln eps (16.1) and no
    gradient, since the IoU alone does not tell how to bring them together.

    Args:
        boxes1: [..., 4] xyxy; floating, or integers, which are taken as float32.
        boxes2: [..., 4] xyxy, paired with boxes1: same dtype, device and unit; shapes broadcast.
        reduction: "none" for the loss of each pair, "mean" or "sum" for one number.
        eps: Least IoU that is told apart from none; above 0.

    Returns:
        [...], or [] where reduced, in float32, or float64 for float64; the mean of no pairs is 0.
        Finite for all finite boxes; two boxes without any area have the IoU 0. NaN where a
        coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., 4], shapes that do not broadcast, different devices, an unknown
            reduction, or an eps that is not above 0.

    Differentiable twice in both arguments. Source: Yu et al., UnitBox (arXiv:1608.01471),
    section 3.1.
    """
    op = "iou_loss"
    check_number(op, "eps", eps, "finite and above 0", lambda x: 0 < x < math.inf)
    return _loss(op, "iou", boxes1, boxes2, reduction, eps)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """One less the generalised IoU of each pair of boxes.

    With the intersection I, the union U and the area C of the smallest box around both:
    1 - I / (U + eps) + (C - U) / (C + eps), in [0, 2).

    Args:
        boxes1: [..., 4] xyxy; floating, or integers, which are taken as float32.
        boxes2: [..., 4] xyxy, paired with boxes1: same dtype, device and unit; shapes broadcast.
        reduction: "none" for the loss of each pair, "mean" or "sum" for one number.
        eps: Added to the areas that are divided by; at least 0. A quotient by 0 counts as 0.

    Returns:
        [...], or [] where reduced, in float32, or float64 for float64; the mean of no pairs is 0.
        Finite for all finite boxes, also without area. NaN where a coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., 4], shapes that do not broadcast, different devices, an unknown
            reduction, or a negative eps.

    Differentiable twice in both arguments: where two edges tie, half of the gradient goes to each.
    Source: Rezatofighi et al., Generalized Intersection over Union (arXiv:1902.09630), algorithm 2.
    """
    op = "generalized_box_iou_loss"
    check_not_negative(op, "eps", eps)
    return _loss(op, "generalized", boxes1, boxes2, reduction, eps)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """One less the distance IoU of each pair of boxes.

    With the distance d of the centres and the diagonal c of the smallest box around both:
    1 - I / (U + eps) + d^2 / (c^2 + eps), in [0, 2).

    Args:
        boxes1: [..., 4] xyxy; floating, or integers, which are taken as float32.
        boxes2: [..., 4] xyxy, paired with boxes1: same dtype, device and unit; shapes broadcast.
        reduction: "none" for the loss of each pair, "mean" or "sum" for one number.
        eps: Added to the union and to the squared diagonal; at least 0. A quotient by 0 is 0.

    Returns:
        [...], or [] where reduced, in float32, or float64 for float64; the mean of no pairs is 0.
        Finite for all finite boxes, also without area. NaN where a coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., 4], shapes that do not broadcast, different devices, an unknown
            reduction, or a negative eps.

    Differentiable twice in both arguments: where two edges tie, half of the gradient goes to each.
    Source: Zheng et al., Distance-IoU Loss (arXiv:1911.08287), equation 7.
    """
    op = "distance_box_iou_loss"
    check_not_negative(op, "eps", eps)
    return _loss(op, "distance", boxes1, boxes2, reduction, eps)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """One less the complete IoU of each pair of boxes: the distance IoU and the aspects.

    The distance IoU loss (with an eps of 1e-7) and alpha v, where
    v = (2 / pi (atan(w1 / h1) - atan(w2 / h2)))^2 and alpha = v / (1 - IoU + v + eps), which is a
    constant for the gradient. A box without width has the angle 0.

    Args:
        boxes1: [..., 4] xyxy; floating, or integers, which are taken as float32.
        boxes2: [..., 4] xyxy, paired with boxes1: same dtype, device and unit; shapes broadcast.
        reduction: "none" for the loss of each pair, "mean" or "sum" for one number.
        eps: Added to the denominator of alpha alone, as in torchvision; at least 0.

    Returns:
        [...], or [] where reduced, in float32, or float64 for float64; the mean of no pairs is 0.
        Finite for all finite boxes, also without area. NaN where a coordinate is NaN.

    Raises:
        TypeError: Not tensors, a dtype that is no number, dtypes differ, or eps is no number.
        ValueError: Not [..., 4], shapes that do not broadcast, different devices, an unknown
            reduction, or a negative eps.

    Differentiable twice in both arguments: where two edges tie, half of the gradient goes to each.
    Source: Zheng et al., Distance-IoU Loss (arXiv:1911.08287), equations 8 to 12.
    """
    op = "complete_box_iou_loss"
    check_not_negative(op, "eps", eps)
    return _loss(op, "complete", boxes1, boxes2, reduction, eps)
