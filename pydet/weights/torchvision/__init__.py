# SPDX-License-Identifier: Apache-2.0
"""Files of torchvision, a module for each detector and each trunk.

What differs from pydet beyond names: class 0 is background; anchors, but for SSD's, are of whole
pixels and their strides come from sizes; images are shrunk without antialiasing.
"""
