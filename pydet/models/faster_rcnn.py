# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN: Ren et al., arXiv 1506.01497; on a feature pyramid: Lin et al., arXiv 1612.03144.

Implemented: the region proposal network (section 3.1; pydet/layers/rpn.py), Fast R-CNN's head
(Girshick, arXiv 1504.08083, section 2; pydet/layers/box_head.py), their joint training (3.2),
VGG-16 with pooled regions as in the paper, ResNet up to C4 with C5 as the head (He et al., arXiv
1512.03385, appendix A), and the pyramid with the rule of levels (FPN, sections 4.1 and 4.2).

Deviations, each a field of the config: regions are aligned, not pooled (VGG: pooled); the boxes
themselves are proposals in training, as in the authors' code; losses are divided by the anchors in
the sample, not by 256 and some 2400 with lambda = 10 (VGG and C4: as the paper); a batch norm
learns with the rest (papers: ImageNet's, fixed), so that training from nothing works. An anchor is
never assigned to a box that it does not touch.

Numbers that prove the structure: 9 anchors a location, stride 16, 21 546 anchors in an image of 600
x 1000, of which some 8000 lie within (the paper's "about 6000" is what its anchors give for 600 x
800); 41 755 286 parameters with ResNet-50, a pyramid and 91 outputs of the softmax, as torchvision
publishes (pydet has no deltas of the background: 4 · 1025 fewer).

Letters: B images, A anchors of all levels, K classes, P proposals and S sampled regions of an
image, R regions of the batch.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pydet.anchors import AnchorGenerator
from pydet.backbones.resnet import ResNet
from pydet.backbones.vgg import VGG16, VGGBoxHead
from pydet.layers.box_head import (
    BoxFeatures,
    BoxPredictor,
    box_losses,
    detect_in_regions,
    mean_of_map,
    pool_regions,
    sample_regions,
)
from pydet.layers.fpn import FPN
from pydet.layers.rpn import Proposals, RPNHead, assign_anchors, propose, rpn_losses
from pydet.models._detector import Detector
from pydet.models._faster_rcnn_config import FasterRCNNConfig
from pydet.models._registry import override, register_model
from pydet.ops.match_anchors import BACKGROUND
from pydet.postprocess import PaddedDetections
from pydet.preprocessing import Preprocessing
from pydet.sampling import sample_balanced
from pydet.structures import PackedTargets


class FasterRCNNOutput(NamedTuple):
    """What the trunk and the proposal network give; all levels together, as the anchors are."""

    features: list[Tensor]  # [B, C, Hl, Wl] of the levels that regions are taken from
    objectness: Tensor  # [B, A] logits
    box_deltas: Tensor  # [B, A, 4], relative to the anchors
    anchors: Tensor  # [A, 4] float32 (float64 in such a model) xyxy, pixels of the batch
    num_per_level: tuple[int, ...]  # anchors of each level; sums to A


Part = Literal["rpn", "head"]


class FasterRCNN(Detector):
    """Faster R-CNN on a ResNet with a feature pyramid, on a ResNet's C4, or on VGG-16.

    Args:
        config: See :class:`FasterRCNNConfig`.
        num_classes: K, background not counted.
    """

    config: FasterRCNNConfig
    part: Part | None = None  # which learns; None: both
    _proposer: "tuple[FasterRCNN, ...]" = ()  # one at most; in a tuple it is no part of the model
    _fixed: tuple[str, ...] = ()  # modules that do not learn, beyond the config's frozen_stages

    def __init__(self, config: FasterRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        names = ("norm", "norm_eps", "frozen_stages")
        settings: dict[str, Any] = {name: getattr(config, name) for name in names}
        self.backbone: ResNet | VGG16
        if config.trunk == "vgg":
            self.backbone = VGG16(width=config.width, **settings)
        else:
            self.backbone = ResNet(config.depth, **settings)
        self.neck: FPN | None = None
        if config.trunk == "fpn":
            self.neck = FPN(
                self.backbone.channels,
                config.levels,
                config.fpn_channels,
                norm=config.fpn_norm,
                extra_from="pool",
            )
        channels = self.backbone.channels[4] if self.neck is None else config.fpn_channels
        self.anchors = AnchorGenerator(
            config.anchor_sizes,
            config.anchor_ratios,
            [2**level for level in config.levels] if config.anchor_strides == "level" else None,
            offset=config.anchor_offset,
            rounding=config.anchor_rounding,
        )
        self.rpn = RPNHead(
            channels,
            config.rpn_channels,
            self.anchors.num_per_location,
            num_convs=config.rpn_convs,
        )
        self.box_features: BoxFeatures | VGGBoxHead | None = None
        if config.trunk == "fpn":
            self.box_features = BoxFeatures(
                channels,
                config.pool_size,
                config.box_channels,
                num_convs=config.box_convs,
                num_fcs=config.box_fcs,
                norm=config.box_norm,
            )
        elif config.trunk == "vgg":
            self.box_features = VGGBoxHead(
                channels, config.box_channels, dropout=config.box_dropout
            )
        self.box_head = BoxPredictor(
            self.backbone.channels[5] if self.box_features is None else self.box_features.channels,
            num_classes,
        )

    def learn(
        self, part: Part, *, fix_trunk: bool = False, proposer: "FasterRCNN | None" = None
    ) -> "FasterRCNN":
        """Makes one part alone learn, as in a step of the alternating training (section 3.2).

        Args:
            part: "rpn", the proposal network; "head", what follows it. The other part is left out
                of the losses, and is fixed. There is no way back: copy the model before.
            fix_trunk: Whether the layers that both parts share are fixed, too.
            proposer: The model whose proposals the head learns from and detects in; None: its own.

        Returns:
            The model itself.
        """
        children = dict(self.named_children())
        rpn, head = {"rpn"}, {"box_features", "box_head"} & set(children)
        shared: set[str] = {"backbone", "neck"} & set(children)
        if self.box_features is None:  # C5 is the head's
            shared = {f"backbone.{name}" for name, _ in self.backbone.named_children()}
            shared.remove("backbone.layer4")
            head.add("backbone.layer4")
        fixed = (head if part == "rpn" else rpn) | (shared if fix_trunk else set())
        self.part = part
        self._fixed = tuple(sorted(fixed))
        self._proposer = () if proposer is None else (proposer.eval().requires_grad_(False),)
        for name in self._fixed:
            self.get_submodule(name).requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "FasterRCNN":
        """As nn.Module.train, but modules that are fixed keep their statistics."""
        super().train(mode)
        for name in self._fixed:
            self.get_submodule(name).eval()
        return self

    def predict(self, images: Tensor) -> FasterRCNNOutput:
        """Maps, objectness, deltas and anchors for normalised images [B, 3, H, W]."""
        config = self.config
        if self.neck is not None:
            features = self.neck(self.backbone(images))
        elif isinstance(self.backbone, ResNet):
            features = [self.backbone(images, last_level=4)[4]]
        else:
            features = [self.backbone(images)[4]]
        if self._proposer:
            with torch.no_grad():
                other = self._proposer[0].to(images.device).predict(images)
            objectness, box_deltas = other.objectness, other.box_deltas
        else:
            objectness, box_deltas = self.rpn(features)
        anchors = self.anchors.for_maps(features, images)
        num = self.anchors.num_per_location
        num_per_level = tuple(x.shape[2] * x.shape[3] * num for x in features)
        # Levels beyond the trunk's are for proposals only (FPN, section 4.1).
        inside = [x for x, level in zip(features, config.levels, strict=True) if level <= 5]
        return FasterRCNNOutput(inside, objectness, box_deltas, anchors, num_per_level)

    def losses(self, output: FasterRCNNOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Of the proposal network (equation 1) and of the head on a sample of its proposals (3.2).

        Each is a sum over an image's sample, divided as ``rpn_normalizer`` says (the head's by the
        regions in the sample); then the mean over images.
        """
        losses: dict[str, Tensor] = {}
        if self.part != "head":
            losses |= self.rpn_losses(output, targets)
        if self.part != "rpn":
            losses |= self.head_losses(output, targets)
        return losses

    def rpn_losses(self, output: FasterRCNNOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Log loss of objectness, smooth L1 of foreground anchors' deltas (equation 1)."""
        config = self.config
        assigned = assign_anchors(
            output.anchors,
            targets,
            config.rpn_fg_iou_threshold,
            config.rpn_bg_iou_threshold,
            config.anchor_straddle,
        )
        samples = sample_balanced(
            assigned.foreground,
            assigned.labels == BACKGROUND,
            config.rpn_sample,
            config.rpn_fg_fraction,
        )
        normalizers = None
        if config.rpn_normalizer == "paper":
            locations = output.anchors.shape[0] // self.anchors.num_per_location
            normalizers = (config.rpn_sample, locations)
        loss_objectness, loss_box = rpn_losses(
            output.objectness,
            output.box_deltas,
            output.anchors,
            assigned,
            samples,
            beta=config.rpn_smooth_l1_beta,
            normalizers=normalizers,
        )
        return {
            "loss_objectness": loss_objectness,
            "loss_rpn_box": loss_box * config.rpn_box_weight,
        }

    def head_losses(self, output: FasterRCNNOutput, targets: PackedTargets) -> dict[str, Tensor]:
        """Log loss of classes, smooth L1 of foreground regions (Fast R-CNN, equation 1)."""
        config = self.config
        sample = sample_regions(
            self._proposals(
                output, targets.image_sizes, config.train_pre_nms, config.train_post_nms
            ),
            targets,
            count=config.roi_sample,
            max_fg_fraction=config.roi_fg_fraction,
            fg_iou_threshold=config.roi_fg_iou_threshold,
            bg_iou_range=config.roi_bg_iou_range,
            add_gt=config.add_gt_proposals,
        )
        cls_logits, box_deltas = self._regions(output.features, sample.regions)
        loss_cls, loss_box = box_losses(
            cls_logits,
            box_deltas,
            sample,
            weights=config.box_weights,
            beta=config.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls, "loss_box": loss_box}

    def decode(self, output: FasterRCNNOutput, image_sizes: Tensor) -> PaddedDetections:
        """Classes and boxes of the best proposals, without duplicates (Fast R-CNN, 3.1)."""
        config = self.config
        proposals = self._proposals(output, image_sizes, config.pre_nms, config.post_nms)
        cls_logits, box_deltas = self._regions(output.features, proposals.boxes)
        return detect_in_regions(
            cls_logits,
            box_deltas,
            proposals,
            image_sizes,
            weights=config.box_weights,
            score_threshold=config.score_threshold,
            min_size=config.min_detection_size,
            iou_threshold=config.nms_iou_threshold,
            max_detections=config.max_detections,
        )

    def _proposals(
        self, output: FasterRCNNOutput, image_sizes: Tensor, pre_nms: int, post_nms: int
    ) -> Proposals:
        return propose(
            output.objectness,
            output.box_deltas,
            output.anchors,
            output.num_per_level,
            image_sizes,
            pre_nms=pre_nms,
            post_nms=post_nms,
            iou_threshold=self.config.proposal_iou_threshold,
            min_size=self.config.min_proposal_size,
        )

    def _regions(self, features: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, P, K + 1] and deltas [B, P, K, 4] of regions [B, P, 4]."""
        config = self.config
        # A head that flattens its regions would copy those that are in channels_last.
        flat = config.trunk == "fpn" and not config.box_convs
        x = pool_regions(
            features,
            boxes,
            config.levels,
            pooling=config.pooling,
            size=config.pool_size,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            memory_format=torch.contiguous_format if flat else None,
        )
        if self.box_features is not None:
            x = self.box_features(x)
        else:
            assert isinstance(self.backbone, ResNet)
            x = mean_of_map(self.backbone.get_submodule("layer4")(x))
        cls_logits, box_deltas = self.box_head(x)
        shape = boxes.shape[:2]
        return cls_logits.unflatten(0, shape), box_deltas.unflatten(0, shape)


@register_model
def faster_rcnn_resnet18_fpn(num_classes: int, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on ResNet-18; overrides are fields of :class:`FasterRCNNConfig`."""
    return FasterRCNN(override(FasterRCNNConfig(depth=18), overrides), num_classes)


@register_model
def faster_rcnn_resnet50_fpn(num_classes: int, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on ResNet-50; overrides are fields of :class:`FasterRCNNConfig`."""
    return FasterRCNN(override(FasterRCNNConfig(), overrides), num_classes)


@register_model
def faster_rcnn_resnet101_fpn(num_classes: int, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on ResNet-101; overrides are fields of :class:`FasterRCNNConfig`."""
    return FasterRCNN(override(FasterRCNNConfig(depth=101), overrides), num_classes)


# What the paper has on one map of stride 16 (sections 3.1 and 3.3; He et al., appendix A).
_SINGLE_MAP: dict[str, Any] = {
    "levels": (4,),
    "anchor_sizes": ((128.0, 256.0, 512.0),),
    "anchor_straddle": 0.0,
    "rpn_channels": 512,
    "rpn_normalizer": "paper",
    "rpn_box_weight": 10.0,
    "train_pre_nms": 12000,
    "pre_nms": 6000,
    "post_nms": 300,
    "roi_sample": 128,
}


@register_model
def faster_rcnn_resnet50_c4(num_classes: int, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on ResNet-50 up to C4, its C5 being the head of regions of 14 x 14."""
    config = FasterRCNNConfig(trunk="c4", pool_size=14, **_SINGLE_MAP)
    return FasterRCNN(override(config, overrides), num_classes)


@register_model
def faster_rcnn_vgg16(num_classes: int, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on VGG-16, as in the paper: pooled regions, images of 600 pixels."""
    config = FasterRCNNConfig(
        trunk="vgg",
        norm="none",
        anchor_offset=0.5,  # a cell of a VGG is the square of pixels that it was pooled from
        min_proposal_size=16.0,
        pooling="pool",
        roi_bg_iou_range=(0.1, 0.5),
        box_channels=4096,
        preprocessing=Preprocessing(size=600, max_size=1000),
        **_SINGLE_MAP,
    )
    return FasterRCNN(override(config, overrides), num_classes)
