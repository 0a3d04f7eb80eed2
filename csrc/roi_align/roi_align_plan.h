// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels know of some RoIs before they touch a feature map: each bin as cells with
// weights, along each axis. It is made once a RoI and used by all channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/channel_block.h"
#include "common/parallel_for.h"
#include "common/roi_threads.h"
#include "roi_align/roi_align_place.h"

namespace pydet {
namespace cpu {

// A cell's weight in a bin, with the derivatives by the two corners of the box. `slot` is its place
// among the cells that the RoI touches along the axis.
template <class A>
struct RoiCell {
  int64_t cell, slot;
  A weight, by_low, by_high;
};

// The cells of one bin.
template <class A>
struct RoiBin {
  const RoiCell<A>*first, *last;
  const RoiCell<A>* begin() const { return first; }
  const RoiCell<A>* end() const { return last; }
  bool empty() const { return first == last; }
};

// Calls body(rows, kRows, start) for the cells of a bin, four at a time and then what is left,
// kRows being a constant; `start` for the first of them.
template <class A, class Body>
void for_each_rows(const RoiBin<A>& bin, const Body& body) {
  const RoiCell<A>* rows = bin.first;
  for (; bin.last - rows >= 4; rows += 4)
    body(rows, std::integral_constant<int, 4>{}, rows == bin.first);
  switch (bin.last - rows) {
    case 3:
      return body(rows, std::integral_constant<int, 3>{}, rows == bin.first);
    case 2:
      return body(rows, std::integral_constant<int, 2>{}, rows == bin.first);
    case 1:
      return body(rows, std::integral_constant<int, 1>{}, rows == bin.first);
    default:
      return;
  }
}

template <class A>
struct PlannedRoi {
  int64_t index, image;  // image -1: samples nothing
  int level;
  A count;
  int64_t num_rows;  // bins along y; those along x come behind them
  std::vector<RoiCell<A>> cells;
  std::vector<int64_t> bins;           // where the cells of each bin begin, and the end
  std::vector<int64_t> rows, columns;  // that some bin touches, ascending

  RoiBin<A> bin(int64_t i) const { return {cells.data() + bins[i], cells.data() + bins[i + 1]}; }
  RoiBin<A> row(int64_t ph) const { return bin(ph); }
  RoiBin<A> column(int64_t pw) const { return bin(num_rows + pw); }
  int64_t x_begin() const { return columns.front(); }
  int64_t x_end() const { return columns.back() + 1; }
};

// Adds to a bin whose cells begin at `begin`. Samples come in order, so a cell that they share is
// one of the last two.
template <class A>
void add_cell(std::vector<RoiCell<A>>& cells, size_t begin, const RoiCell<A>& added) {
  for (size_t back = 1; back <= 2 && cells.size() >= begin + back; ++back) {
    RoiCell<A>& known = cells[cells.size() - back];
    if (known.cell != added.cell) continue;
    known.weight += added.weight;
    known.by_low += added.by_low;
    known.by_high += added.by_high;
    return;
  }
  cells.push_back(added);
}

// Gives the cells from `begin` on their slots.
template <class A>
void number_cells(std::vector<RoiCell<A>>& cells, size_t begin, std::vector<int64_t>& touched) {
  touched.clear();
  touched.reserve(cells.size() - begin);
  for (size_t i = begin; i < cells.size(); ++i) touched.push_back(cells[i].cell);
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  for (size_t i = begin; i < cells.size(); ++i)
    cells[i].slot =
        std::lower_bound(touched.begin(), touched.end(), cells[i].cell) - touched.begin();
}

// `slopes`: with the derivatives by the corners.
template <class A>
void plan_axis(const RoiAxis<A>& axis, int64_t size, const RoiTangent<A>& tangent, bool slopes,
               PlannedRoi<A>& roi, std::vector<int64_t>& touched) {
  const size_t first = roi.cells.size();
  for (int64_t bin = 0; bin < axis.bins; ++bin) {
    const size_t begin = roi.cells.size();
    const RoiSamples samples = roi_samples(axis, bin, size);
    for (int64_t i = samples.begin; i < samples.end; ++i) {
      const AxisSample<A> s = roi_sample(axis, bin, i, size, tangent);
      const RoiSlopes<A> by = slopes ? roi_slopes(axis, bin, i) : RoiSlopes<A>{A(0), A(0)};
      if (s.weight_low == A(0) && s.weight_high == A(0) && s.slope_high == A(0)) continue;
      add_cell(roi.cells, begin,
               {s.low, 0, s.weight_low, s.slope_low * by.by_low, s.slope_low * by.by_high});
      if (s.high == s.low) continue;
      add_cell(roi.cells, begin,
               {s.high, 0, s.weight_high, s.slope_high * by.by_low, s.slope_high * by.by_high});
    }
    roi.bins.push_back(static_cast<int64_t>(roi.cells.size()));
  }
  number_cells(roi.cells, first, touched);
}

template <class A>
PlannedRoi<A> plan_roi(const RoiAlignParams<A>& params, int64_t r, bool slopes) {
  const RoiPlace<A> place = roi_place(params, r);
  PlannedRoi<A> roi{r,  place.image, place.level, place.count, params.pooled_height,
                    {}, {0},         {},          {}};
  if (place.image < 0) return roi;
  // Of a bin of two samples along an axis, or less: what most have.
  const int64_t bins = params.pooled_height + params.pooled_width;
  roi.bins.reserve(bins + 1);
  roi.cells.reserve(4 * bins);
  const auto& level = params.levels[place.level];
  plan_axis(place.y, level.height, roi_tangent_y(params, r), slopes, roi, roi.rows);
  plan_axis(place.x, level.width, roi_tangent_x(params, r), slopes, roi, roi.columns);
  if (roi.rows.empty() || roi.columns.empty()) roi.image = -1;
  return roi;
}

template <class A>
int64_t threads_of(const RoiAlignParams<A>& params) {
  int64_t cells = 0;
  for (int i = 0; i < params.num_levels; ++i)
    cells += params.levels[i].height * params.levels[i].width;
  return roi_threads(params, cells);
}

// The RoIs [begin, end) of a call, in the order of level, image, band of rows and first column:
// RoIs that read the same memory stand together, and those that sample nothing come last.
template <class A>
class RoiPlan {
 public:
  static constexpr int64_t kBand = 16;  // rows

  RoiPlan(const RoiAlignParams<A>& params, int64_t begin, int64_t end)
      : rois_(end - begin), order_(end - begin) {
    parallel_for(end - begin, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) rois_[i] = plan_roi(params, begin + i, false);
    });
    const int64_t keys = params.num_levels * params.batch;
    starts_.assign(keys + 2, 0);
    const auto key = [&](const PlannedRoi<A>& roi) {
      return roi.image < 0 ? keys : roi.level * params.batch + roi.image;
    };
    for (const PlannedRoi<A>& roi : rois_) ++starts_[key(roi) + 1];
    for (int64_t k = 0; k <= keys; ++k) starts_[k + 1] += starts_[k];
    std::vector<int64_t> next(starts_);
    for (const PlannedRoi<A>& roi : rois_) {
      order_[next[key(roi)]++] = &roi;
      if (roi.image < 0) continue;
      widest_ = std::max(widest_, roi.x_end() - roi.x_begin());
      most_columns_ = std::max(most_columns_, static_cast<int64_t>(roi.columns.size()));
    }
    for (int64_t k = 0; k < keys; ++k) {
      std::sort(order_.begin() + starts_[k], order_.begin() + starts_[k + 1],
                [](const PlannedRoi<A>* a, const PlannedRoi<A>* b) {
                  return std::make_tuple(a->rows.front() / kBand, a->x_begin(), a->index) <
                         std::make_tuple(b->rows.front() / kBand, b->x_begin(), b->index);
                });
    }
  }

  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  int64_t widest() const { return widest_; }  // columns from the first to the last of a RoI
  int64_t most_columns() const { return most_columns_; }  // columns that a RoI touches
  const PlannedRoi<A>& operator[](int64_t i) const { return *order_[i]; }

  // The RoIs [first, last) of one image on one level.
  int64_t first_of(int64_t level, int64_t image, int64_t batch) const {
    return starts_[level * batch + image];
  }
  int64_t last_of(int64_t level, int64_t image, int64_t batch) const {
    return starts_[level * batch + image + 1];
  }

  // The RoIs [first, last) of one map, or none: those that sample nothing.
  struct Piece {
    int64_t first, last;
  };
  // All RoIs, at most `most` a piece.
  std::vector<Piece> pieces(int64_t most) const {
    std::vector<Piece> all;
    for (size_t k = 0; k + 1 < starts_.size(); ++k) {
      for (int64_t first = starts_[k]; first < starts_[k + 1]; first += most)
        all.push_back({first, std::min(first + most, starts_[k + 1])});
    }
    return all;
  }

 private:
  std::vector<PlannedRoi<A>> rois_;
  std::vector<const PlannedRoi<A>*> order_;
  std::vector<int64_t> starts_;
  int64_t widest_ = 0, most_columns_ = 0;
};

// Whether maps [C, H, W] are turned.
template <class A>
bool can_turn(const RoiAlignParams<A>& params) {
  bool can = true;
  for (int i = 0; i < params.num_levels; ++i) {
    const auto& level = params.levels[i];
    can = can && worth_turning<A>(params.channels, level.height * level.width);
  }
  return can;
}

// RoIs that are planned at a time.
constexpr int64_t kPlannedRois = 1024;

}  // namespace cpu
}  // namespace pydet
