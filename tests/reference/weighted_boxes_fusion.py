# SPDX-License-Identifier: Apache-2.0
"""Weighted boxes fusion by its definition (Solovyev et al. 2021, section 3, steps 1 to 6).

All arithmetic is in ``number``, as in ``soft_nms.py``.
"""

import math

import numpy as np


def weighted_boxes_fusion(
    boxes,
    scores,
    idxs,
    num_models,
    iou_threshold=0.55,
    total_weight=None,
    by_best=False,
    overflow=False,
    number=np.float64,
):
    """Boxes [D][4], scores [D] and labels [D] by falling score; scores that are 0 take no part."""
    order = [i for i in range(len(boxes)) if 0 < scores[i] < math.inf]
    order.sort(key=lambda i: -scores[i])  # stable
    clusters = []  # (members, fused box)
    for i in order:
        box = [number(c) for c in boxes[i]]
        best, best_iou = None, iou_threshold
        for cluster in clusters:
            overlap = iou(cluster[1], box, number)
            if idxs[cluster[0][0]] == idxs[i] and overlap > best_iou:
                best, best_iou = cluster, overlap
        if best is None:
            clusters.append([[i], box])
            continue
        best[0].append(i)
        weights = [number(scores[m]) for m in best[0]]
        best[1] = [
            added(w * number(boxes[m][c]) for w, m in zip(weights, best[0], strict=True))
            / added(weights)
            for c in range(4)
        ]
    results = []
    for members, box in clusters:
        weights = [number(scores[m]) for m in members]
        mean = added(weights) / number(len(members))
        confirmed = len(members) if overflow else min(len(members), num_models)
        share = number(confirmed) / number(num_models if total_weight is None else total_weight)
        # As the authors' code: of models that all weigh 1 the greatest score as it is.
        results.append((max(weights) if by_best else mean * share, members[0], box))
    results = sorted((r for r in results if r[0] > 0), key=lambda r: (-r[0], r[1]))
    return [r[2] for r in results], [r[0] for r in results], [idxs[r[1]] for r in results]


def added(values):
    """The sum, from left to right."""
    first, *others = values
    for value in others:
        first = first + value
    return first


def iou(a, b, number):
    """Their IoU with every step rounded; 0 where one has no finite positive area."""
    for box in (a, b):
        area = (box[2] - box[0]) * (box[3] - box[1])
        if not (box[2] > box[0] and box[3] > box[1] and 0 < area < math.inf):
            return number(0)
    width = max(min(a[2], b[2]) - max(a[0], b[0]), number(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), number(0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (b, a)]
    return width * height / (areas[0] + areas[1] - width * height)
