# SPDX-License-Identifier: Apache-2.0
"""What is done to each box alone: area, format, clipping, removal of small ones; masks to boxes."""

import math
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    INTEGERS,
    NUMERIC,
    check_choice,
    check_dtype,
    check_number,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define
from pydet.ops._rotated import NUMBERS, convert_rotated

_FORMATS = ("xyxy", "xywh", "cxcywh")


def _area_dtype(dtype: torch.dtype) -> torch.dtype:
    """Wide enough for a product: that of a box in float16 or int16 seldom fits there."""
    if dtype.is_floating_point:
        return torch.float64 if dtype == torch.float64 else torch.float32
    return torch.int64 if dtype == torch.int64 else torch.int32


# --- registration ------------------------------------------------------------------------------


def _save_area(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.fmt = inputs
    ctx.save_for_backward(*tensors)


def _double_backward_area(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
    """An area is bilinear in the sides: the gradient along v is that of v with the sides."""
    grad_area, boxes = ctx.saved_tensors
    wide = boxes.to(grad_area.dtype)
    slopes = _box_area_backward(torch.ones_like(grad_area), wide, ctx.fmt)
    return (slopes * v).sum(-1), _box_area_backward(grad_area, v, ctx.fmt), None


_box_area_backward: Any = define(
    "box_area_backward(Tensor grad_area, Tensor boxes, str fmt) -> Tensor",
    fake=lambda grad_area, boxes, fmt: boxes.new_empty(boxes.shape),
    backward=_double_backward_area,
    save=_save_area,
)


_box_area = define(
    "box_area(Tensor boxes, str fmt) -> Tensor",
    fake=lambda boxes, fmt: boxes.new_empty(boxes.shape[:-1], dtype=_area_dtype(boxes.dtype)),
    backward=lambda ctx, grad: (_box_area_backward(grad, *ctx.saved_tensors, ctx.fmt), None),
    save=_save_area,
)


def _save_formats(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.formats = inputs[1:]


_box_convert_backward: Any = define(
    "box_convert_backward(Tensor grad_converted, str in_fmt, str out_fmt) -> Tensor",
    fake=lambda grad_converted, *_: grad_converted.new_empty(grad_converted.shape),
    # Conversions are linear: the gradient of the gradient is converted itself.
    backward=lambda ctx, v: (_box_convert(v, *ctx.formats), None, None),
    save=_save_formats,
)

_box_convert: Any = define(
    "box_convert(Tensor boxes, str in_fmt, str out_fmt) -> Tensor",
    fake=lambda boxes, *_: boxes.new_empty(boxes.shape),
    backward=lambda ctx, grad: (_box_convert_backward(grad, *ctx.formats), None, None),
    save=_save_formats,
)


def _save_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, height, width = inputs
    ctx.size = height, width
    ctx.save_for_backward(tensors[-1])


_clip_boxes_to_image_backward: Any = define(
    "clip_boxes_to_image_backward(Tensor grad_clipped, Tensor boxes, Scalar height, Scalar width)"
    " -> Tensor",
    fake=lambda grad_clipped, boxes, *_: boxes.new_empty(boxes.shape),
    # It passes or holds back each number, so its own gradient does the same.
    backward=lambda ctx, v: (
        _clip_boxes_to_image_backward(v, *ctx.saved_tensors, *ctx.size),
        None,
        None,
        None,
    ),
    save=_save_size,
)

_clip_boxes_to_image = define(
    "clip_boxes_to_image(Tensor boxes, Scalar height, Scalar width) -> Tensor",
    fake=lambda boxes, *_: boxes.new_empty(boxes.shape),
    backward=lambda ctx, grad: (
        _clip_boxes_to_image_backward(grad, *ctx.saved_tensors, *ctx.size),
        None,
        None,
    ),
    save=_save_size,
)

_large_boxes = define(
    "large_boxes(Tensor boxes, float min_size) -> Tensor",
    fake=lambda boxes, min_size: boxes.new_empty(boxes.shape[:-1], dtype=torch.bool),
    differentiable=False,
)

_masks_to_boxes = define(
    "masks_to_boxes(Tensor masks) -> Tensor",
    fake=lambda masks: masks.new_empty((masks.shape[0], 4), dtype=torch.float32),
    differentiable=False,
)

# The dtypes of masks that are read as they are; others become bool first.
_MASKS = (*FLOATING, *INTEGERS, torch.bool)


# --- functions ---------------------------------------------------------------------------------


def _check_rows(op: str, boxes: Any) -> None:
    check_tensor(op, "boxes", boxes)
    check_dtype(op, "boxes", boxes, NUMERIC)
    check_shape(op, "boxes", boxes, "[..., 4]", lambda s: len(s) > 0 and s[-1] == 4)


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Area of each box.

    Args:
        boxes: [..., 4], floating or integers.
        fmt: How the boxes are written: "xyxy", "xywh" or "cxcywh".

    Returns:
        [...], the product of the sides, with its sign: a box with x2 < x1 has a negative area. In
        float32 for 16-bit floating boxes, in int32 for integers of at most 32 bits (which wrap
        around), else in the dtype of the boxes. NaN where a side is.

    Raises:
        TypeError: Not a tensor, or a dtype that is no number.
        ValueError: Not [..., 4], or an unknown format.

    Differentiable any number of times.
    """
    _check_rows("box_area", boxes)
    check_choice("box_area", "fmt", fmt, _FORMATS)
    area: Tensor = _box_area(boxes, fmt)
    return area


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Boxes written in another format.

    Args:
        boxes: [..., 4], floating or integers; [..., 5] or [..., 8] for rotated formats.
        in_fmt: How they are written: "xyxy" (two corners), "xywh" (a corner, width and height) or
            "cxcywh" (centre, width and height). Rotated by r degrees, counter-clockwise: "xywhr"
            and "cxcywhr" [..., 5], and "xyxyxyxy" [..., 8], the corners clockwise from the first.
        out_fmt: How they shall be written: of the same kind, upright or rotated.

    Returns:
        A new tensor of the same dtype; upright integers stay integers unless one of the formats has
        a centre, which makes them the default dtype; rotated ones are rounded. The arithmetic is
        torchvision's, by way of the corners, in float32 or better and rounded once. A NaN or
        infinity stays on its axis.

    Raises:
        TypeError: Not a tensor, or a dtype that is no number.
        ValueError: Not [..., 4] (5, 8), an unknown format, or one upright and one rotated format.

    Differentiable any number of times.
    """
    op = "box_convert"
    check_choice(op, "in_fmt", in_fmt, (*_FORMATS, *NUMBERS))
    if in_fmt in NUMBERS:
        count = NUMBERS[in_fmt]
        check_tensor(op, "boxes", boxes)
        check_dtype(op, "boxes", boxes, NUMERIC)
        wanted = f"[..., {count}] for {in_fmt}"
        check_shape(op, "boxes", boxes, wanted, lambda s: len(s) > 0 and s[-1] == count)
        check_choice(op, "out_fmt", out_fmt, tuple(NUMBERS))
        return convert_rotated(boxes, in_fmt, out_fmt)
    _check_rows(op, boxes)
    check_choice(op, "out_fmt", out_fmt, _FORMATS)
    if in_fmt == out_fmt:
        in_fmt = out_fmt = "xyxy"  # a copy, whatever the numbers mean
    converted: Tensor
    if boxes.is_floating_point() or "cxcywh" not in (in_fmt, out_fmt):
        converted = _box_convert(boxes, in_fmt, out_fmt)
        return converted
    converted = _box_convert(boxes.double(), in_fmt, out_fmt)
    return converted.to(torch.get_default_dtype())


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes moved into the image, coordinate by coordinate.

    Args:
        boxes: [..., 4] xyxy in pixels, floating or integers.
        size: (height, width) of the image in pixels, at least 0; also as a tensor [2] on the CPU.

    Returns:
        [..., 4], x held in [0, width] and y in [0, height], in the dtype of the boxes (integer
        boxes take the default dtype where the size is not of integers). A NaN stays NaN; a box that
        is wholly outside loses its area.

    Raises:
        TypeError: Not a tensor, a dtype that is no number, or a size that is not two numbers.
        ValueError: Not [..., 4], or a negative size.

    Differentiable any number of times: the gradient passes where the coordinate was inside, the
    ends included.
    """
    op = "clip_boxes_to_image"
    _check_rows(op, boxes)
    numbers: Any = size
    if isinstance(numbers, Tensor) and numbers.device.type == "cpu":
        numbers = numbers.tolist()
    if not isinstance(numbers, tuple | list) or len(numbers) != 2:
        raise TypeError(f"{op}: size must be two numbers (height, width), got {size!r}")
    for number in numbers:
        if not isinstance(number, torch.SymInt):  # a size that is traced is a number too
            check_number(op, "size", number, "of numbers of at least 0", lambda n: n >= 0)
    numbers = [n.item() if isinstance(n, Tensor) else n for n in numbers]
    if not boxes.is_floating_point() and any(isinstance(number, float) for number in numbers):
        boxes = boxes.to(torch.get_default_dtype())
    clipped: Tensor = _clip_boxes_to_image(boxes, *numbers)
    return clipped


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Indices of the boxes that are large enough.

    Args:
        boxes: [N, 4] xyxy, floating or integers; with more dimensions, [N, ..., 4].
        min_size: Least width and height, in the unit of the boxes.

    Returns:
        int64, ascending: the boxes of which neither side is shorter than min_size; a side that is
        NaN counts as shorter. With more dimensions the index along the first, once for each box, as
        in torchvision. Sides are subtracted in float32 or better. Reads the number of boxes back
        from the device.

    Raises:
        TypeError: Not a tensor, a dtype that is no number, or a min_size that is no number.
        ValueError: Not [N, ..., 4], or a min_size of NaN.
    """
    op = "remove_small_boxes"
    _check_rows(op, boxes)
    check_shape(op, "boxes", boxes, "[N, ..., 4]", lambda shape: len(shape) > 1)
    check_number(op, "min_size", min_size, "a number", lambda size: size <= math.inf)
    return torch.where(_large_boxes(boxes, min_size))[0]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """The box around each mask.

    Args:
        masks: [N, H, W] of any dtype; every number but 0 belongs to the object, NaN too.

    Returns:
        [N, 4] float32: x1, y1, x2, y2, the first and last column and row that hold an element of
        the object, in pixels, the last one included: an object of one pixel has x1 == x2. All 0 for
        a mask without an object, so also for H or W of 0. Without a gradient.

    Raises:
        TypeError: Not a tensor.
        ValueError: Not [N, H, W].
    """
    op = "masks_to_boxes"
    check_tensor(op, "masks", masks)
    check_shape(op, "masks", masks, "[N, H, W]", lambda shape: len(shape) == 3)
    boxes: Tensor = _masks_to_boxes(masks.detach() if masks.dtype in _MASKS else masks.bool())
    return boxes
