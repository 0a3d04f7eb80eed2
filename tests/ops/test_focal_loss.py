# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.instruction_sets import outputs_by_set
from tests.ops.losses import (
    ABSOLUTE,
    LOGITS,
    REDUCTIONS,
    RELATIVE,
    assert_saves_its_inputs_alone,
)
from tests.reference.focal_loss import focal_loss as reference
from tests.reference.focal_loss import focal_loss_of_labels
from tests.strategies import DTYPES

ALPHAS = st.sampled_from([0.25, 0.0, 1.0, 0.6, -1.0])
GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])


def sigmoid_focal_loss_eager(inputs, targets, alpha=0.25, gamma=2.0):
    """The formula as torch users write it, and torchvision does."""
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = cross_entropy * (1 - p_t) ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def random_call(*shape, device="cpu", dtype=torch.float32, seed=0):
    """Logits [*shape], and labels [*shape[:-1]] of which many are background, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4 - 1
    labels = torch.randint(-2, shape[-1], shape[:-1], generator=generator)
    return logits.to(device=device, dtype=dtype), labels.to(device)


def one_hot(labels, num_classes, dtype=torch.float32):
    """Dense targets of labels; ignored rows become background."""
    return F.one_hot(labels.clamp(min=-1) + 1, num_classes + 1)[..., 1:].to(dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_numbers(device):
    """p = 0.9, 0.1 and 0.99 of a foreground: cross entropy and focal loss."""
    logits = torch.tensor([0.9, 0.1, 0.99], dtype=torch.float64, device=device).logit()
    ones = torch.ones_like(logits)
    cross_entropy = ops.sigmoid_focal_loss(logits, ones, alpha=-1, gamma=0)
    assert cross_entropy.tolist() == pytest.approx([0.1053, 2.3025, 0.01], abs=1e-4)
    focal = ops.sigmoid_focal_loss(logits, ones)
    # The document rounds 0.25 * 0.81 * 2.3025 = 0.4663 to 0.4667.
    assert focal.tolist() == pytest.approx([0.00026, 0.4663, 2.5e-7], rel=2e-2)
    # A background of p = 0.1 is as easy as a foreground of 0.9. With alpha_t it weighs 1 - alpha;
    # the document weighs it by alpha, which is a mere factor.
    background = ops.sigmoid_focal_loss(-logits, torch.zeros_like(logits))
    torch.testing.assert_close(background, 3 * focal)
    unweighted = ops.sigmoid_focal_loss(-logits, torch.zeros_like(logits), alpha=-1)
    torch.testing.assert_close(0.25 * unweighted, focal)


@given(
    st.lists(st.tuples(LOGITS, st.floats(0, 1, width=16)), max_size=40),
    ALPHAS,
    GAMMAS,
    st.sampled_from(DTYPES),
)
def test_dense_targets(pairs, alpha, gamma, dtype):
    inputs = torch.tensor([x for x, _ in pairs], dtype=torch.float64).to(dtype)
    targets = torch.tensor([t for _, t in pairs], dtype=torch.float64).to(dtype)
    loss = ops.sigmoid_focal_loss(inputs, targets, alpha, gamma)
    assert loss.dtype == dtype
    wanted = [
        reference(x, t, alpha, gamma)
        for x, t in zip(inputs.double().tolist(), targets.double().tolist(), strict=True)
    ]
    wanted = torch.tensor(wanted, dtype=torch.float64)
    # Errors of log(1 - p_t) are multiplied by gamma.
    torch.testing.assert_close(
        loss.double(), wanted, rtol=(1 + gamma) * RELATIVE[dtype], atol=1e-30 + ABSOLUTE[dtype]
    )


@given(
    st.integers(1, 5).flatmap(
        lambda classes: st.lists(
            st.tuples(
                st.lists(LOGITS, min_size=classes, max_size=classes), st.integers(-2, classes - 1)
            ),
            min_size=1,
            max_size=12,
        )
    ),
    ALPHAS,
    GAMMAS,
    st.sampled_from(DTYPES),
)
def test_labels(rows, alpha, gamma, dtype):
    inputs = torch.tensor([row for row, _ in rows], dtype=torch.float64).to(dtype)
    labels = torch.tensor([label for _, label in rows])
    loss = ops.sigmoid_focal_loss(inputs, labels, alpha, gamma)
    wanted = focal_loss_of_labels(inputs.double().tolist(), labels.tolist(), alpha, gamma)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(
        loss.double(), wanted, rtol=(1 + gamma) * RELATIVE[dtype], atol=1e-30 + ABSOLUTE[dtype]
    )
    sums = ops.sigmoid_focal_loss(inputs, labels, alpha, gamma, reduction="sum_per_image")
    torch.testing.assert_close(
        sums.double(), wanted.sum(1), rtol=(1 + gamma) * RELATIVE[dtype], atol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 3, 80, 1023, 1025])
def test_labels_equal_dense_targets(device, dtype, classes):
    inputs, labels = random_call(3, 8_000 // classes, classes, device=device, dtype=dtype)
    inputs.requires_grad_()
    targets = one_hot(labels, classes, dtype)
    ignored = (labels == -2)[..., None]
    for reduction in REDUCTIONS:
        loss = ops.sigmoid_focal_loss(inputs, labels, reduction=reduction)
        dense = ops.sigmoid_focal_loss(inputs, targets).masked_fill(ignored, 0).double()
        wanted = {
            "none": dense,
            "mean": dense.mean(),
            "sum": dense.sum(),
            "sum_per_image": dense.flatten(1).sum(1),
        }[reduction]
        assert loss.dtype == dtype and loss.shape == wanted.shape
        tolerance = {"rtol": 4 * RELATIVE[dtype], "atol": 1e-6}
        torch.testing.assert_close(loss.double(), wanted, **tolerance)
        (grad,) = torch.autograd.grad(loss.sum(), inputs)
        (wanted_grad,) = torch.autograd.grad(wanted.sum(), inputs)
        torch.testing.assert_close(grad, wanted_grad, **tolerance)
        assert grad.masked_select(ignored).eq(0).all()


def test_ignored_rows_contribute_nothing(device):
    inputs = torch.tensor([[math.nan, math.inf], [1.0, 2.0]], device=device, requires_grad=True)
    for reduction in REDUCTIONS:
        loss = ops.sigmoid_focal_loss(
            inputs, torch.tensor([-2, -2], device=device), reduction=reduction
        )
        assert loss.eq(0).all()
        (grad,) = torch.autograd.grad(loss.sum(), inputs)
        assert grad.eq(0).all()


def test_a_label_out_of_range_is_loud_and_harmless(device):
    inputs = torch.zeros(4, 3, device=device, requires_grad=True)
    labels = torch.tensor([3, -3, 2**62, 0], device=device)
    loss = ops.sigmoid_focal_loss(inputs, labels)
    assert loss[:3].isnan().all() and loss[3].isfinite().all()
    (grad,) = torch.autograd.grad(loss.sum(), inputs)
    assert grad[:3].isnan().all() and grad[3].isfinite().all()
    assert ops.sigmoid_focal_loss(inputs, labels, reduction="sum").isnan()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(device, gamma, dtype):
    inputs = torch.tensor(
        [1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan, 100, -100, 0, -0.0],
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    for target in (0.0, 1.0, 0.25):
        targets = torch.full_like(inputs, target)
        loss = ops.sigmoid_focal_loss(inputs, targets, -1, gamma)
        (grad,) = torch.autograd.grad(loss.sum(), inputs)
        assert loss[6].isnan() and grad[6].isnan()
        finite = inputs.isfinite()
        assert loss[finite].isfinite().all() and grad[finite].isfinite().all()
        infinite = inputs.isinf()
        if target in (0.0, 1.0):
            right = (inputs > 0) == (target == 1)
            assert loss[infinite & right].eq(0).all()
            assert loss[infinite & ~right].isinf().all()
            assert grad[infinite & right].eq(0).all()
            assert grad[infinite & ~right].abs().eq(1).all()
            labels = torch.zeros(len(inputs), dtype=torch.int64, device=device) + int(target) - 1
            by_label = ops.sigmoid_focal_loss(inputs[:, None], labels, -1, gamma)
            torch.testing.assert_close(by_label[:, 0], loss, rtol=1e-5, atol=1e-37, equal_nan=True)
            (grad_by_label,) = torch.autograd.grad(by_label.sum(), inputs)
            torch.testing.assert_close(grad_by_label, grad, rtol=1e-5, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_dtypes_are_promoted(device, dtype, target_dtype):
    """As in torchvision: the loss has the dtype that torch promotes the two to."""
    inputs, _ = random_call(4, 5, device=device, dtype=dtype)
    inputs.requires_grad_()
    targets = torch.rand(4, 5, device=device).to(target_dtype)
    wide = torch.promote_types(dtype, target_dtype)
    loss = ops.sigmoid_focal_loss(inputs, targets, reduction="sum")
    assert loss.dtype == wide
    wanted = ops.sigmoid_focal_loss(inputs.to(wide), targets.to(wide), reduction="sum")
    assert torch.equal(loss, wanted)
    (grad,) = torch.autograd.grad(loss, inputs)
    assert grad.dtype == dtype
    assert torch.equal(grad, torch.autograd.grad(wanted, inputs)[0])


def test_empty(device):
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 5)):
        inputs = torch.zeros(shape, device=device, requires_grad=True)
        labels = torch.zeros(shape[:-1], dtype=torch.int64, device=device)
        for targets in (torch.zeros(shape, device=device), labels):
            assert ops.sigmoid_focal_loss(inputs, targets).shape == shape
            assert ops.sigmoid_focal_loss(inputs, targets, reduction="mean").isnan()
            total = ops.sigmoid_focal_loss(inputs, targets, reduction="sum")
            assert total.shape == () and total.item() == 0
            per_image = ops.sigmoid_focal_loss(inputs, targets, reduction="sum_per_image")
            assert torch.equal(per_image, torch.zeros(shape[0], device=device))
            total.backward()
            assert inputs.grad.shape == shape


@pytest.mark.parametrize("shape", [(1,), (7, 3), (1, 1023), (5, 3277), (1, 16384), (3, 16385, 2)])
def test_sizes(device, shape):
    inputs, _ = random_call(*shape, device=device)
    targets = torch.rand_like(inputs)
    wanted = sigmoid_focal_loss_eager(inputs.double(), targets.double())
    torch.testing.assert_close(
        ops.sigmoid_focal_loss(inputs, targets).double(), wanted, rtol=3e-5, atol=1e-7
    )
    per_image = wanted.reshape(shape[0], -1).sum(1)
    for reduction, sums in (("sum", wanted.sum()), ("sum_per_image", per_image)):
        loss = ops.sigmoid_focal_loss(inputs, targets, reduction=reduction)
        torch.testing.assert_close(loss.double(), sums, rtol=1e-6, atol=1e-7)


PRINT_LOSSES = """
import json
import torch
from pydet import ops
x = torch.linspace(-30, 30, 4001).reshape(-1, 1).repeat(1, 3).requires_grad_()
t = torch.linspace(0, 1, 4001).reshape(-1, 1).repeat(1, 3)
labels = torch.arange(4001) % 5 - 2
values = []
for gamma in (2.0, 1.5):
    for targets in (t, labels):
        for reduction in ("none", "sum"):
            loss = ops.sigmoid_focal_loss(x, targets, gamma=gamma, reduction=reduction)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            values += [*loss.flatten().tolist(), *grad.flatten().tolist()]
print(json.dumps(values))
"""


@pytest.mark.large
def test_instruction_sets_agree():
    """One binary chooses its loops at run time; some of them fuse multiplications and additions."""
    outputs = outputs_by_set(PRINT_LOSSES).items()
    values = {isa: torch.tensor(json.loads(output)) for isa, output in outputs}
    assert values["portable"].numel() > 100_000
    for isa in ("avx2", "avx512"):
        torch.testing.assert_close(
            values[isa], values["portable"], rtol=3e-6, atol=1e-12, equal_nan=True
        )


# --- against torchvision -----------------------------------------------------------------------


@given(st.integers(0, 10_000), ALPHAS, GAMMAS, st.sampled_from(REDUCTIONS[:3]), st.booleans())
def test_torchvision_gives_the_same(seed, alpha, gamma, reduction, hard):
    theirs = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 7, generator=generator) * 5
    targets = torch.rand(3, 7, generator=generator)
    targets = targets.round() if hard else targets
    results = []
    for function in (ops.sigmoid_focal_loss, theirs.sigmoid_focal_loss):
        x = inputs.clone().requires_grad_()
        loss = function(x, targets, alpha, gamma, reduction)
        loss.sum().backward()
        results.append((loss.detach(), x.grad))
    for ours, peer in zip(*results, strict=True):
        torch.testing.assert_close(ours, peer, rtol=2e-5, atol=2e-6)


# --- gradient ----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), ALPHAS, GAMMAS, st.booleans())
def test_gradient_equals_autograd(seed, alpha, gamma, hard):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 7, generator=generator, dtype=torch.float64) * 5
    targets = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    targets = targets.round() if hard else targets
    weight = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    grads = []
    for function in (ops.sigmoid_focal_loss, sigmoid_focal_loss_eager):
        x, t = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        (function(x, t, alpha, gamma) * weight).sum().backward()
        grads.append((x.grad, t.grad))
    # The formula computes 1 - p_t by subtraction, which loses what is left of it at p_t near 1.
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-6, atol=1e-7)
    if gamma >= 1 or not hard:  # below 1 the slope is infinite at the hard end
        torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-6, atol=1e-7)


@given(
    st.integers(0, 10_000),
    ALPHAS,
    GAMMAS,
    st.sampled_from(REDUCTIONS),
    st.sampled_from(["soft", "hard", "labels"]),
)
def test_second_derivatives_equal_autograd(seed, alpha, gamma, reduction, form):
    """Of inputs, targets and the incoming gradient, along any direction of the first derivative."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 7)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    soft = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    labels = torch.randint(-1, 7, shape[:1], generator=generator)
    dense = {"soft": soft, "hard": soft.round(), "labels": one_hot(labels, 7, torch.float64)}[form]
    directions = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    reduce = {
        "none": lambda loss: loss,
        "mean": lambda loss: loss.mean(),
        "sum": lambda loss: loss.sum(),
        "sum_per_image": lambda loss: loss.sum(1),
    }[reduction]
    found = []
    for native in (True, False):
        x = inputs.clone().requires_grad_()
        t = dense.clone().requires_grad_(form == "soft")
        if native:
            targets = labels if form == "labels" else t
            loss = ops.sigmoid_focal_loss(x, targets, alpha, gamma, reduction)
        else:
            loss = reduce(sigmoid_focal_loss_eager(x, t, alpha, gamma))
        weight = torch.linspace(0.5, 1, loss.numel(), dtype=torch.float64).reshape(loss.shape)
        weight.requires_grad_()
        leaves = (x, t) if form == "soft" else (x,)
        grads = torch.autograd.grad(loss, leaves, weight, create_graph=True)
        total = sum((g * d).sum() for g, d in zip(grads, directions, strict=False))
        found.append(torch.autograd.grad(total, (*leaves, weight)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_of_extreme_logits(device, gamma, dtype):
    inputs = torch.tensor(
        [1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, 100, -100, 90, -90, 0, -0.0],
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    for target in (0.0, 1.0, 0.25):
        targets = torch.full_like(inputs, target)
        loss = ops.sigmoid_focal_loss(inputs, targets, -1, gamma, "sum")
        (grad,) = torch.autograd.grad(loss, inputs, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), inputs)
        assert second.isfinite().all()
        assert second[:6].eq(0).all()  # a straight line there
        if target != 0.25:
            labels = torch.zeros(len(inputs), dtype=torch.int64, device=device) + int(target) - 1
            loss = ops.sigmoid_focal_loss(inputs[:, None], labels, -1, gamma, "sum")
            (grad,) = torch.autograd.grad(loss, inputs, create_graph=True)
            (by_label,) = torch.autograd.grad(grad.sum(), inputs)
            torch.testing.assert_close(by_label, second, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_in_half(device, dtype, reduction):
    inputs, labels = random_call(6, 9, device=device, dtype=dtype)
    grads = []
    for x in (inputs.clone(), inputs.double()):
        x.requires_grad_()
        ops.sigmoid_focal_loss(x, labels, reduction=reduction).sum().backward()
        grads.append(x.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=2 * RELATIVE[dtype], atol=1e-7)


def test_only_the_inputs_are_saved():
    inputs, labels = random_call(50, 80)
    assert_saves_its_inputs_alone(ops.sigmoid_focal_loss, inputs, labels)


# --- autocast ----------------------------------------------------------------------------------


def test_autocast(device):
    """The logits are not copied to float32; sums come in float32."""
    inputs, labels = random_call(30, 7, device=device, dtype=torch.bfloat16)
    targets = one_hot(labels, 7)  # float32, as a user has them
    leaf = inputs.clone().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = ops.sigmoid_focal_loss(leaf, targets)
        total = ops.sigmoid_focal_loss(leaf, targets, reduction="sum")
    assert loss.dtype == torch.bfloat16 and total.dtype == torch.float32
    wanted = ops.sigmoid_focal_loss(inputs.double(), targets.double())
    torch.testing.assert_close(total.double(), wanted.sum(), rtol=1e-6, atol=0)
    total.backward()
    assert leaf.grad.dtype == torch.bfloat16


# --- errors ------------------------------------------------------------------------------------

X, LABELS = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], LABELS), TypeError, "inputs must be a tensor, got list"),
        ((X.int(), LABELS), TypeError, "inputs must have a dtype of .*, got torch.int32"),
        ((X, [0]), TypeError, "targets must be a tensor, got list"),
        ((X, X.to(torch.complex64)), TypeError, r"targets must .*, got torch.complex64 \[5, 3\]"),
        ((X, X[:4]), ValueError, r"targets must be floating and .* \[5, 3\], or int64 labels"),
        ((X, X.long()), TypeError, r"targets must .* labels of the shape \[5\], got torch.int64"),
        ((X, X.bool()), TypeError, r"targets must be floating .*, got torch.bool \[5, 3\]"),
        ((X, LABELS.int()), TypeError, r"targets must .*, got torch.int32 \[5\]"),
        ((X, LABELS.to("meta")), ValueError, "targets must be on the device of inputs"),
        ((X, LABELS, 1.5), ValueError, r"alpha must be in \[0, 1\], or below 0 .*, got 1.5"),
        ((X, LABELS, math.nan), ValueError, "alpha must be .*, got nan"),
        ((X, LABELS, "a"), TypeError, "alpha must be a number, got str"),
        ((X, LABELS, 0.25, -1), ValueError, "gamma must be finite and at least 0, got -1"),
        ((X, LABELS, 0.25, math.inf), ValueError, "gamma must be finite"),
        ((X, LABELS, 0.25, 2, "avg"), ValueError, "reduction must be one of 'none', .*, got 'avg'"),
        (
            (X[0, 0], X[0, 0], 0.25, 2, "sum_per_image"),
            ValueError,
            r"inputs must have shape \[B, ...\]",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^sigmoid_focal_loss: " + message):
        ops.sigmoid_focal_loss(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (X, X[:4], 0.25, 2.0, "none"),
        (X, LABELS[:4], 0.25, 2.0, "none"),
        (X[0, 0], LABELS[0], 0.25, 2.0, "none"),
        (X, X.double(), 0.25, 2.0, "none"),
        (X.int(), LABELS, 0.25, 2.0, "none"),
        (X, LABELS.int(), 0.25, 2.0, "none"),
        (X, LABELS, 0.25, 2.0, "avg"),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match="sigmoid_focal_loss"):
        torch.ops.pydet.sigmoid_focal_loss(*arguments)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="sigmoid_focal_loss"):
        torch.ops.pydet.sigmoid_focal_loss_backward(X, *arguments, False)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="sigmoid_focal_loss"):
        torch.ops.pydet.sigmoid_focal_loss_double_backward(X, X, *arguments, False, False)


def test_the_backward_protects_itself():
    backward = torch.ops.pydet.sigmoid_focal_loss_backward
    with pytest.raises(TypeError, match="targets must be floating"):
        backward(X, X, LABELS, 0.25, 2.0, "none", True)
    with pytest.raises(ValueError, match="grad_loss must be on the device of inputs and have"):
        backward(X, X, LABELS, 0.25, 2.0, "sum", False)
    with pytest.raises(TypeError, match="grad_loss must have the dtype"):
        backward(X.double(), X, LABELS, 0.25, 2.0, "none", False)
    double_backward = torch.ops.pydet.sigmoid_focal_loss_double_backward
    with pytest.raises(TypeError, match="targets must be floating"):
        double_backward(X, X, X, LABELS, 0.25, 2.0, "none", False, True)
    with pytest.raises(ValueError, match="grad_grad must have the shape"):
        double_backward(X[:4], X, X, X, 0.25, 2.0, "none", False, True)
    with pytest.raises(TypeError, match="grad_grad must have the dtype"):
        double_backward(X.double(), X, X, X, 0.25, 2.0, "none", False, True)


# --- strides and dtypes ------------------------------------------------------------------------


def test_permuted_logits(device):
    """Logits as a convolution leaves them, [B, A K, H, W], and viewed as [B, H, W, A, K]."""
    maps = torch.randn(2, 6, 4, 5, device=device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = maps.to(memory_format=memory_format).requires_grad_()
        logits = leaf.unflatten(1, (2, 3)).permute(0, 3, 4, 1, 2)  # [B, H, W, A, K]
        labels = torch.randint(-2, 3, logits.shape[:-1], device=device)
        labels = torch.zeros_like(labels) + 1
        loss = ops.sigmoid_focal_loss(logits, labels, reduction="sum_per_image")
        wanted = ops.sigmoid_focal_loss(logits.contiguous(), labels, reduction="sum_per_image")
        assert torch.equal(loss, wanted)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert grad.shape == maps.shape
