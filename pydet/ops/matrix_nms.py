# SPDX-License-Identifier: Apache-2.0
"""Matrix non-maximum suppression: scores decay by all better boxes at once.

With the boxes by falling score (ties by index), f the decay and peak(i) the greatest IoU of box i
with a better one of its class, the score of box j is multiplied by the least f(IoU(i, j)) /
f(peak(i)) over the better boxes i of its class: what box i would do to j, made up for what others
do to i. The paper does so with masks, pydet with boxes.

- 'linear': f(IoU) = 1 - IoU; 'gaussian': f(IoU) = exp(-IoU² / sigma). A box that equals a better
  one (peak 1, 'linear') is gone itself and counts for nothing.
- No box waits for another, so all are decided at once; least and greatest are the same in any
  order, so every number of threads, and CPU and CUDA, give the same bits. Scores and IoUs are
  float32 (float64 for float64 boxes), rounded to the dtype of the scores at the end.
- Scores not greater than the threshold, and NaN scores, take no part.
- A box with a NaN coordinate, or without area (also inverted ones), overlaps nothing: it keeps its
  score and changes no other.

Source: Wang et al., "SOLOv2: dynamic and fast instance segmentation", NeurIPS 2020, section 3.3.
"""

from typing import Any, overload

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

_matrix_nms = define(
    "matrix_nms(Tensor boxes, Tensor scores, Tensor? idxs, int method, float sigma, "
    "float score_threshold) -> (Tensor, Tensor)",
    fake=fake_decayed,
    differentiable=False,
    autocast=torch.float32,
)
_matrix_nms_padded = define(
    "matrix_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, int method, float sigma, "
    "float score_threshold, SymInt max_output) -> (Tensor, Tensor, Tensor)",
    fake=fake_decayed_padded,
    differentiable=False,
    autocast=torch.float32,
)


@overload
def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    method: str = "gaussian",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> DecayedKeep: ...


@overload
def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    method: str = "gaussian",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    *,
    max_output: int,
) -> PaddedDecayedKeep: ...


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    method: str = "gaussian",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    *,
    max_output: int | None = None,
) -> DecayedKeep | PaddedDecayedKeep:
    """Lowers the scores of boxes that overlap better ones, all at once.

    Args:
        boxes: [N, 4] xyxy, in any one unit; float16, bfloat16, float32 or float64. Padded form:
            [..., N, 4].
        scores: [N] or [..., N], same dtype and device.
        idxs: [N] or [..., N]: the class of each box, any integers (or floats, equal ones being one
            class); boxes of different classes never change each other. None: one class.
        method: 'linear' or 'gaussian'.
        sigma: Width of 'gaussian': a greater one decays less. The paper's code writes 1 / sigma, 2.
        score_threshold: Boxes whose score is not greater, at the start or once decayed, are
            dropped. Rounded to the dtype of the scores; at least 0.
        max_output: D, the most boxes that an image keeps; gives the padded form, for any batch of
            images in one call and without synchronisation with the host.

    Returns:
        A :class:`DecayedKeep` of keep [D'] int64 and scores [D'], by falling decayed score, ties by
        index. Padded form: a :class:`PaddedDecayedKeep` of keep [..., D], scores [..., D] and
        counts [...]. The scores carry no gradient.

    Raises:
        TypeError: Not tensors, not floating, or dtypes differ.
        ValueError: Wrong shapes, different devices, an unknown method, a number out of its range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
        >>> matrix_nms(boxes, torch.tensor([0.75, 0.5, 0.5]), method="linear")
        DecayedKeep(keep=tensor([0, 2, 1]), scores=tensor([0.7500, 0.5000, 0.2500]))
    """
    op = "matrix_nms"
    check_suppression(op, boxes, scores, idxs, 0, leading=max_output is not None)
    number = check_decay(op, method, sigma, score_threshold)
    arguments: tuple[Any, ...] = (
        boxes.detach(),
        scores.detach(),
        as_classes(idxs),
        number,
        float(sigma),
        float(score_threshold),
    )
    if max_output is None:
        return DecayedKeep(*_matrix_nms(*arguments))
    check_max_output(op, max_output)
    return PaddedDecayedKeep(*_matrix_nms_padded(*arguments, max_output))
