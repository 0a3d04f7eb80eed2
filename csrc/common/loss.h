// SPDX-License-Identifier: Apache-2.0
// What the losses of single logits share: the call of a kernel, and the choice of the formula that
// it is compiled for. The kernels are those of common/loss_cpu.cpp and common/loss.cuh; a loss is a
// template over its exponent, such as those of common/focal.h.
//
// All arrays are contiguous. Arithmetic in float (double for double), rounded once. Sums are taken
// over `segments` equal parts of the logits. Each part is cut into pieces of fixed size, a piece's
// sum is a double in `partials`, and those are added in their order: the same bits every time,
// whatever the number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dual.h"
#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

// What is computed of the loss f(x, t) of a logit x and its target t: the loss itself, or one of
// its derivatives.
enum class Derivative { kNone, kInput, kTarget, kInputInput, kInputTarget, kTargetTarget };

// A call computes derivative * factor * grad of every logit, and writes it to `result` or adds it
// up in `sums`; the other is null, and factors that are null are left out.
template <class T>
struct LossCall {
  int64_t count, segments;
  double alpha, gamma;  // the numbers of the formula
  double scale;         // of the sums: 1, or 1 / count for a mean
  const T* inputs;      // [count]
  const T* targets;     // [count], or null for labels
  const int64_t*
      labels;  // [count / num_classes]: the class of each row of logits, see focal_loss.h
  int64_t num_classes;
  Derivative derivative;
  const T* factor;            // [count]
  const T* grad;              // [count], or
  const acc_t<T>* grad_sums;  // [segments], times `scale`
  T* result;                  // [count]
  acc_t<T>* sums;             // [segments]
  double* partials;           // [loss_pieces(count, segments)], workspace of sums
};

// Elements a piece: a task of the CPU, a block of the GPU.
constexpr int64_t kLossPiece = 1 << 14;

inline int64_t loss_pieces(int64_t count, int64_t segments) {
  return segments == 0 ? 0 : segments * ((count / segments + kLossPiece - 1) / kLossPiece);
}

// The derivative of one logit. The second ones are the tangents of the first.
template <class Loss, Derivative kDerivative, class A>
PYDET_HOST_DEVICE A loss_of(double alpha, double gamma, A x, A t) {
  using Plain = typename Loss::template Formula<A>;
  using Second = typename Loss::template Formula<Dual<A>>;
  if constexpr (kDerivative == Derivative::kNone) {
    return Plain(alpha, gamma).value(x, t);
  } else if constexpr (kDerivative == Derivative::kInput) {
    return Plain(alpha, gamma).by_input(x, t);
  } else if constexpr (kDerivative == Derivative::kTarget) {
    return Plain(alpha, gamma).by_target(x, t);
  } else if constexpr (kDerivative == Derivative::kInputInput) {
    return Second(alpha, gamma).by_input({x, A(1)}, {t}).tangent;
  } else if constexpr (kDerivative == Derivative::kInputTarget) {
    return Second(alpha, gamma).by_input({x}, {t, A(1)}).tangent;
  } else {
    return Second(alpha, gamma).by_target({x}, {t, A(1)}).tangent;
  }
}

// Calls body(loss, derivative) with both as types. The losses and first derivatives of the usual
// exponents have code of their own; all else goes by any exponent. Of labels there is no
// derivative.
template <template <int> class Loss, class Body>
void with_loss(Derivative derivative, bool usual, const Body& body) {
  constexpr int kAny = -1;
  const auto first = [&](auto constant) {
    return usual ? body(Loss<2>{}, constant) : body(Loss<kAny>{}, constant);
  };
  switch (derivative) {
    case Derivative::kNone:
      return first(std::integral_constant<Derivative, Derivative::kNone>{});
    case Derivative::kInput:
      return first(std::integral_constant<Derivative, Derivative::kInput>{});
    case Derivative::kInputInput:
      return body(Loss<kAny>{}, std::integral_constant<Derivative, Derivative::kInputInput>{});
    default:
      break;
  }
  if constexpr (!Loss<kAny>::kLabels) {
    switch (derivative) {
      case Derivative::kTarget:
        return first(std::integral_constant<Derivative, Derivative::kTarget>{});
      case Derivative::kInputTarget:
        return body(Loss<kAny>{}, std::integral_constant<Derivative, Derivative::kInputTarget>{});
      default:
        return body(Loss<kAny>{}, std::integral_constant<Derivative, Derivative::kTargetTarget>{});
    }
  }
}

}  // namespace pydet
