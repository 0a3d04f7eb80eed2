# SPDX-License-Identifier: Apache-2.0
"""torchvision's FCOS with random weights, beside pydet's with the same: equal results."""

import pytest
import torch

import pydet

torchvision = pytest.importorskip(
    "torchvision", reason="needs torchvision, whose results are compared with", exc_type=ImportError
)

NUM_CLASSES = 6  # torchvision's, with the background
SIZES = [(97, 141), (160, 83)]
RESIZE = {"min_size": 120, "max_size": 180}


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
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
        head, boxes = model.head.classification_head, model.head.regression_head
        for layer in (head.cls_logits, boxes.bbox_reg, boxes.bbox_ctrness):
            layer.weight.normal_(std=0.05)
        boxes.bbox_reg.bias.fill_(2.0)  # boxes of some strides
        head.cls_logits.bias.normal_(-2, 0.5)
        head.cls_logits.bias[0] = -60.0  # the background's score: training sends it far down
    return model.double()  # where rounding does not decide which of two near scores is higher


def images_and_targets(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator).double() for size in SIZES]
    targets = []
    for height, width in SIZES:
        corners = torch.rand(7, 2, 2, generator=generator).sort(1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        boxes[:, 2:] += 0.5  # none without area
        boxes = torch.minimum(boxes, torch.tensor([width, height] * 2).float())
        labels = torch.randint(1, NUM_CLASSES, (7,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


@pytest.fixture
def load(tmp_path):
    def run(state, **options):
        path = tmp_path / "weights.pth"
        torch.save(state, path)
        size = {"size": RESIZE["min_size"], "max_size": RESIZE["max_size"]}
        return pydet.load(path, preprocessing=size, **options).double()

    return run


@pytest.mark.parametrize(("depth", "frozen"), [(50, False), (18, True)])
def test_same_detections(depth, frozen, load):
    theirs = torchvision_model(depth, frozen).eval()
    ours = load(theirs.state_dict())
    assert ours.name == f"fcos_resnet{depth}_fpn"
    images, _ = images_and_targets()
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    for a, b in zip(expected, got, strict=True):
        assert len(a["scores"]) > 50, "too few detections to compare"
        torch.testing.assert_close(b["scores"], a["scores"], atol=1e-4, rtol=1e-4)
        assert torch.equal(b["labels"], a["labels"] - 1)
        torch.testing.assert_close(b["boxes"], a["boxes"], atol=1e-4, rtol=1e-4)


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
    got = ours(images, [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in targets])
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
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


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
