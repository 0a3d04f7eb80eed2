# SPDX-License-Identifier: Apache-2.0
"""From raw scores to detections, for the whole batch: candidates, suppression, lists of dicts.

Everything up to :class:`PaddedDetections` has shapes that do not depend on values, so it neither
waits for a GPU nor breaks a traced graph; only :func:`to_list` reads the counts.

Letters: B images, A anchors, K classes, N candidates, D most detections of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pydet.ops import batched_nms
from pydet.structures import Detection, ImageBatch


class PaddedDetections(NamedTuple):
    """Detections of a batch, best first; the rows from ``counts[b]`` on are padding.

    Padding has boxes and scores of 0 and the label -1.
    """

    boxes: Tensor  # [B, D, 4] xyxy, pixels of the batch
    scores: Tensor  # [B, D]
    labels: Tensor  # [B, D] int64
    counts: Tensor  # [B] int64


class Candidates(NamedTuple):
    """The best pairs of anchor and class; ``scores`` is -inf where there were too few."""

    anchor_idxs: Tensor  # [B, N] int64
    labels: Tensor  # [B, N] int64
    scores: Tensor  # [B, N] float32 (float64 for such logits), probabilities


def top_candidates(
    logits: Tensor,
    num_per_level: Sequence[int],
    score_threshold: float,
    max_per_level: int,
    quality: Tensor | None = None,
) -> Candidates:
    """The best pairs of anchor and class of each level, by a sigmoid of their logit.

    Args:
        logits: [B, A, K], levels one after the other.
        num_per_level: Anchors of each level; sums to A.
        score_threshold: Pairs must score more.
        max_per_level: Most pairs of a level.
        quality: [B, A] in 0 ... 1: a factor of the scores of each anchor, or none.

    Returns:
        N = the sum over levels of min(max_per_level, anchors · K). A NaN scores -inf,
        and so do all classes of its anchor while there are others.
    """
    batch, _, classes = logits.shape
    counts = list(num_per_level)
    factors = [None] * len(counts) if quality is None else quality.split(counts, dim=1)
    anchor_idxs, labels, best = [], [], []
    first = 0
    for num_anchors, level, factor in zip(
        counts, logits.split(counts, dim=1), factors, strict=True
    ):
        count = min(max_per_level, num_anchors)
        # The best pairs all belong to the anchors whose best class is best: two short searches
        # instead of one through all pairs.
        anchors = _rank(level.amax(2), factor).topk(count, dim=1).indices  # [B, count]
        pairs = level.gather(1, anchors[..., None].expand(batch, count, classes))
        pairs = _rank(pairs, None if factor is None else factor.gather(1, anchors)[..., None])
        values, idxs = pairs.flatten(1).topk(min(max_per_level, count * classes), dim=1)
        anchor_idxs.append(anchors.gather(1, idxs // classes) + first)
        labels.append(idxs % classes)
        best.append(values)
        first += num_anchors
    scores = at_least_float32(torch.cat(best, 1))
    scores = scores.sigmoid() if quality is None else scores
    scores = scores.masked_fill(~(scores > score_threshold), float("-inf"))
    return Candidates(torch.cat(anchor_idxs, 1), torch.cat(labels, 1), scores)


def _rank(logits: Tensor, factor: Tensor | None) -> Tensor:
    """What pairs are ranked by: their scores, or logits, which have the same order.

    NaN is -inf: a search would find it first, and leave no place for numbers.
    """
    ranks = logits if factor is None else at_least_float32(logits).sigmoid() * factor
    return ranks.masked_fill(ranks.isnan(), float("-inf"))


def top_candidates_per_class(
    logits: Tensor, score_threshold: float, max_per_class: int
) -> Candidates:
    """The best anchors of each class, by a softmax of their logits with the background.

    Args:
        logits: [B, A, K + 1], the background last.
        score_threshold: Pairs of anchor and class must score more.
        max_per_class: Most pairs of a class.

    Returns:
        N = K · min(max_per_class, A), class after class. The background is no candidate. A NaN
        scores -inf, and so do all classes of its anchor.
    """
    num_classes = logits.shape[2] - 1
    scores = at_least_float32(logits).softmax(2)[..., :num_classes].transpose(1, 2)  # [B, K, A]
    # Before the search: NaN would be found first and leave no place for numbers.
    scores = scores.masked_fill(~(scores > score_threshold), float("-inf"))
    scores, anchor_idxs = scores.topk(min(max_per_class, logits.shape[1]), dim=2)
    labels = torch.arange(num_classes, device=logits.device)[:, None].expand_as(anchor_idxs)
    return Candidates(anchor_idxs.flatten(1), labels.flatten(1), scores.flatten(1))


def rows_at(values: Tensor, idxs: Tensor) -> Tensor:
    """The rows [B, N, 4] at indices [B, N] of boxes or deltas [B, A, 4]."""
    return values.gather(1, idxs[..., None].expand(-1, -1, 4))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float = float("-inf"),
) -> PaddedDetections:
    """Suppresses duplicates within each class of each image and keeps the best of what is left.

    Args:
        boxes: [B, N, 4] xyxy.
        scores: [B, N]; a candidate must score more than ``score_threshold``.
        labels: [B, N] int64.
        iou_threshold: A box is suppressed by a better one of its class with a greater overlap.
        max_detections: D.
        score_threshold: See ``scores``.
    """
    keep, counts = batched_nms(
        boxes,
        scores,
        labels,
        iou_threshold,
        max_output=max_detections,
        score_threshold=score_threshold,
    )  # [B, D] padded with -1, [B]
    padding = keep < 0
    keep = keep.clamp(min=0)
    return PaddedDetections(
        rows_at(boxes, keep).masked_fill(padding[..., None], 0),
        scores.gather(1, keep).masked_fill(padding, 0),
        labels.gather(1, keep).masked_fill(padding, -1),
        counts,
    )


def to_list(detections: PaddedDetections, batch: ImageBatch) -> list[Detection]:
    """One dict an image, without padding, boxes in the pixels of the image as it was given.

    Reads the counts: on a GPU this waits for the device, once.
    """
    boxes = detections.boxes * batch.original_scale()[:, None].to(detections.boxes.dtype)
    return [
        {
            "boxes": boxes[index, :count],
            "scores": detections.scores[index, :count],
            "labels": detections.labels[index, :count],
        }
        for index, count in enumerate(detections.counts.tolist())
    ]
