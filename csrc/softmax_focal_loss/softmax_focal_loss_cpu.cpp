// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "common/isa.h"
#include "common/loss_cpu.h"
#include "common/softmax_focal.h"
#include "softmax_focal_loss/softmax_focal_loss.h"

namespace pydet {
namespace cpu {
namespace {

// Columns that are computed together, in a buffer that stays in the first-level cache, and the
// partial maxima and sums of one row: as many lanes as the widest vector has.
constexpr int64_t kColumns = 1024;
constexpr int kLanes = 16;

constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <class A>
A folded_max(A* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = max_of(lanes[l], lanes[l + width]);
  }
  return lanes[0];
}

// One row of logits, in chunks of columns. The column of the target and those beyond the last are
// minus infinity: they count for nothing (where all others are that, nothing depends on the sum).
template <class T>
struct Row {
  using A = acc_t<T>;

  const T* x;
  int64_t classes, target;
  alignas(64) A values[kColumns], others[kColumns];  // of a chunk: exp(x_j - highest), and v_j
  ExpSum<A> sum;

  Row(const T* inputs, int64_t classes, int64_t target)
      : x(inputs), classes(classes), target(target) {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    sum = {kNone, A(0)};
    for (int64_t begin = 0; begin < classes; begin += kColumns) {
      const int64_t count = load_chunk(begin);
      alignas(64) A lanes[kLanes];
      std::fill(lanes, lanes + kLanes, kNone);
      for (int64_t i = 0; i < count; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) lanes[l] = max_of(lanes[l], values[i + l]);
      }
      const A highest = max_of(folded_max(lanes), sum.highest);
      sum = {highest, sum.sum * exp_below(sum.highest, highest) + exp_chunk(count, highest)};
    }
  }

  // The logits of the chunk, as far as whole vectors go.
  int64_t load_chunk(int64_t begin) {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    const int64_t count = std::min(kColumns, classes - begin), all = padded(count);
    for (int64_t i = 0; i < count; ++i) values[i] = load(x + begin + i);
    for (int64_t i = count; i < all; ++i) values[i] = kNone;
    if (target >= begin && target < begin + count) values[target - begin] = kNone;
    return all;
  }

  // values = exp(values - highest); returns their sum.
  A exp_chunk(int64_t count, A highest) {
    alignas(64) A lanes[kLanes] = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        values[i + l] = exp_below(values[i + l], highest);
        lanes[l] += values[i + l];
      }
    }
    return folded_sum(lanes, kLanes);
  }

  // Calls body(begin, count) for each chunk, with its exponentials of the highest logit of all in
  // `values`. Those of a single chunk are still there.
  template <class Body>
  void for_each_chunk(const Body& body) {
    for (int64_t begin = 0; begin < classes; begin += kColumns) {
      if (classes > kColumns) exp_chunk(load_chunk(begin), sum.highest);
      body(begin, std::min(kColumns, classes - begin));
    }
  }

  A margin() const { return margin_of(sum, A(load(x + target))); }

  // grad[j] = factor * pi_j, and -factor for the target.
  void store_gradient(A factor, T* grad) {
    const A share = factor / sum.sum;
    for_each_chunk([&](int64_t begin, int64_t count) {
      for (int64_t i = 0; i < count; ++i) store(grad + begin + i, share * values[i]);
    });
    store(grad + target, -factor);
  }

  // The sum of pi_j v_j.
  A mean(const T* v) {
    A total = A(0);
    for_each_chunk([&](int64_t begin, int64_t count) {
      load_others(v + begin, begin, count);
      for (int64_t i = 0; i < count; ++i) others[i] *= values[i];
      total += folded_sum(others, count);
    });
    return total / sum.sum;
  }

  void load_others(const T* v, int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) others[i] = load(v + i);
    if (target >= begin && target < begin + count) others[target - begin] = A(0);
  }

  void store_second(const SecondSlopes<A>& slopes, A mean, const T* v, T* grad) {
    const A share = A(1) / sum.sum;
    for_each_chunk([&](int64_t begin, int64_t count) {
      load_others(v + begin, begin, count);
      for (int64_t i = 0; i < count; ++i) {
        const A slope = slopes.along + slopes.across * (others[i] - mean);
        store(grad + begin + i, share * values[i] * slope);
      }
    });
    store(grad + target, -slopes.along);
  }
};

// Rows [begin, end), which lie in one segment.
template <class T>
struct SoftmaxFocalPiece {
  using A = acc_t<T>;

  static void run(const SoftmaxFocalCall<T>* call, int64_t segment, int64_t begin, int64_t end,
                  double* sum) {
    double total = 0;
    for (int64_t row = begin; row < end; ++row) {
      const A loss = call->gamma == 2 ? run_row<2>(*call, segment, row)
                                      : run_row<kAnyGamma>(*call, segment, row);
      if (call->losses != nullptr) store(call->losses + row, loss);
      total += loss;
    }
    if (sum != nullptr) *sum = total;
  }

  // The loss, or the gradient of its gradient; writes the gradient of the logits.
  template <int kGamma>
  static A run_row(const SoftmaxFocalCall<T>& call, int64_t segment, int64_t number) {
    const int64_t classes = call.classes;
    const Target target = target_of(call.labels[number], classes, call.background, call.ignored);
    T* grad_inputs = call.grad_inputs == nullptr ? nullptr : call.grad_inputs + number * classes;
    if (target.column < 0) {
      const A fill = target.ignored ? A(0) : std::numeric_limits<A>::quiet_NaN();
      for (int64_t i = 0; i < classes && grad_inputs != nullptr; ++i) store(grad_inputs + i, fill);
      return fill;
    }
    Row<T> row(call.inputs + number * classes, classes, target.column);
    const A weight = class_weight(call.class_weights, call.alpha, target.column, call.background);
    const A u = row.margin(), gamma = static_cast<A>(call.gamma);
    if (call.pass == Pass::kForward) return weight * focal_negative<kGamma>(u, gamma);
    const A grad = call.grad_sums == nullptr ? A(load(call.grad_loss + number))
                                             : static_cast<A>(call.grad_sums[segment] * call.scale);
    if (call.pass == Pass::kBackward) {
      row.store_gradient(grad * weight * focal_negative_backward<kGamma>(u, gamma), grad_inputs);
      return A(0);
    }
    const T* v = call.grad_grad + number * classes;
    const A mean = row.mean(v);
    const SecondSlopes<A> slopes =
        second_slopes(u, gamma, weight, grad, mean - A(load(v + target.column)));
    row.store_second(slopes, mean, v, grad_inputs);
    return slopes.of_grad;
  }
};

}  // namespace

template <class T>
void softmax_focal_loss(const SoftmaxFocalCall<T>& call) {
  const int64_t length = call.segments == 0 ? 0 : call.rows / call.segments;
  const int64_t piece_rows = softmax_focal_rows(call.classes);
  const int64_t pieces = softmax_focal_pieces(length, call.classes, 1);
  const int64_t grain = length == 0 ? 1 : std::max<int64_t>(1, piece_rows / length);
  parallel_for(call.segments * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t segment = piece / pieces, offset = piece % pieces * piece_rows;
      run_on_best_isa<SoftmaxFocalPiece<T>>(
          &call, segment, segment * length + offset,
          segment * length + std::min(offset + piece_rows, length),
          call.partials == nullptr ? nullptr : call.partials + piece);
    }
  });
  if (call.sums != nullptr)
    add_partials(call.segments, pieces, call.scale, call.partials, call.sums);
}

template void softmax_focal_loss(const SoftmaxFocalCall<float>&);
template void softmax_focal_loss(const SoftmaxFocalCall<double>&);
template void softmax_focal_loss(const SoftmaxFocalCall<Half>&);
template void softmax_focal_loss(const SoftmaxFocalCall<BFloat16>&);

}  // namespace cpu
}  // namespace pydet
