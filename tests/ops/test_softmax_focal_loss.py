# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.losses import (
    ABSOLUTE,
    LOGITS,
    REDUCTIONS,
    RELATIVE,
    assert_saves_its_inputs_alone,
)
from tests.reference.softmax_focal_loss import softmax_focal_loss as reference
from tests.strategies import DTYPES

ALPHAS = st.sampled_from([0.25, 0.0, 1.0, -1.0])
GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
BACKGROUND, IGNORED = ops.BACKGROUND, ops.IGNORED


def softmax_focal_loss_eager(inputs, targets, alpha=0.25, gamma=2.0):
    """The formula as torch users write it; the background is the last column, none are ignored."""
    columns = targets.remainder(inputs.shape[-1])[..., None]
    log_p = F.log_softmax(inputs, dim=-1).gather(-1, columns)[..., 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    if isinstance(alpha, torch.Tensor):
        return alpha[columns[..., 0]] * loss
    if alpha < 0:
        return loss
    return torch.where(targets == BACKGROUND, 1 - alpha, alpha) * loss


def random_call(*shape, seed=0, low=BACKGROUND, dtype=torch.float64, device="cpu"):
    """Logits [*shape], targets [*shape[:-1]]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(low, max(1, shape[-1] - 1), shape[:-1], generator=generator)
    return inputs.to(device=device, dtype=dtype), targets.to(device)


# --- against the reference ---------------------------------------------------------------------


def test_worked_numbers(device):
    """Two classes are a sigmoid of the difference: the numbers of the sigmoid focal loss."""
    p = torch.tensor([0.9, 0.1, 0.99], dtype=torch.float64, device=device)
    inputs = torch.stack([p.logit(), torch.zeros_like(p)], dim=1) + 7
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    cross_entropy = ops.softmax_focal_loss(inputs, targets, alpha=-1, gamma=0)
    assert cross_entropy.tolist() == pytest.approx([0.1053, 2.3025, 0.01], abs=1e-4)
    focal = ops.softmax_focal_loss(inputs, targets)
    assert focal.tolist() == pytest.approx([0.00026, 0.4663, 2.5e-7], rel=2e-2)
    background = ops.softmax_focal_loss(inputs.flip(1), targets - 1)
    torch.testing.assert_close(background, 3 * focal)


@given(
    st.integers(1, 6).flatmap(
        lambda classes: st.lists(
            st.tuples(
                st.lists(LOGITS, min_size=classes, max_size=classes), st.integers(-3, classes)
            ),
            min_size=1,
            max_size=12,
        )
    ),
    ALPHAS | st.just("weights"),
    GAMMAS,
    st.sampled_from(["first", "last", "none"]),
    st.sampled_from([IGNORED, 0, -100]),
    st.sampled_from(DTYPES),
)
def test_values(rows, alpha, gamma, background, ignored, dtype):
    inputs = torch.tensor([row for row, _ in rows], dtype=torch.float64).to(dtype)
    targets = torch.tensor([target for _, target in rows])
    classes = inputs.shape[1]
    index = {"first": 0, "last": -1, "none": None}[background]
    weights = [(k + 1) / 4 for k in range(classes)]
    loss = ops.softmax_focal_loss(
        inputs,
        targets,
        torch.tensor(weights) if alpha == "weights" else alpha,
        gamma,
        background_index=index,
        ignore_index=ignored,
    )
    assert loss.dtype == dtype and loss.shape == targets.shape
    column = {"first": 0, "last": classes - 1, "none": None}[background]
    wanted = [
        reference(row, target, weights if alpha == "weights" else alpha, gamma, column, ignored)
        for row, target in zip(inputs.double().tolist(), targets.tolist(), strict=True)
    ]
    # A difference of logits up to 60 (or 1e4, where the loss is as large) is rounded: gamma times
    # its absolute error is a relative one of the loss.
    error = 60 * (1 + gamma) * (RELATIVE[dtype] if dtype.itemsize > 2 else 1e-7)
    torch.testing.assert_close(
        loss.double(),
        torch.tensor(wanted, dtype=torch.float64),
        rtol=error + RELATIVE[dtype],
        atol=1e-30 + ABSOLUTE[dtype],
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 8, 21, 33, 91, 1024, 1025, 2049, 9418, 16384, 33000])
def test_sizes(device, classes, dtype):
    """Around the sizes of vectors, groups of threads, chunks and buffers; 9418 of YOLO9000."""
    rows = 6 if classes > 1000 else 300
    inputs, targets = random_call(2, rows, classes, dtype=dtype, device=device)
    inputs.requires_grad_()
    wide = inputs.detach().double().requires_grad_()
    wanted = softmax_focal_loss_eager(wide, targets)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), wide)
    tolerance = {"rtol": 1e-4 + RELATIVE[dtype], "atol": 1e-6}
    for reduction in REDUCTIONS:
        loss = ops.softmax_focal_loss(inputs, targets, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), inputs)
        reduced = {
            "none": wanted,
            "mean": wanted.mean(),
            "sum": wanted.sum(),
            "sum_per_image": wanted.sum(1),
        }[reduction]
        torch.testing.assert_close(loss.double(), reduced, **tolerance)
        scale = wanted.numel() if reduction == "mean" else 1
        torch.testing.assert_close(grad.double() * scale, wanted_grad, rtol=1e-2, atol=1e-4)


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_equals_cross_entropy(seed, classes):
    inputs, targets = random_call(11, classes, seed=seed, low=0)
    wanted = F.cross_entropy(inputs, targets, reduction="none")
    loss = ops.softmax_focal_loss(inputs, targets, -1, 0)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-12)


def test_ignored_rows_contribute_nothing(device):
    inputs = torch.tensor([[math.nan, math.inf], [1.0, 2.0]], device=device, requires_grad=True)
    for ignored in (IGNORED, 1, -100):
        targets = torch.full((2,), ignored, device=device)
        for reduction in REDUCTIONS:
            loss = ops.softmax_focal_loss(
                inputs, targets, reduction=reduction, ignore_index=ignored
            )
            assert loss.eq(0).all()
            (grad,) = torch.autograd.grad(loss.sum(), inputs)
            assert grad.eq(0).all()


def test_a_target_out_of_range_is_loud_and_harmless(device):
    inputs = torch.zeros(5, 3, device=device, requires_grad=True)
    targets = torch.tensor([3, -3, 2**62, -1, 0], device=device)
    loss = ops.softmax_focal_loss(inputs, targets, background_index=None)
    assert loss[:4].isnan().all() and loss[4].isfinite().all()
    (grad,) = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
    assert grad[:4].isnan().all() and grad[4].isfinite().all()
    (second,) = torch.autograd.grad(grad[4, 0], inputs)
    assert second[:4].isnan().all() and second[4].isfinite().all()


def test_no_columns_and_no_rows(device):
    inputs = torch.zeros(3, 0, device=device)
    assert (
        ops.softmax_focal_loss(inputs, torch.zeros(3, dtype=torch.int64, device=device))
        .isnan()
        .all()
    )
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for shape in ((0, 4), (0, 0)):
        inputs = torch.zeros(shape, device=device)
        assert ops.softmax_focal_loss(inputs, none).shape == (0,)
        assert ops.softmax_focal_loss(inputs, none, reduction="mean").isnan()
        assert ops.softmax_focal_loss(inputs, none, reduction="sum").item() == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [3, 40])
def test_extreme_logits(device, gamma, dtype, classes):
    inf, nan, huge = math.inf, math.nan, 1e38
    rows = torch.tensor(
        [
            [huge, -huge, 0],  # far right
            [-huge, huge, 0],  # far wrong
            [1e4, -1e4, 5],
            [inf, 0, 0],  # right without end
            [0, inf, 0],  # wrong without end
            [0, inf, inf],
            [-inf, 0, 0],
            [0, -inf, 1],  # a class that cannot be
            [0, -inf, -inf],
            [nan, 0, 0],
            [0, 0, nan],
            [inf, inf, 0],
        ],
        dtype=dtype,
        device=device,
    )
    filler = torch.full((len(rows), classes - 3), -20.0, dtype=dtype, device=device)
    filler[8] = -inf
    inputs = torch.cat([rows, filler], dim=1).requires_grad_()
    targets = torch.zeros(len(rows), dtype=torch.int64, device=device)
    loss = ops.softmax_focal_loss(inputs, targets, -1, gamma)
    (grad,) = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
    assert loss[:3].isfinite().all() and loss[0] == 0 and loss[7].isfinite()
    assert loss[3] == 0 and loss[8] == 0 and loss[4:7].eq(inf).all()
    assert loss[9:].isnan().all() and grad[9:].isnan().any(dim=1).all()
    assert grad[:9].isfinite().all()
    assert grad[4, :2].tolist() == [-1, 1] and grad[5, :3].tolist() == [-1, 0.5, 0.5]
    assert grad[3].eq(0).all() and grad[8].eq(0).all() and grad[7, 1] == 0
    (second,) = torch.autograd.grad(grad[:9, 0].sum(), inputs)
    assert second[:9].isfinite().all()


@pytest.mark.large
def test_huge_classes_in_ordinary_memory():
    """9418 classes: the forward takes no more than its inputs, the backward the gradient."""
    inputs, targets = random_call(2_000, 9418, dtype=torch.float32)
    leaf = inputs.requires_grad_()
    before = peak_memory()
    loss = ops.softmax_focal_loss(leaf, targets, reduction="sum")
    assert peak_memory() - before < 8 << 20
    loss.backward()
    assert peak_memory() - before < inputs.nbytes + (16 << 20)


def peak_memory():
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc/self/status")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


# --- gradient ----------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 5, 17, 40, 1100, 16500]),
    ALPHAS | st.just("weights"),
    GAMMAS,
)
def test_derivatives_equal_autograd(seed, classes, alpha, gamma):
    inputs, targets = random_call(4, classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(4, dtype=torch.float64, generator=generator)
    direction = torch.randn(4, classes, dtype=torch.float64, generator=generator)
    if alpha == "weights":
        alpha = torch.rand(classes, dtype=torch.float64, generator=generator)
    found = []
    for function in (ops.softmax_focal_loss, softmax_focal_loss_eager):
        x, w = inputs.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = (function(x, targets, alpha, gamma) * w).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append([grad, *torch.autograd.grad((grad * direction).sum(), (x, w))])
    # The eager formula loses 1 - p_t by subtraction where p_t is near 1.
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_only_the_inputs_are_saved():
    inputs, targets = random_call(50, 80)
    assert_saves_its_inputs_alone(ops.softmax_focal_loss, inputs, targets)


# --- errors ------------------------------------------------------------------------------------

X, T = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0.0], T), {}, TypeError, "inputs must be a tensor, got list"),
        ((X.int(), T), {}, TypeError, "inputs must have a dtype of .*, got torch.int32"),
        ((X[0, 0], T[0]), {}, ValueError, r"inputs must have shape \[..., C\], got \[\]"),
        ((X, [0]), {}, TypeError, "targets must be a tensor, got list"),
        ((X, T.int()), {}, TypeError, "targets must have a dtype of int64, got torch.int32"),
        ((X, X), {}, TypeError, "targets must have a dtype of int64, got torch.float32"),
        ((X, T[:4]), {}, ValueError, r"targets must have shape \[5\], that .*, got \[4\]"),
        ((X, T.to("meta")), {}, ValueError, "targets must be on the device of inputs"),
        ((X, T, 1.5), {}, ValueError, r"alpha must be in \[0, 1\], or below 0 .*, got 1.5"),
        ((X, T, "a"), {}, TypeError, "alpha must be a number, got str"),
        ((X, T, X[0, :2]), {}, ValueError, r"alpha must have shape \[3\], one .*, got \[2\]"),
        ((X, T, T[:3]), {}, TypeError, "alpha must have a dtype of .*, got torch.int64"),
        ((X, T, X[0].to("meta")), {}, ValueError, "alpha must be on the device of inputs"),
        ((X, T, 0.25, -1), {}, ValueError, "gamma must be finite and at least 0, got -1"),
        ((X, T, 0.25, 2, "avg"), {}, ValueError, "reduction must be one of 'none', .*, got 'avg'"),
        ((X[0], T[0], 0.25, 2, "sum_per_image"), {}, ValueError, r"inputs must have shape \[B, .*"),
        ((X, T), {"background_index": 3}, ValueError, r"background_index must be .*3 classes.*3"),
        ((X, T), {"background_index": -4}, ValueError, "background_index must be a column"),
        ((X, T), {"background_index": 1.0}, TypeError, "background_index must be an integer"),
        (
            (X, T),
            {"ignore_index": None},
            TypeError,
            "ignore_index must be an integer, got None",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="^softmax_focal_loss: " + message):
        ops.softmax_focal_loss(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (X, T[:4], -1.0, None, 2.0, "none", -1, -2),
        (X, X, -1.0, None, 2.0, "none", -1, -2),
        (X.int(), T, -1.0, None, 2.0, "none", -1, -2),
        (X[0, 0], T[0], -1.0, None, 2.0, "none", -1, -2),
        (X, T, -1.0, X[0, :2], 2.0, "none", -1, -2),
        (X, T, -1.0, X[0].double(), 2.0, "none", -1, -2),
        (X, T, -1.0, None, 2.0, "avg", -1, -2),
    ],
)
def test_the_kernel_protects_itself(arguments):
    loss = torch.zeros(5)
    for op, before in (
        (torch.ops.pydet.softmax_focal_loss, ()),
        (torch.ops.pydet.softmax_focal_loss_backward, (loss,)),
        (torch.ops.pydet.softmax_focal_loss_double_backward, (X, loss)),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="softmax_focal_loss"):
            op(*before, *arguments)


def test_the_backwards_protect_themselves():
    rest = (X, T, -1.0, None, 2.0, "none", -1, -2)
    backward = torch.ops.pydet.softmax_focal_loss_backward
    double_backward = torch.ops.pydet.softmax_focal_loss_double_backward
    loss = torch.zeros(5)
    with pytest.raises(ValueError, match="grad_loss must be on the device of inputs and have"):
        backward(loss[:4], *rest)
    with pytest.raises(TypeError, match="grad_loss must have the dtype"):
        backward(loss.double(), *rest)
    with pytest.raises(ValueError, match="grad_grad must have the shape of inputs"):
        double_backward(X[:4], loss, *rest)
    with pytest.raises(TypeError, match="grad_grad must have the dtype"):
        double_backward(X.double(), loss, *rest)
    # A background beyond the columns is no column: nothing is read there.
    far = torch.ops.pydet.softmax_focal_loss(X, T - 1, -1.0, None, 2.0, "none", 99, -2)
    assert far.isnan().all()
