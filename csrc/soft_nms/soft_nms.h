// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression of a batch of images, class by class (Bodla et al. 2017).
//
// boxes [batch, num_boxes, 4] xyxy, scores [batch, num_boxes] and idxs [batch, num_boxes] (classes;
// null: one class) are contiguous. In each class the box with the best score is picked (the first
// of equals) and the scores of those that are left decay by their IoU with it, in float (double for
// double), until no score is greater than the threshold. keep[b, k] is the index of the box with
// the k-th best decayed score of image b, decayed[b, k] that score; both are -1 and 0 from
// counts[b] on. Within and across classes that is the order in which boxes are picked.
//
// A box with a NaN coordinate or without area neither decays nor makes others decay. NaN scores are
// never kept. Instantiated for float, double, Half and BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/decay.h"

struct CUstream_st;

namespace pydet {

struct SoftNmsParams {
  int64_t batch, num_boxes;
  int64_t max_output;  // row length of keep; num_boxes keeps all
  Decay method;
  double iou_threshold;    // linear: smaller overlaps decay nothing
  double sigma;            // gaussian; positive
  double score_threshold;  // at least 0
};

namespace cpu {

template <class T>
void soft_nms(const SoftNmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
              int64_t* keep, T* decayed, int64_t* counts);

}  // namespace cpu

namespace cuda {

// Bytes of device memory that a call needs as its workspace, aligned to 256 bytes.
template <class T>
const char* soft_nms_workspace_bytes(const SoftNmsParams& params, size_t* bytes);

// Waits for nothing: the outputs are filled when the stream gets there.
template <class T>
const char* soft_nms(const SoftNmsParams& params, const T* boxes, const T* scores,
                     const int64_t* idxs, int64_t* keep, T* decayed, int64_t* counts,
                     void* workspace, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
