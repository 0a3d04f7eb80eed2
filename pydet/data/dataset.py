# SPDX-License-Identifier: Apache-2.0
"""A detection data set in memory: packed arrays; images are decoded when asked for."""

import copy
import math
import operator
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pydet.data._paths import native_name, resolve_inside
from pydet.data._problems import DatasetError, OnError, Problem, ProblemLog
from pydet.data.image import read_image, read_image_size
from pydet.data.records import Box, Records
from pydet.structures import Target

# Pixels. Thinner boxes could vanish when their corners are rounded to float32 (images of up to 2^17
# pixels a side), and are nothing that anybody meant to draw.
_MIN_SIDE = 1 / 64


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images with annotated boxes.

    ``dataset[i]`` is ``(image, target)``: image [3, H, W] uint8 RGB, and the objects of it (see
    :class:`pydet.structures.Target`) with ``image_id``, ``area``, ``iscrowd`` and ``difficult``.
    Boxes that reach beyond the image are clipped to it (counted in :attr:`num_clipped`; real files
    are full of boxes one pixel too wide); boxes wholly outside are broken records, as are all that
    have no area. ``target["ignored"]`` is set for crowds, for COCO's ``ignore`` and for VOC's
    ``difficult``.

    An image that turns out to be damaged only when it is decoded raises :class:`DatasetError` if
    ``on_error`` is "raise". If it is "skip", a warning names it and a black image comes with one
    ignored box over all of it, so that it adds neither foreground nor background to a batch and
    counts as missed in an evaluation.

    Args:
        records: The packed annotations.
        class_names: K names; label k is ``class_names[k]``.
        category_ids: K ids of the classes in the files of the data set, for results; None for a
            label that is no class.
        image_folder: Folder that the names in ``records`` are relative to.
        on_error: What to do with an image that cannot be decoded.
        problems: Broken records that were left out.
        source: The annotation file or folder, for messages.
    """

    def __init__(
        self,
        records: Records,
        class_names: Sequence[str],
        category_ids: Sequence[int | None],
        image_folder: Path,
        *,
        on_error: OnError = "raise",
        problems: Sequence[Problem] = (),
        source: str = "",
    ) -> None:
        self.records = records
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.image_folder = Path(image_folder)
        self.on_error: OnError = on_error
        self.problems = list(problems)
        self.source = source

    def __len__(self) -> int:
        return len(self.records.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        index = self._index(index)
        path = self.image_path(index)
        try:
            image = read_image(path)
            self._check_size(index, (image.shape[1], image.shape[2]))
        except (DatasetError, OSError) as error:
            if self.on_error == "raise":
                raise DatasetError(f"{self.source}, image {path}: {error}") from error
            warnings.warn(f"{path} is left out of training: {error}", stacklevel=2)
            return self._blank(index)
        return image, self.target(index)

    def _blank(self, index: int) -> tuple[Tensor, Target]:
        height, width = self.image_size(index)
        target = Target(
            boxes=torch.tensor([[0.0, 0.0, width, height]]),
            labels=torch.zeros(1, dtype=torch.int64),
            ignored=torch.ones(1, dtype=torch.bool),
            image_id=int(self.records.image_ids[index]),
            area=torch.tensor([float(width * height)]),
            iscrowd=torch.ones(1, dtype=torch.bool),
            difficult=torch.zeros(1, dtype=torch.bool),
            blank=True,
        )
        return torch.zeros(3, height, width, dtype=torch.uint8), target

    def _index(self, index: int) -> int:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index must lie in 0..{count - 1}, got {index}")
        return index % count

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        if size != self.image_size(index):
            raise DatasetError(size_mismatch(self.image_size(index), size))

    def target(self, index: int) -> Target:
        """The objects of an image, without decoding it."""
        index = self._index(index)
        records = self.records
        rows = slice(int(records.box_offsets[index]), int(records.box_offsets[index + 1]))
        height, width = self.image_size(index)
        xywh = records.boxes_xywh[rows]
        boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        np.clip(boxes, 0.0, (width, height, width, height), out=boxes)
        iscrowd, difficult = records.iscrowd[rows], records.difficult[rows]
        return Target(
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            labels=torch.from_numpy(records.labels[rows].copy()),
            ignored=torch.from_numpy(iscrowd | difficult | records.ignore[rows]),
            image_id=int(records.image_ids[index]),
            area=torch.from_numpy(records.areas[rows].astype(np.float32)),
            iscrowd=torch.from_numpy(iscrowd.copy()),
            difficult=torch.from_numpy(difficult.copy()),
        )

    def image_path(self, index: int) -> Path:
        """The file of an image."""
        name = self.records.name(self._index(index))
        return self.image_folder / native_name(self.image_folder, name)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        height, width = self.records.sizes[index]
        return int(height), int(width)

    def subset(self, indices: Sequence[int]) -> "DetectionDataset":
        """A data set of some of the images, such as one part of a random split.

        ``torch.utils.data.Subset`` would only hand out the samples; an evaluation needs the
        annotations, too.

        Args:
            indices: Which images, in the order of the result; no image twice.

        Raises:
            IndexError: There is no such image.
            ValueError: An image is given twice.
        """
        places = [self._index(operator.index(index)) for index in indices]
        if len(set(places)) < len(places):
            raise ValueError("subset: indices must differ, got an image twice")
        part = copy.copy(self)
        part.records = self.records.take(places)
        part.source = f"{self.source}, {len(places)} of {len(self)} images"
        return part

    @property
    def num_boxes(self) -> int:
        """Boxes of all images together."""
        return len(self.records.labels)

    @property
    def num_clipped(self) -> int:
        """Boxes that reach beyond their image and are clipped to it in the targets."""
        records = self.records
        per_box = np.repeat(records.sizes[:, ::-1], np.diff(records.box_offsets), axis=0)
        xy, wh = records.boxes_xywh[:, :2], records.boxes_xywh[:, 2:]
        return int(((xy < 0) | (xy + wh > per_box)).any(axis=1).sum())

    def check(self, *, decode: bool = False) -> list[Problem]:
        """Looks at every image file again.

        Args:
            decode: Also decode all pixels, which finds files that are damaged inside; otherwise
                only their heads are read.

        Returns:
            The broken records that were left out when the data set was opened, and behind them the
            images that are missing, unreadable or of another size than annotated now.
        """
        log = ProblemLog("skip")
        for index in range(len(self)):
            path = self.image_path(index)
            try:
                if decode:
                    image = read_image(path)
                    self._check_size(index, (image.shape[1], image.shape[2]))
                else:
                    self._check_size(index, read_image_size(path))
            except (DatasetError, OSError) as error:
                log.report(path, "", str(error))
        return self.problems + log.problems

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as the dict of a COCO JSON file, for evaluation.

        Category and image ids are the files' own, boxes are not clipped, and areas are the files'
        own (VOC: width times height), so that measures equal those on the original file. VOC's
        ``difficult`` becomes ``ignore``, which :func:`pydet.metrics.coco_metrics` honours
        (pycocotools by itself overwrites it with ``iscrowd``).
        """
        records = self.records
        images = [
            {
                "id": int(records.image_ids[i]),
                "file_name": records.name(i),
                "height": int(records.sizes[i, 0]),
                "width": int(records.sizes[i, 1]),
            }
            for i in range(len(self))
        ]
        image_ids = np.repeat(records.image_ids, np.diff(records.box_offsets))
        annotations = [
            {
                "id": int(records.annotation_ids[j]),
                "image_id": int(image_ids[j]),
                "category_id": self.category_ids[records.labels[j]],
                "bbox": records.boxes_xywh[j].tolist(),
                "area": float(records.areas[j]),
                "iscrowd": int(records.iscrowd[j]),
                "ignore": int(records.ignore[j] or records.difficult[j]),
            }
            for j in range(self.num_boxes)
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            if category_id is not None
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.source!r}: {len(self)} images, {self.num_boxes} boxes, "
            f"{len(self.class_names)} classes, {len(self.problems)} problems)"
        )


def size_mismatch(declared: tuple[int, int], actual: tuple[int, int]) -> str:
    """The words for an image of another size than declared; sizes are (height, width)."""
    words = "declared {1} x {0} pixels, but the image has {3} x {2}".format(*declared, *actual)
    if declared == actual[::-1] and declared[0] != declared[1]:
        words += " (the sides are swapped: was it annotated without its EXIF orientation?)"
    return words


def find_image(
    folder: Path, name: str, declared: tuple[int, int] | None, *, verify: bool
) -> tuple[int, int]:
    """Size (height, width) of an image that an annotation names.

    Args:
        folder: The folder of the images.
        name: A path below it.
        declared: The size that the annotation gives, if it does.
        verify: Open the file and compare its head; otherwise the declared size is believed.

    Raises:
        DatasetError: There is no such image, it cannot be read, lies outside of the folder or has
            another size.
    """
    path = resolve_inside(folder, name)
    if declared is not None and not verify:
        return declared
    try:
        size = read_image_size(path)
    except FileNotFoundError:
        raise DatasetError(f"image file {path} does not exist") from None
    except OSError as error:
        raise DatasetError(f"image file {path} cannot be opened: {error}") from error
    if declared is not None and declared != size:
        raise DatasetError(f"{size_mismatch(declared, size)} ({path})")
    return size


def find_box_problem(xywh: tuple[float, float, float, float], size: tuple[int, int]) -> str | None:
    """Why a box in an image of size (height, width) cannot be used; None if it can."""
    x, y, width, height = xywh
    if not all(map(math.isfinite, xywh)):
        return f"box {list(xywh)} is not finite"
    if width < _MIN_SIDE or height < _MIN_SIDE:
        return f"box has no area: its width is {width:g} and its height {height:g}"
    visible_width = min(x + width, size[1]) - max(x, 0.0)
    visible_height = min(y + height, size[0]) - max(y, 0.0)
    if visible_width < _MIN_SIDE or visible_height < _MIN_SIDE:
        return (
            f"box (x {x:g}, y {y:g}, width {width:g}, height {height:g}) lies outside of the image "
            f"of {size[1]} x {size[0]} pixels"
        )
    return None


def find_duplicate(box: Box, earlier: Sequence[Box], iou_threshold: float | None) -> int | None:
    """Index of an earlier box of the same class that this one repeats; None if there is none.

    Crowds and ignored objects are never duplicates: they overlap by nature.
    """
    if iou_threshold is None or box.ignored:
        return None
    x, y, w, h = box.xywh
    for i, other in enumerate(earlier):
        if other.label != box.label or other.ignored:
            continue
        ox, oy, ow, oh = other.xywh
        inner_w, inner_h = min(x + w, ox + ow) - max(x, ox), min(y + h, oy + oh) - max(y, oy)
        if inner_w <= 0 or inner_h <= 0:
            continue
        inner = inner_w * inner_h
        if inner >= iou_threshold * (w * h + ow * oh - inner):
            return i
    return None
