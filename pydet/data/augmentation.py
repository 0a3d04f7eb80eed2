# SPDX-License-Identifier: Apache-2.0
"""Random changes: those of SSD (light, crop, zoom: Liu et al., ECCV 2016, section 2.2) and scale.

Like all transforms they draw from torch's global generator only; see :mod:`pydet.data.transforms`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pydet.data.transforms import (
    Sample,
    check_number,
    check_numbers,
    check_probability,
    check_size,
    is_ignored,
    mark_sized,
    resize,
    select_boxes,
    uniform,
    with_boxes,
)
from pydet.structures import Target

# Luma of ITU-R BT.601, and the axes I and Q of the YIQ space in which hue is an angle.
_RGB_TO_YIQ = np.array(
    [
        [0.299, 0.587, 0.114],
        [0.595716, -0.274453, -0.321263],
        [0.211456, -0.522591, 0.311135],
    ]
)
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


class PhotometricDistortion:
    """Random brightness, contrast, saturation and hue, each with probability ``p``.

    SSD's public code adds up to 32 of 255 to all channels, multiplies by 0.5 to 1.5 (contrast),
    multiplies the saturation by 0.5 to 1.5 and turns the hue by up to 18 degrees, the last two in
    HSV. Here saturation and hue are changed in YIQ: there all four steps are linear, so they are
    one 3 x 3 matrix and an offset, applied to the image once (and rounded and clamped once) instead
    of two conversions of every pixel.

    Args:
        brightness: Most that is added or taken away, of 255.
        contrast: (lowest, highest) factor of all channels.
        saturation: (lowest, highest) factor of the distance from grey.
        hue: Most that the hue is turned by, either way, in degrees.
        p: Probability of each of the four.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        p: float = 0.5,
    ) -> None:
        name = type(self).__name__
        check_number(name, "brightness", brightness)
        check_number(name, "hue", hue)
        self.brightness = brightness
        self.contrast = check_numbers(name, "contrast", contrast, 2)
        self.saturation = check_numbers(name, "saturation", saturation, 2)
        self.hue = hue
        self.p = check_probability(name, p)
        for argument, (low, high) in (("contrast", self.contrast), ("saturation", self.saturation)):
            if not 0 <= low <= high:
                raise ValueError(
                    f"{name}: {argument} must be (lowest, highest) >= 0, got {(low, high)}"
                )

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        happens = (torch.rand(4) < self.p).tolist()
        brightness = uniform(-self.brightness, self.brightness) if happens[0] else 0.0
        contrast = uniform(*self.contrast) if happens[1] else 1.0
        saturation = uniform(*self.saturation) if happens[2] else 1.0
        hue = math.radians(uniform(-self.hue, self.hue)) if happens[3] else 0.0
        if not any(happens):
            return image, target
        return adjust_colors(image, brightness, contrast, saturation, hue), target

    def __repr__(self) -> str:
        return (
            f"PhotometricDistortion(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, p={self.p})"
        )


def adjust_colors(
    image: Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """Changes the light of an image [3, H, W] uint8 RGB.

    Args:
        image: The image.
        brightness: Added to all channels, of 255.
        contrast: Factor of all channels, after that.
        saturation: Factor of the distance from grey.
        hue: Angle in the IQ plane, in radians.
    """
    c, s = saturation * math.cos(hue), saturation * math.sin(hue)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    # NumPy for these nine numbers: torch would wake its threads for them.
    matrix = contrast * (_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ)
    offset = matrix.sum(axis=1, keepdims=True) * brightness + 0.5  # + 0.5: the cast cuts off
    pixels = image.reshape(3, -1).float()
    changed = torch.addmm(
        torch.from_numpy(offset.astype(np.float32)),
        torch.from_numpy(matrix.astype(np.float32)),
        pixels,
    )
    return changed.clamp_(0, 255).to(torch.uint8).view(image.shape)


class RandomIoUCrop:
    """Cuts a random patch out of the image (SSD, section 2.2).

    For each image one of these is drawn: leave it as it is; a patch whose IoU with at least one
    object reaches 0.1, 0.3, 0.5, 0.7 or 0.9; any patch. A patch has 0.3 to 1 of the image's sides
    (the public code's bounds; the paper says 0.1 to 1 of its size) and an aspect ratio of 1/2 to 2.
    Objects whose centre lies in the patch stay, cut at its border; there must be one. If no patch
    of ``trials`` fits, the image stays as it is. Ignored objects do not count as objects, but stay
    as long as any part of them is in the patch, because what is left of them must not become
    background.

    Args:
        min_ious: The demands of which one is drawn; 0 is any patch, and 1 or more leaves the image.
        min_scale: Smallest side of a patch, relative to the image's.
        max_scale: Largest side of a patch, relative to the image's.
        min_aspect_ratio: Smallest width/height of a patch.
        max_aspect_ratio: Largest width/height of a patch.
        trials: Patches that are tried.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (1.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0),
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_aspect_ratio: float = 0.5,
        max_aspect_ratio: float = 2.0,
        trials: int = 50,
    ) -> None:
        name = type(self).__name__
        for argument, value in (
            ("min_scale", min_scale),
            ("max_scale", max_scale),
            ("min_aspect_ratio", min_aspect_ratio),
            ("max_aspect_ratio", max_aspect_ratio),
        ):
            check_number(name, argument, value)
        check_number(name, "trials", trials, whole=True)
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(
                f"{name}: scales must obey 0 < min_scale <= max_scale <= 1, "
                f"got {min_scale}, {max_scale}"
            )
        self.min_ious = check_numbers(name, "min_ious", min_ious)
        self.scale = (min_scale, max_scale)
        self.aspect_ratio = (min_aspect_ratio, max_aspect_ratio)
        self.trials = trials

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        min_iou = self.min_ious[int(torch.randint(len(self.min_ious), ()))]
        if min_iou >= 1:
            return image, target
        patches = self._draw_patches(image.shape[1], image.shape[2])
        objects = target["boxes"][~is_ignored(target)]
        if len(objects):
            fits = (_iou(patches, objects) >= min_iou).any(dim=1)
            fits &= _contains_centers(patches, objects).any(dim=1)
            patches = patches[fits]
        if not len(patches):
            return image, target
        return crop(image, target, [int(v) for v in patches[0].tolist()])

    def _draw_patches(self, height: int, width: int) -> Tensor:
        """[N, 4] xyxy patches with whole corners and an allowed aspect ratio, N <= trials."""
        low, high = self.scale
        draws = torch.rand(self.trials, 4)
        sides = torch.tensor([width, height])
        size = ((low + (high - low) * draws[:, :2]) * sides).floor().clamp(min=1)
        start = (draws[:, 2:] * (sides - size + 1)).floor().minimum(sides - size)
        ratio = size[:, 0] / size[:, 1]
        allowed = (ratio >= self.aspect_ratio[0]) & (ratio <= self.aspect_ratio[1])
        return torch.cat((start, start + size), dim=1)[allowed]

    def __repr__(self) -> str:
        return (
            f"RandomIoUCrop(min_ious={self.min_ious}, scale={self.scale}, "
            f"aspect_ratio={self.aspect_ratio}, trials={self.trials})"
        )


def crop(image: Tensor, target: Target, patch: Sequence[int]) -> Sample:
    """Cuts out a patch; see :class:`RandomIoUCrop` for which objects stay.

    Args:
        image: [3, H, W].
        target: Its objects.
        patch: x1, y1, x2, y2 in whole pixels, inside of the image.
    """
    x1, y1, x2, y2 = patch
    corners = target["boxes"].new_tensor([x1, y1, x2, y2])
    boxes = target["boxes"]
    visible = torch.cat(
        (boxes[:, :2].maximum(corners[:2]), boxes[:, 2:].minimum(corners[2:])), dim=1
    )
    sides = (visible[:, 2:] - visible[:, :2]).clamp(min=0)
    keep = _contains_centers(corners[None], boxes)[0] | is_ignored(target)
    keep &= (sides > 0).all(dim=1)
    cut = with_boxes(target, visible - corners[:2].repeat(2))
    if "area" in target:
        whole = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
        cut["area"] = target["area"] * (sides.prod(dim=1) / whole.clamp(min=1e-6))
    return image[:, y1:y2, x1:x2].clone(), select_boxes(cut, keep)


class RandomZoomOut:
    """Puts the image somewhere on a larger canvas, with probability ``p`` (SSD, section 3.6).

    Small objects gain most from it. The canvas has up to ``max_ratio`` times the image's sides
    (SSD: 4).

    Args:
        max_ratio: Largest side of the canvas relative to the image's.
        fill: RGB of the canvas; the mean of ImageNet by default, which normalisation turns into 0.
        p: Probability.
    """

    def __init__(
        self,
        max_ratio: float = 4.0,
        fill: tuple[int, int, int] = (124, 116, 104),
        p: float = 0.5,
    ) -> None:
        name = type(self).__name__
        check_number(name, "max_ratio", max_ratio)
        if max_ratio < 1:
            raise ValueError(f"{name}: max_ratio must be at least 1, got {max_ratio}")
        self.max_ratio = max_ratio
        self.fill = _check_fill(name, fill)
        self.p = check_probability(name, p)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        if float(torch.rand(())) >= self.p:
            return image, target
        height, width = image.shape[1:]
        ratio = uniform(1.0, self.max_ratio)
        canvas_height, canvas_width = int(height * ratio), int(width * ratio)
        top = int(torch.randint(canvas_height - height + 1, ()))
        left = int(torch.randint(canvas_width - width + 1, ()))
        return pad(image, target, (canvas_height, canvas_width), (top, left), self.fill)

    def __repr__(self) -> str:
        return f"RandomZoomOut(max_ratio={self.max_ratio}, fill={self.fill}, p={self.p})"


class RandomScaleJitter:
    """Scales the image at random and cuts or pads it to one size (Ghiasi et al., CVPR 2021).

    Scale 1 makes the image just fit into the result; the aspect ratio is kept. What is then too
    large is cut at a random place, with the objects whose centre is left (see :func:`crop`); what
    is too small is put at a random place on a canvas. All results have one size, so batches need no
    padding.

    Args:
        height: Pixels of the result.
        width: Pixels of the result.
        min_scale: Smallest scale.
        max_scale: Largest scale.
        fill: RGB of the canvas; the mean of ImageNet by default.
    """

    def __init__(
        self,
        height: int,
        width: int,
        min_scale: float = 0.8,
        max_scale: float = 1.5,
        fill: tuple[int, int, int] = (124, 116, 104),
    ) -> None:
        name = type(self).__name__
        self.size = check_size(name, height, width)
        check_number(name, "min_scale", min_scale)
        check_number(name, "max_scale", max_scale)
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f"{name}: scales must obey 0 < min_scale <= max_scale, got {min_scale}, {max_scale}"
            )
        self.scale = (min_scale, max_scale)
        self.fill = _check_fill(name, fill)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Returns the changed image and its objects."""
        fit = min(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        factor = fit * uniform(*self.scale)
        places = torch.rand(2).tolist()
        # Cut first, so that only what is left has to be resampled.
        spans, inner = [], []
        for side, wanted, place in zip(image.shape[1:], self.size, places, strict=True):
            length = min(side, max(1, round(wanted / factor)))
            start = int(place * (side - length + 1))
            spans.append((start, start + length))
            # A side that was cut fills the result, whatever rounding to whole pixels did to it.
            inner.append(wanted if length < side else min(wanted, max(1, round(side * factor))))
        (y1, y2), (x1, x2) = spans
        if (y2 - y1, x2 - x1) != tuple(image.shape[1:]):
            image, target = crop(image, target, (x1, y1, x2, y2))
        image, target = resize(image, target, (inner[0], inner[1]))
        top, left = (
            int(place * (wanted - length + 1))
            for wanted, length, place in zip(self.size, inner, places, strict=True)
        )
        return mark_sized(*pad(image, target, self.size, (top, left), self.fill))

    def __repr__(self) -> str:
        return (
            f"RandomScaleJitter(height={self.size[0]}, width={self.size[1]}, scale={self.scale}, "
            f"fill={self.fill})"
        )


def _check_fill(name: str, fill: Sequence[int]) -> tuple[int, ...]:
    values = check_numbers(name, "fill", fill, 3, whole=True)
    if not all(0 <= value <= 255 for value in values):
        raise ValueError(f"{name}: fill must be numbers in 0 ... 255, got {values}")
    return values


def pad(
    image: Tensor,
    target: Target,
    size: tuple[int, int],
    place: tuple[int, int],
    fill: Sequence[int],
) -> Sample:
    """Puts the image on a canvas.

    Args:
        image: [3, H, W].
        target: Its objects.
        size: Height and width of the canvas, at least those of the image.
        place: Row and column of the canvas where the image begins.
        fill: RGB of the canvas.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, target
    top, left = place
    canvas = image.new_empty(3, *size)
    for channel, value in zip(canvas, fill, strict=True):
        channel.fill_(value)
    canvas[:, top : top + height, left : left + width] = image
    shift = target["boxes"].new_tensor([left, top, left, top])
    return canvas, with_boxes(target, target["boxes"] + shift)


def _contains_centers(patches: Tensor, boxes: Tensor) -> Tensor:
    """[N, G] bool: whether the centre of a box [G, 4] lies in a patch [N, 4]."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers > patches[:, None, :2]) & (centers < patches[:, None, 2:])
    return inside.all(dim=-1)


def _iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[N, M]; a few dozen boxes, so the plain formula does."""
    low = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    inner = (high - low).clamp(min=0).prod(dim=-1)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(dim=-1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(dim=-1)
    return inner / (area1[:, None] + area2 - inner).clamp(min=1e-6)
