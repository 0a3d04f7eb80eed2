# SPDX-License-Identifier: Apache-2.0
"""ResNet: parameter counts, maps, stages that do not learn, layouts."""

import pytest
import torch
from torch import nn

from pydet.backbones import ResNet
from pydet.layers.norm import FrozenBatchNorm2d

# Parameters published for torchvision's classifiers, less their last layer (inputs · 1000 + 1000).
PUBLISHED = {
    18: 11_689_512 - 513_000,
    34: 21_797_672 - 513_000,
    50: 25_557_032 - 2_049_000,
    101: 44_549_160 - 2_049_000,
    152: 60_192_808 - 2_049_000,
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_number_of_parameters(depth):
    with torch.device("meta"):
        model = ResNet(depth)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[depth]


@pytest.mark.parametrize(("depth", "wide"), [(18, 1), (50, 4)])
def test_maps_have_their_stride_and_channels(depth, wide):
    model = ResNet(depth, norm="frozen")
    maps = model(torch.rand(1, 3, 75, 97))
    assert list(maps) == [2, 3, 4, 5]
    for level, x in maps.items():
        assert x.shape == (1, 64 * wide * 2 ** (level - 2), -(-75 // 2**level), -(-97 // 2**level))
        assert model.channels[level] == x.shape[1]


def test_bottleneck_halves_in_its_3x3():
    block = ResNet(50).get_submodule("layer2.0")
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)


def test_names_are_those_of_torchvision():
    with torch.device("meta"):
        names = set(ResNet(50).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer4.2.bn3.bias"} <= names
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight"} <= names


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("depth", [18, 50])
def test_norms_and_scale_of_maps(norm, depth):
    torch.manual_seed(0)
    model = ResNet(depth, norm=norm)
    kind = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d, "group": nn.GroupNorm}[norm]
    norms = [m for m in model.modules() if isinstance(m, kind)]
    assert len(norms) == {18: 20, 50: 53}[depth]
    maps = model(torch.randn(2, 3, 64, 64))
    assert all(x.isfinite().all() for x in maps.values())


def test_zero_init_residual_makes_blocks_identities():
    model = ResNet(18, zero_init_residual=True)
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(model.get_submodule("layer1")(x), x)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_neither_learn_nor_count(frozen):
    model = ResNet(18, frozen_stages=frozen).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = torch.ones((), requires_grad=True)  # something to learn even if all is frozen
    for x in model(torch.rand(2, 3, 64, 64)).values():
        loss = loss + x.sum()
    loss.backward()
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    for index, names in enumerate(stages):
        is_frozen = index < frozen
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in names:
                assert (parameter.grad is None) == is_frozen
        for name, buffer in model.named_buffers():
            if name.split(".")[0] in names and name.endswith("running_mean"):
                assert torch.equal(buffer, before[name]) == is_frozen


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_channels_last_and_bfloat16_pass_through(norm):
    model = ResNet(18, norm=norm).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        for x in model(torch.rand(1, 3, 64, 64)).values():
            assert x.dtype == torch.bfloat16
            assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 49}, "depth must be one of 10, 18, 34"),
        ({"depth": 18, "norm": "none"}, "norm must be"),
        ({"depth": 18, "norm": "batchnorm"}, "norm must be one of"),
        ({"depth": 18, "frozen_stages": 6}, r"frozen_stages must be 0 \.\.\. 5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ResNet(**arguments)
