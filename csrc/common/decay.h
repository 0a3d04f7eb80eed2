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

// The factor of a score in matrix NMS (Wang et al. 2020, section 3.3): the least of f(iou(i)) /
// f(peak(i)) over better boxes i, at most 1, with f the linear or the gaussian decay. Least and
// greatest are the same in any order, so any number of threads may look for them.
template <class A>
struct MatrixDecay {
  Decay method;
  A value;  // linear: the least ratio; gaussian: the greatest iou^2 - peak^2

  PYDET_HOST_DEVICE explicit MatrixDecay(Decay method)
      : method(method), value(method == Decay::kLinear ? A(1) : A(0)) {}

  // In [0, 1]. A box whose peak is 1 equals a better one and is gone: it counts for nothing.
  static PYDET_HOST_DEVICE A linear(A iou, A peak) {
    return iou > peak ? (A(1) - iou) / (A(1) - peak) : A(1);
  }

  // At least 0. The exponential follows once, for the greatest.
  static PYDET_HOST_DEVICE A gaussian(A iou, A peak) {
    return iou > peak ? iou * iou - peak * peak : A(0);
  }

  PYDET_HOST_DEVICE A weight(A sigma) const {
    return method == Decay::kLinear ? value : portable_exp_of_negative(-value / sigma);
  }
};

}  // namespace pydet
