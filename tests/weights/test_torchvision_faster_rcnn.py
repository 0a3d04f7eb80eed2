# SPDX-License-Identifier: Apache-2.0
"""torchvision's Faster R-CNN with random weights, beside pydet's with the same: equal results."""

import functools

import pytest
import torch
from torch import nn

from tests.weights.helpers import (
    NUM_CLASSES,
    RESIZE,
    assert_same_detections,
    assert_same_gradients,
    images_and_targets,
    load_saved,
    shake_norms,
    zero_based,
)

torchvision = pytest.importorskip(
    "torchvision", reason="needs torchvision, whose results are compared with", exc_type=ImportError
)

# Samples that take everything: then chance decides nothing.
EVERYTHING = {
    "rpn_batch_size_per_image": 10**6,
    "box_batch_size_per_image": 10**6,
    "box_positive_fraction": 1.0,
    "rpn_positive_fraction": 1.0,
    "rpn_post_nms_top_n_train": 40,
    "rpn_post_nms_top_n_test": 100,
}
OURS = {
    "rpn_sample": 10**6,
    "roi_sample": 10**6,
    "roi_fg_fraction": 1.0,
    "rpn_fg_fraction": 1.0,
    "train_post_nms": 40,
    "post_nms": 100,
}


def torchvision_model(kind: str, depth: int = 50):
    """A Faster R-CNN of torchvision with random weights, in double precision."""
    from torchvision.models import detection
    from torchvision.models.detection import backbone_utils

    torch.manual_seed(0)
    if kind == "v2":
        model = detection.fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **RESIZE, **EVERYTHING
        )
    else:
        trunk = backbone_utils.resnet_fpn_backbone(
            backbone_name=f"resnet{depth}", weights=None, trainable_layers=5
        )
        model = detection.FasterRCNN(trunk, NUM_CLASSES, **RESIZE, **EVERYTHING)
    shake_norms(model)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("bn3.weight"):
                value.fill_(0.2)  # or the sums of 16 blocks would be huge
        predictor = model.roi_heads.box_predictor
        predictor.cls_score.weight.normal_(std=0.2)
        predictor.cls_score.bias.normal_(std=0.5)
        predictor.bbox_pred.weight.normal_(std=0.2)
        model.rpn.head.cls_logits.weight.normal_(std=0.2)
        model.rpn.head.bbox_pred.weight.normal_(std=0.1)
    return model.double()  # where rounding does not decide which of two near scores is higher


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_saved, tmp_path, **OURS)


def assert_same_losses(theirs, ours):
    """Image by image: torchvision divides by the samples of the batch, pydet by each image's."""
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    names = {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
    }
    for image, target in zip(*images_and_targets(), strict=True):
        expected = theirs([image.clone()], [target])
        got = ours([image], zero_based([target]))
        for name, other in names.items():
            assert float(expected[other]) > 0
            assert float(got[name]) == pytest.approx(float(expected[other]), rel=1e-5)
        theirs.zero_grad()
        ours.zero_grad()
        sum(expected.values()).backward()
        sum(got.values()).backward()
        pairs = [
            (ours.backbone.layer3[0].conv2.weight, theirs.backbone.body.layer3[0].conv2.weight),
            (ours.neck.lateral["3"][0].weight, theirs.backbone.fpn.inner_blocks[1][0].weight),
            (ours.rpn.box_deltas.weight, theirs.rpn.head.bbox_pred.weight),
        ]
        assert_same_gradients(pairs, atol=1e-7)


@pytest.mark.parametrize(("kind", "depth"), [("v1", 18), ("v1", 50), ("v2", 50)])
def test_same_detections_losses_and_gradients(kind, depth, load):
    theirs = torchvision_model(kind, depth).eval()
    ours = load(theirs.state_dict())
    assert ours.name == f"faster_rcnn_resnet{depth}_fpn"
    assert_same_detections(theirs, ours, images_and_targets()[0], least=30)
    assert_same_losses(theirs, ours)


def test_old_layout_and_its_epsilon(load):
    theirs = torchvision_model("v1", 18).eval()
    for module in theirs.modules():
        if hasattr(module, "running_var"):
            module.eps = 0.0
    state = {}
    for name, value in theirs.state_dict().items():
        if ".inner_blocks." in name or ".layer_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")  # noqa: PLW2901
        state[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    ours = load(state)
    assert ours.config.norm_eps == 0.0
    assert_same_detections(theirs, ours, images_and_targets()[0], least=30)


def test_background_can_be_kept(load):
    theirs = torchvision_model("v1", 18).eval()
    ours = load(theirs.state_dict(), keep_background=True)
    assert ours.num_classes == NUM_CLASSES
    assert_same_detections(theirs, ours, images_and_targets()[0], least=30, shift=0)


def test_other_number_of_classes_begins_anew_in_the_last_layers(load):
    state = torchvision_model("v1", 18).state_dict()
    with pytest.warns(UserWarning, match=r"box_head\.cls_logits\.weight.* begin"):
        ours = load(state, num_classes=2, class_names=["a", "b"])
    torch.testing.assert_close(ours.rpn.objectness.weight, state["rpn.head.cls_logits.weight"])
