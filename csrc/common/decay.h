// SPDX-License-Identifier: Apache-2.0
// By how much one box lowers the score of another, once for host and device and with the same bits
// on both, because the order of the boxes depends on it.
#pragma once

#include <cstdint>

#include "common/box.h"
#include "common/host_device.h"
#include "common/math.h"

namespace pydet {

enum class Decay : int64_t { kLinear = 0, kGaussian = 1 };

// Bodla et al. 2017, equation 3: exp(-iou^2 / sigma). `sigma` is positive.
template <class A>
PYDET_HOST_DEVICE A gaussian_weight(A iou, A sigma) {
  return portable_exp_of_negative(-(iou * iou) / sigma);
}

// The sigma as an A that can be divided by.
template <class A>
A sigma_of(double sigma) {
  return max_of(static_cast<A>(sigma), static_cast<A>(1e-30));
}

// The factor of a score whose box has this overlap with a better one. Equation 2 (linear) leaves
// scores below the threshold alone; equation 3 has none.
template <class A>
PYDET_HOST_DEVICE A decay_weight(Decay method, A iou, A threshold, A sigma) {
  if (method == Decay::kGaussian) return gaussian_weight(iou, sigma);
  return iou >= threshold ? A(1) - iou : A(1);
}

// A box whose score is not greater than the threshold is out; that is written as this score. All
// others are positive, because thresholds are not negative.
template <class A>
PYDET_HOST_DEVICE A score_or_out(A score, A score_threshold) {
  return score > score_threshold ? score : A(-1);
}

}  // namespace pydet
