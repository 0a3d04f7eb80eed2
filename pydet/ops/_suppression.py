# SPDX-License-Identifier: Apache-2.0
"""What the suppression ops (nms, soft_nms, ...) check and convert alike."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_boxes,
    check_choice,
    check_dtype,
    check_integer,
    check_number,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)

METHODS = ("linear", "gaussian")


def check_suppression(
    op: str, boxes: Any, scores: Any, idxs: Any, iou_threshold: Any, *, leading: bool
) -> None:
    """Checks all that the forms share; ``leading`` allows dimensions before N."""
    dots = "..., " if leading else ""
    check_boxes(op, "boxes", boxes, f"[{dots}N, 4]")
    check_dtype(op, "boxes", boxes, FLOATING)
    check_tensor(op, "scores", scores)
    check_same_dtype(op, "scores", scores, "boxes", boxes)
    check_dtype(op, "scores", scores, FLOATING)
    for name, tensor in (("scores", scores), ("idxs", idxs)):
        if tensor is not None:
            check_tensor(op, name, tensor)
            wanted = f"[{dots}N] as boxes {list(boxes.shape)}"
            check_shape(op, name, tensor, wanted, lambda shape: shape == boxes.shape[:-1])
            check_same_device(op, name, tensor, "boxes", boxes)
    if idxs is not None and idxs.is_complex():
        raise TypeError(f"{op}: idxs must be integers or floating, got {idxs.dtype}")
    check_number(op, "iou_threshold", iou_threshold, "in [0, 1]", lambda value: 0 <= value <= 1)


def check_max_output(op: str, max_output: Any) -> None:
    """Refuses what is not a number of boxes."""
    check_integer(op, "max_output", max_output)
    if max_output < 0:
        raise ValueError(f"{op}: max_output must be at least 0, got {max_output}")


def as_classes(idxs: Tensor | None) -> Tensor | None:
    """Classes as int64: any integer dtype by value, floating ones by bits, so 1.5 is not 1."""
    if idxs is None or idxs.dtype == torch.int64:
        return idxs
    if idxs.is_floating_point():
        return (idxs.double() + 0.0).view(torch.int64)  # -0 + 0 = 0: one class with 0
    return idxs.long()


class DecayedKeep(NamedTuple):
    """The kept boxes by falling score, and their scores after the decay."""

    keep: Tensor  # [D] int64
    scores: Tensor  # [D]


class PaddedDecayedKeep(NamedTuple):
    """Rows of fixed length: box ``keep[b, k]`` has the score ``scores[b, k]`` for k < counts[b].

    Behind, ``keep`` is -1 and ``scores`` is 0.
    """

    keep: Tensor  # [..., D] int64
    scores: Tensor  # [..., D]
    counts: Tensor  # [...] int64


def fake_decayed(boxes: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Outputs without data of an op that lowers scores."""
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, dtype=torch.int64), scores.new_empty(count)


def fake_decayed_padded(
    boxes: Tensor, scores: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of its padded form; ``max_output`` is the last argument."""
    *_, max_output = others
    shape = boxes.shape[:-2]
    return (
        boxes.new_empty((*shape, max_output), dtype=torch.int64),
        scores.new_empty((*shape, max_output)),
        boxes.new_empty(shape, dtype=torch.int64),
    )


def check_decay(op: str, method: Any, sigma: Any, score_threshold: Any) -> int:
    """Checks what the ops that lower scores share; gives the number of the method."""
    check_choice(op, "method", method, METHODS)
    check_number(op, "sigma", sigma, "positive and finite", lambda v: 0 < v < math.inf)
    check_number(op, "score_threshold", score_threshold, "at least 0", lambda v: v >= 0)
    return METHODS.index(method)
