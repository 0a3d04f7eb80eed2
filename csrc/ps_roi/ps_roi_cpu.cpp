// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "common/parallel_for.h"
#include "common/roi_threads.h"
#include "ps_roi/ps_roi.h"

namespace pydet {
namespace cpu {
namespace {

// RoIs a task of the forward, and tasks of the backward for one image.
constexpr int64_t kRois = 4;
constexpr int64_t kBlocks = 16;
// Elements a task that only writes zeros.
constexpr int64_t kZeros = 1 << 18;

// The cells of one axis that have a weight, bin after bin.
template <class A>
struct AxisTable {
  struct Entry {
    int64_t cell;
    A weight;
  };
  std::vector<Entry> entries;
  std::vector<size_t> first;  // of each bin, and the end
  std::vector<A> count;       // what the bin's sum is divided by

  void add(size_t begin, int64_t cell, A weight) {
    if (weight == A(0)) return;
    // Neighbouring samples share cells.
    for (size_t back = 1; back <= 2 && begin + back <= entries.size(); ++back) {
      Entry& last = entries[entries.size() - back];
      if (last.cell == cell) {
        last.weight += weight;
        return;
      }
    }
    entries.push_back({cell, weight});
  }

  void fill(const PsRoiAxis<A>& axis, bool align, int64_t bins, int64_t cells) {
    entries.clear();
    first.assign(1, 0);
    count.clear();
    for (int64_t bin = 0; bin < bins; ++bin) {
      const PsRoiSteps<A> steps = ps_roi_steps(axis, align, bin, cells);
      for (int64_t i = steps.begin; i < steps.end; ++i) {
        const AxisSample<A> sample = ps_roi_step(axis, align, bin, i, cells);
        add(first.back(), sample.low, sample.weight_low);
        add(first.back(), sample.high, sample.weight_high);
      }
      first.push_back(entries.size());
      count.push_back(steps.count);
    }
  }
};

template <class A>
struct Tables {
  AxisTable<A> y, x;

  // The image of the RoI, or -1 and no tables.
  int64_t fill(const PsRoiParams<A>& params, int64_t r) {
    const PsRoiPlace<A> place = ps_roi_place(params, r);
    if (place.image < 0) return -1;
    y.fill(place.y, params.align, params.pooled_height, params.height);
    x.fill(place.x, params.align, params.pooled_width, params.width);
    return place.image;
  }
};

// Calls visit(cell, weight) for the cells of a bin and gives what the sum is divided by; 0 for an
// empty bin.
template <class A, class Visit>
A for_each_cell(const Tables<A>& tables, int64_t ph, int64_t pw, int64_t width,
                const Visit& visit) {
  const AxisTable<A>&y = tables.y, &x = tables.x;
  for (size_t i = y.first[ph]; i < y.first[ph + 1]; ++i) {
    const int64_t row = y.entries[i].cell * width;
    for (size_t j = x.first[pw]; j < x.first[pw + 1]; ++j) {
      visit(row + x.entries[j].cell, y.entries[i].weight * x.entries[j].weight);
    }
  }
  return y.count[ph] * x.count[pw];
}

struct Strides {
  int64_t channel, place;
};

Strides strides_of(bool channels_last, int64_t channels, int64_t places) {
  return channels_last ? Strides{1, channels} : Strides{places, 1};
}

template <class A>
struct Cell {
  int64_t offset;
  A weight;
};

// Channels of one bin that are summed together: sums that do not wait for each other.
constexpr int kTogether = 4;

// result[i * result_stride] = the sum of the cells of map i, `map_stride` after the one before,
// over count; 0 where the bin is empty.
template <int kMaps, class T>
void store_means(const std::vector<Cell<acc_t<T>>>& cells, acc_t<T> count, const T* map,
                 int64_t map_stride, T* result, int64_t result_stride) {
  using A = acc_t<T>;
  A sums[kMaps] = {};
  for (const Cell<A>& cell : cells) {
    for (int i = 0; i < kMaps; ++i)
      sums[i] += cell.weight * load(map + i * map_stride + cell.offset);
  }
  for (int i = 0; i < kMaps; ++i)
    store(result + i * result_stride, count > A(0) ? sums[i] / count : A(0));
}

}  // namespace

template <class T>
void ps_roi(const PsRoiParams<acc_t<T>>& params, const T* input, T* out) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width,
                out_channels = params.channels / bins;
  const int64_t cells = params.height * params.width;
  const Strides from = strides_of(params.channels_last, params.channels, cells);
  const Strides to = strides_of(params.channels_last, out_channels, bins);
  const int64_t threads = roi_threads(params, cells);
  parallel_workers(threads, params.num_rois, kRois, [&](int64_t, int64_t begin, int64_t end) {
    Tables<A> tables;
    std::vector<Cell<A>> bin_cells;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t image = tables.fill(params, r);
      const T* map = input + std::max<int64_t>(image, 0) * params.channels * cells;
      for (int64_t bin = 0; bin < bins; ++bin) {
        T* result = out + r * params.channels + bin * to.place;
        bin_cells.clear();
        A count = A(0);
        if (image >= 0) {
          count = for_each_cell(
              tables, bin / params.pooled_width, bin % params.pooled_width, params.width,
              [&](int64_t cell, A weight) { bin_cells.push_back({cell * from.place, weight}); });
        }
        int64_t c = 0;
        for (; c + kTogether <= out_channels; c += kTogether) {
          store_means<kTogether>(bin_cells, count, map + (c * bins + bin) * from.channel,
                                 bins * from.channel, result + c * to.channel, to.channel);
        }
        for (; c < out_channels; ++c) {
          store_means<1>(bin_cells, count, map + (c * bins + bin) * from.channel, 0,
                         result + c * to.channel, 0);
        }
      }
    }
  });
}

template <class T>
void ps_roi_backward(const PsRoiParams<acc_t<T>>& params, const T* grad_out, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width,
                out_channels = params.channels / bins;
  const int64_t cells = params.height * params.width;
  const Strides from = strides_of(params.channels_last, out_channels, bins);
  const Strides to = strides_of(params.channels_last, params.channels, cells);
  parallel_for(params.batch * params.channels * cells, kZeros, [&](int64_t begin, int64_t end) {
    std::fill(grad_input + begin, grad_input + end, A(0));
  });
  const int64_t block = (params.channels + kBlocks - 1) / kBlocks;
  const int64_t threads = roi_threads(params, cells);
  parallel_workers(threads, params.batch * kBlocks, 1, [&](int64_t, int64_t task, int64_t) {
    const int64_t image = task / kBlocks, first = task % kBlocks * block;
    Tables<A> tables;
    for (int64_t r = 0; r < params.num_rois; ++r) {
      if (ps_roi_place(params, r).image != image) continue;
      tables.fill(params, r);
      const int64_t end = std::min(first + block, params.channels);
      for (int64_t k = first, bin = first % bins; k < end;
           ++k, bin = bin + 1 < bins ? bin + 1 : 0) {
        const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
        const A count = tables.y.count[ph] * tables.x.count[pw];
        if (!(count > A(0))) continue;
        const A grad =
            load(grad_out + r * params.channels + k / bins * from.channel + bin * from.place) /
            count;
        A* map = grad_input + image * params.channels * cells + k * to.channel;
        for_each_cell(tables, ph, pw, params.width,
                      [&](int64_t cell, A weight) { map[cell * to.place] += weight * grad; });
      }
    }
  });
}

template void ps_roi(const PsRoiParams<float>&, const float*, float*);
template void ps_roi(const PsRoiParams<double>&, const double*, double*);
template void ps_roi(const PsRoiParams<float>&, const Half*, Half*);
template void ps_roi(const PsRoiParams<float>&, const BFloat16*, BFloat16*);

template void ps_roi_backward(const PsRoiParams<float>&, const float*, float*);
template void ps_roi_backward(const PsRoiParams<double>&, const double*, double*);
template void ps_roi_backward(const PsRoiParams<float>&, const Half*, float*);
template void ps_roi_backward(const PsRoiParams<float>&, const BFloat16*, float*);

}  // namespace cpu
}  // namespace pydet
