# SPDX-License-Identifier: Apache-2.0
"""Soft-NMS by its definition (Bodla et al. 2017, figure 2 and equations 2 and 3).

All arithmetic is in ``number``: with numpy.float32 every step is rounded once, as the op promises,
so scores on a lattice must be equal and not only close.
"""

import math

import numpy as np

from tests.reference.nms import iou_parts


def soft_nms(
    boxes,
    scores,
    method="linear",
    iou_threshold=0.3,
    sigma=0.5,
    score_threshold=0.001,
    idxs=None,
    number=np.float64,
    exp=None,
):
    """Indices [D] in the order picked and their decayed scores [D]."""
    exp = exp or (lambda x: number(math.exp(x)))
    score_threshold = number(score_threshold)
    left = {i: number(s) for i, s in enumerate(scores) if number(s) > score_threshold}
    keep, decayed = [], []
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        keep.append(best)
        decayed.append(left.pop(best))
        for i in list(left):
            if idxs is not None and idxs[i] != idxs[best]:
                continue
            iou = rounded_iou(boxes[best], boxes[i], number)
            if method == "gaussian":
                left[i] = left[i] * exp(-(iou * iou) / number(sigma))
            elif iou >= iou_threshold:
                left[i] = left[i] * (number(1) - iou)
            if not left[i] > score_threshold:
                del left[i]
    return keep, decayed


def rounded_iou(a, b, number=np.float64):
    """Their IoU, rounded once; 0 where one has no finite positive area."""
    parts = iou_parts(a, b)
    if parts is None:
        return number(0)
    # Exact on integers: both are numbers of this precision, and the division rounds once.
    return number(float(parts[0])) / number(float(parts[1]))
