// SPDX-License-Identifier: Apache-2.0
// Greedy non-maximum suppression of a batch of images, class by class, into padded rows.
//
// boxes [batch, num_boxes, 4] xyxy, scores [batch, num_boxes] and idxs [batch, num_boxes] (classes;
// null: one class) are contiguous. In each image the boxes are visited by decreasing score, ties by
// increasing index, NaN scores last. A box is kept unless its IoU with a box of its class that was
// kept before is greater than the threshold. keep[b, k] is the index of the k-th kept box of image
// b in that order, -1 from counts[b] on; an image is done when max_output boxes are kept.
//
// The IoU is the quotient of common/box.h, rounded once in float (double for double), and compared
// exactly; DIoU, where that is the overlap, is decided in double without a division: the same
// decisions on every machine. A box with a NaN coordinate or without area hides
// nothing and is never hidden. Instantiated for float, double, Half and BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/suppression.h"

struct CUstream_st;

namespace pydet {

struct NmsParams {
  int64_t batch, num_boxes;
  int64_t max_output;  // row length of keep; num_boxes keeps all
  double iou_threshold;
  SuppressionOverlap overlap;
  double score_threshold;  // only boxes with a greater score take part ..
  bool filter_scores;      // .. where this is set; otherwise all do, NaN scores too
};

namespace cpu {

template <class T>
void nms(const NmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
         int64_t* keep, int64_t* counts);

}  // namespace cpu

namespace cuda {

// Bytes of device memory that a call needs as its workspace, aligned to 256 bytes.
const char* nms_workspace_bytes(const NmsParams& params, size_t* bytes);

// Waits for nothing: keep and counts are filled when the stream gets there.
template <class T>
const char* nms(const NmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
                int64_t* keep, int64_t* counts, void* workspace, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
