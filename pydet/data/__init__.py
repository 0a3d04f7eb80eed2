# SPDX-License-Identifier: Apache-2.0
"""Data sets, image files and transforms."""

from pydet.data._paths import IMAGE_SUFFIXES
from pydet.data._problems import (
    DatasetError,
    ImageError,
    OnError,
    Problem,
    summarize_problems,
)
from pydet.data.augmentation import (
    PhotometricDistortion,
    RandomIoUCrop,
    RandomScaleJitter,
    RandomZoomOut,
)
from pydet.data.building import build_transform
from pydet.data.coco import CocoDataset
from pydet.data.dataset import DetectionDataset
from pydet.data.image import read_image, read_image_size
from pydet.data.opening import open_dataset
from pydet.data.records import Records
from pydet.data.seeded import SeededView, seeded
from pydet.data.synthetic import write_synthetic_dataset
from pydet.data.transforms import (
    Compose,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    ResizeFixed,
    ResizeShortSide,
    Transform,
)
from pydet.data.voc import VocDataset
from pydet.data.yolo import YoloDataset

__all__ = [
    "IMAGE_SUFFIXES",
    "CocoDataset",
    "Compose",
    "DatasetError",
    "DetectionDataset",
    "ImageError",
    "OnError",
    "PhotometricDistortion",
    "Problem",
    "RandomHorizontalFlip",
    "RandomIoUCrop",
    "RandomScaleJitter",
    "RandomVerticalFlip",
    "RandomZoomOut",
    "Records",
    "ResizeFixed",
    "ResizeShortSide",
    "SeededView",
    "Transform",
    "VocDataset",
    "YoloDataset",
    "build_transform",
    "open_dataset",
    "read_image",
    "read_image_size",
    "seeded",
    "summarize_problems",
    "write_synthetic_dataset",
]
