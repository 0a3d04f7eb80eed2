// SPDX-License-Identifier: Apache-2.0
// Penalty-reduced focal loss of logits with a target in [0, 1] each: `alpha` is the exponent of the
// focal factor, `gamma` that of the penalty (beta in the papers). There are no labels. Instantiated
// for float, double, Half and BFloat16.
#pragma once

#include "common/loss.h"

struct CUstream_st;

namespace pydet {
namespace cpu {

template <class T>
void heatmap_focal_loss(const LossCall<T>& call);

}  // namespace cpu

namespace cuda {

template <class T>
const char* heatmap_focal_loss(const LossCall<T>& call, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
