# SPDX-License-Identifier: Apache-2.0
"""What travels between data, models and callers: targets and detections.

Boxes are xyxy in pixels of continuous coordinates everywhere; labels are 0 ... K-1 without a
background. Letters: G ground-truth boxes of an image, D detections of an image.
"""

from typing import TypedDict

from torch import Tensor

Size = tuple[int, int]


class Target(TypedDict, total=False):
    """Ground truth of one image. ``boxes`` and ``labels`` are needed, the rest is optional."""

    boxes: Tensor  # [G, 4] xyxy, pixels of its image
    labels: Tensor  # [G] int64
    ignored: Tensor  # [G] bool: crowds, difficult boxes: neither foreground nor background
    image_id: int
    area: Tensor  # [G] square pixels, as annotated
    iscrowd: Tensor  # [G] bool, as annotated
    difficult: Tensor  # [G] bool, as annotated
    original_size: Size  # (height, width) before resizing


class Detection(TypedDict):
    """What was found in one image, best score first."""

    boxes: Tensor  # [D, 4] xyxy, pixels of the image as it was given
    scores: Tensor  # [D] in [0, 1]
    labels: Tensor  # [D] int64
