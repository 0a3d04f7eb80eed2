# SPDX-License-Identifier: Apache-2.0
"""FCOS: Tian et al., Fully Convolutional One-Stage Object Detection, arXiv 1904.01355.

Implemented: locations instead of anchors, regression of the distances to the four sides (section
3.1), levels by the greatest of them and a scale of each level (3.2), centre-ness (3.3), and the
improvements of table 3, which are the defaults: centre-ness on the branch of boxes, centre
sampling, the generalised IoU loss, and targets divided by the stride. Without them (the paper's
first version): ``centerness_on="cls", center_radius=0.0, box_loss="iou", distances="pixels"``.

Deviations, each a field of the config: a batch norm of the trunk learns with the rest (paper:
ImageNet's, fixed), so that training from nothing works; losses are normalised for each image
(paper: for the batch). The threshold of scores is for the product with centre-ness (authors' code:
for the class alone).

Numbers that prove the structure: one prediction a location, strides 8 ... 128, 22 400 locations of
an image of 800 x 1344; 32 269 600 parameters with ResNet-50 and 91 classes, as torchvision
publishes, and a scale for each of the five levels.

Letters: B images, A locations of all levels, K classes, ΣG boxes of the batch, Hl, Wl height and
width of a level, N candidates.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.anchors import AnchorGenerator, permute_to_anchors
from pydet.assignment import AnchorTargets, targets_of_rows
from pydet.backbones.resnet import ResNet
from pydet.layers.fpn import FPN, ExtraFrom
from pydet.layers.norm import Norm
from pydet.layers.subnet import initialize_head, subnet
from pydet.locations import LevelGrid, assign_locations
from pydet.losses import NORMALIZERS, Normalizer, per_foreground
from pydet.models._checks import (
    check_at_least,
    check_between,
    check_choice,
    check_detection,
    check_length,
    check_within,
    refuse,
)
from pydet.models._detector import Detector
from pydet.models._registry import override, register_model
from pydet.ops import generalized_box_iou_loss, iou_loss, sigmoid_focal_loss
from pydet.postprocess import (
    PaddedDetections,
    at_least_float32,
    rows_at,
    select_detections,
    top_candidates,
)
from pydet.preprocessing import Preprocessing
from pydet.structures import PackedTargets

_CHOICES = {
    "centerness_on": ("box", "cls"),
    "box_loss": ("giou", "iou"),
    "distances": ("strides", "pixels"),
    "head_norm": ("group", "none"),
    "location_strides": ("level", "image"),
    "normalizer": NORMALIZERS,
    "score": ("product", "sqrt"),
}


@dataclass(frozen=True)
class FCOSConfig:
    """Every hyper-parameter; sections are those of the paper."""

    depth: int = 50  # of the ResNet
    norm: Norm = "batch"  # of the trunk: "batch", "frozen" or "group"
    norm_eps: float = 1e-5
    frozen_stages: int = 0  # of the trunk that do not learn: 1 the stem, 2 the stem and C2, ...
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)  # section 3.2; level l has a stride of 2**l pixels
    extra_from: ExtraFrom = "p5"  # what P6 is made of; section 3.2
    fpn_channels: int = 256
    fpn_norm: Norm = "none"
    head_convs: int = 4  # of each branch before its last layer; figure 2
    head_norm: Literal["group", "none"] = "group"
    centerness_on: Literal["box", "cls"] = "box"  # the branch; table 3 "ctr. on reg."
    level_scales: bool = True  # a factor of distances for each level, learnt; section 3.2
    # "strides": relu, in strides of the level (table 3 "normalization"); "pixels": exp (3.1).
    distances: Literal["strides", "pixels"] = "strides"
    location_offset: float = 0.5  # in strides; section 3.1: the middle of what a location sees
    location_strides: Literal["level", "image"] = "level"  # "image": image size // map size
    # m3 ... m6 of section 3.2, pixels: between one level and the next. None: 8 strides.
    range_limits: tuple[float, ...] | None = None
    center_radius: float = 1.5  # in strides; table 3 "ctr. sampling"; 0: the whole box
    focal_alpha: float = 0.25  # section 3.1: as in RetinaNet
    focal_gamma: float = 2.0
    prior: float = 0.01  # the first probability of foreground
    box_loss: Literal["giou", "iou"] = "giou"  # table 3 "GIoU"; section 3.1: -ln IoU
    box_loss_weight: float = 1.0  # lambda, section 3.1
    centerness_loss_weight: float = 1.0  # section 3.3
    normalizer: Normalizer = "image"  # of all losses; see per_foreground
    score: Literal["product", "sqrt"] = "product"  # of class and centre-ness (3.3), or its root
    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms_iou_threshold: float = 0.6  # authors' code
    max_detections: int = 100
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # 800, 1333; section 4

    def __post_init__(self) -> None:
        between = len(self.levels) - 1
        check_length(self, "range_limits", between, "numbers, one between each two levels")
        if self.range_limits and list(self.range_limits) != sorted(self.range_limits):
            raise refuse(self, "range_limits", "rise")
        for name, known in _CHOICES.items():
            check_choice(self, name, known)
        check_between(self, "prior", 0, 1)
        check_within(self, "focal_gamma", 0, 100)
        check_detection(self)
        check_within(self, "norm_eps", 0, 1)
        for name in ("fpn_channels", "candidates_per_level"):
            check_at_least(self, name, 1)
        check_at_least(self, "head_convs", 0)
        check_at_least(self, "center_radius", 0)


class FCOSOutput(NamedTuple):
    """The network's raw output, all levels together, by level, row and column."""

    cls_logits: Tensor  # [B, A, K]
    distances: Tensor  # [B, A, 4] ltrb, in the config's unit
    centerness: Tensor  # [B, A], logits
    # [A, 4] float32 (float64 in such a model): squares of a stride about the locations
    anchors: Tensor
    grids: tuple[LevelGrid, ...]  # of each level


class FCOSHead(nn.Module):
    """Two branches of 3x3 convolutions, the same for all levels (figure 2)."""

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        super().__init__()
        channels = config.fpn_channels
        self.num_classes = num_classes
        self.centerness_on = config.centerness_on
        self.unit = config.distances
        self.cls_convs = subnet(channels, config.head_convs, config.head_norm, bias=True)
        self.box_convs = subnet(channels, config.head_convs, config.head_norm, bias=True)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        initialize_head(self, self.cls_logits, config.prior)
        self.scales: nn.Parameter | None = None
        if config.level_scales:
            self.scales = nn.Parameter(torch.ones(len(config.levels)))  # s_i of section 3.2

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, A, K], distances [B, A, 4] and centre-ness [B, A] of maps [B, C, Hl, Wl]."""
        logits, distances, centerness = [], [], []
        for level, x in enumerate(features):
            of_class, of_box = self.cls_convs(x), self.box_convs(x)
            logits.append(permute_to_anchors(self.cls_logits(of_class), self.num_classes))
            raw = permute_to_anchors(self.box_distances(of_box), 4)
            if self.scales is not None:
                raw = raw * self.scales[level]
            distances.append(raw.relu() if self.unit == "strides" else at_least_float32(raw).exp())
            branch = of_box if self.centerness_on == "box" else of_class
            centerness.append(permute_to_anchors(self.centerness(branch), 1))
        return torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centerness, 1).squeeze(2)


def assign_targets(output: FCOSOutput, targets: PackedTargets, offset: float) -> AnchorTargets:
    """What each location of each image learns: the smallest box in its reach (section 3.2).

    Args:
        output: For its locations alone.
        targets: In the pixels of the batch.
        offset: Of locations, in strides.
    """
    rows = assign_locations(output.grids, offset, targets)  # [B, A]
    return targets_of_rows(rows, output.anchors, targets)


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How near the anchors' centres are to the boxes' (section 3.3, equation 3).

    sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b)) with the distances l, t, r and b of the
    location to the sides: 1 at the centre, 0 at the border.

    Args:
        boxes: [..., 4] xyxy, around the locations.
        anchors: [..., 4] xyxy, whose centres are the locations.
    """
    center = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = center - boxes[..., :2], boxes[..., 2:] - center  # [..., 2]: l, t and r, b
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.prod(-1).sqrt()


class FCOS(Detector):
    """FCOS on a ResNet with a feature pyramid.

    Args:
        config: See :class:`FCOSConfig`.
        num_classes: K, background not counted.
    """

    config: FCOSConfig

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        strides = [2**level for level in config.levels]
        self.anchors = AnchorGenerator(
            [[stride] for stride in strides],
            [1.0],
            strides if config.location_strides == "level" else None,
            offset=config.location_offset,
        )
        self.backbone = ResNet(
            config.depth,
            norm=config.norm,
            norm_eps=config.norm_eps,
            frozen_stages=config.frozen_stages,
        )
        self.neck = FPN(
            self.backbone.channels,
            config.levels,
            config.fpn_channels,
            norm=config.fpn_norm,
            extra_from=config.extra_from,
        )
        self.head = FCOSHead(config, num_classes)

    def predict(self, images: Tensor) -> FCOSOutput:
        """Logits, distances, centre-ness and locations for normalised images [B, 3, H, W]."""
        features = self.neck(self.backbone(images))
        anchors = self.anchors.for_maps(features, images)
        grids = _grids(self.config, features, images)
        cls_logits, distances, centerness_logits = self.head(features)
        return FCOSOutput(cls_logits, distances, centerness_logits, anchors, grids)

    def losses(self, output: FCOSOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Focal loss of all locations that are not ignored, the others of foreground (3.1, 3.3).

        Of each image the sums, divided by foreground locations as the config's ``normalizer`` says.
        """
        config = self.config
        assigned = assign_targets(output, targets, config.location_offset)
        foreground = assigned.foreground
        positives = foreground.sum(1)  # [B]
        loss_cls = sigmoid_focal_loss(
            output.cls_logits,
            assigned.labels,
            config.focal_alpha,
            config.focal_gamma,
            reduction="sum_per_image",
        )
        # where, not indices: how many locations are foreground is known to the device alone.
        boxes = self.boxes(output.distances, output.anchors)
        boxes = torch.where(foreground[..., None], boxes, assigned.boxes)
        box_loss = generalized_box_iou_loss if config.box_loss == "giou" else iou_loss
        loss_box = (box_loss(boxes, assigned.boxes) * foreground).sum(1)
        loss_centerness = F.binary_cross_entropy_with_logits(
            output.centerness.to(boxes.dtype),
            centerness(assigned.boxes, output.anchors),
            weight=foreground.to(boxes.dtype),
            reduction="none",
        ).sum(1)
        by = config.normalizer
        return {
            "loss_cls": per_foreground(loss_cls, positives, by),
            "loss_box": per_foreground(loss_box, positives, by) * config.box_loss_weight,
            "loss_centerness": per_foreground(loss_centerness, positives, by)
            * config.centerness_loss_weight,
        }

    def boxes(self, distances: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 4] xyxy at these distances from the centres of anchors [..., 4]."""
        distances = distances.to(anchors.dtype)
        if self.config.distances == "strides":
            distances = distances * (anchors[..., 2:] - anchors[..., :2]).repeat_interleave(2, -1)
        center = (anchors[..., :2] + anchors[..., 2:]) / 2
        return torch.cat((center - distances[..., :2], center + distances[..., 2:]), -1)

    def decode(self, output: FCOSOutput, image_sizes: Tensor) -> PaddedDetections:
        """The best candidates of each level, decoded, clipped, without duplicates (section 3.1)."""
        config = self.config
        candidates = top_candidates(
            output.cls_logits,
            [grid.height * grid.width for grid in output.grids],
            0.0,
            config.candidates_per_level,
            at_least_float32(output.centerness).sigmoid(),
        )
        scores = candidates.scores.clamp(min=0)
        idxs = candidates.anchor_idxs
        boxes = self.boxes(rows_at(output.distances, idxs), output.anchors[idxs])  # [B, N, 4]
        limits = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None]  # [B, 1, 4]
        return select_detections(
            torch.minimum(boxes.clamp(min=0), limits),
            scores.sqrt() if config.score == "sqrt" else scores,
            candidates.labels,
            iou_threshold=config.nms_iou_threshold,
            max_detections=config.max_detections,
            score_threshold=config.score_threshold,
        )


def _grids(config: FCOSConfig, maps: list[Tensor], images: Tensor) -> tuple[LevelGrid, ...]:
    strides = [2**level for level in config.levels]
    limits = config.range_limits or tuple(8.0 * stride for stride in strides[:-1])
    grids = []
    for x, stride, low, high in zip(
        maps, strides, (0.0, *limits), (*limits, math.inf), strict=True
    ):
        height, width = x.shape[2:]
        steps = (stride, stride)
        if config.location_strides == "image":
            steps = (images.shape[2] // height, images.shape[3] // width)
        radius = config.center_radius * stride or math.inf
        grids.append(LevelGrid(height, width, *steps, low, high, radius))
    return tuple(grids)


@register_model
def fcos_resnet18_fpn(num_classes: int, **overrides: Any) -> FCOS:
    """FCOS on ResNet-18; overrides are fields of :class:`FCOSConfig`."""
    return FCOS(override(FCOSConfig(depth=18), overrides), num_classes)


@register_model
def fcos_resnet50_fpn(num_classes: int, **overrides: Any) -> FCOS:
    """FCOS on ResNet-50; overrides are fields of :class:`FCOSConfig`."""
    return FCOS(override(FCOSConfig(), overrides), num_classes)


@register_model
def fcos_resnet101_fpn(num_classes: int, **overrides: Any) -> FCOS:
    """FCOS on ResNet-101; overrides are fields of :class:`FCOSConfig`."""
    return FCOS(override(FCOSConfig(depth=101), overrides), num_classes)
