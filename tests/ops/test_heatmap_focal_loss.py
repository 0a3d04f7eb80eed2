# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.losses import (
    ABSOLUTE,
    LOGITS,
    RELATIVE,
    UNSAFE,
    assert_protected,
    assert_reductions,
    assert_saves_its_inputs_alone,
    wrong_arguments,
)
from tests.reference.heatmap_focal_loss import heatmap_focal_loss as reference
from tests.strategies import DTYPES

ALPHAS = st.sampled_from([2.0, 0.0, 0.5, 1.0, 1.5, 3.0])
BETAS = st.sampled_from([4.0, 0.0, 1.0, 2.5])
HEIGHTS = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=16)


def heatmap_focal_loss_eager(inputs, targets, alpha=2.0, beta=4.0):
    """As training code writes it, but by the logarithm of the sigmoid."""
    p = inputs.sigmoid()
    peaks = -((1 - p) ** alpha) * F.logsigmoid(inputs)
    others = -((1 - targets) ** beta) * p**alpha * F.logsigmoid(-inputs)
    return torch.where(targets == 1, peaks, others)


def random_call(seed, *shape, dtype=torch.float64):
    """Logits, and targets of which some are peaks."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    targets = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2
    return inputs.to(dtype), targets.clamp(max=1).to(dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_numbers(device):
    """p = 0.5: a peak 0.25 ln 2, half way to it (1/2)^4 of that, far from it all of it."""
    inputs = torch.zeros(3, dtype=torch.float64, device=device)
    targets = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64, device=device)
    loss = ops.heatmap_focal_loss(inputs, targets)
    peak = 0.25 * math.log(2)
    assert loss.tolist() == pytest.approx([peak, peak / 16, peak])


def test_equals_the_focal_loss_where_targets_are_hard(device):
    inputs, targets = (x.round().to(device) for x in random_call(3, 40, 7))
    loss = ops.heatmap_focal_loss(inputs, targets)
    torch.testing.assert_close(loss, ops.sigmoid_focal_loss(inputs, targets, alpha=-1))


@given(st.lists(st.tuples(LOGITS, HEIGHTS), max_size=40), ALPHAS, BETAS, st.sampled_from(DTYPES))
def test_values(pairs, alpha, beta, dtype):
    inputs = torch.tensor([x for x, _ in pairs], dtype=torch.float64).to(dtype)
    targets = torch.tensor([t for _, t in pairs], dtype=torch.float64).to(dtype)
    loss = ops.heatmap_focal_loss(inputs, targets, alpha, beta)
    assert loss.dtype == dtype
    wanted = [
        reference(x, t, alpha, beta)
        for x, t in zip(inputs.double().tolist(), targets.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss.double(),
        torch.tensor(wanted, dtype=torch.float64),
        rtol=(1 + alpha + beta) * RELATIVE[dtype],
        atol=1e-30 + ABSOLUTE[dtype],
    )


@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 3277), (1, 16384), (3, 16385, 2)])
def test_reductions(device, shape):
    inputs, targets = (x.to(device) for x in random_call(0, *shape, dtype=torch.float32))
    wanted = heatmap_focal_loss_eager(inputs.double(), targets.double())
    assert_reductions(ops.heatmap_focal_loss, wanted, inputs, targets)


def test_an_empty_mean_is_nan(device):
    inputs = torch.zeros(0, 3, device=device)
    assert ops.heatmap_focal_loss(inputs, inputs, reduction="mean").isnan()
    assert ops.heatmap_focal_loss(inputs, inputs, reduction="sum").item() == 0


@pytest.mark.parametrize(("alpha", "beta"), [(0, 4), (0.5, 4), (1, 0), (2, 4), (2, 3), (3.5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(device, alpha, beta, dtype):
    inputs = torch.tensor(
        [1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan, 100, -100, 0, -0.0],
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    finite, infinite = inputs.isfinite(), inputs.isinf()
    for target in (0.0, 1.0, 0.25):
        targets = torch.full_like(inputs, target)
        loss = ops.heatmap_focal_loss(inputs, targets, alpha, beta)
        (grad,) = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(grad.nansum(), inputs)
        assert loss[6].isnan() and grad[6].isnan()
        assert loss[finite].isfinite().all() and grad[finite | infinite].isfinite().all()
        assert second[finite].isfinite().all()
        right = (inputs > 0) == (target == 1)
        assert loss[infinite & right].eq(0).all() and loss[infinite & ~right].isinf().all()
    broken = torch.full_like(inputs, math.nan)
    assert ops.heatmap_focal_loss(inputs, broken, alpha, beta).isnan().all()


# --- gradient ----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), ALPHAS, BETAS)
def test_derivatives_equal_autograd(seed, alpha, beta):
    inputs, targets = random_call(seed, 3, 7)
    weight = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = []
    for function in (ops.heatmap_focal_loss, heatmap_focal_loss_eager):
        x, t = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        loss = (function(x, t, alpha, beta) * w).sum()
        grads = torch.autograd.grad(loss, (x, t), create_graph=True)
        lower = targets < 1  # at a peak the eager formula has 0 times an infinite slope
        total = (grads[0] * weight.flip(0)).sum() + (grads[1] * weight.flip(1))[lower].sum()
        second = torch.autograd.grad(total, (x, t, w))
        found.append([*grads, *second])
    for ours, theirs, wrt_targets in zip(*found, (False, True, False, True, False), strict=True):
        mask = lower if wrt_targets else torch.ones_like(lower)
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-6, atol=1e-8)
        assert not wrt_targets or ours[~lower].eq(0).all()


def test_only_the_inputs_are_saved():
    inputs, targets = random_call(0, 50, 80)
    assert_saves_its_inputs_alone(ops.heatmap_focal_loss, inputs, targets)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "error", "message"), wrong_arguments("beta"))
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^heatmap_focal_loss: " + message):
        ops.heatmap_focal_loss(*arguments)


@pytest.mark.parametrize("arguments", UNSAFE)
def test_the_kernel_protects_itself(arguments):
    assert_protected("heatmap_focal_loss", arguments)
