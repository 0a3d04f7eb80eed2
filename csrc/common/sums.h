// SPDX-License-Identifier: Apache-2.0
// How a formula adds where its speed depends on that. Minimum, maximum and comparison take the same
// units of a processor as addition (on Zen two of four; the others multiply), so formulas full of
// them wait for those units while the others idle.
#pragma once

#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

struct PlainSums {
  template <class A>
  PYDET_HOST_DEVICE A plus(const A& a, const A& b) const {
    return a + b;
  }
  template <class A>
  PYDET_HOST_DEVICE A minus(const A& a, const A& b) const {
    return a - b;
  }
  template <class A>
  PYDET_HOST_DEVICE A positive_part(const A& x) const {
    return pydet::positive_part(x);
  }
};

namespace cpu {

// The same bits by the units that multiply: a + b is fma(a, 1, b). kHasFma: whether the kernel is
// compiled for an instruction set with fused multiply-adds (isa.h); elsewhere sums are plain.
template <class A, bool kHasFma>
class FusedSums {
 public:
  // Volatile, so that the compiler does not know the numbers: it would make plain sums again, and
  // of the maximum with 0 a comparison and a masked copy, two instructions.
  FusedSums() {
    const volatile A one = A(1), zero = A(0);
    one_ = one;
    zero_ = zero;
  }
  A plus(A a, A b) const { return fma(a, b); }
  A minus(A a, A b) const { return fma(-b, a); }
  A positive_part(A x) const { return max_of(x, zero_); }

 private:
  // a * 1 + b
  A fma(A a, A b) const {
    if constexpr (!kHasFma) {
      return a + b;
    } else if constexpr (sizeof(A) == sizeof(float)) {
      return __builtin_fmaf(a, one_, b);
    } else {
      return __builtin_fma(a, one_, b);
    }
  }

  A one_, zero_;
};

}  // namespace cpu
}  // namespace pydet
