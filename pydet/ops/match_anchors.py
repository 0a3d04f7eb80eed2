# SPDX-License-Identifier: Apache-2.0
"""Matching of anchors with ground truth by the highest IoU."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pydet.ops._checks import (
    NUMERIC,
    check_boxes,
    check_dtype,
    check_number,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define

BACKGROUND = -1
IGNORED = -2


class AnchorMatches(NamedTuple):
    """What :func:`match_anchors` found for each anchor, in each image.

    Attributes:
        matched_idxs: [A] or [B, A] int64: the number of the matched ground truth within its image,
            or BACKGROUND (-1), or IGNORED (-2).
        matched_ious: [A] or [B, A]: the anchor's highest IoU in the image, whatever the index
            says; 0 where there is no ground truth.
    """

    matched_idxs: Tensor
    matched_ious: Tensor


def _fake(
    anchors: Tensor,
    gt_boxes: Tensor,
    fg_iou_threshold: float,
    bg_iou_threshold: float,
    allow_low_quality_matches: bool,
    best_anchor_for_each_gt: bool,
    gt_ignored: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shape: Any = (anchors.shape[-2],)
    if offsets is not None:
        shape = (offsets.shape[0] - 1, *shape)
    wide = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    return anchors.new_empty(shape, dtype=torch.int64), anchors.new_empty(shape, dtype=wide)


_match_anchors = define(
    "match_anchors(Tensor anchors, Tensor gt_boxes, float fg_iou_threshold, "
    "float bg_iou_threshold, bool allow_low_quality_matches, bool best_anchor_for_each_gt, "
    "Tensor? gt_ignored, Tensor? offsets) -> (Tensor, Tensor)",
    fake=_fake,
    differentiable=False,
    autocast=torch.float32,
)


def match_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    fg_iou_threshold: float,
    bg_iou_threshold: float,
    allow_low_quality_matches: bool = False,
    *,
    best_anchor_for_each_gt: bool = False,
    gt_ignored: Tensor | None = None,
    offsets: Tensor | None = None,
) -> AnchorMatches:
    """Matches each anchor with the ground truth that it overlaps most, by two thresholds.

    An anchor whose highest IoU is at least ``fg_iou_threshold`` gets the number of that ground
    truth (the first, where several tie), below ``bg_iou_threshold`` it gets BACKGROUND (-1), and
    in between IGNORED (-2). The result is that of torchvision's ``Matcher`` on ``box_iou``; the
    matrix of all pairs is never built.

    Example: with anchors (0, 0, 4, 4) and (0, 0, 4, 2), the ground truth (0, 0, 4, 4) and the
    thresholds 0.7 and 0.4, the first anchor (IoU 1) gets 0 and the second (IoU 0.5) gets -2.

    Args:
        anchors: [A, 4] xyxy, the same for all images, or with ``offsets`` [B, A, 4], those of each
            image (proposals); floating, or integers, which are taken exactly.
        gt_boxes: [G, 4] xyxy, the ground truth of one image; with ``offsets`` that of a batch,
            one image after the other. Same dtype, device and unit as the anchors.
        fg_iou_threshold: IoU from which an anchor is foreground; compared, like the other, in the
            arithmetic of the IoU (float64 for float64 boxes, float32 for all others).
        bg_iou_threshold: IoU below which an anchor is background, at most ``fg_iou_threshold``.
        allow_low_quality_matches: Also gives an anchor its own best ground truth, however low
            their IoU, where for *some* ground truth no anchor has a higher IoU than it has. A
            ground truth that no anchor overlaps ties with all anchors at 0, so then every anchor
            gets its best ground truth, as in torchvision; a box without area is of that kind.
        best_anchor_for_each_gt: The rule of SSD: each ground truth also gets the anchor that
            overlaps it most (the first, where several tie), however low their IoU and whatever else
            that anchor had; of ground truths with the same best anchor the last gets it, as with
            torchvision's ``SSDMatcher``. One that no anchor overlaps gets none. SSD has both
            thresholds at 0.5.
        gt_ignored: [G] bool. True for a box (a crowd) that is never matched; an anchor that is not
            foreground gets IGNORED where at least half of the anchor's own area lies in such a box.
        offsets: [B + 1] int64, rising from 0 to G: image b has the rows offsets[b] to
            offsets[b + 1] of ``gt_boxes``. On the CPU the values are checked; on a GPU, where that
            would wait for the device, they are clamped into [0, G].

    Returns:
        AnchorMatches(matched_idxs, matched_ious), each [A], or [B, A] with ``offsets``; the
        indices count from the image's first ground truth. The IoUs have the dtype of the
        arithmetic (the default dtype for integer boxes).

        Without a ground truth to match, all anchors are BACKGROUND with 0 (torchvision raises). A
        ground truth with a NaN coordinate takes no part in anything, as if it were not there but
        for its number. An anchor with a NaN is BACKGROUND with 0. An IoU that is not a number (two
        boxes without area, infinite areas) counts as 0.

    Raises:
        TypeError: Not tensors or numbers, or dtypes that differ or do not fit.
        ValueError: Shapes or devices that do not fit, thresholds in the wrong order or NaN,
            offsets on the CPU that do not rise from 0 to G.

    No gradient flows through either result. Source: the matching of anchors in Faster R-CNN (Ren et
    al., 2015, section 3.1.2), in RetinaNet with 0.5 and 0.4 (Lin et al., 2017, section 4), in SSD
    (Liu et al., 2016, section 2.2, "Matching strategy").
    """
    op = "match_anchors"
    check_tensor(op, "anchors", anchors)
    wanted = "[A, 4], or [B, A, 4] with offsets [B + 1]"
    check_shape(op, "anchors", anchors, wanted, lambda s: len(s) in (2, 3) and s[-1] == 4)
    check_dtype(op, "anchors", anchors, NUMERIC)
    check_boxes(op, "gt_boxes", gt_boxes, "[G, 4]")
    check_same_dtype(op, "gt_boxes", gt_boxes, "anchors", anchors)
    check_same_device(op, "gt_boxes", gt_boxes, "anchors", anchors)
    check_number(
        op, "fg_iou_threshold", fg_iou_threshold, "a number", lambda x: -math.inf <= x <= math.inf
    )
    check_number(op, "bg_iou_threshold", bg_iou_threshold, "a number", lambda x: x <= math.inf)
    if bg_iou_threshold > fg_iou_threshold:
        raise ValueError(
            f"{op}: bg_iou_threshold must be at most fg_iou_threshold ({fg_iou_threshold}), "
            f"got {bg_iou_threshold}"
        )
    if gt_ignored is not None:
        check_tensor(op, "gt_ignored", gt_ignored)
        check_dtype(op, "gt_ignored", gt_ignored, (torch.bool,))
        all_gt = gt_boxes.shape[:1]
        check_shape(op, "gt_ignored", gt_ignored, "[G] of gt_boxes", lambda s: s == all_gt)
        check_same_device(op, "gt_ignored", gt_ignored, "anchors", anchors)
    if offsets is not None:
        check_tensor(op, "offsets", offsets)
        check_dtype(op, "offsets", offsets, (torch.int64,))
        check_shape(op, "offsets", offsets, "[B + 1]", lambda s: len(s) == 1 and s[0] >= 1)
        check_same_device(op, "offsets", offsets, "anchors", anchors)
    images = -1 if offsets is None else offsets.shape[0] - 1
    check_shape(op, "anchors", anchors, wanted, lambda s: len(s) == 2 or s[0] == images)
    exact = not anchors.is_floating_point()
    if exact:
        anchors, gt_boxes = anchors.double(), gt_boxes.double()
    matched_idxs, matched_ious = _match_anchors(
        anchors.detach(),
        gt_boxes.detach(),
        fg_iou_threshold,
        bg_iou_threshold,
        allow_low_quality_matches,
        best_anchor_for_each_gt,
        gt_ignored,
        offsets,
    )
    if exact:
        matched_ious = matched_ious.to(torch.get_default_dtype())
    return AnchorMatches(matched_idxs, matched_ious)
