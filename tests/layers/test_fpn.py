# SPDX-License-Identifier: Apache-2.0
"""The pyramid: levels, sizes, the top-down path, and layouts and dtypes that pass through."""

import pytest
import torch
from torch import nn

from pydet.layers.fpn import FPN
from pydet.layers.norm import NORMS, FrozenBatchNorm2d, make_norm

CHANNELS = {2: 8, 3: 16, 4: 24, 5: 32}


def maps(height, width, dtype=torch.float32):
    return {
        level: torch.randn(2, channels, -(-height // 2**level), -(-width // 2**level), dtype=dtype)
        for level, channels in CHANNELS.items()
    }


@pytest.mark.parametrize("levels", [(3, 4, 5, 6, 7), (2, 3, 4, 5, 6), (3, 4, 5), (2, 3), (5, 6)])
@pytest.mark.parametrize("extra_from", ["c5", "p5", "pool"])
@pytest.mark.parametrize("size", [(128, 96), (101, 77)])
def test_any_levels_on_any_sizes(levels, extra_from, size):
    fpn = FPN(CHANNELS, levels, 16, extra_from=extra_from)
    outputs = fpn(maps(*size))
    for level, output in zip(levels, outputs, strict=True):
        assert output.shape == (2, 16, -(-size[0] // 2**level), -(-size[1] // 2**level))
    sum(output.sum() for output in outputs).backward()
    # The laterals above the last level of the pyramid feed those below.
    assert all(parameter.grad is not None for parameter in fpn.parameters())


def test_top_down_path_is_the_definition():
    fpn = FPN({2: 3, 3: 3}, (2, 3), 3).double()
    for name, parameter in fpn.named_parameters():  # identities: what is left is the path itself
        nn.init.zeros_(parameter)
        if name.endswith("weight"):
            middle = parameter.shape[-1] // 2
            parameter.data[range(3), range(3), middle, middle] = 1
    fine, coarse = torch.randn(1, 3, 6, 8).double(), torch.randn(1, 3, 3, 4).double()
    p2, p3 = fpn({2: fine, 3: coarse})
    assert torch.equal(p3, coarse)
    assert torch.equal(p2, fine + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_follows_each_convolution(norm):
    fpn = FPN(CHANNELS, (3, 4, 5, 6, 7), 64, norm=norm)
    kinds = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d, "group": nn.GroupNorm}
    found = [m for m in fpn.modules() if isinstance(m, tuple(kinds.values()))]
    assert len(found) == (0 if norm == "none" else 8)
    assert all(isinstance(m, kinds[norm]) for m in found)
    assert all(p.isfinite().all() for p in fpn(maps(64, 64)))


@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_and_bfloat16_pass_through(norm):
    fpn = FPN(CHANNELS, (3, 4, 5, 6), 32, norm=norm).to(memory_format=torch.channels_last)
    inputs = {k: v.to(memory_format=torch.channels_last) for k, v in maps(128, 128).items()}
    with torch.autocast("cpu", torch.bfloat16):
        for output in fpn(inputs):
            assert output.dtype == torch.bfloat16
            assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_frozen_batch_norm_is_its_formula(eps):
    # Not compared with torch's batch norm, which in some versions refuses an eps of 0.
    frozen = make_norm("frozen", 5, eps)
    state = {
        name: torch.rand(5) + 0.1 for name in ("weight", "bias", "running_mean", "running_var")
    }
    frozen.load_state_dict(state)
    x = torch.randn(2, 5, 4, 4)
    weight, bias, mean, var = (value[:, None, None] for value in state.values())
    torch.testing.assert_close(frozen(x), (x - mean) / (var + eps).sqrt() * weight + bias)
    assert not list(frozen.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((3, 5),), "consecutive"),
        (((),), "consecutive"),
        (((6, 7),), "begin at one of"),
        (((1, 2),), "must not begin below 2"),
    ],
)
def test_wrong_levels_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"FPN: levels .*{words}"):
        FPN(CHANNELS, *arguments)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="extra_from must be"):
        FPN(CHANNELS, extra_from="c4")
    with pytest.raises(ValueError, match="make_norm: norm must be one of"):
        FPN(CHANNELS, norm="layer")
