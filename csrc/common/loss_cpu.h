// SPDX-License-Identifier: Apache-2.0
// The loops of a loss on the CPU: chunks that stay in the first-level cache, each by loops without
// branches that the compiler vectorises, then what only some rows need.
#pragma once

#include <algorithm>
#include <limits>

#include "common/isa.h"
#include "common/labels.h"
#include "common/loss.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {

// Elements that are computed together.
constexpr int64_t kLossChunk = 1024;

// The elements p[0, count) as numbers to compute with: themselves, or converted in `buffer`.
inline const float* widened(const float* p, int64_t, float*) { return p; }
inline const double* widened(const double* p, int64_t, double*) { return p; }
template <class T>
const float* widened(const T* p, int64_t count, float* buffer) {
  for (int64_t i = 0; i < count; ++i) buffer[i] = load(p + i);
  return buffer;
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

// Elements [begin, end), which lie in one segment: their results, or the sum of them.
template <class T, class Loss, Derivative kDerivative>
struct LossPiece {
  using A = acc_t<T>;

  static void run(const LossCall<T>* call, int64_t segment, int64_t begin, int64_t end,
                  double* sum) {
    const A grad_sum =
        call->grad_sums == nullptr ? A(1) : static_cast<A>(call->grad_sums[segment] * call->scale);
    A buffer[kLossChunk], values[kLossChunk];
    double total = 0;
    for (; begin < end; begin += kLossChunk) {
      const int64_t count = std::min(kLossChunk, end - begin);
      const bool fill = compute(*call, begin, count, values);
      if (call->factor != nullptr) {
        const A* factor = widened(call->factor + begin, count, buffer);
        for (int64_t i = 0; i < count; ++i) values[i] *= factor[i];
      }
      if (call->grad != nullptr) {
        const A* grad = widened(call->grad + begin, count, buffer);
        for (int64_t i = 0; i < count; ++i) values[i] *= grad[i];
      } else if (call->grad_sums != nullptr) {
        for (int64_t i = 0; i < count; ++i) values[i] *= grad_sum;
      }
      if (fill) fill_rows(*call, begin, count, values);
      if (call->result != nullptr) {
        for (int64_t i = 0; i < count; ++i) store(call->result + begin + i, values[i]);
      } else {
        total += folded_sum(values, count);
      }
    }
    if (sum != nullptr) *sum = total;
  }

  // The derivative of elements [begin, begin + count). Of labels first as if all were negatives,
  // then of those that are not. True where there are rows to fill.
  static bool compute(const LossCall<T>& call, int64_t begin, int64_t count, A* values) {
    const double alpha = call.alpha, gamma = call.gamma;
    A x_buffer[kLossChunk], t_buffer[kLossChunk];
    const A* x = widened(call.inputs + begin, count, x_buffer);
    if constexpr (Loss::kLabels) {
      for (int64_t i = 0; i < count; ++i)
        values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], A(0));
      bool fill = false;
      for_each_row(call, begin, count, [&](int64_t start, int64_t label) {
        const int64_t i = start + label;
        if (label < 0 || label >= call.num_classes) {
          fill = true;
        } else if (i >= 0 && i < count) {
          values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], A(1));
        }
      });
      return fill;
    } else {
      const A* t = widened(call.targets + begin, count, t_buffer);
      for (int64_t i = 0; i < count; ++i)
        values[i] = loss_of<Loss, kDerivative>(alpha, gamma, x[i], t[i]);
      return false;
    }
  }

  // Ignored rows are 0, whatever was computed and came in; those of wrong labels NaN.
  static void fill_rows(const LossCall<T>& call, int64_t begin, int64_t count, A* values) {
    for_each_row(call, begin, count, [&](int64_t start, int64_t label) {
      if (label >= 0 && label < call.num_classes) return;
      const A fill = label == kIgnored ? A(0) : std::numeric_limits<A>::quiet_NaN();
      const int64_t stop = std::min(start + call.num_classes, count);
      for (int64_t i = std::max<int64_t>(0, start); i < stop; ++i) values[i] = fill;
    });
  }

  // Calls body(start, label) for the rows of [begin, begin + count) that are not background; a row
  // starts `start` elements after `begin`, or before it.
  template <class Body>
  static void for_each_row(const LossCall<T>& call, int64_t begin, int64_t count,
                           const Body& body) {
    int64_t row = begin / call.num_classes;
    for (int64_t start = row * call.num_classes - begin; start < count;
         start += call.num_classes, ++row) {
      if (call.labels[row] != kBackground) body(start, call.labels[row]);
    }
  }
};

// sums[segment] = scale * the sum of its partials, in their order.
template <class A>
void add_partials(int64_t segments, int64_t pieces, double scale, const double* partials, A* sums) {
  for (int64_t segment = 0; segment < segments; ++segment) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partials[segment * pieces + piece];
    sums[segment] = static_cast<A>(sum * scale);
  }
}

template <class T, class Loss, Derivative kDerivative>
void run_loss_pieces(const LossCall<T>& call) {
  const int64_t length = call.segments == 0 ? 0 : call.count / call.segments;
  const int64_t pieces = loss_pieces(length, 1);
  if (call.count > 0) {
    const int64_t grain = std::max<int64_t>(1, kLossPiece / length);  // of very short segments
    parallel_for(call.segments * pieces, grain, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t segment = piece / pieces, offset = piece % pieces * kLossPiece;
        run_on_best_isa<LossPiece<T, Loss, kDerivative>>(
            &call, segment, segment * length + offset,
            segment * length + std::min(offset + kLossPiece, length),
            call.partials == nullptr ? nullptr : call.partials + piece);
      }
    });
  }
  if (call.sums != nullptr)
    add_partials(call.segments, pieces, call.scale, call.partials, call.sums);
}

template <template <int> class Loss, class T>
void run_loss(const LossCall<T>& call, bool usual) {
  with_loss<Loss>(call.derivative, usual, [&](auto loss, auto derivative) {
    run_loss_pieces<T, decltype(loss), decltype(derivative)::value>(call);
  });
}

}  // namespace cpu
}  // namespace pydet
