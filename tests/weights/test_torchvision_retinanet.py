# SPDX-License-Identifier: Apache-2.0
"""torchvision's RetinaNet with random weights, beside pydet's with the same: equal results."""

import functools

import pytest
import torch
from torch import nn

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


def torchvision_model(kind: str, seed: int = 0, depth: int = 18):
    """A RetinaNet of torchvision with random weights whose scores pass the threshold."""
    from torchvision.models.detection import (
        backbone_utils,
        retinanet,
        retinanet_resnet50_fpn,
        retinanet_resnet50_fpn_v2,
    )
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(seed)
    if kind == "v2" or (kind, depth) == ("batch", 50):
        build = retinanet_resnet50_fpn_v2 if kind == "v2" else retinanet_resnet50_fpn
        model = build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **RESIZE)
    else:
        norm = nn.BatchNorm2d if kind == "batch" else FrozenBatchNorm2d
        trunk = getattr(torchvision.models, f"resnet{depth}")(weights=None, norm_layer=norm)
        extractor = backbone_utils._resnet_fpn_extractor(
            trunk, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        model = retinanet.RetinaNet(extractor, NUM_CLASSES, **RESIZE)
    shake_norms(model)
    with torch.no_grad():
        head = model.head
        for layer in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
            layer.weight.normal_(std=0.05)
        bias = head.classification_head.cls_logits.bias.view(9, NUM_CLASSES)
        bias.normal_(-2, 0.5)
        bias[:, 0] = -30.0  # the background's score: training sends it there, no anchor ever has it
    return model.double()  # where rounding does not decide which of two near scores is higher


def old_layout(state):
    """The names that torchvision gave before its version 0.13, as its published files have them."""
    renamed = {}
    for name, value in state.items():
        if ".inner_blocks." in name or ".layer_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")  # noqa: PLW2901
        for index in range(4):
            name = name.replace(  # noqa: PLW2901
                f"_head.conv.{index}.0.", f"_head.conv.{2 * index}."
            )
        renamed[name] = value
    assert set(renamed) != set(state)
    return renamed


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_saved, tmp_path)


@pytest.mark.parametrize(
    ("kind", "depth", "seed"),
    [("batch", 50, 0), ("frozen", 50, 1), ("v2", 50, 0), ("batch", 18, 1), ("frozen", 34, 0)],
)
def test_same_detections(kind, depth, seed, load):
    theirs = torchvision_model(kind, seed, depth).eval()
    ours = load(theirs.state_dict())
    assert_same_detections(theirs, ours, images_and_targets(seed)[0], least=50)


@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_same_scores_in_float32(kind, load):
    theirs = torchvision_model(kind).float().eval()
    ours = load(theirs.state_dict()).float()
    images = [image.float() for image in images_and_targets()[0]]
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    for a, b in zip(expected, got, strict=True):
        # Order and number may differ by what rounding decides.
        assert abs(len(a["scores"]) - len(b["scores"])) <= 2
        count = min(len(a["scores"]), len(b["scores"])) - 2
        torch.testing.assert_close(b["scores"][:count], a["scores"][:count], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "depth", "seed"),
    [("batch", 50, 0), ("frozen", 50, 1), ("batch", 18, 1), ("v2", 50, 0)],
)
def test_same_losses_and_gradients(kind, depth, seed, load):
    theirs = torchvision_model(kind, seed, depth).train()
    ours = load(theirs.state_dict()).train()
    images, targets = images_and_targets(seed)
    expected = theirs([i.clone() for i in images], targets)
    got = ours(images, zero_based(targets))
    torch.testing.assert_close(got["loss_cls"], expected["classification"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got["loss_box"], expected["bbox_regression"], atol=1e-4, rtol=1e-4)
    sum(expected.values()).backward()
    sum(got.values()).backward()
    pairs = [
        (ours.backbone.layer3[0].conv2.weight, theirs.backbone.body.layer3[0].conv2.weight),
        (ours.neck.extra["6"][0].weight, theirs.backbone.fpn.extra_blocks.p6.weight),
        (ours.head.box_deltas.bias, theirs.head.regression_head.bbox_reg.bias),
    ]
    assert_same_gradients(pairs)


def test_images_without_objects_give_the_same_losses(load):
    theirs = torchvision_model("frozen").train()
    ours = load(theirs.state_dict()).train()
    images, targets = images_and_targets()
    targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    expected = theirs([i.clone() for i in images], targets)
    got = ours(images, zero_based(targets))
    torch.testing.assert_close(got["loss_cls"], expected["classification"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got["loss_box"], expected["bbox_regression"], atol=1e-4, rtol=1e-4)


def test_old_layout_and_its_epsilon(load):
    theirs = torchvision_model("frozen").eval()
    functools.reduce(
        lambda _, m: setattr(m, "eps", 0.0) if hasattr(m, "running_var") else None,
        theirs.modules(),
        None,
    )
    state = old_layout(theirs.state_dict())
    ours = load(state)
    assert ours.config.norm_eps == 0.0
    images, _ = images_and_targets()
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
        other = load(state, norm_eps=0.5)(images)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b["scores"], a["scores"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other[0]["scores"][:20], got[0]["scores"][:20], atol=1e-3)


def test_background_can_be_kept(load):
    theirs = torchvision_model("frozen").eval()
    with torch.no_grad():
        theirs.head.classification_head.cls_logits.bias.fill_(-2)
    ours = load(theirs.state_dict(), keep_background=True)
    assert ours.num_classes == NUM_CLASSES
    images, _ = images_and_targets()
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    for a, b in zip(expected, got, strict=True):
        assert (a["labels"] == 0).any()
        assert torch.equal(b["labels"], a["labels"])


def test_other_number_of_classes_begins_anew_in_the_last_layer(load):
    state = torchvision_model("frozen").state_dict()
    with pytest.warns(UserWarning, match=r"head\.cls_logits\.weight, head\.cls_logits\.bias begin"):
        ours = load(state, num_classes=2, class_names=["a", "b"])
    assert ours.class_names == ("a", "b")
    torch.testing.assert_close(
        ours.head.box_deltas.weight, state["head.regression_head.bbox_reg.weight"]
    )


@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_trunk_fills_the_backbone(depth, tmp_path):
    state = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    path = tmp_path / "trunk.pth"
    torch.save(state, path)
    model = pydet.load(path, num_classes=3, fpn_channels=32, head_convs=1)
    assert model.name == f"retinanet_resnet{depth}_fpn"
    assert model.config.norm == "frozen"
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name])
    learning = pydet.load(path, num_classes=3, norm="batch", frozen_stages=0, fpn_channels=32)
    assert torch.equal(learning.backbone.bn1.running_var, state["bn1.running_var"])
    with pytest.raises(ValueError, match="num_classes must be given"):
        pydet.load(path)


def test_missing_and_unknown_tensors_are_named(load):
    state = torchvision_model("frozen").state_dict()
    del state["backbone.body.layer2.0.bn1.running_mean"]
    state["head.mask_head.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: backbone\.layer2\.0\.bn1\.running_mean"):
        load(state)
    with pytest.raises(ValueError, match=r"unexpected: head\.mask_head\.weight"):
        load(state)
