# SPDX-License-Identifier: Apache-2.0
"""RetinaNet: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

Implemented: the focal loss and its normaliser (sections 3.2, 4.1), the initial bias (3.3, 4.1), the
pyramid P3 ... P7, anchors, assignment and both subnets (4), inference (4.1).

Deviations, each a field of the config: P6 is made of P5 (paper: C5), which is what published
weights have; an anchor below the threshold is assigned to a box that has no better one (paper:
silent); a batch norm learns with the rest (paper: ImageNet's, fixed), so that training from
nothing works. An anchor is never assigned to a box that it does not touch.

Numbers that prove the structure: 9 anchors a location, 100 thousand and more an image of 800 x
1333; 34 014 999 parameters with ResNet-50 and 91 classes, as torchvision publishes.

Letters: B images, A anchors of all levels, K classes, G boxes of an image, ΣG of the batch,
Hl, Wl height and width of a level, N candidates.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pydet.anchors import AnchorGenerator, permute_to_anchors
from pydet.assignment import AnchorTargets, assign_by_iou
from pydet.backbones.resnet import ResNet
from pydet.layers.fpn import FPN, ExtraFrom
from pydet.layers.norm import Norm
from pydet.layers.subnet import initialize_head, subnet
from pydet.losses import foreground_smooth_l1, per_foreground
from pydet.models._checks import (
    check_at_least,
    check_between,
    check_choice,
    check_detection,
    check_length,
    check_within,
)
from pydet.models._detector import Detector
from pydet.models._registry import override, register_model
from pydet.ops import (
    decode_boxes,
    encode_boxes,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)
from pydet.postprocess import (
    PaddedDetections,
    at_least_float32,
    rows_at,
    select_detections,
    top_candidates,
)
from pydet.preprocessing import Preprocessing
from pydet.structures import PackedTargets


@dataclass(frozen=True)
class RetinaNetConfig:
    """Every hyper-parameter; sections are those of the paper."""

    depth: int = 50  # of the ResNet
    norm: Norm = "batch"  # of the trunk: "batch", "frozen" or "group"
    norm_eps: float = 1e-5
    frozen_stages: int = 0  # of the trunk that do not learn: 1 the stem, 2 the stem and C2, ...
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)  # section 4; level l has a stride of 2**l pixels
    extra_from: ExtraFrom = "p5"  # what P6 is made of; the paper: "c5", footnote 2
    fpn_channels: int = 256  # section 4
    fpn_norm: Norm = "none"
    head_convs: int = 4  # of each subnet before its last layer; section 4
    head_norm: Literal["none", "group"] = "none"
    # Section 4: sides 32 ... 512 on P3 ... P7, that is 4 strides, times 2**0, 2**(1/3), 2**(2/3).
    # None: so. Else pixels, a tuple of sizes for each level.
    anchor_sizes: tuple[tuple[float, ...], ...] | None = None
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width; section 4
    anchor_offset: float = 0.0  # of locations, in strides; see AnchorGenerator
    anchor_rounding: bool = False  # corners to whole pixels, as torchvision
    anchor_strides: Literal["level", "image"] = "level"  # "image": image size // map size, likewise
    fg_iou_threshold: float = 0.5  # section 4
    bg_iou_threshold: float = 0.4  # section 4
    low_quality_matches: bool = True  # a box without an anchor above gets the best there is
    focal_alpha: float = 0.25  # section 4.1
    focal_gamma: float = 2.0  # section 4.1
    prior: float = 0.01  # pi, the first probability of foreground; section 4.1
    # Of deltas, or by the overlap of boxes (arXiv 1902.09630), as torchvision's version 2.
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    smooth_l1_beta: float = 0.11  # where smooth L1 becomes linear; 0: L1. The authors' code: 0.11
    box_loss_weight: float = 1.0
    score_threshold: float = 0.05  # section 4.1
    candidates_per_level: int = 1000  # section 4.1
    nms_iou_threshold: float = 0.5  # section 4.1
    max_detections: int = 100  # COCO's own limit; torchvision: 300
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # 800, 1333; section 5

    def __post_init__(self) -> None:
        levels = len(self.levels)
        check_length(self, "anchor_sizes", levels, f"tuples, one for each of the {levels} levels")
        check_between(self, "prior", 0, 1)
        check_within(self, "focal_gamma", 0, 100)
        check_detection(self)
        check_within(self, "norm_eps", 0, 1)
        for name in ("fpn_channels", "candidates_per_level"):
            check_at_least(self, name, 1)
        check_at_least(self, "head_convs", 0)
        # The maps of all levels pass through one head: batches would mix.
        check_choice(self, "head_norm", ("none", "group"))
        check_choice(self, "anchor_strides", ("level", "image"))
        check_choice(self, "box_loss", ("smooth_l1", "giou"))


class RetinaNetOutput(NamedTuple):
    """The network's raw output, all levels together, in the order of the anchors."""

    cls_logits: Tensor  # [B, A, K]
    box_deltas: Tensor  # [B, A, 4], relative to the anchors
    anchors: Tensor  # [A, 4] float32 (float64 in such a model) xyxy, pixels of the batch
    num_per_level: tuple[int, ...]  # anchors of each level; sums to A


class RetinaNetHead(nn.Module):
    """Two subnets of 3x3 convolutions, the same for all levels (section 4, figure 3)."""

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_classes: int,
        *,
        num_convs: int = 4,
        norm: Norm = "none",
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs = subnet(channels, num_convs, norm, bias=norm == "none")
        self.box_convs = subnet(channels, num_convs, norm, bias=norm == "none")
        self.cls_logits = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        initialize_head(self, self.cls_logits, prior)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, A, K] and deltas [B, A, 4] of maps [B, C, Hl, Wl]."""
        logits = [self.cls_logits(self.cls_convs(x)) for x in features]
        deltas = [self.box_deltas(self.box_convs(x)) for x in features]
        return (
            torch.cat([permute_to_anchors(x, self.num_classes) for x in logits], 1),
            torch.cat([permute_to_anchors(x, 4) for x in deltas], 1),
        )


def assign_targets(
    anchors: Tensor, targets: PackedTargets, config: RetinaNetConfig
) -> AnchorTargets:
    """Assigns each anchor of each image to one box at most (section 4).

    Foreground where the best IoU is at least 0.5, background below 0.4, ignored in between and
    within ignored boxes.

    Args:
        anchors: [A, 4] xyxy, of every image.
        targets: In the same pixels.
        config: For its thresholds.
    """
    return assign_by_iou(
        anchors,
        targets,
        config.fg_iou_threshold,
        config.bg_iou_threshold,
        low_quality_matches=config.low_quality_matches,
    )


def box_loss(output: RetinaNetOutput, assigned: AnchorTargets, config: RetinaNetConfig) -> Tensor:
    """How far each foreground anchor's box is from its ground truth: [B, A], 0 elsewhere."""
    anchors = output.anchors.expand_as(assigned.boxes)
    if config.box_loss == "giou":
        boxes = decode_boxes(output.box_deltas.to(anchors.dtype), anchors)
        # where, not indices: how many anchors are foreground is known to the device alone.
        boxes = torch.where(assigned.foreground[..., None], boxes, assigned.boxes)
        loss = generalized_box_iou_loss(boxes, assigned.boxes)
        return loss * assigned.foreground  # a box has a loss to itself: by its eps
    targets = encode_boxes(assigned.boxes, anchors)
    beta = config.smooth_l1_beta
    return foreground_smooth_l1(output.box_deltas, targets, assigned.foreground, beta)


class RetinaNet(Detector):
    """RetinaNet on a ResNet with a feature pyramid.

    Args:
        config: See :class:`RetinaNetConfig`.
        num_classes: K, background not counted.
    """

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        levels = config.levels
        sizes = config.anchor_sizes or tuple(
            tuple(4 * 2**level * 2 ** (i / 3) for i in range(3)) for level in levels
        )
        self.anchors = AnchorGenerator(
            sizes,
            config.anchor_ratios,
            [2**level for level in levels] if config.anchor_strides == "level" else None,
            offset=config.anchor_offset,
            rounding=config.anchor_rounding,
        )
        self.backbone = ResNet(
            config.depth,
            norm=config.norm,
            norm_eps=config.norm_eps,
            frozen_stages=config.frozen_stages,
        )
        self.neck = FPN(
            self.backbone.channels,
            levels,
            config.fpn_channels,
            norm=config.fpn_norm,
            extra_from=config.extra_from,
        )
        self.head = RetinaNetHead(
            config.fpn_channels,
            self.anchors.num_per_location,
            num_classes,
            num_convs=config.head_convs,
            norm=config.head_norm,
            prior=config.prior,
        )

    def predict(self, images: Tensor) -> RetinaNetOutput:
        """Logits, deltas and anchors for normalised images [B, 3, H, W]."""
        features = self.neck(self.backbone(images))
        cls_logits, box_deltas = self.head(features)
        anchors = self.anchors.for_maps(features, images)
        num = self.anchors.num_per_location
        num_per_level = tuple(x.shape[2] * x.shape[3] * num for x in features)
        return RetinaNetOutput(cls_logits, box_deltas, anchors, num_per_level)

    def losses(self, output: RetinaNetOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Focal loss of all anchors that are not ignored, box loss of foreground anchors.

        Of each image the sum, divided by its foreground anchors, at least 1 (section 4.1); then the
        mean over images.
        """
        config = self.config
        assigned = assign_targets(output.anchors, targets, config)
        positives = assigned.foreground.sum(1)  # [B]
        loss_cls = sigmoid_focal_loss(
            output.cls_logits,
            assigned.labels,
            config.focal_alpha,
            config.focal_gamma,
            reduction="sum_per_image",
        )
        loss_box = box_loss(output, assigned, config).sum(1)
        return {
            "loss_cls": per_foreground(loss_cls, positives, "image"),
            "loss_box": per_foreground(loss_box, positives, "image") * config.box_loss_weight,
        }

    def decode(self, output: RetinaNetOutput, image_sizes: Tensor) -> PaddedDetections:
        """The best candidates of each level, decoded, clipped, without duplicates (section 4.1)."""
        config = self.config
        candidates = top_candidates(
            output.cls_logits,
            output.num_per_level,
            config.score_threshold,
            config.candidates_per_level,
        )
        idxs = candidates.anchor_idxs
        deltas = at_least_float32(rows_at(output.box_deltas, idxs))  # [B, N, 4]
        boxes = decode_boxes(deltas, output.anchors[idxs], image_sizes=image_sizes)
        return select_detections(
            boxes,
            candidates.scores,
            candidates.labels,
            iou_threshold=config.nms_iou_threshold,
            max_detections=config.max_detections,
        )


@register_model
def retinanet_resnet18_fpn(num_classes: int, **overrides: Any) -> RetinaNet:
    """RetinaNet on ResNet-18; overrides are fields of :class:`RetinaNetConfig`."""
    return RetinaNet(override(RetinaNetConfig(depth=18), overrides), num_classes)


@register_model
def retinanet_resnet34_fpn(num_classes: int, **overrides: Any) -> RetinaNet:
    """RetinaNet on ResNet-34; overrides are fields of :class:`RetinaNetConfig`."""
    return RetinaNet(override(RetinaNetConfig(depth=34), overrides), num_classes)


@register_model
def retinanet_resnet50_fpn(num_classes: int, **overrides: Any) -> RetinaNet:
    """RetinaNet on ResNet-50; overrides are fields of :class:`RetinaNetConfig`."""
    return RetinaNet(override(RetinaNetConfig(), overrides), num_classes)


@register_model
def retinanet_resnet101_fpn(num_classes: int, **overrides: Any) -> RetinaNet:
    """RetinaNet on ResNet-101; overrides are fields of :class:`RetinaNetConfig`."""
    return RetinaNet(override(RetinaNetConfig(depth=101), overrides), num_classes)
