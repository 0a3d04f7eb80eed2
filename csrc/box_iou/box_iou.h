// SPDX-License-Identifier: Apache-2.0
// Pairwise overlaps of two sets of boxes: IoU, generalised, distance and complete IoU, by the
// formulas of common/box_overlap.h.
//
// iou[b, i, j] is the overlap of boxes1[b, i] and boxes2[b, j]; all arrays are contiguous, boxes
// are xyxy corners. NaN where a coordinate is NaN. Instantiated for float and double: 16-bit boxes
// come as floats, since the boxes are few beside their pairs, and results are floats.
//
// The backward adds up, for each box, over its row or column in a fixed order: the same bits every
// time.
#pragma once

#include <cstdint>

#include "common/box_overlap.h"

struct CUstream_st;

namespace pydet {

struct BoxIouArgs {
  Overlap overlap;
  double eps;  // of distance and complete IoU
  int64_t batch, num_boxes1, num_boxes2;
};

// What the second derivative adds: v1 and v2, the gradients of the two gradients, and a place for
// the gradient of grad_iou. grad_boxes1 and grad_boxes2 are then those of (v1, v2) times the first.
template <class A>
struct SecondOrder {
  const A* v1;       // [batch, num_boxes1, 4]
  const A* v2;       // [batch, num_boxes2, 4]
  A* grad_grad_iou;  // [batch, num_boxes1, num_boxes2]
};

namespace cpu {

template <class A>
void box_iou(const BoxIouArgs& args, const A* boxes1, const A* boxes2, A* iou);

template <class A>
void box_iou_backward(const BoxIouArgs& args, const A* grad_iou, const A* boxes1, const A* boxes2,
                      A* grad_boxes1, A* grad_boxes2);

template <class A>
void box_iou_double_backward(const BoxIouArgs& args, const SecondOrder<A>& second,
                             const A* grad_iou, const A* boxes1, const A* boxes2, A* grad_boxes1,
                             A* grad_boxes2);

}  // namespace cpu

namespace cuda {

template <class A>
const char* box_iou(const BoxIouArgs& args, const A* boxes1, const A* boxes2, A* iou,
                    CUstream_st* stream);

template <class A>
const char* box_iou_backward(const BoxIouArgs& args, const A* grad_iou, const A* boxes1,
                             const A* boxes2, A* grad_boxes1, A* grad_boxes2, CUstream_st* stream);

template <class A>
const char* box_iou_double_backward(const BoxIouArgs& args, const SecondOrder<A>& second,
                                    const A* grad_iou, const A* boxes1, const A* boxes2,
                                    A* grad_boxes1, A* grad_boxes2, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
