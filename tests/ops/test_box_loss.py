# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.cases import Random
from tests.reference import box_loss as reference
from tests.strategies import (
    DTYPES,
    any_boxes,
    lattice_boxes,
    layouts,
    tensor_of_boxes,
    valid_boxes,
)

NAMES = (
    "iou_loss",
    "generalized_box_iou_loss",
    "distance_box_iou_loss",
    "complete_box_iou_loss",
)
each_loss = pytest.mark.parametrize("name", NAMES)
each_eps = st.sampled_from([1e-7, 1e-3])


def expected(name, boxes1, boxes2, eps=1e-7):
    pairs = zip(boxes1.double().tolist(), boxes2.double().tolist(), strict=True)
    values = [getattr(reference, name)(a, b, eps) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)


def paired(boxes1, boxes2, dtype=torch.float64):
    """Two lists of boxes as tensors of the same length."""
    count = min(len(boxes1), len(boxes2))
    return tensor_of_boxes(boxes1[:count], dtype), tensor_of_boxes(boxes2[:count], dtype)


def random_pair(count, dtype=torch.float32, device="cpu"):
    random = Random(0)
    return random.boxes(count).to(device, dtype), random.boxes(count).to(device, dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """A 2x2 and a 2x3 box that overlap in 1x1: IoU 1/9, in a 3x4 box."""
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device)
    b = torch.tensor([[1.0, 1.0, 3.0, 4.0]], device=device)
    assert ops.iou_loss(a, b).item() == pytest.approx(math.log(9), rel=1e-6)
    assert ops.generalized_box_iou_loss(a, b).item() == pytest.approx(8 / 9 + 3 / 12, rel=1e-6)
    distance = 8 / 9 + (1**2 + 1.5**2) / (3**2 + 4**2)
    assert ops.distance_box_iou_loss(a, b).item() == pytest.approx(distance, rel=1e-6)
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2 / 3)) ** 2
    complete = distance + v * v / (8 / 9 + v)
    assert ops.complete_box_iou_loss(a, b).item() == pytest.approx(complete, rel=1e-6)


@each_loss
@given(valid_boxes(), valid_boxes(), st.sampled_from(DTYPES), each_eps)
def test_ordinary_boxes(name, boxes1, boxes2, dtype, eps):
    a, b = paired(boxes1, boxes2, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = expected(name, a, b, eps)
    error = 1e-9 if dtype == torch.float64 else 5e-4
    for reduction, value in (
        ("none", wanted),
        ("sum", wanted.sum()),
        ("mean", wanted.mean() if len(a) else wanted.sum()),
    ):
        found = getattr(ops, name)(a, b, reduction, eps)
        assert found.dtype == wide and found.shape == value.shape
        # The logarithm of an IoU near eps takes its relative error over.
        loose = 100 if name == "iou_loss" and dtype != torch.float64 else 1
        torch.testing.assert_close(found.double(), value, rtol=error * loose, atol=error * loose)


@each_loss
@given(any_boxes(special=False), any_boxes(special=False), st.sampled_from([1e-7, 1e-3]))
def test_finite_boxes_give_finite_losses(name, boxes1, boxes2, eps):
    """Inverted, degenerate and disjoint ones, too, and finite gradients."""
    a, b = paired(boxes1, boxes2)
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = getattr(ops, name)(a, b, eps=eps)
    torch.testing.assert_close(
        loss.detach(), expected(name, a.detach(), b.detach(), eps), rtol=1e-7, atol=1e-7
    )
    grads = torch.autograd.grad(loss.sum(), (a, b), create_graph=True)
    assert all(grad.isfinite().all() for grad in grads)


DEGENERATE = [
    ([0, 0, 0, 0], [0, 0, 0, 0]),
    ([3, 3, 3, 3], [5, 4, 5, 4]),
    ([3, 3, 3, 3], [0, 0, 10, 10]),
    ([0, 0, 0, 10], [0, 0, 10, 0]),
    ([0, 0, 10, 0], [0, 0, 0, 10]),
    ([0, 0, 4, 4], [4, 0, 8, 4]),
    ([0, 0, 4, 4], [100, 100, 104, 104]),
    ([0, 0, 4, 4], [0, 0, 4, 4]),
]


@each_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_degenerate(name, dtype, device):
    """Points, lines, boxes that touch or are apart: all finite, first and second derivatives."""
    a, b = (
        torch.tensor(rows, dtype=dtype, device=device) for rows in zip(*DEGENERATE, strict=True)
    )
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = getattr(ops, name)(a, b)
    torch.testing.assert_close(
        loss.double().cpu(), expected(name, a.cpu(), b.cpu()), rtol=1e-5, atol=1e-6
    )
    # eps = 1e-7 makes gradients of 1e7 and second derivatives of 1e14: beyond float16.
    wide = [boxes.detach().to(loss.dtype).requires_grad_() for boxes in (a, b)]
    grads = torch.autograd.grad(getattr(ops, name)(*wide).sum(), wide, create_graph=True)
    assert all(grad.isfinite().all() for grad in grads)
    second = torch.autograd.grad(sum(grad.sum() for grad in grads), wide)
    assert all(grad.isfinite().all() for grad in second)


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_eps(name):
    """A quotient by 0 counts as 0."""
    a, b = (torch.tensor(rows, dtype=torch.float32) for rows in zip(*DEGENERATE, strict=True))
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = getattr(ops, name)(a, b, eps=0)
    torch.testing.assert_close(loss.double(), expected(name, a, b, 0), rtol=1e-5, atol=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (a, b)))


def test_iou_loss_is_held_at_eps():
    """Disjoint boxes have the largest loss and no gradient; equal ones exactly 0."""
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]], requires_grad=True)
    b = torch.tensor([[9.0, 9, 12, 12], [0, 0, 4, 4], [0, 0, 400, 400]])
    loss = ops.iou_loss(a, b, eps=1e-3)
    torch.testing.assert_close(loss[0].item(), -math.log(1e-3), rtol=1e-6, atol=0)
    assert loss[1].item() == 0
    torch.testing.assert_close(loss[2].item(), -math.log(1e-3), rtol=1e-6, atol=0)
    loss.sum().backward()
    assert torch.equal(a.grad[[0, 2]], torch.zeros(2, 4))


@each_loss
def test_nan_stays(name, device):
    a, b = random_pair(4, device=device)
    a[1, 2] = math.nan
    loss = getattr(ops, name)(a, b)
    assert loss.isnan().tolist() == [False, True, False, False]


@each_loss
def test_shapes(name, device):
    function = getattr(ops, name)
    a, b = random_pair(12, device=device)
    wanted = function(a, b)
    assert torch.equal(function(a.view(3, 4, 4), b.view(3, 4, 4)), wanted.view(3, 4))
    assert torch.equal(function(a[0], b[0]), wanted[0])
    assert torch.equal(function(a, b[0]), torch.stack([function(x, b[0]) for x in a]))
    assert function(a[:0], b[:0]).shape == (0,)
    for reduction in ("sum", "mean"):
        assert function(a[:0], b[:0], reduction).item() == 0
    assert torch.equal(function(a.round().int(), b.round().int()), function(a.round(), b.round()))


@each_loss
def test_sums_of_many(name, device):
    """Pieces of the sum are added in double precision."""
    a, b = random_pair(50_001, device=device)
    losses = getattr(ops, name)(a, b)
    for reduction, value in (("sum", losses.double().sum()), ("mean", losses.double().mean())):
        found = getattr(ops, name)(a, b, reduction)
        torch.testing.assert_close(found.double(), value, rtol=1e-6, atol=0)


@each_loss
def test_offset_boxes(name, device):
    """Boxes that do not lie at a multiple of 16 bytes."""
    a, b = random_pair(5, device=device)
    wanted = getattr(ops, name)(a, b)
    for _, same in layouts(a):
        for _, other in layouts(b):
            assert torch.equal(getattr(ops, name)(same, other), wanted)


# --- gradient ----------------------------------------------------------------------------------


def eager(name, boxes1, boxes2, eps):
    """The formula in torch, with the gradients that torchvision's has."""
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    width, height = torch.min(x2, u2) - torch.max(x1, u1), torch.min(y2, v2) - torch.max(y1, v1)
    shared = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    if name == "iou_loss":
        return -(shared / union).clamp(min=eps).log()
    outer_width, outer_height = (
        torch.max(x2, u2) - torch.min(x1, u1),
        torch.max(y2, v2) - torch.min(y1, v1),
    )
    if name == "generalized_box_iou_loss":
        outer = outer_width * outer_height
        return 1 - shared / (union + eps) + (outer - union) / (outer + eps)
    small = eps if name == "distance_box_iou_loss" else 1e-7
    x, y = (x1 + x2 - u1 - u2) / 2, (y1 + y2 - v1 - v2) / 2
    distance = (x**2 + y**2) / (outer_width**2 + outer_height**2 + small)
    iou = shared / (union + small)
    if name == "distance_box_iou_loss":
        return 1 - iou + distance
    v = 4 / math.pi**2 * (((x2 - x1) / (y2 - y1)).atan() - ((u2 - u1) / (v2 - v1)).atan()) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return 1 - iou + distance + alpha * v


def reduced(losses, reduction):
    return losses if reduction == "none" else getattr(losses, reduction)()


@each_loss
@given(
    st.sampled_from([4, 16]).flatmap(
        lambda size: st.tuples(
            lattice_boxes(1, 6, size, degenerate=False), lattice_boxes(1, 6, size, degenerate=False)
        )
    ),
    st.sampled_from(["none", "mean", "sum"]),
    each_eps,
)
def test_derivatives_equal_autograd(name, boxes, reduction, eps):
    """Of boxes with area, on a lattice: many edges tie. First and second derivatives."""
    a, b = paired(*boxes)
    random = Random(len(a))
    v = random.normal(len(a), 4), random.normal(len(a), 4)
    found = []
    for function in (
        lambda x, y: getattr(ops, name)(x, y, reduction, eps),
        lambda x, y: reduced(eager(name, x, y, eps), reduction),
    ):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = function(x, y)
        weight = torch.linspace(0.5, 1, loss.numel()).double().reshape(loss.shape).requires_grad_()
        first = torch.autograd.grad((loss * weight).sum(), (x, y), create_graph=True)
        total = (first[0] * v[0]).sum() + (first[1] * v[1]).sum()
        second = torch.autograd.grad(total, (x, y, weight), allow_unused=True)
        found.append(
            [torch.zeros(1) if grad is None else grad.detach() for grad in (*first, *second)]
        )
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted.expand_as(got).to(got), rtol=1e-9, atol=1e-9)


@each_loss
def test_gradient_in_half(name, device):
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (boxes.requires_grad_() for boxes in random_pair(9, dtype, device))
        getattr(ops, name)(a, b, "sum").backward()
        assert a.grad.dtype == b.grad.dtype == dtype
        x, y = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
        getattr(ops, name)(x, y, "sum").backward()
        torch.testing.assert_close(a.grad.double(), x.grad, atol=1e-3, rtol=2e-2)
        torch.testing.assert_close(b.grad.double(), y.grad, atol=1e-3, rtol=2e-2)


@each_loss
def test_saves_its_inputs_alone(name):
    a, b = (boxes.requires_grad_() for boxes in random_pair(100))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        getattr(ops, name)(a, b, "mean")
    assert sum(t.numel() * t.element_size() for t in saved) == 2 * 100 * 16


# --- errors ------------------------------------------------------------------------------------


@each_loss
def test_errors(name):
    function = getattr(ops, name)
    boxes = torch.zeros(3, 4)
    for arguments, error, message in (
        (([[0, 0, 1, 1]], boxes), TypeError, "boxes1 must be a tensor, got list"),
        ((boxes, torch.zeros(3, 5)), ValueError, r"boxes2 must have shape .*, got \[3, 5\]"),
        ((boxes, boxes.double()), TypeError, "boxes2 must have the dtype of boxes1"),
        ((boxes, torch.zeros(2, 4)), ValueError, "boxes2 must have a shape that broadcasts"),
        ((boxes, boxes.to("meta")), ValueError, "boxes2 must be on the device"),
        ((boxes, boxes, "max"), ValueError, "reduction must be one of 'none', 'mean', 'sum'"),
        ((boxes, boxes, "sum", -1.0), ValueError, "eps must be finite"),
        ((boxes, boxes, "sum", math.nan), ValueError, "eps must be finite"),
        ((boxes, boxes, "sum", "x"), TypeError, "eps must be a number, got str"),
    ):
        with pytest.raises(error, match=f"^{name}: {message}"):
            function(*arguments)
    if name == "iou_loss":
        with pytest.raises(ValueError, match="eps must be finite and above 0, got 0"):
            function(boxes, boxes, eps=0)


def test_the_kernels_protect_themselves():
    boxes = torch.zeros(3, 4)
    native = torch.ops.pydet
    with pytest.raises(ValueError, match=r"boxes1 must have shape \[.., 4\]"):
        native.box_loss(torch.zeros(3, 5), torch.zeros(3, 5), "iou", "sum", 1e-7)
    with pytest.raises(ValueError, match="boxes2 must have the shape of boxes1"):
        native.box_loss(boxes, boxes[:2], "iou", "sum", 1e-7)
    with pytest.raises(TypeError, match="boxes2 must have the dtype of boxes1"):
        native.box_loss(boxes, boxes.double(), "iou", "sum", 1e-7)
    with pytest.raises(TypeError, match="float32 or float64"):
        native.box_loss(boxes.int(), boxes.int(), "iou", "sum", 1e-7)
    with pytest.raises(ValueError, match="overlap must be"):
        native.box_loss(boxes, boxes, "giou", "sum", 1e-7)
    with pytest.raises(ValueError, match="reduction must be"):
        native.box_loss(boxes, boxes, "iou", "max", 1e-7)
    with pytest.raises(ValueError, match="the shape of the loss"):
        native.box_loss_backward(torch.zeros(2), boxes, boxes, "iou", "none", 1e-7)
    with pytest.raises(TypeError, match="grad_loss must be float64"):
        native.box_loss_backward(torch.zeros(()).double(), boxes, boxes, "iou", "sum", 1e-7)
    with pytest.raises(ValueError, match="v1 and v2 must have the shape"):
        native.box_loss_double_backward(
            boxes[:1], boxes, torch.zeros(()), boxes, boxes, "iou", "sum", 1e-7
        )
