# SPDX-License-Identifier: Apache-2.0
"""torchvision's VGG-16, with batch norms or without: classifiers of ImageNet.

``VGG16_Weights.IMAGENET1K_FEATURES`` are the weights of the VGG authors: they see 0 ... 255 less a
mean, and their classifier is filled with NaN. All others see what every classifier of torchvision
does.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pydet.backbones import VGGAtrousHead, VGGBoxHead
from pydet.weights._family import Weights
from pydet.weights._state import State

TITLE = "an ImageNet VGG-16"

# Of the VGG authors, in 0 ... 255: R 123, G 117, B 104.
AUTHORS_MEAN = (0.48235, 0.45882, 0.40784)
AUTHORS_STD = (1 / 255, 1 / 255, 1 / 255)

# Indices of the convolutions of configuration D in ``features``, without and with batch norms.
_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BATCH = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the keys of torchvision's VGG-16."""
    convs = {
        name for name, value in state.items() if name.startswith("features.") and value.dim() == 4
    }
    return any(
        convs == {f"features.{index}.weight" for index in known} for known in (_PLAIN, _BATCH)
    )


def to_pydet(state: Mapping[str, Tensor], norm_eps: float | None) -> Weights:
    """The trunk of a classifier, and its hidden layers where they are known."""
    trunk: State = {}
    hidden: State = {}
    for name, value in state.items():
        if name.startswith("features.") and not name.endswith("num_batches_tracked"):
            trunk[f"backbone.{name}"] = value
        elif name.startswith(("classifier.0.", "classifier.3.")):
            hidden[name] = value
    config: dict[str, Any] = {}
    if "features.1.running_mean" in state:
        config["norm"] = "frozen"
        config["norm_eps"] = 1e-5 if norm_eps is None else norm_eps
    if not all(bool(value.sum().isfinite()) for value in hidden.values()):
        hidden = {}
        config["preprocessing"] = {"mean": AUTHORS_MEAN, "std": AUTHORS_STD}
    return Weights("ssd300_vgg16", 0, config, trunk, dropped=hidden)


def fill_heads(model: nn.Module, weights: Weights) -> None:
    """Copies the hidden layers into a detector's box head, or into SSD's conv6 and conv7."""
    if not weights.dropped:
        return
    state = {name.removeprefix("classifier."): value for name, value in weights.dropped.items()}
    for module in model.modules():
        if isinstance(module, VGGAtrousHead | VGGBoxHead):
            module.copy_classifier(state)
