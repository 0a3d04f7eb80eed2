# SPDX-License-Identifier: Apache-2.0
"""RoI align, over one feature map and over the levels of a pyramid.

Letters: B images, C channels, H x W cells of a map, R regions, h x w bins of a region, L levels.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    check_integer,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sides,
    check_tensor,
)
from pydet.ops._library import define
from pydet.ops._rois import (
    check_feature_map,
    check_rois,
    check_spatial_scale,
    empty_map,
    is_channels_last,
)

MAX_LEVELS = 8

# Native ops take the settings as their last arguments, in this order.
_SETTINGS = (
    "float[] spatial_scales, int pooled_height, int pooled_width, int sampling_ratio, "
    "bool aligned, float canonical_scale, float canonical_level"
)
_NO_GRADIENTS = (None,) * 7


# --- second derivatives ------------------------------------------------------------------------


def _fake_boxes_second(
    tangent: Tensor, grad: Tensor, features: list[Tensor], boxes: Tensor, *settings: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    last = is_channels_last(features[0])
    maps = [empty_map(grad, m.shape, last) for m in features]
    return empty_map(grad, grad.shape, last), maps, boxes.new_empty(boxes.shape)


_roi_align_boxes_backward_backward = define(
    "roi_align_boxes_backward_backward(Tensor tangent, Tensor grad, Tensor[] features, "
    f"Tensor boxes, {_SETTINGS}) -> (Tensor, Tensor[], Tensor)",
    fake=_fake_boxes_second,
)


def _save_boxes_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, features, boxes, *ctx.settings = inputs
    ctx.save_for_backward(grad, boxes, *features)


def _boxes_backward_backward(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    grad, boxes, *features = ctx.saved_tensors
    grads = _roi_align_boxes_backward_backward(tangent, grad, features, boxes, *ctx.settings)
    return (*grads, *_NO_GRADIENTS)


_roi_align_boxes_backward = define(
    "roi_align_boxes_backward(Tensor grad, Tensor[] features, Tensor boxes, "
    f"{_SETTINGS}) -> Tensor",
    fake=lambda grad, features, boxes, *settings: boxes.new_empty(boxes.shape),
    backward=_boxes_backward_backward,
    save=_save_boxes_backward,
)


def _fake_backward(
    grad: Tensor, boxes: Tensor, sizes: Sequence[int], channels_last: bool, *settings: Any
) -> list[Tensor]:
    return [empty_map(grad, sizes[i : i + 4], channels_last) for i in range(0, len(sizes), 4)]


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, boxes, _, _, *ctx.settings = inputs
    ctx.save_for_backward(grad, boxes)


def _backward_backward(ctx: Any, tangents: list[Tensor]) -> tuple[Any, ...]:
    """The gradient of the maps is linear in grad: its derivative is the forward pass itself."""
    grad, boxes = ctx.saved_tensors
    grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_grad = _roi_align(tangents, boxes, *ctx.settings, None)
    grad_boxes = None
    if ctx.needs_input_grad[1]:
        grad_boxes = _roi_align_boxes_backward(grad, tangents, boxes, *ctx.settings)
    return (grad_grad, grad_boxes, None, None, *_NO_GRADIENTS)


_roi_align_backward = define(
    "roi_align_backward(Tensor grad, Tensor boxes, SymInt[] sizes, bool channels_last, "
    f"{_SETTINGS}) -> Tensor[]",
    fake=_fake_backward,
    backward=_backward_backward,
    save=_save_backward,
)


# --- the op ------------------------------------------------------------------------------------


def _fake(
    features: list[Tensor], boxes: Tensor, scales: Any, height: int, width: int, *settings: Any
) -> Tensor:
    first, last = features[0], settings[-1]
    shape = (boxes.shape[0], first.shape[1], height, width)
    return empty_map(first, shape, is_channels_last(first) if last is None else last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, *ctx.settings, _ = inputs
    ctx.sizes = [size for feature_map in features for size in feature_map.shape]
    ctx.channels_last = is_channels_last(features[0])
    # The gradient of the maps needs only their sizes.
    ctx.save_for_backward(boxes, *(features if boxes.requires_grad else ()))


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes, *features = ctx.saved_tensors
    grad_features: list[Tensor | None] = [None] * len(ctx.needs_input_grad[0])
    grad_boxes = None
    if any(ctx.needs_input_grad[0]):
        grad_features = _roi_align_backward(
            grad, boxes, ctx.sizes, ctx.channels_last, *ctx.settings
        )
    if ctx.needs_input_grad[1]:
        grad_boxes = _roi_align_boxes_backward(grad, features, boxes, *ctx.settings)
    return (grad_features, grad_boxes, *_NO_GRADIENTS, None)


_roi_align = define(
    f"roi_align(Tensor[] features, Tensor boxes, {_SETTINGS}, bool? channels_last) -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
)


def _check_sampling(op: str, sampling_ratio: Any, aligned: Any) -> None:
    check_integer(op, "sampling_ratio", sampling_ratio)
    if not isinstance(aligned, bool):
        raise TypeError(f"{op}: aligned must be a bool, got {type(aligned).__name__}")


def _channels_last(op: str, memory_format: Any) -> bool | None:
    formats = {None: None, torch.contiguous_format: False, torch.channels_last: True}
    if memory_format not in formats:
        raise ValueError(
            f"{op}: memory_format must be torch.contiguous_format, torch.channels_last or None, "
            f"got {memory_format!r}"
        )
    return formats[memory_format]


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Mean of bilinear samples in each bin of each region of interest.

    A region is cut into h x w bins, a bin into a grid of samples::

        y1 +-----+-----+    position of sample i of bin p along an axis, in cells:
           |* * *|* * *|      start + p * bin + (i + 1/2) * bin / samples
           |* * *|* * *|    with start = y1 * spatial_scale (- 1/2 if aligned), bin = size / h
        y2 +-----+-----+

    Args:
        input: [B, C, H, W] feature maps; floating, of any strides.
        boxes: [R, 5] with the image's index in column 0 and xyxy in pixels, or a list of [r, 4],
            one for each image; floating, of any dtype.
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel: 1 / stride of the map.
        sampling_ratio: Samples of a bin along each axis. Where it is not positive, one a cell:
            ceil(size / h), so large boxes take more.
        aligned: Take half a cell off, because the centre of pixel 0 is at 0.5; and leave boxes
            smaller than a cell as they are, which else are stretched to one.
        memory_format: Of the result: torch.contiguous_format, say for a head that flattens it,
            torch.channels_last, or None for that of ``input``.

    Returns:
        [R, C, h, w] in the dtype of ``input``, from an arithmetic in float32 or better. A sample
        more than one cell outside of the map counts as 0. All bins are 0 for a box with a
        coordinate that is not finite, for an index that is not in [0, B) (so -1 may mark padding; a
        GPU cannot raise without waiting), for an inverted box with ``aligned`` and adaptive
        sampling, and, with adaptive sampling, for a box that reaches more than 2^24 cells.

    Raises:
        TypeError: Not tensors, or of the wrong kind.
        ValueError: Wrong shapes, more boxes than images in the list, different devices,
            ``output_size`` or ``spatial_scale`` not positive.

    Differentiable in ``input`` and ``boxes``, twice. The gradient of the boxes takes the number of
    samples as given and is 0 where a sample is held at the border. On the CPU the gradients have
    the same bits whatever the number of threads; on a GPU that of ``input`` has them with
    ``torch.use_deterministic_algorithms(True)``, which takes a slower kernel. Source: He et al.,
    Mask R-CNN, ICCV 2017, section 3; ``aligned`` from Detectron2.
    """
    check_feature_map("roi_align", "input", input)
    rois = check_rois("roi_align", "boxes", boxes, input)
    height, width = check_sides("roi_align", "output_size", output_size, 1)
    scale = check_spatial_scale("roi_align", spatial_scale)
    _check_sampling("roi_align", sampling_ratio, aligned)
    last = _channels_last("roi_align", memory_format)
    result: Tensor = _roi_align(
        [input], rois, [scale], height, width, sampling_ratio, aligned, 1.0, 0.0, last
    )
    return result


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_scale: float = 224,
    canonical_level: float = 4,
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """RoI align over the levels of a feature pyramid, in one launch.

    The region of a box of w x h pixels is taken from level k = floor(canonical_level +
    log2(sqrt(w h) / canonical_scale) + 1e-6), or from the nearest level that there is. A map with
    the scale 2^-k is level k; with one map alone all regions are taken from it.

    Args:
        features: L maps [B, C, Hl, Wl], largest first; at most 8, of one dtype.
        boxes: As for :func:`roi_align`.
        output_size: h, or (h, w).
        spatial_scales: Cells a pixel of each map, falling.
        sampling_ratio: As for :func:`roi_align`.
        aligned: As for :func:`roi_align`.
        canonical_scale: Side in pixels of the boxes of the canonical level.
        canonical_level: k of that level.
        memory_format: As for :func:`roi_align`; None for that of the first map.

    Returns:
        [R, C, h, w] in the dtype of the maps. 0 as for
        :func:`roi_align`, and for boxes of a negative area or one that is NaN.

    Raises:
        TypeError: Not tensors, or of the wrong kind, or maps of different dtypes.
        ValueError: Wrong shapes or numbers of levels, different devices, scales that do not fall.

    Differentiable as :func:`roi_align` is; the level of a box is taken as given. Source: Lin et
    al., Feature Pyramid Networks, CVPR 2017, equation 1.
    """
    op = "multiscale_roi_align"
    maps = _check_features(op, features)
    rois = check_rois(op, "boxes", boxes, maps[0])
    height, width = check_sides(op, "output_size", output_size, 1)
    scales = _check_scales(op, spatial_scales, len(maps))
    _check_sampling(op, sampling_ratio, aligned)
    check_number(
        op, "canonical_scale", canonical_scale, "finite and above 0", lambda s: 0 < s < math.inf
    )
    check_number(
        op, "canonical_level", canonical_level, "finite", lambda k: -math.inf < k < math.inf
    )
    result: Tensor = _roi_align(
        maps,
        rois,
        scales,
        height,
        width,
        sampling_ratio,
        aligned,
        float(canonical_scale),
        float(canonical_level),
        _channels_last(op, memory_format),
    )
    return result


def _check_features(op: str, features: Any) -> list[Tensor]:
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise TypeError(f"{op}: features must be a list of tensors, got {type(features).__name__}")
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ValueError(f"{op}: features must be 1 to {MAX_LEVELS} maps, got {len(features)}")
    for i, feature_map in enumerate(features):
        name = f"features[{i}]"
        check_tensor(op, name, feature_map)
        check_feature_map(op, name, feature_map)
        check_same_dtype(op, name, feature_map, "features[0]", features[0])
        check_same_device(op, name, feature_map, "features[0]", features[0])
        if feature_map.shape[:2] != features[0].shape[:2]:
            raise ValueError(
                f"{op}: {name} must have the batch and channels of features[0] "
                f"{list(features[0].shape[:2])}, got {list(feature_map.shape[:2])}"
            )
    # Under autocast the layers before may have given different dtypes.
    return [feature_map.to(features[0].dtype) for feature_map in features]


def _check_scales(op: str, spatial_scales: Any, levels: int) -> list[float]:
    if not isinstance(spatial_scales, Sequence) or len(spatial_scales) != levels:
        raise ValueError(
            f"{op}: spatial_scales must be one number for each of {levels} maps, "
            f"got {spatial_scales!r}"
        )
    scales = [check_spatial_scale(op, scale) for scale in spatial_scales]
    strides = [round(-math.log2(scale)) for scale in scales]
    if any(a >= b for a, b in itertools.pairwise(strides)):
        raise ValueError(f"{op}: spatial_scales must fall by a factor of 2 or more, got {scales}")
    return scales
