# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution by torch's own operators: what its second derivative is taken of.

Derivatives of any order follow from it, at the price of several arrays of B C kh kw OH OW numbers;
values and first derivatives never come here. For the letters see :mod:`pydet.ops.deform_conv2d`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _positions(offset: Tensor, axis: int, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where taps sample along an axis, and whether that is on the map: both [B, G, K, OH, OW]."""
    position = start + offset[:, :, :, axis]
    near = (position >= -1) & (position < size)  # not for NaN
    return position.where(near, -1), near


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """[B, O, OH, OW] in float32 or better, differentiable any number of times; without a bias."""
    _, channels, *size = input.shape
    kernel, out_size = weight.shape[2:], offset.shape[2:]
    taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * taps)
    wide = torch.promote_types(input.dtype, torch.float32)
    input, offset, weight = input.to(wide), offset.to(wide), weight.to(wide)
    offset = offset.unflatten(1, (groups, taps, 2))  # [B, G, K, 2, OH, OW]

    parts, lows = [], []
    counts = torch.ones((), dtype=torch.bool, device=input.device)
    for axis in (0, 1):
        first = torch.arange(out_size[axis], device=input.device) * stride[axis] - padding[axis]
        tap = torch.arange(kernel[axis], device=input.device) * dilation[axis]
        start = (tap[:, None] + first).to(wide)  # [kh, OH] or [kw, OW]
        start = start[:, None, :, None] if axis == 0 else start[None, :, None, :]
        start = start.expand(*kernel, *out_size).flatten(0, 1)
        position, near = _positions(offset, axis, start, size[axis])
        low = position.detach().floor()
        counts = counts & near
        parts.append(position - low)
        lows.append(low.long() + 1)  # a row and a column of 0 lie around the map

    cells = torch.nn.functional.pad(input, (1, 1, 1, 1)).unflatten(1, (groups, -1)).flatten(3)
    factor = counts.to(wide)  # [B, G, K, OH, OW]
    if mask is not None:
        factor = factor * mask.to(wide).unflatten(1, (groups, taps))
    columns = cells.new_zeros(())
    for below in (0, 1):
        for right in (0, 1):
            weights = [
                part if high else 1 - part for part, high in zip(parts, (below, right), strict=True)
            ]
            index = (lows[0] + below) * (size[1] + 2) + lows[1] + right
            index = index.flatten(2)[:, :, None].expand(-1, -1, cells.shape[2], -1)
            near = cells.gather(3, index).unflatten(3, (taps, *out_size))
            columns = columns + near * (weights[0] * weights[1] * factor)[:, :, None]
    columns = columns.flatten(4).flatten(1, 3)  # [B, C K, OH OW]
    group_channels = weight.shape[1]
    weight = weight.flatten(1).unflatten(0, (channels // group_channels, -1))  # [groups, .., ..]
    columns = columns.unflatten(1, (channels // group_channels, group_channels * taps))
    out: Tensor = torch.matmul(weight, columns).flatten(1, 2).unflatten(2, tuple(out_size))
    return out
