// SPDX-License-Identifier: Apache-2.0
#include "common/fused.h"

#include <algorithm>
#include <limits>

#include "common/loss_cpu.h"
#include "common/parallel_for.h"
#include "common/softmax_focal.h"
#include "softmax_focal_loss/softmax_focal_loss.h"
#include "softmax_focal_loss/softmax_focal_loss_rows.h"

namespace pydet {
namespace cpu {
namespace {

// The focal loss of margins and its derivatives, as of a single negative.
template <class A>
struct MarginLoops {
  LossLoop<A> loss, slope, slope_of_slope;

  explicit MarginLoops(double gamma) {
    const bool usual = gamma == 2;
    constexpr Derivative kNone = Derivative::kNone, kFirst = Derivative::kInput;
    loss = usual ? loop_of<A, HardFocal<2>, kNone>() : loop_of<A, HardFocal<kAnyGamma>, kNone>();
    slope = usual ? loop_of<A, HardFocal<2>, kFirst>() : loop_of<A, HardFocal<kAnyGamma>, kFirst>();
    slope_of_slope = loop_of<A, HardFocal<kAnyGamma>, Derivative::kInputInput>();
  }

  static void run(LossLoop<A> loop, double gamma, const A* margins, A* results) {
    loop(-1.0, gamma, kMostRows, margins, nullptr, A(0), results);  // without weights
  }
};

// Rows [begin, end), which lie in one segment.
template <class T>
struct SoftmaxFocalPiece {
  using A = acc_t<T>;

  static double run(const SoftmaxFocalCall<T>& call, int64_t segment, int64_t begin, int64_t end) {
    const MarginLoops<A> loops(call.gamma);
    Rows<T> rows(call, end - begin);
    double total = 0;
    for (int64_t row = begin; row < end; row += rows.together())
      total += run_rows(call, loops, segment, row, std::min(rows.together(), end - row), rows);
    return total;
  }

  // The sum of the losses, or of the gradients of their gradients; writes what the pass gives.
  static double run_rows(const SoftmaxFocalCall<T>& call, const MarginLoops<A>& loops,
                         int64_t segment, int64_t first, int64_t count, Rows<T>& rows) {
    const int64_t classes = call.classes;
    Target targets[kMostRows];
    bool all_ignored = true;
    for (int64_t r = 0; r < count; ++r) {
      targets[r] = target_of(call.labels[first + r], classes, call.background, call.ignored);
      all_ignored &= targets[r].ignored;
    }
    alignas(64) A margins[kMostRows], sums[kMostRows], weights[kMostRows] = {},
                                                       results[kMostRows] = {}, slopes[kMostRows];
    std::fill(margins, margins + kMostRows, A(0));
    std::fill(sums, sums + kMostRows, A(1));
    if (!all_ignored) rows.take_rows(first, count, targets);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t column = targets[r].column;
      if (column < 0) continue;
      margins[r] = rows.sum(r).highest - load(call.inputs + (first + r) * classes + column);
      sums[r] = rows.sum(r).sum;
      weights[r] = class_weight(call.class_weights, call.alpha, column, call.background);
    }
    for (int r = 0; r < kMostRows; ++r) margins[r] += log_of_fraction(sums[r]);
    T* grad = call.grad_inputs == nullptr ? nullptr : call.grad_inputs + first * classes;
    if (call.pass == Pass::kForward) {
      loops.run(loops.loss, call.gamma, margins, results);
    } else {
      loops.run(loops.slope, call.gamma, margins, results);
    }
    for (int r = 0; r < kMostRows; ++r) results[r] *= weights[r];
    if (call.pass == Pass::kBackward && !all_ignored) {
      for (int64_t r = 0; r < count; ++r)
        slopes[r] = grad_of(call, segment, first + r) * results[r];
      rows.store_gradients(slopes, grad);
    } else if (call.pass == Pass::kDoubleBackward) {
      A bends[kMostRows];
      loops.run(loops.slope_of_slope, call.gamma, margins, bends);
      for (int64_t r = 0; r < count; ++r) {
        if (targets[r].column < 0) continue;
        const T* v = call.grad_grad + (first + r) * classes;
        const A mean = rows.mean(r, v), moved = mean - A(load(v + targets[r].column));
        const SecondSlopes<A> second = second_slopes(results[r], weights[r] * bends[r],
                                                     grad_of(call, segment, first + r), moved);
        rows.store_second(r, second, mean, v, grad + r * classes);
        results[r] = second.of_grad;
      }
    }
    return store_rest(call, first, count, targets, results, grad);
  }

  // What rows without a column get, and the losses; their sum.
  static double store_rest(const SoftmaxFocalCall<T>& call, int64_t first, int64_t count,
                           const Target* targets, A* results, T* grad) {
    double total = 0;
    for (int64_t r = 0; r < count; ++r) {
      if (targets[r].column < 0) {
        results[r] = targets[r].ignored ? A(0) : std::numeric_limits<A>::quiet_NaN();
        for (int64_t i = 0; i < call.classes && grad != nullptr; ++i)
          store(grad + r * call.classes + i, results[r]);
      }
      if (call.losses != nullptr) store(call.losses + first + r, results[r]);
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
      const double sum =
          SoftmaxFocalPiece<T>::run(call, segment, segment * length + offset,
                                    segment * length + std::min(offset + piece_rows, length));
      if (call.partials != nullptr) call.partials[piece] = sum;
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
