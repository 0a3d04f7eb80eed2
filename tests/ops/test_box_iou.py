# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import needs_cuda
from tests.reference.box_iou import box_iou as reference
from tests.strategies import DTYPES, any_boxes, lattice_boxes, layouts, tensor_of_boxes, valid_boxes

# Rounding of one result to the dtype, and of a few float32 operations on coordinates that cancel.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def expected(boxes1, boxes2):
    values = reference(boxes1.double().tolist(), boxes2.double().tolist())
    return torch.tensor(values, dtype=torch.float64).reshape(len(boxes1), len(boxes2))


def random_boxes(*shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 1], dim=-1)
    return boxes.to(device=device, dtype=dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """A 2x2 and a 2x3 box that overlap in 1x1: 1 / (4 + 6 - 1)."""
    iou = ops.box_iou(
        torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device),
        torch.tensor([[1.0, 1.0, 3.0, 4.0]], device=device),
    )
    assert iou.item() == pytest.approx(1 / 9, rel=1e-7)


@given(lattice_boxes(), lattice_boxes())
def test_is_exact_on_integers(boxes1, boxes2):
    a, b = tensor_of_boxes(boxes1), tensor_of_boxes(boxes2)
    assert torch.equal(ops.box_iou(a, b), expected(a, b).float())
    assert torch.equal(ops.box_iou(a.int(), b.int()), expected(a, b).float())


@given(valid_boxes(), valid_boxes(), st.sampled_from(DTYPES))
def test_ordinary_boxes(boxes1, boxes2, dtype):
    a, b = tensor_of_boxes(boxes1, dtype), tensor_of_boxes(boxes2, dtype)
    iou = ops.box_iou(a, b)
    assert iou.dtype == dtype
    assert iou.ge(0).all() and iou.le(1 + TOLERANCE[dtype]).all()
    torch.testing.assert_close(iou.double(), expected(a, b), rtol=0, atol=TOLERANCE[dtype])


@given(any_boxes(), any_boxes())
def test_any_coordinates(boxes1, boxes2):
    a, b = tensor_of_boxes(boxes1, torch.float64), tensor_of_boxes(boxes2, torch.float64)
    torch.testing.assert_close(ops.box_iou(a, b), expected(a, b), equal_nan=True)


def test_degenerate(device):
    boxes = torch.tensor(
        [[5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 0, 10], [math.nan, 0, 10, 10]], device=device
    )
    iou = ops.box_iou(boxes, boxes)
    assert iou[:3, :3].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert iou[3].isnan().all() and iou[:, 3].isnan().all()


def test_bfloat16_subtracts_in_float32(device):
    """Widths that are subtracted in bfloat16 itself give an IoU above 1."""
    a = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], device=device, dtype=torch.bfloat16)
    b = torch.tensor([[1.0, 1.0, 1001.0, 1001.0]], device=device, dtype=torch.bfloat16)
    assert ops.box_iou(a, b).item() <= 1


@pytest.mark.parametrize(
    "shape", [(0, 5), (5, 0), (0, 0), (1, 1), (3, 1027), (1027, 3), (70, 2500)]
)
def test_sizes(device, shape):
    a = random_boxes(shape[0], device=device)
    b = random_boxes(shape[1], device=device, seed=1)
    torch.testing.assert_close(
        ops.box_iou(a, b).cpu().double(), expected(a.cpu(), b.cpu()), atol=1e-6, rtol=0
    )


def test_leading_dimensions(device):
    a = random_boxes(2, 3, 5, device=device)
    b = random_boxes(2, 3, 7, device=device, seed=1)
    iou = ops.box_iou(a, b)
    assert iou.shape == (2, 3, 5, 7)
    for i in range(2):
        for j in range(3):
            assert torch.equal(iou[i, j], ops.box_iou(a[i, j], b[i, j]))


def test_paths_and_threads_give_the_same_bits():
    a, b = random_boxes(300, device="cpu"), random_boxes(3000, device="cpu", seed=1)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.box_iou(a, b))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results)


@needs_cuda
def test_cuda_equals_cpu():
    a, b = random_boxes(1000, device="cpu"), random_boxes(5003, device="cpu", seed=1)
    for dtype in DTYPES:
        x, y = a.to(dtype), b.to(dtype)
        assert torch.equal(ops.box_iou(x.cuda(), y.cuda()).cpu(), ops.box_iou(x, y))


# --- gradient ----------------------------------------------------------------------------------


def test_gradcheck(device):
    a = random_boxes(4, device=device, dtype=torch.float64).requires_grad_()
    b = random_boxes(5, device=device, dtype=torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(ops.box_iou, (a, b))


def eager(boxes1, boxes2):
    """The formula in torch, whose autograd the kernel's gradient must equal, ties included."""
    area1 = (boxes1[:, 2] - boxes1[:, 0]) * (boxes1[:, 3] - boxes1[:, 1])
    area2 = (boxes2[:, 2] - boxes2[:, 0]) * (boxes2[:, 3] - boxes2[:, 1])
    top_left = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    sides = bottom_right - top_left
    sides = torch.where(sides >= 0, sides, 0)  # as clamp, whose gradient at 0 torch 2.14 changed
    intersection = sides[..., 0] * sides[..., 1]
    return intersection / (area1[:, None] + area2 - intersection)


@given(lattice_boxes(1, 6, 16), lattice_boxes(1, 6, 16), st.integers(0, 1000))
def test_gradient_equals_autograd(boxes1, boxes2, seed):
    a, b = tensor_of_boxes(boxes1, torch.float64), tensor_of_boxes(boxes2, torch.float64)
    weight = torch.rand(len(a), len(b), generator=torch.Generator().manual_seed(seed)).double()
    # The formula is 0/0 for two boxes without area; pydet defines that as 0, with gradient 0.
    weight = weight * ~eager(a, b).isnan()
    grads = []
    for function in (ops.box_iou, eager):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        (function(x, y).nan_to_num() * weight).sum().backward()
        grads.append((x.grad.nan_to_num(), y.grad.nan_to_num()))
    if not eager(a, b).isnan().any():
        torch.testing.assert_close(grads[0], grads[1])
    assert all(grad.isfinite().all() for grad in grads[0])


def test_gradient_in_half(device):
    for dtype in (torch.float16, torch.bfloat16):
        a = random_boxes(6, device=device, dtype=dtype).requires_grad_()
        b = random_boxes(9, device=device, dtype=dtype, seed=1).requires_grad_()
        ops.box_iou(a, b).sum().backward()
        x, y = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
        ops.box_iou(x, y).sum().backward()
        torch.testing.assert_close(a.grad.double(), x.grad, atol=1e-3, rtol=2e-2)
        torch.testing.assert_close(b.grad.double(), y.grad, atol=1e-3, rtol=2e-2)


def test_second_derivative_is_refused(device):
    a = random_boxes(2, device=device).requires_grad_()
    (grad,) = torch.autograd.grad(ops.box_iou(a, a.detach()).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


# --- registration ------------------------------------------------------------------------------


def test_opcheck(device):
    a = random_boxes(4, device=device, dtype=torch.float64).requires_grad_()
    b = random_boxes(5, device=device, dtype=torch.float64, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.pydet.box_iou.default, (a, b))
    torch.library.opcheck(
        torch.ops.pydet.box_iou_backward.default,
        (torch.rand(4, 5, device=device, dtype=torch.float64), a.detach(), b.detach()),
    )


def test_compile_and_export(device):
    compiled = torch.compile(ops.box_iou, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 8, 1):
        a = random_boxes(count, device=device).requires_grad_()
        b = random_boxes(2 * count, device=device, seed=1)
        assert torch.equal(compiled(a, b), ops.box_iou(a, b))
        compiled(a, b).sum().backward()
        assert a.grad is not None

    class Module(torch.nn.Module):
        def forward(self, boxes1, boxes2):
            return ops.box_iou(boxes1, boxes2)

    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    program = torch.export.export(
        Module(),
        (a.detach().repeat(3, 1), b.repeat(3, 1)),
        dynamic_shapes=({0: rows}, {0: columns}),
    )
    x, y = random_boxes(11, device=device), random_boxes(6, device=device)
    assert torch.equal(program.module()(x, y), ops.box_iou(x, y))


def test_autocast(device):
    a = random_boxes(3, device=device, dtype=torch.bfloat16)
    b = random_boxes(4, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        iou = ops.box_iou(a, b)
    assert iou.dtype == torch.float32
    assert torch.equal(iou, ops.box_iou(a.float(), b))


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0, 0, 1, 1]], torch.zeros(1, 4)), TypeError, "boxes1 must be a tensor, got list"),
        (
            (torch.zeros(5, 3), torch.zeros(1, 4)),
            ValueError,
            r"boxes1 must have shape .*, got \[5, 3\]",
        ),
        ((torch.zeros(5, 4), torch.zeros(4)), ValueError, r"boxes2 must have shape .*, got \[4\]"),
        (
            (torch.zeros(5, 4), torch.zeros(1, 4).double()),
            TypeError,
            "boxes2 must have the dtype of boxes1",
        ),
        (
            (torch.zeros(2, 5, 4), torch.zeros(3, 5, 4)),
            ValueError,
            "boxes2 must have the leading dimensions",
        ),
        (
            (torch.zeros(5, 4), torch.zeros(1, 4, device="meta")),
            ValueError,
            "boxes2 must be on the device",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^box_iou: " + message):
        ops.box_iou(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3), torch.zeros(1, 4)),
        (torch.zeros(5, 4), torch.zeros(1, 4).double()),
        (torch.zeros(2, 5, 4), torch.zeros(3, 5, 4)),
        (torch.zeros(5, 4).int(), torch.zeros(5, 4).int()),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match="box_iou"):
        torch.ops.pydet.box_iou(*arguments)


# --- strides and dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(device, dtype):
    a, b = random_boxes(7, device=device, dtype=dtype), random_boxes(9, device=device, dtype=dtype)
    wanted = ops.box_iou(a, b)
    for name, x in layouts(a):
        for other_name, y in layouts(b):
            assert torch.equal(ops.box_iou(x, y), wanted), (name, other_name)
