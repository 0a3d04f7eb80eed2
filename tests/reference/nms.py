# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression by its definition, with exact rational comparisons."""

import math
from fractions import Fraction


def nms(boxes, scores, threshold, idxs=None, max_output=None, score_threshold=None, overlap="iou"):
    """Indices of the kept boxes [N][4] xyxy, in the order in which they are kept."""
    candidates = [
        i for i in range(len(boxes)) if score_threshold is None or scores[i] > score_threshold
    ]
    # NaN scores last, then by decreasing score; sorted() is stable, so ties stay in their order.
    candidates.sort(key=lambda i: (1, 0.0) if math.isnan(scores[i]) else (0, -scores[i]))
    keep = []
    for i in candidates:
        if max_output is not None and len(keep) == max_output:
            break
        rivals = [k for k in keep if idxs is None or idxs[k] == idxs[i]]
        if not any(hides(boxes[k], boxes[i], threshold, overlap) for k in rivals):
            keep.append(i)
    return keep


def hides(a, b, threshold, overlap="iou"):
    """Whether the overlap of a and b is greater than the threshold, decided without rounding."""
    pair = iou_parts(a, b)
    if pair is None:
        return False
    if overlap == "iou":
        return pair[0] > Fraction(threshold) * pair[1]
    return pair[0] / pair[1] - centre_distance(a, b) > Fraction(threshold)


def centre_distance(a, b):
    """Squared distance of the centres over the squared diagonal of the box around both."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = ([Fraction(c) for c in box] for box in (a, b))
    dx, dy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
    width, height = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    return (dx * dx + dy * dy) / (width * width + height * height)


def iou_parts(a, b):
    """Intersection and union of two boxes, or None where one has no finite positive area."""
    for box in (a, b):
        if not all(math.isfinite(coordinate) for coordinate in box):
            return None
        if box[2] <= box[0] or box[3] <= box[1]:
            return None
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = ([Fraction(c) for c in box] for box in (a, b))
    width = max(Fraction(0), min(ax2, bx2) - max(ax1, bx1))
    height = max(Fraction(0), min(ay2, by2) - max(ay1, by1))
    intersection = width * height
    areas = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    return intersection, areas - intersection
