# SPDX-License-Identifier: Apache-2.0
"""Weighted boxes fusion: the boxes of several models (or views) become means of each other.

In each class the boxes are visited by falling score, ties by index. A box joins the cluster whose
fused box has the greatest IoU with it (the first of equals), if that is greater than the threshold,
or founds a cluster. The fused box is the mean of the cluster's boxes, weighted by their scores. Its
score is the mean of theirs, times the share of all models that the cluster's size stands for; or
the maximum of theirs.

- Scores not greater than the threshold, NaN and infinite ones take no part. The others are
  multiplied by the weight of their model first.
- A box with a NaN coordinate, or without area (also inverted ones), is a cluster of its own.
- Sums are float32 (float64 for float64 boxes), taken in the order of the scores: CPU and CUDA, and
  any number of threads, give the same bits. A cluster of one box has exactly its coordinates.
- Classes are compared, not turned into offsets of coordinates.

Source: Solovyev, Wang, Gabruseva, "Weighted boxes fusion: ensembling boxes from different object
detection models", Image and Vision Computing 2021, section 3; options as in its authors' code.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from pydet.ops._checks import (
    check_choice,
    check_integer,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define
from pydet.ops._suppression import as_classes, check_max_output, check_suppression

CONF_TYPES = ("avg", "max")


class FusedBoxes(NamedTuple):
    """Fused boxes by falling score, with their classes."""

    boxes: Tensor  # [D, 4] xyxy
    scores: Tensor  # [D]
    labels: Tensor  # [D], as idxs


class PaddedFusedBoxes(NamedTuple):
    """Rows of fixed length; from ``counts[b]`` on boxes and scores are 0 and labels -1."""

    boxes: Tensor  # [..., D, 4] xyxy
    scores: Tensor  # [..., D]
    labels: Tensor  # [..., D], as idxs
    counts: Tensor  # [...] int64


def _fake_fusion(
    boxes: Tensor, scores: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, max_output = others
    shape = boxes.shape[:-2]
    return (
        boxes.new_empty(boxes.shape),
        boxes.new_empty((*shape, max_output), dtype=torch.int64),
        scores.new_empty((*shape, max_output)),
        boxes.new_empty(shape, dtype=torch.int64),
    )


_fusion = define(
    "weighted_boxes_fusion(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, "
    "int num_models, float total_weight, bool by_best, bool overflow, SymInt max_output) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_fusion,
    differentiable=False,
    autocast=torch.float32,
)


def _check(
    num_models: Any, weights: Any, models: Any, score_threshold: Any, conf_type: Any, scores: Tensor
) -> None:
    op = "weighted_boxes_fusion"
    check_integer(op, "num_models", num_models)
    if num_models < 1:
        raise ValueError(f"{op}: num_models must be at least 1, got {num_models}")
    check_number(op, "score_threshold", score_threshold, "at least 0", lambda v: v >= 0)
    check_choice(op, "conf_type", conf_type, CONF_TYPES)
    if (weights is None) != (models is None):
        raise TypeError(f"{op}: weights and models must come together, got one of them")
    if weights is None:
        return
    if len(weights) != num_models:
        raise ValueError(
            f"{op}: weights must have {num_models} numbers, one a model, got {len(weights)}"
        )
    for weight in weights:
        check_number(op, "weights", weight, "positive and finite", lambda v: 0 < v < math.inf)
    check_tensor(op, "models", models)
    if models.dtype != torch.int64:
        raise TypeError(f"{op}: models must be int64, got {models.dtype}")
    check_shape(op, "models", models, f"{list(scores.shape)}", lambda s: s == scores.shape)
    check_same_device(op, "models", models, "boxes", scores)


@overload
def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    num_models: int,
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    *,
    weights: Sequence[float] | None = None,
    models: Tensor | None = None,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> FusedBoxes: ...


@overload
def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    num_models: int,
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    *,
    weights: Sequence[float] | None = None,
    models: Tensor | None = None,
    conf_type: str = "avg",
    allows_overflow: bool = False,
    max_output: int,
) -> PaddedFusedBoxes: ...


def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    num_models: int,
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    *,
    weights: Sequence[float] | None = None,
    models: Tensor | None = None,
    conf_type: str = "avg",
    allows_overflow: bool = False,
    max_output: int | None = None,
) -> FusedBoxes | PaddedFusedBoxes:
    """Fuses the boxes of several models that are about the same object.

    Args:
        boxes: [N, 4] xyxy of all models together, in any one unit; float16, bfloat16, float32 or
            float64. Padded form: [..., N, 4].
        scores: [N] or [..., N], same dtype and device.
        idxs: [N] or [..., N]: the class of each box, any integers (or floats, equal ones being one
            class).
        num_models: How many models the boxes are from.
        iou_threshold: A box joins a cluster where the IoU is greater than this, in [0, 1].
        score_threshold: Boxes whose score is not greater take no part; at least 0.
        weights: One positive number a model, for its scores; with ``models``. None: all 1.
        models: [N] or [..., N] int64: which model each box is from, in [0, num_models); boxes of
            others take no part.
        conf_type: The score of a cluster is the mean of its boxes' times the share of models that
            they are ('avg'), or their maximum ('max'; over the greatest of the weights).
        allows_overflow: Whether a cluster of more boxes than models counts for more than all.
        max_output: D, the most boxes that an image gets; gives the padded form, for any batch of
            images in one call and without synchronisation with the host.

    Returns:
        A :class:`FusedBoxes` of boxes [D', 4], scores [D'] and labels [D'], by falling score, ties
        by the index of the cluster's first box. Padded form: a :class:`PaddedFusedBoxes` with
        counts [...]. Nothing carries a gradient.

    Raises:
        TypeError: Not tensors, not floating, dtypes differ, or weights without models.
        ValueError: Wrong shapes, different devices, or a number out of its range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 10], [20, 0, 28, 8]])
        >>> scores, idxs = torch.tensor([0.75, 0.25, 0.5]), torch.tensor([3, 3, 4])
        >>> weighted_boxes_fusion(boxes, scores, idxs, num_models=2).boxes
        tensor([[ 0.0000,  0.0000,  8.0000,  8.5000],
                [20.0000,  0.0000, 28.0000,  8.0000]])
    """
    op = "weighted_boxes_fusion"
    check_suppression(op, boxes, scores, idxs, iou_threshold, leading=max_output is not None)
    check_tensor(op, "idxs", idxs)
    _check(num_models, weights, models, score_threshold, conf_type, scores)
    boxes, scores = boxes.detach(), scores.detach()
    takes_part = scores > score_threshold
    if weights is not None and models is not None:
        weighted = torch.zeros_like(scores)
        for model, weight in enumerate(weights):  # a table of them would be a copy to the device
            weighted = torch.where(models == model, scores * weight, weighted)
        scores = weighted
    takes_part &= scores < math.inf
    by_best = conf_type == "max"
    weights = [1.0] * num_models if weights is None else weights
    total = max(weights) if by_best else sum(weights)
    count = boxes.shape[-2] if max_output is None else max_output
    check_max_output(op, count)
    fused, keep, fused_scores, counts = _fusion(
        boxes,
        scores.where(takes_part, 0),
        as_classes(idxs),
        float(iou_threshold),
        num_models,
        float(total),
        by_best,
        allows_overflow,
        count,
    )
    if max_output is None:
        kept = (keep >= 0).nonzero()[:, 0]
        keep = keep[kept]
        return FusedBoxes(fused[keep], fused_scores[kept], idxs[keep])
    padding = keep < 0
    if boxes.shape[-2] == 0:  # nothing to gather from
        labels = idxs.new_full(keep.shape, -1)
        return PaddedFusedBoxes(fused.new_zeros((*keep.shape, 4)), fused_scores, labels, counts)
    first = keep.clamp(min=0)
    return PaddedFusedBoxes(
        fused.gather(-2, first[..., None].expand(*first.shape, 4)).masked_fill(
            padding[..., None], 0
        ),
        fused_scores,
        idxs.gather(-1, first).masked_fill(padding, -1),
        counts,
    )
