# SPDX-License-Identifier: Apache-2.0
"""torchvision's ``fcos_resnet50_fpn``, on any ResNet.

It has no scales of levels, puts the first location at (0, 0), ranks by the root of class and
centre-ness, and normalises its losses for the batch. Class 0 is background: it has scores that no
location is ever trained to give. pydet drops its row, and `pydet convert` keeps it beside the
model, to write it back.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pydet.weights._family import Weights
from pydet.weights._state import State
from pydet.weights.torchvision import _names, resnet

PROJECT = "torchvision"
MODELS = "fcos_"
TITLE = "torchvision's FCOS"
OPTIONS: tuple[str, ...] = ("norm_eps", "keep_background")

_LAYER = "head.cls_logits."  # whose rows are classes
_THEIRS = "head.classification_head.cls_logits."
_CENTERNESS = "head.regression_head.bbox_ctrness."
_P6 = "backbone.fpn.extra_blocks.p6."


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's FCOS on a ResNet."""
    keys = {layer + part for layer in (_CENTERNESS, _THEIRS, _P6) for part in ("weight", "bias")}
    return keys <= set(state)


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool) -> Weights:
    """In pydet's names, from the layout before torchvision 0.13 or after.

    Raises:
        ValueError: A trunk that is no ResNet of a known depth.
    """
    is_old = _names.is_old_fpn(state)
    # The head has always been conv, norm, relu, conv, norm, relu, ...
    prefix = "head.classification_head.conv."
    num_convs = sum(f"{prefix}{3 * index}.weight" in state for index in range(len(state)))
    converted = _names.to_pydet(state, _pairs(is_old, num_convs))
    dropped: State = {}
    num_classes = converted[_LAYER + "weight"].shape[0]
    if not keep_background:
        num_classes -= 1
        dropped = _names.drop_background(converted, _LAYER, _THEIRS, 1)
    p6 = converted["neck.extra.6.0.weight"]
    config: dict[str, Any] = {
        "norm": resnet.norm_config(state),
        "norm_eps": 1e-5 if norm_eps is None else norm_eps,
        "extra_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "fpn_channels": p6.shape[0],
        "head_convs": num_convs,
        "level_scales": False,
        "location_offset": 0.0,
        "location_strides": "image",
        "normalizer": "batch",
        "score": "sqrt",
        "score_threshold": 0.2,
        "preprocessing": {"antialias": False},
    }
    origin = {"layout": "old" if is_old else "new", "keep_background": keep_background}
    name = f"fcos_resnet{resnet.depth(state, 'backbone.body.')}_fpn"
    return Weights(name, num_classes, config, converted, origin=origin, dropped=dropped)


def from_pydet(weights: Weights) -> State:
    """In torchvision's names, in the layout that the weights came in, else the new one.

    A row of the background that was not kept is made such that it is never detected.

    Raises:
        ValueError: A model that torchvision's code cannot build.
    """
    state = dict(weights.state)
    if not weights.origin.get("keep_background", False):
        _names.restore_background(state, weights.dropped, _LAYER, _THEIRS, 1)
    pairs = _pairs(weights.origin.get("layout") == "old", weights.config["head_convs"])
    return _names.from_pydet(state, pairs, TITLE)


def _pairs(is_old: bool, num_convs: int) -> _names.Pairs:
    pairs = [_names.BACKBONE, *_names.fpn_pairs((3, 4, 5), (6, 7), is_old)]
    for theirs, ours in (("classification", "cls"), ("regression", "box")):
        pairs += [
            (f"head.{theirs}_head.conv.{at}.", f"head.{ours}_convs.{at}.")
            for index in range(num_convs)
            for at in (3 * index, 3 * index + 1)
        ]
    pairs.append((_THEIRS, _LAYER))
    pairs.append(("head.regression_head.bbox_reg.", "head.box_distances."))
    pairs.append((_CENTERNESS, "head.centerness."))
    return pairs
