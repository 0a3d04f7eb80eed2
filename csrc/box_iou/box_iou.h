// SPDX-License-Identifier: Apache-2.0
// Pairwise intersection over union.
//
// iou[b, i, j] is the IoU of boxes1[b, i] and boxes2[b, j]; all arrays are contiguous, boxes are
// xyxy corners. 0 where the union is 0; NaN where a coordinate is NaN. Arithmetic in float (double
// for double), rounded once. Instantiated for float, double, Half and BFloat16.
//
// The backward adds up, for each box, over its row or column in a fixed order: the same bits every
// time. One of the two gradient pointers may be null.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace pydet {
namespace cpu {

template <class T>
void box_iou(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* boxes1,
             const T* boxes2, T* iou);

template <class T>
void box_iou_backward(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* grad_iou,
                      const T* boxes1, const T* boxes2, T* grad_boxes1, T* grad_boxes2);

}  // namespace cpu

namespace cuda {

template <class T>
const char* box_iou(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* boxes1,
                    const T* boxes2, T* iou, CUstream_st* stream);

template <class T>
const char* box_iou_backward(int64_t batch, int64_t num_boxes1, int64_t num_boxes2,
                             const T* grad_iou, const T* boxes1, const T* boxes2, T* grad_boxes1,
                             T* grad_boxes2, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
