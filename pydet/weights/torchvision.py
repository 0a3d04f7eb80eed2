# SPDX-License-Identifier: Apache-2.0
"""Weights of torchvision: its RetinaNet, and its ResNets trained on ImageNet.

What differs from pydet beyond names: class 0 is background (a RetinaNet of theirs has scores for it
that are never trained to be high); anchors are of whole pixels and their strides come from sizes;
images are shrunk without antialiasing; boxes learn by L1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pydet.backbones.resnet import DEPTHS
from pydet.weights._state import State

_NUM_ANCHORS = 9


@dataclass(frozen=True)
class Converted:
    """A state_dict in pydet's names, and how to build the model that it fits."""

    name: str
    num_classes: int
    config: dict[str, Any]
    state: State


def is_retinanet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's RetinaNet on a ResNet."""
    keys = {"backbone.body.conv1.weight", "head.classification_head.cls_logits.weight"}
    return keys <= set(state)


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's ResNet."""
    return {"conv1.weight", "bn1.running_mean", "layer4.0.conv1.weight"} <= set(state)


def convert_retinanet(
    state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool
) -> Converted:
    """Renames a RetinaNet, in the layout before torchvision 0.13 or after.

    Args:
        state: The state_dict.
        norm_eps: See :func:`pydet.load`.
        keep_background: Likewise.

    Raises:
        ValueError: A trunk that is no ResNet of a known depth.
    """
    is_old = "backbone.fpn.inner_blocks.0.weight" in state
    has_counters = any(name.endswith("num_batches_tracked") for name in state)
    trunk = {
        name.removeprefix("backbone.body."): value
        for name, value in state.items()
        if name.startswith("backbone.body.")
    }
    depth = _depth(trunk)
    converted: State = {}
    for name, value in state.items():
        converted[_rename(name, is_old)] = value
    rows = converted["head.cls_logits.weight"].shape[0] // _NUM_ANCHORS
    if not keep_background:
        for part in ("weight", "bias"):
            key = f"head.cls_logits.{part}"
            by_class = converted[key].unflatten(0, (_NUM_ANCHORS, rows))
            converted[key] = by_class[:, 1:].flatten(0, 1).contiguous()
    p6 = converted["neck.extra.6.0.weight"]
    if norm_eps is None:
        norm_eps = 0.0 if is_old else 1e-5
    sizes = [32 * 2**level for level in range(5)]
    config: dict[str, Any] = {
        "norm": "batch" if has_counters else "frozen",
        "norm_eps": norm_eps,
        "extra_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "head_norm": "group" if "head.cls_convs.1.weight" in converted else "none",
        "anchor_sizes": tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in sizes),
        "anchor_rounding": True,
        "anchor_strides": "image",
        "smooth_l1_beta": 0.0,
        "max_detections": 300,
        "preprocessing": {"antialias": False},
    }
    num_classes = rows if keep_background else rows - 1
    return Converted(f"retinanet_resnet{depth}_fpn", num_classes, config, converted)


def convert_resnet(state: Mapping[str, Tensor], norm_eps: float | None) -> Converted:
    """The trunk of a classifier, with fixed batch norms, its stem and C2 fixed too.

    So torchvision and detectron2 begin; the paper fixes the batch norms.

    Raises:
        ValueError: No ResNet of a known depth.
    """
    trunk = {
        name: value
        for name, value in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    config: dict[str, Any] = {
        "norm": "frozen",
        "norm_eps": 1e-5 if norm_eps is None else norm_eps,
        "frozen_stages": 2,
    }
    return Converted(f"retinanet_resnet{_depth(trunk)}_fpn", 0, config, trunk)


def _depth(trunk: Mapping[str, Tensor]) -> int:
    """The depth of a ResNet, by its blocks."""
    blocks = [set[str](), set[str](), set[str](), set[str]()]
    for name in trunk:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(match[1]) - 1].add(match[2])
    counts = tuple(map(len, blocks))
    is_deep = "layer1.0.conv3.weight" in trunk
    for depth, known in DEPTHS.items():
        if known == counts and is_deep == (depth >= 50):
            return depth
    raise ValueError(
        f"load: the trunk must be a ResNet of depth {', '.join(map(str, DEPTHS))}, "
        f"got one of {counts} blocks"
    )


def _rename(name: str, is_old: bool) -> str:
    """A parameter of torchvision's RetinaNet in pydet's names."""
    if name.startswith("backbone.body."):
        return "backbone." + name.removeprefix("backbone.body.")
    # Level by index: the first lateral is that of C3. The old layout has no ".0" for the
    # convolution.
    if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:0\.)?(\w+)$", name):
        part = {"inner": "lateral", "layer": "output"}[match[1]]
        return f"neck.{part}.{int(match[2]) + 3}.0.{match[3]}"
    if match := re.match(r"backbone\.fpn\.extra_blocks\.p(\d)\.(\w+)$", name):
        return f"neck.extra.{match[1]}.0.{match[2]}"
    if match := re.match(r"head\.(classification|regression)_head\.(.+)$", name):
        subnet = {"classification": "cls", "regression": "box"}[match[1]]
        rest = match[2].replace("bbox_reg.", "box_deltas.")
        if old := re.match(r"conv\.(\d)\.(\w+)$", rest) if is_old else None:
            # conv, relu, conv, relu, ...: every second one
            return f"head.{subnet}_convs.{int(old[1]) // 2 * 3}.{old[2]}"
        if new := re.match(r"conv\.(\d)\.([01])\.(\w+)$", rest):
            # here conv, norm, relu, conv, norm, relu, ...
            return f"head.{subnet}_convs.{int(new[1]) * 3 + int(new[2])}.{new[3]}"
        return f"head.{rest}"
    return name  # unknown: the message of load_state names it
