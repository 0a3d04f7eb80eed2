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

// Columns that are computed together, in a buffer that stays in the first-level cache; and the
// partial maxima and sums of a row, as many lanes as the widest vector has. As many rows at most
// share the buffer, so that what is to be computed once a row is computed by vectors, too.
constexpr int64_t kColumns = 1024;
constexpr int kLanes = 16;

constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <int kWidth = kLanes / 2, class A, class Join>
A folded(A* lanes, const Join& join_two) {
  for (int l = 0; l < kWidth; ++l) lanes[l] = join_two(lanes[l], lanes[l + kWidth]);
  if constexpr (kWidth > 1) return folded<kWidth / 2>(lanes, join_two);
  return lanes[0];
}

// One row of logits, in chunks of columns. The column of the target and those beyond the last are
// minus infinity: they count for nothing (where all others are that, nothing depends on the sum).
template <class T>
struct Row {
  using A = acc_t<T>;

  const T* x;
  int64_t classes, target;
  A* values;  // [padded(classes)], or of a chunk: exp(x_j - highest)
  ExpSum<A> sum;

  void add_up() {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    sum = {kNone, A(0)};
    for (int64_t begin = 0; begin < classes; begin += kColumns) {
      const int64_t count = load_chunk(begin);
      alignas(64) A lanes[kLanes];
      for (int l = 0; l < kLanes; ++l) lanes[l] = values[l];
      for (int64_t i = kLanes; i < count; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) lanes[l] = max_of(lanes[l], values[i + l]);
      }
      const A highest = max_of(folded(lanes, [](A a, A b) { return max_of(a, b); }), sum.highest);
      const A before = begin == 0 ? A(0) : sum.sum * exp_below(sum.highest, highest);
      sum = {highest, before + exp_chunk(count, highest)};
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
    return folded(lanes, [](A a, A b) { return a + b; });
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

  // grad[j] = factor * pi_j, and -factor for the target.
  void store_gradient(A factor, T* grad) {
    const A share = factor / sum.sum;
    for_each_chunk([&](int64_t begin, int64_t count) {
      for (int64_t i = 0; i < count; ++i) store(grad + begin + i, share * values[i]);
    });
    store(grad + target, -factor);
  }

  // The sum of pi_j v_j; `others` [kColumns] is workspace.
  A mean(const T* v, A* others) {
    A total = A(0);
    for_each_chunk([&](int64_t begin, int64_t count) {
      load_others(v + begin, begin, count, others);
      for (int64_t i = 0; i < count; ++i) others[i] *= values[i];
      total += folded_sum(others, count);
    });
    return total / sum.sum;
  }

  void load_others(const T* v, int64_t begin, int64_t count, A* others) {
    for (int64_t i = 0; i < count; ++i) others[i] = load(v + i);
    if (target >= begin && target < begin + count) others[target - begin] = A(0);
  }

  void store_second(const SecondSlopes<A>& slopes, A mean, const T* v, A* others, T* grad) {
    const A share = A(1) / sum.sum;
    for_each_chunk([&](int64_t begin, int64_t count) {
      load_others(v + begin, begin, count, others);
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
    const int64_t width = padded(std::clamp<int64_t>(call->classes, 1, kColumns));
    const int64_t together = std::min<int64_t>(kLanes, kColumns / width);
    double total = 0;
    for (int64_t row = begin; row < end; row += together) {
      const int64_t count = std::min(together, end - row);
      total += call->gamma == 2 ? run_rows<2>(*call, segment, row, count, width)
                                : run_rows<kAnyGamma>(*call, segment, row, count, width);
    }
    if (sum != nullptr) *sum = total;
  }

  // The sum of the losses, or of the gradients of their gradients; writes what the pass gives.
  template <int kGamma>
  static double run_rows(const SoftmaxFocalCall<T>& call, int64_t segment, int64_t first,
                         int64_t count, int64_t width) {
    const int64_t classes = call.classes;
    alignas(64) A values[kColumns], others[kColumns];
    alignas(64) A ahead[kLanes] = {}, sums[kLanes], weights[kLanes] = {}, margins[kLanes],
                  results[kLanes];
    std::fill(sums, sums + kLanes, A(1));
    Row<T> rows[kLanes];
    bool ignored[kLanes] = {};
    for (int64_t r = 0; r < count; ++r) {
      const Target target =
          target_of(call.labels[first + r], classes, call.background, call.ignored);
      ignored[r] = target.ignored;
      rows[r] = {call.inputs + (first + r) * classes,
                 classes,
                 target.column,
                 values + r * width,
                 {A(0), A(1)}};
      if (target.column < 0) continue;
      rows[r].add_up();
      ahead[r] = rows[r].sum.highest - load(rows[r].x + target.column);
      sums[r] = rows[r].sum.sum;
      weights[r] = class_weight(call.class_weights, call.alpha, target.column, call.background);
    }
    const A gamma = static_cast<A>(call.gamma);
    for (int l = 0; l < kLanes; ++l) margins[l] = ahead[l] + log_of_fraction(sums[l]);
    if (call.pass == Pass::kForward) {
      for (int l = 0; l < kLanes; ++l)
        results[l] = weights[l] * focal_negative<kGamma>(margins[l], gamma);
    } else if (call.pass == Pass::kBackward) {
      for (int l = 0; l < kLanes; ++l)
        results[l] = weights[l] * focal_negative_backward<kGamma>(margins[l], gamma);
    }
    double total = 0;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t number = first + r;
      T* grad = call.grad_inputs == nullptr ? nullptr : call.grad_inputs + number * classes;
      if (rows[r].target < 0) {
        results[r] = ignored[r] ? A(0) : std::numeric_limits<A>::quiet_NaN();
        for (int64_t i = 0; i < classes && grad != nullptr; ++i) store(grad + i, results[r]);
      } else if (call.pass == Pass::kBackward) {
        rows[r].store_gradient(grad_of(call, segment, number) * results[r], grad);
      } else if (call.pass == Pass::kDoubleBackward) {
        const T* v = call.grad_grad + number * classes;
        const A mean = rows[r].mean(v, others);
        const SecondSlopes<A> slopes =
            second_slopes(margins[r], gamma, weights[r], grad_of(call, segment, number),
                          mean - A(load(v + rows[r].target)));
        rows[r].store_second(slopes, mean, v, others, grad);
        results[r] = slopes.of_grad;
      }
      if (call.losses != nullptr) store(call.losses + number, results[r]);
      total += results[r];
    }
    return total;
  }

  static A grad_of(const SoftmaxFocalCall<T>& call, int64_t segment, int64_t number) {
    return call.grad_sums == nullptr ? A(load(call.grad_loss + number))
                                     : static_cast<A>(call.grad_sums[segment] * call.scale);
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
