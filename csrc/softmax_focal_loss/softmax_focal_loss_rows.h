// SPDX-License-Identifier: Apache-2.0
// The rows of logits of softmax_focal_loss on the CPU: exponentials, their sums, and gradients.
//
// Rows are computed together, as many as fill a vector with what is to be computed once a row. Each
// row is cut into chunks that stand one behind the other in a buffer, and a chunk's exponentials
// are those of its own highest logit: they are computed once, whatever comes behind, and made those
// of the row by a factor a chunk. Only rows that fill the buffer more than once are read again.
#pragma once

#include <algorithm>
#include <limits>

#include "common/loss_cpu.h"
#include "common/ordered_bits.h"
#include "common/softmax_focal.h"
#include "softmax_focal_loss/softmax_focal_loss.h"

namespace pydet {
namespace cpu {

// As many as fill the widest vector; also the most chunks of a buffer.
constexpr int64_t kMostRows = 16;
// Elements a chunk, a group of rows, and the buffer, which only single rows fill.
constexpr int64_t kChunk = 1024, kGroup = 4096, kBuffer = 16384;

// Chunks of a group of rows: `per_row` of `width` numbers each, in the buffer. Those behind the
// last column, and the target's, are minus infinity: they count for nothing (where all others are
// that, nothing depends on the sum).
struct RowLayout {
  int64_t rows, columns, width, per_row;

  int64_t stride() const { return width * per_row; }
  int64_t place(int64_t row, int64_t column) const { return row * stride() + column; }
};

template <class T>
struct LoadRows {
  // Rows of `columns` numbers, `stride` apart in x.
  static void run(RowLayout at, const T* __restrict x, int64_t stride, acc_t<T> fill,
                  acc_t<T>* __restrict values) {
    const int64_t columns = at.columns;
    for (int64_t row = 0; row < at.rows; ++row, x += stride, values += at.stride()) {
      for (int64_t i = 0; i < columns; ++i) values[i] = load(x + i);
      for (int64_t i = columns; i < at.stride(); ++i) values[i] = fill;
    }
  }
};

template <class T>
struct StoreRows {
  // The numbers of each chunk times its factor.
  static void run(RowLayout at, const acc_t<T>* __restrict values, const acc_t<T>* factors,
                  int64_t stride, T* __restrict y) {
    for (int64_t row = 0; row < at.rows; ++row, y += stride, values += at.stride()) {
      for (int64_t begin = 0; begin < at.columns; begin += at.width) {
        const acc_t<T> factor = *factors++;
        const int64_t end = std::min(begin + at.width, at.columns);
        for (int64_t i = begin; i < end; ++i) store(y + i, factor * values[i]);
      }
    }
  }
};

// Exponentials of chunks of logits, kLanes of them at a time: partial sums as many.
template <class A, int kLanes>
struct ExpChunks {
  static void run(int64_t chunks, int64_t width, A* __restrict values, ExpSum<A>* __restrict sums) {
    const uint64_t count = static_cast<uint64_t>(width) / kLanes * kLanes;
    for (int64_t chunk = 0; chunk < chunks; ++chunk, values += count) {
      bits_t<A> most = to_ordered(values[0]);
      for (uint64_t i = 0; i < count; ++i) most = std::max(most, to_ordered(values[i]));
      const A highest = from_ordered<A>(most);
      // An infinity less itself is 0, which only such a chunk pays for.
      const bool finite = highest - highest == A(0);
      for (uint64_t i = 0; i < count && !finite; ++i)
        values[i] = values[i] == highest ? A(0) : values[i] - highest;
      const A subtracted = finite ? highest : A(0);
      A partial[kLanes] = {};
      for (uint64_t i = 0; i < count; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) {
          values[i + l] = exp_of_negative(values[i + l] - subtracted);
          partial[l] += values[i + l];
        }
      }
      sums[chunk] = {highest, folded(partial)};
    }
  }

  template <int kWidth = kLanes / 2>
  static A folded(A* lanes) {
    for (int l = 0; l < kWidth; ++l) lanes[l] += lanes[l + kWidth];
    if constexpr (kWidth > 1) return folded<kWidth / 2>(lanes);
    return lanes[0];
  }
};

// A group of rows, and the part of their columns that the buffer holds: all, or of a single long
// row one span after the other.
template <class T>
class Rows {
 public:
  using A = acc_t<T>;

  Rows(const SoftmaxFocalCall<T>& call, int64_t most_rows) : call_(call) {
    const int64_t classes = std::max<int64_t>(1, call.classes);
    at_.width = padded(std::min(classes, kChunk), classes <= kChunk / 8 ? 8 : 16);
    span_ = std::min(classes, kBuffer);
    at_.per_row = (span_ + at_.width - 1) / at_.width;
    together_ = std::clamp<int64_t>(kGroup / at_.stride(), 1, std::min(kMostRows, most_rows));
  }

  // How many rows take_rows accepts.
  int64_t together() const { return together_; }

  // Computes the exponentials of the rows [first, first + count) and their sums.
  void take_rows(int64_t first, int64_t count, const Target* targets) {
    first_ = first;
    at_.rows = count;
    targets_ = targets;
    for (int64_t begin = 0; begin < call_.classes; begin += span_) {
      fill(begin);
      for (int64_t row = 0; row < count; ++row) {
        ExpSum<A> sum = chunks_[row * at_.per_row];
        for (int64_t c = 1; c < at_.per_row; ++c) sum = join(sum, chunks_[row * at_.per_row + c]);
        sums_[row] = begin == 0 ? sum : join(sums_[row], sum);
      }
    }
  }

  const ExpSum<A>& sum(int64_t row) const { return sums_[row]; }

  // grad[j] = slope * pi_j, and -slope for the target.
  void store_gradients(const A* slopes, T* grad) {
    for (int64_t begin = 0; begin < call_.classes; begin += span_) {
      if (call_.classes > span_) fill(begin);
      A factors[kMostRows];
      for (int64_t row = 0; row < at_.rows; ++row) {
        for (int64_t c = 0; c < at_.per_row; ++c)
          factors[row * at_.per_row + c] = slopes[row] / sums_[row].sum * rescale(row, c);
      }
      run_best<A, StoreRows<T>>(at_, static_cast<const A*>(values_), static_cast<const A*>(factors),
                                call_.classes, grad + begin);
    }
    for (int64_t row = 0; row < at_.rows; ++row) {
      const int64_t target = targets_[row].column;
      if (target >= 0) store(grad + row * call_.classes + target, -slopes[row]);
    }
  }

  // The sum of pi_j v_j.
  A mean(int64_t row, const T* v) {
    A total = A(0);
    for_each_chunk(row, v, [&](int64_t, int64_t count, const A* values, A share) {
      for (int64_t i = 0; i < count; ++i) others_[i] *= values[i];
      total += share * folded_sum(others_, count);
    });
    return total;
  }

  void store_second(int64_t row, const SecondSlopes<A>& slopes, A mean, const T* v, T* grad) {
    for_each_chunk(row, v, [&](int64_t begin, int64_t count, const A* values, A share) {
      for (int64_t i = 0; i < count; ++i)
        others_[i] = values[i] * (slopes.along + slopes.across * (others_[i] - mean));
      run_best<A, StoreRows<T>>(RowLayout{1, count, kChunk, 1}, static_cast<const A*>(others_),
                                static_cast<const A*>(&share), count, grad + begin);
    });
    store(grad + targets_[row].column, -slopes.along);
  }

 private:
  // Fills the buffer from column `begin` on.
  void fill(int64_t begin) {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    at_.columns = std::min(span_, call_.classes - begin);
    at_.per_row = (at_.columns + at_.width - 1) / at_.width;
    run_best<A, LoadRows<T>>(at_, call_.inputs + first_ * call_.classes + begin, call_.classes,
                             kNone, static_cast<A*>(values_));
    for (int64_t row = 0; row < at_.rows; ++row) {
      const int64_t column = targets_[row].column - begin;
      if (column >= 0 && column < at_.columns) values_[at_.place(row, column)] = kNone;
    }
    const int64_t chunks = at_.rows * at_.per_row;
    if (at_.width % 16 == 0) {
      run_best<A, ExpChunks<A, 16>>(chunks, at_.width, static_cast<A*>(values_),
                                    static_cast<ExpSum<A>*>(chunks_));
    } else {
      run_best<A, ExpChunks<A, 8>>(chunks, at_.width, static_cast<A*>(values_),
                                   static_cast<ExpSum<A>*>(chunks_));
    }
  }

  // What makes a chunk's exponentials those of the row.
  A rescale(int64_t row, int64_t chunk) const {
    if (at_.per_row == 1 && call_.classes <= span_) return A(1);
    return exp_below(chunks_[row * at_.per_row + chunk].highest, sums_[row].highest);
  }

  // Calls body(begin, count, exponentials, their factor to pi_j) for the chunks of a row, with v in
  // `others_`, 0 for the target.
  template <class Body>
  void for_each_chunk(int64_t row, const T* v, const Body& body) {
    for (int64_t begin = 0; begin < call_.classes; begin += span_) {
      if (call_.classes > span_) fill(begin);
      for (int64_t c = 0; c < at_.per_row; ++c) {
        const int64_t column = begin + c * at_.width;
        const int64_t count = std::min(at_.width, call_.classes - column);
        run_best<A, LoadRows<T>>(RowLayout{1, count, count, 1}, v + column, count, A(0),
                                 static_cast<A*>(others_));
        const int64_t target = targets_[row].column - column;
        if (target >= 0 && target < count) others_[target] = A(0);
        body(column, count, values_ + at_.place(row, c * at_.width),
             rescale(row, c) / sums_[row].sum);
      }
    }
  }

  const SoftmaxFocalCall<T>& call_;
  int64_t first_ = 0, span_ = 0, together_ = 0;
  RowLayout at_{};
  const Target* targets_ = nullptr;
  ExpSum<A> chunks_[kMostRows], sums_[kMostRows];
  alignas(64) A values_[kBuffer], others_[kChunk];
};

}  // namespace cpu
}  // namespace pydet
