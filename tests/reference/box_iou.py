# SPDX-License-Identifier: Apache-2.0
"""Pairwise IoU by its definition: the area of the intersection over the area of the union."""

import math


def box_iou(boxes1, boxes2):
    """Nested list [N][M] of the IoU of boxes [N][4] and [M][4], xyxy."""
    return [[iou(a, b) for b in boxes2] for a in boxes1]


def iou(a, b):
    """IoU of two boxes (x1, y1, x2, y2)."""
    if any(math.isnan(coordinate) for coordinate in (*a, *b)):
        return math.nan
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    return 0.0 if union == 0 else intersection / union
