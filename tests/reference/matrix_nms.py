# SPDX-License-Identifier: Apache-2.0
"""Matrix NMS by its definition (Wang et al. 2020, section 3.3), on boxes.

All arithmetic is in ``number``, as in ``soft_nms.py``.
"""

import math

import numpy as np

from tests.reference.soft_nms import rounded_iou


def matrix_nms(
    boxes, scores, method="gaussian", sigma=0.5, score_threshold=0.001, idxs=None, number=np.float64
):
    """Indices [D] by falling decayed score, and these scores [D]."""
    score_threshold = number(score_threshold)
    order = [i for i in range(len(boxes)) if number(scores[i]) > score_threshold]
    order.sort(key=lambda i: -scores[i])  # stable
    peaks, decayed = {}, {}
    for position, j in enumerate(order):
        better = [i for i in order[:position] if idxs is None or idxs[i] == idxs[j]]
        ious = [rounded_iou(boxes[i], boxes[j], number) for i in better]
        ratios = [number(1)]
        for i, iou in zip(better, ious, strict=True):
            if method == "linear" and peaks[i] < 1:
                ratios.append((number(1) - iou) / (number(1) - peaks[i]))
            if method == "gaussian":
                difference = iou * iou - peaks[i] * peaks[i]
                ratios.append(number(math.exp(-difference / number(sigma))))
        peaks[j] = max(ious, default=number(0))
        decayed[j] = number(scores[j]) * min(ratios)
    keep = [i for i in decayed if decayed[i] > score_threshold]
    keep.sort(key=lambda i: (-decayed[i], i))
    return keep, [decayed[i] for i in keep]
