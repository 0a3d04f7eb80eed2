# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution by its definition: Deformable ConvNets v2, equation 1."""

import math


def value_at(channel, y, x):
    """Bilinear value at (y, x), cells outside being 0; cells of weight 0 are not looked at."""
    if not (math.isfinite(y) and math.isfinite(x)):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            on_map = 0 <= row < len(channel) and 0 <= column < len(channel[0])
            if on_map and weight_y * weight_x != 0:
                value += weight_y * weight_x * channel[row][column]
    return value


def deform_conv2d(
    images,
    offset,
    weight,
    bias=None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    mask=None,
):
    """Nested lists [B][O][OH][OW]; all arguments are nested lists of the shapes of the op."""
    kernel = (len(weight[0][0]), len(weight[0][0][0]))
    taps = kernel[0] * kernel[1]
    group_channels = len(weight[0])

    def output(b, o, oy, ox):
        image = images[b]
        groups = len(image) // group_channels
        first = o // (len(weight) // groups) * group_channels
        offset_groups = len(offset[b]) // (2 * taps)
        total = 0.0 if bias is None else bias[o]
        for c in range(group_channels):
            channel = first + c
            g = channel // (len(image) // offset_groups)
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    k = g * taps + i * kernel[1] + j
                    y = oy * stride[0] - padding[0] + i * dilation[0] + offset[b][2 * k][oy][ox]
                    x = ox * stride[1] - padding[1] + j * dilation[1] + offset[b][2 * k + 1][oy][ox]
                    value = value_at(image[channel], y, x)
                    if mask is not None and value != 0:
                        value *= mask[b][k][oy][ox]
                    total += weight[o][c][i][j] * value
        return total

    return [
        [
            [
                [output(b, o, oy, ox) for ox in range(len(offset[b][0][0]))]
                for oy in range(len(offset[b][0]))
            ]
            for o in range(len(weight))
        ]
        for b in range(len(images))
    ]
