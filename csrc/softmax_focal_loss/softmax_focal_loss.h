// SPDX-License-Identifier: Apache-2.0
// Softmax focal loss of rows of logits, each with the index of its class; its gradient and that of
// the gradient. Nothing is kept between the calls: each goes through the logits anew.
//
// Of a row x with the class t the loss is w f(u), where f(u) = sigmoid(u)^gamma softplus(u) is the
// focal loss of a single negative and u = log(sum of exp(x_j), j != t) - x_t: the softmax is a
// sigmoid of that one number. Its slope is pi_j = exp(x_j) / sum in the others and -1 in x_t.
//
// Labels: a column; kBackground for the column `background` (where that is not negative); `ignored`
// for a row that contributes nothing. Any other label makes its row NaN and reads nothing out of
// bounds. All arrays are contiguous; arithmetic, sums and pieces are as in common/loss.h, a piece
// being so many rows. Instantiated for float, double, Half and BFloat16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

enum class Pass { kForward, kBackward, kDoubleBackward };

template <class T>
struct SoftmaxFocalCall {
  Pass pass;
  int64_t rows, classes, segments;
  int64_t background, ignored;
  double alpha, gamma;            // alpha weighs all columns, the background 1 - alpha; below 0: 1
  double scale;                   // of the sums: 1, or 1 / rows for a mean
  const T* inputs;                // [rows, classes]
  const int64_t* labels;          // [rows]
  const acc_t<T>* class_weights;  // [classes] in the place of alpha, or null
  const T* grad_grad;             // [rows, classes], of the double backward
  const T* grad_loss;             // [rows], or
  const acc_t<T>* grad_sums;      // [segments], times `scale`
  T* losses;                      // [rows]: the losses, or the gradient of grad_loss; or
  acc_t<T>* sums;                 // [segments]
  double* partials;               // [softmax_focal_pieces(rows, classes, segments)], of sums
  T* grad_inputs;                 // [rows, classes], of both backwards
};

// Rows a piece: a task of the CPU, a block of the GPU.
PYDET_HOST_DEVICE int64_t softmax_focal_rows(int64_t classes) {
  const int64_t rows = (int64_t{1} << 14) / max_of<int64_t>(1, classes);
  return min_of<int64_t>(256, max_of<int64_t>(1, rows));
}

inline int64_t softmax_focal_pieces(int64_t rows, int64_t classes, int64_t segments) {
  const int64_t piece = softmax_focal_rows(classes);
  return segments == 0 ? 0 : segments * ((rows / segments + piece - 1) / piece);
}

namespace cpu {

template <class T>
void softmax_focal_loss(const SoftmaxFocalCall<T>& call);

}  // namespace cpu

namespace cuda {

template <class T>
const char* softmax_focal_loss(const SoftmaxFocalCall<T>& call, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
