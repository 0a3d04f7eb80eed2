# SPDX-License-Identifier: Apache-2.0
"""Detection operations with native kernels for CPU and CUDA. One line an op, alphabetical."""

from pydet.ops._roi_modules import MultiScaleRoIAlign as MultiScaleRoIAlign
from pydet.ops._roi_modules import RoIAlign as RoIAlign
from pydet.ops._suppression import DecayedKeep as DecayedKeep
from pydet.ops._suppression import PaddedDecayedKeep as PaddedDecayedKeep
from pydet.ops.box_coding import decode_boxes as decode_boxes
from pydet.ops.box_coding import encode_boxes as encode_boxes
from pydet.ops.box_iou import box_iou as box_iou
from pydet.ops.box_iou import complete_box_iou as complete_box_iou
from pydet.ops.box_iou import distance_box_iou as distance_box_iou
from pydet.ops.box_iou import generalized_box_iou as generalized_box_iou
from pydet.ops.box_loss import complete_box_iou_loss as complete_box_iou_loss
from pydet.ops.box_loss import distance_box_iou_loss as distance_box_iou_loss
from pydet.ops.box_loss import generalized_box_iou_loss as generalized_box_iou_loss
from pydet.ops.box_loss import iou_loss as iou_loss
from pydet.ops.boxes import box_area as box_area
from pydet.ops.boxes import box_convert as box_convert
from pydet.ops.boxes import clip_boxes_to_image as clip_boxes_to_image
from pydet.ops.boxes import masks_to_boxes as masks_to_boxes
from pydet.ops.boxes import remove_small_boxes as remove_small_boxes
from pydet.ops.focal_loss import sigmoid_focal_loss as sigmoid_focal_loss
from pydet.ops.match_anchors import BACKGROUND as BACKGROUND
from pydet.ops.match_anchors import IGNORED as IGNORED
from pydet.ops.match_anchors import AnchorMatches as AnchorMatches
from pydet.ops.match_anchors import match_anchors as match_anchors
from pydet.ops.matrix_nms import matrix_nms as matrix_nms
from pydet.ops.nms import PaddedKeep as PaddedKeep
from pydet.ops.nms import batched_nms as batched_nms
from pydet.ops.nms import nms as nms
from pydet.ops.roi_align import multiscale_roi_align as multiscale_roi_align
from pydet.ops.roi_align import roi_align as roi_align
from pydet.ops.roi_pool import RoIPool as RoIPool
from pydet.ops.roi_pool import roi_pool as roi_pool
from pydet.ops.soft_nms import batched_soft_nms as batched_soft_nms
from pydet.ops.soft_nms import soft_nms as soft_nms
