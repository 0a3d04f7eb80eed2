# SPDX-License-Identifier: Apache-2.0
"""torchvision's detectors in pydet's interface, with pydet's weights: for comparing trainings.

RetinaNet, Faster R-CNN and FCOS are torchvision's from the first layer to the suppression. Of SSD
the anchors, the matching, both losses, the last layers and the suppression are; its trunk is
pydet's, because torchvision's VGG-16 has one width.
"""

import copy
import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn as faster_rcnn_parts
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from pydet.backbones.resnet import DEPTHS
from pydet.models import Detector
from pydet.models.faster_rcnn import FasterRCNN
from pydet.models.fcos import FCOS
from pydet.models.retinanet import RetinaNet
from pydet.models.ssd import SSD
from pydet.postprocess import PaddedDetections
from pydet.structures import PackedTargets
from pydet.weights import _formats
from pydet.weights._family import Weights


class TorchvisionDetector(Detector):
    """torchvision's detector with the settings and the weights of one of pydet's.

    Losses need the training mode, detections the other, as torchvision has it.

    Args:
        ours: It, of which nothing is changed.
    """

    def __init__(self, ours: Detector) -> None:
        super().__init__(ours.config, ours.num_classes)
        self.name = f"torchvision_{ours.name}"
        self.class_names = ours.class_names
        build: Callable[[Any], nn.Module] = _BUILDERS[type(ours)]
        self.network = build(ours)
        self.network.transform = _NoTransform()

    def predict(self, images: Tensor) -> Tensor:
        """The images: torchvision's forward has all the rest."""
        return images

    def losses(self, output: Tensor, targets: PackedTargets) -> dict[str, Tensor]:
        """torchvision's, by its names."""
        offsets = targets.offsets.tolist()
        theirs = []
        for begin, end in itertools.pairwise(offsets):
            boxes, labels = targets.boxes[begin:end], targets.labels[begin:end]
            valid = boxes.isfinite().all(1)  # torchvision refuses the others
            theirs.append({"boxes": boxes[valid], "labels": labels[valid] + 1})
        losses: dict[str, Tensor] = self.network(output, theirs)
        return losses

    def decode(self, output: Tensor, image_sizes: Tensor) -> PaddedDetections:
        """torchvision's detections, padded; images must not be."""
        found = self.network(output)
        boxes, scores, labels = (
            pad_sequence([image[key] for image in found], batch_first=True)
            for key in ("boxes", "scores", "labels")
        )
        counts = torch.tensor([len(image["labels"]) for image in found])
        return PaddedDetections(boxes, scores, labels - 1, counts)


class _NoTransform(nn.Module):
    """For GeneralizedRCNNTransform: pydet has resized and normalised the images already."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [(images.shape[2], images.shape[3])] * len(images)), targets

    def postprocess(self, found: Any, *_: Any) -> Any:
        return found


def _retinanet(ours: RetinaNet) -> nn.Module:
    config, num_classes = ours.config, ours.num_classes + 1
    channels = config.fpn_channels
    norm = partial(nn.GroupNorm, 32) if config.head_norm == "group" else None
    anchors = _anchors(config.anchor_sizes, config.anchor_ratios)
    network = detection.RetinaNet(
        _trunk(config, (3, 4, 5), LastLevelP6P7(channels, channels)),
        num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(channels, ours.anchors.num_per_location, num_classes, norm),
        **_suppression(config),
        fg_iou_thresh=config.fg_iou_threshold,
        bg_iou_thresh=config.bg_iou_threshold,
        topk_candidates=config.candidates_per_level,
    )
    if config.box_loss == "giou":
        network.head.regression_head._loss_type = "giou"  # as torchvision's builder of version 2
    return _filled(network, ours)


def _fcos(ours: FCOS) -> nn.Module:
    config, num_classes = ours.config, ours.num_classes + 1
    channels = config.fpn_channels
    network = detection.FCOS(
        _trunk(config, (3, 4, 5), LastLevelP6P7(channels, channels)),
        num_classes,
        anchor_generator=_anchors([(2**level,) for level in config.levels], (1.0,)),
        head=FCOSHead(channels, 1, num_classes, config.head_convs),
        center_sampling_radius=config.center_radius,
        **_suppression(config),
        topk_candidates=config.candidates_per_level,
    )
    return _filled(network, ours)


def _faster_rcnn(ours: FasterRCNN) -> nn.Module:
    config, num_classes = ours.config, ours.num_classes + 1
    channels, hidden = config.fpn_channels, config.box_channels
    network = detection.FasterRCNN(
        _trunk(config, (2, 3, 4, 5), LastLevelMaxPool()),
        rpn_anchor_generator=_anchors(config.anchor_sizes, config.anchor_ratios),
        rpn_pre_nms_top_n_train=config.train_pre_nms,
        rpn_pre_nms_top_n_test=config.pre_nms,
        rpn_post_nms_top_n_train=config.train_post_nms,
        rpn_post_nms_top_n_test=config.post_nms,
        rpn_nms_thresh=config.proposal_iou_threshold,
        rpn_fg_iou_thresh=config.rpn_fg_iou_threshold,
        rpn_bg_iou_thresh=config.rpn_bg_iou_threshold,
        rpn_batch_size_per_image=config.rpn_sample,
        rpn_positive_fraction=config.rpn_fg_fraction,
        box_head=faster_rcnn_parts.TwoMLPHead(channels * config.pool_size**2, hidden),
        box_predictor=faster_rcnn_parts.FastRCNNPredictor(hidden, num_classes),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_iou_threshold,
        box_detections_per_img=config.max_detections,
        box_fg_iou_thresh=config.roi_fg_iou_threshold,
        box_bg_iou_thresh=config.roi_bg_iou_range[1],
        box_batch_size_per_image=config.roi_sample,
        box_positive_fraction=config.roi_fg_fraction,
        bbox_reg_weights=config.box_weights,
    )
    return _filled(network, ours)


def _ssd(ours: SSD) -> nn.Module:
    config = ours.config
    size = config.preprocessing.size
    assert isinstance(size, tuple) and size[0] == size[1]  # torchvision's boxes have its ratio
    anchors = DefaultBoxGenerator(
        [list(level) for level in config.anchor_ratios],
        scales=[side / size[0] for side in config.anchor_sizes],
        steps=list(config.anchor_strides) if config.anchor_strides else None,
        clip=config.anchor_clip,
    )
    network = detection.ssd.SSD(
        _NarrowVGG(ours),
        anchors,
        size,
        ours.num_classes + 1,
        **_suppression(config),
        iou_thresh=config.fg_iou_threshold,
        topk_candidates=config.candidates_per_class,
        positive_fraction=1 / (1 + config.negatives_per_positive),
    )
    head = network.head
    head.regression_head.module_list.load_state_dict(ours.head.box_deltas.state_dict())
    counts = ours.anchors.num_per_location
    for count, mine, theirs in zip(
        counts, ours.head.cls_logits, head.classification_head.module_list, strict=True
    ):
        # pydet's background is the last class, torchvision's the first.
        state = {
            name: value.unflatten(0, (count, -1)).roll(1, 1).flatten(0, 1)
            for name, value in mine.state_dict().items()
        }
        theirs.load_state_dict(state)
    return network


class _NarrowVGG(nn.Module):
    """The maps of pydet's VGG-16 and its further layers, as torchvision's SSD takes them."""

    def __init__(self, ours: SSD) -> None:
        super().__init__()
        self.backbone, self.neck = copy.deepcopy((ours.backbone, ours.neck))
        self.out_channels = list(ours.neck.channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.neck(self.backbone(images))
        return OrderedDict((str(index), x) for index, x in enumerate(maps))


def _trunk(config: Any, levels: tuple[int, ...], extra: ExtraFPNBlock) -> nn.Module:
    """torchvision's ResNet with a pyramid, all of which learns."""
    body = ResNet(BasicBlock, list(DEPTHS[config.depth]))
    layers = {f"layer{level - 1}": str(index) for index, level in enumerate(levels)}
    channels = [64 * 2 ** (level - 2) for level in levels]
    return BackboneWithFPN(body, layers, channels, config.fpn_channels, extra)


def _suppression(config: Any) -> dict[str, Any]:
    """What detectors of one stage keep, by torchvision's names."""
    return {
        "score_thresh": config.score_threshold,
        "nms_thresh": config.nms_iou_threshold,
        "detections_per_img": config.max_detections,
    }


def _anchors(sizes: Any, ratios: tuple[float, ...]) -> AnchorGenerator:
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))


def _filled(network: nn.Module, ours: Detector) -> nn.Module:
    """The network with pydet's weights, by the names that `pydet convert` gives them."""
    family = _formats.family_for(ours.name, "torchvision")
    config = dataclasses.asdict(ours.config)
    weights = Weights(ours.name, ours.num_classes, config, ours.state_dict(), ours.class_names)
    network.load_state_dict(family.from_pydet(weights))
    return network


_BUILDERS: Mapping[type[Detector], Callable[[Any], nn.Module]] = {
    FasterRCNN: _faster_rcnn,
    FCOS: _fcos,
    RetinaNet: _retinanet,
    SSD: _ssd,
}
