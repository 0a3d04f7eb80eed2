// SPDX-License-Identifier: Apache-2.0
// The arithmetic of one row of the softmax focal loss (softmax_focal_loss.h), for host and device.
#pragma once

#include "common/dual.h"
#include "common/focal.h"
#include "common/host_device.h"
#include "common/labels.h"
#include "common/math.h"

namespace pydet {

// exp(x - highest), where an infinity less itself is 0: the limit, as logits grow alike.
template <class A>
PYDET_HOST_DEVICE A exp_below(A x, A highest) {
  return exp_of_negative(x == highest ? A(0) : x - highest);
}

// The sum of exp(x_j) over some columns, as exp(highest) * sum. None: minus infinity and 0.
template <class A>
struct ExpSum {
  A highest, sum;
};

template <class A>
PYDET_HOST_DEVICE ExpSum<A> join(const ExpSum<A>& a, const ExpSum<A>& b) {
  const A highest = max_of(a.highest, b.highest);
  return {highest, a.sum * exp_below(a.highest, highest) + b.sum * exp_below(b.highest, highest)};
}

// u, from the sum over the other columns.
template <class A>
PYDET_HOST_DEVICE A margin_of(const ExpSum<A>& others, A x_target) {
  return (others.highest - x_target) + log_of_fraction(others.sum);
}

// What to do with a row: its column, or what its results are filled with.
struct Target {
  int64_t column;  // -1 where there is none
  bool ignored;
};

PYDET_HOST_DEVICE Target target_of(int64_t label, int64_t classes, int64_t background,
                                   int64_t ignored) {
  if (label == ignored) return {-1, true};
  const int64_t column = label == kBackground ? background : label;
  return {column >= 0 && column < classes ? column : -1, false};
}

template <class A>
PYDET_HOST_DEVICE A class_weight(const A* class_weights, double alpha, int64_t column,
                                 int64_t background) {
  if (class_weights != nullptr) return class_weights[column];
  const FocalWeights<A> weights = focal_weights<A>(alpha);
  return column == background ? weights.negative : weights.positive;
}

// The factors of the double backward: with v what came in and mean = sum of pi_j v_j, the gradient
// of the loss's gradient is slope (mean - v_t), that of x_t is -along, and of the others
// pi_j (along + across (v_j - mean)).
template <class A>
struct SecondSlopes {
  A of_grad, along, across;
};

// `slope` and `bend` are the first two derivatives of w f(u), `grad` is what came in for the loss,
// and `moved` is mean - v_t.
template <class A>
PYDET_HOST_DEVICE SecondSlopes<A> second_slopes(A slope, A bend, A grad, A moved) {
  return {slope * moved, grad * bend * moved, grad * slope};
}

template <class A>
PYDET_HOST_DEVICE SecondSlopes<A> second_slopes(A u, A gamma, A weight, A grad, A moved) {
  const Dual<A> slope = focal_negative_backward<kAnyGamma>(Dual<A>(u, A(1)), Dual<A>(gamma));
  return second_slopes(weight * slope.value, weight * slope.tangent, grad, moved);
}

}  // namespace pydet
