# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression by its definition, with exact rational comparisons."""

import math
from fractions import Fraction


def nms(boxes, scores, threshold, idxs=None, max_output=None, score_threshold=None):
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
        if not any(hides(boxes[k], boxes[i], threshold) for k in rivals):
            keep.append(i)
    return keep


def hides(a, b, threshold):
    """Whether IoU(a, b) > threshold, decided without rounding."""
    pair = iou_parts(a, b)
    return pair is not None and pair[0] > Fraction(threshold) * pair[1]


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
