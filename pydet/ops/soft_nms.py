# SPDX-License-Identifier: Apache-2.0
"""Soft non-maximum suppression: overlapping boxes lose score instead of being dropped.

The box with the best score is picked, the scores of the boxes of its class that are left decay by
their IoU with it, and so on, until no score is greater than the threshold.

- 'linear': score · (1 - IoU) where IoU >= iou_threshold (equation 2 of the paper);
  'gaussian': score · exp(-IoU² / sigma) for every overlap (equation 3).
- Ties of scores go by index, the smaller first, on every device. Scores and IoUs are float32
  (float64 for float64 boxes) throughout, rounded to the dtype of the scores at the end. CPU and
  CUDA give the same bits.
- Scores not greater than the threshold, and NaN scores, take no part. As thresholds are not
  negative, neither do negative scores, which no factor could lower.
- A box with a NaN coordinate, or without area (also inverted ones), overlaps nothing: it keeps its
  score and changes no other.
- Classes are compared, not turned into offsets of coordinates.

Source: Bodla et al., "Soft-NMS: improving object detection with one line of code", ICCV 2017,
section 3.
"""

from typing import overload

import torch
from torch import Tensor

from pydet.ops._library import define
from pydet.ops._suppression import (
    DecayedKeep,
    PaddedDecayedKeep,
    as_classes,
    check_decay,
    check_max_output,
    check_suppression,
    fake_decayed,
    fake_decayed_padded,
)

_soft_nms = define(
    "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, int method, float iou_threshold, "
    "float sigma, float score_threshold) -> (Tensor, Tensor)",
    fake=fake_decayed,
    differentiable=False,
    autocast=torch.float32,
)


_soft_nms_padded = define(
    "soft_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, int method, float iou_threshold, "
    "float sigma, float score_threshold, SymInt max_output) -> (Tensor, Tensor, Tensor)",
    fake=fake_decayed_padded,
    differentiable=False,
    autocast=torch.float32,
)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> DecayedKeep:
    """Lowers the scores of boxes that overlap better ones.

    Args:
        boxes: [N, 4] xyxy, in any one unit; float16, bfloat16, float32 or float64.
        scores: [N], same dtype and device.
        method: 'linear' or 'gaussian'.
        iou_threshold: 'linear' leaves scores alone where the IoU is smaller, in [0, 1].
        sigma: Width of 'gaussian': a greater one decays less.
        score_threshold: Boxes whose score is not greater, at the start or once decayed, are
            dropped. Rounded to the dtype of the scores; at least 0.

    Returns:
        A :class:`DecayedKeep` of keep [D] int64, in the order in which the boxes are picked, and
        their decayed scores [D], which do not rise. The scores carry no gradient.

    Raises:
        TypeError: Not tensors, not floating, or dtypes differ.
        ValueError: Wrong shapes, different devices, an unknown method, a number out of its range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
        >>> soft_nms(boxes, torch.tensor([0.75, 0.5, 0.5]))
        DecayedKeep(keep=tensor([0, 2, 1]), scores=tensor([0.7500, 0.5000, 0.2500]))

    On a GPU this waits for the number of boxes; :func:`batched_soft_nms` with ``max_output`` does
    not.
    """
    check_suppression("soft_nms", boxes, scores, None, iou_threshold, leading=False)
    number = check_decay("soft_nms", method, sigma, score_threshold)
    return DecayedKeep(
        *_soft_nms(
            boxes.detach(),
            scores.detach(),
            None,
            number,
            float(iou_threshold),
            float(sigma),
            float(score_threshold),
        )
    )


@overload
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> DecayedKeep: ...


@overload
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    *,
    max_output: int,
) -> PaddedDecayedKeep: ...


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    *,
    max_output: int | None = None,
) -> DecayedKeep | PaddedDecayedKeep:
    """:func:`soft_nms` class by class: boxes of different classes never change each other.

    Args:
        boxes: [N, 4] xyxy, in any one unit, floating; padded form: [..., N, 4].
        scores: [N] or [..., N], same dtype and device.
        idxs: [N] or [..., N]: the class of each box, any integers (or floats, equal ones being one
            class). Padded form: None puts all boxes of an image into one class.
        method: 'linear' or 'gaussian'.
        iou_threshold: See :func:`soft_nms`.
        sigma: See :func:`soft_nms`.
        score_threshold: See :func:`soft_nms`.
        max_output: D, the most boxes that an image keeps; gives the padded form, for any batch of
            images in one call and without synchronisation with the host.

    Returns:
        A :class:`DecayedKeep` of keep [D'] and scores [D'], by falling decayed score over all
        classes. Padded form: a :class:`PaddedDecayedKeep` of keep [..., D], scores [..., D] and
        counts [...].

    Raises:
        TypeError: Not tensors, not floating, or dtypes differ.
        ValueError: Wrong shapes, different devices, an unknown method, a number out of its range.
    """
    op = "batched_soft_nms"
    check_suppression(op, boxes, scores, idxs, iou_threshold, leading=max_output is not None)
    number = check_decay(op, method, sigma, score_threshold)
    if max_output is None and idxs is None:
        raise TypeError(f"{op}: idxs must be a tensor, got None without max_output")
    arguments = (
        boxes.detach(),
        scores.detach(),
        as_classes(idxs),
        number,
        float(iou_threshold),
        float(sigma),
        float(score_threshold),
    )
    if max_output is None:
        return DecayedKeep(*_soft_nms(*arguments))
    check_max_output(op, max_output)
    return PaddedDecayedKeep(*_soft_nms_padded(*arguments, max_output))
