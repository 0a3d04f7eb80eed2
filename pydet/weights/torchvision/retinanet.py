# SPDX-License-Identifier: Apache-2.0
"""torchvision's ``retinanet_resnet50_fpn`` and ``retinanet_resnet50_fpn_v2``, on any ResNet.

Version 2 has group norms in its head and learns boxes by their generalised IoU; the first has none
and learns by L1. In both, class 0 is background: it has scores that no anchor is ever trained to
give. pydet drops its rows, and `pydet convert` keeps them beside the model, to write them back.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pydet.weights._family import Weights
from pydet.weights._state import State
from pydet.weights.torchvision import _names, resnet

PROJECT = "torchvision"
MODELS = "retinanet_"
TITLE = "torchvision's RetinaNet"
OPTIONS: tuple[str, ...] = ("norm_eps", "keep_background")

_NUM_ANCHORS = 9
_LAYER = "head.cls_logits."  # whose rows are classes
_THEIRS = "head.classification_head.cls_logits."


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's RetinaNet on a ResNet."""
    layers = (_THEIRS, "head.regression_head.bbox_reg.", "backbone.fpn.extra_blocks.p6.")
    keys = {layer + part for layer in layers for part in ("weight", "bias")}
    return keys <= set(state) and "head.regression_head.bbox_ctrness.weight" not in state


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool) -> Weights:
    """In pydet's names, from the layout before torchvision 0.13 or after.

    Raises:
        ValueError: A trunk that is no ResNet of a known depth.
    """
    is_old = _names.is_old_fpn(state)
    has_norm = "head.classification_head.conv.0.1.weight" in state
    depth = resnet.depth(state, "backbone.body.")
    converted = _names.to_pydet(state, _pairs(is_old, has_norm))
    dropped: State = {}
    num_classes = converted[_LAYER + "weight"].shape[0] // _NUM_ANCHORS
    if not keep_background:
        num_classes -= 1
        dropped = _names.drop_background(converted, _LAYER, _THEIRS, _NUM_ANCHORS)
    p6 = converted["neck.extra.6.0.weight"]
    if norm_eps is None:
        norm_eps = 0.0 if is_old else 1e-5
    sizes = [32 * 2**level for level in range(5)]
    config: dict[str, Any] = {
        "norm": resnet.norm_config(state),
        "norm_eps": norm_eps,
        "extra_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "fpn_channels": p6.shape[0],
        "head_norm": "group" if has_norm else "none",
        "anchor_sizes": tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in sizes),
        "anchor_rounding": True,
        "anchor_strides": "image",
        "box_loss": "giou" if has_norm else "smooth_l1",
        "smooth_l1_beta": 0.0,
        "max_detections": 300,
        "preprocessing": {"antialias": False},
    }
    origin = {"layout": "old" if is_old else "new", "keep_background": keep_background}
    name = f"retinanet_resnet{depth}_fpn"
    return Weights(name, num_classes, config, converted, origin=origin, dropped=dropped)


def from_pydet(weights: Weights) -> State:
    """In torchvision's names, in the layout that the weights came in, else the new one.

    Rows of the background that were not kept are made such that it is never detected.

    Raises:
        ValueError: A model that torchvision's code cannot build.
    """
    state = dict(weights.state)
    rows = state[_LAYER + "bias"].shape[0]
    if rows != _NUM_ANCHORS * weights.num_classes:
        raise ValueError(
            f"convert: the model must have {_NUM_ANCHORS} anchors a location as {TITLE}, "
            f"got {rows // weights.num_classes}"
        )
    if not weights.origin.get("keep_background", False):
        _names.restore_background(state, weights.dropped, _LAYER, _THEIRS, _NUM_ANCHORS)
    has_norm = weights.config["head_norm"] == "group"
    pairs = _pairs(weights.origin.get("layout") == "old", has_norm)
    return _names.from_pydet(state, pairs, TITLE)


def _pairs(is_old: bool, has_norm: bool) -> _names.Pairs:
    pairs = [_names.BACKBONE, *_names.fpn_pairs((3, 4, 5), (6, 7), is_old)]
    for theirs, ours in (("classification", "cls"), ("regression", "box")):
        for index in range(4):
            # torchvision before 0.13: conv, relu, conv, relu, ...: every second one.
            # After it blocks of conv, norm and relu, or of conv and relu; pydet always has three.
            if is_old:
                parts = [(str(2 * index), 0)]
            else:
                parts = [(f"{index}.{part}", part) for part in range(2 if has_norm else 1)]
            pairs += [
                (f"head.{theirs}_head.conv.{at}.", f"head.{ours}_convs.{3 * index + part}.")
                for at, part in parts
            ]
    pairs.append((_THEIRS, _LAYER))
    pairs.append(("head.regression_head.bbox_reg.", "head.box_deltas."))
    return pairs
