# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.instruction_sets import assert_same_digest
from tests.reference.box_coding import decode_box, encode_box
from tests.strategies import DTYPES, any_boxes, tensor_of_boxes, valid_boxes

# Rounding of a result of ordinary size to the dtype, and of the float32 arithmetic before it.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
}
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    low, sides = corners[..., :2] * 60, corners[..., 2:] * 40 + 2
    return torch.cat([low, low + sides], dim=-1).to(device=device, dtype=dtype)


def random_deltas(*shape, seed=2, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    return deltas.to(device=device, dtype=dtype)


def pairs(**options):
    """Two lists of as many boxes."""
    return valid_boxes(1, 8, **options).flatmap(
        lambda boxes: st.tuples(st.just(boxes), valid_boxes(len(boxes), len(boxes), **options))
    )


def weights():
    return st.sampled_from([(1.0, 1.0, 1.0, 1.0), WEIGHTS, (10.0, 5.0, 2.0, 1.0)])


def table(function, *lists):
    return torch.tensor([function(*row) for row in zip(*lists, strict=True)], dtype=torch.float64)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """Twice as wide as its anchor, and a quarter of the anchor's width to the right."""
    anchor = torch.tensor([10.0, 20, 14, 28], device=device)
    box = torch.tensor([9.0, 20, 17, 28], device=device)
    deltas = ops.encode_boxes(box, anchor)
    torch.testing.assert_close(deltas.cpu(), torch.tensor([0.25, 0, math.log(2), 0]))
    torch.testing.assert_close(ops.decode_boxes(deltas[None], anchor[None])[0], box)


def test_numbers_of_the_documents():
    """Targets of two proposals in the Fast R-CNN documents.

    The proposal too far left has (0.25, 0, 0, 0). The proposal too wide has (0, 0, -0.125, 0) in a
    form that is linear in the width, (w_box - w) / w; the paper's logarithm makes ln(7 / 8).
    """
    box = torch.tensor([[10.0, 0, 14, 4]])
    too_far_left = torch.tensor([[9.0, 0, 13, 4]])
    assert ops.encode_boxes(box, too_far_left).tolist() == [[0.25, 0, 0, 0]]
    box, too_wide = torch.tensor([[0.5, 0, 7.5, 4]]), torch.tensor([[0.0, 0, 8, 4]])
    assert (7 - 8) / 8 == -0.125
    wanted = torch.tensor([[0, 0, math.log1p(-0.125), 0]])
    torch.testing.assert_close(ops.encode_boxes(box, too_wide), wanted)


@given(pairs(), weights(), st.sampled_from(DTYPES))
def test_encode(boxes_and_anchors, factors, dtype):
    boxes, anchors = (tensor_of_boxes(boxes, dtype) for boxes in boxes_and_anchors)
    wanted = table(
        lambda box, anchor: encode_box(box, anchor, factors),
        boxes.double().tolist(),
        anchors.double().tolist(),
    )
    deltas = ops.encode_boxes(boxes, anchors, factors)
    assert deltas.dtype == dtype
    # Centres of a few hundred cancel; an anchor's width of 1/8 makes that 4000 times as large.
    limits = TOLERANCE[dtype] if dtype != torch.float32 else {"rtol": 1e-4, "atol": 2e-2}
    torch.testing.assert_close(deltas.double(), wanted, **limits)


@given(
    valid_boxes(1, 8),
    st.integers(0, 1000),
    weights(),
    st.sampled_from([math.log(1000 / 16), math.inf, 0.5]),
    st.sampled_from([None, (300, 200)]),
    st.sampled_from(DTYPES),
)
def test_decode(anchors, seed, factors, scale_clamp, image_size, dtype):
    anchors = tensor_of_boxes(anchors, dtype)
    deltas = random_deltas(len(anchors), seed=seed, dtype=dtype)
    wanted = table(
        lambda delta, anchor: decode_box(delta, anchor, factors, scale_clamp, image_size),
        deltas.double().tolist(),
        anchors.double().tolist(),
    )
    boxes = ops.decode_boxes(
        deltas, anchors, factors, scale_clamp=scale_clamp, image_sizes=image_size
    )
    assert boxes.dtype == dtype
    limits = TOLERANCE[dtype] if dtype != torch.float32 else {"rtol": 1e-5, "atol": 5e-3}
    torch.testing.assert_close(boxes.double(), wanted, **limits)


@given(pairs(), weights())
def test_decode_inverts_encode(boxes_and_anchors, factors):
    boxes, anchors = (tensor_of_boxes(boxes, torch.float64) for boxes in boxes_and_anchors)
    deltas = ops.encode_boxes(boxes, anchors, factors)
    again = ops.decode_boxes(deltas, anchors, factors, scale_clamp=math.inf)
    torch.testing.assert_close(again, boxes, rtol=1e-9, atol=1e-9)


@given(any_boxes(), st.sampled_from(DTYPES))
def test_encode_is_finite(boxes, dtype):
    """Whatever the boxes: no infinity and no NaN, neither in the deltas nor in the gradients."""
    boxes = tensor_of_boxes(boxes, dtype)
    for other in (boxes.flip(0), random_boxes(len(boxes), dtype=dtype)):
        for pair in ((boxes, other), (other, boxes)):
            a, b = (side.clone().requires_grad_() for side in pair)
            deltas = ops.encode_boxes(a, b)
            # Finite in the arithmetic; 16 bits hold no more than 65504.
            if dtype in (torch.float32, torch.float64):
                assert deltas.isfinite().all()
            assert not deltas.isnan().any()
            deltas.sum().backward()
            assert not a.grad.isnan().any() and not b.grad.isnan().any()


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5, 5, 9],
        [5, 5, 9, 5],
        [9, 5, 5, 9],
        [math.nan, 5, 9, 9],
        [5, 5, math.inf, 9],
        [-math.inf, 5, 9, math.nan],
    ],
)
def test_pairs_without_deltas(device, box):
    broken = torch.tensor([box], device=device, dtype=torch.float32)
    proper = torch.tensor([[1.0, 1, 3, 3]], device=device)
    for pair in ((broken, proper), (proper, broken), (broken, broken)):
        a, b = (side.clone().requires_grad_() for side in pair)
        deltas = ops.encode_boxes(a, b)
        deltas.sum().backward()
        assert deltas.tolist() == a.grad.tolist() == b.grad.tolist() == [[0, 0, 0, 0]]


def test_decode_of_the_extraordinary(device):
    """A NaN stays on its axis, infinities do not make NaN, a flat anchor gives a flat box."""
    anchors = torch.tensor([[0.0, 0, 4, 4]], device=device)

    def decode(*deltas, **options):
        deltas = torch.tensor([deltas], device=device)
        return ops.decode_boxes(deltas, anchors, **options)[0].tolist()

    assert str(decode(math.nan, 0.0, 0.0, 0.0)) == "[nan, 0.0, nan, 4.0]"
    assert str(decode(0.0, 0.0, math.nan, 0.0)) == "[nan, 0.0, nan, 4.0]"
    assert decode(0.0, 0.0, -math.inf, 0.0) == [2, 0, 2, 4]
    assert decode(math.inf, 0.0, 0.0, 0.0, image_sizes=(9, 9)) == [9, 0, 9, 4]
    wide = decode(0.0, 0.0, math.inf, 0.0)
    assert wide[2] - wide[0] == pytest.approx(4 * 1000 / 16)
    flat = torch.tensor([[3.0, 3, 3, 5]], device=device)
    deltas = torch.ones(1, 4, device=device)
    box = ops.decode_boxes(deltas, flat)[0].tolist()
    assert box[0] == box[2] == 3


def test_leading_dimensions(device):
    """Anchors [A, 4] serve all images; other shapes broadcast as in torch."""
    boxes, anchors = random_boxes(3, 2, 7, device=device), random_boxes(7, seed=1, device=device)
    deltas = ops.encode_boxes(boxes, anchors, WEIGHTS)
    decoded = ops.decode_boxes(deltas, anchors, WEIGHTS)
    assert deltas.shape == decoded.shape == (3, 2, 7, 4)
    for i in range(3):
        for j in range(2):
            assert torch.equal(deltas[i, j], ops.encode_boxes(boxes[i, j], anchors, WEIGHTS))
            assert torch.equal(decoded[i, j], ops.decode_boxes(deltas[i, j], anchors, WEIGHTS))
    full = anchors.expand(3, 2, 7, 4)
    assert torch.equal(ops.encode_boxes(boxes, full, WEIGHTS), deltas)
    assert torch.equal(ops.decode_boxes(deltas, full, WEIGHTS), decoded)
    one = ops.encode_boxes(anchors[0], anchors)  # one box against all anchors
    assert torch.equal(one, ops.encode_boxes(anchors[:1].expand(7, 4), anchors))
    single = ops.encode_boxes(anchors[0], anchors[1])
    assert torch.equal(single, ops.encode_boxes(anchors[:1], anchors[1:2])[0])
    rows = ops.encode_boxes(boxes, boxes[:, :1])
    assert torch.equal(rows, ops.encode_boxes(boxes, boxes[:, :1].expand(3, 2, 7, 4)))


def test_image_sizes(device):
    deltas, anchors = random_deltas(2, 6, device=device), random_boxes(6, device=device)
    sizes = [(40, 60), (70, 30)]
    free = ops.decode_boxes(deltas, anchors)
    boxes = ops.decode_boxes(deltas, anchors, image_sizes=sizes)
    for b, (height, width) in enumerate(sizes):
        limits = torch.tensor([width, height, width, height], device=device).float()
        wanted = torch.minimum(free[b].clamp(min=0), limits)
        assert torch.equal(boxes[b], wanted)
        assert torch.equal(
            ops.decode_boxes(deltas[b], anchors, image_sizes=(height, width)), wanted
        )
    for dtype in (torch.int64, torch.float32, torch.float64, torch.float16):
        tensor = torch.tensor(sizes, device=device, dtype=dtype)
        assert torch.equal(ops.decode_boxes(deltas, anchors, image_sizes=tensor), boxes)
    per_image = anchors.expand(2, 6, 4)
    assert torch.equal(ops.decode_boxes(deltas, per_image, image_sizes=sizes), boxes)


DIGEST = """
import hashlib, torch
from pydet import ops
from tests.ops.test_box_coding import random_boxes, random_deltas
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    anchors = random_boxes(700, dtype=dtype).requires_grad_()
    boxes = random_boxes(3, 700, seed=1, dtype=dtype).requires_grad_()
    deltas = random_deltas(3, 700, dtype=dtype).requires_grad_()
    sizes = torch.tensor([[80, 70], [50, 90], [40, 40]])
    for result in (ops.encode_boxes(boxes, anchors), ops.decode_boxes(deltas, anchors),
                   ops.decode_boxes(deltas, anchors, image_sizes=sizes)):
        inputs = (boxes, deltas, anchors)
        grads = torch.autograd.grad(result, inputs, result.detach(), allow_unused=True)
        for tensor in (result.detach(), *(g for g in grads if g is not None)):
            digest.update(tensor.double().numpy().tobytes())
print(ops._library.extension.cpu_isa(), digest.hexdigest())
"""


@pytest.mark.large
def test_instruction_sets_give_the_same_bits():
    assert_same_digest(DIGEST)


@pytest.mark.parametrize("shared", [True, False])
def test_many_anchors_of_several_images(device, shared):
    """More anchors than a thread takes at a time, images that begin in between."""
    images, count = 3, 900
    shape = (count,) if shared else (images, count)
    sizes = torch.tensor([[80, 70], [50, 90], [40, 40]], device=device)
    results = []
    for dtype in (torch.float32, torch.float64):
        anchors = random_boxes(*shape, dtype=dtype, device=device).requires_grad_()
        boxes = random_boxes(images, count, seed=1, dtype=dtype, device=device).requires_grad_()
        deltas = random_deltas(images, count, dtype=dtype, device=device).mul_(0.3).requires_grad_()
        encoded = ops.encode_boxes(boxes, anchors)
        decoded = ops.decode_boxes(deltas, anchors, image_sizes=sizes)
        grad = random_deltas(images, count, seed=3, dtype=dtype, device=device)
        grads = torch.autograd.grad([encoded, decoded], [boxes, deltas, anchors], [grad, grad])
        results.append([encoded, decoded, *grads])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 257), (1, 5000)])
def test_sizes(device, shape):
    boxes = random_boxes(*shape, device=device).requires_grad_()
    anchors = random_boxes(shape[-1], seed=1, device=device).requires_grad_()
    deltas = ops.encode_boxes(boxes, anchors)
    again = ops.decode_boxes(deltas, anchors)
    torch.testing.assert_close(again, boxes, rtol=1e-4, atol=1e-3)
    again.sum().backward()
    assert boxes.grad.shape == boxes.shape and anchors.grad.shape == anchors.shape


# --- against torchvision -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_equals_torchvision(dtype):
    """torchvision's BoxCoder, values and gradients, on boxes that have a size."""
    utils = pytest.importorskip("torchvision.models.detection._utils", exc_type=ImportError)
    coder = utils.BoxCoder(WEIGHTS)
    for seed in range(10):
        boxes, anchors = (random_boxes(500, seed=2 * seed + i, dtype=dtype) for i in (0, 1))
        deltas = random_deltas(500, seed=seed, dtype=dtype) * 4
        deltas[::7] *= 20  # some beyond the clamp
        grads = []
        for ours in (True, False):
            b, a, d = (x.clone().requires_grad_() for x in (boxes, anchors, deltas))
            if ours:
                encoded = ops.encode_boxes(b, a, WEIGHTS)
                decoded = ops.decode_boxes(d, a, WEIGHTS)
            else:
                encoded = coder.encode_single(b, a)
                decoded = coder.decode_single(d, a)
            total = encoded.sin().sum() + (decoded / 100).sin().sum()
            grads.append([encoded, decoded, *torch.autograd.grad(total, (b, a, d))])
        for own, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(own, theirs, rtol=2e-5, atol=2e-5)


# --- gradient ----------------------------------------------------------------------------------


def test_gradcheck(device):
    options = {"dtype": torch.float64, "device": device}
    boxes = random_boxes(3, 4, **options).requires_grad_()
    for anchors in (random_boxes(4, seed=1, **options), random_boxes(3, 4, seed=1, **options)):
        anchors.requires_grad_()
        deltas = random_deltas(3, 4, **options).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda b, a: ops.encode_boxes(b, a, WEIGHTS), (boxes, anchors)
        )
        for image_sizes in (None, (50, 40), [(50, 40), (30, 60), (100, 100)]):
            assert torch.autograd.gradcheck(
                lambda d, a, sizes=image_sizes: ops.decode_boxes(
                    d, a, (2.0, 2.0, 1.0, 1.0), scale_clamp=0.7, image_sizes=sizes
                ),
                (deltas, anchors),
            )


def eager_decode(deltas, anchors, image_size):
    """The formula in torch, whose autograd decode_boxes' gradient must equal."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * size
    moved = deltas[..., :2] * size + centre
    half = 0.5 * deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp() * size
    height, width = image_size
    limits = torch.tensor([width, height, width, height], dtype=deltas.dtype)
    boxes = torch.cat([moved - half, moved + half], dim=-1)
    return torch.minimum(boxes.clamp(min=0), limits)


@given(valid_boxes(1, 8), st.integers(0, 1000))
def test_gradient_equals_autograd(anchors, seed):
    anchors = tensor_of_boxes(anchors, torch.float64)
    deltas = random_deltas(len(anchors), seed=seed, dtype=torch.float64) * 3
    grads = []
    for function in (
        lambda d, a: ops.decode_boxes(d, a, image_sizes=(300, 200)),
        lambda d, a: eager_decode(d, a, (300, 200)),
    ):
        d, a = deltas.clone().requires_grad_(), anchors.clone().requires_grad_()
        grads.append(torch.autograd.grad(function(d, a).square().sum(), (d, a)))
    for own, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-6)


def test_gradient_in_half(device):
    for dtype in (torch.float16, torch.bfloat16):
        boxes = random_boxes(2, 5, dtype=dtype, device=device).requires_grad_()
        anchors = random_boxes(5, seed=1, dtype=dtype, device=device).requires_grad_()
        ops.encode_boxes(boxes, anchors).sum().backward()
        b, a = (x.detach().double().requires_grad_() for x in (boxes, anchors))
        ops.encode_boxes(b, a).sum().backward()
        torch.testing.assert_close(boxes.grad.double(), b.grad, atol=1e-3, rtol=2e-2)
        torch.testing.assert_close(anchors.grad.double(), a.grad, atol=1e-3, rtol=2e-2)


def eager_encode(boxes, anchors):
    """The formula in torch, whose autograd encode_boxes' gradient must equal."""
    sizes = [box[..., 2:] - box[..., :2] for box in (boxes, anchors)]
    centres = [box[..., :2] + 0.5 * size for box, size in zip((boxes, anchors), sizes, strict=True)]
    return torch.cat([(centres[0] - centres[1]) / sizes[1], (sizes[0] / sizes[1]).log()], dim=-1)


@given(valid_boxes(1, 8), st.integers(0, 1000))
def test_second_derivatives_equal_autograd(anchors, seed):
    """Of two rows that share their anchors; corners beyond the image and clamped sizes."""
    anchors = tensor_of_boxes(anchors, torch.float64)
    count = len(anchors)
    deltas = random_deltas(2, count, seed=seed, dtype=torch.float64) * 3
    boxes = random_boxes(2, count, seed=seed, dtype=torch.float64)
    for inputs, functions in (
        (boxes, (ops.encode_boxes, eager_encode)),
        (
            deltas,
            (
                lambda d, a: ops.decode_boxes(d, a, image_sizes=(300, 200)),
                lambda d, a: eager_decode(d, a, (300, 200)),
            ),
        ),
    ):
        found = []
        for function in functions:
            x, a = inputs.clone().requires_grad_(), anchors.clone().requires_grad_()
            weight = random_deltas(2, count, seed=seed + 1, dtype=torch.float64).requires_grad_()
            first = torch.autograd.grad((function(x, a) * weight).sum(), (x, a), create_graph=True)
            total = first[0].sin().sum() + first[1].sin().sum()
            found.append(torch.autograd.grad(total, (x, a, weight)))
        for own, wanted in zip(*found, strict=True):
            scale = max(1.0, wanted.abs().max().item())
            torch.testing.assert_close(own, wanted, rtol=1e-8, atol=1e-9 * scale)


def test_second_derivatives_of_images(device):
    options = {"dtype": torch.float64, "device": device}
    deltas = random_deltas(3, 4, **options).requires_grad_()
    anchors = random_boxes(4, seed=1, **options).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda d, a: ops.decode_boxes(
            d, a, (2.0, 2.0, 1.0, 1.0), image_sizes=[(50, 40), (30, 60), (100, 100)]
        ),
        (deltas, anchors),
    )


def test_a_pair_without_deltas_has_no_second_derivative(device):
    boxes = torch.tensor([[3.0, 3, 3, 3], [0, 0, 4, 4]], device=device, requires_grad=True)
    anchors = torch.tensor([[0.0, 0, 4, 4], [1, 1, 9, 5]], device=device, requires_grad=True)
    grads = torch.autograd.grad(
        ops.encode_boxes(boxes, anchors).square().sum(), (boxes, anchors), create_graph=True
    )
    second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), (boxes, anchors))
    for grad in second:
        assert grad.isfinite().all() and grad[0].eq(0).all() and grad[1].ne(0).any()


def test_the_second_derivatives_protect_themselves():
    boxes, anchors = torch.zeros(2, 3, 4), torch.zeros(3, 4)
    weights = [1.0] * 4
    with pytest.raises(ValueError, match="v, v_anchors and the gradient must have the shapes"):
        torch.ops.pydet.encode_boxes_double_backward(
            boxes[:1], anchors, boxes, boxes, anchors, weights
        )
    with pytest.raises(TypeError, match="v_anchors must have the dtype"):
        torch.ops.pydet.decode_boxes_double_backward(
            boxes, anchors.double(), boxes, boxes, anchors, weights, 4.0, None, None
        )


# --- registration ------------------------------------------------------------------------------


def test_an_image_size_that_is_traced(device):
    """A size that depends on a tensor's shape is a symbol where shapes are dynamic."""

    def both(boxes, anchors):
        deltas = ops.encode_boxes(boxes, anchors, WEIGHTS)
        size = (10 * boxes.shape[0], 40)
        return deltas, ops.decode_boxes(deltas, anchors, WEIGHTS, image_sizes=size)

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 8, 5):
        boxes = random_boxes(count, 2 * count, device=device)
        anchors = random_boxes(2 * count, device=device, seed=1)
        for got, wanted in zip(compiled(boxes, anchors), both(boxes, anchors), strict=True):
            assert torch.equal(got, wanted)


def test_autocast(device):
    deltas = random_deltas(3, device=device, dtype=torch.bfloat16)
    anchors = random_boxes(3, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        boxes = ops.decode_boxes(deltas, anchors, image_sizes=(50, 50))
        encoded = ops.encode_boxes(anchors.bfloat16(), anchors)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, ops.decode_boxes(deltas.float(), anchors, image_sizes=(50, 50)))


# --- errors ------------------------------------------------------------------------------------

BOXES = torch.zeros(3, 4)


@pytest.mark.parametrize("function", [ops.encode_boxes, ops.decode_boxes])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0, 0, 1, 1]], BOXES), TypeError, "(boxes|deltas) must be a tensor, got list"),
        ((BOXES, "anchors"), TypeError, "anchors must be a tensor, got str"),
        ((BOXES.int(), BOXES), TypeError, "(boxes|deltas) must have a dtype of float32, .*int32"),
        ((BOXES, BOXES.double()), TypeError, "anchors must have the dtype of (boxes|deltas)"),
        (
            (torch.zeros(3, 5), BOXES),
            ValueError,
            r"(boxes|deltas) must have shape \[..., 4\], got \[3, 5\]",
        ),
        ((BOXES, torch.zeros(4, 4)), ValueError, r"anchors must have .*, got \[4, 4\]"),
        ((BOXES, BOXES.to("meta")), ValueError, "anchors must be on the device of"),
        (
            (BOXES, BOXES, (1, 1, 1)),
            ValueError,
            r"weights must be four .*, got \(1, 1, 1\)",
        ),
        ((BOXES, BOXES, (1, 0, 1, 1)), ValueError, "weights must be positive and finite, got 0"),
        ((BOXES, BOXES, (1, "1", 1, 1)), TypeError, "weights must be a number, got str"),
    ],
)
def test_errors(function, arguments, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale_clamp": math.nan}, ValueError, "scale_clamp must be a number, got nan"),
        ({"scale_clamp": None}, TypeError, "scale_clamp must be a number, got NoneType"),
        ({"image_sizes": 5}, TypeError, r"image_sizes must be \(height, width\) or"),
        ({"image_sizes": (5.5, 5)}, TypeError, "image_sizes must be whole numbers, got float"),
        (
            {"image_sizes": [(5, 5), (5,)]},
            ValueError,
            r"image_sizes must be \(height, width\) or one such pair an image, got \[\(5, 5\),",
        ),
        ({"image_sizes": []}, ValueError, r"image_sizes must have shape \[B, 2\] for"),
        (
            {"image_sizes": [(5, 5)]},
            ValueError,
            r"image_sizes must have shape \[B, 2\] for .*, got \[1, 2\]",
        ),
        (
            {"image_sizes": torch.zeros(2, 3)},
            ValueError,
            r"image_sizes must have shape \[B, 2\] for .*, got \[2, 3\]",
        ),
        (
            {"image_sizes": torch.zeros(2, 2, device="meta")},
            ValueError,
            "image_sizes must be on the device of deltas",
        ),
    ],
)
def test_errors_of_decode(options, error, message):
    with pytest.raises(error, match="^decode_boxes: " + message):
        ops.decode_boxes(torch.zeros(2, 3, 4), BOXES, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3), BOXES, [1.0] * 4),
        (BOXES, torch.zeros(4, 4), [1.0] * 4),
        (BOXES, torch.zeros(2, 3, 4), [1.0] * 4),
        (BOXES, BOXES.double(), [1.0] * 4),
        (BOXES.int(), BOXES.int(), [1.0] * 4),
        (BOXES, BOXES, [1.0] * 3),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match="encode_boxes"):
        torch.ops.pydet.encode_boxes(*arguments)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="decode_boxes"):
        torch.ops.pydet.decode_boxes(*arguments, 4.0, None, None)


def test_the_kernel_checks_image_sizes():
    deltas, factors = torch.zeros(2, 3, 4), [1.0] * 4
    for clip in (
        ([1, 2, 3], None),
        (None, torch.zeros(3, 2)),
        (None, torch.zeros(2, 3)),
        (None, torch.zeros(2, 2).double()),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="decode_boxes: image_size"):
            torch.ops.pydet.decode_boxes(deltas, BOXES, factors, 4.0, *clip)


# --- strides and dtypes ------------------------------------------------------------------------
