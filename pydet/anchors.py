# SPDX-License-Identifier: Apache-2.0
"""Anchors: boxes of a few sizes and ratios at every location of every level.

Order: level, then row, then column, then the anchors of the location (level, H, W, A). Two anchors
a location, one wide and one tall, on a level of 2 x 3 locations::

         column 0         1         2
    row 0   [0, 1]    [2, 3]    [4, 5]
    row 1   [6, 7]    [8, 9]  [10, 11]
             |  `- tall: index = (row · 3 + column) · 2 + 1
             `---- wide: index = (row · 3 + column) · 2

The location in row r and column c is the point ((c + offset) · stride, (r + offset) · stride).

:class:`AnchorGenerator` has the same ratios for all sizes and levels (Faster R-CNN, RetinaNet),
:class:`DefaultBoxGenerator` the default boxes of SSD.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pydet.structures import Size, _to_device

_CACHED_SHAPES = 16  # a multi-scale training has some ten; at 800 x 1333 one is 3 MB


class _BoxGenerator(ABC):
    """Puts the boxes of each level at each of its locations; keeps those of the last few shapes."""

    def __init__(self, num_levels: int, strides: Sequence[int] | None, offset: float) -> None:
        self.strides = None if strides is None else tuple(strides)
        self.offset = float(offset)
        self._num_levels = num_levels
        self._cache: OrderedDict[Any, Tensor] = OrderedDict()
        if self.strides is not None and len(self.strides) != num_levels:
            raise ValueError(
                f"{type(self).__name__}: strides must be one for each of the {num_levels} levels, "
                f"got {strides}"
            )

    @abstractmethod
    def _stride(self, image_side: int, map_side: int) -> float:
        """Pixels from one location to the next where strides are None."""

    @abstractmethod
    def _base(self, level: int, image_size: Size) -> Tensor:
        """[Al, 4] float32 boxes of one location of a level, by its index, about (0, 0)."""

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
            image_size: (H, W) of the batch.
            device: Where the anchors are to lie.
            dtype: Of the result; computed in float32.

        Returns:
            [A, 4] xyxy in pixels of the batch; some reach out of the image. Not to be written to:
            the next call of the same shapes returns the same tensor.
        """
        if len(feature_sizes) != self._num_levels:
            raise ValueError(
                f"{type(self).__name__}: feature_sizes must be of {self._num_levels} levels, "
                f"got {len(feature_sizes)}"
            )
        if torch.compiler.is_compiling():
            # In a traced graph sizes may be symbols and the anchors become part of the graph.
            return self._make(feature_sizes, image_size, device, dtype)
        key = (tuple(map(tuple, feature_sizes)), tuple(image_size), device, dtype)
        cached = self._cache.get(key)
        if cached is not None:
            with suppress(KeyError):  # another thread may have dropped it by now
                self._cache.move_to_end(key)
            return cached
        # A tensor made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            anchors = self._make(feature_sizes, image_size, device, dtype)
        self._cache[key] = anchors
        if len(self._cache) > _CACHED_SHAPES:
            with suppress(KeyError):  # likewise
                self._cache.popitem(last=False)
        return anchors

    def for_maps(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Anchors [A, 4] of the levels' maps [B, C, Hl, Wl] of images [B, 3, H, W].

        They are float32; float64 for such images. Otherwise as by calling the generator.
        """
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        return self(sizes, (images.shape[2], images.shape[3]), images.device, dtype)

    def _make(
        self,
        feature_sizes: Sequence[Size],
        image_size: Size,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        levels = []
        for level, size in enumerate(feature_sizes):
            axes = [
                (torch.arange(side, device=device, dtype=torch.float32) + self.offset)
                * (self._stride(image, side) if self.strides is None else self.strides[level])
                for side, image in zip(size, image_size, strict=True)
            ]
            y, x = torch.meshgrid(*axes, indexing="ij")  # [Hl, Wl]
            centers = torch.stack((x, y, x, y), dim=-1)
            base = _to_device(self._base(level, image_size), device)
            levels.append((centers[:, :, None] + base).reshape(-1, 4))  # [Hl·Wl·Al, 4]
        return torch.cat(levels).to(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}  # copies and pickles make their own


class AnchorGenerator(_BoxGenerator):
    """Makes the anchors of a pyramid; those of a location by ratio, then by size.

    ratio = height / width, size = sqrt(width · height).

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
        self.rounding = rounding
        if not self.sizes or any(len(level) != len(self.sizes[0]) for level in self.sizes):
            raise ValueError(
                "AnchorGenerator: sizes must hold as many sizes for each level, at least one, "
                f"got {sizes}"
            )
        super().__init__(len(self.sizes), strides, offset)
        numbers = [*sum(self.sizes, ()), *self.ratios, *(self.strides or ())]
        if not self.ratios or not self.sizes[0] or not all(0 < n < math.inf for n in numbers):
            raise ValueError(
                "AnchorGenerator: sizes, ratios and strides must be positive and at least one "
                f"each, got {sizes}, {ratios}, {strides}"
            )

    @property
    def num_per_location(self) -> int:
        """Anchors at each location."""
        return len(self.ratios) * len(self.sizes[0])

    def _stride(self, image_side: int, map_side: int) -> float:
        return image_side // map_side

    def _base(self, level: int, image_size: Size) -> Tensor:
        height = torch.tensor(self.ratios).sqrt()[:, None]  # [ratios, 1], of an area of 1
        size = torch.tensor(self.sizes[level])[None]
        heights, widths = (height * size).flatten(), (1 / height * size).flatten()
        base = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
        return base.round() if self.rounding else base


class DefaultBoxGenerator(_BoxGenerator):
    """Makes the default boxes of SSD: Liu et al., arXiv 1512.02325, section 2.2.

    At each location of level k, in this order: a square of side s_k; a square of side
    sqrt(s_k · s_{k+1}); for each ratio r of the level a wide box of s_k · sqrt(r) by s_k / sqrt(r)
    and the same upright.

    Args:
        sizes: s_k of each level in pixels, low stride first, and one more for the last level's
            second square.
        ratios: Of each level: long side / short side.
        strides: Pixels from one location to the next, of each level. None: the image's size divided
            by the map's, as the paper has it; the authors' code has strides.
        offset: Of the locations, in strides. 0.5: the centre of the cell's square.
        clip: Whether no box is wider or higher than the image, as in torchvision. Boxes that reach
            out of it are left as they are.

    Raises:
        ValueError: No levels, or sizes, ratios or strides that are not positive or do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[float],
        ratios: Sequence[Sequence[float]],
        strides: Sequence[int] | None,
        *,
        offset: float = 0.5,
        clip: bool = False,
    ) -> None:
        self.sizes = tuple(map(float, sizes))
        self.ratios = tuple(tuple(map(float, level)) for level in ratios)
        self.clip = clip
        if not self.ratios or len(self.sizes) != len(self.ratios) + 1:
            raise ValueError(
                "DefaultBoxGenerator: sizes must be one more than the levels of ratios, "
                f"got {sizes} and {ratios}"
            )
        super().__init__(len(self.ratios), strides, offset)
        numbers = [*self.sizes, *sum(self.ratios, ()), *(self.strides or ())]
        if not all(0 < n < math.inf for n in numbers):
            raise ValueError(
                "DefaultBoxGenerator: sizes, ratios and strides must be positive, "
                f"got {sizes}, {ratios}, {strides}"
            )

    @property
    def num_per_location(self) -> tuple[int, ...]:
        """Default boxes at each location of each level."""
        return tuple(2 + 2 * len(level) for level in self.ratios)

    def _stride(self, image_side: int, map_side: int) -> float:
        return image_side / map_side

    def _base(self, level: int, image_size: Size) -> Tensor:
        size, following = self.sizes[level : level + 2]
        between = math.sqrt(size * following)
        widths, heights = [size, between], [size, between]
        for ratio in self.ratios[level]:
            long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
            widths += [long, short]
            heights += [short, long]
        x, y = torch.tensor(widths) / 2, torch.tensor(heights) / 2
        if self.clip:
            height, width = image_size
            x, y = x.clamp(max=width / 2), y.clamp(max=height / 2)
        return torch.stack((-x, -y, x, y), dim=1)


def permute_to_anchors(x: Tensor, last: int) -> Tensor:
    """[B, A·last, Hl, Wl] to [B, Hl·Wl·A, last]: in channels_last memory the same bytes."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)
