# SPDX-License-Identifier: Apache-2.0
"""SSD: Liu et al., SSD: Single Shot MultiBox Detector, arXiv 1512.02325 (version 5).

Implemented: VGG-16 with atrous conv6 and conv7, the extra layers and L2 normalisation of conv4_3
(sections 2.1, 3), default boxes, matching, both losses and hard negative mining (2.2), SSD512 (3.1,
footnote), inference (2.1, 3.7). The augmentations of sections 2.2 and 3.6 are transforms:
``random_zoom_out``, ``random_iou_crop``, ``photometric_distortion``. In the place of the mining, if
wanted, the focal loss of Lin et al., arXiv 1708.02002.

Where the paper is silent the authors' code decides: scales of whole percents, strides of default
boxes, variances (``box_weights``), 400 candidates a class.

Deviations, each a field of the config: the normaliser is that of each image (the authors' code: of
the batch); pixels are divided by ImageNet's deviation, too (theirs: 0 ... 255 less a mean), so that
training from nothing works. A default box that overlaps an object by exactly the threshold is
foreground, and no default box is assigned to an object that it does not touch.

Numbers that prove the structure: 8732 default boxes for 300 x 300 pixels, 24 564 for 512 x 512;
35 641 826 parameters with 91 classes, background counted, as torchvision publishes.

Letters: B images, A default boxes (anchors) of all levels, K classes, C channels, N candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pydet.anchors import DefaultBoxGenerator, permute_to_anchors
from pydet.assignment import AnchorTargets, assign_by_iou
from pydet.backbones.vgg import VGG16, VGGAtrousHead, scaled_channels
from pydet.layers.norm import L2Norm, Norm, make_norm
from pydet.losses import NORMALIZERS, Normalizer, foreground_smooth_l1, per_foreground
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
from pydet.ops import decode_boxes, encode_boxes, softmax_focal_loss
from pydet.ops.match_anchors import BACKGROUND
from pydet.postprocess import (
    PaddedDetections,
    at_least_float32,
    rows_at,
    select_detections,
    top_candidates_per_class,
)
from pydet.preprocessing import Preprocessing
from pydet.structures import PackedTargets

_Layer = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class SSDConfig:
    """Every hyper-parameter; sections are those of the paper, defaults those of SSD300."""

    norm: Norm = "none"  # of the trunk: "none" as in the paper, "batch", "frozen" or "group"
    norm_eps: float = 1e-5
    extra_norm: Norm = "none"  # of conv6, conv7 and the extra layers
    frozen_stages: int = 0  # of the trunk that do not learn: 1 conv1_1 and conv1_2, ...
    width: float = 1.0  # channels of every layer, relative to the paper's
    l2_norm_scale: float = 20.0  # first length of conv4_3's vectors; section 3.1
    # conv8 ... conv11, figure 2: channels of a 1x1 convolution, then channels, kernel, stride and
    # padding of one that makes the next map.
    extra_layers: tuple[_Layer, ...] = (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 1, 0),
        (128, 256, 3, 1, 0),
    )
    # Pixels: 10, 20, 37, 54, 71, 88 and 105 percent of 300, see DefaultBoxGenerator; section 3.1
    # (for COCO the authors' code has 7, 15, 33, 51, 69, 87 and 105, section 3.4).
    anchor_sizes: tuple[float, ...] = (30, 60, 111, 162, 213, 264, 315)
    anchor_ratios: tuple[tuple[float, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    # Pixels between locations; the authors' code. None: the image's size / the map's; section 2.2
    anchor_strides: tuple[int, ...] | None = (8, 16, 32, 64, 100, 300)
    anchor_clip: bool = False  # no default box wider or higher than the image, as torchvision
    fg_iou_threshold: float = 0.5  # section 2.2
    box_weights: tuple[float, ...] = (10, 10, 5, 5)  # 1 / variances 0.1 and 0.2
    cls_loss: Literal["mining", "focal"] = "mining"  # section 2.2, or arXiv 1708.02002
    negatives_per_positive: float = 3.0  # mining; section 2.2
    min_negatives: int = 0  # mining: of each image; 0: one without objects teaches nothing
    focal_alpha: float = 0.25  # focal
    focal_gamma: float = 2.0  # focal
    prior: float = 0.01  # focal: the first probability of foreground
    box_loss_weight: float = 1.0  # alpha; section 2.2
    normalizer: Normalizer = "image"  # of both losses; see per_foreground
    score_threshold: float = 0.01  # section 3.7
    candidates_per_class: int = 400  # the authors' code
    nms_iou_threshold: float = 0.45  # section 3.7
    max_detections: int = 200  # section 3.7
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(
            resize="fixed", size=(300, 300), max_size=None, size_divisor=1
        )
    )

    def __post_init__(self) -> None:
        levels = 2 + len(self.extra_layers)
        reason = f"for the {levels} levels conv4_3, conv7 and extra_layers"
        check_length(self, "anchor_sizes", levels + 1, reason)
        check_length(self, "anchor_ratios", levels, reason)
        check_length(self, "anchor_strides", levels, reason)
        if not all(len(layer) == 5 for layer in self.extra_layers):
            raise refuse(self, "extra_layers", "be five numbers each")
        check_choice(self, "cls_loss", ("mining", "focal"))
        check_choice(self, "normalizer", NORMALIZERS)
        check_between(self, "prior", 0, 1)
        check_between(self, "negatives_per_positive", 0, math.inf)
        check_at_least(self, "min_negatives", 0)
        check_at_least(self, "candidates_per_class", 1)
        check_detection(self)
        check_within(self, "norm_eps", 0, 1)


class SSDOutput(NamedTuple):
    """The network's raw output, all levels together, in the order of the default boxes."""

    cls_logits: Tensor  # [B, A, K + 1], the background last
    box_deltas: Tensor  # [B, A, 4], relative to the default boxes
    anchors: Tensor  # [A, 4] float32 (float64 in such a model) xyxy, pixels of the batch


class SSDNeck(nn.Module):
    """The maps that are predicted from: conv4_3, conv7 and those of the extra layers (figure 2).

    Attributes:
        channels: Of each map.
    """

    def __init__(self, in_channels: Mapping[int, int], config: SSDConfig) -> None:
        super().__init__()
        self.l2_norm = L2Norm(in_channels[3], config.l2_norm_scale)
        last = scaled_channels(1024, config.width)
        self.atrous = VGGAtrousHead(in_channels[4], last, norm=config.extra_norm)
        self.channels = [in_channels[3], last]
        self.extra = nn.ModuleList()
        bias = config.extra_norm == "none"
        for layer in config.extra_layers:
            squeeze, channels = (scaled_channels(c, config.width) for c in layer[:2])
            convs = (
                nn.Conv2d(last, squeeze, 1, bias=bias),
                nn.Conv2d(squeeze, channels, *layer[2:], bias=bias),
            )
            layers = nn.Sequential()
            for conv in convs:
                _init_xavier(conv)
                layers.extend(
                    (conv, make_norm(config.extra_norm, conv.out_channels), nn.ReLU(True))
                )
            self.extra.append(layers)
            last = channels
            self.channels.append(channels)

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """Maps [B, C, Hl, Wl], low stride first, of the trunk's by level."""
        x = self.atrous(features[4])
        maps = [self.l2_norm(features[3]), x]
        for layer in self.extra:
            x = layer(x)
            maps.append(x)
        return maps


class SSDHead(nn.Module):
    """A 3x3 convolution for the classes and one for the boxes of each map (section 2.1).

    Args:
        channels: Of each map.
        num_anchors: Default boxes at each location of each map.
        num_classes: K.
        prior: The first probability of foreground; None: by chance.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_anchors: Sequence[int],
        num_classes: int,
        *,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_logits = nn.ModuleList()
        self.box_deltas = nn.ModuleList()
        for inputs, count in zip(channels, num_anchors, strict=True):
            logits = nn.Conv2d(inputs, count * (num_classes + 1), 3, padding=1)
            deltas = nn.Conv2d(inputs, count * 4, 3, padding=1)
            for conv in (logits, deltas):
                _init_xavier(conv)
            if prior is not None:
                nn.init.normal_(logits.weight, std=0.01)  # arXiv 1708.02002, section 4.1
                assert logits.bias is not None
                # Of K + 1 logits, K of them 0: the background has a probability of 1 - prior.
                background = logits.bias.detach().view(count, num_classes + 1)[:, num_classes]
                background.fill_(math.log(num_classes * (1 - prior) / prior))
            self.cls_logits.append(logits)
            self.box_deltas.append(deltas)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, A, K + 1] and deltas [B, A, 4] of maps [B, C, Hl, Wl]."""
        logits = [conv(x) for conv, x in zip(self.cls_logits, features, strict=True)]
        deltas = [conv(x) for conv, x in zip(self.box_deltas, features, strict=True)]
        return (
            torch.cat([permute_to_anchors(x, self.num_classes + 1) for x in logits], 1),
            torch.cat([permute_to_anchors(x, 4) for x in deltas], 1),
        )


def assign_targets(anchors: Tensor, targets: PackedTargets, config: SSDConfig) -> AnchorTargets:
    """Assigns each default box of each image to one object at most (section 2.2, "Matching").

    Each object gets the default box that overlaps it most; then each default box gets the object
    that it overlaps most, if by 0.5 at least. All others are background, but ignored within
    ignored boxes.

    Args:
        anchors: [A, 4] xyxy, of every image.
        targets: In the same pixels.
        config: For its threshold.
    """
    threshold = config.fg_iou_threshold
    return assign_by_iou(anchors, targets, threshold, threshold, best_anchor_for_each_gt=True)


def mined_cross_entropy(
    logits: Tensor, labels: Tensor, negatives_per_positive: float, min_negatives: int = 0
) -> Tensor:
    """Cross entropy of the foreground and of the hardest background (section 2.2).

    Args:
        logits: [B, A, K + 1], the background last.
        labels: [B, A] int64: a class, BACKGROUND (-1) or IGNORED (-2).
        negatives_per_positive: How many background boxes, those of the highest loss, count for each
            foreground box of the image; of equal ones the first.
        min_negatives: Of each image, if there are as many.

    Returns:
        [B], of each image the sum.
    """
    losses = softmax_focal_loss(logits, labels, alpha=-1, gamma=0)  # [B, A]: the cross entropy
    foreground = labels >= 0
    wanted = (foreground.sum(1) * negatives_per_positive).clamp(min=min_negatives)
    negatives = torch.where(labels == BACKGROUND, losses, -math.inf)
    # The loss itself is sorted, so what has to be added up is at the beginning of each row.
    hardest = negatives.sort(dim=1, descending=True, stable=True).values
    places = torch.arange(labels.shape[1], device=labels.device)
    chosen = (places < wanted[:, None]) & (hardest != -math.inf)
    positives = torch.where(foreground, losses, 0)
    return positives.sum(1) + torch.where(chosen, hardest, 0).sum(1)


class SSD(Detector):
    """SSD on VGG-16.

    Args:
        config: See :class:`SSDConfig`.
        num_classes: K, background not counted.
    """

    config: SSDConfig

    def __init__(self, config: SSDConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.anchors = DefaultBoxGenerator(
            config.anchor_sizes,
            config.anchor_ratios,
            config.anchor_strides,
            clip=config.anchor_clip,
        )
        self.backbone = VGG16(
            norm=config.norm,
            norm_eps=config.norm_eps,
            frozen_stages=config.frozen_stages,
            width=config.width,
        )
        self.neck = SSDNeck(self.backbone.channels, config)
        self.head = SSDHead(
            self.neck.channels,
            self.anchors.num_per_location,
            num_classes,
            prior=config.prior if config.cls_loss == "focal" else None,
        )

    def predict(self, images: Tensor) -> SSDOutput:
        """Logits, deltas and default boxes for normalised images [B, 3, H, W]."""
        features = self.neck(self.backbone(images))
        cls_logits, box_deltas = self.head(features)
        return SSDOutput(cls_logits, box_deltas, self.anchors.for_maps(features, images))

    def losses(self, output: SSDOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Loss of classes, mined or focal, and smooth L1 of foreground boxes (section 2.2)."""
        config = self.config
        assigned = assign_targets(output.anchors, targets, config)
        logits = at_least_float32(output.cls_logits)
        if config.cls_loss == "focal":
            loss_cls = softmax_focal_loss(
                logits,
                assigned.labels,
                config.focal_alpha,
                config.focal_gamma,
                reduction="sum_per_image",
            )
        else:
            loss_cls = mined_cross_entropy(
                logits, assigned.labels, config.negatives_per_positive, config.min_negatives
            )
        target_deltas = encode_boxes(assigned.boxes, output.anchors, config.box_weights)
        loss_box = foreground_smooth_l1(output.box_deltas, target_deltas, assigned.foreground)
        positives = assigned.foreground.sum(1)  # [B]
        weight, by = config.box_loss_weight, config.normalizer
        return {
            "loss_cls": per_foreground(loss_cls, positives, by),
            "loss_box": per_foreground(loss_box.sum(1), positives, by) * weight,
        }

    def decode(self, output: SSDOutput, image_sizes: Tensor) -> PaddedDetections:
        """The best default boxes of each class, decoded, clipped, without duplicates."""
        config = self.config
        candidates = top_candidates_per_class(
            output.cls_logits, config.score_threshold, config.candidates_per_class
        )
        # All boxes are decoded first: many are candidates of several classes.
        boxes = decode_boxes(
            at_least_float32(output.box_deltas),
            output.anchors,
            config.box_weights,
            image_sizes=image_sizes,
        )  # [B, A, 4]
        return select_detections(
            rows_at(boxes, candidates.anchor_idxs),
            candidates.scores,
            candidates.labels,
            iou_threshold=config.nms_iou_threshold,
            max_detections=config.max_detections,
        )


def _init_xavier(conv: nn.Conv2d) -> None:
    nn.init.xavier_uniform_(conv.weight)  # section 3: "xavier"
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


SSD512 = SSDConfig(  # section 3.1: conv12 is new
    extra_layers=((256, 512, 3, 2, 1), *3 * ((128, 256, 3, 2, 1),), (128, 256, 4, 1, 1)),
    # 7, 15, 30, 45, 60, 75, 90 and 105 percent of 512
    anchor_sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
    anchor_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    anchor_strides=(8, 16, 32, 64, 128, 256, 512),
    preprocessing=Preprocessing(resize="fixed", size=(512, 512), max_size=None, size_divisor=1),
)


@register_model
def ssd300_vgg16(num_classes: int, **overrides: Any) -> SSD:
    """SSD300 on VGG-16; overrides are fields of :class:`SSDConfig`."""
    return SSD(override(SSDConfig(), overrides), num_classes)


@register_model
def ssd512_vgg16(num_classes: int, **overrides: Any) -> SSD:
    """SSD512 on VGG-16; overrides are fields of :class:`SSDConfig`."""
    return SSD(override(SSD512, overrides), num_classes)


@register_model
def ssd300_focal_vgg16(num_classes: int, **overrides: Any) -> SSD:
    """SSD300 with the focal loss; overrides are fields of :class:`SSDConfig`."""
    return SSD(override(SSDConfig(cls_loss="focal"), overrides), num_classes)
