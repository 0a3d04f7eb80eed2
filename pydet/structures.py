# SPDX-License-Identifier: Apache-2.0
"""What travels between data, models and callers: batches of images, targets and detections.

Boxes are xyxy in pixels of continuous coordinates everywhere; labels are 0 ... K-1 without a
background. Sizes are (height, width). Letters: B images, G ground-truth boxes of an image,
D detections of an image, ΣG the boxes of all images of a batch together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypedDict

import torch
from torch import Tensor

from pydet.ops._checks import check_same_device, check_tensor

Size = tuple[int, int]

# Pixels from the border of a blank image to that of its box: no anchor lies further out, and areas
# stay finite in float32.
_FAR = 2.0**20


class Target(TypedDict, total=False):
    """Ground truth of one image. ``boxes`` and ``labels`` are needed, the rest is optional."""

    boxes: Tensor  # [G, 4] xyxy, pixels of its image
    labels: Tensor  # [G] int64
    ignored: Tensor  # [G] bool: crowds, difficult boxes; see PackedTargets.ignored
    image_id: int
    area: Tensor  # [G] square pixels, as annotated
    iscrowd: Tensor  # [G] bool, as annotated
    difficult: Tensor  # [G] bool, as annotated
    original_size: Size  # set by Preprocessing.resize_sample: (height, width) before resizing
    sized: Size  # set by transforms that choose the size to learn from: (height, width) of it
    blank: bool  # the image could not be read: its boxes, all ignored, reach far beyond it


class Detection(TypedDict):
    """What was found in one image, best score first."""

    boxes: Tensor  # [D, 4] xyxy, pixels of the image as it was given
    scores: Tensor  # [D] in [0, 1]
    labels: Tensor  # [D] int64


@dataclass(frozen=True)
class ImageBatch:
    """Images of a batch in one tensor: content at the top left, padding exactly 0.

    Attributes:
        images: [B, 3, H, W] RGB, uint8 in 0 ... 255 or floating in 0 ... 1.
        sizes: Height and width of each image's content within the batch.
        original_sizes: Height and width of each image before it was resized; detections come back
            in these pixels.
    """

    images: Tensor
    sizes: tuple[Size, ...]
    original_sizes: tuple[Size, ...]

    def __post_init__(self) -> None:
        check_tensor("ImageBatch", "images", self.images)
        if self.images.dim() != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"ImageBatch: images must have shape [B, 3, H, W], got {list(self.images.shape)}"
            )
        for name in ("sizes", "original_sizes"):
            if len(getattr(self, name)) != len(self):
                raise ValueError(
                    f"ImageBatch: {name} must have one entry for each of the {len(self)} images, "
                    f"got {len(getattr(self, name))}"
                )

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ImageBatch":
        """The same batch on another device."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ImageBatch":
        """The same batch in pinned memory (DataLoader calls this)."""
        return replace(self, images=self.images.pin_memory())

    def sizes_tensor(self) -> Tensor:
        """[B, 2] float32 (height, width) of each content, on the device, without waiting for it."""
        return _to_device(torch.tensor(self.sizes, dtype=torch.float32), self.images.device)

    def original_scale(self) -> Tensor:
        """[B, 4] float32 factors (x, y, x, y) from pixels of the batch to the originals'."""
        # Quotients of float32 values, as torchvision takes them: the same boxes to the last bit.
        sizes = torch.tensor(self.sizes, dtype=torch.float32)
        scale = torch.tensor(self.original_sizes, dtype=torch.float32) / sizes  # [B, 2] (y, x)
        return _to_device(scale.flip(1).repeat(1, 2), self.images.device)


@dataclass(frozen=True)
class PackedTargets:
    """The ground truth of a batch, all boxes in one tensor.

    Image ``b`` owns the rows ``offsets[b]`` to ``offsets[b + 1]``. Nothing is left out when boxes
    are packed, so that shapes never depend on values (no waiting for a GPU): a box that cannot be
    learnt from (NaN or infinite, no width or height, inverted, or wholly outside its image) stays
    as a row of NaN, which no operation ever matches.

    Attributes:
        boxes: [ΣG, 4] float32, pixels of the batch, clipped to the image's content; NaN if invalid.
            Those of images that could not be read (``Target.blank``) reach far beyond the content.
        labels: [ΣG] int64.
        ignored: [ΣG] bool. No anchor learns such a box, and the anchors that lie in it are not
            background either.
        offsets: [B + 1] int64.
        num_invalid: [] int64, how many boxes are invalid.
        image_sizes: [B, 2] float32 (height, width) of each image's content; infinite where boxes
            were packed without sizes.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    offsets: Tensor
    num_invalid: Tensor
    image_sizes: Tensor

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedTargets":
        """The same targets on another device."""
        return PackedTargets(
            *(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self))
        )

    def pin_memory(self) -> "PackedTargets":
        """The same targets in pinned memory (DataLoader calls this)."""
        return PackedTargets(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def by_image(self, values: Tensor, fill: float) -> Tensor:
        """Values of boxes [ΣG, ...] by image: [B, ΣG, ...], an image's own first, then ``fill``.

        As many places for each image as all have boxes, because the host does not know the most
        that one has.
        """
        num_boxes = self.boxes.shape[0]
        rows = self.offsets[:-1, None] + torch.arange(num_boxes, device=values.device)  # [B, ΣG]
        rows = torch.where(rows < self.offsets[1:, None], rows, num_boxes)
        return torch.cat((values, values.new_full((1, *values.shape[1:]), fill)))[rows]

    def check_labels(self, num_classes: int, op: str = "PackedTargets") -> None:
        """Refuses a label outside of 0 ... num_classes - 1. On a GPU this waits for the device.

        Raises:
            ValueError: Names the first label that is out of range, and its image.
        """
        wrong = (self.labels < 0) | (self.labels >= num_classes)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            image = int((self.offsets <= row).sum()) - 1
            raise ValueError(
                f"{op}: labels must be in 0 ... {num_classes - 1} (background is not a label), "
                f"got {int(self.labels[row])} in image {image}"
            )


def pack_targets(
    targets: Sequence[Target], sizes: Sequence[Size] | None = None, *, op: str = "pack_targets"
) -> PackedTargets:
    """Packs the targets of a batch; invalid boxes are kept as NaN and counted.

    Works on the device of the boxes and never waits for it.

    Args:
        targets: One for each image. Boxes of any number dtype; they become float32.
        sizes: (height, width) of each image; boxes are clipped to it. None: boxes are not clipped.
        op: The name that error messages begin with.

    Raises:
        TypeError: A target without boxes or labels, or of a wrong type.
        ValueError: Wrong shapes, or numbers of boxes, labels and flags that differ.
    """
    if sizes is not None and len(sizes) != len(targets):
        raise ValueError(
            f"{op}: targets must be one for each of the {len(sizes)} images, got {len(targets)}"
        )
    for index, target in enumerate(targets):
        _check_target(op, index, target)
    counts = [target["labels"].shape[0] for target in targets]
    offsets = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)])
    known = [(math.inf, math.inf)] * len(targets) if sizes is None else sizes
    image_sizes = torch.tensor(known, dtype=torch.float32).reshape(-1, 2)
    if not targets:
        none = torch.zeros(0, dtype=torch.int64)
        return PackedTargets(
            torch.zeros(0, 4), none, none.bool(), offsets, torch.tensor(0), image_sizes
        )
    device = targets[0]["boxes"].device
    boxes = torch.cat([target["boxes"].to(torch.float32) for target in targets])  # [ΣG, 4]
    labels = torch.cat([target["labels"].to(torch.int64) for target in targets])
    ignored = torch.cat(
        [
            target["ignored"].bool()
            if "ignored" in target
            else torch.zeros(count, dtype=torch.bool, device=device)
            for target, count in zip(targets, counts, strict=True)
        ]
    )
    valid = boxes.isfinite().all(1)
    if sizes is not None:
        limits = image_sizes.flip(1).repeat(1, 2)  # [B, 4]: width, height, width, height
        limits = limits.repeat_interleave(torch.tensor(counts), dim=0)  # [ΣG, 4]
        boxes = torch.minimum(boxes.clamp(min=0), _to_device(limits, device))
    blank = [target.get("blank", False) for target in targets]
    if any(blank):
        # Anchors that hang out of the image would not lie in a box of its size: background.
        rows = torch.tensor(blank).repeat_interleave(torch.tensor(counts))  # [ΣG]
        rows = _to_device(rows[:, None], device)
        everywhere = _to_device(torch.tensor([-_FAR, -_FAR, _FAR, _FAR]), device)
        boxes = torch.where(rows, everywhere, boxes)
    valid &= (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes = torch.where(valid[:, None], boxes, math.nan)
    num_invalid = valid.logical_not().sum()
    offsets, image_sizes = _to_device(offsets, device), _to_device(image_sizes, device)
    return PackedTargets(boxes, labels, ignored, offsets, num_invalid, image_sizes)


def _check_target(op: str, index: int, target: Target) -> None:
    name = f"targets[{index}]"
    if not isinstance(target, dict) or "boxes" not in target or "labels" not in target:
        got = sorted(target) if isinstance(target, dict) else type(target).__name__
        raise TypeError(f"{op}: {name} must be a dict with 'boxes' and 'labels', got {got}")
    boxes, labels = target["boxes"], target["labels"]
    check_tensor(op, f"{name}['boxes']", boxes)
    check_tensor(op, f"{name}['labels']", labels)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{op}: {name}['boxes'] must have shape [G, 4], got {list(boxes.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: {name}['labels'] must be integers, got {labels.dtype}")
    check_same_device(op, f"{name}['labels']", labels, f"{name}['boxes']", boxes)
    flags = [("labels", labels)]
    if "ignored" in target:
        check_tensor(op, f"{name}['ignored']", target["ignored"])
        flags.append(("ignored", target["ignored"]))
    for key, value in flags:
        if value.shape != boxes.shape[:1]:
            raise ValueError(
                f"{op}: {name}['{key}'] must have shape [{boxes.shape[0]}], one entry a box, "
                f"got {list(value.shape)}"
            )


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves host values to the device; non_blocking, because a blocking copy waits for the GPU."""
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)
