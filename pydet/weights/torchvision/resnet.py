# SPDX-License-Identifier: Apache-2.0
"""torchvision's ResNets: classifiers of ImageNet, and the trunks of its detectors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pydet.backbones.resnet import DEPTHS
from pydet.weights._family import Weights

TITLE = "an ImageNet ResNet"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's ResNet."""
    return {"conv1.weight", "bn1.running_mean", "layer4.0.conv1.weight"} <= set(state)


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None) -> Weights:
    """The trunk of a classifier, with fixed batch norms, its stem and C2 fixed too.

    So torchvision and detectron2 begin; the papers fix the batch norms.

    Raises:
        ValueError: No ResNet of a known depth.
    """
    trunk = {
        f"backbone.{name}": value
        for name, value in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    config: dict[str, Any] = {
        "norm": "frozen",
        "norm_eps": 1e-5 if norm_eps is None else norm_eps,
        "frozen_stages": 2,
    }
    return Weights(f"retinanet_resnet{depth(state, '')}_fpn", 0, config, trunk)


def fill_heads(model: nn.Module, weights: Weights) -> None:
    """Nothing: a ResNet has no layer behind its maps but the last."""


def depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """The depth of a ResNet, by its blocks.

    Args:
        state: Has the trunk's tensors.
        prefix: What their names begin with.

    Raises:
        ValueError: No ResNet of a known depth.
    """
    blocks = [set[str](), set[str](), set[str](), set[str]()]
    for name in state:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name.removeprefix(prefix)):
            blocks[int(match[1]) - 1].add(match[2])
    counts = tuple(map(len, blocks))
    is_deep = f"{prefix}layer1.0.conv3.weight" in state
    for known_depth, known in DEPTHS.items():
        if known == counts and is_deep == (known_depth >= 50):
            return known_depth
    raise ValueError(
        f"load: the trunk must be a ResNet of depth {', '.join(map(str, DEPTHS))}, "
        f"got one of {counts} blocks"
    )


def norm_config(state: Mapping[str, Tensor]) -> str:
    """The kind of norm that a detector's trunk was saved with."""
    has_counters = any(name.endswith("num_batches_tracked") for name in state)
    return "batch" if has_counters else "frozen"
