// SPDX-License-Identifier: Apache-2.0
// Sigmoid focal loss of `count` logits, with one of two forms of targets:
//   targets [count]                one number in [0, 1] for each logit
//   labels [count / num_classes]   the class of each row of num_classes logits, kBackground for a
//                                  row of negatives, kIgnored for one that contributes nothing; any
//                                  other label makes its row NaN and reads nothing out of bounds
// All arrays are contiguous. Arithmetic in float (double for double), rounded once. Instantiated
// for float, double, Half and BFloat16.
//
// Sums are taken over `segments` equal parts of the logits. Each part is cut into pieces of fixed
// size, a piece's sum is a double in `partials`, and those are added in their order: the same bits
// every time, whatever the number of threads.
#pragma once

#include <cstdint>

#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

constexpr int64_t kBackground = -1;
constexpr int64_t kIgnored = -2;

template <class T>
struct FocalLossArgs {
  int64_t count, segments, num_classes;
  double alpha, gamma;    // alpha < 0: no weighting
  double scale;           // of the sums: 1, or 1 / count for a mean
  const T* inputs;        // [count]
  const T* targets;       // [count], or null for labels
  const int64_t* labels;  // [count / num_classes], or null for targets
};

// Elements a piece: a task of the CPU, a block of the GPU.
constexpr int64_t kFocalPiece = 1 << 14;

inline int64_t focal_loss_pieces(int64_t count, int64_t segments) {
  return segments == 0 ? 0 : segments * ((count / segments + kFocalPiece - 1) / kFocalPiece);
}

namespace cpu {

// loss [count]
template <class T>
void focal_loss(const FocalLossArgs<T>& args, T* loss);

// sums [segments]; partials [focal_loss_pieces(count, segments)] is workspace
template <class T>
void focal_loss_sums(const FocalLossArgs<T>& args, double* partials, acc_t<T>* sums);

// grad [count]: the gradient of the inputs, or of the targets where `wrt_targets`. It comes from
// grad_loss [count] or from grad_sums [segments]; the other is null.
template <class T>
void focal_loss_backward(const FocalLossArgs<T>& args, bool wrt_targets, const T* grad_loss,
                         const acc_t<T>* grad_sums, T* grad);

}  // namespace cpu

namespace cuda {

template <class T>
const char* focal_loss(const FocalLossArgs<T>& args, T* loss, CUstream_st* stream);

template <class T>
const char* focal_loss_sums(const FocalLossArgs<T>& args, double* partials, acc_t<T>* sums,
                            CUstream_st* stream);

template <class T>
const char* focal_loss_backward(const FocalLossArgs<T>& args, bool wrt_targets, const T* grad_loss,
                                const acc_t<T>* grad_sums, T* grad, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
