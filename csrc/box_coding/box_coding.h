// SPDX-License-Identifier: Apache-2.0
// Boxes to deltas relative to an anchor, and back; the formulas are in common/box_deltas.h.
//
// Arrays are contiguous: boxes and deltas [rows, A, 4], anchors [A, 4], which serve every row.
// Arithmetic in acc_t<T>, rounded once. The gradient of an anchor is the sum over the rows in their
// order: the same bits every time. Nothing but the inputs is needed for it.
// Instantiated for float, double, Half and BFloat16.
#pragma once

#include <cstdint>

#include "common/box_deltas.h"
#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

// What the second derivatives add: v and v_anchors, the gradients of the two gradients (of boxes or
// deltas, and of anchors), and a place for the gradient of the incoming gradient.
template <class T>
struct CodingSecondOrder {
  const T* v;          // [rows, A, 4]
  const T* v_anchors;  // [A, 4]
  T* grad_grad;        // [rows, A, 4]
};

namespace cpu {

template <class T>
void encode_boxes(int64_t rows, int64_t num_anchors, const T* boxes, const T* anchors,
                  BoxCodingWeights weights, T* deltas);

template <class T>
void encode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_deltas, const T* boxes,
                           const T* anchors, BoxCodingWeights weights, T* grad_boxes,
                           T* grad_anchors);

template <class T>
void decode_boxes(int64_t rows, int64_t num_anchors, const T* deltas, const T* anchors,
                  const acc_t<T>* image_sizes, DecodeParams params, T* boxes);

template <class T>
void decode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_boxes, const T* deltas,
                           const T* anchors, const acc_t<T>* image_sizes, DecodeParams params,
                           T* grad_deltas, T* grad_anchors);

template <class T>
void encode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_deltas,
                                  const T* boxes, const T* anchors, BoxCodingWeights weights,
                                  T* grad_boxes, T* grad_anchors);

template <class T>
void decode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_boxes,
                                  const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                  DecodeParams params, T* grad_deltas, T* grad_anchors);

}  // namespace cpu

namespace cuda {

template <class T>
const char* encode_boxes(int64_t rows, int64_t num_anchors, const T* boxes, const T* anchors,
                         BoxCodingWeights weights, T* deltas, CUstream_st* stream);

template <class T>
const char* encode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_deltas,
                                  const T* boxes, const T* anchors, BoxCodingWeights weights,
                                  T* grad_boxes, T* grad_anchors, CUstream_st* stream);

template <class T>
const char* decode_boxes(int64_t rows, int64_t num_anchors, const T* deltas, const T* anchors,
                         const acc_t<T>* image_sizes, DecodeParams params, T* boxes,
                         CUstream_st* stream);

template <class T>
const char* decode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_boxes,
                                  const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                  DecodeParams params, T* grad_deltas, T* grad_anchors,
                                  CUstream_st* stream);

template <class T>
const char* encode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                         const CodingSecondOrder<T>& second, const T* grad_deltas,
                                         const T* boxes, const T* anchors, BoxCodingWeights weights,
                                         T* grad_boxes, T* grad_anchors, CUstream_st* stream);

template <class T>
const char* decode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                         const CodingSecondOrder<T>& second, const T* grad_boxes,
                                         const T* deltas, const T* anchors,
                                         const acc_t<T>* image_sizes, DecodeParams params,
                                         T* grad_deltas, T* grad_anchors, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
