# SPDX-License-Identifier: Apache-2.0
"""Matching by the highest IoU, from its definition: all pairs, then the rules one after the other.

``number`` is the type of the arithmetic: Python's float, or numpy.float32, whose every operation is
rounded as that of a float32 kernel is. Thresholds are rounded to it too.
"""

import math

BACKGROUND, IGNORED = -1, -2


def intersection(a, b, number):
    width = max(number(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(number(0), min(a[3], b[3]) - max(a[1], b[1]))
    return width * height


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(anchor, gt_box, number):
    """IoU, where what is not a positive number is 0."""
    inter = intersection(anchor, gt_box, number)
    union = area(gt_box) + area(anchor) - inter
    quality = number(0) if union == 0 else inter / union
    return quality if quality > 0 else number(0)


def has_nan(box):
    return any(math.isnan(coordinate) for coordinate in box)


def match_anchors(
    anchors,
    gt_boxes,
    fg_threshold,
    bg_threshold,
    low_quality,
    ignored=None,
    number=float,
    best_anchors=False,
):
    """Lists matched_idxs and matched_ious of anchors [A][4] with the ground truth [G][4]."""
    anchors = [[number(c) for c in box] for box in anchors]
    gt_boxes = [[number(c) for c in box] for box in gt_boxes]
    fg_threshold, bg_threshold = number(fg_threshold), number(bg_threshold)
    ignored = [False] * len(gt_boxes) if ignored is None else ignored
    usable = [g for g, box in enumerate(gt_boxes) if not has_nan(box) and not ignored[g]]
    crowds = [box for box, crowd in zip(gt_boxes, ignored, strict=True) if crowd]
    valid = [not has_nan(anchor) for anchor in anchors]
    table = [
        [iou(anchor, gt_boxes[g], number) if ok else number(0) for g in usable]
        for anchor, ok in zip(anchors, valid, strict=True)
    ]
    highest = [max((row[k] for row in table), default=number(0)) for k in range(len(usable))]
    idxs, ious = [], []
    for anchor, ok, row in zip(anchors, valid, table, strict=True):
        best = max(row, default=number(0))
        ious.append(best)
        if not ok or not usable:
            lies_in_crowd = ok and any(in_crowd(anchor, crowd, number) for crowd in crowds)
            idxs.append(IGNORED if lies_in_crowd else BACKGROUND)
            continue
        own = usable[row.index(best)]
        if best >= fg_threshold or (
            low_quality and any(q == top for q, top in zip(row, highest, strict=True))
        ):
            idxs.append(own)
        elif best >= bg_threshold or any(in_crowd(anchor, crowd, number) for crowd in crowds):
            idxs.append(IGNORED)
        else:
            idxs.append(BACKGROUND)
    if best_anchors:  # SSD: each ground truth gets the first of its best anchors
        for k, g in enumerate(usable):
            column = [row[k] for row in table]
            if highest[k] > 0:
                idxs[column.index(highest[k])] = g
    return idxs, ious


def in_crowd(anchor, crowd, number):
    """Whether at least half of the anchor's area lies in the crowd's box."""
    if has_nan(crowd) or area(anchor) == 0:
        return False
    return intersection(anchor, crowd, number) / area(anchor) >= number(0.5)
