# SPDX-License-Identifier: Apache-2.0
"""What the tests of several detectors share."""

import torch

from pydet.structures import pack_targets

# What makes a detector small enough for a test, by the beginning of its name.
TWO_STAGES = {
    "rpn_channels": 16,
    "box_channels": 32,
    "train_pre_nms": 100,
    "train_post_nms": 50,
    "pre_nms": 100,
    "post_nms": 30,
    "roi_sample": 16,
}
ONE_MAP = {**TWO_STAGES, "anchor_sizes": [[16, 32, 64]]}
SMALL = {
    "faster_rcnn_vgg16": {**ONE_MAP, "width": 0.125, "box_dropout": 0.0},
    "faster_rcnn_resnet50_c4": {**ONE_MAP, "pool_size": 4, "roi_sample": 8},
    "faster_rcnn": {**TWO_STAGES, "fpn_channels": 16},
    "fcos": {"fpn_channels": 16, "head_convs": 1},
    "retinanet": {"fpn_channels": 16, "head_convs": 1},
    "ssd": {
        "width": 1 / 16,
        "extra_layers": ((256, 512, 3, 2, 1),),
        "anchor_sizes": (12, 24, 40, 60),  # each target has a default box on each level
        "anchor_ratios": ((2,), (2, 3), (2,)),
        "anchor_strides": (8, 16, 32),
    },
}


def packed(*images, sizes=None):
    """Targets of (box, label) pairs; a third entry True makes a box ignored."""
    targets = [
        {
            "boxes": torch.tensor([box for box, *_ in image], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([label for _, label, *_ in image], dtype=torch.int64),
            "ignored": torch.tensor([bool(rest) for _, _, *rest in image], dtype=torch.bool),
        }
        for image in images
    ]
    return pack_targets(targets, sizes)


class Detect(torch.nn.Module):
    """What is exported: from normalised images to padded detections."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, sizes):
        return tuple(self.model.detect(images, sizes))


def assert_detect_alike(detect, other, shapes):
    """Both give the same padded detections for random images of these shapes."""
    with torch.no_grad():
        for shape in shapes:
            x, sizes = torch.randn(shape), torch.full((shape[0], 2), 60.0)
            for a, b in zip(detect(x, sizes), other(x, sizes), strict=True):
                torch.testing.assert_close(a, b)


def assert_trains(model):
    """One step on an image of 64 pixels with an object gives each parameter a finite gradient."""
    targets = [{"boxes": torch.tensor([[5.0, 5, 40, 44]]), "labels": torch.tensor([2])}]
    sum(model([torch.rand(3, 64, 64)], targets).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
