# SPDX-License-Identifier: Apache-2.0
"""Formats of rotated boxes, in plain torch; :func:`pydet.ops.box_convert` is the way to them.

The angle r is in degrees, counter-clockwise in the picture (y points down). Along the sides of a
box lie the vectors of its width, (w cos r, -w sin r), and of its height, (h sin r, h cos r)::

    (x1, y1) -- width -> (x2, y2)
       |                    |
     height               height
       v                    v
    (x4, y4) -- width -> (x3, y3)

``xywhr`` has the corner (x1, y1), ``cxcywhr`` the centre, ``xyxyxyxy`` the four corners.
"""

import torch
from torch import Tensor

NUMBERS = {"xywhr": 5, "cxcywhr": 5, "xyxyxyxy": 8}


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors of width and height, and (w, h, r): [..., 2], [..., 2], [..., 3]."""
    width, height, angle = boxes[..., 2:].unbind(-1)
    radians = torch.deg2rad(angle)
    cos, sin = radians.cos(), radians.sin()
    along = torch.stack([width * cos, -width * sin], -1)
    down = torch.stack([height * sin, height * cos], -1)
    return along, down, boxes[..., 2:]


def _corner_to_centre(boxes: Tensor) -> Tensor:
    along, down, rest = _sides(boxes)
    return torch.cat([boxes[..., :2] + (along + down) / 2, rest], -1)


def _centre_to_corner(boxes: Tensor) -> Tensor:
    along, down, rest = _sides(boxes)
    return torch.cat([boxes[..., :2] - (along + down) / 2, rest], -1)


def _corner_to_corners(boxes: Tensor) -> Tensor:
    along, down, _ = _sides(boxes)
    corner = boxes[..., :2]
    return torch.cat([corner, corner + along, corner + along + down, corner + down], -1)


def _corners_to_corner(boxes: Tensor) -> Tensor:
    first, second, third, _ = boxes.unflatten(-1, (4, 2)).unbind(-2)
    along, down = second - first, third - second
    angle = torch.rad2deg(torch.atan2(-along[..., 1], along[..., 0]))
    # Not a square root of a sum of squares: the norm has a gradient at 0, too.
    lengths = [torch.linalg.vector_norm(side, dim=-1) for side in (along, down)]
    return torch.cat([first, torch.stack([*lengths, angle], -1)], -1)


# The corner with sides and angle stands between all others.
_TO_CORNER = {"cxcywhr": _centre_to_corner, "xyxyxyxy": _corners_to_corner}
_FROM_CORNER = {"cxcywhr": _corner_to_centre, "xyxyxyxy": _corner_to_corners}


def convert_rotated(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """[..., 5 or 8] boxes of one rotated format in another, of the same dtype.

    In float32 or better; integers are rounded after each step, as in torchvision.
    """
    if in_fmt == out_fmt:
        return boxes.clone()
    floating = boxes.is_floating_point()
    dtype = boxes.dtype if floating else torch.get_default_dtype()
    numbers = boxes.to(torch.promote_types(dtype, torch.float32))
    for steps, fmt in ((_TO_CORNER, in_fmt), (_FROM_CORNER, out_fmt)):
        if fmt in steps:
            numbers = steps[fmt](numbers)
            numbers = numbers if floating else numbers.round()
    return numbers.to(boxes.dtype)
