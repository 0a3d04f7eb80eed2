# SPDX-License-Identifier: Apache-2.0
"""ONNX export of detectors and of anything else that detects with pydet's ops.

``export_onnx`` is ``torch.onnx.export`` with what it does not know: how pydet's ops are said in
ONNX. The result runs without pydet, keeps the same boxes, and takes any batch size that
``dynamic_shapes`` leaves open.

- Suppression (:func:`pydet.ops.nms`, :func:`pydet.ops.batched_nms`, padded or not) becomes ONNX's
  NonMaxSuppression, a row of scores for each class that occurs. ONNX leaves open which of two boxes
  with equal scores comes first, so it is given ranks instead of scores: the same boxes are kept as
  by pydet, by score, then by index.
- :func:`pydet.ops.roi_align` and :func:`pydet.ops.multiscale_roi_align` become a RoiAlign for each
  level, with any number of regions; :func:`pydet.ops.roi_pool` becomes MaxRoiPool. Adaptive
  sampling takes the samples outside of the map there, too: clip boxes before. What becomes of a
  map's NaN and infinities is the runtime's choice.
- Decoding, clipping and conversions of boxes become elementwise operators.

Needs the packages onnx and onnxscript. Source: ONNX operators, opset 18.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import pydet.ops  # noqa: F401  (registers the operators)
from pydet.onnx import _boxes, _rois, _suppression
from pydet.onnx._opset import VERSION

_REASONS = {
    "soft_nms": "NonMaxSuppression drops boxes and lowers no score",
    "matrix_nms": "NonMaxSuppression drops boxes and lowers no score",
    "weighted_boxes_fusion": "no operator fuses boxes one after the other",
    "ps_roi": "RoiAlign takes all channels for every bin",
}


def _decompositions() -> dict[Any, Callable[..., Any]]:
    native = torch.ops.pydet
    return {
        native.decode_boxes.default: _boxes.decode_boxes,
        native.clip_boxes_to_image.default: _boxes.clip_boxes_to_image,
        native.box_convert.default: _boxes.box_convert,
    }


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx.export says pydet's operators: its ``custom_translation_table``."""
    native = torch.ops.pydet
    return {
        native.nms.default: _suppression.nms,
        native.nms_padded.default: _suppression.nms_padded,
        native.roi_align.default: _rois.roi_align,
        native.roi_pool.default: _rois.roi_pool,
    }


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
        if name == "roi_pool" and node.args[0].meta["val"].dtype == torch.float64:
            raise NotImplementedError(
                "export_onnx: roi_pool must have features of float32 or less, got float64 "
                "(runtimes have MaxRoiPool for float32)"
            )


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

    A detector is exported as it is, with a list of images for an argument: resizing and normalising
    are in the file then, and it takes images of these sizes. A module around
    :meth:`Detector.detect` takes batches that are ready, of any size, and its padded outputs have
    fixed shapes.

    Args:
        module: What is exported, in the mode that it is in.
        args: Example inputs, e.g. ``([image],)``. A dimension that stays dynamic should have a size
            of at least 2 here: torch.export takes 0 and 1 for constants.
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
    arguments: dict[str, Any] = {"opset_version": VERSION, **(options or {})}
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
