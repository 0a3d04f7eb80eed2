# SPDX-License-Identifier: Apache-2.0
"""Assignment of boxes to locations: against the definition, its borders, and its memory."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import locations
from pydet.locations import LevelGrid, assign_locations
from pydet.ops.match_anchors import BACKGROUND, IGNORED
from pydet.structures import PackedTargets, pack_targets
from tests.reference import locations as reference


def packed(*images) -> PackedTargets:
    """Targets of boxes; a fifth entry True makes a box ignored."""
    return pack_targets(
        [
            {
                "boxes": torch.tensor([box[:4] for box in image], dtype=torch.float32).view(-1, 4),
                "labels": torch.zeros(len(image), dtype=torch.int64),
                "ignored": torch.tensor([bool(box[4:]) for box in image], dtype=torch.bool),
            }
            for image in images
        ]
    )


def expected(grids, offset, images) -> list[list[int]]:
    """Of the reference, rows of the packed boxes."""
    rows = []
    first = 0
    for image in images:
        boxes, ignored = [box[:4] for box in image], [bool(box[4:]) for box in image]
        matched = reference.assign_locations(grids, offset, boxes, ignored)
        rows.append([m + first if m >= 0 else m for m in matched])
        first += len(image)
    return rows


# Whole pixels: every distance, area and border has one right answer in float32. Sides of a few
# values make ties of areas and of distances frequent.
corners = st.tuples(st.integers(-8, 40), st.integers(-8, 40))
sides = st.tuples(*[st.sampled_from([0, 4, 8, 16, 16, 24, 33, 64])] * 2)
box = st.builds(
    lambda corner, side, ignored: (
        *corner,
        corner[0] + side[0],
        corner[1] + side[1],
        *([True] if ignored else []),
    ),
    corners,
    sides,
    st.sampled_from([False, False, False, True]),
)
level = st.builds(
    LevelGrid,
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([4, 8, 7]),
    st.sampled_from([4, 8]),
    st.sampled_from([0.0, 8.0, 16.0]),
    st.sampled_from([8.0, 16.0, 32.0, math.inf]),
    st.sampled_from([math.inf, 6.0, 12.0]),
)


@given(
    grids=st.lists(level, min_size=1, max_size=3),
    images=st.lists(st.lists(box, max_size=6), min_size=1, max_size=3),
    offset=st.sampled_from([0.0, 0.5]),
    pairs=st.sampled_from([1, 100, 2**19]),
)
def test_assignment_is_the_definition(grids, images, offset, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "_PAIRS", pairs)  # boxes one at a time, a few, all at once
        assigned = assign_locations(grids, offset, packed(*images))
    assert assigned.tolist() == expected(grids, offset, images)


ONE = LevelGrid(4, 4, 8, 8, 0.0, math.inf, math.inf)  # locations at 4, 12, 20, 28


def assigned(*images, grid=ONE):
    return assign_locations([grid], 0.5, packed(*images)).view(len(images), 4, 4)


def test_smallest_box_takes_what_several_contain():
    found = assigned([(0, 0, 32, 32), (8, 8, 24, 24), (9, 8, 25, 24)])
    assert found[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_of_equal_areas_the_earlier_box_is_taken():
    for boxes in ([(0, 0, 16, 32), (0, 0, 32, 16)], [(0, 0, 32, 16), (0, 0, 16, 32)]):
        assert assigned(boxes)[0, 0, 0] == 0


def test_borders_of_boxes_are_outside():
    found = assigned([(4, 4, 20, 20)])
    assert (found == 0).nonzero()[:, 1:].tolist() == [[1, 1]]


def test_range_is_of_the_farthest_side_and_closed():
    box = (0, 0, 24, 8)  # from the locations of the first row: 20, 12, 20
    for low, high, columns in ((0, 12, [1]), (12, 19, [1]), (13, 20, [0, 2]), (21, 99, [])):
        found = assigned([box], grid=ONE._replace(low=low, high=high))
        assert (found[0, 0] == 0).nonzero().flatten().tolist() == columns


def test_centre_sampling_takes_what_is_near_the_centre():
    found = assigned([(0, 0, 32, 32)], grid=ONE._replace(radius=8.0))
    assert (found == 0).sum() == 4  # 12 and 20, by 4 from the centre at 16
    assert (assigned([(0, 0, 32, 32)], grid=ONE._replace(radius=4.0)) == 0).sum() == 0  # open
    assert (assigned([(0, 0, 32, 32)], grid=ONE._replace(radius=13.0)) == 0).sum() == 16


def test_ignored_boxes_are_neither_foreground_nor_background():
    grids = [ONE._replace(high=8.0), ONE._replace(low=8.0)]
    found = assign_locations(grids, 0.5, packed([(0, 0, 24, 24, True), (0, 0, 16, 16)]))
    for part in found.view(2, 4, 4):  # of the levels that learn it and of those that do not
        assert (part == IGNORED).sum() + (part == 1).sum() == 9
        assert (part == BACKGROUND).sum() == 7
    assert (found == 1).sum() > 0


def test_invalid_boxes_and_empty_images():
    found = assigned([(5, 5, 5, 9), (math.nan,) * 4], [], [(0, 0, 32, 32)])
    assert (found[:2] == BACKGROUND).all()
    assert (found[2] == 2).all()
    assert (assigned([], []) == BACKGROUND).all()


LARGE = """
import math, resource, torch
from pydet.locations import LevelGrid, assign_locations
from pydet.structures import pack_targets

torch.manual_seed(0)
def target():
    start = torch.rand(1000, 2) * torch.tensor([1200.0, 700.0])
    size = torch.rand(1000, 2) * torch.tensor([500.0, 300.0]) + 4
    boxes = torch.cat((start, start + size), 1)
    return {"boxes": boxes, "labels": torch.zeros(1000, dtype=torch.int64)}
limits = (0, 64, 128, 256, 512, math.inf)
grids = [
    LevelGrid(-(-800 // s), -(-1344 // s), s, s, low, high, math.inf)
    for s, low, high in zip((8, 16, 32, 64, 128), limits, limits[1:])
]
targets = pack_targets([target() for _ in range(8)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matched = assign_locations(grids, 0.5, targets)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert matched.shape == (8, 22400) and (matched >= 0).float().mean() > 0.2
print((after - before) // 1024)
"""


def test_thousand_boxes_an_image_take_bounded_memory():
    """8 images of 1000 boxes: less than the 1 424 MB of one image's locations x boxes x 4 sides."""
    assert hasattr(resource, "RUSAGE_SELF")
    command = [sys.executable, "-c", LARGE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 200
