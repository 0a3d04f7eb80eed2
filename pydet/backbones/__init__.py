# SPDX-License-Identifier: Apache-2.0
"""Trunks: networks that turn images into maps C2 ... C5, of stride 4 ... 32."""

from pydet.backbones.resnet import ResNet as ResNet
