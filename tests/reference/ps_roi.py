# SPDX-License-Identifier: Apache-2.0
"""Position-sensitive RoI pooling and align by their definitions (R-FCN; Light-Head R-CNN)."""

import math

from tests.reference.roi_pool import is_pooled, roi_bins


def ps_roi(features, rois, output_size, mean):
    """Nested lists [R][C / (h w)][h][w]; ``mean(channel, roi, ph, pw)`` is that of one bin."""
    height, width = output_size
    channels = len(features[0]) // (height * width)
    return [
        [
            [
                [
                    mean(features[int(roi[0])][(c * height + ph) * width + pw], roi, ph, pw)
                    if is_pooled(roi, len(features))
                    else 0.0
                    for pw in range(width)
                ]
                for ph in range(height)
            ]
            for c in range(channels)
        ]
        for roi in rois
    ]


def ps_roi_pool(features, rois, output_size, spatial_scale=1.0, number=float):
    """Means of whole cells; the last row and column belong to no bin."""

    def mean(channel, roi, ph, pw):
        x1, y1, x2, y2 = (number(coordinate) * number(spatial_scale) for coordinate in roi[1:])
        rows = roi_bins(y1, y2, output_size[0], len(channel) - 1, number, inclusive=False)[ph]
        columns = roi_bins(x1, x2, output_size[1], len(channel[0]) - 1, number, inclusive=False)
        cells = [channel[y][x] for y in rows for x in columns[pw]]
        return sum(cells) / len(cells) if cells else 0.0

    return ps_roi(features, rois, output_size, mean)


def sample(channel, y, x):
    """Bilinear value at (y, x): 0 beyond one cell outside, the border's value within."""
    height, width = len(channel), len(channel[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    value = 0.0
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if weight_y * weight_x != 0:
                value += weight_y * weight_x * channel[row][column]
    return value


def ps_roi_align(features, rois, output_size, spatial_scale=1.0, sampling_ratio=-1):
    """Means of bilinear samples, half a cell off."""

    def positions(low, high, bins, bin_index):
        start, size = low * spatial_scale - 0.5, (high - low) * spatial_scale
        count = sampling_ratio if sampling_ratio > 0 else math.ceil(size / bins)
        return [start + size / bins * (bin_index + (i + 0.5) / count) for i in range(count)]

    def mean(channel, roi, ph, pw):
        _, x1, y1, x2, y2 = roi
        values = [
            sample(channel, y, x)
            for y in positions(y1, y2, output_size[0], ph)
            for x in positions(x1, x2, output_size[1], pw)
        ]
        return sum(values) / len(values) if values else 0.0

    return ps_roi(features, rois, output_size, mean)
