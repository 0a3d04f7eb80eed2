# SPDX-License-Identifier: Apache-2.0
"""Position-sensitive RoI pooling and RoI align: each bin has channels of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pydet.ops._checks import check_integer, check_sides
from pydet.ops._library import define
from pydet.ops._rois import (
    check_feature_map,
    check_rois,
    check_spatial_scale,
    empty_map,
    is_channels_last,
)

# Native ops take the settings as their last arguments, in this order.
_SETTINGS = (
    "float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt sampling_ratio, "
    "bool align"
)
_NO_GRADIENTS = (None,) * 5


def _fake(input: Tensor, rois: Tensor, _: float, height: int, width: int, *__: Any) -> Tensor:
    shape = (rois.shape[0], input.shape[1] // (height * width), height, width)
    return empty_map(input, shape, is_channels_last(input))


def _fake_backward(
    grad_out: Tensor,
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    channels_last: bool,
    *_: Any,
) -> Tensor:
    channels = grad_out.shape[1] * grad_out.shape[2] * grad_out.shape[3]
    return empty_map(grad_out, (batch, channels, height, width), channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.settings = inputs
    ctx.sizes = (input.shape[0], input.shape[2], input.shape[3], is_channels_last(input))
    ctx.save_for_backward(rois)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    return (_ps_roi_backward(grad_out, rois, *ctx.sizes, *ctx.settings), None, *_NO_GRADIENTS)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, _, _, _, _, *ctx.settings = inputs
    ctx.save_for_backward(rois)


def _backward_backward(ctx: Any, grad_grad_input: Tensor) -> tuple[Any, ...]:
    """The gradient is linear in grad_out: its derivative is the forward pass itself."""
    (rois,) = ctx.saved_tensors
    grad_grad_out = _ps_roi(grad_grad_input, rois, *ctx.settings)
    return (grad_grad_out, None, None, None, None, None, *_NO_GRADIENTS)


_ps_roi_backward = define(
    "ps_roi_backward(Tensor grad_out, Tensor rois, SymInt batch, SymInt height, SymInt width, "
    f"bool channels_last, {_SETTINGS}) -> Tensor",
    fake=_fake_backward,
    backward=_backward_backward,
    save=_save_backward,
)

_ps_roi = define(
    f"ps_roi(Tensor input, Tensor rois, {_SETTINGS}) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
)


def _ps_roi_of(
    op: str,
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    align: bool,
) -> Tensor:
    check_feature_map(op, "input", input)
    rois = check_rois(op, "boxes", boxes, input)
    height, width = check_sides(op, "output_size", output_size, 1)
    scale = check_spatial_scale(op, spatial_scale)
    check_integer(op, "sampling_ratio", sampling_ratio)
    if input.shape[1] % (height * width) != 0:
        raise ValueError(
            f"{op}: input must have a multiple of {height} x {width} channels, "
            f"got {list(input.shape)}"
        )
    result: Tensor = _ps_roi(input, rois, scale, height, width, sampling_ratio, align)
    return result


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean of the cells in each bin of each region, each bin on channels of its own.

    Bin (ph, pw) of result channel c is pooled from channel (c h + ph) w + pw. The corners of a
    box, times ``spatial_scale``, are rounded to the nearest cells (halves away from 0); the cell of
    the second corner does not belong to the region, which has at least one. A region of n cells a
    side is cut into h bins; bin p has the cells from floor(p n / h) up to, not with,
    ceil((p + 1) n / h).

    Args:
        input: [B, C, H, W] feature maps, C a multiple of h w; floating, of any strides.
        boxes: [R, 5] with the image's index in column 0 and xyxy in pixels, or a list of [r, 4],
            one for each image; floating, of any dtype.
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel: 1 / stride of the map.

    Returns:
        [R, C / (h w), h, w] in the dtype of ``input``, under autocast too, from sums in float32 or
        better; channels_last if ``input`` is. The last row and the last column of a map belong to
        no bin, as in torchvision. A bin without a cell is 0. All bins are 0 for a box with a
        coordinate that is not finite and for an index that is not in [0, B).

    Raises:
        TypeError: Not tensors, or of the wrong kind.
        ValueError: Wrong shapes, more boxes than images in the list, different devices,
            ``output_size`` or ``spatial_scale`` not positive.

    Differentiable in ``input``, any number of times; on a GPU with the same bits run to run only
    with ``torch.use_deterministic_algorithms(True)``, which takes a slower kernel. Source: Dai et
    al., R-FCN (arXiv:1605.06409), section 2, equation 1.
    """
    return _ps_roi_of("ps_roi_pool", input, boxes, output_size, spatial_scale, 1, False)


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """The mean of bilinear samples in each bin of each region, each bin on channels of its own.

    Bin (ph, pw) of result channel c is sampled from channel (c h + ph) w + pw, at the places of
    :func:`roi_align` with ``aligned=True``.

    Args:
        input: [B, C, H, W] feature maps, C a multiple of h w; floating, of any strides.
        boxes: [R, 5] with the image's index in column 0 and xyxy in pixels, or a list of [r, 4],
            one for each image; floating, of any dtype.
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel: 1 / stride of the map.
        sampling_ratio: Samples of a bin along each axis. Where it is not positive, one a cell:
            ceil(size / h), so large boxes take more.

    Returns:
        [R, C / (h w), h, w] in the dtype of ``input``, under autocast too, from sums in float32 or
        better; channels_last if ``input`` is. A sample more than one cell outside of the map
        counts as 0, and a cell of weight 0 is not looked at. All bins are 0 for a box with a
        coordinate that is not finite, for an index that is not in [0, B), and, with adaptive
        sampling, for a box without an area (torchvision: NaN) or that reaches more than 2^24
        cells.

    Raises:
        TypeError: Not tensors, or of the wrong kind.
        ValueError: Wrong shapes, more boxes than images in the list, different devices,
            ``output_size`` or ``spatial_scale`` not positive.

    Differentiable in ``input``, any number of times; on a GPU with the same bits run to run only
    with ``torch.use_deterministic_algorithms(True)``, which takes a slower kernel. Source: Li et
    al., Light-Head R-CNN (arXiv:1711.07264), section 3.2, with the sampling of Mask R-CNN.
    """
    align = True
    return _ps_roi_of(
        "ps_roi_align", input, boxes, output_size, spatial_scale, sampling_ratio, align
    )


class PSRoIPool(nn.Module):
    """:func:`ps_roi_pool` with its settings kept.

    Args:
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel.
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """``input`` [B, C, H, W] and boxes -> [R, C / (h w), h, w]."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class PSRoIAlign(nn.Module):
    """:func:`ps_roi_align` with its settings kept.

    Args:
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel.
        sampling_ratio: Samples of a bin along each axis; not positive: one a cell.
    """

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """``input`` [B, C, H, W] and boxes -> [R, C / (h w), h, w]."""
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )
