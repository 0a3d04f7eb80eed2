# SPDX-License-Identifier: Apache-2.0
"""Trunks: networks that turn images into maps by level, that of level l with a stride of 2**l."""

from pydet.backbones.resnet import ResNet as ResNet
from pydet.backbones.vgg import VGG16 as VGG16
from pydet.backbones.vgg import VGGAtrousHead as VGGAtrousHead
from pydet.backbones.vgg import VGGBoxHead as VGGBoxHead
