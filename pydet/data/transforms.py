# SPDX-License-Identifier: Apache-2.0
"""Transforms of an image together with its boxes: composing, resizing, flipping.

A transform is any callable ``(image, target) -> (image, target)``; those of pydet take images [3,
H, W] uint8, leave their arguments unchanged, and draw random numbers from torch's global generator
only. Each tensor of a target that has at least one dimension belongs to the boxes, one row each,
and follows them. Those that resize choose the size that a detector of no fixed size learns from,
unless a later one cuts or enlarges the image again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor

from pydet.preprocessing import resize_image
from pydet.structures import Target

Sample = tuple[Tensor, Target]
Transform = Callable[[Tensor, Target], Sample]


class Compose:
    """Applies transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


class ResizeShortSide:
    """Scales the short side to ``size`` pixels, but the long side at most to ``max_size``.

    The aspect ratio is kept up to rounding to whole pixels; boxes are scaled by the sizes that
    result.

    Args:
        size: Pixels of the short side, or several of which one is drawn for each image.
        max_size: Most pixels of the long side; None for no limit.
    """

    def __init__(self, size: int | Sequence[int], max_size: int | None = None) -> None:
        name = type(self).__name__
        sizes = size if isinstance(size, Iterable) else (size,)
        self.sizes = check_numbers(name, "size", sizes, whole=True)
        self.max_size = max_size
        if min(self.sizes) < 1:
            raise ValueError(f"{name}: size must be positive, got {size}")
        if max_size is not None:
            check_number(name, "max_size", max_size, whole=True)
            if max_size < 1:
                raise ValueError(f"{name}: max_size must be positive, got {max_size}")

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        size = self.sizes[_randint(len(self.sizes))] if len(self.sizes) > 1 else self.sizes[0]
        height, width = image.shape[1:]
        scale = size / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        new = (max(1, round(height * scale)), max(1, round(width * scale)))
        return mark_sized(*resize(image, target, new))

    def __repr__(self) -> str:
        return f"ResizeShortSide({list(self.sizes)}, max_size={self.max_size})"


class ResizeFixed:
    """Scales every image to one size, whatever its aspect ratio.

    Args:
        height: Pixels of the result.
        width: Pixels of the result.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = check_size(type(self).__name__, height, width)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        return mark_sized(*resize(image, target, self.size))

    def __repr__(self) -> str:
        return f"ResizeFixed(height={self.size[0]}, width={self.size[1]})"


class RandomHorizontalFlip:
    """Mirrors left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability("RandomHorizontalFlip", p)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        if not _happens(self.p):
            return image, target
        x1, y1, x2, y2 = target["boxes"].unbind(-1)
        width = image.shape[2]
        boxes = torch.stack((width - x2, y1, width - x1, y2), dim=-1)
        return image.flip(2), with_boxes(target, boxes)

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


class RandomVerticalFlip:
    """Mirrors top and bottom with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability("RandomVerticalFlip", p)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        if not _happens(self.p):
            return image, target
        x1, y1, x2, y2 = target["boxes"].unbind(-1)
        height = image.shape[1]
        boxes = torch.stack((x1, height - y2, x2, height - y1), dim=-1)
        return image.flip(1), with_boxes(target, boxes)

    def __repr__(self) -> str:
        return f"RandomVerticalFlip(p={self.p})"


def resize(image: Tensor, target: Target, size: tuple[int, int]) -> Sample:
    """Scales image, boxes and areas to ``size`` (height, width).

    The image is resampled bilinearly, with antialiasing when it shrinks. Boxes are multiplied by
    the quotient of the new and the old size, which need not be the same for both sides.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, target
    scale_y, scale_x = size[0] / height, size[1] / width
    boxes = target["boxes"]
    target = with_boxes(target, boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y]))
    if "area" in target:
        target["area"] = target["area"] * (scale_x * scale_y)
    return resize_image(image, size), target


def mark_sized(image: Tensor, target: Target) -> Sample:
    """The image and a copy of ``target`` that says that its size was chosen: not to be changed."""
    marked = target.copy()
    marked["sized"] = (image.shape[1], image.shape[2])
    return image, marked


def with_boxes(target: Target, boxes: Tensor) -> Target:
    """A copy of ``target`` with other boxes [G, 4]."""
    changed = target.copy()
    changed["boxes"] = boxes
    return changed


def select_boxes(target: Target, keep: Tensor) -> Target:
    """A copy of ``target`` with only some of its boxes, and of all that belongs to them.

    Args:
        target: The objects; every tensor in it with at least one dimension has G rows.
        keep: [G] bool, or [G'] int64 indices.

    Raises:
        ValueError: A tensor of the target has another number of rows than it has boxes.
    """
    count = len(target["boxes"])
    selected: dict[str, Any] = {}
    for key, value in target.items():
        if isinstance(value, Tensor) and value.ndim > 0:
            if len(value) != count:
                raise ValueError(
                    f"target: {key} must have one row for each of the {count} boxes, got "
                    f"{list(value.shape)}; what belongs to the whole image must be no tensor with "
                    "dimensions"
                )
            selected[key] = value[keep]
        else:
            selected[key] = value
    return cast(Target, selected)


def is_ignored(target: Target) -> Tensor:
    """[G] bool: which boxes are neither foreground nor background."""
    boxes = target["boxes"]
    return target.get("ignored", torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))


def check_probability(name: str, p: Any) -> float:
    """Returns ``p`` if it is a probability.

    Raises:
        TypeError: It is no number.
        ValueError: It is not in [0, 1].
    """
    check_number(name, "p", p)
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p must lie in [0, 1], got {p}")
    return float(p)


def check_number(name: str, argument: str, value: Any, *, whole: bool = False) -> None:
    """Refuses what is no number.

    Args:
        name: The transform, for the sentence.
        argument: Its argument.
        value: What was given.
        whole: Whether it must be a whole number.

    Raises:
        TypeError: It is of another type; True and False are no numbers.
        ValueError: It is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        what = "a whole number" if whole else "a number"
        raise TypeError(f"{name}: {argument} must be {what}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {argument} must be finite, got {value}")


def check_size(name: str, height: Any, width: Any) -> tuple[int, int]:
    """Returns (height, width) if both are positive whole numbers.

    Raises:
        TypeError: One is no whole number.
        ValueError: One is not positive.
    """
    check_number(name, "height", height, whole=True)
    check_number(name, "width", width, whole=True)
    if height < 1 or width < 1:
        raise ValueError(f"{name}: the size must be positive, got {height} x {width}")
    return height, width


def check_numbers(
    name: str, argument: str, values: Any, count: int | None = None, *, whole: bool = False
) -> tuple[Any, ...]:
    """Returns a list of numbers as a tuple.

    Args:
        name: The transform, for the sentence.
        argument: Its argument.
        values: What was given.
        count: How many there must be; None: at least one.
        whole: Whether they must be whole numbers.

    Raises:
        TypeError: It is no list, or one of its items no number.
        ValueError: There are more or fewer, or one is NaN or infinite.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name}: {argument} must be a list of numbers, got {values!r}")
    items = tuple(values)
    if not items or len(items) != (count or len(items)):
        wanted = f"have {count} numbers" if count else "not be empty"
        raise ValueError(f"{name}: {argument} must {wanted}, got {items}")
    for i, item in enumerate(items):
        check_number(name, f"{argument}[{i}]", item, whole=whole)
    return items


def _happens(p: float) -> bool:
    return float(torch.rand(())) < p


def _randint(high: int) -> int:
    return int(torch.randint(high, ()))


def uniform(low: float, high: float) -> float:
    """A number in [low, high) from torch's global generator."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))
