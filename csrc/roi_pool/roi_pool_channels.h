// SPDX-License-Identifier: Apache-2.0
// RoI pooling of a few channels on the CPU, side by side in vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/channel_block.h"
#include "common/lanes.h"
#include "common/ordered_bits.h"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cpu {

// A few channels of one RoI, side by side. First the rows of a row of bins are folded into a line,
// then the columns of each bin.
template <class A>
struct PoolChannels {
  static constexpr int64_t kChannels = ChannelBlock<A>::kChannels;
  using Values = typename Lanes<A>::Vector;
  using Cell = bits_t<A>;
  using Cells = typename Lanes<Cell>::Vector;  // their numbers, or -1

  // The largest cell of each channel, and which it is; of equal ones the first.
  struct Best {
    Values value;
    Cells cell;
  };

  // Of NaN no comparison holds.
  static Best none() { return {Values{} - std::numeric_limits<A>::infinity(), Cells{} - 1}; }

  // Bests in memory, one after the other.
  struct Bests {
    Scratch<A> values;
    Scratch<Cell> cells;
    A* value = nullptr;
    Cell* cell = nullptr;

    void reserve(int64_t count) {
      value = values.reserve(count * kChannels);
      cell = cells.reserve(count * kChannels);
    }
    template <bool kIndexed>
    void set(int64_t i, const Best& best) {
      Lanes<A>::store(best.value, value + i * kChannels);
      if constexpr (kIndexed) Lanes<Cell>::store(best.cell, cell + i * kChannels);
    }
    template <bool kIndexed>
    Best get(int64_t i) const {
      Best best{};
      Lanes<A>::load(value + i * kChannels, &best.value);
      if constexpr (kIndexed) Lanes<Cell>::load(cell + i * kChannels, &best.cell);
      return best;
    }
  };

  struct Workspace {
    Bests line, bins;
  };

  // Bins of a RoI, in their order. rows(y, x) gives the turned cells of the rows y from column 0
  // on, `row_stride` apart, of which the columns x are read; at most `most_rows` are asked for at
  // once. The cells of a row are numbered from `row_cells` times its own number on; without
  // kIndexed the numbers are not set. An empty bin has 0 and -1, as has every bin of a RoI that
  // pools nothing.
  template <bool kIndexed, class Rows>
  static void pool(const RoiPoolPlace<A>& place, int64_t height, int64_t width,
                   int64_t pooled_height, int64_t pooled_width, const Rows& rows, int64_t most_rows,
                   int64_t row_stride, int64_t row_cells, Workspace* work) {
    work->line.reserve(width);
    work->bins.reserve(pooled_height * pooled_width);
    const CellRange columns = cells_of(place.x, pooled_width, width);
    CellRange folded{0, 0};  // the rows in the line: those of the bin before may be the same
    for (int64_t ph = 0; ph < pooled_height; ++ph) {
      const CellRange y = bin_cells(place.y, ph, height);
      const bool empty = place.image < 0 || y.end <= y.begin;
      const bool ready = empty || (y.begin == folded.begin && y.end == folded.end);
      for (int64_t i = y.begin; !ready && i < y.end; i += most_rows) {
        const CellRange some{i, std::min(i + most_rows, y.end)};
        fold_rows<kIndexed>(some, columns, rows(some, columns), row_stride, row_cells, i == y.begin,
                            &work->line);
      }
      folded = empty ? folded : y;
      for (int64_t pw = 0; pw < pooled_width; ++pw) {
        const CellRange x = bin_cells(place.x, pw, width);
        work->bins.template set<kIndexed>(ph * pooled_width + pw,
                                          empty || x.end <= x.begin
                                              ? Best{Values{}, Cells{} - 1}
                                              : fold_columns<kIndexed>(x, work->line));
      }
    }
  }

  // The cells from the first of all bins of an axis to the last.
  static CellRange cells_of(const PoolAxis<A>& axis, int64_t bins, int64_t cells) {
    return {bin_cells(axis, 0, cells).begin, bin_cells(axis, bins - 1, cells).end};
  }

 private:
  // Begins the line with rows y, or folds them into it.
  template <bool kIndexed>
  static void fold_rows(CellRange y, CellRange x, const A* rows, int64_t row_stride,
                        int64_t row_cells, bool begin, Bests* line) {
    for (int64_t j = x.begin; j < x.end; ++j) {
      Best best = begin ? none() : line->template get<kIndexed>(j);
      const A* cell = rows + j * kChannels;
      for (int64_t i = y.begin; i < y.end; ++i, cell += row_stride) {
        Values value;
        Lanes<A>::load(cell, &value);
        if constexpr (kIndexed) {
          const auto number = static_cast<Cell>(i * row_cells + j);
          best.cell = value > best.value ? Cells{} + number : best.cell;
        }
        best.value = value > best.value ? value : best.value;
      }
      line->template set<kIndexed>(j, best);
    }
  }

  template <bool kIndexed>
  static Best fold_columns(CellRange x, const Bests& line) {
    Best best = none();
    for (int64_t j = x.begin; j < x.end; ++j) {
      const Best other = line.template get<kIndexed>(j);
      if constexpr (kIndexed) {
        // A later column may have an equal cell in an earlier row; a column of NaN has none.
        const Cells first =
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
