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


def box_of_mask(mask):
    """First and last column and row of a mask [H][W] that hold a number other than 0."""
    rows = [y for y, row in enumerate(mask) if any(value != 0 for value in row)]
    columns = [x for row in mask for x, value in enumerate(row) if value != 0]
    return [min(columns), min(rows), max(columns), max(rows)] if rows else [0, 0, 0, 0]


def rotated(box, degrees, fmt):
    """The box (x1, y1, x2, y2) turned about its centre, counter-clockwise with y pointing down."""
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    turn = math.radians(degrees)
    corners = []
    for x, y in ((box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])):
        right, down = x - centre[0], y - centre[1]
        corners.append(centre[0] + right * math.cos(turn) + down * math.sin(turn))
        corners.append(centre[1] - right * math.sin(turn) + down * math.cos(turn))
    if fmt == "xyxyxyxy":
        return corners
    start = corners[:2] if fmt == "xywhr" else list(centre)
    return [*start, box[2] - box[0], box[3] - box[1], degrees]
