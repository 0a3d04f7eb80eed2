# SPDX-License-Identifier: Apache-2.0
"""Region proposal network: Ren et al., Faster R-CNN, arXiv 1506.01497, section 3.1.

Letters: B images, A anchors of all levels, L levels, P proposals of an image, N those before
suppression, S sampled anchors of an image, ΣG boxes of the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.anchors import permute_to_anchors
from pydet.assignment import AnchorTargets, assign_by_iou
from pydet.losses import foreground_smooth_l1
from pydet.ops import batched_nms, decode_boxes, encode_boxes, match_anchors
from pydet.ops.match_anchors import IGNORED
from pydet.postprocess import at_least_float32, rows_at
from pydet.sampling import Samples
from pydet.structures import PackedTargets


class RPNHead(nn.Module):
    """A 3x3 window, then objectness and deltas of each anchor; the same for all levels (3.1).

    Args:
        in_channels: Of the maps.
        channels: Of the window (the paper: 256 with ZF, 512 with VGG).
        num_anchors: k, of each location.
        num_convs: 3x3 convolutions (the paper: 1).
    """

    def __init__(
        self, in_channels: int, channels: int, num_anchors: int, *, num_convs: int = 1
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for _ in range(num_convs):
            self.convs.append(nn.Conv2d(in_channels, channels, 3, padding=1))
            self.convs.append(nn.ReLU(inplace=True))
            in_channels = channels
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.box_deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)  # section 3.1.3
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, A] and deltas [B, A, 4] of maps [B, C, Hl, Wl]."""
        windows = [self.convs(x) for x in features]
        logits = [permute_to_anchors(self.objectness(x), 1) for x in windows]
        deltas = [permute_to_anchors(self.box_deltas(x), 4) for x in windows]
        return torch.cat(logits, 1).squeeze(2), torch.cat(deltas, 1)


class Proposals(NamedTuple):
    """Regions of each image, best first; those that are not valid are padding, boxes of 0."""

    boxes: Tensor  # [B, P, 4] xyxy, pixels of the batch
    valid: Tensor  # [B, P] bool


@torch.no_grad()
def propose(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    num_per_level: Sequence[int],
    image_sizes: Tensor,
    *,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    min_size: float,
) -> Proposals:
    """The best regions: of each level some, decoded, clipped, without duplicates of their level.

    Args:
        objectness: [B, A] logits.
        deltas: [B, A, 4]
        anchors: [A, 4]
        num_per_level: Anchors of each level, the most first; sums to A.
        image_sizes: [B, 2] (height, width), to which regions are clipped.
        pre_nms: Most regions of a level before suppression.
        post_nms: P, of all levels together.
        iou_threshold: Of the suppression (the paper: 0.7).
        min_size: Pixels; regions of a smaller width or height are left out.
    """
    # One search for all levels, in rows of the same length, each long enough for it.
    length = num_per_level[0] + pre_nms
    logits = at_least_float32(objectness)
    logits = logits.masked_fill(logits.isnan(), -math.inf)  # NaN would be found first
    logits = _by_level(logits, num_per_level, length, -math.inf)
    rows = torch.arange(objectness.shape[1], device=objectness.device)
    rows = _by_level(rows, num_per_level, length, 0)  # [L, length]
    scores, places = logits.topk(pre_nms, dim=2)  # [B, L, pre_nms]
    idxs = rows.expand(logits.shape[0], -1, -1).gather(2, places).flatten(1)  # [B, N]
    levels = torch.arange(len(num_per_level), device=objectness.device)
    levels = levels[:, None].expand_as(places).flatten(1)  # [B, N]
    boxes = decode_boxes(
        at_least_float32(rows_at(deltas, idxs)),
        anchors[idxs],
        image_sizes=image_sizes,
    )  # [B, N, 4]
    large = (boxes[..., 2:] - boxes[..., :2] >= min_size).all(2)
    scores = scores.flatten(1).masked_fill(~large, -math.inf)
    keep = batched_nms(boxes, scores, levels, iou_threshold, max_output=post_nms).keep  # [B, P]
    valid = keep >= 0
    boxes = rows_at(boxes, keep.clamp(min=0))
    return Proposals(boxes.masked_fill(~valid[..., None], 0), valid)


def _by_level(x: Tensor, num_per_level: Sequence[int], length: int, fill: float) -> Tensor:
    """[..., A] to [..., L, length], filled up."""
    parts = x.split(list(num_per_level), dim=-1)
    return torch.stack(
        [F.pad(part, (0, length - part.shape[-1]), value=fill) for part in parts], -2
    )


def assign_anchors(
    anchors: Tensor,
    targets: PackedTargets,
    fg_iou_threshold: float = 0.7,
    bg_iou_threshold: float = 0.3,
    straddle: float | None = 0.0,
) -> AnchorTargets:
    """Foreground: the best anchors of each box, and those above a threshold (section 3.1.2).

    Args:
        anchors: [A, 4]
        targets: In the same pixels.
        fg_iou_threshold: See :func:`pydet.assignment.assign_by_iou`.
        bg_iou_threshold: Likewise.
        straddle: Pixels by which an anchor may reach out of its image; those beyond are ignored, as
            if they were not there (section 3.1.3: 0). None: all take part (FPN, section 4.1).
    """
    if straddle is None:
        return assign_by_iou(
            anchors, targets, fg_iou_threshold, bg_iou_threshold, low_quality_matches=True
        )
    sizes = targets.image_sizes.to(anchors.dtype)
    limits = sizes.flip(1)[:, None] + straddle  # [B, 1, 2]: width, height
    inside = (anchors[:, :2] >= -straddle).all(1) & (anchors[:, 2:] <= limits).all(2)  # [B, A]
    own = torch.where(inside[..., None], anchors, math.nan)  # [B, A, 4]
    assigned = assign_by_iou(
        own,
        _without_untouched(targets, own),
        fg_iou_threshold,
        bg_iou_threshold,
        low_quality_matches=True,
    )
    return assigned._replace(
        labels=torch.where(inside, assigned.labels, IGNORED),
        boxes=torch.where(inside[..., None], assigned.boxes, anchors),
    )


def _without_untouched(targets: PackedTargets, anchors: Tensor) -> PackedTargets:
    """The targets without the boxes that no anchor [B, A, 4] of their image overlaps.

    All anchors would be the best of such a box.
    """
    batch, num_anchors = anchors.shape[:2]
    device = anchors.device
    boxes = targets.by_image(targets.boxes, math.nan).to(anchors.dtype)  # [B, ΣG, 4]
    offsets = torch.arange(batch + 1, device=device) * num_anchors
    best = match_anchors(boxes, anchors.reshape(-1, 4), 0.5, 0.5, offsets=offsets).matched_ious
    rows = torch.arange(targets.boxes.shape[0], device=device)
    images = torch.searchsorted(targets.offsets[1:], rows, right=True)
    touched = best[images, rows - targets.offsets[images]] > 0  # [ΣG]
    return replace(targets, boxes=torch.where(touched[:, None], targets.boxes, math.nan))


def rpn_losses(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    assigned: AnchorTargets,
    samples: Samples,
    *,
    beta: float,
    normalizers: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """Log loss of the sampled anchors, smooth L1 of the foreground among them (equation 1).

    Args:
        objectness: [B, A] logits.
        deltas: [B, A, 4]
        anchors: [A, 4]
        assigned: Of :func:`assign_anchors`.
        samples: [B, S], which anchors count.
        beta: Where smooth L1 becomes linear.
        normalizers: N_cls and N_reg, by which the sums of an image are divided; None: both are the
            number of its anchors in the sample.

    Returns:
        Both means over the images.
    """
    idxs, taken, foreground = samples
    logits = at_least_float32(objectness.gather(1, idxs))  # [B, S]
    loss_cls = F.binary_cross_entropy_with_logits(
        logits, foreground.to(logits.dtype), reduction="none"
    )
    target_deltas = encode_boxes(rows_at(assigned.boxes, idxs), anchors[idxs])  # [B, S, 4]
    loss_box = foreground_smooth_l1(rows_at(deltas, idxs), target_deltas, foreground, beta)
    num_taken = taken.sum(1).clamp(min=1)
    num_cls, num_box = (num_taken, num_taken) if normalizers is None else normalizers
    return (
        ((loss_cls * taken).sum(1) / num_cls).mean(),
        (loss_box.sum(1) / num_box).mean(),
    )
