# SPDX-License-Identifier: Apache-2.0
"""Deltas between boxes and anchors by their definition: R-CNN, appendix C, equations 6 to 9."""

import math


def centre_and_size(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def is_proper(box):
    _, _, width, height = centre_and_size(box)
    return 0 < width < math.inf and 0 < height < math.inf


def encode_box(box, anchor, weights=(1, 1, 1, 1)):
    """(dx, dy, dw, dh), all 0 where a box has no positive, finite size."""
    if not is_proper(box) or not is_proper(anchor):
        return (0.0, 0.0, 0.0, 0.0)
    x, y, width, height = centre_and_size(box)
    x_a, y_a, width_a, height_a = centre_and_size(anchor)
    return (
        weights[0] * (x - x_a) / width_a,
        weights[1] * (y - y_a) / height_a,
        weights[2] * math.log(width / width_a),
        weights[3] * math.log(height / height_a),
    )


def decode_box(deltas, anchor, weights=(1, 1, 1, 1), scale_clamp=math.inf, image_size=None):
    """(x1, y1, x2, y2), clipped to image_size (height, width) where there is one."""
    x_a, y_a, width_a, height_a = centre_and_size(anchor)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    x, y = x_a + dx * width_a, y_a + dy * height_a
    width = width_a * math.exp(min(dw, scale_clamp))
    height = height_a * math.exp(min(dh, scale_clamp))
    box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if image_size is not None:
        limits = (image_size[1], image_size[0]) * 2
        box = [max(0.0, min(end, limit)) for end, limit in zip(box, limits, strict=True)]
    return tuple(box)
