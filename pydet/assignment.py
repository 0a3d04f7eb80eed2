# SPDX-License-Identifier: Apache-2.0
"""Which ground truth each anchor or proposal is to learn, for the whole batch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pydet.ops import match_anchors
from pydet.ops.match_anchors import BACKGROUND
from pydet.structures import PackedTargets


class AnchorTargets(NamedTuple):
    """What each anchor is to learn."""

    labels: Tensor  # [B, A] int64: a class, BACKGROUND (-1) or IGNORED (-2)
    boxes: Tensor  # [B, A, 4]: the box to predict; the anchor itself where there is none
    foreground: Tensor  # [B, A] bool


def assign_by_iou(
    anchors: Tensor,
    targets: PackedTargets,
    fg_iou_threshold: float,
    bg_iou_threshold: float,
    *,
    low_quality_matches: bool = False,
    best_anchor_for_each_gt: bool = False,
) -> AnchorTargets:
    """Assigns each anchor of each image to the box that it overlaps most, by two thresholds.

    Foreground where that IoU is at least the first, background below the second, ignored in between
    and within ignored boxes. An anchor is never assigned to a box that it does not touch.

    Args:
        anchors: [A, 4] xyxy, of every image, or [B, A, 4], each image's own.
        targets: In the same pixels.
        fg_iou_threshold: See above.
        bg_iou_threshold: See above.
        low_quality_matches: A box's best anchor becomes foreground, however low their IoU.
        best_anchor_for_each_gt: A box's best anchor is assigned to it, whatever else that has
            (:func:`pydet.ops.match_anchors`).
    """
    matched, ious = match_anchors(
        anchors,
        targets.boxes.to(anchors.dtype),
        fg_iou_threshold,
        bg_iou_threshold,
        low_quality_matches,
        best_anchor_for_each_gt=best_anchor_for_each_gt,
        gt_ignored=targets.ignored,
        offsets=targets.offsets,
    )  # [B, A] each
    # The best anchor of a box that no anchor touches would be any anchor.
    matched = torch.where((matched >= 0) & (ious <= 0), BACKGROUND, matched)
    rows = torch.where(matched >= 0, matched + targets.offsets[:-1, None], matched)
    return targets_of_rows(rows, anchors, targets)


def targets_of_rows(rows: Tensor, anchors: Tensor, targets: PackedTargets) -> AnchorTargets:
    """What anchors learn whose boxes are known.

    Args:
        rows: [B, A] int64: a row of the targets' boxes, BACKGROUND (-1) or IGNORED (-2).
        anchors: [A, 4] or [B, A, 4].
        targets: In the same pixels.
    """
    foreground = rows >= 0
    # One more row, at the end, for the anchors without a box, so that there is something to take
    # even in a batch without any.
    places = torch.where(foreground, rows, targets.boxes.shape[0])
    labels = F.pad(targets.labels, (0, 1))[places]
    boxes = F.pad(targets.boxes, (0, 0, 0, 1))[places].to(anchors.dtype)
    return AnchorTargets(
        torch.where(foreground, labels, rows),
        torch.where(foreground[..., None], boxes, anchors),
        foreground,
    )
