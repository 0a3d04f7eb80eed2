# SPDX-License-Identifier: Apache-2.0
"""Features of regions by ONNX's RoiAlign and MaxRoiPool.

ONNX says nothing of regions that have no image or are not finite, and its runtimes read outside of
the map for some: only regions that pydet takes samples of are handed on, the others stay 0. With
several levels each level gets its own regions. Regions are scaled here: the scale of a map is a
float32 in ONNX, and pydet's a number of the features' precision.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pydet.onnx._opset import ints, opset

_FLOAT, _INT64, _DOUBLE = 1, 7, 11
_REACH = 2.0**24  # farther than this many cells adaptive sampling takes no samples
_FAR = 2.0**29  # corners of MaxRoiPool are held here: runtimes compute with 32-bit integers


def _columns(op: Any, rows: Any, first: int, end: int) -> Any:
    return op.Slice(rows, ints(op, first), ints(op, end), ints(op, 1))


@dataclass
class _Regions:
    """Columns of the boxes [R, 5], each [R, 1], in ``dtype``, and which boxes have an image."""

    op: Any
    dtype: int
    batch_index: Any
    low: Any  # [R, 2], x before y
    high: Any  # [R, 2]
    has_image: Any  # [R, 1]

    def number(self, value: float) -> Any:
        """A constant of the regions' dtype."""
        from onnx import helper  # noqa: PLC0415

        return self.op.Constant(value=helper.make_tensor("value", self.dtype, [], [value]))

    def is_finite(self, values: Any) -> Any:
        """[R, 1] bool for [R, 2]: whether all are finite."""
        nothing = self.op.Mul(values, self.number(0.0))
        return self.all(self.op.Equal(nothing, self.number(0.0)))

    def all(self, flags: Any) -> Any:
        """[R, 1] for [R, 2] bool."""
        return self.op.And(_columns(self.op, flags, 0, 1), _columns(self.op, flags, 1, 2))

    def both(self, *flags: Any) -> Any:
        """[R, 1]: all of several [R, 1] bool."""
        result = flags[0]
        for flag in flags[1:]:
            result = self.op.And(result, flag)
        return result


def _regions(feature_map: Any, boxes: Any) -> _Regions:
    op = opset()
    dtype = _DOUBLE if int(feature_map.dtype) == _DOUBLE else _FLOAT
    boxes = op.Cast(boxes, to=dtype)
    index, low, high = (_columns(op, boxes, *ends) for ends in ((0, 1), (1, 3), (3, 5)))
    batch = op.Cast(op.Shape(feature_map, start=0, end=1), to=dtype)
    has_image = op.And(
        op.GreaterOrEqual(index, op.Cast(ints(op, 0), to=dtype)), op.Less(index, batch)
    )
    return _Regions(op, dtype, index, low, high, has_image)


def _chosen(regions: _Regions, feature_map: Any, flags: Any) -> Any:
    """Numbers [S] of the regions whose flag [R, 1] is set; none on a map without cells."""
    op = regions.op
    cells = op.ReduceProd(op.Shape(feature_map, start=2, end=4), keepdims=1)
    flags = op.And(flags, op.Greater(cells, ints(op, 0)))
    return op.Gather(op.NonZero(flags), op.Constant(value_int=0), axis=0)


def _placed(regions: _Regions, feature_map: Any, chosen: Any, pooled: Any, h: int, w: int) -> Any:
    """Pooled regions [S, C, h, w] at their numbers [S] in zeros [R, C, h, w]."""
    op = regions.op
    shape = op.Concat(
        op.Shape(regions.low, start=0, end=1),
        op.Shape(feature_map, start=1, end=2),
        ints(op, h, w),
        axis=0,
    )
    everything = op.Expand(regions.number(0.0), shape)
    return op.ScatterND(everything, op.Unsqueeze(chosen, ints(op, 1)), pooled)


def least_side(level: int, canonical_level: float, dtype: torch.dtype) -> float:
    """The least sqrt(area) / canonical_scale of a box of this level, as ``dtype`` rounds it.

    It is the first number with floor(canonical_level + log2(side) + 1e-6) >= level.
    """

    def rounded(value: float) -> float:
        return torch.tensor(value, dtype=dtype).item()

    def reaches(side: float) -> bool:
        log = rounded(rounded(canonical_level) + rounded(math.log2(side)))
        return math.floor(rounded(log + rounded(1e-6))) >= level

    below = rounded(0.99 * 2.0 ** (level - canonical_level))
    least = rounded(rounded(below / rounded(0.99)) * rounded(1.01))
    while True:
        middle = rounded(below + (least - below) / 2)
        if not below < middle < least:
            return least
        below, least = (below, middle) if reaches(middle) else (middle, least)


def _of_levels(
    regions: _Regions, scales: Sequence[float], canonical_scale: float, canonical_level: float
) -> list[Any]:
    """For each level [R, 1]: whether a region belongs to it."""
    op = regions.op
    if len(scales) == 1:
        return [regions.has_image]
    dtype = torch.float64 if regions.dtype == _DOUBLE else torch.float32
    sides = op.Sub(regions.high, regions.low)
    area = op.Mul(_columns(op, sides, 0, 1), _columns(op, sides, 1, 2))
    side = op.Div(op.Sqrt(area), regions.number(canonical_scale))
    reached = [op.GreaterOrEqual(side, regions.number(0.0))]  # NaN: of no level
    for scale in scales[1:]:
        least = least_side(round(-math.log2(scale)), canonical_level, dtype)
        reached.append(op.GreaterOrEqual(side, regions.number(least)))
    flags = [op.And(a, op.Not(b)) for a, b in itertools.pairwise(reached)]
    return [op.And(regions.has_image, flag) for flag in (*flags, reached[-1])]


def roi_align(
    features: Sequence[Any],
    boxes: Any,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    _channels_last: bool | None,
) -> Any:
    regions = _regions(features[0], boxes)
    op, number = regions.op, regions.number
    offset = 0.5 if aligned else 0.0
    numbers, results = [], []
    levels = _of_levels(regions, spatial_scales, canonical_scale, canonical_level)
    for feature_map, scale, flags in zip(features, spatial_scales, levels, strict=True):
        low, high = op.Mul(regions.low, number(scale)), op.Mul(regions.high, number(scale))
        start = op.Sub(low, number(offset))
        size = op.Sub(op.Sub(high, number(offset)), start)
        sampled = regions.both(flags, regions.is_finite(start), regions.is_finite(size))
        if sampling_ratio <= 0:
            near = regions.all(op.LessOrEqual(op.Abs(start), number(_REACH)))
            small = regions.all(op.LessOrEqual(size, number(_REACH)))
            sampled = regions.both(sampled, near, small)
            if aligned:
                sampled = op.And(sampled, regions.all(op.Greater(size, number(0.0))))
        chosen = _chosen(regions, feature_map, sampled)
        index = op.Gather(regions.batch_index, chosen, axis=0)
        pooled = op.RoiAlign(
            op.Cast(feature_map, to=regions.dtype),
            op.Gather(op.Concat(low, high, axis=1), chosen, axis=0),
            op.Squeeze(op.Cast(index, to=_INT64), ints(op, 1)),
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=pooled_height,
            output_width=pooled_width,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=1.0,
        )
        numbers.append(chosen)
        results.append(pooled)
    chosen, pooled = op.Concat(*numbers, axis=0), op.Concat(*results, axis=0)
    placed = _placed(regions, features[0], chosen, pooled, pooled_height, pooled_width)
    return op.Cast(placed, to=int(features[0].dtype))


def roi_pool(
    input: Any, boxes: Any, spatial_scale: float, pooled_height: int, pooled_width: int
) -> Any:
    regions = _regions(input, boxes)
    op, number = regions.op, regions.number
    finite = [regions.is_finite(corner) for corner in (regions.low, regions.high)]
    chosen = _chosen(regions, input, regions.both(regions.has_image, *finite))
    corners = op.Mul(op.Concat(regions.low, regions.high, axis=1), number(spatial_scale))
    corners = op.Clip(corners, number(-_FAR), number(_FAR))
    # MaxRoiPool takes the image's index as a number among the corners; fractions are cut off.
    index = op.Floor(regions.batch_index)
    pooled = op.MaxRoiPool(
        op.Cast(input, to=regions.dtype),
        op.Gather(op.Concat(index, corners, axis=1), chosen, axis=0),
        pooled_shape=[pooled_height, pooled_width],
        spatial_scale=1.0,
    )
    placed = _placed(regions, input, chosen, pooled, pooled_height, pooled_width)
    return op.Cast(placed, to=int(input.dtype))
