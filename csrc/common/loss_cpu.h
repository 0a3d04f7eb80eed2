// SPDX-License-Identifier: Apache-2.0
// A loss on the CPU. Its own file compiles a plain loop for each formula, that of float once an
// instruction set, and nothing else; what all losses do alike is compiled once, in loss_cpu.cpp.
#pragma once

#include <type_traits>

#include "common/isa.h"
#include "common/loss.h"

namespace pydet {
namespace cpu {

// Computes values[i] of the logits x[i], i < count, a multiple of kLossLanes. The targets are t, or
// `label`, 0 or 1, for all where the loss takes labels. The arrays do not overlap.
template <class A>
using LossLoop = void (*)(double alpha, double gamma, int64_t count, const A* x, const A* t,
                          A label, A* values);

// Loops have no remainder that fills no vector.
constexpr int64_t kLossLanes = 16;

constexpr int64_t padded(int64_t count, int64_t lanes = kLossLanes) {
  return (count + lanes - 1) / lanes * lanes;
}

// Calls Kernel::run; of double without instruction sets: it goes by the functions of the C library,
// which none makes faster.
template <class A, class Kernel, class... Args>
void run_best(Args... args) {
  if constexpr (std::is_same_v<A, double>) {
    Kernel::run(args...);
  } else {
    run_on_best_isa<Kernel>(args...);
  }
}

template <class A, class Loss, Derivative kDerivative>
struct FormulaLoop {
  static void run(double alpha, double gamma, int64_t count, const A* __restrict x,
                  [[maybe_unused]] const A* __restrict t, [[maybe_unused]] A label,
                  A* __restrict values) {
    count = count / kLossLanes * kLossLanes;  // for the compiler
    if constexpr (!Loss::kLabels) {
      for (int64_t i = 0; i < count; ++i)
        values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], t[i]);
    } else if (label == A(0)) {
      for (int64_t i = 0; i < count; ++i)
        values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], A(0));
    } else {
      for (int64_t i = 0; i < count; ++i)
        values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], A(1));
    }
  }
};

template <class A, class Loss, Derivative kDerivative>
LossLoop<A> loop_of() {
  return [](double alpha, double gamma, int64_t count, const A* x, const A* t, A label, A* values) {
    run_best<A, FormulaLoop<A, Loss, kDerivative>>(alpha, gamma, count, x, t, label, values);
  };
}

// The call, with the loop for its derivative. Instantiated for float, double, Half and BFloat16.
template <class T>
void run_loss_loop(const LossCall<T>& call, LossLoop<acc_t<T>> loop);

template <template <int> class Loss, class T>
void run_loss(const LossCall<T>& call, bool usual) {
  LossLoop<acc_t<T>> loop = nullptr;
  with_loss<Loss>(call.derivative, usual, [&](auto loss, auto derivative) {
    loop = loop_of<acc_t<T>, decltype(loss), decltype(derivative)::value>();
  });
  run_loss_loop(call, loop);
}

// The sum of values[0, count), by halves: the order does not depend on the width of the vectors.
template <class A>
A folded_sum(A* values, int64_t count) {
  while (count > 1) {
    const int64_t pairs = count / 2, rest = count - pairs;
    for (int64_t i = 0; i < pairs; ++i) values[i] += values[rest + i];
    count = rest;
  }
  return values[0];
}

// sums[segment] = scale * the sum of its partials, in their order.
template <class A>
void add_partials(int64_t segments, int64_t pieces, double scale, const double* partials, A* sums) {
  for (int64_t segment = 0; segment < segments; ++segment) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partials[segment * pieces + piece];
    sums[segment] = static_cast<A>(sum * scale);
  }
}

}  // namespace cpu
}  // namespace pydet
