# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.reference.roi_pool import roi_pool as reference
from tests.strategies import DTYPES, coordinate

BINS = st.sampled_from([(1, 1), (2, 3), (7, 7), (3, 1)])


def feature_map(seed, batch, channels, height, width, levels=8):
    """[B, C, H, W] float64 with few values, so that many cells tie; exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, channels, height, width)
    return torch.randint(-levels, levels, size, generator=generator).double() / 4


feature_maps = st.builds(
    feature_map,
    st.integers(0, 2**31),
    st.integers(1, 2),
    st.sampled_from([1, 3, 17]),
    st.integers(1, 21),
    st.integers(1, 21),
)


def rois_of(coordinates):
    """Lists of (image, x1, y1, x2, y2); the image is at times not in the batch."""
    image = st.sampled_from([0.0, 1.0, 0.0, 1.0, -1.0, 2.0, 1.5, math.nan])
    return st.lists(st.tuples(image, *[coordinates] * 4), max_size=5)


def tensor_of_rois(rois, dtype=torch.float64):
    return torch.tensor(rois, dtype=dtype).reshape(-1, 5)


def expected(features, rois, output_size, scale, number=float):
    """The reference's values and its argmax, each [R, C, h, w]; an argmax of -1 is none."""
    found = reference(features.tolist(), rois.double().tolist(), output_size, scale, number)
    shape = (len(rois), features.shape[1], *output_size)
    bins = [b for roi in found for channel in roi for row in channel for b in row]
    values = [0.0 if b is None else b[0] for b in bins]
    width = features.shape[3]
    cells = [-1 if b is None or b[1] is None else b[1] * width + b[2] for b in bins]
    return (
        torch.tensor(values, dtype=torch.float64).reshape(shape),
        torch.tensor(cells, dtype=torch.int64).reshape(shape),
    )


def gradient_at(features, rois, cells, grad_out):
    """Each element of ``grad_out`` added to its cell."""
    grad = torch.zeros_like(features)
    for r, roi in enumerate(rois.tolist()):
        if (cells[r] >= 0).any():
            flat = grad[int(roi[0])].flatten(1)
            mask = cells[r] >= 0
            flat.scatter_add_(1, cells[r].clamp(0).flatten(1), (grad_out[r] * mask).flatten(1))
    return grad


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """A region of 3 x 3 cells in 2 x 2 bins: neighbouring bins share the middle row and column."""
    features = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    boxes = torch.tensor([[0.0, 1.0, 0.0, 3.0, 2.0]], device=device)
    assert ops.roi_pool(features, boxes, 2).tolist() == [[[[6, 7], [10, 11]]]]


def test_halves_are_rounded_away_from_zero(device):
    features = torch.arange(5.0, device=device).reshape(1, 1, 1, 5)
    boxes = torch.tensor([[0, 0.5, 0, 0.5, 0], [0, 2.5, 0, 2.5, 0], [0, -0.5, 0, -0.5, 0]])
    assert ops.roi_pool(features, boxes.to(device), 1).flatten().tolist() == [1, 3, 0]


@given(
    feature_maps,
    rois_of(st.integers(-40, 120).map(lambda eighths: eighths / 2)),
    BINS,
    st.sampled_from([1.0, 0.5, 0.25, 0.3]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_values(features, rois, output_size, scale, dtype, channels_last):
    """Exact: the result is one of the cells."""
    number = float if dtype == torch.float64 else np.float32
    boxes = tensor_of_rois(rois, torch.float64 if number is float else torch.float32)
    wanted, _ = expected(features, boxes, output_size, scale, number)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    pooled = ops.roi_pool(
        features.to(dtype).contiguous(memory_format=format_), boxes, output_size, scale
    )
    assert pooled.dtype == dtype
    assert torch.equal(pooled.double(), wanted)


@given(feature_maps, rois_of(coordinate()), BINS)
def test_any_coordinates(features, rois, output_size):
    boxes = tensor_of_rois(rois)
    wanted, _ = expected(features, boxes, output_size, 0.25)
    assert torch.equal(ops.roi_pool(features, boxes, output_size, 0.25), wanted)


def test_nan_and_infinite_cells(device):
    features = torch.full((1, 3, 2, 2), -math.inf, device=device)
    features[0, 0, 0, 0] = math.nan
    features[0, 0, 0, 1] = 3
    features[0, 1] = math.nan
    features.requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]], device=device)
    pooled = ops.roi_pool(features, boxes, 1)
    assert pooled.flatten().tolist() == [3, -math.inf, -math.inf]
    pooled.sum().backward()
    assert features.grad.flatten().nonzero().tolist() == [[1]]


def test_list_of_boxes(device):
    features = feature_map(0, 3, 4, 9, 9).float().to(device)
    boxes = [torch.tensor([[0.0, 0, 5, 5], [2, 2, 8, 3]]), torch.zeros(0, 4), torch.ones(1, 4)]
    boxes = [b.to(device) for b in boxes]
    rows = torch.cat([torch.tensor([[0.0], [0], [2]], device=device), torch.cat(boxes)], 1)
    assert torch.equal(ops.roi_pool(features, boxes, 3), ops.roi_pool(features, rows, 3))
    assert torch.equal(
        ops.RoIPool((3, 3), 1.0)(features, tuple(boxes)), ops.roi_pool(features, rows, 3)
    )
    assert ops.roi_pool(features, [], 3).shape == (0, 4, 3, 3)


def test_boxes_keep_their_precision(device):
    """16-bit maps do not round the boxes to 16 bits: 2049 is no bfloat16 and no float16."""
    features = torch.arange(16, device=device).reshape(1, 1, 1, 16).half()
    for x, cell in ((2048.0, 3), (2049.0, 4)):
        boxes = torch.tensor([[0, x, 0, x, 0]], device=device)
        assert ops.roi_pool(features, boxes, 1, 3.5002 / 2049).item() == cell


def test_channels_last_in_gives_channels_last_out(device):
    features = feature_map(0, 2, 19, 9, 7).to(device).contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    pooled = ops.roi_pool(features, torch.tensor([[1.0, 0, 0, 5, 5]], device=device), (2, 3))
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    pooled.sum().backward()
    assert features.grad.is_contiguous(memory_format=torch.channels_last)


def test_huge_outputs_and_maps_without_cells(device):
    boxes = torch.tensor([[0.0, 0, 0, 5, 5]], device=device)
    assert ops.roi_pool(torch.ones(1, 2, 4, 4, device=device), boxes, (300, 500)).shape[2:] == (
        300,
        500,
    )
    assert not ops.roi_pool(torch.ones(1, 2, 0, 4, device=device), boxes, 2).any()
    assert not ops.roi_pool(torch.ones(0, 2, 4, 4, device=device), boxes, 2).any()


# --- gradient ----------------------------------------------------------------------------------


@given(
    feature_maps,
    rois_of(st.integers(-40, 120).map(lambda eighths: eighths / 2)),
    BINS,
    st.booleans(),
    st.booleans(),
)
def test_gradient(features, rois, output_size, channels_last, deterministic):
    """To the first of equal cells; small integers are added up exactly."""
    boxes = tensor_of_rois(rois)
    pooled, cells = expected(features, boxes, output_size, 0.25)
    grad_out = torch.arange(pooled.numel()).reshape(pooled.shape).double() % 7 - 3
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    leaf = features.contiguous(memory_format=format_).requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    try:
        (grad,) = torch.autograd.grad(
            ops.roi_pool(leaf, boxes, output_size, 0.25), leaf, grad_out, create_graph=True
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(grad, gradient_at(features, boxes, cells, grad_out))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_layouts_give_the_same_bits(dtype, device):
    """Whole vectors of channels and what is left of them; small integers are added up exactly."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 60
    sides = torch.rand(40, 2, generator=generator) * 50
    images = torch.randint(0, 2, (40, 1), generator=generator)
    boxes = torch.cat([images, corners, corners + sides], 1).to(device)
    for channels in (1, 8, 16, 27, 40):
        features = feature_map(0, 2, channels, 15, 20).to(device, dtype)
        grad_out = torch.randint(-3, 4, (40, channels, 3, 4), generator=generator)
        grad_out = grad_out.to(device, dtype)
        found = []
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = features.contiguous(memory_format=layout).requires_grad_()
            grads = grad_out.clone().requires_grad_()
            pooled = ops.roi_pool(leaf, boxes, (3, 4), 0.25)
            (grad,) = torch.autograd.grad(pooled, leaf, grads, create_graph=True)
            (again,) = torch.autograd.grad(grad.square().sum(), grads)
            found.append((pooled, grad, again))
        for planar, interleaved in zip(*found, strict=True):
            assert torch.equal(planar, interleaved)


def test_second_and_third_derivative(device):
    """The derivative along ``values`` picks them where the input is the largest."""
    features = torch.tensor([[[[1.0, 4, 2], [3, 4, 0]]]], device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 2, 1]], device=device)
    grad_out = torch.ones(1, 1, 1, 2, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(
        ops.roi_pool(features, boxes, (1, 2)), features, grad_out, create_graph=True
    )
    assert grad.tolist() == [[[[0, 2, 0], [0, 0, 0]]]]
    values = torch.arange(6.0, device=device).reshape(features.shape).requires_grad_()
    (grad_grad,) = torch.autograd.grad(grad, grad_out, values, create_graph=True)
    assert grad_grad.flatten().tolist() == [1, 1]
    (third,) = torch.autograd.grad(grad_grad.sum(), values)
    assert torch.equal(third, grad)


# --- errors ------------------------------------------------------------------------------------

MAP, BOXES = torch.zeros(2, 3, 4, 4), torch.zeros(1, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], BOXES, 2), TypeError, "input must be a tensor, got list"),
        ((MAP.int(), BOXES, 2), TypeError, "input must have a dtype of .*, got torch.int32"),
        ((MAP[0], BOXES, 2), ValueError, r"input must have shape \[B, C, H, W\], got \[3, 4, 4\]"),
        ((MAP, 3, 2), TypeError, "boxes must be a tensor or a list of tensors, got int"),
        ((MAP, BOXES[:, :4], 2), ValueError, r"boxes must have shape \[R, 5\], got \[1, 4\]"),
        ((MAP, BOXES.int(), 2), TypeError, "boxes must have a dtype of .*, got torch.int32"),
        ((MAP, BOXES.to("meta"), 2), ValueError, "boxes must be on the device of the features"),
        ((MAP, [BOXES], 2), ValueError, r"boxes\[0\] must have shape \[r, 4\], got \[1, 5\]"),
        ((MAP, [BOXES] * 3, 2), ValueError, r"boxes must have at most one tensor .*\(2\), got 3"),
        ((MAP, BOXES, 2.5), TypeError, "output_size must be an integer or a pair .*, got 2.5"),
        ((MAP, BOXES, (2, 2, 2)), TypeError, "output_size must be an integer or a pair"),
        ((MAP, BOXES, (2, 0)), ValueError, r"output_size must be at least 1, got \(2, 0\)"),
        ((MAP, BOXES, 2, "1"), TypeError, "spatial_scale must be a number, got str"),
        ((MAP, BOXES, 2, 0.0), ValueError, "spatial_scale must be finite and above 0, got 0.0"),
        ((MAP, BOXES, 2, math.nan), ValueError, "spatial_scale must be finite and above 0"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^roi_pool: " + message):
        ops.roi_pool(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (MAP[0], BOXES, 1.0, 2, 2),
        (MAP, BOXES[:, :4], 1.0, 2, 2),
        (MAP, BOXES.double(), 1.0, 2, 2),
        (MAP.int(), BOXES, 1.0, 2, 2),
        (MAP, BOXES, 1.0, 0, 2),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError), match="roi_pool"):
        torch.ops.pydet.roi_pool(*arguments)
    with pytest.raises((ValueError, TypeError), match="roi_pool_backward"):
        torch.ops.pydet.roi_pool_backward(torch.zeros(1, 3, 2, 2), *arguments)
    with pytest.raises((ValueError, TypeError), match="roi_pool_gather"):
        torch.ops.pydet.roi_pool_gather(arguments[0], *arguments)


def test_the_backward_protects_itself():
    with pytest.raises(ValueError, match="grad_out must have the shape"):
        torch.ops.pydet.roi_pool_backward(torch.zeros(1, 3, 2, 1), MAP, BOXES, 1.0, 2, 2)
    with pytest.raises(ValueError, match="values must have the shape"):
        torch.ops.pydet.roi_pool_gather(MAP[:1], MAP, BOXES, 1.0, 2, 2)


@pytest.mark.large
@pytest.mark.parametrize("op", [ops.roi_pool, ops.roi_align])
@pytest.mark.parametrize("channels", [300, 301])
def test_large_results_equal_their_parts(device, op, channels):
    """Above 32 MiB the CPU kernels write whole cache lines past the caches."""
    maps = feature_map(0, 1, channels, 12, 13).float().to(device)
    corners = torch.rand(160, 2, generator=torch.Generator().manual_seed(1)) * 8
    boxes = torch.cat([torch.zeros(160, 1), corners, corners + 4], 1).to(device)
    whole = op(maps, boxes, 14)
    assert whole.nbytes > 2**25
    assert torch.equal(whole, torch.cat([op(maps, part, 14) for part in boxes.split(16)]))
