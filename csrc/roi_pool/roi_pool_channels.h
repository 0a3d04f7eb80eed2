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
#include "roi_pool/roi_pool_plan.h"

namespace pydet {
namespace cpu {

// The largest cell of each channel, and which it is; of equal ones the first. V is a vector of
// channels or, for the last few, one number.
template <class A, class V>
struct BestCell {
  using Cell = bits_t<A>;
  using Cells = std::conditional_t<std::is_same_v<V, A>, Cell, decltype(V{} < V{})>;
  static constexpr int64_t kLanes = sizeof(V) / sizeof(A);

  V value;
  Cells cell;  // their numbers, or -1

  static BestCell none() { return {V{} - std::numeric_limits<A>::infinity(), Cells{} - 1}; }
  static BestCell of_empty_bin() { return {V{}, Cells{} - 1}; }

  // A cell of the same column behind those so far. Of NaN no comparison holds.
  template <bool kIndexed>
  void take(V other, Cells number) {
    if constexpr (kIndexed) cell = other > value ? number : cell;
    value = other > value ? other : value;
  }
  // The best of another column: it may have an equal cell in an earlier row.
  template <bool kIndexed>
  void take_column(V other, Cells number) {
    if constexpr (kIndexed) {
      const Cells first = number < cell ? number : cell;
      const Cells tied = other == value ? first : cell;
      cell = other > value ? number : tied;
    }
    value = other > value ? other : value;
  }
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

template <class A>
struct PoolScratch {
  BestCells<A> line, found;
  Scratch<A> sums;
};

// Elements from one row of a map to the next, and from one cell of a row to the next.
struct PoolStrides {
  int64_t row, cell;
};

// Elements from one channel of a map to the next, and from one cell to the next.
struct CellStrides {
  int64_t channel, cell;
};

// kVectors vectors of channels of one RoI.
template <class A, class V, int kVectors>
struct PoolChannels {
  using Best = BestCell<A, V>;
  static constexpr int64_t kChannels = kVectors * Best::kLanes;

  // Finds the best cells of each slot of a RoI, in `found`: first the rows of a slot along y are
  // folded into a line, then the columns of each slot along x. rows(y) gives rows of the map; at
  // most `most_rows` are asked for at once. The cells of a row are numbered from `row_cells` times
  // its own number on; without kIndexed the numbers are not set. A slot without a cell has 0, -1.
  template <bool kIndexed, class Rows>
  static void find(const PooledRoi& roi, const Rows& rows, int64_t most_rows, PoolStrides strides,
                   int64_t row_cells, BestCells<A>* line, BestCells<A>* found) {
    const CellRange columns = roi.x.cells();
    line->reserve(std::max<int64_t>(0, columns.end - columns.begin) * kChannels);
    found->reserve(roi.num_slots() * kChannels);
    int64_t at = 0;
    for (int64_t slot = 0; slot < roi.y.num_slots; ++slot) {
      const CellRange y = roi.y.slots[slot];
      for (int64_t i = y.begin; i < y.end && columns.begin < columns.end; i += most_rows) {
        const CellRange some{i, std::min(i + most_rows, y.end)};
        fold_rows<kIndexed>(some, columns, rows(some), strides, row_cells, i == y.begin, line);
      }
      for (int64_t k = 0; k < roi.x.num_slots; ++k) {
        const CellRange x = roi.x.slots[k];
        const bool empty = y.end <= y.begin || x.end <= x.begin;
        for (int v = 0; v < kVectors; ++v, ++at) {
          found->template set<kIndexed>(
              at, empty ? Best::of_empty_bin()
                        : fold_columns<kIndexed>(x.begin - columns.begin, x.end - columns.begin, v,
                                                 *line));
        }
      }
    }
  }

  // What each bin has found, [bins] of channels `stride` elements apart.
  template <class T>
  static void write(const PooledRoi& roi, const BestCells<A>& found, T* out, int64_t stride) {
    roi.for_each_bin([&](int64_t bin, int64_t slot) {
      for (int v = 0; v < kVectors; ++v) {
        V value;
        Lanes<A>::load(found.value + slot * kChannels + v * Best::kLanes, &value);
        Lanes<A>::store(value, out + bin * stride + v * Best::kLanes);
      }
    });
  }

  // Puts what `map` has in the cells that were found in the place of their values.
  template <class T>
  static void pick(const PooledRoi& roi, int64_t lanes, const T* map, CellStrides strides,
                   BestCells<A>* found) {
    for (int64_t slot = 0; slot < roi.num_slots(); ++slot) {
      for (int64_t c = 0; c < lanes; ++c) {
        const int64_t cell = found->cell[slot * kChannels + c];
        found->value[slot * kChannels + c] =
            cell < 0 ? A(0) : load(map + c * strides.channel + cell * strides.cell);
      }
    }
  }

  // Adds the gradient of each bin, `stride` elements apart, to the cell that was found: first those
  // of a slot to each other.
  template <class T>
  static void add(const PooledRoi& roi, int64_t lanes, const T* grad_out, int64_t stride,
                  const BestCells<A>& found, A* sums, A* map, CellStrides strides) {
    std::fill_n(sums, roi.num_slots() * kChannels, A(0));
    roi.for_each_bin([&](int64_t bin, int64_t slot) {
      for (int v = 0; v < kVectors; ++v) {
        V grad, sum;
        Lanes<A>::load(grad_out + bin * stride + v * Best::kLanes, &grad);
        Lanes<A>::load(sums + slot * kChannels + v * Best::kLanes, &sum);
        Lanes<A>::store(V(sum + grad), sums + slot * kChannels + v * Best::kLanes);
      }
    });
    const int64_t count = roi.num_slots();
    if (strides.channel == 1 && lanes == kChannels) {
      add_slots(count, std::integral_constant<int64_t, kChannels>{}, sums, found, map,
                std::integral_constant<int64_t, 1>{}, strides.cell);
    } else {
      add_slots(count, lanes, sums, found, map, strides.channel, strides.cell);
    }
  }

 private:
  // Sizes that are mostly the same are constants then: each addition is but a few instructions.
  template <class Lane, class Channel>
  static void add_slots(int64_t count, Lane lanes, const A* sums, const BestCells<A>& found, A* map,
                        Channel to_channel, int64_t to_cell) {
    const auto* cell = found.cell;
    for (int64_t slot = 0; slot < count; ++slot, cell += kChannels, sums += kChannels) {
      for (int64_t c = 0; c < lanes; ++c) {
        if (cell[c] >= 0) map[c * to_channel + cell[c] * to_cell] += sums[c];
      }
    }
  }

  // Begins the line with rows y, or folds them into it.
  template <bool kIndexed, class T>
  static void fold_rows(CellRange y, CellRange x, const T* rows, PoolStrides strides,
                        int64_t row_cells, bool begin, BestCells<A>* line) {
    int64_t at = 0;
    for (int64_t j = x.begin; j < x.end; ++j) {
      for (int v = 0; v < kVectors; ++v, ++at) {
        Best best = begin ? Best::none() : line->template get<kIndexed, V>(at);
        const T* cell = rows + j * strides.cell + v * Best::kLanes;
        for (int64_t i = y.begin; i < y.end; ++i, cell += strides.row) {
          V value;
          Lanes<A>::load(cell, &value);
          const auto number = static_cast<typename Best::Cell>(i * row_cells + j);
          best.template take<kIndexed>(value, typename Best::Cells{} + number);
        }
        line->template set<kIndexed>(at, best);
      }
    }
  }

  template <bool kIndexed>
  static Best fold_columns(int64_t begin, int64_t end, int v, const BestCells<A>& line) {
    Best best = line.template get<kIndexed, V>(begin * kVectors + v);
    for (int64_t j = begin + 1; j < end; ++j) {
      const Best other = line.template get<kIndexed, V>(j * kVectors + v);
      best.template take_column<kIndexed>(other.value, other.cell);
    }
    return best;
  }
};

}  // namespace cpu
}  // namespace pydet
