# SPDX-License-Identifier: Apache-2.0
"""Box operators by torch's own, which torch.onnx.export knows."""

from collections.abc import Sequence

import torch
from torch import Tensor


def decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float],
    scale_clamp: float,
    image_size: Sequence[int] | None,
    image_sizes: Tensor | None,
) -> Tensor:
    dtype = deltas.dtype if deltas.dtype == torch.float64 else torch.float32
    deltas, anchors, wide = deltas.to(dtype), anchors.to(dtype), deltas
    sides = []
    for axis in (0, 1):  # x, y
        low = anchors[..., axis]
        length = anchors[..., axis + 2] - low
        middle = deltas[..., axis] / weights[axis] * length + (low + 0.5 * length)
        scale = (deltas[..., axis + 2] / weights[axis + 2]).clamp(max=scale_clamp)
        half = 0.5 * (scale.exp() * length)
        ends = [middle - half, middle + half]
        if image_size is not None:
            ends = [end.clamp(0, image_size[1 - axis]) for end in ends]
        if image_sizes is not None:
            limit = image_sizes.to(dtype)[:, 1 - axis, None]  # [B, 1]
            ends = [end.clamp(min=0).minimum(limit) for end in ends]
        sides.append(ends)
    boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], -1)
    return boxes.to(wide.dtype)


def clip_boxes_to_image(boxes: Tensor, height: float, width: float) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1
    )


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    first, second = boxes.split([2, 2], -1)
    if in_fmt == "xywh":
        second = first + second
    elif in_fmt == "cxcywh":
        first, second = first - 0.5 * second, first + 0.5 * second
    if out_fmt == "xywh":
        second = second - first
    elif out_fmt == "cxcywh":
        first, second = (first + second) / 2, second - first
    return torch.cat([first, second], -1)
