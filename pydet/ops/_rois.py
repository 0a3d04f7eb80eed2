# SPDX-License-Identifier: Apache-2.0
"""The arguments that all RoI ops share: feature maps, boxes of two forms, sizes of the result."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_dtype,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
)


def check_feature_map(op: str, name: str, features: Any) -> None:
    """Refuses what is not a floating [B, C, H, W]."""
    check_tensor(op, name, features)
    check_dtype(op, name, features, FLOATING)
    check_shape(op, name, features, "[B, C, H, W]", lambda shape: len(shape) == 4)


def check_rois(op: str, name: str, boxes: Any, features: Tensor) -> Tensor:
    """Refuses boxes that fit neither form and gives [R, 5], the image's index in column 0.

    Args:
        op: For the error.
        name: Of the argument, for the error.
        boxes: [R, 5], or for each image of the batch one [r, 4]; floating, of any dtype.
        features: [B, C, H, W] that the boxes lie on.

    Returns:
        [R, 5] in the dtype that the kernels compute in: float64 for float64 features, else float32,
        so that neither indices nor coordinates of 16-bit boxes are rounded once more.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if isinstance(boxes, Tensor):
        _check_boxes(op, name, boxes, features)
        check_shape(op, name, boxes, "[R, 5]", lambda s: len(s) == 2 and s[1] == 5)
        return boxes.to(dtype)
    if not isinstance(boxes, list | tuple):
        raise TypeError(
            f"{op}: {name} must be a tensor or a list of tensors, got {type(boxes).__name__}"
        )
    if len(boxes) > features.shape[0]:
        raise ValueError(
            f"{op}: {name} must have at most one tensor an image ({features.shape[0]}), "
            f"got {len(boxes)}"
        )
    rois = []
    for i, image_boxes in enumerate(boxes):
        each = f"{name}[{i}]"
        _check_boxes(op, each, image_boxes, features)
        check_shape(op, each, image_boxes, "[r, 4]", lambda s: len(s) == 2 and s[1] == 4)
        wide = image_boxes.to(dtype)
        rois.append(torch.cat([torch.full_like(wide[:, :1], i), wide], dim=1))
    return torch.cat(rois) if rois else features.new_empty((0, 5), dtype=dtype)


def _check_boxes(op: str, name: str, boxes: Any, features: Tensor) -> None:
    check_tensor(op, name, boxes)
    check_dtype(op, name, boxes, FLOATING)
    check_same_device(op, name, boxes, "the features", features)


def check_spatial_scale(op: str, spatial_scale: Any) -> float:
    """Refuses what is not a positive finite number."""
    requirement = "finite and above 0"
    check_number(op, "spatial_scale", spatial_scale, requirement, lambda s: 0 < s < math.inf)
    return float(spatial_scale)


# --- memory formats, for fake implementations: the glue lays out its results by the same rules ---


def is_channels_last(feature_map: Tensor) -> bool:
    """Whether [N, C, H, W] has its channels next to each other in memory, and not its columns."""
    return (
        feature_map.is_contiguous(memory_format=torch.channels_last)
        and not feature_map.is_contiguous()
    )


def empty_map(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """An empty map of ``shape`` [N, C, H, W] with the dtype and device of ``like``."""
    if not channels_last:
        return like.new_empty(shape)
    batch, channels, height, width = shape
    return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
