# SPDX-License-Identifier: Apache-2.0
"""ONNX export of detectors and of anything else that detects with pydet's ops.

``export_onnx`` is ``torch.onnx.export`` with what it does not know: how pydet's ops are said in
ONNX. The result runs without pydet, keeps the same boxes, and takes any batch size that
``dynamic_shapes`` leaves open.

- Suppression (:func:`pydet.ops.nms`, :func:`pydet.ops.batched_nms`, padded or not) becomes ONNX's
  NonMaxSuppression, a row of scores for each class that occurs. ONNX leaves open which of two boxes
  with equal scores comes first, so it is given ranks instead of scores: the same boxes are kept as
  by pydet, by score, then by index.
- Decoding, clipping and conversions of boxes become elementwise operators.

Needs the packages onnx and onnxscript. Source: ONNX operators, opset 18.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pydet.ops  # noqa: F401  (registers the operators)

OPSET = 18
_REASONS = {
    "soft_nms": "NonMaxSuppression drops boxes and lowers no score",
    "matrix_nms": "NonMaxSuppression drops boxes and lowers no score",
    "weighted_boxes_fusion": "no operator fuses boxes one after the other",
}

# --- ops that torch's own operators can say -----------------------------------------------------


def _decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float],
    scale_clamp: float,
    image_size: Sequence[int] | None,
    image_sizes: Tensor | None,
) -> Tensor:
    dtype = deltas.dtype if deltas.dtype == torch.float64 else torch.float32
    deltas, anchors, wide = deltas.to(dtype), anchors.to(dtype), deltas
    sides = []
    for axis in (0, 1):  # x, y
        low = anchors[..., axis]
        length = anchors[..., axis + 2] - low
        middle = deltas[..., axis] / weights[axis] * length + (low + 0.5 * length)
        scale = (deltas[..., axis + 2] / weights[axis + 2]).clamp(max=scale_clamp)
        half = 0.5 * (scale.exp() * length)
        ends = [middle - half, middle + half]
        if image_size is not None:
            ends = [end.clamp(0, image_size[1 - axis]) for end in ends]
        if image_sizes is not None:
            limit = image_sizes.to(dtype)[:, 1 - axis, None]  # [B, 1]
            ends = [end.clamp(min=0).minimum(limit) for end in ends]
        sides.append(ends)
    boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], -1)
    return boxes.to(wide.dtype)


def _clip_boxes_to_image(boxes: Tensor, height: float, width: float) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1
    )


def _box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    first, second = boxes.split([2, 2], -1)
    if in_fmt == "xywh":
        second = first + second
    elif in_fmt == "cxcywh":
        first, second = first - 0.5 * second, first + 0.5 * second
    if out_fmt == "xywh":
        second = second - first
    elif out_fmt == "cxcywh":
        first, second = (first + second) / 2, second - first
    return torch.cat([first, second], -1)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    native = torch.ops.pydet
    return {
        native.decode_boxes.default: _decode_boxes,
        native.clip_boxes_to_image.default: _clip_boxes_to_image,
        native.box_convert.default: _box_convert,
    }


# --- suppression --------------------------------------------------------------------------------


def _threshold_below(threshold: float) -> float:
    """The largest float32 not above the threshold: ONNX's is one, pydet's is a float64."""
    rounded = torch.tensor(threshold, dtype=torch.float32)
    if rounded.item() > threshold:
        rounded = torch.nextafter(rounded, torch.tensor(-1.0))
    return rounded.item()


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _ranked(op: Any, boxes: Any, keys: Any, takes_part: Any, idxs: Any) -> tuple[Any, Any, Any]:
    """Boxes [B, N, 4], ranks [B, C, N] and box numbers [B, N], by falling key, ties by index.

    A rank is N for the best box, falls by 1, and is 0 for boxes that take no part or are of another
    class. Boxes that overlap nothing get no area.
    """
    count = op.Shape(keys, start=1, end=2)  # [1]
    _, order = op.TopK(keys, count, axis=1)
    everywhere = op.Expand(op.Unsqueeze(order, _ints(op, 2)), _ints(op, 1, 1, 4))
    boxes = op.GatherElements(boxes, everywhere, axis=1)
    x1, y1, x2, y2 = (op.Gather(boxes, op.Constant(value_int=i), axis=2) for i in range(4))
    width, height = op.Sub(x2, x1), op.Sub(y2, y1)
    area = op.Mul(width, height)
    zero = op.Constant(value_float=0.0)
    proper = op.And(op.Greater(width, zero), op.Greater(height, zero))
    finite = op.Less(area, op.Constant(value_float=math.inf))
    proper = op.And(proper, op.And(op.Greater(area, zero), finite))
    boxes = op.Where(op.Unsqueeze(proper, _ints(op, 2)), boxes, zero)
    takes_part = op.GatherElements(takes_part, order, axis=1)
    number = op.Squeeze(count)
    falling = op.Range(number, op.Constant(value_int=0), op.Constant(value_int=-1))  # N ... 1
    ranks = op.Where(takes_part, falling, op.Constant(value_int=0))
    ranks = op.Unsqueeze(ranks, _ints(op, 1))  # [B, 1, N]
    if idxs is not None:
        _, _, inverse, _ = op.Unique(idxs, sorted=1)  # whatever int64 the classes are
        classes = op.GatherElements(op.Reshape(inverse, op.Shape(idxs)), order, axis=1)
        # As many classes as occur; at least 0, so that no box leaves no classes.
        most = op.ReduceMax(op.Concat(inverse, _ints(op, -1), axis=0), keepdims=0)
        rows = op.Range(
            op.Constant(value_int=0),
            op.Add(most, op.Constant(value_int=1)),
            op.Constant(value_int=1),
        )
        own = op.Equal(op.Unsqueeze(classes, _ints(op, 1)), op.Unsqueeze(rows, _ints(op, 0, 2)))
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
    where = op.Gather(selected, _ints(op, 0, 2), axis=1)
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
    return keep, op.ReduceSum(op.Cast(is_kept, to=7), _ints(op, 1), keepdims=0)


def _as_float32(op: Any, boxes: Any, scores: Any) -> tuple[Any, Any]:
    return op.Cast(boxes, to=1), op.Cast(scores, to=1)  # half precision: exact


def _nms_padded(
    boxes: Any,
    scores: Any,
    idxs: Any,
    iou_threshold: float,
    max_output: Any,
    score_threshold: float,
    overlap: int,
) -> Any:
    op = _opset()
    single = len(boxes.shape) == 2
    dtype = {10: torch.float16, 16: torch.bfloat16}.get(int(scores.dtype), torch.float32)
    least = torch.tensor(score_threshold, dtype=dtype).item()
    boxes, scores = _as_float32(op, boxes, scores)
    if single:
        boxes, scores = op.Unsqueeze(boxes, _ints(op, 0)), op.Unsqueeze(scores, _ints(op, 0))
        idxs = None if idxs is None else op.Unsqueeze(idxs, _ints(op, 0))
    takes_part = op.Greater(scores, op.Constant(value_float=least))
    keys = op.Where(takes_part, scores, op.Constant(value_float=-math.inf))
    most = _ints(op, max_output) if isinstance(max_output, int) else max_output
    most = op.Reshape(most, _ints(op, 1))
    keep, counts = _kept(op, *_ranked(op, boxes, keys, takes_part, idxs), iou_threshold, most)
    if single:
        keep, counts = op.Squeeze(keep, _ints(op, 0)), op.Squeeze(counts, _ints(op, 0))
    return keep, counts


def _nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float, overlap: int) -> Any:
    op = _opset()
    boxes, scores = _as_float32(op, boxes, scores)
    # NaN last, behind -inf: the others by score first, then, stable, NaN to the end.
    is_nan = op.IsNaN(scores)
    keys = op.Where(is_nan, op.Constant(value_float=-math.inf), scores)
    count = op.Shape(scores, start=0, end=1)
    _, order = op.TopK(keys, count, axis=0)
    is_number = op.Cast(op.Not(op.Gather(is_nan, order, axis=0)), to=1)
    _, second = op.TopK(is_number, count, axis=0)
    order = op.Gather(order, second, axis=0)
    boxes = op.Unsqueeze(op.Gather(boxes, order, axis=0), _ints(op, 0))
    if idxs is not None:
        idxs = op.Unsqueeze(op.Gather(idxs, order, axis=0), _ints(op, 0))
    row = op.Concat(_ints(op, 1), count, axis=0)
    same = op.Expand(op.Constant(value_float=0.0), row)  # in this order now
    everybody = op.Cast(op.Expand(op.Constant(value_int=1), row), to=9)
    keep, counts = _kept(op, *_ranked(op, boxes, same, everybody, idxs), iou_threshold, count)
    keep = op.Slice(op.Squeeze(keep, _ints(op, 0)), _ints(op, 0), counts)
    return op.Gather(order, keep, axis=0)


def _opset() -> Any:
    from onnxscript import opset18  # noqa: PLC0415

    return opset18


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx.export says pydet's suppression: its ``custom_translation_table``."""
    native = torch.ops.pydet
    return {native.nms.default: _nms, native.nms_padded.default: _nms_padded}


# --- export -------------------------------------------------------------------------------------


def _refuse(program: torch.export.ExportedProgram) -> None:
    """Raises for the first op that ONNX cannot say."""
    known = {*translation_table(), *_decompositions()}
    for node in program.graph.nodes:
        name = getattr(node.target, "name", lambda: "")() if node.op == "call_function" else ""
        if not name.startswith("pydet::"):
            continue
        name = name.removeprefix("pydet::").split(".")[0]
        reason = _REASONS.get(name.removesuffix("_padded"))
        if node.target not in known:
            raise NotImplementedError(
                f"export_onnx: {name} must be an op that ONNX can express, got one that it cannot"
                + (f" ({reason})" if reason else "")
            )
        if name in ("nms", "nms_padded"):
            _refuse_suppression(name, node)


def _refuse_suppression(name: str, node: Any) -> None:
    if node.args[-1] != 0:
        raise NotImplementedError(
            f"export_onnx: {name} must have overlap='iou', got 'diou' (NonMaxSuppression knows "
            "IoU alone)"
        )
    boxes = node.args[0].meta["val"]
    if boxes.dtype == torch.float64:
        raise NotImplementedError(
            f"export_onnx: {name} must have boxes of float32 or less, got float64 "
            "(NonMaxSuppression is float32)"
        )
    if boxes.dim() > 3:
        raise NotImplementedError(
            f"export_onnx: {name} must have boxes [N, 4] or [B, N, 4], got {boxes.dim()} dimensions"
        )


def export_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Writes a module that uses pydet's ops as an ONNX model.

    For a detector wrap :meth:`Detector.detect`, whose padded outputs have fixed shapes.

    Args:
        module: What is exported, in the mode that it is in.
        args: Example inputs. A dimension that stays dynamic should have a size of at least 2 here:
            torch.export takes 0 and 1 for constants.
        path: Where to write, or None.
        dynamic_shapes: As ``torch.export.export`` takes it, e.g. ``({0: Dim.DYNAMIC},)``.
        input_names: Names of the model's inputs.
        output_names: Names of the model's outputs.
        options: Further arguments of ``torch.onnx.export``.

    Returns:
        The ``torch.onnx.ONNXProgram``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        NotImplementedError: The module calls an op that ONNX cannot express; the text names it.
    """
    try:
        import onnx  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise ImportError(f"export_onnx: onnx and onnxscript must be installed ({error})") from None
    program = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
    _refuse(program)
    table = torch.export.default_decompositions()
    table.update(_decompositions())
    with torch.no_grad():
        program = program.run_decompositions(table)
    arguments: dict[str, Any] = {"opset_version": OPSET, **(options or {})}
    return torch.onnx.export(
        program,
        (),
        path,
        input_names=input_names,
        output_names=output_names,
        dynamo=True,
        custom_translation_table=translation_table(),
        **arguments,
    )
