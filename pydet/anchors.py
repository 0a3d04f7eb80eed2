# SPDX-License-Identifier: Apache-2.0
"""Anchors: boxes of a few sizes and ratios at every location of every level.

Order: level, then row, then column, then the anchors of the location (level, H, W, A); the anchors
of a location by ratio, then by size. Two ratios (1/2: wide, 2: tall) and one size on a level of
2 x 3 locations::

         column 0         1         2              ratio = height / width
    row 0   [0, 1]    [2, 3]    [4, 5]             size  = sqrt(width · height)
    row 1   [6, 7]    [8, 9]  [10, 11]
             |  `- tall: index = (row · 3 + column) · 2 + 1
             `---- wide: index = (row · 3 + column) · 2

The location in row r and column c is the point ((c + offset) · stride, (r + offset) · stride).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pydet.structures import Size, _to_device

_CACHED_SHAPES = 16  # a multi-scale training has some ten; at 800 x 1333 one is 3 MB


class AnchorGenerator:
    """Makes the anchors of a pyramid; keeps those of the last few shapes.

    Args:
        sizes: Of each level: the sides in pixels of square anchors of the same area.
        ratios: Height / width; the same for every level.
        strides: Pixels from one location to the next, of each level. None: the image's size divided
            by the map's, rounded down, as torchvision has it; where a map's size was rounded up,
            that is less than the true stride.
        offset: Of the locations, in strides. 0: the centre of what a cell of a ResNet sees (its
            convolutions are padded so); 0.5: the centre of the cell's square.
        rounding: Whether corners about (0, 0) are rounded to whole pixels, as torchvision does.

    Raises:
        ValueError: No levels, or sizes, ratios or strides that are not positive or do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int] | None,
        *,
        offset: float = 0.0,
        rounding: bool = False,
    ) -> None:
        self.sizes = tuple(tuple(float(size) for size in level) for level in sizes)
        self.ratios = tuple(float(ratio) for ratio in ratios)
        self.strides = None if strides is None else tuple(strides)
        self.offset = float(offset)
        self.rounding = rounding
        if not self.sizes or any(len(level) != len(self.sizes[0]) for level in self.sizes):
            raise ValueError(
                "AnchorGenerator: sizes must hold as many sizes for each level, at least one, "
                f"got {sizes}"
            )
        if self.strides is not None and len(self.strides) != len(self.sizes):
            raise ValueError(
                f"AnchorGenerator: strides must be one for each of the {len(self.sizes)} levels, "
                f"got {strides}"
            )
        numbers = [*sum(self.sizes, ()), *self.ratios, *(self.strides or ())]
        if not self.ratios or not self.sizes[0] or not all(0 < n < math.inf for n in numbers):
            raise ValueError(
                "AnchorGenerator: sizes, ratios and strides must be positive and at least one "
                f"each, got {sizes}, {ratios}, {strides}"
            )
        self._cache: OrderedDict[Any, Tensor] = OrderedDict()

    @property
    def num_per_location(self) -> int:
        """Anchors at each location."""
        return len(self.ratios) * len(self.sizes[0])

    def __call__(
        self,
        feature_sizes: Sequence[Size],
        image_size: Size,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Anchors of all levels together.

        Args:
            feature_sizes: (Hl, Wl) of each level.
            image_size: (H, W) of the batch; used where strides are None.
            device: Where the anchors are to lie.
            dtype: Of the result; computed in float32.

        Returns:
            [A, 4] xyxy in pixels of the batch; some reach out of the image. Not to be written to:
            the next call of the same shapes returns the same tensor.
        """
        if len(feature_sizes) != len(self.sizes):
            raise ValueError(
                f"AnchorGenerator: feature_sizes must be of {len(self.sizes)} levels, "
                f"got {len(feature_sizes)}"
            )
        strides = [
            (image_size[0] // height, image_size[1] // width) if self.strides is None else (s, s)
            for (height, width), s in zip(
                feature_sizes, self.strides or [0] * len(self.sizes), strict=True
            )
        ]
        if torch.compiler.is_compiling():
            # In a traced graph sizes may be symbols and the anchors become part of the graph.
            return self._make(feature_sizes, strides, device, dtype)
        key = (tuple(map(tuple, feature_sizes)), tuple(strides), device, dtype)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # A tensor made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            anchors = self._make(feature_sizes, strides, device, dtype)
        self._cache[key] = anchors
        if len(self._cache) > _CACHED_SHAPES:
            self._cache.popitem(last=False)
        return anchors

    def _make(
        self,
        feature_sizes: Sequence[Size],
        strides: Sequence[Size],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        levels = []
        for sizes, (height, width), (stride_y, stride_x) in zip(
            self.sizes, feature_sizes, strides, strict=True
        ):
            x = (torch.arange(width, device=device, dtype=torch.float32) + self.offset) * stride_x
            y = (torch.arange(height, device=device, dtype=torch.float32) + self.offset) * stride_y
            y, x = torch.meshgrid(y, x, indexing="ij")  # [Hl, Wl]
            centers = torch.stack((x, y, x, y), dim=-1)
            base = _to_device(self._base(sizes), device)
            levels.append((centers[:, :, None] + base).reshape(-1, 4))  # [Hl·Wl·A, 4]
        return torch.cat(levels).to(dtype)

    def _base(self, sizes: Sequence[float]) -> Tensor:
        """[A, 4] anchors of one location about (0, 0)."""
        height = torch.tensor(self.ratios).sqrt()[:, None]  # [ratios, 1], of an area of 1
        size = torch.tensor(sizes)[None]
        heights, widths = (height * size).flatten(), (1 / height * size).flatten()
        base = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
        return base.round() if self.rounding else base

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}  # copies and pickles make their own


def permute_to_anchors(x: Tensor, last: int) -> Tensor:
    """[B, A·last, Hl, Wl] to [B, Hl·Wl·A, last]: in channels_last memory the same bytes."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)
