// SPDX-License-Identifier: Apache-2.0
// RoI align of maps [B, C, H, W] that are not turned (can_turn): plane by plane, along columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/lanes.h"
#include "roi_align/roi_align_plan.h"

namespace pydet {
namespace cpu {

// First the sums over y, whole vectors of columns at a time, then those over x, in whole vectors of
// rows of bins: in between, the vectors are transposed.
template <class T>
struct AlignPlanar {
  using A = acc_t<T>;
  using Vector = typename Lanes<A>::Vector;
  static constexpr int64_t kLanes = Lanes<A>::kCount;

  // Adds kRows rows of cells to `count` sums, or starts the sums with them.
  template <int kRows>
  static void add_rows(const RoiCell<A>* rows, const T* plane, int64_t width, bool start,
                       int64_t count, A* sums) {
    const T* cells[kRows];
    A weights[kRows];
    for (int i = 0; i < kRows; ++i) {
      cells[i] = plane + rows[i].cell * width;
      weights[i] = rows[i].weight;
    }
    int64_t x = 0;
    for (; x + kLanes <= count; x += kLanes) {
      Vector sum = {};
      if (!start) Lanes<A>::load(sums + x, &sum);
      for (int i = 0; i < kRows; ++i) {
        Vector values;
        Lanes<A>::load(cells[i] + x, &values);
        sum += weights[i] * values;
      }
      Lanes<A>::store(sum, sums + x);
    }
    for (; x < count; ++x) {
      A sum = start ? A(0) : sums[x];
      for (int i = 0; i < kRows; ++i) sum += weights[i] * load(cells[i] + x);
      sums[x] = sum;
    }
  }

  // sums[x] = sum over y of weight_y * cell[y, x], for `count` columns from `plane` on.
  static void sum_rows(const RoiBin<A>& bin, const T* plane, int64_t width, int64_t count,
                       A* sums) {
    if (bin.empty()) std::fill(sums, sums + count, A(0));
    for_each_rows(bin, [&](const RoiCell<A>* rows, auto number, bool start) {
      add_rows<decltype(number)::value>(rows, plane, width, start, count, sums);
    });
  }

  // One RoI, `channels` planes. `sums` has room for 2 kLanes rows of the RoI's columns, rounded up.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t height, int64_t width, int64_t channels, const T* planes, A* sums,
                  T* out) {
    // Whole vectors, as far as the row has them.
    const int64_t stride = (roi->x_end() - roi->x_begin() + kLanes - 1) / kLanes * kLanes;
    const int64_t begin = std::max<int64_t>(0, std::min(roi->x_begin(), width - stride));
    const int64_t count = std::min(stride, width - begin);
    const A share = A(1) / roi->count;
    A* turned = sums + kLanes * stride;
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = planes + c * height * width + begin;
      for (int64_t ph = 0; ph < pooled_height; ph += kLanes) {
        const int64_t rows = std::min(kLanes, pooled_height - ph);
        for (int64_t i = 0; i < rows; ++i)
          sum_rows(roi->row(ph + i), plane, width, count, sums + i * stride);
        for (int64_t x = 0; x < stride; x += kLanes)
          Lanes<A>::transpose(sums + x, stride, turned + x * kLanes, kLanes);
        for (int64_t pw = 0; pw < pooled_width; ++pw) {
          Vector sum = {};
          for (const RoiCell<A>& x : roi->column(pw)) {
            Vector values;
            Lanes<A>::load(turned + (x.cell - begin) * kLanes, &values);
            sum += x.weight * values;
          }
          sum *= share;
          A bins[kLanes];
          Lanes<A>::store(sum, bins);
          for (int64_t i = 0; i < rows; ++i) store(out + (ph + i) * pooled_width + pw, bins[i]);
        }
      }
      out += pooled_height * pooled_width;
    }
  }
};

template <class T>
struct AlignPlanarBackward {
  using A = acc_t<T>;

  // One RoI, `channels` planes; `spread` has room for its columns.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t height, int64_t width, int64_t channels, const T* grad_out, A* spread,
                  A* planes) {
    const A share = A(1) / roi->count;
    const int64_t begin = roi->x_begin(), count = roi->x_end() - begin;
    for (int64_t c = 0; c < channels; ++c) {
      A* plane = planes + c * height * width + begin;
      for (int64_t ph = 0; ph < pooled_height; ++ph, grad_out += pooled_width) {
        const RoiBin<A> row = roi->row(ph);
        if (row.empty()) continue;
        for (int64_t x = 0; x < count; ++x) spread[x] = 0;
        for (int64_t pw = 0; pw < pooled_width; ++pw) {
          const A grad = load(grad_out + pw) * share;
          for (const RoiCell<A>& x : roi->column(pw)) spread[x.cell - begin] += x.weight * grad;
        }
        for (const RoiCell<A>& y : row) {
          A* cells = plane + y.cell * width;
          for (int64_t x = 0; x < count; ++x) cells[x] += y.weight * spread[x];
        }
      }
    }
  }
};

}  // namespace cpu
}  // namespace pydet
