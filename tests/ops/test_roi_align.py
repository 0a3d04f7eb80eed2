# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import deterministic_algorithms, needs_cuda
from tests.ops.cases import Random
from tests.reference import roi_align as reference
from tests.strategies import DTYPES, any_boxes

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

randoms = st.integers(0, 2**32 - 1).map(Random)
sizes = st.integers(1, 4)
ratios = st.integers(-1, 3)
scales = st.sampled_from([1.0, 0.5, 0.25])


def inputs(random, count, *, channels=3, height=9, width=12, image=40.0):
    """[2, C, H, W] and [R, 5] of boxes within and beyond the map, in float64."""
    rois = torch.cat(
        [random.integers(count, 1, high=2).double(), random.boxes(count, image=image) - 6], dim=1
    )
    return random.normal(2, channels, height, width), rois


def expected(maps, rois, output_size, *arguments):
    values = reference.roi_align(
        maps.double().tolist(), rois.double().tolist(), output_size, *arguments
    )
    shape = (len(rois), maps.shape[1], *output_size)
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """One bin, one sample, in the middle of four cells."""
    x = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], device=device)
    boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]], device=device)
    assert ops.roi_align(x, boxes, 1, sampling_ratio=1).item() == 15 / 4
    # Aligned, the same sample is at (0, 0): the centre of the first pixel.
    assert ops.roi_align(x, boxes, 1, sampling_ratio=1, aligned=True).item() == 1


@given(
    randoms,
    st.integers(0, 6),
    st.tuples(sizes, sizes),
    scales,
    ratios,
    st.booleans(),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_ordinary_boxes(random, count, output_size, scale, ratio, aligned, dtype, last):
    maps, rois = inputs(random, count)
    maps = maps.to(dtype)
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    # Boxes in their own dtype: what is compared is the sampling.
    result = ops.roi_align(maps, rois, output_size, scale, ratio, aligned)
    assert result.dtype == dtype
    kept = rois if dtype == torch.float64 else rois.float()
    wanted = expected(maps, kept, output_size, scale, ratio, aligned)
    error = TOLERANCE[dtype]
    torch.testing.assert_close(result.double(), wanted, rtol=error, atol=2 * error)


@given(any_boxes(0, 5), st.tuples(sizes, sizes), st.integers(1, 3), st.booleans())
def test_any_coordinates(boxes, output_size, ratio, aligned):
    maps = Random(0).normal(1, 2, 5, 7)
    rois = torch.tensor([[0, *box] for box in boxes], dtype=torch.float64).reshape(-1, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = ops.roi_align(
            maps.to(memory_format=layout), rois, output_size, 1.0, ratio, aligned
        )
        torch.testing.assert_close(
            result, expected(maps, rois, output_size, 1.0, ratio, aligned), rtol=1e-9, atol=1e-9
        )


@given(any_boxes(1, 5), st.booleans(), st.sampled_from(DTYPES[:2]))
def test_any_coordinates_adaptive(boxes, aligned, dtype):
    """However large a box is, its work is bounded, and all numbers are finite."""
    maps = Random(0).normal(1, 2, 5, 7).to(dtype).requires_grad_()
    rois = torch.tensor([[0, *box] for box in boxes], dtype=dtype, requires_grad=True)
    result = ops.roi_align(maps, rois, 3, 1.0, -1, aligned)
    result.sum().backward()
    assert result.isfinite().all() and maps.grad.isfinite().all() and rois.grad.isfinite().all()
    sides = rois.detach()[:, 3:].sub(rois.detach()[:, 1:3]).abs()
    # A side that rounding makes 0 beside its coordinates has no samples, one that is left has one.
    clear = ((sides == 0) | (sides > 1e-3)).all(1)
    small = (sides.amax(1) < 4000) & clear
    wanted = expected(maps.detach(), rois.detach()[small], (3, 3), 1.0, -1, aligned)
    torch.testing.assert_close(result[small].double(), wanted, rtol=1e-3, atol=1e-3)


def test_huge_boxes_take_only_the_samples_on_the_map(device):
    """Of two million samples along an axis, those that fall on the map; one per cell."""
    maps = torch.ones(1, 1, 8, 8, device=device, dtype=torch.float64)
    side = 2.0**20
    box = torch.tensor([[0, -side, -side, side, side]], device=device, dtype=torch.float64)
    found = ops.roi_align(maps, box, 1, 1.0, -1).item()
    # Positions k + 1/2 within [-1, 8]: nine on each axis, all of value 1.
    assert found == pytest.approx((9 / (2 * side)) ** 2, rel=1e-12)
    beyond = torch.tensor([[0, -3e38, -3e38, 3e38, 3e38]], device=device)
    assert ops.roi_align(maps.float(), beyond, 2).eq(0).all()


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, -1e30, math.nan, math.inf])
def test_an_index_of_no_image_gives_zeros(device, index):
    maps, rois = inputs(Random(0), 3)
    rois[1, 0] = index
    maps, rois = maps.to(device).requires_grad_(), rois.to(device).requires_grad_()
    result = ops.roi_align(maps, rois, 2, 0.5)
    assert result[1].eq(0).all() and result[0].ne(0).any()
    result.sum().backward()
    assert maps.grad.isfinite().all() and rois.grad[1].eq(0).all()


@pytest.mark.parametrize("column", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_a_coordinate_that_is_not_finite_gives_zeros(device, column, value, ratio):
    maps, rois = inputs(Random(0), 2)
    rois[1, column] = value
    maps, rois = maps.to(device).requires_grad_(), rois.to(device).requires_grad_()
    result = ops.roi_align(maps, rois, 3, 0.5, ratio)
    assert result[1].eq(0).all()
    result.sum().backward()
    assert maps.grad.isfinite().all() and rois.grad.isfinite().all()


def test_zero_size_and_inverted(device):
    maps = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    point = torch.tensor([[0, 2, 1, 2, 1]], device=device, dtype=torch.float32)
    # Stretched to one cell: its middle is (1.5, 2.5) in (y, x). Aligned: the point itself.
    assert ops.roi_align(maps, point, 1, 1.0, 1).item() == 1.5 * 4 + 2.5
    assert ops.roi_align(maps, point, 1, 1.0, 1, True).item() == 0.5 * 4 + 1.5
    assert ops.roi_align(maps, point, 1, 1.0, -1, True).item() == 0  # a grid of no samples
    inverted = torch.tensor([[0, 3, 3, 1, 1]], device=device, dtype=torch.float32)
    upright = torch.tensor([[0, 1, 1, 3, 3]], device=device, dtype=torch.float32)
    mirrored = ops.roi_align(maps, inverted, 2, 1.0, 2, True)
    assert torch.equal(mirrored, ops.roi_align(maps, upright, 2, 1.0, 2, True).flip(2, 3))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (1, 0, 5, 5), (1, 3, 0, 5), (1, 3, 5, 0)])
def test_empty_maps(device, shape):
    maps = torch.zeros(shape, device=device, requires_grad=True)
    boxes = torch.tensor([[0, 0, 0, 4, 4.0]], device=device, requires_grad=True)
    result = ops.roi_align(maps, boxes, 2)
    assert result.shape == (1, shape[1], 2, 2) and result.eq(0).all()
    result.sum().backward()
    assert maps.grad.shape == shape and boxes.grad.eq(0).all()


# --- the meaning -------------------------------------------------------------------------------


@given(randoms, sizes, scales, st.integers(1, 3))
def test_equals_grid_sample(random, pooled, scale, ratio):
    """Within the map, samples are those of torch's grid_sample, averaged bin by bin."""
    maps = random.normal(1, 2, 16, 16)
    corner, side = random.uniform(2, low=1, high=6), random.uniform(2, low=1, high=8)
    low, high = corner / scale, (corner + side) / scale
    rois = torch.cat([torch.zeros(1), low, high]).double()[None]
    steps = (torch.arange(pooled * ratio, dtype=torch.float64) + 0.5) / (pooled * ratio)
    positions = corner + side * steps[:, None]  # cells, centres at +0.5
    grid = torch.stack(
        torch.meshgrid(positions[:, 1], positions[:, 0], indexing="ij")[::-1], dim=-1
    )
    samples = torch.nn.functional.grid_sample(
        maps, (grid / 16 * 2 - 1)[None], align_corners=False, padding_mode="border"
    )
    wanted = torch.nn.functional.avg_pool2d(samples, ratio)
    torch.testing.assert_close(ops.roi_align(maps, rois, pooled, scale, ratio, True), wanted)


def test_aligned_is_invariant_to_resizing(device):
    """A linear image, at twice the size and half the scale, gives the same features."""
    ramp = torch.arange(32.0, device=device) + 0.5
    image = (3 * ramp[:, None] + 2 * ramp)[None, None]
    smaller = torch.nn.functional.avg_pool2d(image, 2)
    boxes = torch.tensor([[0, 5, 6.5, 21, 19]], device=device)
    a = ops.roi_align(image, boxes, 4, 1.0, 2, True)
    b = ops.roi_align(smaller, boxes, 4, 0.5, 2, True)
    torch.testing.assert_close(a, b)


@given(randoms, ratios, st.booleans())
def test_a_list_of_boxes_is_the_tensor(random, ratio, aligned):
    maps, rois = inputs(random, 5)
    rois = rois[rois[:, 0].argsort(stable=True)]
    as_list = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(
        ops.roi_align(maps, as_list, 2, 0.5, ratio, aligned),
        ops.roi_align(maps, rois, 2, 0.5, ratio, aligned),
    )


@given(
    randoms,
    st.integers(1, 40),
    st.tuples(sizes, sizes),
    st.integers(1, 20),
    ratios,
    st.sampled_from(DTYPES),
)
def test_channels_last_gives_the_same_bits(random, channels, output_size, width, ratio, dtype):
    """Forward and all gradients; and the results have the layout of what they belong to."""
    maps, rois = inputs(random, 4, channels=channels, width=width)
    found = []
    formats = (torch.contiguous_format, torch.channels_last)
    for layout, asked in itertools.product(formats, (None, *formats)):
        x = maps.to(dtype).to(memory_format=layout).requires_grad_()
        boxes = rois.clone().requires_grad_()
        result = ops.roi_align(x, boxes, output_size, 0.5, ratio, memory_format=asked)
        weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape).to(result)
        weights = weights.contiguous(memory_format=asked or layout)
        with deterministic_algorithms():
            grads = torch.autograd.grad((result * weights).sum(), (x, boxes), create_graph=True)
            (second,) = torch.autograd.grad(grads[1].sum(), x, retain_graph=True)
        found.append((result, *grads, second))
        assert result.is_contiguous(memory_format=asked or layout)
        for tensor in (grads[0], second):
            assert tensor.is_contiguous(memory_format=layout)
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            assert torch.equal(a, b)


def test_every_path_gives_the_same_numbers():
    """Whole vectors, their rests, narrow maps: all against one channel at a time."""
    for width in (1, 3, 15, 16, 17, 40):
        for channels in (1, 15, 16, 17, 64, 65, 81, 131):
            maps, rois = inputs(Random(1), 3, channels=channels, width=width, image=80)
            maps, rois = maps.float(), rois.float()
            whole = ops.roi_align(maps, rois, 3, 0.5)
            singly = [ops.roi_align(maps[:, c : c + 1], rois, 3, 0.5) for c in range(channels)]
            assert torch.equal(whole, torch.cat(singly, dim=1))
            last = maps.to(memory_format=torch.channels_last)
            assert torch.equal(whole, ops.roi_align(last, rois, 3, 0.5))


# --- gradient ----------------------------------------------------------------------------------


def eager(maps, rois, output_size, scale, ratio, aligned):
    """The formula in torch for a fixed ratio, whose autograd the gradients must equal."""
    h, w = output_size
    start = rois[:, 1:3] * scale - (0.5 if aligned else 0.0)
    size = rois[:, 3:5] * scale - rois[:, 1:3] * scale
    if not aligned:
        size = size.clamp(min=1)
    results = []
    for r in range(len(rois)):
        weights = []
        for axis, bins, cells in ((1, h, maps.shape[2]), (0, w, maps.shape[3])):
            steps = (torch.arange(bins * ratio, dtype=maps.dtype) + 0.5) / (bins * ratio)
            position = start[r, axis] + size[r, axis] * steps
            counts = (position >= -1) & (position <= cells)
            held = position.clamp(0, cells - 1)
            distance = (held[:, None] - torch.arange(cells)).abs()
            weights.append((1 - distance).clamp(min=0) * counts[:, None])
        samples = weights[0] @ maps[int(rois[r, 0])] @ weights[1].T
        results.append(torch.nn.functional.avg_pool2d(samples[None], ratio)[0])
    return torch.stack(results)


@given(randoms, st.tuples(sizes, sizes), scales, st.integers(1, 3), st.booleans())
def test_gradients_equal_autograd(random, output_size, scale, ratio, aligned):
    """First and second derivatives, by the maps and by the boxes."""
    maps, rois = inputs(random, 3)
    found = []
    for function in (ops.roi_align, eager):
        x, boxes = maps.clone().requires_grad_(), rois.clone().requires_grad_()
        result = function(x, boxes, output_size, scale, ratio, aligned)
        weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, requires_grad=True)
        total = (result * weights.reshape(result.shape)).sum()
        first = torch.autograd.grad(total, (x, boxes), create_graph=True)
        of_first = sum((grad * (grad.detach() + 1)).sum() for grad in first)
        second = torch.autograd.grad(of_first, (x, boxes, weights))
        found.append((result, *first, *second))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)


def test_a_third_derivative_is_refused(device):
    maps, rois = inputs(Random(0), 2)
    x, boxes = maps.to(device).requires_grad_(), rois.to(device).requires_grad_()
    (first,) = torch.autograd.grad(
        ops.roi_align(x, boxes, 2).square().sum(), boxes, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), boxes, create_graph=True)
    with pytest.raises(NotImplementedError, match="derivative of this order is not implemented"):
        second.sum().backward()


def test_gradient_in_half(device):
    for dtype in (torch.float16, torch.bfloat16):
        maps, rois = inputs(Random(0), 40, channels=20)
        maps, rois = maps.to(device, dtype), rois.to(device).float()
        grads = []
        for x in (maps.clone().requires_grad_(), maps.double().requires_grad_()):
            ops.roi_align(x, rois, 3, 0.5, 2).sum().backward()
            grads.append(x.grad.double())
        # Summed in float32 and rounded once, whatever the number of boxes.
        torch.testing.assert_close(
            grads[0], grads[1], rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
        )


@needs_cuda
def test_the_deterministic_kernel_agrees_with_the_fast_one():
    maps, rois = inputs(Random(0), 700, channels=37, height=30, width=50, image=90)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = maps.cuda().float().to(memory_format=layout).requires_grad_()
        grads = []
        for switch in (False, True, True):
            torch.use_deterministic_algorithms(switch)
            try:
                out = ops.roi_align(x, rois.cuda(), 7, 0.5)
                grads.append(torch.autograd.grad(out.square().sum(), x)[0])
            finally:
                torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
        assert torch.equal(grads[1], grads[2])


@pytest.mark.parametrize("channels", [2, 11])
def test_more_boxes_than_are_planned_at_a_time(device, channels):
    maps, rois = inputs(Random(0), 2100, channels=channels)
    x = maps.to(device).requires_grad_()
    rois = rois.to(device)
    result = ops.roi_align(x, rois, 2, 0.5, 2)
    result.sum().backward()
    whole = x.grad
    x.grad = None
    parts = [ops.roi_align(x, part, 2, 0.5, 2) for part in rois.split(300)]
    torch.cat(parts).sum().backward()
    assert torch.equal(result, torch.cat(parts))
    torch.testing.assert_close(whole, x.grad)


# --- levels ------------------------------------------------------------------------------------

LEVEL_SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def pyramid(random, channels=2, image=128):
    return [random.normal(2, channels, image // s, image // s) for s in (4, 8, 16, 32)]


@given(randoms, st.integers(0, 8), sizes, ratios, st.booleans(), st.sampled_from([20, 56, 224]))
def test_levels(random, count, pooled, ratio, aligned, canonical):
    features, size = pyramid(random), (pooled, pooled)
    boxes = torch.cat([random.boxes(count, image=200), random.boxes(2, image=30)])
    rois = torch.cat([random.integers(count + 2, 1, high=2).double(), boxes], dim=1)
    arguments = (LEVEL_SCALES, ratio, aligned, canonical, 4)
    values = reference.multiscale_roi_align(
        [f.tolist() for f in features], rois.tolist(), size, *arguments
    )
    found = ops.multiscale_roi_align(features, rois, size, *arguments)
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_at_the_edge_of_a_level(device, dtype):
    """Sides of exactly a power of two belong to the upper level; a bit less does as well (1e-6)."""
    features = [
        torch.full((1, 1, 64 >> i, 64 >> i), float(i), device=device, dtype=dtype) for i in range(4)
    ]
    for side, level in ((112, 1), (111.9, 0), (224, 2), (223.9, 1), (448, 3), (447.9, 2), (1, 0)):
        for nudged in (side, side * (1 - 2e-7)):
            box = torch.tensor([[0, 0, 0, nudged, nudged]], device=device, dtype=dtype)
            out = ops.multiscale_roi_align(features, box, 1, LEVEL_SCALES, 1)
            assert out.item() == level, (side, nudged)


def test_boxes_without_a_level(device):
    features = [f.to(device) for f in pyramid(Random(0))]
    wrong = [[0, 9, 2, 3, 8], [0, math.nan, 2, 3, 8], [0, 1, 2, 3, -1]]
    out = ops.multiscale_roi_align(features, torch.tensor(wrong, device=device), 2, LEVEL_SCALES)
    assert out.eq(0).all()


@given(randoms, st.booleans())
def test_levels_are_single_calls(random, last):
    """Each box as roi_align has it on its level; gradients and layouts too."""
    layout = torch.channels_last if last else torch.contiguous_format
    features = [f.to(memory_format=layout).requires_grad_() for f in pyramid(random)]
    sides = torch.tensor([20.0, 150.0, 300.0, 500.0, 60.0]).double()
    levels = [0, 1, 2, 3, 0]
    corner = random.uniform(5, 2, high=40)
    boxes = torch.cat([corner, corner + sides[:, None]], 1).requires_grad_()
    rois = torch.cat([random.integers(5, 1, high=2).double(), boxes], 1)
    together = ops.multiscale_roi_align(features, rois, 2, LEVEL_SCALES, 2)
    assert together.is_contiguous(memory_format=layout)
    singly = torch.cat(
        [
            ops.roi_align(features[level], rois[i : i + 1], 2, LEVEL_SCALES[level], 2)
            for i, level in enumerate(levels)
        ]
    )
    assert torch.equal(together, singly)
    found = [
        torch.autograd.grad(result.square().sum(), (*features, boxes))
        for result in (together, singly)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(grad.is_contiguous(memory_format=layout) for grad in found[0][:-1])


def test_the_module_finds_scales_anew():
    """Scales come from the sizes of each call, not from those of the first."""
    module = ops.MultiScaleRoIAlign(["a", "b"], 2, 2)
    boxes = [torch.tensor([[1.0, 2, 20, 30]])]
    for image in (64, 128):
        maps = {name: torch.rand(1, 2, 16 >> i, 16 >> i) for i, name in enumerate("abc")}
        found = module(maps, boxes, [(image, image), (image - 3, image - 20)])
        wanted = ops.multiscale_roi_align(
            [maps["a"], maps["b"]], boxes, 2, [16 / image, 8 / image], 2
        )
        assert torch.equal(found, wanted)


# --- errors ------------------------------------------------------------------------------------

MAPS, ROIS = torch.zeros(2, 3, 5, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], ROIS, 2), TypeError, "input must be a tensor, got list"),
        ((MAPS[0], ROIS, 2), ValueError, r"input must have shape \[B, C, H, W\], got \[3, 5, 5\]"),
        ((MAPS.int(), ROIS, 2), TypeError, "input must have a dtype of"),
        ((MAPS, ROIS[:, :4], 2), ValueError, r"boxes must have shape \[R, 5\], got \[4, 4\]"),
        ((MAPS, [ROIS], 2), ValueError, r"boxes\[0\] must have shape \[r, 4\], got \[4, 5\]"),
        ((MAPS, ROIS.long(), 2), TypeError, "boxes must have a dtype of"),
        ((MAPS, ROIS.to("meta"), 2), ValueError, "boxes must be on the device of"),
        ((MAPS, ROIS, 0), ValueError, "output_size must be at least 1, got 0"),
        ((MAPS, ROIS, (2, 2, 2)), TypeError, "output_size must be an integer or a pair"),
        ((MAPS, ROIS, 2, 0.0), ValueError, "spatial_scale must be finite and above 0, got 0.0"),
        ((MAPS, ROIS, 2, 1.0, 2.0), TypeError, "sampling_ratio must be an integer, got float"),
        ((MAPS, ROIS, 2, 1.0, 2, 1), TypeError, "aligned must be a bool, got int"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^roi_align: " + message):
        ops.roi_align(*arguments)


@pytest.mark.parametrize("wrong", [torch.channels_last_3d, "channels_last", True])
def test_errors_of_the_layout(wrong):
    with pytest.raises(ValueError, match=r"^roi_align: memory_format must be torch\.contiguous"):
        ops.roi_align(MAPS, ROIS, 2, memory_format=wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((MAPS, ROIS, 2, [1.0]), TypeError, "features must be a list of tensors, got Tensor"),
        (([], ROIS, 2, []), ValueError, "features must be 1 to 8 maps, got 0"),
        (([MAPS] * 9, ROIS, 2, [1.0] * 9), ValueError, "features must be 1 to 8 maps, got 9"),
        (([MAPS, MAPS.double()], ROIS, 2, [1, 0.5]), TypeError, r"features\[1\] must have the dt"),
        (([MAPS, MAPS[:1]], ROIS, 2, [1, 0.5]), ValueError, r"features\[1\] must have the batch"),
        (([MAPS, MAPS], ROIS, 2, [1.0]), ValueError, "spatial_scales must be one number for each"),
        (([MAPS, MAPS], ROIS, 2, [0.5, 0.5]), ValueError, "spatial_scales must fall"),
        (([MAPS], ROIS, 2, [0.5], 2, False, 0), ValueError, "canonical_scale must be finite"),
    ],
)
def test_errors_of_levels(arguments, error, message):
    with pytest.raises(error, match="^multiscale_roi_align: " + message):
        ops.multiscale_roi_align(*arguments)


def test_errors_of_the_module():
    module = ops.MultiScaleRoIAlign(["a"], 2, 2)
    with pytest.raises(ValueError, match=r"x must have a map of \['a'\], got \['b'\]"):
        module({"b": MAPS}, [ROIS[:, 1:]], [(5, 5)])
    with pytest.raises(ValueError, match="image_shapes must not be empty"):
        module({"a": MAPS}, [ROIS[:, 1:]], [])


SETTINGS = ([1.0], 2, 2, 1, False, 224.0, 4.0)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("roi_align", ([], ROIS, [], *SETTINGS[1:])),
        ("roi_align", ([MAPS], ROIS[:, :4], *SETTINGS)),
        ("roi_align", ([MAPS], ROIS, [1.0, 0.5], *SETTINGS[1:])),
        ("roi_align", ([MAPS[0]], ROIS, *SETTINGS)),
        ("roi_align", ([MAPS], ROIS, [1.0], 0, *SETTINGS[2:])),
        ("roi_align", ([MAPS, MAPS[:1]], ROIS, [1.0, 0.5], *SETTINGS[1:])),
        ("roi_align", ([MAPS.int()], ROIS, *SETTINGS)),
        ("roi_align_backward", (MAPS, ROIS, [2, 3, 5, 5], False, *SETTINGS)),
        ("roi_align_backward", (MAPS, ROIS, [2, 3, 5], False, *SETTINGS)),
        ("roi_align_boxes_backward", (MAPS, [MAPS], ROIS, *SETTINGS)),
        (
            "roi_align_boxes_backward_backward",
            (ROIS[:2], torch.zeros(4, 3, 2, 2), [MAPS], ROIS, *SETTINGS),
        ),
    ],
)
def test_the_kernels_protect_themselves(op, arguments):
    """What passes by the Python functions still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match=op):
        getattr(torch.ops.pydet, op)(*arguments)


def test_autocast():
    maps, rois = inputs(Random(0), 3)
    half = maps.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = ops.roi_align(half, rois, 2, 0.5)
        several = ops.multiscale_roi_align([half, half], rois, 2, [0.5, 0.25])
    assert single.dtype == several.dtype == torch.bfloat16  # the maps' own, as torchvision's
    assert torch.equal(single, ops.roi_align(half.float(), rois, 2, 0.5).bfloat16())
