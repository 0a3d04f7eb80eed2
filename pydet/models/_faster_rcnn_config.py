# SPDX-License-Identifier: Apache-2.0
"""The settings of Faster R-CNN; see :mod:`pydet.models.faster_rcnn`."""

from dataclasses import dataclass, field
from typing import Literal

from pydet.layers.norm import Norm
from pydet.models._checks import check_at_least, check_choice, check_detection, check_within, refuse
from pydet.preprocessing import Preprocessing


@dataclass(frozen=True)
class FasterRCNNConfig:
    """Every hyper-parameter; sections are the paper's, those of FPN are said. Defaults: FPN."""

    # The trunk: a ResNet with a pyramid, a ResNet up to C4 with C5 as the head, or VGG-16.
    trunk: Literal["fpn", "c4", "vgg"] = "fpn"
    depth: int = 50  # of the ResNet
    width: float = 1.0  # of VGG-16: channels relative to the paper's
    norm: Norm = "batch"  # of the trunk: "batch", "frozen", "group"; VGG-16 also "none"
    norm_eps: float = 1e-5
    frozen_stages: int = 0  # of the trunk that do not learn: 1 the stem, 2 the stem and C2, ...
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)  # FPN, 4.1; level l has a stride of 2**l pixels
    fpn_channels: int = 256  # FPN, section 3
    fpn_norm: Norm = "none"
    # Region proposals
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # FPN, 4.1
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width; 3.1.1
    anchor_offset: float = 0.0  # of locations, in strides; see AnchorGenerator
    anchor_rounding: bool = False  # corners to whole pixels, as torchvision
    anchor_strides: Literal["level", "image"] = "level"  # "image": image size // map size, likewise
    anchor_straddle: float | None = None  # pixels out of the image in training; see assign_anchors
    rpn_channels: int = 256  # of the 3x3 window; 3.1
    rpn_convs: int = 1
    rpn_fg_iou_threshold: float = 0.7  # 3.1.2
    rpn_bg_iou_threshold: float = 0.3  # 3.1.2
    rpn_sample: int = 256  # anchors of an image; 3.1.3
    rpn_fg_fraction: float = 0.5  # at most; 3.1.3
    rpn_smooth_l1_beta: float = 1 / 9  # the authors' code: sigma = 3
    # What sums are divided by: "sample", the anchors in it; "paper", 256 (rpn_sample) for the
    # objectness and the number of locations (some 2400) for boxes; equation 1.
    rpn_normalizer: Literal["sample", "paper"] = "sample"
    rpn_box_weight: float = 1.0  # lambda; the paper, with its normaliser: 10
    # Of each level before suppression and of all together after it, in training and in detection.
    # FPN's code: 2000 and 1000; 3.3: 2000 remain in training, 300 in detection.
    train_pre_nms: int = 2000
    train_post_nms: int = 2000
    pre_nms: int = 1000
    post_nms: int = 1000
    proposal_iou_threshold: float = 0.7  # 3.3
    min_proposal_size: float = 1e-3  # pixels; the authors' code: 16
    # Regions
    pooling: Literal["align", "pool"] = "align"
    pool_size: int = 7
    sampling_ratio: int = 2  # of the alignment; -1: one sample a cell
    aligned: bool = False  # see roi_align
    box_convs: int = 0
    box_fcs: int = 2  # FPN, 4.2; VGG-16 has its own two, C4 has C5
    box_norm: Norm = "none"  # after each of box_convs; padding counts in a batch's statistics
    box_channels: int = 1024  # of the fully connected layers; FPN, 4.2; VGG-16: 4096
    box_dropout: float = 0.5  # of VGG-16's
    roi_sample: int = 512  # regions of an image; FPN, 4.2. Fast R-CNN, 2.3: 64 of 2 images
    roi_fg_fraction: float = 0.25  # at most; Fast R-CNN, 2.3
    roi_fg_iou_threshold: float = 0.5  # Fast R-CNN, 2.3
    roi_bg_iou_range: tuple[float, float] = (0.0, 0.5)  # Fast R-CNN, 2.3: from 0.1
    add_gt_proposals: bool = True
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # the authors' code
    smooth_l1_beta: float = 1.0  # Fast R-CNN, equation 3
    score_threshold: float = 0.05  # the authors' code
    nms_iou_threshold: float = 0.5  # the authors' code; Fast R-CNN's: 0.3
    min_detection_size: float = 1e-2  # pixels
    max_detections: int = 100  # COCO's own limit
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # FPN, 5.1: 800

    def __post_init__(self) -> None:
        check_choice(self, "trunk", ("fpn", "c4", "vgg"))
        check_choice(self, "anchor_strides", ("level", "image"))
        check_choice(self, "rpn_normalizer", ("sample", "paper"))
        check_choice(self, "pooling", ("align", "pool"))
        levels = len(self.levels)
        if len(self.anchor_sizes) != levels:
            raise refuse(self, "anchor_sizes", f"be a tuple for each of the {levels} levels")
        if self.trunk != "fpn" and self.levels != (4,):
            raise refuse(self, "levels", f"be (4,) with the trunk {self.trunk!r}")
        if self.pooling == "pool" and levels > 1:
            raise refuse(self, "pooling", "be 'align' with more than one level")
        if self.trunk == "vgg" and self.pool_size != 7:
            raise refuse(self, "pool_size", "be 7, which VGG-16's layers take")
        low, high = self.roi_bg_iou_range
        if not 0 <= low <= high <= self.roi_fg_iou_threshold:
            raise refuse(
                self, "roi_bg_iou_range", "rise from 0 at least to roi_fg_iou_threshold at most"
            )
        at_least_1 = ("train_pre_nms", "train_post_nms", "pre_nms", "post_nms")
        for name in (*at_least_1, "rpn_sample", "roi_sample", "fpn_channels", "pool_size"):
            check_at_least(self, name, 1)
        check_detection(self)
        check_within(self, "norm_eps", 0, 1)
        check_within(self, "proposal_iou_threshold", 0, 1)
