# SPDX-License-Identifier: Apache-2.0
"""RoI max pooling by its definition: Fast R-CNN, section 2.1, with the rounding of its code."""

import math


def round_half_away(x):
    """The nearest integer; halves go away from 0. Farther than 2^31 is taken as that far."""
    x = min(max(x, -(2.0**31)), 2.0**31)
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def roi_bins(low, high, bins, size, number, *, inclusive=True):
    """For each bin along one axis the range of cells of a map of ``size``.

    ``number`` is the type whose rounding decides where a quotient is next to an integer.
    """
    first, last = round_half_away(float(low)), round_half_away(float(high))
    bin_size = number(max(last - first + inclusive, 1)) / number(bins)
    return [
        range(
            min(max(first + math.floor(number(b) * bin_size), 0), size),
            min(max(first + math.ceil(number(b + 1) * bin_size), 0), size),
        )
        for b in range(bins)
    ]


def is_pooled(roi, num_images):
    """Whether a RoI has an image and finite corners."""
    return all(map(math.isfinite, roi)) and 0 <= roi[0] < num_images


def largest_cell(channel, rows, columns):
    """(value, row, column) of the largest cell; None without cells, (-inf, None, None) if NaN."""
    if not rows or not columns:
        return None
    best = (-math.inf, None, None)
    for y in rows:
        for x in columns:
            if channel[y][x] > best[0]:
                best = (channel[y][x], y, x)
    return best


def roi_pool(features, rois, output_size, spatial_scale=1.0, number=float):
    """Nested lists [R][C][h][w] of (value, row, column) or None, from features [B][C][H][W].

    ``rois`` are rows (image, x1, y1, x2, y2); ``number`` is ``numpy.float32`` or ``float``.
    """
    height, width = output_size
    results = []
    for roi in rois:
        if not is_pooled(roi, len(features)):
            channels = len(features[0]) if features else 0
            results.append([[[None] * width for _ in range(height)] for _ in range(channels)])
            continue
        image = features[int(roi[0])]
        x1, y1, x2, y2 = (number(coordinate) * number(spatial_scale) for coordinate in roi[1:])
        results.append(
            [
                [
                    [
                        largest_cell(channel, rows, columns)
                        for columns in roi_bins(x1, x2, width, len(channel[0]), number)
                    ]
                    for rows in roi_bins(y1, y2, height, len(channel), number)
                ]
                for channel in image
            ]
        )
    return results
