# SPDX-License-Identifier: Apache-2.0
"""Annotations as packed arrays, and how a reader collects them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Records:
    """The annotations of a data set as a handful of arrays.

    Lists of dicts would be copied, page by page, into every data loading process, because reading a
    Python object writes its reference count (pytorch issue 13246). Arrays stay shared.

    N images, T boxes of all images together.

    Attributes:
        image_ids: [N] int64.
        sizes: [N, 2] int64, height and width.
        names: uint8, the UTF-8 paths of the image files below the image folder, one after the
            other.
        name_offsets: [N + 1] int64 into ``names``.
        box_offsets: [N + 1] int64; image i has the boxes ``box_offsets[i]`` to ``box_offsets[i +
            1]``.
        boxes_xywh: [T, 4] float64, continuous pixels, exactly as in the file: not clipped.
        labels: [T] int64, 0..K-1.
        areas: [T] float64, square pixels.
        iscrowd: [T] bool.
        ignore: [T] bool, the ``ignore`` flag of COCO files.
        difficult: [T] bool, the flag of Pascal VOC files.
        annotation_ids: [T] int64.
    """

    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    box_offsets: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    annotation_ids: NDArray[np.int64]

    def name(self, index: int) -> str:
        """Path of image ``index`` below the image folder."""
        name = self.names[self.name_offsets[index] : self.name_offsets[index + 1]]
        return bytes(name).decode("utf-8", "surrogatepass")

    def take(self, indices: Sequence[int]) -> "Records":
        """Some of the images, with their boxes, in the order of ``indices``."""
        places = np.array(indices, dtype=np.int64)
        letters, boxes = _rows(self.name_offsets, places), _rows(self.box_offsets, places)
        return Records(
            image_ids=self.image_ids[places],
            sizes=self.sizes[places],
            names=self.names[letters],
            name_offsets=_offsets(np.diff(self.name_offsets)[places]),
            box_offsets=_offsets(np.diff(self.box_offsets)[places]),
            boxes_xywh=self.boxes_xywh[boxes],
            labels=self.labels[boxes],
            areas=self.areas[boxes],
            iscrowd=self.iscrowd[boxes],
            ignore=self.ignore[boxes],
            difficult=self.difficult[boxes],
            annotation_ids=self.annotation_ids[boxes],
        )


@dataclass(slots=True)
class Box:
    """One annotated object while a file is being read."""

    xywh: tuple[float, float, float, float]
    label: int
    area: float
    iscrowd: bool = False
    ignore: bool = False
    difficult: bool = False
    annotation_id: int = 0

    @property
    def ignored(self) -> bool:
        """Whether the object is neither foreground nor background."""
        return self.iscrowd or self.ignore or self.difficult


@dataclass
class RecordBuilder:
    """Collects images one by one and packs them."""

    image_ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def add(self, image_id: int, size: tuple[int, int], name: str, boxes: Sequence[Box]) -> None:
        """Appends an image, of size (height, width), with its objects."""
        self.image_ids.append(image_id)
        self.sizes.append(size)
        # Python spells bytes of a file name that are no UTF-8 as lone surrogates.
        self.names.append(name.encode("utf-8", "surrogatepass"))
        self.counts.append(len(boxes))
        self.boxes.extend(boxes)

    def build(self) -> Records:
        """Packs everything added so far."""
        boxes = self.boxes
        return Records(
            image_ids=np.array(self.image_ids, dtype=np.int64),
            sizes=np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            names=np.frombuffer(b"".join(self.names), dtype=np.uint8),
            name_offsets=_offsets([len(name) for name in self.names]),
            box_offsets=_offsets(self.counts),
            boxes_xywh=np.array([b.xywh for b in boxes], dtype=np.float64).reshape(-1, 4),
            labels=np.array([b.label for b in boxes], dtype=np.int64),
            areas=np.array([b.area for b in boxes], dtype=np.float64),
            iscrowd=np.array([b.iscrowd for b in boxes], dtype=np.bool_),
            ignore=np.array([b.ignore for b in boxes], dtype=np.bool_),
            difficult=np.array([b.difficult for b in boxes], dtype=np.bool_),
            annotation_ids=np.array([b.annotation_id for b in boxes], dtype=np.int64),
        )


def _offsets(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64)


def _rows(offsets: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that ``offsets`` give to some places, one place after the other."""
    counts = np.diff(offsets)[places]
    starts = np.repeat(offsets[places] - _offsets(counts)[:-1], counts)
    return starts + np.arange(len(starts))
