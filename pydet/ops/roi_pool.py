# SPDX-License-Identifier: Apache-2.0
"""RoI max pooling."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pydet.ops._checks import check_sides
from pydet.ops._library import define
from pydet.ops._rois import (
    check_feature_map,
    check_rois,
    check_spatial_scale,
    empty_map,
    is_channels_last,
)

# Native ops take the settings as their last arguments, in this order.
_SETTINGS = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_NO_GRADIENTS = (None, None, None)


def _fake(input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int) -> Tensor:
    shape = (rois.shape[0], input.shape[1], height, width)
    return empty_map(input, shape, is_channels_last(input))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, *tensors, ctx.scale, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*(tensors if len(tensors) == 2 else (first, *tensors)))


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    input, rois = ctx.saved_tensors
    settings = (ctx.scale, ctx.height, ctx.width)
    return (_roi_pool_backward(grad_out, input, rois, *settings), None, *_NO_GRADIENTS)


def _backward_backward(ctx: Any, grad_grad_input: Tensor) -> tuple[Any, ...]:
    """The gradient is linear in grad_out: cells of grad_grad_input, where the largest ones were."""
    input, rois = ctx.saved_tensors
    settings = (ctx.scale, ctx.height, ctx.width)
    grad_grad_out = _roi_pool_gather(grad_grad_input, input, rois, *settings)
    return (grad_grad_out, None, None, *_NO_GRADIENTS)


def _gather_backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    return (_backward(ctx, grad_out)[0], None, None, *_NO_GRADIENTS)


_roi_pool_gather = define(
    f"roi_pool_gather(Tensor values, Tensor input, Tensor rois, {_SETTINGS}) -> Tensor",
    fake=lambda values, *arguments: _fake(*arguments),
    backward=_gather_backward,
    save=_save,
)

_roi_pool_backward = define(
    f"roi_pool_backward(Tensor grad_out, Tensor input, Tensor rois, {_SETTINGS}) -> Tensor",
    fake=lambda grad_out, input, *_: empty_map(input, input.shape, is_channels_last(input)),
    backward=_backward_backward,
    save=_save,
)

_roi_pool = define(
    f"roi_pool(Tensor input, Tensor rois, {_SETTINGS}) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
)


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The largest cell in each bin of each region of interest.

    The corners of a box, times ``spatial_scale``, are rounded to the nearest cells (halves away
    from 0); the cell of the second corner belongs to the region, which so has at least one. A
    region of n cells a side is cut into h bins; bin p has the cells from floor(p n / h) up to, not
    with, ceil((p + 1) n / h), so neighbours may share one.

    Args:
        input: [B, C, H, W] feature maps; floating, of any strides.
        boxes: [R, 5] with the image's index in column 0 and xyxy in pixels, or a list of [r, 4],
            one for each image; floating, of any dtype.
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel: 1 / stride of the map.

    Returns:
        [R, C, h, w] in the dtype of ``input``, under autocast too; channels_last if ``input`` is.
        A bin without a cell on the map is 0. All bins are 0 for a box with a coordinate that is
        not finite and for an index that is not in [0, B) (so -1 may mark padding; a GPU cannot
        raise without waiting). An inverted box has one cell; a corner farther than 2^31 cells is
        taken as that far. Cells that are NaN are passed over; a bin that has no others, or only
        -infinity, is -infinity.

    Raises:
        TypeError: Not tensors, or of the wrong kind.
        ValueError: Wrong shapes, more boxes than images in the list, different devices,
            ``output_size`` or ``spatial_scale`` not positive.

    Differentiable in ``input``, any number of times: the gradient of a bin goes to its largest
    cell, of equal ones to the first in row-major order, and nowhere where the bin is empty or
    -infinity. Nothing but the arguments is kept for it. On the CPU the gradients have the same bits
    whatever the number of threads; on a GPU they have them run to run with
    ``torch.use_deterministic_algorithms(True)``, which takes a slower kernel. Source: Girshick,
    Fast R-CNN (arXiv:1504.08083), section 2.1; the rounding is that of its published code.
    """
    check_feature_map("roi_pool", "input", input)
    rois = check_rois("roi_pool", "boxes", boxes, input)
    height, width = check_sides("roi_pool", "output_size", output_size, 1)
    scale = check_spatial_scale("roi_pool", spatial_scale)
    result: Tensor = _roi_pool(input, rois, scale, height, width)
    return result


class RoIPool(nn.Module):
    """:func:`roi_pool` with its settings kept.

    Args:
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel.
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """``input`` [B, C, H, W] and boxes as :func:`roi_pool` takes them -> [R, C, h, w]."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
