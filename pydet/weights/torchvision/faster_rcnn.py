# SPDX-License-Identifier: Apache-2.0
"""torchvision's ``fasterrcnn_resnet50_fpn`` and ``fasterrcnn_resnet50_fpn_v2``, on any ResNet.

Version 2 has batch norms that learn, two windows in its proposal network, and four convolutions
and one layer in its head where the first has two layers. In both the background is class 0 of the
softmax, in pydet the last; and it has deltas, which are never learnt nor used: pydet drops them,
and `pydet convert` keeps them beside the model, to write them back.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pydet.weights._family import Weights
from pydet.weights._state import State
from pydet.weights.torchvision import _names, resnet

PROJECT = "torchvision"
MODELS = "faster_rcnn_"
TITLE = "torchvision's Faster R-CNN"
OPTIONS: tuple[str, ...] = ("norm_eps", "keep_background")

_CLASSES, _DELTAS = "box_head.cls_logits.", "box_head.box_deltas."
_THEIR_CLASSES = "roi_heads.box_predictor.cls_score."
_THEIR_DELTAS = "roi_heads.box_predictor.bbox_pred."
_LEVELS = (2, 3, 4, 5)
# The logit of a class that a softmax gives exactly 0, in any precision.
_IMPOSSIBLE = -1e4


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's Faster R-CNN on a ResNet with a pyramid.

    Its Mask and Keypoint R-CNN have more of them.
    """
    layers = (_THEIR_CLASSES, _THEIR_DELTAS, "rpn.head.cls_logits.")
    keys = {layer + part for layer in layers for part in ("weight", "bias")}
    others = ("roi_heads.mask_", "roi_heads.keypoint_")
    return keys <= set(state) and not any(name.startswith(others) for name in state)


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool) -> Weights:
    """In pydet's names, from the layout before torchvision 0.13 or after.

    Raises:
        ValueError: A trunk that is no ResNet of a known depth.
    """
    is_old = _names.is_old_fpn(state)
    has_norm = "roi_heads.box_head.0.1.weight" in state
    depth = resnet.depth(state, "backbone.body.")
    converted = _names.to_pydet(state, _pairs(is_old, has_norm))
    dropped: State = {}
    num_classes = converted[_CLASSES + "bias"].shape[0] - (0 if keep_background else 1)
    for part in ("weight", "bias"):
        scores, deltas = converted[_CLASSES + part], converted[_DELTAS + part]
        background, rest = scores[:1], scores[1:]
        if keep_background:
            never = torch.full_like(background, 0.0 if part == "weight" else _IMPOSSIBLE)
            rest = torch.cat((never, rest))
        else:
            dropped[_THEIR_DELTAS + part] = deltas[:4].contiguous()
            converted[_DELTAS + part] = deltas[4:].contiguous()
        converted[_CLASSES + part] = torch.cat((rest, background))
    if norm_eps is None:
        norm_eps = 0.0 if is_old else 1e-5
    window = converted["rpn.convs.0.weight"]
    config: dict[str, Any] = {
        "norm": resnet.norm_config(state),
        "norm_eps": norm_eps,
        "fpn_channels": window.shape[1],
        "fpn_norm": "batch" if has_norm else "none",
        "anchor_rounding": True,
        "anchor_strides": "image",
        "rpn_channels": window.shape[0],
        "rpn_convs": 2 if has_norm else 1,
        "box_convs": 4 if has_norm else 0,
        "box_fcs": 1 if has_norm else 2,
        "box_norm": "batch" if has_norm else "none",
        "box_channels": converted[_CLASSES + "weight"].shape[1],
        "smooth_l1_beta": 1 / 9,
        "preprocessing": {"antialias": False},
    }
    origin = {"layout": "old" if is_old else "new", "keep_background": keep_background}
    name = f"faster_rcnn_resnet{depth}_fpn"
    return Weights(name, num_classes, config, converted, origin=origin, dropped=dropped)


def from_pydet(weights: Weights) -> State:
    """In torchvision's names, in the layout that the weights came in, else the new one.

    Deltas of the background that were not kept are 0.

    Raises:
        ValueError: A model that torchvision's code cannot build.
    """
    state = dict(weights.state)
    anchors = state["rpn.objectness.bias"].shape[0]
    if anchors != 3:
        raise ValueError(
            f"convert: the model must have 3 anchors a location as {TITLE}, got {anchors}"
        )
    for part in ("weight", "bias"):
        scores, deltas = state[_CLASSES + part], state[_DELTAS + part]
        rest, background = scores[:-1], scores[-1:]
        if weights.origin.get("keep_background", False):
            rest = rest[1:]
        else:
            first = weights.dropped.get(_THEIR_DELTAS + part)
            first = torch.zeros_like(deltas[:4]) if first is None else first
            state[_DELTAS + part] = torch.cat((first, deltas))
        state[_CLASSES + part] = torch.cat((background, rest))
    has_norm = weights.config["box_norm"] == "batch"
    pairs = _pairs(weights.origin.get("layout") == "old", has_norm)
    return _names.from_pydet(state, pairs, TITLE)


def _pairs(is_old: bool, has_norm: bool) -> _names.Pairs:
    pairs = [_names.BACKBONE, *_names.fpn_pairs(_LEVELS, (), is_old)]
    if is_old:
        pairs.append(("rpn.head.conv.", "rpn.convs.0."))
    else:
        count = 2 if has_norm else 1
        pairs += [(f"rpn.head.conv.{i}.0.", f"rpn.convs.{2 * i}.") for i in range(count)]
    pairs += [
        ("rpn.head.cls_logits.", "rpn.objectness."),
        ("rpn.head.bbox_pred.", "rpn.box_deltas."),
    ]
    if has_norm:
        # Blocks of convolution, norm and rectifier; then both have a flattening and the layer.
        pairs += [
            (f"roi_heads.box_head.{i}.{part}.", f"box_features.{3 * i + part}.")
            for i in range(4)
            for part in range(2)
        ]
        pairs.append(("roi_heads.box_head.5.", "box_features.13."))
    else:
        pairs.append(("roi_heads.box_head.fc6.", "box_features.1."))
        pairs.append(("roi_heads.box_head.fc7.", "box_features.3."))
    return [*pairs, (_THEIR_CLASSES, _CLASSES), (_THEIR_DELTAS, _DELTAS)]
