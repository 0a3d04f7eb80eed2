# SPDX-License-Identifier: Apache-2.0
"""Classes and boxes of regions: Girshick, Fast R-CNN, arXiv 1504.08083, section 2.

Letters: B images, P regions of an image, R = B · P regions of the batch, S of them that are learnt
from, K classes, N candidates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.assignment import assign_by_iou
from pydet.layers.norm import Norm, make_norm
from pydet.layers.rpn import Proposals
from pydet.losses import foreground_smooth_l1
from pydet.ops import decode_boxes, encode_boxes, multiscale_roi_align, roi_pool
from pydet.ops.match_anchors import BACKGROUND
from pydet.postprocess import PaddedDetections, at_least_float32, rows_at, select_detections
from pydet.sampling import sample_balanced
from pydet.structures import PackedTargets


class BoxFeatures(nn.Sequential):
    """A vector of each region: 3x3 convolutions, if any, then fully connected layers.

    Args:
        in_channels: Of the regions.
        size: Their height and width.
        channels: Of the fully connected layers (FPN: 1024, section 4.2).
        num_convs: Convolutions before them.
        num_fcs: Fully connected layers.
        norm: After each convolution.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        channels: int,
        *,
        num_convs: int = 0,
        num_fcs: int = 2,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        for _ in range(num_convs):
            conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=norm == "none")
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.append(conv)
            self.append(make_norm(norm, in_channels))
            self.append(nn.ReLU(inplace=True))
        self.append(nn.Flatten())
        inputs = in_channels * size * size
        for _ in range(num_fcs):
            fc = nn.Linear(inputs, channels)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
            self.append(fc)
            self.append(nn.ReLU(inplace=True))
            inputs = channels
        self.channels = inputs


class BoxPredictor(nn.Module):
    """Logits of K + 1 classes, the background last, and deltas for each class (section 2.1).

    Args:
        in_channels: Of the regions' vectors.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_logits = nn.Linear(in_channels, num_classes + 1)
        self.box_deltas = nn.Linear(in_channels, num_classes * 4)
        nn.init.normal_(self.cls_logits.weight, std=0.01)  # section 2.3
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.cls_logits.bias)
        nn.init.zeros_(self.box_deltas.bias)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """[R, K + 1] and [R, K, 4] of [R, C]."""
        return self.cls_logits(vectors), self.box_deltas(vectors).unflatten(1, (-1, 4))


def pool_regions(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Sequence[int],
    *,
    pooling: str,
    size: int,
    sampling_ratio: int,
    aligned: bool,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Features [R, C, size, size] of regions [B, P, 4], image after image.

    Args:
        features: Maps [B, C, Hl, Wl] of the first of the levels.
        boxes: xyxy, pixels of the batch.
        levels: Of a stride of 2**level.
        pooling: "align", from the level that suits a region's size (FPN, arXiv 1612.03144,
            equation 1), or "pool", from the one map.
        size: Bins a side.
        sampling_ratio: Of the alignment.
        aligned: Likewise.
        memory_format: Of the result of an alignment; by default that of the maps.
    """
    batch, count = boxes.shape[:2]
    images = torch.arange(batch, device=boxes.device).to(boxes.dtype)
    images = images[:, None, None].expand(-1, count, 1)
    rois = torch.cat((images, boxes), 2).flatten(0, 1)  # [R, 5]
    scales = [2.0**-level for level in levels[: len(features)]]
    if pooling == "pool":
        return roi_pool(features[0], rois, size, scales[0])
    return multiscale_roi_align(
        features, rois, size, scales, sampling_ratio, aligned, memory_format=memory_format
    )


def mean_of_map(maps: Tensor) -> Tensor:
    """[R, C] of [R, C, H, W].

    The gradient of a sum is a view, and that of a mean a tensor of the size of the maps.
    """
    total = maps.sum((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))
    return (total / (maps.shape[2] * maps.shape[3])).to(maps.dtype)


class RegionTargets(NamedTuple):
    """The regions that are learnt from, and what they are to learn. Padding is not ``taken``."""

    regions: Tensor  # [B, S, 4]
    labels: Tensor  # [B, S] int64: a class, or BACKGROUND (-1)
    boxes: Tensor  # [B, S, 4]: the box to predict; the region itself where there is none
    taken: Tensor  # [B, S] bool
    foreground: Tensor  # [B, S] bool


@torch.no_grad()
def sample_regions(
    proposals: Proposals,
    targets: PackedTargets,
    *,
    count: int,
    max_fg_fraction: float,
    fg_iou_threshold: float,
    bg_iou_range: tuple[float, float],
    add_gt: bool,
) -> RegionTargets:
    """Assigns proposals to boxes and draws a sample of them, foreground first (section 2.3).

    Args:
        proposals: [B, P].
        targets: In the same pixels.
        count: S, the regions of an image.
        max_fg_fraction: Of them; background fills the rest.
        fg_iou_threshold: IoU from which a region is foreground.
        bg_iou_range: It is background from the first IoU to below the second.
        add_gt: Whether the boxes themselves are proposals, too (not those that are ignored).
    """
    regions, valid = proposals
    if add_gt:
        own = torch.where(targets.ignored[:, None], math.nan, targets.boxes)
        own = targets.by_image(own, math.nan).to(regions.dtype)  # [B, ΣG, 4]
        exists = own.isfinite().all(2)
        regions = torch.cat((regions, own.masked_fill(~exists[..., None], 0)), 1)
        valid = torch.cat((valid, exists), 1)
    lowest, highest = bg_iou_range
    assigned = assign_by_iou(regions, targets, fg_iou_threshold, highest)
    background = assigned.labels == BACKGROUND
    if lowest > 0:
        background &= assign_by_iou(regions, targets, highest, lowest).labels != BACKGROUND
    samples = sample_balanced(
        assigned.foreground & valid, background & valid, count, max_fg_fraction
    )
    return RegionTargets(
        rows_at(regions, samples.idxs),
        torch.where(samples.foreground, assigned.labels.gather(1, samples.idxs), BACKGROUND),
        rows_at(assigned.boxes, samples.idxs),
        samples.taken,
        samples.foreground,
    )


def box_losses(
    cls_logits: Tensor,
    box_deltas: Tensor,
    sample: RegionTargets,
    *,
    weights: Sequence[float],
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Log loss of the softmax, and smooth L1 of the true class's deltas (section 2.3).

    Args:
        cls_logits: [B, S, K + 1].
        box_deltas: [B, S, K, 4].
        sample: [B, S].
        weights: Of the deltas.
        beta: Where smooth L1 becomes linear.

    Returns:
        Both sums divided by the regions of an image, then means over the images.
    """
    num_classes = box_deltas.shape[2]
    labels = torch.where(sample.foreground, sample.labels, num_classes)
    loss_cls = F.cross_entropy(
        at_least_float32(cls_logits).flatten(0, 1), labels.flatten(), reduction="none"
    ).reshape(labels.shape)
    target_deltas = encode_boxes(sample.boxes, sample.regions, weights)  # [B, S, 4]
    own = labels.clamp(max=num_classes - 1)[..., None, None].expand(-1, -1, 1, 4)
    # Padding has no deltas.
    target_deltas = torch.where(sample.foreground[..., None], target_deltas, 0)
    loss_box = foreground_smooth_l1(
        box_deltas.gather(2, own).squeeze(2), target_deltas, sample.foreground, beta
    )
    num_taken = sample.taken.sum(1).clamp(min=1)
    return (
        ((loss_cls * sample.taken).sum(1) / num_taken).mean(),
        (loss_box.sum(1) / num_taken).mean(),
    )


def detect_in_regions(
    cls_logits: Tensor,
    box_deltas: Tensor,
    proposals: Proposals,
    image_sizes: Tensor,
    *,
    weights: Sequence[float],
    score_threshold: float,
    min_size: float,
    iou_threshold: float,
    max_detections: int,
) -> PaddedDetections:
    """Each class of each region is a candidate; then suppression class by class (section 3.1).

    Args:
        cls_logits: [B, P, K + 1].
        box_deltas: [B, P, K, 4].
        proposals: [B, P].
        image_sizes: [B, 2] (height, width), to which boxes are clipped.
        weights: Of the deltas.
        score_threshold: Candidates must score more.
        min_size: Pixels; boxes of a smaller width or height are left out.
        iou_threshold: Of the suppression.
        max_detections: Of an image.
    """
    num_classes = box_deltas.shape[2]
    scores = at_least_float32(cls_logits).softmax(2)[..., :num_classes]  # [B, P, K]
    # Scores of a region sum to 1: so many of its classes pass the threshold, at most.
    passing = num_classes if score_threshold <= 0 else max(1, int(1 / score_threshold))
    scores, labels = scores.topk(min(passing, num_classes), dim=2)  # [B, P, k]
    deltas = box_deltas.gather(2, labels[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
    regions = proposals.boxes[:, :, None].expand(-1, -1, labels.shape[2], 4).flatten(1, 2)
    boxes = decode_boxes(
        at_least_float32(deltas).to(regions.dtype), regions, weights, image_sizes=image_sizes
    )  # [B, N, 4]
    allowed = proposals.valid[..., None] & (scores > score_threshold)
    allowed = allowed.flatten(1) & (boxes[..., 2:] - boxes[..., :2] >= min_size).all(2)
    return select_detections(
        boxes,
        scores.flatten(1).masked_fill(~allowed, -math.inf).to(boxes.dtype),
        labels.flatten(1),
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
