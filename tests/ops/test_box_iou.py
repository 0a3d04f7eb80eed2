# SPDX-License-Identifier: Apache-2.0
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import needs_cuda
from tests.ops.cases import Random
from tests.ops.instruction_sets import assert_same_digest
from tests.reference import box_iou as reference
from tests.strategies import DTYPES, any_boxes, lattice_boxes, tensor_of_boxes, valid_boxes

# Rounding of a few float32 operations on coordinates that cancel.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-4, torch.float16: 2e-4, torch.bfloat16: 2e-4}
EPS = 1e-7
FAMILY = {
    "box_iou": reference.iou,
    "generalized_box_iou": reference.generalized_iou,
    "distance_box_iou": lambda a, b: reference.distance_iou(a, b, EPS),
    "complete_box_iou": lambda a, b: reference.complete_iou(a, b, EPS),
}
each_overlap = pytest.mark.parametrize("name", FAMILY)


def expected(name, boxes1, boxes2):
    values = reference.pairwise(FAMILY[name], boxes1.double().tolist(), boxes2.double().tolist())
    return torch.tensor(values, dtype=torch.float64).reshape(len(boxes1), len(boxes2))


def random_boxes(*shape, device="cpu", dtype=torch.float32, seed=0):
    return Random(seed).boxes(*shape, image=128.0).to(device=device, dtype=dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """A 2x2 and a 2x3 box that overlap in 1x1, in a 3x4 box: 1 / (4 + 6 - 1)."""
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device)
    b = torch.tensor([[1.0, 1.0, 3.0, 4.0]], device=device)
    assert ops.box_iou(a, b).item() == pytest.approx(1 / 9, rel=1e-7)
    assert ops.generalized_box_iou(a, b).item() == pytest.approx(1 / 9 - 3 / 12, rel=1e-6)
    distance = 1 / 9 - (1**2 + 1.5**2) / (3**2 + 4**2)
    assert ops.distance_box_iou(a, b).item() == pytest.approx(distance, rel=1e-6)
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2 / 3)) ** 2
    complete = distance - v * v / (1 - 1 / 9 + v)
    assert ops.complete_box_iou(a, b).item() == pytest.approx(complete, rel=1e-6)


@given(lattice_boxes(), lattice_boxes())
def test_is_exact_on_integers(boxes1, boxes2):
    """One rounding of the quotient for IoU, also of integers; three for the generalised IoU."""
    a, b = tensor_of_boxes(boxes1), tensor_of_boxes(boxes2)
    wanted = expected("box_iou", a, b)
    assert torch.equal(ops.box_iou(a, b), wanted.float())
    assert torch.equal(ops.box_iou(a.int(), b.int()), wanted.float())
    generalized = expected("generalized_box_iou", a, b)
    for x, y in ((a, b), (a.int(), b.int())):
        torch.testing.assert_close(
            ops.generalized_box_iou(x, y), generalized.float(), rtol=0, atol=2**-22
        )


@each_overlap
@given(valid_boxes(), valid_boxes(), st.sampled_from(DTYPES))
def test_ordinary_boxes(name, boxes1, boxes2, dtype):
    a, b = tensor_of_boxes(boxes1, dtype), tensor_of_boxes(boxes2, dtype)
    found = getattr(ops, name)(a, b)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.ge(0 if name == "box_iou" else -1.5).all()
    assert found.le(1 + TOLERANCE[dtype]).all()
    torch.testing.assert_close(found.double(), expected(name, a, b), rtol=0, atol=TOLERANCE[dtype])


@given(any_boxes(), any_boxes())
def test_any_coordinates(boxes1, boxes2):
    a, b = tensor_of_boxes(boxes1, torch.float64), tensor_of_boxes(boxes2, torch.float64)
    torch.testing.assert_close(ops.box_iou(a, b), expected("box_iou", a, b), equal_nan=True)


@each_overlap
@given(any_boxes(special=False), any_boxes(special=False))
def test_finite_boxes_give_finite_numbers(name, boxes1, boxes2):
    """Inverted and degenerate ones, too: values, gradients and second derivatives."""
    a, b = tensor_of_boxes(boxes1, torch.float64), tensor_of_boxes(boxes2, torch.float64)
    a, b = a.requires_grad_(), b.requires_grad_()
    found = getattr(ops, name)(a, b)
    torch.testing.assert_close(
        found.detach(), expected(name, a.detach(), b.detach()), rtol=1e-8, atol=1e-8
    )
    # Weights keep what is in the denominator of a thin box's gradient from overflowing.
    grads = torch.autograd.grad(found.sum(), (a, b), create_graph=True)
    assert all(grad.isfinite().all() for grad in grads)


def upright_boxes():
    """Boxes without inverted sides, many with areas and denominators near 0 or infinity."""
    numbers = [0.0, 1e-30, 1e-22, 3e-20, 1.0, 2.0, 1e18, 1e20, 1e30, math.inf]
    coordinate = st.sampled_from(numbers + [-x for x in numbers]) | st.floats(-500, 500, width=32)
    side = st.tuples(coordinate, coordinate).map(sorted)
    box = st.tuples(side, side).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
    return st.lists(box, min_size=1, max_size=20)


@each_overlap
@given(upright_boxes(), upright_boxes(), st.sampled_from([torch.float32, torch.float64]))
def test_an_inverted_box_changes_no_other_pair(name, boxes1, boxes2, dtype):
    """Among boxes that are all upright the kernels leave out the care for denominators of 0."""
    function = getattr(ops, name)
    a, b = tensor_of_boxes(boxes1, dtype), tensor_of_boxes(boxes2, dtype)
    inverted = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=dtype)
    for among_first, among_second in ((inverted, b[:0]), (a[:0], inverted)):
        found = function(torch.cat([a, among_first]), torch.cat([b, among_second]))
        torch.testing.assert_close(
            function(a, b), found[: len(a), : len(b)], rtol=0, atol=0, equal_nan=True
        )


DIGEST = """
import hashlib, torch
from pydet import ops
from tests.ops.test_box_iou import FAMILY, random_boxes
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    a, b = random_boxes(37, dtype=dtype), random_boxes(2077, dtype=dtype, seed=1)
    b[::500, 2:] = b[::500, :2]
    b[1500:, :2] += 40.0  # some are inverted
    a, b = a.requires_grad_(), b.requires_grad_()
    for name in FAMILY:
        overlaps = getattr(ops, name)(a, b)
        grads = torch.autograd.grad(overlaps, (a, b), overlaps.detach())
        for tensor in (overlaps.detach(), *grads):
            digest.update(tensor.numpy().tobytes())
print(ops._library.extension.cpu_isa(), digest.hexdigest())
"""


@pytest.mark.large
def test_instruction_sets_give_the_same_bits():
    assert_same_digest(DIGEST)


@each_overlap
def test_degenerate(name, device):
    """Points, lines and a NaN among boxes."""
    function = getattr(ops, name)
    rows = [[5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 0, 10], [0, 0, 10, 0], [3, 3, 3, 3]]
    boxes = torch.tensor(rows, dtype=torch.float32, device=device, requires_grad=True)
    found = function(boxes, boxes)
    torch.testing.assert_close(
        found.double().cpu(), expected(name, boxes.cpu(), boxes.cpu()), rtol=0, atol=1e-6
    )
    (grad,) = torch.autograd.grad(found.sum(), boxes, create_graph=True)
    assert grad.isfinite().all()
    grad.sum().backward()
    assert boxes.grad.isfinite().all()
    with_nan = torch.cat([boxes.detach(), torch.tensor([[math.nan, 0, 10, 10]], device=device)])
    found = function(with_nan, with_nan)
    assert found[5].isnan().all() and found[:, 5].isnan().all()
    assert found[:5, :5].isfinite().all()


def test_points():
    point, same, other = (torch.tensor([[x, x, x, x]]) for x in (1.0, 1.0, 2.0))
    assert ops.box_iou(point, same).item() == 0
    assert ops.generalized_box_iou(point, same).item() == 0
    assert ops.generalized_box_iou(point, other).item() == -1
    assert ops.distance_box_iou(point, same, 0.0).item() == 0
    assert ops.complete_box_iou(point, same, 0.0).item() == 0


def test_bfloat16_subtracts_in_float32(device):
    """Widths that are subtracted in bfloat16 itself give an IoU above 1."""
    a = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], device=device, dtype=torch.bfloat16)
    b = torch.tensor([[1.0, 1.0, 1001.0, 1001.0]], device=device, dtype=torch.bfloat16)
    assert ops.box_iou(a, b).item() <= 1


@each_overlap
@pytest.mark.parametrize(
    "shape", [(0, 5), (5, 0), (0, 0), (1, 1), (3, 1027), (1027, 3), (70, 2500)]
)
def test_sizes(name, device, shape):
    a = random_boxes(shape[0], device=device).requires_grad_()
    b = random_boxes(shape[1], device=device, seed=1).requires_grad_()
    found = getattr(ops, name)(a, b)
    torch.testing.assert_close(
        found.cpu().double(), expected(name, a.cpu(), b.cpu()), atol=2e-6, rtol=0
    )
    found.sum().backward()
    x, y = a.detach().cpu().double().requires_grad_(), b.detach().cpu().double().requires_grad_()
    EAGER[name](x, y).sum().backward()
    scale = max([1e-3, *(grad.abs().max().item() for grad in (x.grad, y.grad) if grad.numel())])
    torch.testing.assert_close(a.grad.cpu().double(), x.grad, atol=2e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(b.grad.cpu().double(), y.grad, atol=2e-5 * scale, rtol=1e-4)


@each_overlap
def test_leading_dimensions(name, device):
    function = getattr(ops, name)
    a = random_boxes(2, 3, 5, device=device).requires_grad_()
    b = random_boxes(2, 3, 7, device=device, seed=1)
    found = function(a, b)
    assert found.shape == (2, 3, 5, 7)
    for i in range(2):
        for j in range(3):
            assert torch.equal(found[i, j], function(a[i, j], b[i, j]))
    # They broadcast, and the gradient of what was repeated is a sum.
    once = random_boxes(7, device=device, dtype=torch.float64).requires_grad_()
    many = a.detach().double()
    found = function(many, once)
    assert found.shape == (2, 3, 5, 7)
    found.sum().backward()
    again = once.detach().expand(2, 3, 7, 4).clone().requires_grad_()
    function(many, again).sum().backward()
    torch.testing.assert_close(once.grad, again.grad.sum((0, 1)))


@given(valid_boxes(), valid_boxes(), st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_formats(boxes1, boxes2, fmt):
    a, b = tensor_of_boxes(boxes1, torch.float64), tensor_of_boxes(boxes2, torch.float64)
    written = [ops.box_convert(boxes, "xyxy", fmt).requires_grad_() for boxes in (a, b)]
    found = ops.box_iou(*written, fmt=fmt)
    torch.testing.assert_close(found.detach(), ops.box_iou(a, b), rtol=1e-9, atol=1e-9)
    if found.numel():
        grads = torch.autograd.grad(found.sum(), written)
        x, y = a.requires_grad_(), b.requires_grad_()
        corners = [ops.box_convert(boxes, "xyxy", fmt) for boxes in (x, y)]
        wanted = torch.autograd.grad(
            ops.box_iou(*[ops.box_convert(c, fmt, "xyxy") for c in corners]).sum(), corners
        )
        torch.testing.assert_close(grads, wanted, rtol=1e-6, atol=1e-6)


def test_formats_of_integers_and_half():
    whole = torch.tensor([[1, 1, 3, 5], [2, 2, 3, 3]])
    assert torch.equal(
        ops.box_iou(whole, whole, "cxcywh"), ops.box_iou(whole.float(), whole.float(), "cxcywh")
    )
    # Corners that bfloat16 would round: 1000 + 1 is 1000 there.
    thin = torch.tensor([[1000.0, 0, 1, 1]], dtype=torch.bfloat16)
    assert ops.box_iou(thin, thin, "xywh").item() == 1


@needs_cuda
@each_overlap
def test_cuda_equals_cpu(name):
    """All that is decided, to the bit; the last bit of float64's atan apart."""
    function = getattr(ops, name)
    a, b = random_boxes(1000), random_boxes(5003, seed=1)
    for dtype in DTYPES:
        x, y = a.to(dtype), b.to(dtype)
        found, wanted = function(x.cuda(), y.cuda()).cpu(), function(x, y)
        if name == "complete_box_iou":
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15 if x is a else 3e-7)
        else:
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("kept", ["first", "second"])
def test_no_temporaries(kept):
    """The peak is the result: the gradient needs nothing of the size of the matrix either."""
    saved = []
    a, b = random_boxes(200).requires_grad_(), random_boxes(300, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = ops.complete_box_iou(a, b)
        if kept == "second":
            torch.autograd.grad(found.sum(), (a, b), create_graph=True)
    largest = max(t.numel() for t in saved)
    assert largest == (4 * 300 if kept == "first" else 200 * 300)  # grad_iou itself


PEAK = """
import sys, torch
from pydet import ops

def kib(name):
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

boxes1, boxes2 = (torch.rand(count, 4) for count in (500, 120_000))
functions = [getattr(ops, name) for name in sys.argv[1:]]
for function in functions:
    function(boxes1[:1], boxes2[:1])
before = kib("VmRSS")
for function in functions:
    function(boxes1, boxes2)  # one result at a time
print((kib("VmHWM") - before) / 1024)
"""


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_peak_memory():
    """500 x 120,000 pairs: the result's own 229 MiB and at most 16 for all else."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, *FAMILY]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    assert 220 < float(answer.stdout) < 229 + 16


# --- gradient ----------------------------------------------------------------------------------


def eager_sides(boxes1, boxes2):
    top_left = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    outer_top_left = torch.min(boxes1[:, None, :2], boxes2[:, :2])
    outer_bottom_right = torch.max(boxes1[:, None, 2:], boxes2[:, 2:])
    return (bottom_right - top_left).clamp(min=0), (outer_bottom_right - outer_top_left).clamp(
        min=0
    )


def eager_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def eager_iou(boxes1, boxes2):
    """The formula in torch, whose autograd the kernel's gradient must equal, ties included."""
    sides, _ = eager_sides(boxes1, boxes2)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (eager_area(boxes1)[:, None] + eager_area(boxes2) - shared)


def eager_generalized(boxes1, boxes2):
    sides, outer = eager_sides(boxes1, boxes2)
    union = eager_area(boxes1)[:, None] + eager_area(boxes2) - sides[..., 0] * sides[..., 1]
    around = outer[..., 0] * outer[..., 1]
    return eager_iou(boxes1, boxes2) - (around - union) / around


def eager_distance(boxes1, boxes2):
    _, outer = eager_sides(boxes1, boxes2)
    centres1, centres2 = ((boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (boxes1, boxes2))
    distance = (centres1[:, None] - centres2).square().sum(-1)
    return eager_iou(boxes1, boxes2) - distance / (outer.square().sum(-1) + EPS)


def eager_complete(boxes1, boxes2):
    angles = [
        ((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])).atan()
        for boxes in (boxes1, boxes2)
    ]
    v = 4 / math.pi**2 * (angles[0][:, None] - angles[1]).square()
    with torch.no_grad():
        alpha = v / (1 - eager_iou(boxes1, boxes2) + v + EPS)
    return eager_distance(boxes1, boxes2) - alpha * v


EAGER = dict(
    zip(FAMILY, (eager_iou, eager_generalized, eager_distance, eager_complete), strict=True)
)


@each_overlap
@given(
    st.sampled_from([4, 16]).flatmap(
        lambda size: st.tuples(
            lattice_boxes(1, 6, size, degenerate=False), lattice_boxes(1, 6, size, degenerate=False)
        )
    ),
    st.integers(0, 1000),
)
def test_derivatives_equal_autograd(name, boxes, seed):
    """Of boxes with area, on a lattice: many edges tie. First and second derivatives."""
    random = Random(seed)
    a, b = (tensor_of_boxes(each, torch.float64) for each in boxes)
    weight = random.normal(len(a), len(b)).requires_grad_()
    v = random.normal(len(a), 4), random.normal(len(b), 4)
    found = []
    for function in (getattr(ops, name), EAGER[name]):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        first = torch.autograd.grad((function(x, y) * weight).sum(), (x, y), create_graph=True)
        total = (first[0] * v[0]).sum() + (first[1] * v[1]).sum()
        second = torch.autograd.grad(total, (x, y, weight))
        found.append([grad.detach() for grad in (*first, *second)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_a_pair_without_a_union_has_no_gradient():
    point = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    ops.box_iou(point, point.detach()).sum().backward()
    assert torch.equal(point.grad, torch.zeros(1, 4))


@each_overlap
def test_gradient_in_half(name, device):
    for dtype in (torch.float16, torch.bfloat16):
        a = random_boxes(6, device=device, dtype=dtype).requires_grad_()
        b = random_boxes(9, device=device, dtype=dtype, seed=1).requires_grad_()
        getattr(ops, name)(a, b).sum().backward()
        assert a.grad.dtype == dtype
        x, y = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
        getattr(ops, name)(x, y).sum().backward()
        torch.testing.assert_close(a.grad.double(), x.grad, atol=1e-3, rtol=2e-2)
        torch.testing.assert_close(b.grad.double(), y.grad, atol=1e-3, rtol=2e-2)


# --- errors ------------------------------------------------------------------------------------


@each_overlap
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
            "boxes2 must have leading dimensions",
        ),
        (
            (torch.zeros(5, 4), torch.zeros(1, 4, device="meta")),
            ValueError,
            "boxes2 must be on the device",
        ),
    ],
)
def test_errors(name, arguments, error, message):
    with pytest.raises(error, match=f"^{name}: " + message):
        getattr(ops, name)(*arguments)


def test_errors_of_other_arguments():
    boxes = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"^box_iou: fmt must be one of .*, got 'xxyy'"):
        ops.box_iou(boxes, boxes, fmt="xxyy")
    with pytest.raises(TypeError, match=r"^box_iou: boxes2 must have the dtype of boxes1"):
        ops.box_iou(boxes, boxes.double(), fmt="xywh")
    for function in (ops.distance_box_iou, ops.complete_box_iou):
        with pytest.raises(ValueError, match="eps must be finite and at least 0, got -1"):
            function(boxes, boxes, -1)
        with pytest.raises(TypeError, match="eps must be a number, got str"):
            function(boxes, boxes, eps="1")


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
    error = (ValueError, TypeError, RuntimeError)
    with pytest.raises(error, match="box_iou"):
        torch.ops.pydet.box_iou(*arguments, "iou", 0.0)
    with pytest.raises(error, match="box_iou_backward"):
        torch.ops.pydet.box_iou_backward(torch.zeros(5, 1), *arguments, "iou", 0.0)


def test_the_derivatives_protect_themselves():
    a, b = torch.zeros(5, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="one element a pair"):
        torch.ops.pydet.box_iou_backward(torch.zeros(5, 2), a, b, "iou", 0.0)
    with pytest.raises(TypeError, match="dtype of the overlaps"):
        torch.ops.pydet.box_iou_backward(torch.zeros(5, 3).double(), a, b, "iou", 0.0)
    with pytest.raises(ValueError, match="shapes of boxes1 and boxes2"):
        torch.ops.pydet.box_iou_double_backward(b, a, torch.zeros(5, 3), a, b, "iou", 0.0)
    with pytest.raises(ValueError, match="overlap must be"):
        torch.ops.pydet.box_iou(a, b, "ioux", 0.0)
