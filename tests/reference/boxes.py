# SPDX-License-Identifier: Apache-2.0
"""Area, formats, clipping and removal of boxes, by their definitions, one box at a time."""

import math


def area(box, fmt):
    """Width times height of a box that is written as fmt."""
    first, second, third, fourth = box
    if fmt == "xyxy":
        return (third - first) * (fourth - second)
    return third * fourth


def corners(box, fmt):
    """(x1, y1, x2, y2) of a box that is written as fmt."""
    a, b, c, d = box
    if fmt == "xywh":
        return (a, b, a + c, b + d)
    if fmt == "cxcywh":
        return (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    return (a, b, c, d)


def convert(box, in_fmt, out_fmt):
    """The box written as out_fmt, by way of its corners."""
    if in_fmt == out_fmt:
        return tuple(box)
    x1, y1, x2, y2 = corners(box, in_fmt)
    if out_fmt == "xywh":
        return (x1, y1, x2 - x1, y2 - y1)
    if out_fmt == "cxcywh":
        return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    return (x1, y1, x2, y2)


def clip(box, height, width):
    """The box with x in [0, width] and y in [0, height]; NaN stays."""
    ends = (width, height, width, height)
    return tuple(
        c if math.isnan(c) else min(max(c, 0), end) for c, end in zip(box, ends, strict=True)
    )


def large(boxes, min_size):
    """Indices of the boxes whose width and height are min_size or more."""
    return [
        i for i, (x1, y1, x2, y2) in enumerate(boxes) if x2 - x1 >= min_size and y2 - y1 >= min_size
    ]
