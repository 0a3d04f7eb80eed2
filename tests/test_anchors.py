# SPDX-License-Identifier: Apache-2.0
"""Anchors: order, sizes, ratios, strides, and the copy that is kept of them."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pydet.anchors import AnchorGenerator, DefaultBoxGenerator, permute_to_anchors

CPU = torch.device("cpu")


def test_order_is_level_row_column_ratio_size():
    make = AnchorGenerator([(4, 8), (16, 32)], (1, 4), (8, 16), offset=0.5)
    anchors = make([(2, 3), (1, 2)], (16, 24), CPU)
    expected = []
    for stride, (height, width), sizes in [(8, (2, 3), (4, 8)), (16, (1, 2), (16, 32))]:
        for row, column, ratio, size in itertools.product(
            range(height), range(width), (1, 4), sizes
        ):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            w, h = size / ratio**0.5, size * ratio**0.5
            expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    assert make.num_per_location == 4
    assert anchors.tolist() == expected


def test_offset_zero_is_at_multiples_of_the_stride():
    anchors = AnchorGenerator([(2,)], (1,), (8,))([(2, 2)], (16, 16), CPU)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers.tolist() == [[0, 0], [8, 0], [0, 8], [8, 8]]


def test_strides_from_the_image_differ_by_axis():
    anchors = AnchorGenerator([(2,)], (1,), None)([(3, 2)], (100, 75), CPU)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers[-1].tolist() == [37, 66]


def test_rounding_gives_whole_corners():
    make = AnchorGenerator([(32, 40.3)], (0.5, 2), (8,), rounding=True)
    anchors = make([(4, 4)], (32, 32), CPU)
    assert torch.equal(anchors, anchors.round())
    plain = AnchorGenerator([(32, 40.3)], (0.5, 2), (8,))([(4, 4)], (32, 32), CPU)
    assert (anchors - plain).abs().max() <= 0.5
    assert not torch.equal(plain, plain.round())


def test_area_and_ratio_are_as_asked(device):
    anchors = AnchorGenerator([(10, 20)], (0.5, 1, 3), (4,))([(1, 1)], (4, 4), device)
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    assert anchors.device.type == device.type
    torch.testing.assert_close(
        (width * height).cpu(), torch.tensor([100.0, 400, 100, 400, 100, 400])
    )
    torch.testing.assert_close((height / width).cpu(), torch.tensor([0.5, 0.5, 1, 1, 3, 3]))


def test_same_shapes_give_the_same_tensor_and_few_are_kept():
    make = AnchorGenerator([(8,)], (1,), (8,))
    first = make([(4, 4)], (32, 32), CPU)
    assert make([(4, 4)], (32, 32), CPU) is first
    assert make([(4, 4)], (32, 32), CPU, torch.float64).dtype == torch.float64
    for size in range(1, 40):
        make([(size, size)], (8 * size, 8 * size), CPU)
    assert len(make._cache) == 16
    assert make([(4, 4)], (32, 32), CPU) is not first
    assert not copy.deepcopy(make)._cache


def test_threads_share_a_generator():
    anchors = AnchorGenerator([(8,)], (1,), (8,))

    def ask(seed):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        for side in (order + 1).tolist() * 20:
            assert len(anchors([(side, 1)], (8 * side, 8), CPU)) % side == 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))  # raises what a thread raised


def test_anchors_made_in_inference_can_be_trained_with():
    make = AnchorGenerator([(8,)], (1,), (8,))
    with torch.inference_mode():
        make([(2, 2)], (16, 16), CPU)
    weight = torch.ones(4, requires_grad=True)
    (make([(2, 2)], (16, 16), CPU) * weight).sum().backward()
    assert weight.grad is not None


def test_traced_with_symbolic_sizes_gives_the_same():
    make = AnchorGenerator([(8, 11), (16, 23)], (0.5, 2), (8, 16), rounding=True)

    def run(x):
        height, width = x.shape[-2:]
        sizes = [(height // s, width // s) for s in (8, 16)]
        return make(sizes, (height, width), x.device)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(64, 96), (32, 128)]:
        image = torch.zeros(1, 3, *shape)
        assert torch.equal(compiled(image), run(image))


@pytest.mark.parametrize(
    "arguments",
    [
        ([], (1,), ()),
        ([()], (1,), (8,)),
        ([(8,), (8, 16)], (1,), (8, 16)),
        ([(8,)], (), (8,)),
        ([(8,)], (1,), (8, 16)),
        ([(-8,)], (1,), (8,)),
        ([(8,)], (float("nan"),), (8,)),
        ([(8,)], (1,), (0,)),
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"AnchorGenerator: (sizes|strides)"):
        AnchorGenerator(*arguments)


def test_wrong_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="of 1 levels, got 2"):
        AnchorGenerator([(8,)], (1,), (8,))([(1, 1), (1, 1)], (8, 8), CPU)


def test_default_boxes_are_squares_then_wide_and_tall():
    make = DefaultBoxGenerator((30, 60, 90), ((2,), (2, 3)), (8, 16))
    assert make.num_per_location == (4, 6)
    anchors = make([(2, 3), (1, 2)], (16, 24), CPU)
    expected = []
    for stride, (height, width), size, following, ratios in [
        (8, (2, 3), 30, 60, (2,)),
        (16, (1, 2), 60, 90, (2, 3)),
    ]:
        sides = [(size, size), ((size * following) ** 0.5,) * 2]
        for ratio in ratios:
            long, short = size * ratio**0.5, size / ratio**0.5
            sides += [(long, short), (short, long)]
        for row, column, (w, h) in itertools.product(range(height), range(width), sides):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_default_boxes_fill_the_image_evenly_without_strides():
    anchors = DefaultBoxGenerator((4, 8), ((),), None)([(38, 19)], (300, 200), CPU)
    x, y = ((anchors[::2, :2] + anchors[::2, 2:]) / 2).unbind(1)
    torch.testing.assert_close(x.unique(), (torch.arange(19) + 0.5) / 19 * 200)
    torch.testing.assert_close(y.unique(), (torch.arange(38) + 0.5) / 38 * 300)


def test_default_boxes_are_no_larger_than_the_image_where_asked():
    sizes = ((90, 110), ((4,),), (50,))
    plain = DefaultBoxGenerator(*sizes)([(1, 2)], (50, 100), CPU)
    assert (plain[:, 2:] - plain[:, :2]).max() == 180
    clipped = DefaultBoxGenerator(*sizes, clip=True)([(1, 2)], (50, 100), CPU)
    sides = clipped[:, 2:] - clipped[:, :2]
    torch.testing.assert_close(
        sides[:4], torch.tensor([[90.0, 50], [99.4987, 50], [100, 45], [45, 50]])
    )
    # Only the sides: a box may still reach out of the image.
    torch.testing.assert_close(clipped[:, :2] + clipped[:, 2:], plain[:, :2] + plain[:, 2:])


def test_grids_of_an_image_of_640_by_480():
    """Boxes of five ratios on six grids: 1608 locations, 8040 boxes, 9648 with the extra square."""
    grids = [(1, 2), (2, 3), (4, 5), (8, 10), (15, 20), (30, 40)]
    make = DefaultBoxGenerator((480, 240, 120, 60, 32, 16, 8), ((2, 3),) * 6, None)
    anchors = make(grids, (480, 640), CPU)
    assert sum(height * width for height, width in grids) == 1608
    per_location = anchors.view(1608, 6, 4)
    assert per_location[:, [0, 2, 3, 4, 5]].flatten(0, 1).shape[0] == 8040
    assert anchors.shape[0] == 9648
    # The finest grid's locations are cells of 16 x 16 pixels.
    assert per_location[-1, 0].tolist() == [624, 464, 640, 480]


def test_default_boxes_traced_with_symbolic_sizes_are_the_same():
    make = DefaultBoxGenerator((8, 16, 500), ((2,), (2, 3)), None, clip=True)

    def run(x):
        height, width = x.shape[-2:]
        return make([(height // s, width // s) for s in (8, 16)], (height, width), x.device)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(64, 96), (32, 128)]:
        image = torch.zeros(1, 3, *shape)
        assert torch.equal(compiled(image), run(image))


@pytest.mark.parametrize(
    "arguments",
    [
        ((8,), (), ()),
        ((8,), ((2,),), (8,)),
        ((8, 16), ((2,),), (8, 16)),
        ((8, 0), ((2,),), (8,)),
        ((8, 16), ((-2,),), (8,)),
        ((8, 16), ((2,),), (float("inf"),)),
    ],
)
def test_wrong_arguments_of_default_boxes_are_refused(arguments):
    with pytest.raises(ValueError, match=r"DefaultBoxGenerator: (sizes|strides)"):
        DefaultBoxGenerator(*arguments)


def test_output_order_is_that_of_the_anchors():
    """A map that knows where it is: channel a·K + k, row, column -> anchor index, class."""
    num_anchors, num_classes, height, width = 2, 3, 4, 5
    x = torch.arange(num_anchors * num_classes * height * width).reshape(1, -1, height, width)
    flat = permute_to_anchors(x, num_classes)
    for row, column, a, k in [(0, 0, 0, 0), (1, 2, 1, 2), (3, 4, 0, 1)]:
        anchor = (row * width + column) * num_anchors + a
        assert flat[0, anchor, k] == x[0, a * num_classes + k, row, column]


def test_flattening_channels_last_copies_nothing():
    x = torch.rand(2, 18, 4, 5).to(memory_format=torch.channels_last)
    assert permute_to_anchors(x, 2).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
