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

// [B, C, H, W]: along each row of bins first the sum over y, whole vectors of columns at a time,
// then that over x.
template <class T>
struct AlignPlanar {
  using A = acc_t<T>;
  using Vector = typename Lanes<A>::Vector;

  // sums[x - begin] = sum over y of weight_y * cell[y, x], for the columns [begin, end).
  static void sum_rows(const RoiBin<A>& row, const T* plane, int64_t width, int64_t begin,
                       int64_t end, A* sums) {
    int64_t x = begin;
    for (; x + Lanes<A>::kCount <= end; x += Lanes<A>::kCount) {
      Vector sum = {};
      for (const RoiCell<A>& y : row) {
        Vector values;
        Lanes<A>::load(plane + y.cell * width + x, &values);
        sum += y.weight * values;
      }
      Lanes<A>::store(sum, sums + (x - begin));
    }
    for (; x < end; ++x) {
      A sum = 0;
      for (const RoiCell<A>& y : row) sum += y.weight * load(plane + y.cell * width + x);
      sums[x - begin] = sum;
    }
  }

  // One RoI, `channels` planes. `sums` has room for the RoI's columns and a vector more.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t height, int64_t width, int64_t channels, const T* planes, A* sums,
                  T* out) {
    // Whole vectors, as far as the row has them.
    const int64_t lanes = Lanes<A>::kCount;
    const int64_t wanted = (roi->x_end - roi->x_begin + lanes - 1) / lanes * lanes;
    const int64_t begin = std::max<int64_t>(0, std::min(roi->x_begin, width - wanted));
    const int64_t end = std::min(begin + wanted, width);
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = planes + c * height * width;
      for (int64_t ph = 0; ph < pooled_height; ++ph) {
        sum_rows(roi->row(ph), plane, width, begin, end, sums);
        for (int64_t pw = 0; pw < pooled_width; ++pw) {
          A sum = 0;
          for (const RoiCell<A>& x : roi->column(pw)) sum += x.weight * sums[x.cell - begin];
          store(out++, sum / roi->count);
        }
      }
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
    std::vector<A> sums(plan.widest() + Lanes<A>::kCount);
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
