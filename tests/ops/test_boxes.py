# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import needs_cuda
from tests.reference import boxes as reference
from tests.strategies import DTYPES, any_boxes, lattice_boxes, layouts, tensor_of_boxes, valid_boxes

FORMATS = ("xyxy", "xywh", "cxcywh")
PAIRS = tuple(itertools.product(FORMATS, FORMATS))
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FUNCTIONS = {
    "box_area": lambda boxes: ops.box_area(boxes, "xyxy"),
    "box_convert": lambda boxes: ops.box_convert(boxes, "xyxy", "cxcywh"),
    "clip_boxes_to_image": lambda boxes: ops.clip_boxes_to_image(boxes, (30, 50)),
    "remove_small_boxes": lambda boxes: ops.remove_small_boxes(boxes, 16),
}


def eager_convert(boxes, in_fmt, out_fmt):
    """The conversion as torchvision writes it."""
    if in_fmt == out_fmt:
        return boxes.clone()
    a, b, c, d = boxes.unbind(-1)
    if in_fmt == "xywh":
        c, d = a + c, b + d
    elif in_fmt == "cxcywh":
        a, b, c, d = a - 0.5 * c, b - 0.5 * d, a + 0.5 * c, b + 0.5 * d
    if out_fmt == "xywh":
        c, d = c - a, d - b
    elif out_fmt == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack((a, b, c, d), -1)


def eager_area(boxes, fmt):
    a, b, c, d = boxes.unbind(-1)
    return (c - a) * (d - b) if fmt == "xyxy" else c * d


def random_boxes(*shape, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 60 - 10
    corners[..., 2:] += corners[..., :2]
    return corners.to(device=device, dtype=dtype)


# --- against the reference ---------------------------------------------------------------------


@given(lattice_boxes(), st.sampled_from(PAIRS))
def test_convert_is_exact_on_integers(boxes, formats):
    wanted = torch.tensor([reference.convert(box, *formats) for box in boxes]).reshape(-1, 4)
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16):
        converted = ops.box_convert(tensor_of_boxes(boxes, dtype), *formats)
        stays = dtype.is_floating_point or "cxcywh" not in formats or formats[0] == formats[1]
        assert converted.dtype == (dtype if stays else torch.float32)
        assert torch.equal(converted.double(), wanted.double())


@given(valid_boxes(), st.sampled_from(PAIRS), st.sampled_from(DTYPES))
def test_convert(boxes, formats, dtype):
    inputs = tensor_of_boxes(boxes, dtype)
    converted = ops.box_convert(inputs, *formats)
    assert converted.dtype == dtype
    assert not boxes or converted.data_ptr() != inputs.data_ptr()
    wanted = [reference.convert(box, *formats) for box in inputs.double().tolist()]
    rounding = {
        torch.float64: 1e-15,
        torch.float32: 2e-7,
        torch.float16: 1e-3,
        torch.bfloat16: 8e-3,
    }
    torch.testing.assert_close(
        converted.double(),
        tensor_of_boxes(wanted, torch.float64),
        rtol=0,
        atol=3e3 * rounding[dtype],
    )
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(converted, eager_convert(inputs, *formats))


@given(any_boxes(), st.sampled_from(FORMATS))
def test_area(boxes, fmt):
    inputs = tensor_of_boxes(boxes, torch.float64)
    wanted = torch.tensor([reference.area(box, fmt) for box in boxes], dtype=torch.float64)
    torch.testing.assert_close(ops.box_area(inputs, fmt), wanted, equal_nan=True)


@given(lattice_boxes(), st.sampled_from(FORMATS))
def test_area_of_integers(boxes, fmt):
    wanted = [reference.area([int(c) for c in box], fmt) for box in boxes]
    for dtype in (torch.int64, torch.int32, torch.int16):
        area = ops.box_area(tensor_of_boxes(boxes, dtype), fmt)
        assert area.dtype == (torch.int64 if dtype == torch.int64 else torch.int32)
        assert area.tolist() == wanted


def test_area_does_not_overflow(device):
    """A box of 1000 x 1000 has an area that float16 and int16 do not hold."""
    for dtype, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int16, torch.int32),
    ):
        area = ops.box_area(torch.tensor([[0, 0, 1000, 1000]], device=device, dtype=dtype))
        assert area.dtype == wanted and area.item() == 1e6


@given(any_boxes(), st.integers(0, 300), st.integers(0, 300))
def test_clip(boxes, height, width):
    wanted = tensor_of_boxes([reference.clip(b, height, width) for b in boxes], torch.float64)
    clipped = ops.clip_boxes_to_image(tensor_of_boxes(boxes, torch.float64), (height, width))
    torch.testing.assert_close(clipped, wanted, rtol=0, atol=0, equal_nan=True)


@given(lattice_boxes(), st.integers(0, 900), st.integers(0, 900))
def test_clip_of_integers(boxes, height, width):
    wanted = tensor_of_boxes([reference.clip(b, height, width) for b in boxes], torch.float64)
    for dtype in (torch.int64, torch.int32, torch.int16):
        clipped = ops.clip_boxes_to_image(tensor_of_boxes(boxes, dtype) - 50, (height, width))
        assert clipped.dtype == dtype and clipped.ge(0).all()
        clipped = ops.clip_boxes_to_image(tensor_of_boxes(boxes, dtype), (height, width))
        assert torch.equal(clipped.double(), wanted)


def test_clip_to_a_size_between_pixels(device):
    boxes = torch.tensor([[-1, 2, 30, 40]], device=device)
    clipped = ops.clip_boxes_to_image(boxes, (20.5, 10.25))
    assert clipped.dtype == torch.float32 and clipped.tolist() == [[0, 2, 10.25, 20.5]]


@given(any_boxes(), st.sampled_from([0, 1, 16.5, -3, math.inf]))
def test_remove_small(boxes, min_size):
    inputs = tensor_of_boxes(boxes, torch.float64)
    assert ops.remove_small_boxes(inputs, min_size).tolist() == reference.large(boxes, min_size)


@given(lattice_boxes(), st.integers(0, 20))
def test_remove_small_on_a_lattice(boxes, min_size):
    wanted = reference.large(boxes, min_size)
    for dtype in (torch.float32, torch.int64, torch.int16):
        keep = ops.remove_small_boxes(tensor_of_boxes(boxes, dtype), min_size)
        assert keep.dtype == torch.int64 and keep.tolist() == wanted


def test_integers_wrap_around_as_in_torch(device):
    most = torch.iinfo(torch.int64).max
    boxes = torch.tensor([[most, -2, most, most], [-most, 1, most, 7]], device=device)
    assert torch.equal(ops.box_convert(boxes, "xywh", "xyxy"), eager_convert(boxes, "xywh", "xyxy"))
    assert torch.equal(ops.box_convert(boxes, "xyxy", "xywh"), eager_convert(boxes, "xyxy", "xywh"))
    assert torch.equal(ops.box_area(boxes), eager_area(boxes, "xyxy"))
    small = torch.tensor([[100, 200, 100, 100]], device=device, dtype=torch.uint8)
    assert torch.equal(ops.box_convert(small, "xywh", "xyxy"), eager_convert(small, "xywh", "xyxy"))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 5, 4), (0, 3, 4), (40_000, 4)])
def test_shapes(device, shape):
    boxes = random_boxes(*shape[:-1], device=device)
    assert torch.equal(ops.box_area(boxes), eager_area(boxes, "xyxy"))
    assert torch.equal(
        ops.box_convert(boxes, "xyxy", "cxcywh"), eager_convert(boxes, "xyxy", "cxcywh")
    )
    clipped = ops.clip_boxes_to_image(boxes, (20, 30))
    assert torch.equal(clipped[..., ::2], boxes[..., ::2].clamp(0, 30))
    assert torch.equal(clipped[..., 1::2], boxes[..., 1::2].clamp(0, 20))
    if len(shape) > 1:
        sides = boxes[..., 2:] - boxes[..., :2]
        wanted = torch.where((sides >= 20).all(-1))[0]
        assert torch.equal(ops.remove_small_boxes(boxes, 20), wanted)


@needs_cuda
def test_cuda_equals_cpu():
    for dtype in (*DTYPES, torch.int64, torch.int32):
        boxes = random_boxes(3001, dtype=dtype)
        for name, function in FUNCTIONS.items():
            assert torch.equal(function(boxes.cuda()).cpu(), function(boxes)), (name, dtype)


# --- against torchvision -----------------------------------------------------------------------


@given(any_boxes(), st.sampled_from((torch.float32, torch.float64, torch.int64, torch.int32)))
def test_torchvision_gives_the_same(boxes, dtype):
    theirs = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    boxes = [[0.0 if not abs(c) < 1e6 else c for c in box] for box in boxes]
    inputs = tensor_of_boxes(boxes, dtype)
    for fmt in FORMATS:
        assert_same(ops.box_area(inputs, fmt), theirs.box_area(inputs, fmt))
    for formats in PAIRS:
        assert_same(ops.box_convert(inputs, *formats), theirs.box_convert(inputs, *formats))
    for size in ((20, 30), (0, 7)):
        assert_same(ops.clip_boxes_to_image(inputs, size), theirs.clip_boxes_to_image(inputs, size))
    for least in (0, 3, 2.5):
        assert_same(ops.remove_small_boxes(inputs, least), theirs.remove_small_boxes(inputs, least))


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@given(st.integers(0, 3), st.integers(0, 40), st.integers(0, 600), st.integers(0, 4), st.randoms())
def test_masks(count, height, width, ones, random):
    masks = torch.zeros(count, height, width)
    for mask in masks if height * width else ():
        for _ in range(random.randint(0, ones)):
            mask[random.randrange(height), random.randrange(width)] = random.choice([1, -2, 0.5])
    wanted = [reference.box_of_mask(mask) for mask in masks.tolist()]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool):
        found = ops.masks_to_boxes(masks.to(dtype))
        assert found.dtype == torch.float32 and found.tolist() == wanted
    whole = (masks * 2).to(torch.int8)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64):
        assert ops.masks_to_boxes(whole.to(dtype)).tolist() == wanted


def test_masks_by_hand(device):
    masks = torch.zeros(4, 5, 7, device=device)
    masks[0, 1, 2] = 1
    masks[1, 1:4, 2:6] = math.nan
    masks[2] = -0.0
    masks[3, 4, 0] = masks[3, 0, 6] = 1e-40
    wanted = [[2, 1, 2, 1], [2, 1, 5, 3], [0, 0, 0, 0], [0, 0, 6, 4]]
    assert ops.masks_to_boxes(masks).tolist() == wanted
    for _, same in layouts(masks):
        assert ops.masks_to_boxes(same).tolist() == wanted
    # Masks of a batch that do not start at a multiple of 16 bytes.
    assert ops.masks_to_boxes(masks.isnan() | masks.ne(0)).tolist() == wanted
    large = torch.zeros(2, 301, 1003, dtype=torch.bool, device=device)
    large[1, 7:300, 1002] = True
    assert ops.masks_to_boxes(large).tolist() == [[0, 0, 0, 0], [1002, 7, 1002, 299]]


ROTATED = ("xywhr", "cxcywhr", "xyxyxyxy")


@given(valid_boxes(), st.floats(-179, 179), st.sampled_from(ROTATED), st.sampled_from(ROTATED))
def test_rotated(boxes, angle, in_fmt, out_fmt):
    """A box turned about its centre, written in each way from the same corners."""
    written = {fmt: [reference.rotated(box, angle, fmt) for box in boxes] for fmt in ROTATED}
    size = 8 if in_fmt == "xyxyxyxy" else 5
    inputs = torch.tensor(written[in_fmt], dtype=torch.float64).reshape(-1, size)
    wanted = torch.tensor(written[out_fmt], dtype=torch.float64).reshape(
        -1, 8 if out_fmt == "xyxyxyxy" else 5
    )
    found = ops.box_convert(inputs, in_fmt, out_fmt)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert found.data_ptr() != inputs.data_ptr() or not boxes


def test_rotated_by_hand(device):
    """A box of 4 x 2 at (0, 0), turned by 90 degrees: its width points up."""
    box = torch.tensor([[0.0, 0.0, 4.0, 2.0, 90.0]], device=device)
    corners = ops.box_convert(box, "xywhr", "xyxyxyxy")
    torch.testing.assert_close(corners.cpu(), torch.tensor([[0.0, 0, 0, -4, 2, -4, 2, 0]]))
    centre = ops.box_convert(box, "xywhr", "cxcywhr")
    torch.testing.assert_close(centre.cpu(), torch.tensor([[1.0, -2, 4, 2, 90]]))
    whole = ops.box_convert(box.int(), "xywhr", "xyxyxyxy")
    assert whole.dtype == torch.int32 and whole.tolist() == [[0, 0, 0, -4, 2, -4, 2, 0]]
    half = ops.box_convert(box.half(), "xywhr", "cxcywhr")
    assert half.dtype == torch.float16


def test_rotated_and_upright_do_not_mix():
    with pytest.raises(
        ValueError, match=r"^box_convert: out_fmt must be one of 'xywhr', 'cxcywhr'"
    ):
        ops.box_convert(torch.zeros(2, 5), "xywhr", "xyxy")
    with pytest.raises(TypeError, match=r"^box_convert: boxes must have a dtype of"):
        ops.box_convert(torch.zeros(2, 5, dtype=torch.bool), "xywhr", "cxcywhr")


def test_errors_of_masks():
    with pytest.raises(TypeError, match=r"^masks_to_boxes: masks must be a tensor, got list"):
        ops.masks_to_boxes([[[1]]])
    with pytest.raises(
        ValueError, match=r"^masks_to_boxes: masks must have shape \[N, H, W\], got"
    ):
        ops.masks_to_boxes(torch.zeros(3, 4))
    with pytest.raises(
        ValueError, match=r"^masks_to_boxes: masks must have shape \[N, H, W\], got"
    ):
        torch.ops.pydet.masks_to_boxes(torch.zeros(3, 4))


def test_rotated_gradients():
    box = torch.tensor([[3.0, 1.0, 4.0, 2.0, 30.0]], dtype=torch.float64, requires_grad=True)
    corners = ops.box_convert(box.detach(), "cxcywhr", "xyxyxyxy").requires_grad_()
    for inputs, in_fmt, out_fmt in ((box, "cxcywhr", "xyxyxyxy"), (corners, "xyxyxyxy", "cxcywhr")):

        def convert(x, in_fmt=in_fmt, out_fmt=out_fmt):
            return ops.box_convert(x, in_fmt, out_fmt)

        assert torch.autograd.gradcheck(convert, (inputs,))
        assert torch.autograd.gradgradcheck(convert, (inputs,))


# --- gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", PAIRS)
def test_gradient_of_convert(device, formats):
    boxes = random_boxes(5, device=device, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: ops.box_convert(b, *formats), boxes)
    weight = torch.rand(5, 4, device=device, dtype=torch.float64)
    grads = [
        torch.autograd.grad((function(boxes, *formats) * weight).sum(), boxes)[0]
        for function in (ops.box_convert, eager_convert)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("fmt", FORMATS)
def test_gradient_of_area(device, fmt):
    boxes = random_boxes(5, device=device, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: ops.box_area(b, fmt), boxes)
    half = boxes.detach().half().requires_grad_()
    ops.box_area(half, fmt).sum().backward()
    again = half.detach().double().requires_grad_()
    ops.box_area(again, fmt).sum().backward()
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.double(), again.grad, rtol=1e-3, atol=0)


@given(lattice_boxes(1, 6, 16), st.integers(0, 16), st.integers(0, 16))
def test_gradient_of_clip_equals_autograd(boxes, height, width):
    """On the lattice coordinates often lie just on the ends."""
    inputs = tensor_of_boxes(boxes) - 2
    inputs[0, 0] = math.nan
    x, y = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    weight = torch.arange(1.0, 1 + inputs.numel()).reshape(inputs.shape)
    (ops.clip_boxes_to_image(x, (height, width)) * weight).nansum().backward()
    # As clamp, whose gradient on the ends themselves is 1, and 0 since torch 2.14.
    ends = torch.tensor([width, height, width, height], dtype=y.dtype)
    clamped = torch.where((y >= 0) & (y <= ends), y, y.detach().clamp(torch.zeros(4), ends))
    (clamped * weight).nansum().backward()
    assert torch.equal(x.grad.nan_to_num(), y.grad.nan_to_num())


def widened(boxes):
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def test_second_derivatives_equal_autograd(device):
    """In float16 as well, where the gradient's own rounding is all that differs."""
    for dtype in (torch.float64, torch.float16):
        for fmt in ("xyxy", "xywh", "cxcywh"):
            found = []
            for function in (ops.box_area, lambda b, fmt: eager_area(widened(b), fmt)):
                boxes = random_boxes(5, device=device).to(dtype).requires_grad_()
                weight = torch.linspace(0.5, 1, 5, device=device).to(function(boxes, fmt).dtype)
                weight.requires_grad_()
                first = torch.autograd.grad(
                    (function(boxes, fmt) * weight).sum(), boxes, create_graph=True
                )[0]
                v = torch.arange(20.0, device=device).reshape(5, 4).sub(9).to(dtype)
                second = torch.autograd.grad((first.double() * v).sum(), (boxes, weight))
                found.append([grad.double() for grad in second])
            error = 1e-12 if dtype == torch.float64 else 2e-3
            torch.testing.assert_close(found[0], found[1], rtol=error, atol=100 * error)


def test_third_derivatives_equal_autograd(device):
    """Of cubes; there is one of any order."""
    boxes = random_boxes(6, device=device, dtype=torch.float64).requires_grad_()
    height, width = 5.0, 6.0
    limits = torch.tensor([width, height, width, height], device=device, dtype=torch.float64)
    for ours, eager in (
        (ops.box_area, lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])),
        (
            lambda b: ops.box_convert(b, "xyxy", "cxcywh"),
            lambda b: torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1),
        ),
        (
            lambda b: ops.clip_boxes_to_image(b, (height, width)),
            lambda b: b.clamp(min=0).minimum(limits),
        ),
    ):
        found = []
        for function in (ours, eager):
            value = function(boxes).pow(3).sum()
            for _ in range(3):
                (grad,) = torch.autograd.grad(value, boxes, create_graph=True)
                value = (grad * torch.arange(24, device=device).view(6, 4)).sum()
            found.append(grad)
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-6)
        assert found[0].any()


# --- registration ------------------------------------------------------------------------------


def test_opcheck_of_integers(device):
    boxes = random_boxes(2, 3, device=device).abs()
    for dtype in INTEGERS:
        integers = boxes.to(dtype)
        torch.library.opcheck(torch.ops.pydet.box_area.default, (integers, "cxcywh"))
        torch.library.opcheck(torch.ops.pydet.box_convert.default, (integers, "xyxy", "xywh"))
        torch.library.opcheck(torch.ops.pydet.clip_boxes_to_image.default, (integers, 20, 30))


def all_but_removal(boxes, image):
    """The size comes from a tensor's shape, which is symbolic where shapes are dynamic."""
    clipped = ops.clip_boxes_to_image(boxes, image.shape[-2:])
    return ops.box_area(ops.box_convert(clipped, "xyxy", "cxcywh"), "cxcywh")


def test_an_image_size_that_is_traced(device):
    torch._dynamo.reset()
    compiled = torch.compile(all_but_removal, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 8, 2):
        boxes = random_boxes(count, device=device)
        image = torch.zeros(3, 20 + count, 30 + count, device=device)
        assert torch.equal(compiled(boxes, image), all_but_removal(boxes, image))


def test_autocast_changes_nothing(device):
    boxes = random_boxes(9, device=device)
    for name, function in FUNCTIONS.items():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            result = function(boxes)
        assert result.dtype == function(boxes).dtype and torch.equal(result, function(boxes)), name


# --- errors ------------------------------------------------------------------------------------

X = torch.zeros(5, 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_of_boxes(name):
    for boxes, error, message in (
        ([[0, 0, 1, 1]], TypeError, "boxes must be a tensor, got list"),
        (X.bool(), TypeError, "boxes must have a dtype of .*, got torch.bool"),
        (X.cfloat(), TypeError, "boxes must have a dtype of .*, got torch.complex64"),
        (X[:, :3], ValueError, r"boxes must have shape \[.*4\], got \[5, 3\]"),
        (X[0, 0], ValueError, r"boxes must have shape \[.*4\], got \[\]"),
    ):
        with pytest.raises(error, match=f"^{name}: {message}"):
            FUNCTIONS[name](boxes)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (ops.box_area, ("xyxyr",), ValueError, "fmt must be one of 'xyxy', 'xywh', 'cxcywh'"),
        (ops.box_convert, ("xxyy", "xyxy"), ValueError, "in_fmt must be one of .*, got 'xxyy'"),
        (
            ops.box_convert,
            ("xywhr", "xyxyxyxy"),
            ValueError,
            r"boxes must have shape \[..., 5\] for",
        ),
        (ops.box_convert, ("xyxy", "xyxyxyxy"), ValueError, "out_fmt must be one of 'xyxy', 'xy"),
        (ops.clip_boxes_to_image, (5,), TypeError, r"size must be two numbers .*, got 5"),
        (ops.clip_boxes_to_image, ((5, 6, 7),), TypeError, "size must be two numbers"),
        (ops.clip_boxes_to_image, ((5, "6"),), TypeError, "size must be a number, got str"),
        (ops.clip_boxes_to_image, ((5, -6),), ValueError, "size must be of numbers of at least 0"),
        (ops.clip_boxes_to_image, ((math.nan, 6),), ValueError, "size must be of numbers of at"),
        (ops.remove_small_boxes, (None,), TypeError, "min_size must be a number, got NoneType"),
        (ops.remove_small_boxes, (math.nan,), ValueError, "min_size must be a number, got nan"),
    ],
)
def test_errors(function, arguments, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(X, *arguments)


def test_remove_small_boxes_needs_a_list():
    with pytest.raises(
        ValueError, match=r"^remove_small_boxes: boxes must have shape \[N, ..., 4\]"
    ):
        ops.remove_small_boxes(X[0], 1)


def test_the_kernels_protect_themselves():
    """What passes by the Python functions still cannot read outside of a buffer."""
    native, wrong = torch.ops.pydet, torch.zeros(5, 3)
    for call in (
        lambda: native.box_area(wrong, "xyxy"),
        lambda: native.box_area(X, "xyz"),
        lambda: native.box_area(X.bool(), "xyxy"),
        lambda: native.box_area_backward(X, X, "xyxy"),
        lambda: native.box_convert(wrong, "xyxy", "xywh"),
        lambda: native.box_convert(X.int(), "xyxy", "cxcywh"),
        lambda: native.box_convert_backward(wrong, "xyxy", "xywh"),
        lambda: native.clip_boxes_to_image(wrong, 3, 4),
        lambda: native.clip_boxes_to_image_backward(wrong, X, 3, 4),
        lambda: native.clip_boxes_to_image_backward(X.double(), X, 3, 4),
        lambda: native.large_boxes(wrong, 1.0),
    ):
        with pytest.raises((ValueError, TypeError), match=r"box_|boxes"):
            call()


# --- strides and dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts_of_integers(device, name):
    boxes = random_boxes(2, 7, device=device, dtype=torch.int32)
    wanted = FUNCTIONS[name](boxes)
    for layout, same in layouts(boxes):
        assert torch.equal(FUNCTIONS[name](same), wanted), layout
