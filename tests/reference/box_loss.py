# SPDX-License-Identifier: Apache-2.0
"""Losses of pairs of boxes by their definitions, with a quotient by 0 counted as 0.

UnitBox's -ln IoU (arXiv:1608.01471), GIoU (arXiv:1902.09630), DIoU and CIoU (arXiv:1911.08287);
where eps stands is torchvision's choice.
"""

import math

from tests.reference.box_iou import angle, area, intersection, over


def outer_sides(a, b):
    """Width and height of the smallest box around two; negative for inverted ones."""
    return max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])


def union(a, b):
    """Area that two boxes cover."""
    return area(a) + area(b) - intersection(a, b)


def iou_loss(a, b, eps):
    """-ln IoU, the IoU held at eps from below."""
    iou = over(intersection(a, b), union(a, b))
    return -math.log(max(iou, eps))


def generalized_box_iou_loss(a, b, eps):
    """1 - IoU and the empty share of the enclosing box."""
    width, height = outer_sides(a, b)
    empty = over(width * height - union(a, b), width * height + eps)
    return 1 - over(intersection(a, b), union(a, b) + eps) + empty


def distance_box_iou_loss(a, b, eps):
    """1 - IoU and the squared distance of the centres over the squared diagonal."""
    width, height = outer_sides(a, b)
    x = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    y = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    distance = over(x * x + y * y, width * width + height * height + eps)
    return 1 - over(intersection(a, b), union(a, b) + eps) + distance


def complete_box_iou_loss(a, b, eps):
    """The distance loss and alpha v; eps is that of alpha alone."""
    v = (2 / math.pi * (angle(a) - angle(b))) ** 2
    iou = over(intersection(a, b), union(a, b) + 1e-7)
    return distance_box_iou_loss(a, b, 1e-7) + over(v, 1 - iou + v + eps) * v
