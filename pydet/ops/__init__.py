# SPDX-License-Identifier: Apache-2.0
"""Detection operations with native kernels for CPU and CUDA. One line an op, alphabetical."""

from pydet.ops.box_iou import box_iou as box_iou
