# SPDX-License-Identifier: Apache-2.0
"""VGG-16: parameter counts, maps, torchvision's weights, what is made of the classifier."""

import pytest
import torch
from torch import nn

from pydet.backbones import VGG16, VGGAtrousHead, VGGBoxHead
from pydet.layers.norm import FrozenBatchNorm2d

PUBLISHED = 138_357_544  # parameters of VGG-16 (1409.1556, table 2: 138 millions)
PUBLISHED_BN = 138_365_992  # torchvision's vgg16_bn
LAST = 4096 * 1000 + 1000


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(("norm", "published"), [("none", PUBLISHED), ("batch", PUBLISHED_BN)])
def test_number_of_parameters(norm, published):
    with torch.device("meta"):
        trunk, head = VGG16(norm=norm), VGGBoxHead()
    assert count(trunk, head) == published - LAST


@pytest.mark.parametrize("size", [(64, 96), (75, 97), (33, 1)])
def test_maps_have_their_stride_rounded_up_and_their_channels(size):
    trunk = VGG16(width=1 / 8)
    assert trunk.channels == {2: 32, 3: 64, 4: 64}
    maps = trunk(torch.rand(2, 3, *size))
    assert list(maps) == [2, 3, 4]
    for level, x in maps.items():
        assert x.shape == (2, trunk.channels[level], *(-(-side // 2**level) for side in size))
        assert x.min() == 0  # after the rectifier


def test_ssd_has_maps_of_38_and_19():
    with torch.device("meta"):
        maps = VGG16()(torch.empty(1, 3, 300, 300))
        assert maps[3].shape == (1, 512, 38, 38)
        assert VGGAtrousHead()(maps[4]).shape == (1, 1024, 19, 19)


def test_each_stage_has_as_many_convolutions_as_the_paper():
    stages = [0]
    for layer in VGG16(width=1 / 32).features:
        if isinstance(layer, nn.MaxPool2d):
            stages.append(0)
        stages[-1] += isinstance(layer, nn.Conv2d)
    assert stages == [2, 2, 3, 3, 3]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_names_and_maps_are_those_of_torchvision(norm):
    vgg = pytest.importorskip(
        "torchvision.models.vgg", reason="needs torchvision's VGG", exc_type=ImportError
    )
    torch.manual_seed(0)
    theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=norm == "batch").eval()
    trunk = VGG16(norm=norm).eval()
    trunk.features.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(trunk(x)[4], theirs[:-1](x))
    with torch.device("meta"):
        head, classifier = VGGBoxHead(), vgg.vgg16().classifier[:6]
    for mine, other in zip(head, classifier, strict=True):
        assert repr(mine) == repr(other)


def test_box_head_is_fc6_and_fc7_of_rows_then_columns():
    head = VGGBoxHead(2, 8).eval()
    x = torch.randn(3, 2, 7, 7)
    hidden = (x.flatten(1) @ head[0].weight.T + head[0].bias).relu()
    torch.testing.assert_close(head(x), (hidden @ head[3].weight.T + head[3].bias).relu())


@pytest.mark.parametrize("norm", ["none", "batch", "frozen", "group"])
def test_norms_and_scale_of_maps(norm):
    torch.manual_seed(0)
    trunk = VGG16(norm=norm, width=1 / 4)
    kinds = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d, "group": nn.GroupNorm}
    norms = [m for m in trunk.modules() if isinstance(m, tuple(kinds.values()))]
    assert len(norms) == (0 if norm == "none" else 13)
    assert all(isinstance(m, kinds[norm]) for m in norms)
    for x in trunk(torch.randn(2, 3, 64, 64)).values():
        assert 0.1 < x.std() < 10  # neither dies out nor explodes on its way


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_neither_learn_nor_count(frozen):
    trunk = VGG16(norm="batch", width=1 / 16, frozen_stages=frozen).train()
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    loss = torch.ones((), requires_grad=True)  # something to learn even if all is frozen
    for x in trunk(torch.rand(2, 3, 32, 32)).values():
        loss = loss + x.sum()
    loss.backward()
    stage = 1
    for index, layer in enumerate(trunk.features):
        stage += isinstance(layer, nn.MaxPool2d)
        for parameter in layer.parameters():
            assert (parameter.grad is None) == (stage <= frozen)
        if isinstance(layer, nn.BatchNorm2d):
            same = torch.equal(layer.running_mean, before[f"features.{index}.running_mean"])
            assert same == (stage <= frozen)


def test_channels_last_and_bfloat16_pass_through():
    trunk = VGG16(width=1 / 8).to(memory_format=torch.channels_last)
    head = VGGAtrousHead(64, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        maps = trunk(torch.rand(1, 3, 64, 64))
        for x in (*maps.values(), head(maps[4])):
            assert x.dtype == torch.bfloat16
            assert x.is_contiguous(memory_format=torch.channels_last)


def test_conv6_sees_what_fc6_saw():
    """On a map of twice the resolution conv6 meets the pixels that fc6's rows 0, 3 and 6 met."""
    torch.manual_seed(0)
    box, head = VGGBoxHead(6, 16), VGGAtrousHead(6, 4)
    head.copy_classifier(box.state_dict())
    coarse = torch.rand(1, 6, 7, 7)
    # Only every third row and column of the coarse map is not zero, so nothing of fc6 is left out.
    mask = torch.zeros(7, 7)
    mask[::3, ::3] = 1
    coarse = coarse * mask
    fine = torch.zeros(1, 6, 13, 13)
    fine[..., ::2, ::2] = coarse
    hidden = head.conv6(fine)[0, :, 6, 6]
    torch.testing.assert_close(hidden, box[0](coarse.flatten(1))[0, ::4])
    torch.testing.assert_close(head.conv7.weight[..., 0, 0], box[3].weight[::4, ::4])
    torch.testing.assert_close(head.conv7.bias, box[3].bias[::4])


@pytest.mark.parametrize(
    ("fc6", "fc7", "words"),
    [
        ((6 * 25, 16), (16, 16), r"\[C, 294\] and \[C, C\], got \[16, 150\]"),
        ((6 * 49, 16), (16, 8), r"got \[16, 294\] and \[8, 16\]"),
        ((6 * 49, 6), (6, 6), "a multiple of 4 channels, got 6"),
    ],
)
def test_classifiers_of_another_shape_are_refused(fc6, fc7, words):
    with pytest.raises(ValueError, match=words):
        VGGAtrousHead(6, 4).copy_classifier(
            nn.ModuleDict({"0": nn.Linear(*fc6), "3": nn.Linear(*fc7)}).state_dict()
        )


def test_dropout_is_of_training_only():
    head = VGGBoxHead(2, 64)
    x = torch.randn(3, 2, 7, 7)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))
    assert head(x).shape == (3, head.channels)
    assert head(x[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"norm": "batchnorm"}, "norm must be one of"),
        ({"frozen_stages": 6}, r"frozen_stages must be 0 \.\.\. 5"),
        ({"width": 0}, "width must be positive"),
        ({"width": float("inf")}, "width must be positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        VGG16(**arguments)
