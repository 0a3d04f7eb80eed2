# SPDX-License-Identifier: Apache-2.0
"""torchvision's ``ssd300_vgg16``.

Its class 0 is the background, pydet's is the last; nothing is dropped. Default boxes are those that
the paper has for COCO, none larger than the image; images are 0 ... 255 less a mean; losses are
divided by the matches of the whole batch.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pydet.models._registry import override
from pydet.models.ssd import SSDConfig
from pydet.weights._family import Weights
from pydet.weights._state import State
from pydet.weights.torchvision import _names, vgg

PROJECT = "torchvision"
MODELS = "ssd300_"
TITLE = "torchvision's SSD300"
OPTIONS: tuple[str, ...] = ()

_ANCHORS = (4, 6, 6, 6, 4, 4)  # at each location of each map
_CONFIG: Mapping[str, Any] = {
    "anchor_sizes": (21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0),
    "anchor_clip": True,
    "normalizer": "batch",
    "preprocessing": {"antialias": False, "mean": vgg.AUTHORS_MEAN, "std": vgg.AUTHORS_STD},
}
_PAIRS: _names.Pairs = (
    ("backbone.scale_weight", "neck.l2_norm.weight"),
    *((f"backbone.features.{i}.",) * 2 for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)),
    # extra.0 has pool4, conv5 and, as its eighth, what was fc6 and fc7.
    *((f"backbone.extra.0.{i}.", f"backbone.features.{i + 23}.") for i in (1, 3, 5)),
    ("backbone.extra.0.7.1.", "neck.atrous.conv6."),
    ("backbone.extra.0.7.3.", "neck.atrous.conv7."),
    # conv, relu, conv, relu; pydet's have a norm before each relu
    *(
        (f"backbone.extra.{i + 1}.{theirs}.", f"neck.extra.{i}.{ours}.")
        for i in range(4)
        for theirs, ours in ((0, 0), (2, 3))
    ),
    ("head.classification_head.module_list.", "head.cls_logits."),
    ("head.regression_head.module_list.", "head.box_deltas."),
)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's SSD300 on VGG-16."""
    keys = {
        "backbone.scale_weight",
        "backbone.extra.0.7.1.weight",
        "head.classification_head.module_list.5.weight",
    }
    return keys <= set(state) and "head.classification_head.module_list.6.weight" not in state


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool) -> Weights:
    """In pydet's names; it has no batch norms, and a softmax needs its background."""
    converted = _roll_classes(_names.to_pydet(state, _PAIRS), -1)
    num_classes = converted["head.cls_logits.0.bias"].shape[0] // _ANCHORS[0] - 1
    return Weights("ssd300_vgg16", num_classes, _CONFIG, converted)


def from_pydet(weights: Weights) -> State:
    """In torchvision's names.

    Raises:
        ValueError: A model that torchvision's code cannot build.
    """
    config = override(SSDConfig(), weights.config)
    own = SSDConfig()
    for field in ("width", "extra_layers", "anchor_ratios", "anchor_strides"):
        got, wanted = getattr(config, field), getattr(own, field)
        if got != wanted:
            raise ValueError(f"convert: {field} must be {wanted} as in {TITLE}, got {got}")
    return _names.from_pydet(_roll_classes(weights.state, 1), _PAIRS, TITLE)


def _roll_classes(state: Mapping[str, Tensor], by: int) -> State:
    """Moves the first row of each default box behind the others (-1), or the last before (1)."""
    rolled = dict(state)
    for level, count in enumerate(_ANCHORS):
        for part in ("weight", "bias"):
            rows = state[f"head.cls_logits.{level}.{part}"].unflatten(0, (count, -1))
            rolled[f"head.cls_logits.{level}.{part}"] = rows.roll(by, 1).flatten(0, 1)
    return rolled
