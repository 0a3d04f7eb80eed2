// SPDX-License-Identifier: Apache-2.0
// Matrix non-maximum suppression of a batch of images, class by class (Wang et al. 2020).
//
// boxes [batch, num_boxes, 4] xyxy, scores [batch, num_boxes] and idxs [batch, num_boxes] (classes;
// null: one class) are contiguous. With the boxes of an image by falling score (ties by index), f
// the decay of common/decay.h and c(i) the greatest IoU of box i with a better one of its class,
// the score of box j is multiplied by the least f(iou(i, j)) / f(c(i)) of all better boxes i of its
// class, at most 1. An i with f(c(i)) = 0 counts for nothing: it is gone itself. No step depends on
// another box's result, so all boxes are decided at once.
//
// keep[b, k] is the index of the box with the k-th best decayed score of image b among those that
// are greater than the threshold, decayed[b, k] that score; both are -1 and 0 from counts[b] on.
// A box with a NaN coordinate or without area neither decays nor makes others decay. NaN scores are
// never kept. Instantiated for float, double, Half and BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/decay.h"

struct CUstream_st;

namespace pydet {

struct MatrixNmsParams {
  int64_t batch, num_boxes;
  int64_t max_output;  // row length of keep; num_boxes keeps all
  Decay method;
  double sigma;            // gaussian; positive
  double score_threshold;  // at least 0
};

namespace cpu {

template <class T>
void matrix_nms(const MatrixNmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
                int64_t* keep, T* decayed, int64_t* counts);

}  // namespace cpu

namespace cuda {

// Bytes of device memory that a call needs as its workspace, aligned to 256 bytes.
template <class T>
const char* matrix_nms_workspace_bytes(const MatrixNmsParams& params, size_t* bytes);

// Waits for nothing: the outputs are filled when the stream gets there.
template <class T>
const char* matrix_nms(const MatrixNmsParams& params, const T* boxes, const T* scores,
                       const int64_t* idxs, int64_t* keep, T* decayed, int64_t* counts,
                       void* workspace, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
