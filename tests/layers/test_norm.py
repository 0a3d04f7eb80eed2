# SPDX-License-Identifier: Apache-2.0
"""Normalisation in one with its convolution, and that of SSD's first map."""

import copy

import pytest
import torch
from torch import nn

from pydet.layers.norm import NORMS, L2Norm, conv_norm, make_norm


def _conv_and_norm(name, *, bias=True):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias)
    norm = make_norm(name, 6, eps=1e-3)
    if name in ("batch", "frozen"):
        with torch.no_grad():
            norm.weight.uniform_(-2, 2)
            norm.bias.uniform_(-2, 2)
            norm.running_mean.uniform_(-2, 2)
            norm.running_var.uniform_(0, 3)
            norm.running_var[0] = 0  # of a channel that is dead
    return conv, norm


@pytest.mark.parametrize("size", [(3, 2), (17, 15)])  # of maps smaller and larger than weights
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_convolution_and_norm_in_one_are_the_two_of_them(name, bias, training, size):
    pair = nn.ModuleList(_conv_and_norm(name, bias=bias)).double().train(training)
    apart = copy.deepcopy(pair)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    inputs, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = conv_norm(*pair, inputs), apart[1](apart[0](again))
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(inputs.grad, again.grad)
    for got, wanted in zip(pair.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
    torch.testing.assert_close(pair.state_dict(), apart.state_dict())  # running statistics, too


@pytest.mark.parametrize("name", ["batch", "frozen"])
@pytest.mark.parametrize("autocast", [True, False])
def test_in_half_precision_it_is_as_exact_as_the_two(name, autocast):
    pair = nn.ModuleList(_conv_and_norm(name)).eval()
    x = torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        exact = conv_norm(*pair, x)
        if not autocast:
            pair, x = pair.bfloat16(), x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, apart = conv_norm(*pair, x), pair[1](pair[0](x))
    assert y.dtype == apart.dtype == torch.bfloat16
    assert (y - exact).square().mean() <= 1.1 * (apart - exact).square().mean()


def test_each_location_has_the_length_that_was_learnt():
    torch.manual_seed(0)
    norm = L2Norm(8, 20)
    x = torch.randn(2, 8, 3, 5)
    y = norm(x)
    torch.testing.assert_close(y.norm(dim=1), torch.full((2, 3, 5), 20.0))
    torch.testing.assert_close(y / y.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True))
    with torch.no_grad():
        norm.weight[3] = 0
    assert norm(x)[:, 3].count_nonzero() == 0
    torch.testing.assert_close(norm(x)[:, 4:], y[:, 4:])


def test_gradients_are_those_of_the_formula():
    norm = L2Norm(3, 20).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    expected = x / x.norm(dim=1, keepdim=True) * norm.weight[:, None, None]
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, norm.weight), grad)
    for got, want in zip(torch.autograd.grad(norm(x), (x, norm.weight), grad), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_neither_overflows_nor_divides_by_zero(dtype):
    norm = L2Norm(4, 20)
    x = torch.zeros(1, 4, 1, 3, dtype=dtype)
    x[..., 1] = 3e4  # whose square is infinite in half precision
    x[..., 2] = 1e-7  # and this one's 0
    x.requires_grad_()
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y[0, 0, 0].float(), torch.tensor([0.0, 10, 10]), rtol=0.01, atol=0)
    y[..., 1:].sum().backward()
    assert x.grad.isfinite().all()
