// SPDX-License-Identifier: Apache-2.0
// Sigmoid focal loss with one of two forms of targets:
//   targets [count]                one number in [0, 1] for each logit
//   labels [count / num_classes]   the class of each row of num_classes logits, kBackground for a
//                                  row of negatives, kIgnored for one that contributes nothing; any
//                                  other label makes its row NaN and reads nothing out of bounds
// alpha < 0 means no weighting. Instantiated for float, double, Half and BFloat16.
#pragma once

#include "common/loss.h"

struct CUstream_st;

namespace pydet {
namespace cpu {

template <class T>
void focal_loss(const LossCall<T>& call);

}  // namespace cpu

namespace cuda {

template <class T>
const char* focal_loss(const LossCall<T>& call, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
