# SPDX-License-Identifier: Apache-2.0
"""Detection operations with native kernels for CPU and CUDA. One line an op, alphabetical."""

from pydet.ops.box_iou import box_iou as box_iou
from pydet.ops.focal_loss import sigmoid_focal_loss as sigmoid_focal_loss
from pydet.ops.nms import PaddedKeep as PaddedKeep
from pydet.ops.nms import batched_nms as batched_nms
from pydet.ops.nms import nms as nms
