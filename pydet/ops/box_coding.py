# SPDX-License-Identifier: Apache-2.0
"""Boxes as deltas relative to anchors, and back."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_dtype,
    check_number,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define

_encode_boxes_double_backward = define(
    "encode_boxes_double_backward(Tensor v, Tensor v_anchors, Tensor grad_deltas, Tensor boxes, "
    "Tensor anchors, float[] weights) -> (Tensor, Tensor, Tensor)",
    fake=lambda v, v_anchors, grad_deltas, boxes, anchors, weights: (
        boxes.new_empty(boxes.shape),
        boxes.new_empty(boxes.shape),
        anchors.new_empty(anchors.shape),
    ),
)


def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.weights = inputs
    ctx.save_for_backward(*tensors)


_encode_boxes_backward = define(
    "encode_boxes_backward(Tensor grad_deltas, Tensor boxes, Tensor anchors, float[] weights) "
    "-> (Tensor, Tensor)",
    fake=lambda grad_deltas, boxes, anchors, weights: (
        boxes.new_empty(boxes.shape),
        anchors.new_empty(anchors.shape),
    ),
    backward=lambda ctx, v, v_anchors: (
        *_encode_boxes_double_backward(v, v_anchors, *ctx.saved_tensors, ctx.weights),
        None,
    ),
    save=_save_encode,
)

_encode_boxes = define(
    "encode_boxes(Tensor boxes, Tensor anchors, float[] weights) -> Tensor",
    fake=lambda boxes, anchors, weights: boxes.new_empty(boxes.shape),
    backward=lambda ctx, grad_deltas: (
        *_encode_boxes_backward(grad_deltas, *ctx.saved_tensors, ctx.weights),
        None,
    ),
    save=_save_encode,
    autocast=torch.float32,
)

_DECODE = "float[] weights, float scale_clamp, SymInt[]? image_size, Tensor? image_sizes"

_decode_boxes_double_backward = define(
    "decode_boxes_double_backward(Tensor v, Tensor v_anchors, Tensor grad_boxes, Tensor deltas, "
    f"Tensor anchors, {_DECODE}) -> (Tensor, Tensor, Tensor)",
    fake=lambda v, v_anchors, grad_boxes, deltas, anchors, *_: (
        deltas.new_empty(deltas.shape),
        deltas.new_empty(deltas.shape),
        anchors.new_empty(anchors.shape),
    ),
)


def _save_decode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, weights, scale_clamp, image_size, image_sizes = inputs
    ctx.settings = weights, scale_clamp, image_size
    ctx.save_for_backward(*tensors, image_sizes)


def _double_backward_decode(ctx: Any, v: Tensor, v_anchors: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, image_sizes = ctx.saved_tensors
    grads = _decode_boxes_double_backward(v, v_anchors, *tensors, *ctx.settings, image_sizes)
    return (*grads, None, None, None, None)


_decode_boxes_backward = define(
    f"decode_boxes_backward(Tensor grad_boxes, Tensor deltas, Tensor anchors, {_DECODE}) "
    "-> (Tensor, Tensor)",
    fake=lambda grad_boxes, deltas, anchors, *_: (
        deltas.new_empty(deltas.shape),
        anchors.new_empty(anchors.shape),
    ),
    backward=_double_backward_decode,
    save=_save_decode,
)


def _backward_decode(ctx: Any, grad_boxes: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, image_sizes = ctx.saved_tensors
    grads = _decode_boxes_backward(grad_boxes, *tensors, *ctx.settings, image_sizes)
    return (*grads, None, None, None, None)


_decode_boxes = define(
    f"decode_boxes(Tensor deltas, Tensor anchors, {_DECODE}) -> Tensor",
    fake=lambda deltas, *_: deltas.new_empty(deltas.shape),
    backward=_backward_decode,
    save=_save_decode,
    autocast=torch.float32,
)


def _check_pair(op: str, name: str, boxes: Any, anchors: Any) -> None:
    for argument, value in ((name, boxes), ("anchors", anchors)):
        check_tensor(op, argument, value)
        check_dtype(op, argument, value, FLOATING)
        check_shape(op, argument, value, "[..., 4]", lambda s: len(s) >= 1 and s[-1] == 4)
    check_same_dtype(op, "anchors", anchors, name, boxes)
    check_same_device(op, "anchors", anchors, name, boxes)


def _check_weights(op: str, weights: Any) -> list[float]:
    if not isinstance(weights, Sequence) or len(weights) != 4:
        raise ValueError(f"{op}: weights must be four numbers (x, y, width, height), got {weights}")
    for weight in weights:
        check_number(op, "weights", weight, "positive and finite", lambda x: 0 < x < math.inf)
    return [float(weight) for weight in weights]


def encode_boxes(
    boxes: Tensor,
    anchors: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move and stretch each anchor into its box.

    With centres (cx, cy), sizes (w, h) and weights (wx, wy, ww, wh)::

        dx = wx * (cx_box - cx_anchor) / w_anchor      dw = ww * log(w_box / w_anchor)
        dy = wy * (cy_box - cy_anchor) / h_anchor      dh = wh * log(h_box / h_anchor)

    Example: the anchor (0, 0, 4, 4) and the box (1, 0, 5, 4) give (0.25, 0, 0, 0).

    Args:
        boxes: [..., 4] xyxy, floating.
        anchors: [..., 4] xyxy of the same dtype, device and unit, of a shape that broadcasts with
            that of the boxes. Anchors [A, 4] for boxes [B, A, 4] are read as they are, not copied
            for each image.
        weights: Factors of the four deltas, positive; the inverse of SSD's "variances".

    Returns:
        [..., 4] in the dtype of the boxes, from an arithmetic in float32 or better (float32 under
        autocast). All four are 0 for a pair without deltas: one of the two boxes has no positive
        and finite width and height, or a NaN; or the boxes are so unlike that a delta is not
        finite. (The formula alone gives infinities and NaN there, which a mask after the loss does
        not remove from the gradient.)

    Raises:
        TypeError: Not tensors or numbers, or dtypes that differ or are not floating.
        ValueError: Not [..., 4], shapes that do not broadcast, different devices, or weights that
            are not four positive numbers.

    Differentiable twice in boxes and anchors; the gradient of a pair without deltas is 0. Source:
    R-CNN (Girshick et al., 2014), appendix C; the weights are those of Fast R-CNN's code.
    """
    op = "encode_boxes"
    _check_pair(op, "boxes", boxes, anchors)
    numbers = _check_weights(op, weights)
    if boxes.shape[boxes.dim() - anchors.dim() :] != anchors.shape:
        try:
            shape = torch.broadcast_shapes(boxes.shape, anchors.shape)
        except RuntimeError:
            raise ValueError(
                f"{op}: anchors must have a shape that broadcasts with that of boxes "
                f"{list(boxes.shape)}, got {list(anchors.shape)}"
            ) from None
        boxes, anchors = boxes.expand(shape), anchors.expand(shape)
    deltas: Tensor = _encode_boxes(boxes, anchors, numbers)
    return deltas


def decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    *,
    scale_clamp: float = math.log(1000 / 16),
    image_sizes: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Boxes that the deltas (dx, dy, dw, dh) make of the anchors: the inverse of `encode_boxes`.

    Args:
        deltas: [..., A, 4], floating.
        anchors: [A, 4] xyxy, which serve all leading dimensions, or of the shape of the deltas;
            same dtype and device.
        weights: Those that the deltas were encoded with.
        scale_clamp: Upper limit of dw / ww and dh / wh, before the exponential: a box is at most
            exp(scale_clamp) times as wide and high as its anchor. Infinity for no limit.
        image_sizes: None, or (height, width) of the image in the unit of the anchors, to which all
            boxes are clipped; or, for deltas [B, A, 4], the sizes of the B images as a tensor
            [B, 2] or a sequence of pairs. On a GPU a tensor there spares a copy from the host.

    Returns:
        Boxes xyxy of the shape and dtype of the deltas, from an arithmetic in float32 or better
        (float32 under autocast). A NaN in an anchor or in a delta gives NaN coordinates along its
        axis. No box is inside out unless its anchor is.

    Raises:
        TypeError: Not tensors or numbers, or dtypes that differ or are not floating.
        ValueError: Shapes or devices that do not fit, weights that are not four positive numbers,
            a NaN scale_clamp.

    Differentiable twice in deltas and anchors; beyond scale_clamp and beyond the image's border the
    gradient is 0, as with torch.clamp. Source: as :func:`encode_boxes`; the clamp of log(1000 / 16)
    is that of Detectron and torchvision.
    """
    op = "decode_boxes"
    _check_pair(op, "deltas", deltas, anchors)
    numbers = _check_weights(op, weights)
    check_number(op, "scale_clamp", scale_clamp, "a number", lambda x: -math.inf <= x <= math.inf)
    leading = deltas.dim() - anchors.dim()
    if leading < 0 or deltas.shape[leading:] != anchors.shape:
        raise ValueError(
            f"{op}: anchors must have the last dimensions of deltas {list(deltas.shape)}, "
            f"got {list(anchors.shape)}"
        )
    image_size, size_tensor = _image_sizes(op, deltas, image_sizes)
    boxes: Tensor = _decode_boxes(deltas, anchors, numbers, scale_clamp, image_size, size_tensor)
    return boxes


def _image_sizes(
    op: str, deltas: Tensor, image_sizes: Any
) -> tuple[list[int] | None, Tensor | None]:
    """One size for all boxes, or a tensor [B, 2] of the arithmetic's dtype, or neither."""
    if image_sizes is None:
        return None, None
    if not isinstance(image_sizes, Tensor):
        if not isinstance(image_sizes, Sequence):
            raise TypeError(
                f"{op}: image_sizes must be (height, width) or one such pair an image, "
                f"got {type(image_sizes).__name__}"
            )
        if len(image_sizes) == 2 and not isinstance(image_sizes[0], Sequence):
            for number in image_sizes:
                if not isinstance(number, int | torch.SymInt):
                    raise TypeError(
                        f"{op}: image_sizes must be whole numbers, got {type(number).__name__}"
                    )
            return [image_sizes[0], image_sizes[1]], None
        if not all(isinstance(size, Sequence) and len(size) == 2 for size in image_sizes):
            raise ValueError(
                f"{op}: image_sizes must be (height, width) or one such pair an image, "
                f"got {image_sizes!r}"
            )
        image_sizes = torch.tensor(image_sizes, device=deltas.device).reshape(-1, 2)
    wanted = (*deltas.shape[:1], 2)
    check_shape(
        op,
        "image_sizes",
        image_sizes,
        f"[B, 2] for deltas [B, A, 4] (here {list(deltas.shape)})",
        lambda s: deltas.dim() == 3 and tuple(s) == wanted,
    )
    check_same_device(op, "image_sizes", image_sizes, "deltas", deltas)
    wide = deltas.dtype == torch.float64
    return None, image_sizes.to(torch.float64 if wide else torch.float32)
