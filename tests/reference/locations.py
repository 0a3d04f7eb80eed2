# SPDX-License-Identifier: Apache-2.0
"""FCOS, section 3.2: which box a location learns, box by box and location by location."""


def assign_locations(levels, offset, boxes, ignored):
    """For each location of one image a box's index, -1 (background) or -2 (ignored).

    Args:
        levels: (height, width, stride_y, stride_x, low, high, radius) of each.
        offset: Of locations, in strides.
        boxes: (x1, y1, x2, y2) of each.
        ignored: For each box, whether it is.
    """
    assigned = []
    for height, width, stride_y, stride_x, low, high, radius in levels:
        for row in range(height):
            for column in range(width):
                x, y = (column + offset) * stride_x, (row + offset) * stride_y
                best, least, covered = -1, float("inf"), False
                for index, (x1, y1, x2, y2) in enumerate(boxes):
                    if not (x1 < x < x2 and y1 < y < y2):
                        continue
                    if ignored[index]:
                        covered = True
                        continue
                    farthest = max(x - x1, y - y1, x2 - x, y2 - y)
                    near = abs(x - (x1 + x2) / 2) < radius and abs(y - (y1 + y2) / 2) < radius
                    area = (x2 - x1) * (y2 - y1)
                    if low <= farthest <= high and near and area < least:
                        best, least = index, area
                assigned.append(-2 if best < 0 and covered else best)
    return assigned
