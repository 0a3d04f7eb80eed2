# SPDX-License-Identifier: Apache-2.0
"""The head of dense detectors: a few 3x3 convolutions, the same for all levels of a pyramid."""

import math

from torch import nn

from pydet.layers.norm import Norm, make_norm


def subnet(channels: int, num_convs: int, norm: Norm, *, bias: bool) -> nn.Sequential:
    """3x3 convolutions, each with its norm and rectifier.

    Args:
        channels: Of the input and of every layer.
        num_convs: How many.
        norm: After each convolution.
        bias: Whether convolutions have one.
    """
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        layers += [conv, make_norm(norm, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def initialize_head(head: nn.Module, cls_logits: nn.Conv2d, prior: float) -> None:
    """As RetinaNet's: arXiv 1708.02002, section 4.1.

    Args:
        head: All of its convolutions get weights of N(0, 0.01²) and no bias.
        cls_logits: Its last layer for classes, which gives them all the probability of ``prior``.
        prior: The first probability of foreground.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert cls_logits.bias is not None
    nn.init.constant_(cls_logits.bias, -math.log((1 - prior) / prior))
