// SPDX-License-Identifier: Apache-2.0
// Weighted boxes fusion of a batch of images, class by class (Solovyev et al. 2021, section 3).
//
// boxes [batch, num_boxes, 4] xyxy, scores [batch, num_boxes] and idxs [batch, num_boxes] (classes;
// null: one class) are contiguous; boxes with a score that is not positive take no part. In each
// class the boxes are visited by falling score, ties by index. A box joins the cluster whose fused
// box has the greatest IoU with it (the first of equals), if that is greater than the threshold, or
// founds one. The fused box is the mean of the cluster's boxes, weighted by their scores; its score
// is their mean or maximum, times the share of the models that the cluster's size stands for.
//
// fused[b, i] is the fused box of the cluster that box i of image b founded, 0 elsewhere. keep[b,
// k] is the founder of the cluster with the k-th best score, fused_scores[b, k] that score; both
// are -1 and 0 from counts[b] on. A box with a NaN coordinate or without area is alone in its
// cluster. Instantiated for float, double, Half and BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace pydet {

struct FusionParams {
  int64_t batch, num_boxes;
  int64_t max_output;  // row length of keep; num_boxes keeps all
  double iou_threshold;
  int64_t num_models;
  double total_weight;  // of all models, or the greatest of them if by_best; positive
  bool by_best;         // a cluster's score: the maximum, not the mean
  bool overflow;        // more boxes than models count for more
};

namespace cpu {

template <class T>
void weighted_boxes_fusion(const FusionParams& params, const T* boxes, const T* scores,
                           const int64_t* idxs, T* fused, int64_t* keep, T* fused_scores,
                           int64_t* counts);

}  // namespace cpu

namespace cuda {

// Bytes of device memory that a call needs as its workspace, aligned to 256 bytes.
template <class T>
const char* weighted_boxes_fusion_workspace_bytes(const FusionParams& params, size_t* bytes);

// Waits for nothing: the outputs are filled when the stream gets there.
template <class T>
const char* weighted_boxes_fusion(const FusionParams& params, const T* boxes, const T* scores,
                                  const int64_t* idxs, T* fused, int64_t* keep, T* fused_scores,
                                  int64_t* counts, void* workspace, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
