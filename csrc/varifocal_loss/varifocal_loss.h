// SPDX-License-Identifier: Apache-2.0
// Varifocal loss of logits with a target in [0, 1] each: `alpha` weighs the negatives (targets of
// 0), `gamma` is the exponent of their factor. There are no labels. Instantiated for float, double,
// Half and BFloat16.
#pragma once

#include "common/loss.h"

struct CUstream_st;

namespace pydet {
namespace cpu {

template <class T>
void varifocal_loss(const LossCall<T>& call);

}  // namespace cpu

namespace cuda {

template <class T>
const char* varifocal_loss(const LossCall<T>& call, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
