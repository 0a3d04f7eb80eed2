# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.reference import ps_roi as reference
from tests.strategies import DTYPES, coordinate

BINS = st.sampled_from([(1, 1), (2, 3), (3, 3)])
# Rounding of a mean of at most a few hundred cells of at most 2 in absolute value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def feature_map(seed, channels, height, width):
    """[2, C, H, W] float64, multiples of 1/4 that every dtype has."""
    generator = torch.Generator().manual_seed(seed)
    size = (2, channels, height, width)
    return torch.randint(-8, 8, size, generator=generator).double() / 4


def rois_of(coordinates):
    image = st.sampled_from([0.0, 1.0, 0.0, 1.0, -1.0, 2.0, math.nan])
    return st.lists(st.tuples(image, *[coordinates] * 4), max_size=4)


seeds = st.integers(0, 2**31)
sides = st.integers(1, 13)
half_pixels = st.integers(-20, 120).map(lambda halves: halves / 2)


def tensor_of(nested, rois, features, output_size):
    height, width = output_size
    shape = (len(rois), features.shape[1] // (height * width), height, width)
    return torch.tensor(nested, dtype=torch.float64).reshape(shape)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """Each bin from its own channel; the mean of 2 x 2 cells."""
    features = torch.arange(4.0, device=device).reshape(1, 4, 1, 1).expand(1, 4, 6, 6).clone()
    features[0, 3, 2, 2] = 7
    boxes = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert ops.ps_roi_pool(features, boxes, 2).tolist() == [[[[0, 1], [2, 4]]]]
    constant = torch.arange(4.0, device=device).reshape(1, 4, 1, 1).expand(1, 4, 6, 6)
    assert ops.ps_roi_align(constant, boxes, 2).tolist() == [[[[0, 1], [2, 3]]]]


@given(
    seeds, sides, sides, rois_of(half_pixels), BINS, st.sampled_from([1.0, 0.25, 0.3]),
    st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_pool(seed, height, width, rois, output_size, scale, dtype, channels_last):
    features = feature_map(seed, 2 * math.prod(output_size), height, width)
    number = float if dtype == torch.float64 else np.float32
    boxes = torch.tensor(rois, dtype=torch.float64 if number is float else torch.float32)
    boxes = boxes.reshape(-1, 5)
    nested = reference.ps_roi_pool(
        features.tolist(), boxes.double().tolist(), output_size, scale, number
    )
    wanted = tensor_of(nested, rois, features, output_size)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    x = features.to(dtype).contiguous(memory_format=format_)
    pooled = ops.ps_roi_pool(x, boxes, output_size, scale)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), wanted, rtol=0, atol=TOLERANCE[dtype])


@given(
    seeds, sides, sides, rois_of(half_pixels), BINS, st.sampled_from([1.0, 0.25, 0.5]),
    st.sampled_from([-1, 1, 2, 5]), st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_align(seed, height, width, rois, output_size, scale, ratio, dtype, channels_last):
    """Corners are multiples of 1/8 of a cell: the number of samples is the same in any dtype."""
    features = feature_map(seed, 2 * math.prod(output_size), height, width)
    nested = reference.ps_roi_align(features.tolist(), rois, output_size, scale, ratio)
    wanted = tensor_of(nested, rois, features, output_size)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    x = features.to(dtype).contiguous(memory_format=format_)
    boxes = torch.tensor(rois, dtype=torch.float64).reshape(-1, 5)
    # A sample at the edge of what counts may fall to either side of it in float32.
    if dtype != torch.float64 and output_size != (1, 1):
        boxes, wanted = _without_edges(boxes, wanted, features, scale)
    pooled = ops.ps_roi_align(x, boxes, output_size, scale, ratio)
    torch.testing.assert_close(pooled.double(), wanted, rtol=0, atol=TOLERANCE[dtype])


def _without_edges(boxes, wanted, features, scale):
    """The RoIs that stay on the map."""
    limit = torch.tensor([features.shape[3], features.shape[2]] * 2) - 0.5
    cells = boxes[:, 1:] * scale - 0.5
    inside = ((cells > -0.9) & (cells < limit)).all(1) if len(boxes) else torch.zeros(0).bool()
    return boxes[inside], wanted[inside]


@given(seeds, rois_of(coordinate()), st.sampled_from([-1, 2]))
def test_any_coordinates(seed, rois, ratio):
    """Nothing crashes, results are finite, and 0 without an image or with a corner not finite."""
    features = feature_map(seed, 8, 7, 9).requires_grad_()
    boxes = torch.tensor(rois, dtype=torch.float64).reshape(-1, 5)
    for pooled in (
        ops.ps_roi_pool(features, boxes, 2, 0.25),
        ops.ps_roi_align(features, boxes, 2, 0.25, ratio),
    ):
        assert pooled.isfinite().all() and pooled.abs().le(2 + 1e-9).all()
        bad = ~boxes.isfinite().all(1) | (boxes[:, 0] < 0) | (boxes[:, 0] >= 2)
        assert not pooled[bad].any()
        (grad,) = torch.autograd.grad(pooled.sum(), features)
        assert grad.isfinite().all()


def test_cells_of_weight_zero_are_not_looked_at(device):
    """Samples on the middle of cells, with NaN around them."""
    features = torch.full((1, 1, 5, 5), math.nan, device=device)
    features[0, 0, 2, 2] = 3
    boxes = torch.tensor([[0.0, 2, 2, 3, 3]], device=device)
    assert ops.ps_roi_align(features, boxes, 1).item() == 3
    assert ops.ps_roi_pool(features, boxes, 1).item() == 3


def test_boxes_without_an_area(device):
    features = torch.ones(1, 1, 5, 5, device=device)
    boxes = torch.tensor([[0.0, 2, 2, 2, 3], [0, 3, 3, 1, 1]], device=device)
    assert ops.ps_roi_align(features, boxes, 1).flatten().tolist() == [0, 0]
    assert ops.ps_roi_align(features, boxes, 1, 1.0, 2).flatten().tolist() == [1, 1]
    assert ops.ps_roi_pool(features, boxes, 1).flatten().tolist() == [1, 1]


def test_list_modules_and_channels_last(device):
    features = feature_map(0, 18, 9, 9).float().to(device)
    boxes = [torch.tensor([[0.0, 0, 5, 5]], device=device), torch.ones(2, 4, device=device)]
    rows = torch.cat([torch.tensor([[0.0], [1], [1]], device=device), torch.cat(boxes)], 1)
    last = features.contiguous(memory_format=torch.channels_last)
    for module, function in (
        (ops.PSRoIPool(3, 0.5), lambda x: ops.ps_roi_pool(x, rows, 3, 0.5)),
        (ops.PSRoIAlign(3, 0.5, 2), lambda x: ops.ps_roi_align(x, rows, 3, 0.5, 2)),
    ):
        assert torch.equal(module(features, boxes), function(features))
        pooled = function(last.requires_grad_())
        assert pooled.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pooled, function(features))
        (grad,) = torch.autograd.grad(pooled.sum(), last)
        assert grad.is_contiguous(memory_format=torch.channels_last)


# --- gradient ----------------------------------------------------------------------------------


@given(seeds, rois_of(half_pixels), BINS, st.sampled_from([0, -1, 2]))
def test_gradient_is_the_transpose(seed, rois, output_size, ratio):
    """The op is linear: <f(x), g> = <x, gradient of g>."""
    features = feature_map(seed, 2 * math.prod(output_size), 8, 11).requires_grad_()
    boxes = torch.tensor(rois, dtype=torch.float64).reshape(-1, 5)
    if ratio == 0:
        pooled = ops.ps_roi_pool(features, boxes, output_size, 0.25)
    else:
        pooled = ops.ps_roi_align(features, boxes, output_size, 0.25, ratio)
    grad_out = torch.arange(pooled.numel()).reshape(pooled.shape).double() % 7 - 3
    (grad,) = torch.autograd.grad(pooled, features, grad_out)
    torch.testing.assert_close((grad * features).sum(), (pooled * grad_out).sum())


# --- errors ------------------------------------------------------------------------------------

MAP, BOXES = torch.zeros(2, 8, 4, 4), torch.zeros(1, 5)


@pytest.mark.parametrize("op", ["ps_roi_pool", "ps_roi_align"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], BOXES, 2), TypeError, "input must be a tensor, got list"),
        ((MAP[0], BOXES, 2), ValueError, r"input must have shape \[B, C, H, W\], got \[8, 4, 4\]"),
        ((MAP, BOXES, 3), ValueError, r"input must have a multiple of 3 x 3 channels, got \[2, 8"),
        ((MAP, BOXES[:, :4], 2), ValueError, r"boxes must have shape \[R, 5\], got \[1, 4\]"),
        ((MAP, BOXES, (2, 0)), ValueError, r"output_size must be at least 1, got \(2, 0\)"),
        ((MAP, BOXES, 2, math.inf), ValueError, "spatial_scale must be finite and above 0"),
    ],
)
def test_errors(op, arguments, error, message):
    with pytest.raises(error, match=f"^{op}: {message}"):
        getattr(ops, op)(*arguments)


def test_errors_of_align():
    with pytest.raises(TypeError, match=r"^ps_roi_align: sampling_ratio must be an integer, got"):
        ops.ps_roi_align(MAP, BOXES, 2, 1.0, 2.0)


@pytest.mark.parametrize(
    "arguments",
    [
        (MAP[0], BOXES, 1.0, 2, 2, 1, True),
        (MAP, BOXES[:, :4], 1.0, 2, 2, 1, True),
        (MAP, BOXES.double(), 1.0, 2, 2, 1, True),
        (MAP[:, :3], BOXES, 1.0, 2, 2, 1, True),
        (MAP, BOXES, 1.0, 0, 2, 1, True),
    ],
)
def test_the_kernel_protects_itself(arguments):
    with pytest.raises((ValueError, TypeError), match="ps_roi"):
        torch.ops.pydet.ps_roi(*arguments)
    with pytest.raises((ValueError, TypeError), match="ps_roi_backward"):
        grad_out = torch.zeros(2, 2, 2, 2)
        torch.ops.pydet.ps_roi_backward(grad_out, BOXES, 1, 4, 4, False, *arguments[2:])
