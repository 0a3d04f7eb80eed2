# SPDX-License-Identifier: Apache-2.0
"""Pairwise overlaps by their definitions, with a quotient by 0 counted as 0.

IoU: the area of the intersection over the area of the union. Generalised: Rezatofighi et al.,
arXiv:1902.09630, algorithm 1. Distance and complete: Zheng et al., arXiv:1911.08287, equations 6
and 8 to 11.
"""

import math


def pairwise(overlap, boxes1, boxes2, *eps):
    """Nested list [N][M] of ``overlap`` of boxes [N][4] and [M][4], xyxy."""
    return [[overlap(a, b, *eps) for b in boxes2] for a in boxes1]


def box_iou(boxes1, boxes2):
    """Nested list [N][M] of the IoU of boxes [N][4] and [M][4], xyxy."""
    return pairwise(iou, boxes1, boxes2)


def over(numerator, denominator):
    """The quotient, 0 where the denominator is."""
    return 0.0 if denominator == 0 else numerator / denominator


def area(box):
    """Width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a, b):
    """Area that two boxes share."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height


def enclosing_sides(a, b):
    """Width and height of the smallest box around two."""
    width = max(0.0, max(a[2], b[2]) - min(a[0], b[0]))
    height = max(0.0, max(a[3], b[3]) - min(a[1], b[1]))
    return width, height


def iou(a, b):
    """IoU of two boxes (x1, y1, x2, y2)."""
    if any(math.isnan(coordinate) for coordinate in (*a, *b)):
        return math.nan
    shared = intersection(a, b)
    return over(shared, area(a) + area(b) - shared)


def generalized_iou(a, b):
    """IoU less the share of the enclosing box that neither covers."""
    width, height = enclosing_sides(a, b)
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - over(width * height - union, width * height)


def distance_iou(a, b, eps):
    """IoU less the squared distance of the centres over the squared diagonal around both."""
    width, height = enclosing_sides(a, b)
    x = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    y = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    return iou(a, b) - over(x * x + y * y, width * width + height * height + eps)


def angle(box):
    """atan(width / height); 0 for a box without width."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width == 0:
        return 0.0
    quotient = math.copysign(math.inf, width) if height == 0 else width / height
    return math.atan(quotient)


def complete_iou(a, b, eps):
    """Distance IoU less alpha v, with v from the difference of the aspects."""
    v = (2 / math.pi * (angle(a) - angle(b))) ** 2
    alpha = over(v, 1 - iou(a, b) + v + eps)
    return distance_iou(a, b, eps) - alpha * v
