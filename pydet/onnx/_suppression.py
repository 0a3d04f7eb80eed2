# SPDX-License-Identifier: Apache-2.0
"""Suppression by ONNX's NonMaxSuppression, which is given ranks instead of scores.

ONNX leaves open which of two boxes with equal scores comes first; ranks are never equal.
"""

import math
from typing import Any

import torch

from pydet.onnx._opset import ints, opset


def _threshold_below(threshold: float) -> float:
    """The largest float32 not above the threshold: ONNX's is one, pydet's is a float64."""
    rounded = torch.tensor(threshold, dtype=torch.float32)
    if rounded.item() > threshold:
        rounded = torch.nextafter(rounded, torch.tensor(-1.0))
    return rounded.item()


def _ranked(op: Any, boxes: Any, keys: Any, takes_part: Any, idxs: Any) -> tuple[Any, Any, Any]:
    """Boxes [B, N, 4], ranks [B, C, N] and box numbers [B, N], by falling key, ties by index.

    A rank is N for the best box, falls by 1, and is 0 for boxes that take no part or are of another
    class. Boxes that overlap nothing get no area.
    """
    count = op.Shape(keys, start=1, end=2)  # [1]
    _, order = op.TopK(keys, count, axis=1)
    everywhere = op.Expand(op.Unsqueeze(order, ints(op, 2)), ints(op, 1, 1, 4))
    boxes = op.GatherElements(boxes, everywhere, axis=1)
    x1, y1, x2, y2 = (op.Gather(boxes, op.Constant(value_int=i), axis=2) for i in range(4))
    width, height = op.Sub(x2, x1), op.Sub(y2, y1)
    area = op.Mul(width, height)
    zero = op.Constant(value_float=0.0)
    proper = op.And(op.Greater(width, zero), op.Greater(height, zero))
    finite = op.Less(area, op.Constant(value_float=math.inf))
    proper = op.And(proper, op.And(op.Greater(area, zero), finite))
    boxes = op.Where(op.Unsqueeze(proper, ints(op, 2)), boxes, zero)
    takes_part = op.GatherElements(takes_part, order, axis=1)
    number = op.Squeeze(count)
    falling = op.Range(number, op.Constant(value_int=0), op.Constant(value_int=-1))  # N ... 1
    ranks = op.Where(takes_part, falling, op.Constant(value_int=0))
    ranks = op.Unsqueeze(ranks, ints(op, 1))  # [B, 1, N]
    if idxs is not None:
        _, _, inverse, _ = op.Unique(idxs, sorted=1)  # whatever int64 the classes are
        classes = op.GatherElements(op.Reshape(inverse, op.Shape(idxs)), order, axis=1)
        # As many classes as occur; at least 0, so that no box leaves no classes.
        most = op.ReduceMax(op.Concat(inverse, ints(op, -1), axis=0), keepdims=0)
        rows = op.Range(
            op.Constant(value_int=0),
            op.Add(most, op.Constant(value_int=1)),
            op.Constant(value_int=1),
        )
        own = op.Equal(op.Unsqueeze(classes, ints(op, 1)), op.Unsqueeze(rows, ints(op, 0, 2)))
        ranks = op.Where(own, ranks, op.Constant(value_int=0))  # [B, C, N]
    return boxes, op.Cast(ranks, to=1), order


def _kept(
    op: Any, boxes: Any, ranks: Any, order: Any, iou_threshold: float, max_output: Any
) -> tuple[Any, Any]:
    """Box numbers [B, D] padded with -1, and counts [B], of the best max_output [1] kept boxes."""
    selected = op.NonMaxSuppression(
        boxes,
        ranks,
        max_output,
        op.Constant(value_float=_threshold_below(iou_threshold)),
        op.Constant(value_float=0.5),
    )  # [S, 3]: image, class, place in the order
    where = op.Gather(selected, ints(op, 0, 2), axis=1)
    one = op.Expand(op.Constant(value_int=1), op.Shape(where, start=0, end=1))
    shape = op.Shape(order)
    # Where it is kept, a box has its rank; padding, as long as the output, has 0.
    falling = op.Range(
        op.Squeeze(op.Shape(order, start=1, end=2)),
        op.Constant(value_int=0),
        op.Constant(value_int=-1),
    )
    nothing = op.Expand(op.Constant(value_int=0), shape)
    value = op.Mul(op.ScatterND(nothing, where, one), falling)
    room = op.Concat(op.Shape(order, start=0, end=1), max_output, axis=0)
    value = op.Concat(value, op.Expand(op.Constant(value_int=0), room), axis=1)
    numbers = op.Concat(order, op.Expand(op.Constant(value_int=-1), room), axis=1)
    best, places = op.TopK(value, max_output, axis=1)
    is_kept = op.Greater(best, op.Constant(value_int=0))
    keep = op.Where(is_kept, op.GatherElements(numbers, places, axis=1), op.Constant(value_int=-1))
    return keep, op.ReduceSum(op.Cast(is_kept, to=7), ints(op, 1), keepdims=0)


def _as_float32(op: Any, boxes: Any, scores: Any) -> tuple[Any, Any]:
    return op.Cast(boxes, to=1), op.Cast(scores, to=1)  # half precision: exact


def nms_padded(
    boxes: Any,
    scores: Any,
    idxs: Any,
    iou_threshold: float,
    max_output: Any,
    score_threshold: float,
    overlap: int,
) -> Any:
    op = opset()
    single = len(boxes.shape) == 2
    dtype = {10: torch.float16, 16: torch.bfloat16}.get(int(scores.dtype), torch.float32)
    least = torch.tensor(score_threshold, dtype=dtype).item()
    boxes, scores = _as_float32(op, boxes, scores)
    if single:
        boxes, scores = op.Unsqueeze(boxes, ints(op, 0)), op.Unsqueeze(scores, ints(op, 0))
        idxs = None if idxs is None else op.Unsqueeze(idxs, ints(op, 0))
    takes_part = op.Greater(scores, op.Constant(value_float=least))
    keys = op.Where(takes_part, scores, op.Constant(value_float=-math.inf))
    most = ints(op, max_output) if isinstance(max_output, int) else max_output
    most = op.Reshape(most, ints(op, 1))
    keep, counts = _kept(op, *_ranked(op, boxes, keys, takes_part, idxs), iou_threshold, most)
    if single:
        keep, counts = op.Squeeze(keep, ints(op, 0)), op.Squeeze(counts, ints(op, 0))
    return keep, counts


def nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float, overlap: int) -> Any:
    op = opset()
    boxes, scores = _as_float32(op, boxes, scores)
    # NaN last, behind -inf: the others by score first, then, stable, NaN to the end.
    is_nan = op.IsNaN(scores)
    keys = op.Where(is_nan, op.Constant(value_float=-math.inf), scores)
    count = op.Shape(scores, start=0, end=1)
    _, order = op.TopK(keys, count, axis=0)
    is_number = op.Cast(op.Not(op.Gather(is_nan, order, axis=0)), to=1)
    _, second = op.TopK(is_number, count, axis=0)
    order = op.Gather(order, second, axis=0)
    boxes = op.Unsqueeze(op.Gather(boxes, order, axis=0), ints(op, 0))
    if idxs is not None:
        idxs = op.Unsqueeze(op.Gather(idxs, order, axis=0), ints(op, 0))
    row = op.Concat(ints(op, 1), count, axis=0)
    same = op.Expand(op.Constant(value_float=0.0), row)  # in this order now
    everybody = op.Cast(op.Expand(op.Constant(value_int=1), row), to=9)
    keep, counts = _kept(op, *_ranked(op, boxes, same, everybody, idxs), iou_threshold, count)
    keep = op.Slice(op.Squeeze(keep, ints(op, 0)), ints(op, 0), counts)
    return op.Gather(order, keep, axis=0)
