# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression: of one set of boxes, class by class, and of a padded batch.

One rule for all forms. Boxes are visited by decreasing score; a box is kept unless its IoU with a
kept box of its class is greater than the threshold.

- Ties of scores go by index, the smaller first, on every device. NaN scores rank last (torchvision
  ranks them first).
- The IoU is the quotient in float32 (float64 for float64 boxes), rounded once, and compared with
  the threshold exactly as given: the same boxes are kept on every device and CPU.
- DIoU is decided in float64 without a division: exact wherever the products are, as on integers
  below 1024, and the same on every device.
- A box with a NaN coordinate, or without area (also inverted ones), overlaps nothing: it hides
  no box, and no box hides it.
- Classes are compared, not turned into offsets of coordinates: negative coordinates, any number of
  classes and half precision are exact.

Source: greedy suppression as in Felzenszwalb et al., TPAMI 2010, section 7.2; results as those of
torchvision. DIoU-NMS: Zheng et al., "Distance-IoU loss", AAAI 2020, section 4.3; used by YOLOv4.
"""

import math
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from pydet.ops._checks import check_choice, check_number
from pydet.ops._library import define
from pydet.ops._suppression import as_classes, check_max_output, check_suppression


class PaddedKeep(NamedTuple):
    """What suppression kept, in rows of fixed length: ``boxes[b, keep[b, k]]`` for k < counts[b].

    The rows are ordered by decreasing score. ``keep[b, k]`` is -1 for k >= counts[b].
    """

    keep: Tensor  # [..., D] int64
    counts: Tensor  # [...] int64


def _fake_nms(boxes: Tensor, *_: Any) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


_nms = define(
    "nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, int overlap) -> Tensor",
    fake=_fake_nms,
    differentiable=False,
    autocast=torch.float32,
)


def _fake_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float,
    overlap: int,
) -> tuple[Tensor, Tensor]:
    keep = boxes.new_empty((*boxes.shape[:-2], max_output), dtype=torch.int64)
    return keep, boxes.new_empty(boxes.shape[:-2], dtype=torch.int64)


_nms_padded = define(
    "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, "
    "SymInt max_output, float score_threshold, int overlap) -> (Tensor, Tensor)",
    fake=_fake_nms_padded,
    differentiable=False,
    autocast=torch.float32,
)


OVERLAPS = ("iou", "diou")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, overlap: str = "iou") -> Tensor:
    """Indices of the boxes that no better box hides.

    Args:
        boxes: [N, 4] xyxy, in any one unit; float16, bfloat16, float32 or float64.
        scores: [N], same dtype and device.
        iou_threshold: A box is dropped where its IoU with a kept box of a higher score is greater
            than this, in [0, 1].
        overlap: 'iou', or 'diou' for DIoU-NMS: the IoU less the squared distance of the centres
            over the squared diagonal of the smallest box around both.

    Returns:
        [D] int64, by decreasing score; ties by index, NaN scores last. A box with a NaN coordinate
        or without area is always among them.

    Raises:
        TypeError: Not tensors, not floating, or dtypes differ.
        ValueError: Wrong shapes, different devices, a threshold outside of [0, 1], or an unknown
            overlap.

    On a GPU this waits for the number of boxes; :func:`batched_nms` with ``max_output`` does not.
    """
    check_suppression("nms", boxes, scores, None, iou_threshold, leading=False)
    check_choice("nms", "overlap", overlap, OVERLAPS)
    keep: Tensor = _nms(boxes, scores, None, float(iou_threshold), OVERLAPS.index(overlap))
    return keep


@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, overlap: str = "iou"
) -> Tensor: ...


@overload
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    *,
    overlap: str = "iou",
    max_output: int,
    score_threshold: float = -math.inf,
) -> PaddedKeep: ...


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    *,
    overlap: str = "iou",
    max_output: int | None = None,
    score_threshold: float = -math.inf,
) -> Tensor | PaddedKeep:
    """Suppression class by class: boxes of different classes never hide each other.

    Without ``max_output`` as torchvision: one image, as many indices as boxes are kept. With it the
    padded form: any batch of images in one call, results of fixed size, no synchronisation with
    the host, and each image is done as soon as ``max_output`` boxes are kept.

    Args:
        boxes: [N, 4] xyxy, in any one unit, floating; padded form: [..., N, 4].
        scores: [N] or [..., N], same dtype and device.
        idxs: [N] or [..., N]: the class of each box, any integers (or floats, equal ones being one
            class). Padded form: None puts all boxes of an image into one class.
        iou_threshold: A box is dropped where its IoU with a kept box of its class and of a higher
            score is greater than this, in [0, 1].
        overlap: 'iou', or 'diou' (see :func:`nms`).
        max_output: D, the most boxes that an image keeps.
        score_threshold: Padded form: only boxes with a greater score take part, compared in the
            dtype of the scores as ``scores > score_threshold`` does. So a NaN or -inf score marks
            rows of padding.

    Returns:
        [D'] int64, indices by decreasing score over all classes. Padded form: a
        :class:`PaddedKeep` of keep [..., D], padded with -1, and counts [...], both int64.

    Raises:
        TypeError: Not tensors, boxes or scores not floating, or dtypes differ.
        ValueError: Wrong shapes, different devices, a threshold outside of [0, 1], an unknown
            overlap, a negative max_output, or a score_threshold of NaN.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
        >>> scores = torch.tensor([0.9, 0.8, 0.7])
        >>> batched_nms(boxes, scores, torch.tensor([0, 0, 1]), 0.5)
        tensor([0, 2])
    """
    padded = max_output is not None
    check_suppression("batched_nms", boxes, scores, idxs, iou_threshold, leading=padded)
    check_choice("batched_nms", "overlap", overlap, OVERLAPS)
    measure = OVERLAPS.index(overlap)
    if max_output is None:
        if idxs is None:
            raise TypeError("batched_nms: idxs must be a tensor, got None without max_output")
        if score_threshold != -math.inf:
            raise ValueError(
                "batched_nms: score_threshold must come with max_output, got "
                f"{score_threshold} without"
            )
        kept: Tensor = _nms(boxes, scores, as_classes(idxs), float(iou_threshold), measure)
        return kept
    check_max_output("batched_nms", max_output)
    check_number(
        "batched_nms", "score_threshold", score_threshold, "a number", lambda v: v <= math.inf
    )
    keep, counts = _nms_padded(
        boxes,
        scores,
        as_classes(idxs),
        float(iou_threshold),
        max_output,
        float(score_threshold),
        measure,
    )
    return PaddedKeep(keep, counts)
