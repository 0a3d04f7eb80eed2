# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from pydet import ops
from pydet.ops._deform_formula import deform_conv2d as formula
from tests.conftest import is_emulated
from tests.reference.deform_conv2d import deform_conv2d as reference
from tests.strategies import DTYPES

# Sums of up to a hundred products; columns and result are each rounded once to the dtype.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.4}


@dataclass
class Call:
    """Arguments of one call; float64."""

    tensors: dict[str, Tensor | None]
    settings: dict[str, tuple[int, int]]

    def run(self, dtype=torch.float64, **replaced) -> Tensor:
        tensors = {k: t if t is None else t.to(dtype) for k, t in self.tensors.items()}
        return ops.deform_conv2d(**(tensors | replaced), **self.settings)

    def expected(self) -> Tensor:
        lists = {k: t if t is None else t.tolist() for k, t in self.tensors.items()}
        nested = reference(lists.pop("input"), **lists, **self.settings)
        offset, weight = self.tensors["offset"], self.tensors["weight"]
        shape = (len(offset), len(weight), *offset.shape[2:])
        return torch.tensor(nested, dtype=torch.float64).reshape(shape)


def make_call(
    seed,
    size=(6, 5),
    kernel=(3, 2),
    stride=(1, 1),
    padding=(1, 0),
    dilation=(1, 1),
    groups=1,
    offset_groups=1,
    batch=2,
    masked=True,
    biased=True,
    spread=3.0,
):
    """Multiples of 1/8, so that 16-bit dtypes have the positions exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return (values * 8).round() / 8

    taps = kernel[0] * kernel[1]
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    tensors = {
        "input": draw(batch, 4, *size),
        "offset": draw(batch, 2 * offset_groups * taps, *out, scale=spread),
        "weight": draw(2 * groups, 4 // groups, *kernel),
        "bias": draw(2 * groups) if biased else None,
        "mask": draw(batch, offset_groups * taps, *out) if masked else None,
    }
    return Call(tensors, {"stride": stride, "padding": padding, "dilation": dilation})


pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
calls = st.builds(
    make_call,
    st.integers(0, 2**31),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.sampled_from([1, 2, 4]),
    offset_groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(0, 2),
    masked=st.booleans(),
    biased=st.booleans(),
)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """A tap of 1 x 1, moved half a cell to the right and weighed with 2."""
    out = ops.deform_conv2d(
        torch.tensor([[[[1.0, 3.0]]]], device=device),
        torch.tensor([[[[0.0, 0.0]], [[0.5, 0.5]]]], device=device),
        torch.ones(1, 1, 1, 1, device=device),
        mask=torch.tensor([[[[1.0, 2.0]]]], device=device),
    )
    assert out.tolist() == [[[[2.0, 3.0]]]]


@given(calls, st.sampled_from(DTYPES))
def test_values(call, dtype):
    out = call.run(dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), call.expected(), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("groups", [1, 2])
def test_without_offsets_it_is_a_convolution(device, groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 6, 70, 45, generator=generator).to(device)
    weight = torch.rand(8, 6 // groups, 3, 3, generator=generator).to(device)
    bias = torch.rand(8, generator=generator).to(device)
    arguments = {"stride": 2, "padding": 3, "dilation": 2}
    wanted = conv2d(x, weight, bias, groups=groups, **arguments)
    offset = torch.zeros(2, 18, *wanted.shape[2:], device=device)
    out = ops.deform_conv2d(x, offset, weight, bias, **arguments)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_chunks_do_not_change_results(device):
    """More columns than fit the workspace of the CPU: 8 MiB."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 256, 50, 50, generator=generator).to(device)
    weight = torch.rand(2, 256, 3, 3, generator=generator).to(device)
    offset = torch.randn(1, 18, 50, 50, generator=generator).to(device)
    whole = ops.deform_conv2d(x, offset, weight, padding=1)
    parts = [
        ops.deform_conv2d(x[:, c : c + 64], offset, weight[:, c : c + 64], padding=1)
        for c in range(0, 256, 64)
    ]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-3)


def test_positions_that_are_not_finite_or_far_away(device):
    x = torch.full((1, 1, 3, 3), math.nan, device=device)
    x[0, 0, 1, 1] = 5
    weight = torch.ones(1, 1, 1, 1, device=device)
    for value in (math.nan, math.inf, -math.inf, 1e30, -1e30, 4.0, -4.0):
        offset = torch.full((1, 2, 3, 3), value, device=device, requires_grad=True)
        out = ops.deform_conv2d(x, offset, weight)
        # 4 cells away all is outside, slopes too.
        assert not out.any()
        (grad,) = torch.autograd.grad(out.sum(), offset)
        assert not grad.any()
    centre = ops.deform_conv2d(x, torch.zeros(1, 2, 3, 3, device=device), weight)[0, 0, 1, 1]
    assert centre == 5  # its neighbours have weight 0


def test_module(device):
    torch.manual_seed(0)
    module = ops.DeformConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, dilation=(1, 2))
    module = module.to(device)
    x, offset = torch.rand(1, 4, 9, 9, device=device), torch.rand(1, 24, 5, 5, device=device)
    mask = torch.rand(1, 12, 5, 5, device=device)
    wanted = ops.deform_conv2d(x, offset, module.weight, module.bias, (2, 2), (1, 1), (1, 2), mask)
    assert torch.equal(module(x, offset, mask), wanted)
    assert module.weight.abs().max() <= 1 / math.sqrt(12)  # kaiming, a = sqrt(5)
    assert ops.DeformConv2d(2, 2, 1, bias=False).bias is None
    with pytest.raises(
        ValueError, match=r"^DeformConv2d: in_channels must be a multiple of groups"
    ):
        ops.DeformConv2d(3, 4, 3, groups=2)


# --- gradient ----------------------------------------------------------------------------------


@given(calls)
def test_gradients(call):
    """By finite differences, away from the integers where the samples bend."""
    offset = call.tensors["offset"]
    call.tensors["offset"] = offset + torch.where(offset == offset.round(), 0.0625, 0.0)
    names = [name for name, tensor in call.tensors.items() if tensor is not None]
    leaves = tuple(call.tensors[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(
        lambda *tensors: call.run(**dict(zip(names, tensors, strict=True))),
        leaves,
        fast_mode=True,
        nondet_tol=1e-9 if is_emulated else 0.0,  # atomic additions come in any order
    )


@given(calls)
def test_the_formula_of_further_derivatives(call):
    """It gives the values and first derivatives of the kernels, at integers too."""
    names = [name for name, tensor in call.tensors.items() if tensor is not None]
    leaves = [call.tensors[name].clone().requires_grad_() for name in names]
    tensors = call.tensors | dict(zip(names, leaves, strict=True))
    bias = tensors.pop("bias")
    wanted = call.run(**tensors, bias=bias)
    got = formula(**tensors, **call.settings)
    got = got if bias is None else got + bias[:, None, None]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    for ours, theirs in zip(
        *(torch.autograd.grad(out.sin().sum(), leaves) for out in (got, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_third_derivative(device):
    """Of the sum of the cubes it is that of the formula; a tap that is NaN has none."""
    call = make_call(0, size=(3, 3), batch=1)
    call.tensors["offset"] += 0.0625
    call.tensors["offset"][0, 0, 0] = math.nan
    call.tensors = {name: tensor.to(device) for name, tensor in call.tensors.items()}
    found = []
    for native in (True, False):
        leaves = [call.tensors[name].clone().requires_grad_() for name in ("offset", "input")]
        tensors = call.tensors | dict(zip(("offset", "input"), leaves, strict=True))
        bias = tensors.pop("bias")[:, None, None]
        out = call.run(**tensors) if native else formula(**tensors, **call.settings) + bias
        value = out.pow(3).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(grad.sum() for grad in grads)
        found.append(grads)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert ours.isfinite().all() and ours.any()


def test_slope_at_an_integer_is_that_to_the_higher_cell(device):
    """Also at -1, where a network with padding and fresh (zero) offsets starts."""
    x = torch.tensor([[[[2.0, 5.0, 1.0]]]], device=device)
    offset = torch.zeros(1, 2, 1, 5, device=device, requires_grad=True)
    out = ops.deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, device=device), padding=(0, 1))
    assert out.tolist() == [[[[0, 2, 5, 1, 0]]]]
    (grad,) = torch.autograd.grad(out.sum(), offset)
    assert grad[0, 1, 0].tolist() == [2, 3, -4, -1, 0]


def test_only_what_is_asked_for(device):
    call = make_call(0)
    names = ("input", "offset", "weight", "bias", "mask")
    every = {name: call.tensors[name].to(device).requires_grad_() for name in names}
    wanted = torch.autograd.grad(call.run(**every).sum(), [every[name] for name in names])
    for name, whole in zip(names, wanted, strict=True):
        alone = {key: tensor.detach() for key, tensor in every.items()}
        alone[name].requires_grad_()
        (grad,) = torch.autograd.grad(call.run(**alone).sum(), alone[name])
        torch.testing.assert_close(grad, whole)


# --- errors ------------------------------------------------------------------------------------

X, OFFSET, WEIGHT = torch.zeros(2, 4, 5, 5), torch.zeros(2, 18, 3, 3), torch.zeros(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": 1}, TypeError, "input must be a tensor, got int"),
        ({"input": X.int()}, TypeError, "input must have a dtype of"),
        ({"input": X[0]}, ValueError, r"input must have shape \[B, C, H, W\], got \[4, 5, 5\]"),
        ({"offset": OFFSET.double()}, TypeError, "offset must have the dtype of input"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on the device of input"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight must have shape \[O, C / groups, kh, kw\]"),
        ({"weight": torch.zeros(6, 3, 3, 3)}, ValueError, "weight must have shape .* 4 channels"),
        ({"weight": WEIGHT[:5]}, ValueError, r"weight must have a multiple of 2 \(groups\)"),
        ({"offset": OFFSET[:, :16]}, ValueError, "offset must have shape .* 4 channels"),
        ({"offset": torch.zeros(2, 54, 3, 3)}, ValueError, "offset must have shape"),
        ({"offset": OFFSET[:1]}, ValueError, r"offset must have the batch and size .* \[2, 3, 3\]"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \[O\], got \[5\]"),
        ({"mask": torch.zeros(2, 8, 3, 3)}, ValueError, r"mask must have shape \[B, G \* 9"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"dilation": (1, 2, 3)}, TypeError, "dilation must be an integer or a pair"),
        ({"dilation": 3}, ValueError, "input must be at least as large as the kernel"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^deform_conv2d: " + message):
        ops.deform_conv2d(**({"input": X, "offset": OFFSET, "weight": WEIGHT} | arguments))


@pytest.mark.parametrize(
    ("offset", "weight", "mask", "settings"),
    [
        (OFFSET[:, :16], WEIGHT, None, (1, 1, 0, 0, 1, 1)),
        (OFFSET[..., :2], WEIGHT, None, (1, 1, 0, 0, 1, 1)),
        (OFFSET, WEIGHT[0], None, (1, 1, 0, 0, 1, 1)),
        (OFFSET, WEIGHT.double(), None, (1, 1, 0, 0, 1, 1)),
        (OFFSET, WEIGHT, torch.zeros(2, 8, 3, 3), (1, 1, 0, 0, 1, 1)),
        (OFFSET, WEIGHT, None, (0, 1, 0, 0, 1, 1)),
    ],
)
def test_the_kernel_protects_itself(offset, weight, mask, settings):
    with pytest.raises((ValueError, TypeError), match="deform_conv2d"):
        torch.ops.pydet.deform_conv2d(X, offset, weight, None, mask, *settings)
    with pytest.raises((ValueError, TypeError), match="deform_conv2d_backward"):
        torch.ops.pydet.deform_conv2d_backward(
            torch.zeros(2, 6, 3, 3), X, offset, weight, mask, *settings, True, True, True
        )
