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
from tests.reference.varifocal_loss import varifocal_loss as reference
from tests.strategies import DTYPES

ALPHAS = st.sampled_from([0.75, 0.0, 1.0, 2.5])
GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
SCORES = st.just(0.0) | st.floats(0, 1, width=16)


def varifocal_loss_eager(inputs, targets, alpha=0.75, gamma=2.0):
    """As training code writes it: a cross entropy with weights."""
    negative = alpha * inputs.sigmoid() ** gamma
    weight = torch.where(targets > 0, targets, negative)
    return F.binary_cross_entropy_with_logits(inputs, targets, reduction="none") * weight


def random_call(seed, *shape, dtype=torch.float64):
    """Logits, and targets of which most are 0."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    targets = torch.rand(shape, generator=generator, dtype=torch.float64)
    targets = targets * (torch.rand(shape, generator=generator) < 0.4)
    return inputs.to(dtype), targets.to(dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_numbers(device):
    """p = 0.5: a negative 0.75 * 0.25 * ln 2; a positive of IoU 0.8 0.8 ln 2, and 1 ln 2."""
    inputs = torch.zeros(3, dtype=torch.float64, device=device)
    targets = torch.tensor([0.0, 0.8, 1.0], dtype=torch.float64, device=device)
    loss = ops.varifocal_loss(inputs, targets)
    assert loss.tolist() == pytest.approx([0.1875 * math.log(2), 0.8 * math.log(2), math.log(2)])


@given(st.lists(st.tuples(LOGITS, SCORES), max_size=40), ALPHAS, GAMMAS, st.sampled_from(DTYPES))
def test_values(pairs, alpha, gamma, dtype):
    inputs = torch.tensor([x for x, _ in pairs], dtype=torch.float64).to(dtype)
    targets = torch.tensor([q for _, q in pairs], dtype=torch.float64).to(dtype)
    loss = ops.varifocal_loss(inputs, targets, alpha, gamma)
    assert loss.dtype == dtype
    wanted = [
        reference(x, q, alpha, gamma)
        for x, q in zip(inputs.double().tolist(), targets.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss.double(),
        torch.tensor(wanted, dtype=torch.float64),
        rtol=(1 + gamma) * RELATIVE[dtype],
        atol=1e-30 + ABSOLUTE[dtype],
    )


@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 3277), (1, 16384), (3, 16385, 2)])
def test_reductions(device, shape):
    inputs, targets = (x.to(device) for x in random_call(0, *shape, dtype=torch.float32))
    wanted = varifocal_loss_eager(inputs.double(), targets.double())
    assert_reductions(ops.varifocal_loss, wanted, inputs, targets)


def test_an_empty_mean_is_nan(device):
    inputs = torch.zeros(0, 3, device=device)
    assert ops.varifocal_loss(inputs, inputs, reduction="mean").isnan()
    assert ops.varifocal_loss(inputs, inputs, reduction="sum").item() == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(device, gamma, dtype):
    inputs = torch.tensor(
        [1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan, 100, -100, 0, -0.0],
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    finite, infinite = inputs.isfinite(), inputs.isinf()
    for target in (0.0, 1.0, 0.25):
        targets = torch.full_like(inputs, target)
        loss = ops.varifocal_loss(inputs, targets, gamma=gamma)
        (grad,) = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(grad.nansum(), inputs)
        assert loss[6].isnan() and grad[6].isnan()
        assert loss[finite].isfinite().all() and grad[finite | infinite].isfinite().all()
        assert second[finite].isfinite().all()
        right = (inputs > 0) == (target == 1)
        if target != 0.25:
            assert loss[infinite & right].eq(0).all() and loss[infinite & ~right].isinf().all()
        else:
            assert loss[infinite].isinf().all()
    broken = torch.full_like(inputs, math.nan)
    assert ops.varifocal_loss(inputs, broken, gamma=gamma).isnan().all()


# --- gradient ----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), ALPHAS, GAMMAS)
def test_derivatives_equal_autograd(seed, alpha, gamma):
    inputs, targets = random_call(seed, 3, 7)
    weight = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = []
    for function in (ops.varifocal_loss, varifocal_loss_eager):
        x, q = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        loss = (function(x, q, alpha, gamma) * w).sum()
        grads = torch.autograd.grad(loss, (x, q), create_graph=True)
        # The eager formula has a gradient in the targets of negatives too; pydet leaves it out.
        total = (grads[0] * weight.flip(0)).sum() + (grads[1] * weight.flip(1))[targets > 0].sum()
        second = torch.autograd.grad(total, (x, q, w))
        found.append([*grads, *second])
    positive = targets > 0
    for ours, theirs, wrt_targets in zip(*found, (False, True, False, True, False), strict=True):
        mask = positive if wrt_targets else torch.ones_like(positive)
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-7, atol=1e-9)
        assert not wrt_targets or ours[~positive].eq(0).all()


def test_only_the_inputs_are_saved():
    inputs, targets = random_call(0, 50, 80)
    assert_saves_its_inputs_alone(ops.varifocal_loss, inputs, targets)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "error", "message"), wrong_arguments("gamma"))
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^varifocal_loss: " + message):
        ops.varifocal_loss(*arguments)


@pytest.mark.parametrize("arguments", UNSAFE)
def test_the_kernel_protects_itself(arguments):
    assert_protected("varifocal_loss", arguments)
