# SPDX-License-Identifier: Apache-2.0
"""From images of any size to the batch that a network sees: resize, pad, normalise.

A :class:`Preprocessing` is part of every model's config and is saved with its weights, because it
is what silently costs precision when it is lost: colour order (RGB), range, mean, deviation,
resize rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pydet.structures import ImageBatch, PackedTargets, Size, Target, _to_device, pack_targets

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How images become a batch, and boxes with them.

    Attributes:
        resize: "short_side": the short side becomes ``size`` pixels unless the long side would pass
            ``max_size``, keeping the ratio of sides (Fast R-CNN, section 2.3). "fixed": every image
            becomes ``size`` = (height, width), whatever its ratio. "none": images stay as they are.
        size: Pixels of the short side, or (height, width).
        max_size: Most pixels of the long side; None: no limit. For "short_side".
        size_divisor: Height and width of a batch are padded to a multiple of it (the coarsest
            stride of the trunk, so that no level is cut).
        antialias: Whether shrinking averages over all pixels that it merges. torchvision's
            detectors do not.
        mean: Of R, G and B in 0 ... 1, subtracted.
        std: Of R, G and B in 0 ... 1, divided by.
        invalid_boxes: "drop": a box that cannot be learnt from (see :class:`PackedTargets`) is kept
            out of training and counted. "raise": it is refused; the check reads values, so it waits
            for a GPU if targets lie there.
    """

    resize: Literal["short_side", "fixed", "none"] = "short_side"
    size: int | Size = 800
    max_size: int | None = 1333
    size_divisor: int = 32
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    invalid_boxes: Literal["drop", "raise"] = "drop"

    def __post_init__(self) -> None:
        if self.resize not in ("short_side", "fixed", "none"):
            self._refuse("resize", "be 'short_side', 'fixed' or 'none'", self.resize)
        if self.resize == "short_side" and not _is_positive_int(self.size):
            self._refuse("size", "be the pixels of the short side, a positive int", self.size)
        if self.resize == "fixed":
            size = self.size
            if isinstance(size, int) or len(size) != 2 or not all(map(_is_positive_int, size)):
                self._refuse("size", "be (height, width), two positive ints", size)
            object.__setattr__(self, "size", tuple(size))  # type: ignore[arg-type]
        if self.max_size is not None and not _is_positive_int(self.max_size):
            self._refuse("max_size", "be a positive int or None", self.max_size)
        if not _is_positive_int(self.size_divisor):
            self._refuse("size_divisor", "be a positive int", self.size_divisor)
        for name in ("mean", "std"):
            value = tuple(getattr(self, name))  # a list, from JSON
            if len(value) != 3 or not all(math.isfinite(v) for v in value):
                self._refuse(name, "be three finite numbers, for R, G and B", value)
            object.__setattr__(self, name, value)
        if not all(v > 0 for v in self.std):
            self._refuse("std", "be positive", self.std)
        if self.invalid_boxes not in ("drop", "raise"):
            self._refuse("invalid_boxes", "be 'drop' or 'raise'", self.invalid_boxes)

    def _refuse(self, name: str, requirement: str, got: Any) -> None:
        raise ValueError(f"Preprocessing: {name} must {requirement}, got {got!r}")

    def resized_size(self, size: Size) -> Size:
        """The (height, width) that an image of (height, width) ``size`` is resized to."""
        if self.resize == "fixed":
            assert not isinstance(self.size, int)
            return self.size
        if self.resize == "none":
            return size
        assert isinstance(self.size, int)
        scale = self.size / min(size)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(size))
        # The floor of a product of floats, as torchvision has it: the same sizes for every image.
        height, width = (max(1, math.floor(float(side) * scale)) for side in size)
        return height, width

    def resize_sample(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target]:
        """Resizes one image and its boxes; usable as a transform in a data loader's worker.

        Args:
            image: [3, H, W] RGB, uint8 or floating.
            target: Its ground truth in its own pixels; None: no boxes.

        Returns:
            The image in its new size, same dtype, and a new target with boxes (and areas) in the
            new pixels and ``original_size``, by which :meth:`collate` remembers where it came from.
        """
        _check_image("resize_sample", "image", image)
        old = (image.shape[1], image.shape[2])
        new = self.resized_size(old)
        if target is None:
            target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        result = target.copy()
        result.setdefault("original_size", old)
        if new == old:
            return image, result
        ratio_y, ratio_x = (_float32_ratio(n, o) for n, o in zip(new, old, strict=True))
        scale = torch.tensor((ratio_x, ratio_y, ratio_x, ratio_y))
        boxes = target["boxes"]
        result["boxes"] = boxes.to(torch.float32) * _to_device(scale, boxes.device)
        if "area" in target:
            result["area"] = target["area"] * (ratio_y * ratio_x)
        return resize_image(image, new, self.antialias), result

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[ImageBatch, PackedTargets]:
        """Pads images of any sizes to one batch and packs their targets (DataLoader's collate_fn).

        Images are not resized here: :meth:`resize_sample` is for the workers' transform.
        """
        if not samples:
            raise ValueError("collate: samples must hold at least one image, got none")
        images = [image for image, _ in samples]
        batch = self._pad(
            images,
            [
                target.get("original_size", (image.shape[-2], image.shape[-1]))
                for image, target in samples
            ],
        )
        return batch, self._pack([target for _, target in samples], batch.sizes)

    def batch(
        self,
        images: Tensor | Sequence[Tensor] | ImageBatch,
        targets: Sequence[Target] | PackedTargets | None = None,
    ) -> tuple[ImageBatch, PackedTargets | None]:
        """Makes a batch of whatever a caller of a model may have.

        Args:
            images: A list of RGB tensors [3, H, W] of any sizes (resized and padded here); or a
                tensor [B, 3, H, W] (taken as it is, nothing resized); or a finished
                :class:`ImageBatch`. uint8 in 0 ... 255 or floating in 0 ... 1.
            targets: One for each image, in the pixels of the images as given; or packed ones, in
                the pixels of the batch.

        Raises:
            TypeError: Not images, or mixed dtypes.
            ValueError: Wrong shapes, no image, or invalid boxes where they are to raise.
        """
        if targets is not None and not isinstance(targets, PackedTargets | Sequence):
            raise TypeError(
                "batch: targets must be a sequence of dicts (one for each image) or "
                f"PackedTargets, got {type(targets).__name__}"
            )
        if isinstance(targets, Sequence) and len(targets) != len(images):
            raise ValueError(
                f"batch: targets must be one for each of the {len(images)} images, "
                f"got {len(targets)}"
            )
        if isinstance(images, Tensor | ImageBatch):
            if isinstance(images, Tensor):
                images = _as_batch(images)
            if targets is None or isinstance(targets, PackedTargets):
                return images, self._check_packed(images, targets)
            return images, self._pack(targets, images.sizes)
        if not isinstance(images, Sequence):
            raise TypeError(
                "batch: images must be a sequence of [3, H, W] tensors, a tensor [B, 3, H, W] or "
                f"an ImageBatch, got {type(images).__name__}"
            )
        if isinstance(targets, PackedTargets):
            raise TypeError(
                "batch: targets must be one dict for each image when images is a list, "
                "got PackedTargets, whose boxes are in the pixels of a finished ImageBatch"
            )
        if not images:
            raise ValueError("batch: images must hold at least one image, got none")
        for index, image in enumerate(images):
            _check_image("batch", f"images[{index}]", image)
        if targets is None:
            resized = [
                resize_image(image, self._new_size(image), self.antialias) for image in images
            ]
            return self._pad(resized, [(i.shape[1], i.shape[2]) for i in images]), None
        _ = pack_targets(targets, op="batch") if len(targets) else None  # checks before resizing
        # A target of another pass through a transform may carry its own original_size: not ours.
        samples = [
            self.resize_sample(image, {**target, "original_size": (image.shape[1], image.shape[2])})
            for image, target in zip(images, targets, strict=True)
        ]
        return self.collate(samples)

    def normalize(self, batch: ImageBatch, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, 3, H, W]: (value in 0 ... 1 - mean) / std, and exactly 0 in the padding.

        Laid out in memory as the batch is.
        """
        images = batch.images
        height, width = images.shape[2:]
        mean = _to_device(torch.tensor(self.mean, dtype=dtype), images.device)
        std = _to_device(torch.tensor(self.std, dtype=dtype), images.device)
        values = images.to(dtype)
        if not images.is_floating_point():
            values = values / 255
        if images.permute(0, 2, 3, 1).is_contiguous():
            # Whole rows [B, H, 3 W] at a time: a loop over three channels is slow.
            rows = values.permute(0, 2, 3, 1).flatten(2)
            rows = (rows - mean.repeat(width)) / std.repeat(width)
            values = rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
        else:
            values = (values - mean[:, None, None]) / std[:, None, None]
        if all(size == (height, width) for size in batch.sizes):
            return values
        sizes = batch.sizes_tensor()
        in_rows = torch.arange(height, device=images.device) < sizes[:, :1]  # [B, H]
        in_columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # [B, W]
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return torch.where(inside, values, 0)

    def _new_size(self, image: Tensor) -> Size:
        return self.resized_size((image.shape[1], image.shape[2]))

    def _pad(self, images: Sequence[Tensor], original_sizes: Sequence[Size]) -> ImageBatch:
        first = images[0]
        for index, image in enumerate(images):
            _check_image("collate", f"images[{index}]", image)
            if image.dtype != first.dtype or image.device != first.device:
                raise TypeError(
                    f"collate: images[{index}] must have the dtype and device of images[0] "
                    f"({first.dtype}, {first.device}), got {image.dtype}, {image.device}"
                )
        height, width = (
            math.ceil(max(image.shape[side] for image in images) / self.size_divisor)
            * self.size_divisor
            for side in (1, 2)
        )
        if all(image.permute(1, 2, 0).is_contiguous() for image in images):
            padded = first.new_zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
        else:
            padded = first.new_zeros(len(images), 3, height, width)
        for row, image in enumerate(images):
            padded[row, :, : image.shape[1], : image.shape[2]] = image
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        return ImageBatch(padded, sizes, tuple((int(h), int(w)) for h, w in original_sizes))

    def _pack(self, targets: Sequence[Target], sizes: Sequence[Size]) -> PackedTargets:
        packed = pack_targets(targets, sizes)
        if self.invalid_boxes == "raise" and int(packed.num_invalid):
            row = int(packed.boxes.isnan().any(1).nonzero()[0])
            image = int((packed.offsets <= row).sum()) - 1
            box = targets[image]["boxes"][row - int(packed.offsets[image])].tolist()
            raise ValueError(
                f"{type(self).__name__}: boxes must be finite, with positive width and height "
                f"inside of the image, got {box} in image {image} of (height, width) "
                f"{tuple(sizes[image])}, and {int(packed.num_invalid)} such boxes in all "
                "(invalid_boxes='drop' trains without them)"
            )
        return packed

    def _check_packed(
        self, batch: ImageBatch, targets: PackedTargets | None
    ) -> PackedTargets | None:
        if targets is not None and len(targets) != len(batch):
            raise ValueError(
                f"batch: targets must be for the {len(batch)} images of the batch, "
                f"got {len(targets)}"
            )
        return targets


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def resize_image(image: Tensor, size: Size, antialias: bool = True) -> Tensor:
    """Resamples an image bilinearly.

    Args:
        image: [3, H, W] uint8 or floating.
        size: (height, width) of the result.
        antialias: Whether shrinking averages over all pixels that it merges.

    Returns:
        [3, height, width] of the same dtype, laid out in memory as the image is.
    """
    if tuple(image.shape[1:]) == size:
        return image
    # torch resizes bytes on the CPU only, and, to a width of one pixel, wrongly.
    is_exact = image.is_floating_point() or (image.device.type == "cpu" and size[1] > 1)
    values = image if is_exact else image.float()
    # torch lays out the result as the batch is, but image[None] has the strides of neither layout.
    # One pixel wide, it takes planar results for channels_last ones: nothing said then.
    if size[1] == 1:
        batch = values[None]
    else:
        batch = values.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    values = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=antialias)
    values = values[0]
    return values if values.dtype == image.dtype else values.round().clamp(0, 255).byte()


def _float32_ratio(new: int, old: int) -> float:
    return float(torch.tensor(new, dtype=torch.float32) / torch.tensor(old, dtype=torch.float32))


def _check_image(op: str, name: str, image: Any) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(image).__name__}")
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"{op}: {name} must have shape [3, H, W], got {list(image.shape)}")
    _check_pixels(op, name, image)


def _check_pixels(op: str, name: str, image: Tensor) -> None:
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise TypeError(
            f"{op}: {name} must be uint8 (0 ... 255) or floating (0 ... 1), got {image.dtype}"
        )
    if 0 in image.shape[-2:]:
        raise ValueError(f"{op}: {name} must have at least one pixel, got {list(image.shape)}")


def _as_batch(images: Tensor) -> ImageBatch:
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(f"batch: images must have shape [B, 3, H, W], got {list(images.shape)}")
    _check_pixels("batch", "images", images)
    sizes = ((images.shape[2], images.shape[3]),) * images.shape[0]
    return ImageBatch(images, sizes, sizes)
