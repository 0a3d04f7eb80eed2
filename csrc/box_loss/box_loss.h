// SPDX-License-Identifier: Apache-2.0
// Losses of pairs of boxes, by the formulas of common/box_overlap.h. Boxes are contiguous,
// [count, 4] xyxy. Losses and their sums are acc_t<T>: the losses of 16-bit boxes are floats.
// Instantiated for float, double, Half and BFloat16.
//
// Where v1 and v2 are not null, all results are derivatives along them: instead of a loss its slope
// when the boxes move by v, instead of a gradient the change of the gradient. That is what the
// second derivative takes.
//
// A sum is taken over pieces of fixed size; a piece's sum is a double in `partials`, and those are
// added in their order: the same bits every time, whatever the number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/box_overlap.h"
#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

template <class T>
struct BoxLossArgs {
  Overlap overlap;
  int64_t count;
  double eps;
  double scale;  // of the sum: 1, or 1 / count for a mean
  const T *boxes1, *boxes2, *v1, *v2;
};

// Pairs a piece: a task of the CPU, a block of the GPU.
constexpr int64_t kBoxLossPiece = 1 << 11;

inline int64_t box_loss_pieces(int64_t count) {
  return (count + kBoxLossPiece - 1) / kBoxLossPiece;
}

// Calls body(kind, along_v) with the kind of overlap of the loss as a type, and std::true_type for
// derivatives along v1 and v2.
template <class T, class Body>
void with_kind_of(const BoxLossArgs<T>& args, const Body& body) {
  with_kind<true>(args.overlap, [&](auto kind) {
    if (args.v1 != nullptr) return body(kind, std::true_type{});
    body(kind, std::false_type{});
  });
}

namespace cpu {

// loss [count]
template <class T>
void box_loss(const BoxLossArgs<T>& args, acc_t<T>* loss);

// sum [1]; partials [box_loss_pieces(count)] is workspace
template <class T>
void box_loss_sum(const BoxLossArgs<T>& args, double* partials, acc_t<T>* sum);

// grad_loss [count], or [1] where it is the gradient of the sum
template <class T>
void box_loss_backward(const BoxLossArgs<T>& args, bool of_sum, const acc_t<T>* grad_loss,
                       T* grad_boxes1, T* grad_boxes2);

}  // namespace cpu

namespace cuda {

template <class T>
const char* box_loss(const BoxLossArgs<T>& args, acc_t<T>* loss, CUstream_st* stream);

template <class T>
const char* box_loss_sum(const BoxLossArgs<T>& args, double* partials, acc_t<T>* sum,
                         CUstream_st* stream);

template <class T>
const char* box_loss_backward(const BoxLossArgs<T>& args, bool of_sum, const acc_t<T>* grad_loss,
                              T* grad_boxes1, T* grad_boxes2, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
