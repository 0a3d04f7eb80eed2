// SPDX-License-Identifier: Apache-2.0
#include "common/loss_cpu.h"

#include <algorithm>
#include <limits>

#include "common/labels.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {
namespace {

// Elements that are computed together, in arrays that stay in the first-level cache.
constexpr int64_t kLossChunk = 1024;

// The elements p[0, count) as numbers to compute with, and zeros up to padded(count): themselves
// where that is what they are, or copied to `buffer`.
template <class T>
const acc_t<T>* widened(const T* p, int64_t count, acc_t<T>* buffer) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    if (count == padded(count)) return p;
  }
  for (int64_t i = 0; i < count; ++i) buffer[i] = load(p + i);
  for (int64_t i = count; i < padded(count); ++i) buffer[i] = 0;
  return buffer;
}

// Elements [begin, end), which lie in one segment: their results, or the sum of them.
template <class T>
struct LossPiece {
  using A = acc_t<T>;

  static void run(const LossCall<T>* call, LossLoop<A> loop, int64_t segment, int64_t begin,
                  int64_t end, double* sum) {
    const A grad_sum =
        call->grad_sums == nullptr ? A(1) : static_cast<A>(call->grad_sums[segment] * call->scale);
    alignas(64) A buffer[kLossChunk], values[kLossChunk];
    double total = 0;
    for (; begin < end; begin += kLossChunk) {
      const int64_t count = std::min(kLossChunk, end - begin);
      const bool fill = call->labels != nullptr ? by_labels(*call, loop, begin, count, values)
                                                : by_targets(*call, loop, begin, count, values);
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

  static bool by_targets(const LossCall<T>& call, LossLoop<A> loop, int64_t begin, int64_t count,
                         A* values) {
    alignas(64) A x_buffer[kLossChunk], t_buffer[kLossChunk];
    const A* x = widened(call.inputs + begin, count, x_buffer);
    const A* t = widened(call.targets + begin, count, t_buffer);
    loop(call.alpha, call.gamma, padded(count), x, t, A(0), values);
    return false;
  }

  // First as if all were negatives, then those that are not. True where there are rows to fill.
  static bool by_labels(const LossCall<T>& call, LossLoop<A> loop, int64_t begin, int64_t count,
                        A* values) {
    alignas(64) A x_buffer[kLossChunk], positives[kLossChunk], of_positives[kLossChunk];
    int32_t places[kLossChunk];
    const A* x = widened(call.inputs + begin, count, x_buffer);
    loop(call.alpha, call.gamma, padded(count), x, nullptr, A(0), values);
    bool fill = false;
    int64_t num_positives = 0;
    for_each_row(call, begin, count, [&](int64_t start, int64_t label) {
      const int64_t i = start + label;
      if (label < 0 || label >= call.num_classes) {
        fill = true;
      } else if (i >= 0 && i < count) {
        positives[num_positives] = x[i];
        places[num_positives++] = static_cast<int32_t>(i);
      }
    });
    if (num_positives == 0) return fill;
    std::fill(positives + num_positives, positives + padded(num_positives), A(0));
    loop(call.alpha, call.gamma, padded(num_positives), positives, nullptr, A(1), of_positives);
    for (int64_t k = 0; k < num_positives; ++k) values[places[k]] = of_positives[k];
    return fill;
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

}  // namespace

template <class T>
void run_loss_loop(const LossCall<T>& call, LossLoop<acc_t<T>> loop) {
  const int64_t length = call.segments == 0 ? 0 : call.count / call.segments;
  const int64_t pieces = loss_pieces(length, 1);
  if (call.count > 0) {
    const int64_t grain = std::max<int64_t>(1, kLossPiece / length);  // of very short segments
    parallel_for(call.segments * pieces, grain, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t segment = piece / pieces, offset = piece % pieces * kLossPiece;
        run_on_best_isa<LossPiece<T>>(&call, loop, segment, segment * length + offset,
                                      segment * length + std::min(offset + kLossPiece, length),
                                      call.partials == nullptr ? nullptr : call.partials + piece);
      }
    });
  }
  if (call.sums != nullptr)
    add_partials(call.segments, pieces, call.scale, call.partials, call.sums);
}

template void run_loss_loop(const LossCall<float>&, LossLoop<float>);
template void run_loss_loop(const LossCall<double>&, LossLoop<double>);
template void run_loss_loop(const LossCall<Half>&, LossLoop<float>);
template void run_loss_loop(const LossCall<BFloat16>&, LossLoop<float>);

}  // namespace cpu
}  // namespace pydet
