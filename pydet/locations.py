# SPDX-License-Identifier: Apache-2.0
"""Locations of a pyramid, and which ground truth they lie in: assignment without anchors.

The locations of a level are a grid: column c and row r are the point ((c + offset) · stride,
(r + offset) · stride). So those that lie in a box need not be searched among all: they are a run of
columns and a run of rows, and as a level only learns boxes of some sizes, the runs have bounded
lengths. Every pair of a box and a place in that window is looked at, about a thousand a box,
instead of every pair of a box and a location, twenty thousand a box.

Letters: B images, A locations of all levels, ΣG boxes of the batch, Q places in the windows of all
levels, R rows of all levels.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pydet.ops.match_anchors import BACKGROUND, IGNORED
from pydet.structures import PackedTargets, _to_device

_PAIRS = 2**19  # of boxes and places that are held at a time: some 100 MB


class LevelGrid(NamedTuple):
    """The locations of one level, and what they learn."""

    height: int  # rows
    width: int  # columns
    stride_y: int  # pixels from one row to the next
    stride_x: int
    low: float  # the greatest distance to a side of the box is at least this, in pixels,
    high: float  # and at most this
    radius: float  # how far a location may be from the box's centre, along each axis, in pixels


def assign_locations(grids: Sequence[LevelGrid], offset: float, targets: PackedTargets) -> Tensor:
    """The smallest box that each location of each image lies in and that its level learns.

    A location learns a box if it lies inside of it and nearer to its centre than the level's
    radius, and if the greatest of its distances to the four sides is one that the level learns. Of
    several such boxes it takes the one of least area, of equal ones the earlier. A location that
    takes none and lies in an ignored box, of whatever size, is ignored. The borders of a box and
    of the radius are outside, those of the distances inside.

    Memory is bounded, however many boxes an image has, and nothing waits for a GPU.

    Args:
        grids: Of each level.
        offset: Of locations, in strides.
        targets: In the same pixels; invalid boxes (NaN) are not taken.

    Returns:
        [B, A] int64: a row of ``targets.boxes``, BACKGROUND or IGNORED; by level, row, column.
    """
    num_boxes, num_images, device = len(targets.boxes), len(targets), targets.boxes.device
    num_locations = sum(grid.height * grid.width for grid in grids)
    area = (targets.boxes[:, 2:] - targets.boxes[:, :2]).prod(1)
    by_area = area.argsort(stable=True)
    rank = by_area.argsort()  # of each box, the smallest 0
    # The rank of the best box of each location; num_boxes: none.
    best = torch.full((num_images * num_locations,), num_boxes, device=device)
    # Ignored boxes that begin at a location, less those that end before it.
    changes = torch.zeros(num_images * num_locations + 1, dtype=torch.int32, device=device)
    box_idxs = torch.arange(num_boxes, device=device)
    image_of = torch.searchsorted(targets.offsets[1:], box_idxs, right=True)  # [ΣG]
    windows, rows = _Windows.of(grids, device), _Rows.of(grids, device)
    for part in _chunks(num_boxes, max(len(windows.first), len(rows.first))):
        boxes, ignored = targets.boxes[part], targets.ignored[part, None]
        first = image_of[part, None] * num_locations
        idxs, learns = windows.locations_in(boxes, offset)  # [g, Q] each
        ranks = torch.where(learns & ~ignored, rank[part, None], num_boxes)
        best.scatter_reduce_(0, (first + idxs).flatten(), ranks.flatten(), "amin")
        begin, end, inside = rows.runs_in(boxes, offset)  # [g, R] each
        one = (inside & ignored).to(torch.int32).flatten()
        changes.scatter_add_(0, (first + begin).flatten(), one)
        changes.scatter_add_(0, (first + end).flatten(), -one)
    matched = F.pad(by_area, (0, 1), value=BACKGROUND)[best]
    covered = changes[:-1].cumsum(0) > 0
    matched = torch.where((matched < 0) & covered, IGNORED, matched)
    return matched.view(num_images, num_locations)


class _Windows(NamedTuple):
    """The places of all levels' windows, level after level, each [Q]."""

    first: Tensor  # int64, index of the level's first location
    height: Tensor  # int64, of the level
    width: Tensor
    row: Tensor  # int64, within the window
    column: Tensor
    stride_y: Tensor  # float32
    stride_x: Tensor
    low: Tensor
    high: Tensor
    radius: Tensor

    @classmethod
    def of(cls, grids: Sequence[LevelGrid], device: torch.device) -> "_Windows":
        parts = []
        first = 0
        for grid in grids:
            # A box that reaches further than that from its centre is not of this level.
            reach = min(grid.high, grid.radius)
            spans = [
                size if math.isinf(reach) else min(size, math.ceil(2 * reach / stride) + 2)
                for size, stride in ((grid.height, grid.stride_y), (grid.width, grid.stride_x))
            ]
            row, column = (
                i.flatten() for i in torch.meshgrid(*map(torch.arange, spans), indexing="ij")
            )
            level = [torch.full_like(row, n) for n in (first, grid.height, grid.width)]
            numbers = [torch.full(row.shape, float(n)) for n in grid[2:]]
            parts.append([*level, row, column, *numbers])
            first += grid.height * grid.width
        return cls(*(_to_device(torch.cat(part), device) for part in zip(*parts, strict=True)))

    def locations_in(self, boxes: Tensor, offset: float) -> tuple[Tensor, Tensor]:
        """Indices of locations [g, Q] within an image, and whether they learn the box."""
        x1, y1, x2, y2 = boxes[..., None].unbind(1)  # [g, 1] each
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        left = torch.maximum(x1, center_x - self.radius)
        top = torch.maximum(y1, center_y - self.radius)
        column = _first_cell(left, self.stride_x, offset, self.width) + self.column
        row = _first_cell(top, self.stride_y, offset, self.height) + self.row
        x, y = (column + offset) * self.stride_x, (row + offset) * self.stride_y
        sides = torch.stack((x - x1, y - y1, x2 - x, y2 - y))  # [4, g, Q]
        farthest = sides.amax(0)
        learns = (sides.amin(0) > 0) & (farthest >= self.low) & (farthest <= self.high)
        learns &= torch.maximum((x - center_x).abs(), (y - center_y).abs()) < self.radius
        learns &= (column < self.width) & (row < self.height)
        idxs = self.first + row * self.width + column
        return idxs.where(learns, 0), learns


class _Rows(NamedTuple):
    """The rows of all levels, each [R]."""

    first: Tensor  # int64, index of the row's first location
    width: Tensor  # int64, locations in it
    row: Tensor  # int64, within its level
    stride_y: Tensor  # float32
    stride_x: Tensor

    @classmethod
    def of(cls, grids: Sequence[LevelGrid], device: torch.device) -> "_Rows":
        parts = []
        first = 0
        for grid in grids:
            row = torch.arange(grid.height)
            strides = [torch.full(row.shape, float(n)) for n in (grid.stride_y, grid.stride_x)]
            parts.append(
                [first + row * grid.width, torch.full_like(row, grid.width), row, *strides]
            )
            first += grid.height * grid.width
        return cls(*(_to_device(torch.cat(part), device) for part in zip(*parts, strict=True)))

    def runs_in(self, boxes: Tensor, offset: float) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the first location in the box and after the last [g, R], and if there is one."""
        x1, y1, x2, y2 = boxes[..., None].unbind(1)
        y = (self.row + offset) * self.stride_y
        begin = _first_cell(x1, self.stride_x, offset, self.width)
        begin += (begin + offset) * self.stride_x <= x1  # the border is outside
        end = _first_cell(x2, self.stride_x, offset, self.width)
        end += (end + offset) * self.stride_x < x2
        begin, end = begin.minimum(self.width), end.minimum(self.width)
        return self.first + begin, self.first + end, (y > y1) & (y < y2) & (begin < end)


def _first_cell(position: Tensor, stride: Tensor, offset: float, size: Tensor) -> Tensor:
    """int64: the last column (or row) at or before a position; 0 where there is none, or NaN."""
    cell = (position / stride - offset).floor().nan_to_num(0, 0, 0)
    return torch.minimum(cell.clamp(min=0), size.to(cell.dtype)).to(torch.int64)


def _chunks(num_boxes: int, places: int) -> Iterator[slice]:
    step = max(1, _PAIRS // max(1, places))
    for first in range(0, num_boxes, step):
        yield slice(first, first + step)
