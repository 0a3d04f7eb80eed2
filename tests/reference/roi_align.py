# SPDX-License-Identifier: Apache-2.0
"""RoI align by its definition (He et al., Mask R-CNN, section 3): the mean of bilinear samples.

Where a sample may lie and what counts at the border is as Detectron and torchvision have it.
"""

import math


def roi_align(maps, rois, output_size, scale, sampling_ratio, aligned):
    """Nested list [R][C][h][w] from maps [B][C][H][W] and rois [R][5]."""
    return [align_one(maps, roi, output_size, scale, sampling_ratio, aligned) for roi in rois]


def align_one(maps, roi, output_size, scale, sampling_ratio, aligned):
    """[C][h][w] of one region (image, x1, y1, x2, y2)."""
    h, w = output_size
    channels = len(maps[0]) if maps else 0
    image, x1, y1, x2, y2 = roi
    nothing = [[[0.0] * w for _ in range(h)] for _ in range(channels)]
    if not 0 <= image < len(maps) or not all(math.isfinite(v) for v in (x1, y1, x2, y2)):
        return nothing
    ys = axis_samples(y1 * scale, y2 * scale, h, sampling_ratio, aligned)
    xs = axis_samples(x1 * scale, x2 * scale, w, sampling_ratio, aligned)
    return [
        [[mean(plane, y_bin, x_bin) for x_bin in xs] for y_bin in ys] for plane in maps[int(image)]
    ]


def axis_samples(low, high, bins, sampling_ratio, aligned):
    """The positions of the samples of each bin."""
    start = low - 0.5 if aligned else low
    size = high - low
    if not aligned:
        size = max(size, 1.0)
    bin_size = size / bins
    count = sampling_ratio if sampling_ratio > 0 else max(0, math.ceil(bin_size))
    return [
        [start + p * bin_size + (i + 0.5) * bin_size / count for i in range(count)]
        for p in range(bins)
    ]


def mean(plane, ys, xs):
    """The mean of the samples at all pairs of positions; 0 of none."""
    total = sum(sample(plane, y, x) for y in ys for x in xs)
    return total / max(1, len(ys) * len(xs))


def sample(plane, y, x):
    """Bilinear interpolation; up to one cell outside the border's value, beyond that 0."""
    height, width = len(plane), len(plane[0]) if plane else 0
    if not (-1 <= y <= height and -1 <= x <= width) or height == 0 or width == 0:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * plane[top][left] + fx * plane[top][right]
    lower = (1 - fx) * plane[bottom][left] + fx * plane[bottom][right]
    return (1 - fy) * upper + fy * lower


def level_of(box, levels, canonical_scale, canonical_level):
    """Index among ``levels`` (rising) for a box (x1, y1, x2, y2): equation 1 of the FPN paper.

    None where the area is negative or NaN.
    """
    area = (box[2] - box[0]) * (box[3] - box[1])
    if not area >= 0:
        return None
    if area == 0:
        return 0
    k = math.floor(canonical_level + math.log2(math.sqrt(area) / canonical_scale) + 1e-6)
    return max([i for i, level in enumerate(levels) if level <= k], default=0)


def multiscale_roi_align(
    features, rois, output_size, scales, sampling_ratio, aligned, canonical_scale, canonical_level
):
    """Nested list [R][C][h][w]; each region from the map of its level."""
    levels = [round(-math.log2(scale)) for scale in scales]
    results = []
    for image, *box in rois:
        level = 0
        if len(features) > 1:
            level = level_of(box, levels, canonical_scale, canonical_level)
        # Without a level a box samples nothing, as without an image.
        roi = [-1 if level is None else image, *box]
        level = level or 0
        results.append(
            align_one(features[level], roi, output_size, scales[level], sampling_ratio, aligned)
        )
    return results
