# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, version 1 and, with a mask, version 2.

Letters: B images, C channels, H x W cells, O channels of the result, kh x kw taps of the kernel,
OH x OW positions of the result, G offset groups.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pydet.ops import _deform_formula as formula
from pydet.ops._checks import (
    FLOATING,
    check_dtype,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_sides,
    check_tensor,
)
from pydet.ops._library import define

_SETTINGS = (
    "SymInt stride_y, SymInt stride_x, SymInt pad_y, SymInt pad_x, SymInt dilation_y, "
    "SymInt dilation_x"
)


def _fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Any, mask: Any, *settings: int
) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]))


def _fake_backward(
    grad_out: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    want_input, want_points, want_weight = settings[-3:]
    return (
        input.new_empty(input.shape if want_input else (0,)),
        input.new_empty(offset.shape if want_points else (0,)),
        input.new_empty(weight.shape if want_weight else (0,)),
        input.new_empty(mask.shape if want_points and mask is not None else (0,)),
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_out, input, offset, weight, mask, *ctx.settings = inputs
    ctx.save_for_backward(grad_out, input, offset, weight, mask)


def _root(tensor: Tensor) -> Any:
    """What derivatives are taken by: the same values, still of the graph where there is one."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _backward_backward(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """Derivatives of the gradients along tangents, of the formula by torch's operators."""
    *numbers, want_input, want_points, want_weight = ctx.settings
    wanted = (want_input, want_points, want_weight, want_points)
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors: list[Any] = [None if t is None else _root(t) for t in ctx.saved_tensors]
        grad_out, input, offset, weight, mask = tensors
        out = formula.deform_conv2d(
            input, offset, weight, mask, numbers[0:2], numbers[2:4], numbers[4:6]
        )
        pairs = [
            (tensor, tangent)
            for tensor, tangent, want in zip(
                (input, offset, weight, mask), tangents, wanted, strict=True
            )
            if want and tensor is not None
        ]
        first = torch.autograd.grad(
            out, [tensor for tensor, _ in pairs], grad_out.to(out.dtype), create_graph=True
        )
        asked = [i for i in range(5) if ctx.needs_input_grad[i]]
        second = torch.autograd.grad(
            first,
            [tensors[i] for i in asked],
            [tangent for _, tangent in pairs],
            create_graph=further,
            allow_unused=True,
        )
    grads: list[Tensor | None] = [None] * (5 + len(ctx.settings))
    for i, grad in zip(asked, second, strict=True):
        grads[i] = grad
    return tuple(grads)


_deform_conv2d_backward = define(
    "deform_conv2d_backward(Tensor grad_out, Tensor input, Tensor offset, Tensor weight, "
    f"Tensor? mask, {_SETTINGS}, bool want_input, bool want_points, bool want_weight)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    backward=_backward_backward,
    save=_save_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.settings = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    want = ctx.needs_input_grad
    wanted = (want[0], want[1] or want[4], want[2])
    grads: tuple[Any, ...] = (None,) * 4
    if any(wanted):
        grads = _deform_conv2d_backward(grad_out, *ctx.saved_tensors, *ctx.settings, *wanted)
    grad_input, grad_offset, grad_weight, grad_mask = grads
    return (
        grad_input if want[0] else None,
        grad_offset if want[1] else None,
        grad_weight if want[2] else None,
        grad_out.sum((0, 2, 3)) if want[3] else None,
        grad_mask if want[4] else None,
        *(None,) * 6,
    )


_deform_conv2d = define(
    "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
    f"{_SETTINGS}) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
)


def _check_alike(op: str, input: Tensor, **others: Any) -> None:
    for name, tensor in others.items():
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        check_same_dtype(op, name, tensor, "input", input)
        check_same_device(op, name, tensor, "input", input)


def _check_shapes(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, bias: Any, mask: Any
) -> None:
    check_shape(op, "weight", weight, "[O, C / groups, kh, kw]", lambda s: len(s) == 4)
    out_channels, group_channels, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    channels = input.shape[1]
    if taps < 1 or group_channels < 1 or channels < 1 or channels % group_channels != 0:
        raise ValueError(
            f"{op}: weight must have shape [O, C / groups, kh, kw] for the {channels} channels of "
            f"input, got {list(weight.shape)}"
        )
    if out_channels % (channels // group_channels) != 0:
        raise ValueError(
            f"{op}: weight must have a multiple of {channels // group_channels} (groups) output "
            f"channels, got {list(weight.shape)}"
        )
    offset_groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 0
    if (
        offset_groups < 1
        or offset.shape[1] != 2 * taps * offset_groups
        or channels % offset_groups != 0
    ):
        raise ValueError(
            f"{op}: offset must have shape [B, 2 * G * {taps}, OH, OW] with G a divisor of "
            f"{channels} channels, got {list(offset.shape)}"
        )
    if bias is not None:
        check_shape(op, "bias", bias, "[O]", lambda s: s == weight.shape[:1])
    if mask is not None:
        wanted = (offset.shape[0], taps * offset_groups, *offset.shape[2:])
        if mask.shape != wanted:
            raise ValueError(
                f"{op}: mask must have shape [B, G * {taps}, OH, OW] {list(wanted)}, "
                f"got {list(mask.shape)}"
            )


def _check_result(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, settings: tuple[tuple[int, int], ...]
) -> None:
    wanted = [input.shape[0]]
    for axis, (stride, pad, dilation) in enumerate(zip(*settings, strict=True)):
        reach = input.shape[2 + axis] + 2 * pad - dilation * (weight.shape[2 + axis] - 1) - 1
        wanted.append(reach // stride + 1)
        if reach < 0:
            raise ValueError(
                f"{op}: input must be at least as large as the kernel, got {list(input.shape)}"
            )
    if [offset.shape[0], *offset.shape[2:]] != wanted:
        raise ValueError(
            f"{op}: offset must have the batch and size of the result, {wanted}, "
            f"got {list(offset.shape)}"
        )


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose taps are moved by offsets and, in version 2, weighed by a mask.

    Tap (i, j) of the output at (oy, ox) is the bilinear value at y = oy * stride - padding +
    i * dilation + offset and likewise x, cells outside of the map being 0. Channels are cut into
    ``groups`` = C / weight.shape[1] for the weights and into G groups for the offsets.

    Args:
        input: [B, C, H, W]; float16, bfloat16, float32 or float64.
        offset: [B, 2 * G * kh * kw, OH, OW] in cells: for each group and tap first y, then x.
        weight: [O, C / groups, kh, kw].
        bias: [O], or None.
        stride: Cells between outputs, (height, width) or one for both.
        padding: Rows and columns of 0 around the map.
        dilation: Cells between taps.
        mask: [B, G * kh * kw, OH, OW], a factor for each tap; None (version 1) is 1.

    Returns:
        [B, O, OH, OW], contiguous, in the dtype of ``input``. Positions and samples are computed
        in float32 or better, products and sums as ``torch.mm`` does; under autocast all in
        float32. A tap that is NaN, infinite or outside of the map adds 0, and a cell of weight 0
        is not looked at.

    Raises:
        TypeError: Not tensors, or dtypes that differ or are not floating.
        ValueError: Wrong shapes, devices, strides, paddings or dilations.

    Differentiable any number of times in all five tensors. Where a position is an integer its slope
    is that towards the higher cell, as in torchvision. The workspace is bounded: 8 MiB on the CPU,
    128 MiB on a GPU, or the columns of 64 outputs; but from the second derivative on, which torch's
    operators compute, it is several times all columns. On a GPU the gradient of ``input`` has the
    same bits run to run with ``torch.use_deterministic_algorithms(True)``, which is much slower.

    Source: Dai et al., Deformable Convolutional Networks (arXiv:1703.06211), equations 2 to 4; Zhu
    et al., Deformable ConvNets v2 (arXiv:1811.11168), equation 1.
    """
    op = "deform_conv2d"
    check_tensor(op, "input", input)
    check_dtype(op, "input", input, FLOATING)
    check_shape(op, "input", input, "[B, C, H, W]", lambda shape: len(shape) == 4)
    check_tensor(op, "offset", offset)
    check_tensor(op, "weight", weight)
    _check_alike(op, input, offset=offset, weight=weight, bias=bias, mask=mask)
    _check_shapes(op, input, offset, weight, bias, mask)
    settings = (
        check_sides(op, "stride", stride, 1),
        check_sides(op, "padding", padding, 0),
        check_sides(op, "dilation", dilation, 1),
    )
    _check_result(op, input, offset, weight, settings)
    dtype = input.dtype
    if torch.is_autocast_enabled(input.device.type) and dtype != torch.float64:
        input, offset, weight = input.float(), offset.float(), weight.float()
        bias = None if bias is None else bias.float()
        mask = None if mask is None else mask.float()
    (stride_y, stride_x), (pad_y, pad_x), (dilation_y, dilation_x) = settings
    result: Tensor = _deform_conv2d(
        input, offset, weight, bias, mask, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x
    )
    return result.to(dtype)


class DeformConv2d(nn.Module):
    """:func:`deform_conv2d` with its weight and bias, initialised as ``torch.nn.Conv2d``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: kh, or (kh, kw).
        stride: Cells between outputs.
        padding: Rows and columns of 0 around the map.
        dilation: Cells between taps.
        groups: Groups of channels for the weights.
        bias: Whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups != 0:
                raise ValueError(
                    f"DeformConv2d: {name} must be a multiple of groups ({groups}), got {channels}"
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = check_sides("DeformConv2d", "kernel_size", kernel_size, 1)
        self.stride = check_sides("DeformConv2d", "stride", stride, 1)
        self.padding = check_sides("DeformConv2d", "padding", padding, 0)
        self.dilation = check_sides("DeformConv2d", "dilation", dilation, 1)
        self.groups = groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """``input``, ``offset`` and ``mask`` as :func:`deform_conv2d` takes them."""
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
        )

    def extra_repr(self) -> str:
        """The settings, without those that are 0 or 1 by default."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")
