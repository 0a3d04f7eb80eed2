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

constexpr int64_t kPlanes = 4;     // channels a task, [B, C, H, W]
constexpr int64_t kChannels = 32;  // channels a task, [B, H, W, C]

// Both layouts add in one order: RoIs (as planned), then rows of bins; `spread` first takes the
// gradient of a row of bins to the columns, then each row of cells gets its share of that.

template <class T>
struct AlignPlanarBackward {
  using A = acc_t<T>;

  // One RoI, `channels` planes; `spread` has room for its columns.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t height, int64_t width, int64_t channels, const T* grad_out, A* spread,
                  A* planes) {
    const int64_t begin = roi->x_begin, count = roi->x_end - begin;
    for (int64_t c = 0; c < channels; ++c) {
      A* plane = planes + c * height * width + begin;
      for (int64_t ph = 0; ph < pooled_height; ++ph, grad_out += pooled_width) {
        const RoiBin<A> row = roi->row(ph);
        if (row.empty()) continue;
        for (int64_t x = 0; x < count; ++x) spread[x] = 0;
        for (int64_t pw = 0; pw < pooled_width; ++pw) {
          const A grad = load(grad_out + pw) / roi->count;
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

template <class T>
struct AlignInterleavedBackward {
  using A = acc_t<T>;

  // One RoI, `count` of its channels; `spread` has room for kChannels of each column.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t width, int64_t channels, int64_t count, const T* grad_out, A* spread,
                  A* map) {
    const int64_t begin = roi->x_begin, columns = roi->x_end - begin;
    for (int64_t ph = 0; ph < pooled_height; ++ph, grad_out += pooled_width * channels) {
      const RoiBin<A> row = roi->row(ph);
      if (row.empty()) continue;
      for (int64_t i = 0; i < columns * kChannels; ++i) spread[i] = 0;
      for (int64_t pw = 0; pw < pooled_width; ++pw) {
        A grad[kChannels] = {};
        for (int64_t c = 0; c < count; ++c)
          grad[c] = load(grad_out + pw * channels + c) / roi->count;
        for (const RoiCell<A>& x : roi->column(pw)) {
          A* to = spread + (x.cell - begin) * kChannels;
          for (int64_t c = 0; c < kChannels; ++c) to[c] += x.weight * grad[c];
        }
      }
      for (const RoiCell<A>& y : row) {
        A* cells = map + (y.cell * width + begin) * channels;
        for (int64_t x = 0; x < columns; ++x) {
          const A* from = spread + x * kChannels;
          A* to = cells + x * channels;
          if (count == kChannels) {
            for (int64_t c = 0; c < kChannels; ++c) to[c] += y.weight * from[c];
          } else {
            for (int64_t c = 0; c < count; ++c) to[c] += y.weight * from[c];
          }
        }
      }
    }
  }
};

// The gradient of one RoI's corners from some channels. Each channel's sums go over the bins in
// order; they are added up afterwards, so the layout changes no bit.
template <class T>
struct AlignBoxesBackward {
  using A = acc_t<T>;

  // Strides of a channel, a column and a row of the map, and of a channel and a bin of grad_out.
  struct Strides {
    int64_t channel, x, y, grad_channel, grad_bin;
  };

  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t channels, Strides strides, const T* map, const T* grad_out, A* grad_roi) {
    A total[4] = {};
    for (int64_t c = 0; c < channels; ++c) {
      A sums[4] = {};
      const T* grads = grad_out + c * strides.grad_channel;
      for (int64_t ph = 0; ph < pooled_height; ++ph) {
        for (int64_t pw = 0; pw < pooled_width; ++pw, grads += strides.grad_bin) {
          const A grad = load(grads) / roi->count;
          for (const RoiCell<A>& x : roi->column(pw)) {
            A value = 0, by_top = 0, by_bottom = 0;
            for (const RoiCell<A>& y : roi->row(ph)) {
              const A cell =
                  load(map + c * strides.channel + y.cell * strides.y + x.cell * strides.x);
              value += y.weight * cell;
              by_top += y.by_low * cell;
              by_bottom += y.by_high * cell;
            }
            sums[0] += grad * (x.by_low * value);
            sums[1] += grad * (x.weight * by_top);
            sums[2] += grad * (x.by_high * value);
            sums[3] += grad * (x.weight * by_bottom);
          }
        }
      }
      for (int k = 0; k < 4; ++k) total[k] += sums[k];
    }
    for (int k = 0; k < 4; ++k) grad_roi[1 + k] = total[k];
  }
};

// Adds the RoIs of a plan to the channels [c, c + count) of one image's map, which it clears first
// if it is to.
template <class T>
void add_to_planes(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan, int level,
                   int64_t image, int64_t c, int64_t count, bool clear, const T* grad_out,
                   acc_t<T>* planes) {
  const int64_t height = params.levels[level].height, width = params.levels[level].width;
  const int64_t bins = params.pooled_height * params.pooled_width;
  if (clear) std::fill(planes, planes + count * height * width, acc_t<T>(0));
  std::vector<acc_t<T>> spread(plan.widest());
  for (int64_t i = plan.first_of(level, image, params.batch);
       i < plan.last_of(level, image, params.batch); ++i) {
    run_on_best_isa<AlignPlanarBackward<T>>(
        &plan[i], params.pooled_height, params.pooled_width, height, width, count,
        grad_out + (plan[i].index * params.channels + c) * bins, spread.data(), planes);
  }
}

template <class T>
void add_to_interleaved(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                        int level, int64_t image, int64_t c, int64_t count, bool clear,
                        const T* grad_out, acc_t<T>* map) {
  const int64_t cells = params.levels[level].height * params.levels[level].width;
  const int64_t bins = params.pooled_height * params.pooled_width;
  if (clear) {
    for (int64_t i = 0; i < cells; ++i)
      std::fill(map + i * params.channels, map + i * params.channels + count, acc_t<T>(0));
  }
  std::vector<acc_t<T>> spread(plan.widest() * kChannels);
  for (int64_t i = plan.first_of(level, image, params.batch);
       i < plan.last_of(level, image, params.batch); ++i) {
    run_on_best_isa<AlignInterleavedBackward<T>>(
        &plan[i], params.pooled_height, params.pooled_width, params.levels[level].width,
        params.channels, count, grad_out + plan[i].index * bins * params.channels + c,
        spread.data(), map);
  }
}

}  // namespace

template <class T>
void roi_align_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                        const RoiLevelData<acc_t<T>>& grad_features) {
  const int64_t block = params.channels_last ? kChannels : kPlanes;
  const int64_t blocks = (params.channels + block - 1) / block;
  // At least once: without RoIs the gradient is 0.
  int64_t begin = 0;
  do {
    const RoiPlan<acc_t<T>> plan(params, begin, std::min(begin + kPlannedRois, params.num_rois));
    parallel_for(params.num_levels * params.batch * blocks, 1, [&](int64_t task, int64_t) {
      const int64_t c = task % blocks * block, image = task / blocks % params.batch;
      const int level = static_cast<int>(task / blocks / params.batch);
      const int64_t cells = params.levels[level].height * params.levels[level].width;
      const int64_t count = std::min(block, params.channels - c);
      acc_t<T>* map = grad_features.data[level] + image * params.channels * cells;
      if (params.channels_last) {
        add_to_interleaved(params, plan, level, image, c, count, begin == 0, grad_out, map + c);
      } else {
        add_to_planes(params, plan, level, image, c, count, begin == 0, grad_out, map + c * cells);
      }
    });
    begin += kPlannedRois;
  } while (begin < params.num_rois);
}

template <class T>
void roi_align_boxes_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                              const RoiLevelData<const T>& features, acc_t<T>* grad_rois) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width;
  std::fill(grad_rois, grad_rois + 5 * params.num_rois, A(0));
  parallel_for(params.num_rois, 1, [&](int64_t r, int64_t) {
    PlannedRoi<A> roi;
    plan_roi(params, r, roi);
    if (roi.image < 0) return;
    const auto& level = params.levels[roi.level];
    const int64_t cells = level.height * level.width, channels = params.channels;
    const typename AlignBoxesBackward<T>::Strides strides =
        params.channels_last
            ? typename AlignBoxesBackward<T>::Strides{1, channels, level.width * channels, 1,
                                                      channels}
            : typename AlignBoxesBackward<T>::Strides{cells, 1, level.width, bins, 1};
    run_on_best_isa<AlignBoxesBackward<T>>(&roi, params.pooled_height, params.pooled_width,
                                           channels, strides,
                                           features.data[roi.level] + roi.image * channels * cells,
                                           grad_out + r * channels * bins, grad_rois + 5 * r);
  });
}

template void roi_align_backward(const RoiAlignParams<float>&, const float*,
                                 const RoiLevelData<float>&);
template void roi_align_backward(const RoiAlignParams<double>&, const double*,
                                 const RoiLevelData<double>&);
template void roi_align_backward(const RoiAlignParams<float>&, const Half*,
                                 const RoiLevelData<float>&);
template void roi_align_backward(const RoiAlignParams<float>&, const BFloat16*,
                                 const RoiLevelData<float>&);

template void roi_align_boxes_backward(const RoiAlignParams<float>&, const float*,
                                       const RoiLevelData<const float>&, float*);
template void roi_align_boxes_backward(const RoiAlignParams<double>&, const double*,
                                       const RoiLevelData<const double>&, double*);
template void roi_align_boxes_backward(const RoiAlignParams<float>&, const Half*,
                                       const RoiLevelData<const Half>&, float*);
template void roi_align_boxes_backward(const RoiAlignParams<float>&, const BFloat16*,
                                       const RoiLevelData<const BFloat16>&, float*);

}  // namespace cpu
}  // namespace pydet
