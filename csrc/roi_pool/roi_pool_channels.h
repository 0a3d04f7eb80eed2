// SPDX-License-Identifier: Apache-2.0
// RoI pooling of some channels on the CPU, side by side in vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/channel_block.h"
#include "common/lanes.h"
#include "common/ordered_bits.h"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cpu {

// The largest cell of each channel, and which it is; of equal ones the first. V is a vector of
// channels or, for the last few, one number.
template <class A, class V>
struct BestCell {
  using Cell = bits_t<A>;
  using Cells = std::conditional_t<std::is_same_v<V, A>, Cell, typename Lanes<Cell>::Vector>;
  static constexpr int64_t kLanes = sizeof(V) / sizeof(A);

  V value;
  Cells cell;  // their numbers, or -1

  // Of NaN no comparison holds.
  static BestCell none() { return {V{} - std::numeric_limits<A>::infinity(), Cells{} - 1}; }
  static BestCell of_empty_bin() { return {V{}, Cells{} - 1}; }
};

// Best cells in memory, one after the other.
template <class A>
struct BestCells {
  using Cell = bits_t<A>;
  Scratch<A> values;
  Scratch<Cell> cells;
  A* value = nullptr;
  Cell* cell = nullptr;

  void reserve(int64_t count) {
    value = values.reserve(count);
    cell = cells.reserve(count);
  }
  template <bool kIndexed, class V>
  void set(int64_t i, const BestCell<A, V>& best) {
    Lanes<A>::store(best.value, value + i * best.kLanes);
    if constexpr (kIndexed) Lanes<Cell>::store(best.cell, cell + i * best.kLanes);
  }
  template <bool kIndexed, class V>
  BestCell<A, V> get(int64_t i) const {
    BestCell<A, V> best{};
    Lanes<A>::load(value + i * best.kLanes, &best.value);
    if constexpr (kIndexed) Lanes<Cell>::load(cell + i * best.kLanes, &best.cell);
    return best;
  }
};

// Elements from one row of a map to the next, and from one cell of a row to the next.
struct PoolStrides {
  int64_t row, cell;
};

// kVectors vectors of channels of one RoI. First the rows of a row of bins are folded into a line,
// then the columns of each bin.
template <class A, class V, int kVectors>
struct PoolChannels {
  using Best = BestCell<A, V>;

  // Calls write(bin, v, best) for each bin of a RoI, in their order, and each vector. rows(y, x)
  // gives the cells of the rows y from column 0 on, of which the columns x are read; at most
  // `most_rows` are asked for at once. The cells of a row are numbered from `row_cells` times its
  // own number on; without kIndexed the numbers are not set. An empty bin has 0 and -1, as has
  // every bin of a RoI that pools nothing.
  template <bool kIndexed, class Rows, class Write>
  static void pool(const RoiPoolParams<A>& params, const RoiPoolPlace<A>& place, const Rows& rows,
                   int64_t most_rows, PoolStrides strides, int64_t row_cells, BestCells<A>* line,
                   const Write& write) {
    line->reserve(params.width * kVectors * Best::kLanes);
    const CellRange columns = cells_of(place.x, params.pooled_width, params.width);
    CellRange folded{0, 0};  // the rows in the line: those of the bin before may be the same
    for (int64_t ph = 0; ph < params.pooled_height; ++ph) {
      const CellRange y = bin_cells(place.y, ph, params.height);
      const bool empty = place.image < 0 || y.end <= y.begin;
      const bool ready = empty || (y.begin == folded.begin && y.end == folded.end);
      for (int64_t i = y.begin; !ready && i < y.end; i += most_rows) {
        const CellRange some{i, std::min(i + most_rows, y.end)};
        fold_rows<kIndexed>(some, columns, rows(some, columns), strides, row_cells, i == y.begin,
                            line);
      }
      folded = empty ? folded : y;
      for (int64_t pw = 0; pw < params.pooled_width; ++pw) {
        const CellRange x = bin_cells(place.x, pw, params.width);
        for (int v = 0; v < kVectors; ++v) {
          write(ph * params.pooled_width + pw, v,
                empty || x.end <= x.begin ? Best::of_empty_bin()
                                          : fold_columns<kIndexed>(x, v, *line));
        }
      }
    }
  }

  // The cells from the first of all bins of an axis to the last.
  static CellRange cells_of(const PoolAxis<A>& axis, int64_t bins, int64_t cells) {
    return {bin_cells(axis, 0, cells).begin, bin_cells(axis, bins - 1, cells).end};
  }

 private:
  // Begins the line with rows y, or folds them into it.
  template <bool kIndexed, class T>
  static void fold_rows(CellRange y, CellRange x, const T* rows, PoolStrides strides,
                        int64_t row_cells, bool begin, BestCells<A>* line) {
    for (int64_t j = x.begin; j < x.end; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = j * kVectors + v;
        Best best = begin ? Best::none() : line->template get<kIndexed, V>(at);
        const T* cell = rows + j * strides.cell + v * Best::kLanes;
        for (int64_t i = y.begin; i < y.end; ++i, cell += strides.row) {
          V value;
          Lanes<A>::load(cell, &value);
          if constexpr (kIndexed) {
            const auto number = static_cast<typename Best::Cell>(i * row_cells + j);
            best.cell = value > best.value ? typename Best::Cells{} + number : best.cell;
          }
          best.value = value > best.value ? value : best.value;
        }
        line->template set<kIndexed>(at, best);
      }
    }
  }

  template <bool kIndexed>
  static Best fold_columns(CellRange x, int v, const BestCells<A>& line) {
    Best best = Best::none();
    for (int64_t j = x.begin; j < x.end; ++j) {
      const Best other = line.template get<kIndexed, V>(j * kVectors + v);
      if constexpr (kIndexed) {
        // A later column may have an equal cell in an earlier row; a column of NaN has none.
        const auto first =
            (other.value == best.value) & (other.cell < best.cell) & (other.cell >= 0);
        best.cell = (other.value > best.value) | first ? other.cell : best.cell;
      }
      best.value = other.value > best.value ? other.value : best.value;
    }
    return best;
  }
};

}  // namespace cpu
}  // namespace pydet
