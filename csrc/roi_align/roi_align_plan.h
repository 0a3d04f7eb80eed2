// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels know of some RoIs before they touch a feature map: each bin as cells with
// weights, along each axis. It is made once a RoI and used by all channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/parallel_for.h"
#include "roi_align/roi_align_place.h"

namespace pydet {
namespace cpu {

// Several numbers that one vector operation takes, in 32 bytes: the compiler keeps a larger vector
// in memory where the machine has no register for it.
template <class A>
struct Lanes {
  static constexpr int64_t kCount = 32 / sizeof(A);
  typedef A Vector __attribute__((vector_size(32)));

  template <class T>
  static void load(const T* from, Vector* to) {
    A values[kCount];
    for (int64_t i = 0; i < kCount; ++i) values[i] = pydet::load(from + i);
    __builtin_memcpy(to, values, sizeof(values));
  }
  // to[j * kCount + i] = from[i * stride + j]: kCount vectors of kCount numbers.
  static void transpose(const A* from, int64_t stride, A* to) {
#if defined(__clang__) || __GNUC__ >= 12
    Vector rows[kCount];
    for (int64_t i = 0; i < kCount; ++i)
      __builtin_memcpy(&rows[i], from + i * stride, sizeof(Vector));
    swap_blocks<kCount / 2>(rows, std::make_integer_sequence<int, kCount>());
    __builtin_memcpy(to, rows, sizeof(rows));
#else
    for (int64_t i = 0; i < kCount; ++i) {
      for (int64_t j = 0; j < kCount; ++j) to[j * kCount + i] = from[i * stride + j];
    }
#endif
  }

  template <class T>
  static void store(const Vector& from, T* to) {
    A values[kCount];
    __builtin_memcpy(values, &from, sizeof(values));
    for (int64_t i = 0; i < kCount; ++i) pydet::store(to + i, values[i]);
  }

 private:
#if defined(__clang__) || __GNUC__ >= 12
  // One step of the transposition for each power of two: of each two rows that far apart, the
  // second half of the first changes places with the first half of the second, block by block.
  template <int kStep, int... kIndex>
  static void swap_blocks(Vector* rows, std::integer_sequence<int, kIndex...> indices) {
    constexpr int kEnd = static_cast<int>(kCount);
    for (int i = 0; i < kEnd; ++i) {
      if ((i & kStep) != 0) continue;
      const Vector a = rows[i], b = rows[i + kStep];
      rows[i] = __builtin_shufflevector(
          a, b, ((kIndex & kStep) == 0 ? kIndex : kEnd + kIndex - kStep)...);
      rows[i + kStep] = __builtin_shufflevector(
          a, b, ((kIndex & kStep) == 0 ? kIndex + kStep : kEnd + kIndex)...);
    }
    if constexpr (kStep > 1) swap_blocks<kStep / 2>(rows, indices);
  }
#endif
};

// A cell's weight in a bin, with the derivatives by the two corners of the box.
template <class A>
struct RoiCell {
  int64_t cell;
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

template <class A>
struct PlannedRoi {
  int64_t index, image;  // image -1: samples nothing
  int level;
  A count;
  int64_t y_begin;         // the first row that it touches
  int64_t x_begin, x_end;  // columns that it touches
  int64_t num_rows;        // bins along y; those along x come behind them
  std::vector<RoiCell<A>> cells;
  std::vector<int64_t> bins;  // where the cells of each bin begin, and the end

  RoiBin<A> bin(int64_t i) const { return {cells.data() + bins[i], cells.data() + bins[i + 1]}; }
  RoiBin<A> row(int64_t ph) const { return bin(ph); }
  RoiBin<A> column(int64_t pw) const { return bin(num_rows + pw); }
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

template <class A>
void plan_axis(const RoiAxis<A>& axis, int64_t size, const RoiTangent<A>& tangent,
               PlannedRoi<A>& roi) {
  for (int64_t bin = 0; bin < axis.bins; ++bin) {
    const size_t begin = roi.cells.size();
    const RoiSamples samples = roi_samples(axis, bin, size);
    for (int64_t i = samples.begin; i < samples.end; ++i) {
      const AxisSample<A> s = roi_sample(axis, bin, i, size, tangent);
      const RoiSlopes<A> slopes = roi_slopes(axis, bin, i);
      if (s.weight_low == A(0) && s.weight_high == A(0) && s.slope_high == A(0)) continue;
      add_cell(roi.cells, begin,
               {s.low, s.weight_low, s.slope_low * slopes.by_low, s.slope_low * slopes.by_high});
      if (s.high == s.low) continue;
      add_cell(
          roi.cells, begin,
          {s.high, s.weight_high, s.slope_high * slopes.by_low, s.slope_high * slopes.by_high});
    }
    roi.bins.push_back(static_cast<int64_t>(roi.cells.size()));
  }
}

template <class A>
void plan_roi(const RoiAlignParams<A>& params, int64_t r, PlannedRoi<A>& roi) {
  const RoiPlace<A> place = roi_place(params, r);
  roi.index = r;
  roi.image = place.image;
  roi.level = place.level;
  roi.count = place.count;
  roi.num_rows = params.pooled_height;
  roi.cells.clear();
  roi.bins.assign(1, 0);
  if (place.image < 0) return;
  const auto& level = params.levels[place.level];
  plan_axis(place.y, level.height, roi_tangent_y(params, r), roi);
  const size_t columns = roi.cells.size();
  plan_axis(place.x, level.width, roi_tangent_x(params, r), roi);
  roi.x_begin = level.width;
  roi.x_end = 0;
  for (size_t i = columns; i < roi.cells.size(); ++i) {
    roi.x_begin = std::min(roi.x_begin, roi.cells[i].cell);
    roi.x_end = std::max(roi.x_end, roi.cells[i].cell + 1);
  }
  roi.y_begin = columns == 0 ? 0 : roi.cells[0].cell;
  if (columns == 0 || roi.x_begin >= roi.x_end) roi.image = -1;
}

// The RoIs [begin, end) of a call, in the order of level, image and first row: RoIs that read the
// same memory stand together, and those that sample nothing come last.
template <class A>
class RoiPlan {
 public:
  RoiPlan(const RoiAlignParams<A>& params, int64_t begin, int64_t end)
      : rois_(end - begin), order_(end - begin) {
    parallel_for(end - begin, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) plan_roi(params, begin + i, rois_[i]);
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
      widest_ = std::max(widest_, roi.image < 0 ? 0 : roi.x_end - roi.x_begin);
    }
    for (int64_t k = 0; k < keys; ++k) {
      std::sort(order_.begin() + starts_[k], order_.begin() + starts_[k + 1],
                [](const PlannedRoi<A>* a, const PlannedRoi<A>* b) {
                  return a->y_begin != b->y_begin ? a->y_begin < b->y_begin : a->index < b->index;
                });
    }
  }

  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  int64_t widest() const { return widest_; }  // columns that the widest RoI touches
  const PlannedRoi<A>& operator[](int64_t i) const { return *order_[i]; }

  // The RoIs [first, last) of one image on one level.
  int64_t first_of(int64_t level, int64_t image, int64_t batch) const {
    return starts_[level * batch + image];
  }
  int64_t last_of(int64_t level, int64_t image, int64_t batch) const {
    return starts_[level * batch + image + 1];
  }

 private:
  std::vector<PlannedRoi<A>> rois_;
  std::vector<const PlannedRoi<A>*> order_;
  std::vector<int64_t> starts_;
  int64_t widest_ = 0;
};

// RoIs that are planned at a time.
constexpr int64_t kPlannedRois = 1024;

}  // namespace cpu
}  // namespace pydet
