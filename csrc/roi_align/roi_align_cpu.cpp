// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel_for.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_plan.h"

namespace pydet {
namespace cpu {
namespace {

// Channels of a task where each channel is a plane: their planes stay in the second-level cache
// while the RoIs pass over them.
constexpr int64_t kPlanes = 4;
// RoIs a task.
constexpr int64_t kPlanarRois = 64, kInterleavedRois = 4;

// [B, C, H, W]: first the sums over y, whole vectors of columns at a time, then those over x, in
// whole vectors of rows of bins: in between, the vectors are transposed.
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
      if (!start) __builtin_memcpy(&sum, sums + x, sizeof(sum));
      for (int i = 0; i < kRows; ++i) {
        Vector values;
        Lanes<A>::load(cells[i] + x, &values);
        sum += weights[i] * values;
      }
      __builtin_memcpy(sums + x, &sum, sizeof(sum));
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
    for (const RoiCell<A>* row = bin.first; row < bin.last;) {
      const bool start = row == bin.first;
      const int64_t left = bin.last - row;
      if (left >= 4) {
        add_rows<4>(row, plane, width, start, count, sums);
        row += 4;
      } else if (left == 3) {
        add_rows<3>(row, plane, width, start, count, sums);
        row += 3;
      } else if (left == 2) {
        add_rows<2>(row, plane, width, start, count, sums);
        row += 2;
      } else {
        add_rows<1>(row, plane, width, start, count, sums);
        row += 1;
      }
    }
  }

  // One RoI, `channels` planes. `sums` has room for 2 kLanes rows of the RoI's columns, rounded up.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t height, int64_t width, int64_t channels, const T* planes, A* sums,
                  T* out) {
    // Whole vectors, as far as the row has them.
    const int64_t stride = (roi->x_end - roi->x_begin + kLanes - 1) / kLanes * kLanes;
    const int64_t begin = std::max<int64_t>(0, std::min(roi->x_begin, width - stride));
    const int64_t count = std::min(stride, width - begin);
    A* turned = sums + kLanes * stride;
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = planes + c * height * width + begin;
      for (int64_t ph = 0; ph < pooled_height; ph += kLanes) {
        const int64_t rows = std::min(kLanes, pooled_height - ph);
        for (int64_t i = 0; i < rows; ++i)
          sum_rows(roi->row(ph + i), plane, width, count, sums + i * stride);
        for (int64_t x = 0; x < stride; x += kLanes)
          Lanes<A>::transpose(sums + x, stride, turned + x * kLanes);
        for (int64_t pw = 0; pw < pooled_width; ++pw) {
          Vector sum = {};
          for (const RoiCell<A>& x : roi->column(pw)) {
            Vector values;
            __builtin_memcpy(&values, turned + (x.cell - begin) * kLanes, sizeof(values));
            sum += x.weight * values;
          }
          sum /= roi->count;
          A bins[kLanes];
          __builtin_memcpy(bins, &sum, sizeof(bins));
          for (int64_t i = 0; i < rows; ++i) store(out + (ph + i) * pooled_width + pw, bins[i]);
        }
      }
      out += pooled_height * pooled_width;
    }
  }
};

// [B, H, W, C]: bin by bin, whole vectors of channels at a time.
template <class T>
struct AlignInterleaved {
  using A = acc_t<T>;
  using Vector = typename Lanes<A>::Vector;

  // kVectors vectors of channels of one bin.
  template <int kVectors>
  static void align_bin(const RoiBin<A>& row, const RoiBin<A>& column, int64_t width,
                        int64_t channels, A count, const T* map, T* out) {
    Vector total[kVectors] = {};
    for (const RoiCell<A>& x : column) {
      Vector sum[kVectors] = {};
      for (const RoiCell<A>& y : row) {
        const T* cell = map + (y.cell * width + x.cell) * channels;
        for (int v = 0; v < kVectors; ++v) {
          Vector values;
          Lanes<A>::load(cell + v * Lanes<A>::kCount, &values);
          sum[v] += y.weight * values;
        }
      }
      for (int v = 0; v < kVectors; ++v) total[v] += x.weight * sum[v];
    }
    for (int v = 0; v < kVectors; ++v)
      Lanes<A>::store(total[v] / count, out + v * Lanes<A>::kCount);
  }

  static void align_channel(const RoiBin<A>& row, const RoiBin<A>& column, int64_t width,
                            int64_t channels, A count, const T* map, T* out) {
    A total = 0;
    for (const RoiCell<A>& x : column) {
      A sum = 0;
      for (const RoiCell<A>& y : row)
        sum += y.weight * load(map + (y.cell * width + x.cell) * channels);
      total += x.weight * sum;
    }
    store(out, total / count);
  }

  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t width, int64_t channels, const T* map, T* out) {
    constexpr int64_t kMany = 4;
    for (int64_t ph = 0; ph < pooled_height; ++ph) {
      const RoiBin<A> row = roi->row(ph);
      for (int64_t pw = 0; pw < pooled_width; ++pw, out += channels) {
        const RoiBin<A> column = roi->column(pw);
        int64_t c = 0;
        for (; c + kMany * Lanes<A>::kCount <= channels; c += kMany * Lanes<A>::kCount)
          align_bin<kMany>(row, column, width, channels, roi->count, map + c, out + c);
        for (; c + Lanes<A>::kCount <= channels; c += Lanes<A>::kCount)
          align_bin<1>(row, column, width, channels, roi->count, map + c, out + c);
        for (; c < channels; ++c)
          align_channel(row, column, width, channels, roi->count, map + c, out + c);
      }
    }
  }
};

template <class T>
void align_planar(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                  const RoiLevelData<const T>& features, T* out) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t pieces = (plan.size() + kPlanarRois - 1) / kPlanarRois;
  const int64_t blocks = (params.channels + kPlanes - 1) / kPlanes;
  parallel_for(pieces * blocks, 1, [&](int64_t task, int64_t) {
    std::vector<A> sums(2 * Lanes<A>::kCount * (plan.widest() + Lanes<A>::kCount));
    const int64_t c = task / pieces * kPlanes, first = task % pieces * kPlanarRois;
    const int64_t planes = std::min(kPlanes, params.channels - c);
    for (int64_t i = first; i < std::min(first + kPlanarRois, plan.size()); ++i) {
      const PlannedRoi<A>& roi = plan[i];
      T* result = out + (roi.index * params.channels + c) * bins;
      if (roi.image < 0) {
        std::fill(result, result + planes * bins, T{});
        continue;
      }
      const auto& level = params.levels[roi.level];
      run_on_best_isa<AlignPlanar<T>>(
          &roi, params.pooled_height, params.pooled_width, level.height, level.width, planes,
          features.data[roi.level] + (roi.image * params.channels + c) * level.height * level.width,
          sums.data(), result);
    }
  });
}

template <class T>
void align_interleaved(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                       const RoiLevelData<const T>& features, T* out) {
  const int64_t size = params.pooled_height * params.pooled_width * params.channels;
  parallel_for(plan.size(), kInterleavedRois, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PlannedRoi<acc_t<T>>& roi = plan[i];
      T* result = out + roi.index * size;
      if (roi.image < 0) {
        std::fill(result, result + size, T{});
        continue;
      }
      const auto& level = params.levels[roi.level];
      run_on_best_isa<AlignInterleaved<T>>(
          &roi, params.pooled_height, params.pooled_width, level.width, params.channels,
          features.data[roi.level] + roi.image * level.height * level.width * params.channels,
          result);
    }
  });
}

}  // namespace

template <class T>
void roi_align(const RoiAlignParams<acc_t<T>>& params, const RoiLevelData<const T>& features,
               T* out) {
  for (int64_t begin = 0; begin < params.num_rois; begin += kPlannedRois) {
    const RoiPlan<acc_t<T>> plan(params, begin, std::min(begin + kPlannedRois, params.num_rois));
    if (params.channels_last) {
      align_interleaved(params, plan, features, out);
    } else {
      align_planar(params, plan, features, out);
    }
  }
}

template void roi_align(const RoiAlignParams<float>&, const RoiLevelData<const float>&, float*);
template void roi_align(const RoiAlignParams<double>&, const RoiLevelData<const double>&, double*);
template void roi_align(const RoiAlignParams<float>&, const RoiLevelData<const Half>&, Half*);
template void roi_align(const RoiAlignParams<float>&, const RoiLevelData<const BFloat16>&,
                        BFloat16*);

}  // namespace cpu
}  // namespace pydet
