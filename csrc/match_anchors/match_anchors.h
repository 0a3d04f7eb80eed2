// SPDX-License-Identifier: Apache-2.0
// Matching of anchors with ground truth by the highest IoU, without a matrix of pairs.
//
// matched_idxs[b, i] = g >= 0 means that anchor i is matched with ground truth offsets[b] + g; -1
// that it is background, -2 that it is neither. matched_ious[b, i] is the anchor's highest IoU in
// that image, whatever the index says. The contract in full is that of pydet.ops.match_anchors.
//
// All arrays are contiguous: anchors [A, 4] serve every image, or [B, A, 4] are each image's own;
// the ground truth of the images is packed, gt_boxes [num_gt, 4], image b having rows offsets[b] to
// offsets[b + 1]. `offsets` may be null for a single image, `gt_ignored` where no box is to be
// ignored. Offsets that do not fit are clamped into [0, num_gt]: nothing is read outside of
// gt_boxes. num_gt is at most 2^31 - 1.
//
// The anchors are read by pieces that stay in registers or the first-level cache while the ground
// truths pass by. The low-quality rule needs the highest IoU of each ground truth before any result
// is final, so the pairs concerned are computed twice, to the same bits. So does the rule of SSD,
// which needs the first anchor that has it.
// Instantiated for float, double, Half and BFloat16; arithmetic in acc_t<T>.
#pragma once

#include <cstdint>

#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

// The threshold rule of Faster R-CNN and RetinaNet and, on top of it, that of SSD.
struct MatchParams {
  double fg_iou_threshold;
  double bg_iou_threshold;
  bool allow_low_quality_matches;
  bool best_anchor_for_each_gt;
  bool own_anchors;  // each image has its own: anchors is [B, A, 4]

  bool need_highest() const { return allow_low_quality_matches || best_anchor_for_each_gt; }
};

namespace cpu {

template <class T>
void match_anchors(int64_t num_images, int64_t num_anchors, int64_t num_gt, const T* anchors,
                   const T* gt_boxes, const bool* gt_ignored, const int64_t* offsets,
                   MatchParams params, int64_t* matched_idxs, acc_t<T>* matched_ious);

}  // namespace cpu

namespace cuda {

// Bytes of device memory that the launcher needs as `workspace` (aligned to 8).
int64_t match_anchors_workspace_bytes(int64_t num_gt, MatchParams params);

template <class T>
const char* match_anchors(int64_t num_images, int64_t num_anchors, int64_t num_gt, const T* anchors,
                          const T* gt_boxes, const bool* gt_ignored, const int64_t* offsets,
                          MatchParams params, void* workspace, int64_t* matched_idxs,
                          acc_t<T>* matched_ious, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
