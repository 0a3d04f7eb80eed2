# SPDX-License-Identifier: Apache-2.0
"""The normalisation of SSD's first map."""

import pytest
import torch

from pydet.layers.norm import L2Norm


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
