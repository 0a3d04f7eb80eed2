# SPDX-License-Identifier: Apache-2.0
"""torchvision's FCOS with random weights, beside pydet's with the same: equal results."""

import functools

import pytest
import torch

import pydet
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


def torchvision_model(depth: int, frozen: bool = False):
    """An FCOS of torchvision with random weights whose scores pass the threshold."""
    from torchvision.models.detection import backbone_utils, fcos
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(depth)
    norm = FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d
    trunk = getattr(torchvision.models, f"resnet{depth}")(weights=None, norm_layer=norm)
    extractor = backbone_utils._resnet_fpn_extractor(
        trunk, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = fcos.FCOS(extractor, NUM_CLASSES, **RESIZE)
    shake_norms(model)
    with torch.no_grad():
        head, boxes = model.head.classification_head, model.head.regression_head
        for layer in (head.cls_logits, boxes.bbox_reg, boxes.bbox_ctrness):
            layer.weight.normal_(std=0.05)
        boxes.bbox_reg.bias.fill_(2.0)  # boxes of some strides
        head.cls_logits.bias.normal_(-2, 0.5)
        head.cls_logits.bias[0] = -60.0  # the background's score: training sends it far down
    return model.double()  # where rounding does not decide which of two near scores is higher


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_saved, tmp_path)


@pytest.mark.parametrize(("depth", "frozen"), [(50, False), (18, True)])
def test_same_detections(depth, frozen, load):
    theirs = torchvision_model(depth, frozen).eval()
    ours = load(theirs.state_dict())
    assert ours.name == f"fcos_resnet{depth}_fpn"
    assert_same_detections(theirs, ours, images_and_targets()[0], least=50)


LOSSES = {
    "loss_cls": "classification",
    "loss_box": "bbox_regression",
    "loss_centerness": "bbox_ctrness",
}


@pytest.mark.parametrize("has_objects", [True, False])
def test_same_losses_and_gradients(has_objects, load):
    theirs = torchvision_model(18).train()
    ours = load(theirs.state_dict()).train()
    images, targets = images_and_targets()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    targets = targets if has_objects else [empty, empty]
    expected = theirs([i.clone() for i in images], targets)
    got = ours(images, zero_based(targets))
    for key, value in LOSSES.items():
        torch.testing.assert_close(got[key], expected[value], atol=1e-4, rtol=1e-4)
    assert (got["loss_box"] > 0) == has_objects
    sum(expected.values()).backward()
    sum(got.values()).backward()
    pairs = [
        (ours.backbone.layer3[0].conv2.weight, theirs.backbone.body.layer3[0].conv2.weight),
        (ours.neck.extra["6"][0].weight, theirs.backbone.fpn.extra_blocks.p6.weight),
        (ours.head.box_distances.bias, theirs.head.regression_head.bbox_reg.bias),
        (ours.head.centerness.bias, theirs.head.regression_head.bbox_ctrness.bias),
    ]
    assert_same_gradients(pairs)


def test_trunk_of_imagenet_fills_the_backbone(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / "trunk.pth"
    torch.save(state, path)
    model = pydet.load(path, num_classes=3, name="fcos_resnet18_fpn", fpn_norm="batch")
    assert model.config.norm == "frozen"
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name])
    with pytest.raises(ValueError, match="must hold the tensors of the backbone of fcos_resnet50"):
        pydet.load(path, num_classes=3, name="fcos_resnet50_fpn")
