// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/channel_block.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/parallel_for.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_plan.h"
#include "roi_align/roi_align_planar.h"

namespace pydet {
namespace cpu {
namespace {

constexpr int64_t kChannels = 32;  // channels a task, [B, H, W, C]

// Both layouts add in one order: RoIs (as planned), then rows of bins; `spread` first takes the
// gradient of a row of bins to the columns, then each row of cells gets its share of that.

// [B, H, W, C], or a block of channels of [B, C, H, W].
template <class A>
struct SpreadChannels {
  // Elements between two rows and two columns of the map.
  struct Strides {
    int64_t y, x;
  };

  // Adds kVectors vectors V of channels of one RoI's gradient, whose bins are `stride` elements
  // apart. V is a vector of channels or, for the last few, one number. `spread` has room for as
  // many channels of each column that the RoI touches.
  template <class V, int kVectors, class T>
  static void add(const PlannedRoi<A>& roi, int64_t pooled_height, int64_t pooled_width,
                  const T* grad_out, int64_t stride, Strides strides, A* spread, A* map) {
    constexpr int64_t kLanes = sizeof(V) / sizeof(A), kCell = kVectors * kLanes;
    const A share = A(1) / roi.count;
    const int64_t columns = static_cast<int64_t>(roi.columns.size());
    for (int64_t ph = 0; ph < pooled_height; ++ph, grad_out += pooled_width * stride) {
      const RoiBin<A> row = roi.row(ph);
      if (row.empty()) continue;
      std::fill_n(spread, columns * kCell, A(0));
      for (int64_t pw = 0; pw < pooled_width; ++pw) {
        V grad[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          Lanes<A>::load(grad_out + pw * stride + v * kLanes, &grad[v]);
          grad[v] *= share;
        }
        for (const RoiCell<A>& x : roi.column(pw))
          add_cell<V, kVectors>(x.weight, grad, spread + x.slot * kCell);
      }
      for (const RoiCell<A>& y : row) {
        A* cells = map + y.cell * strides.y;
        for (int64_t k = 0; k < columns; ++k) {
          V grad[kVectors];
          for (int v = 0; v < kVectors; ++v)
            Lanes<A>::load(spread + k * kCell + v * kLanes, &grad[v]);
          add_cell<V, kVectors>(y.weight, grad, cells + roi.columns[k] * strides.x);
        }
      }
    }
  }

 private:
  template <class V, int kVectors>
  static void add_cell(A weight, const V* grad, A* cell) {
    constexpr int64_t kLanes = sizeof(V) / sizeof(A);
    for (int v = 0; v < kVectors; ++v) {
      V sum;
      Lanes<A>::load(cell + v * kLanes, &sum);
      sum += weight * grad[v];
      Lanes<A>::store(sum, cell + v * kLanes);
    }
  }
};

template <class T>
struct AlignInterleavedBackward {
  using A = acc_t<T>;

  struct Workspace {
    Scratch<A> spread, grad;
  };

  // One RoI, `count` of its channels: at most kChannels. grad_out begins at the first of them and
  // is [C, h, w] where `gathered` has room for the bins of kChannels channels, else [h, w, C].
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t width, int64_t channels, int64_t count, const T* grad_out, A* gathered,
                  A* spread, A* map) {
    if (gathered == nullptr) {
      add(*roi, pooled_height, pooled_width, width, channels, count, grad_out, channels, spread,
          map);
      return;
    }
    using Block = ChannelBlock<A>;
    const int64_t bins = pooled_height * pooled_width;
    for (int64_t c = 0; c < count; c += Block::kChannels)
      Block::gather(grad_out + c * bins, bins, std::min(Block::kChannels, count - c), bins,
                    gathered + c, kChannels);
    add(*roi, pooled_height, pooled_width, width, channels, count, gathered, kChannels, spread,
        map);
  }

 private:
  // The gradient's bins are `stride` elements apart.
  template <class Grad>
  static void add(const PlannedRoi<A>& roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t width, int64_t channels, int64_t count, const Grad* grad_out,
                  int64_t stride, A* spread, A* map) {
    using Spread = SpreadChannels<A>;
    using Vector = typename Lanes<A>::Vector;
    constexpr int64_t kLanes = Lanes<A>::kCount;
    const typename Spread::Strides strides{width * channels, channels};
    if (count == kChannels) {
      Spread::template add<Vector, kChannels / kLanes>(roi, pooled_height, pooled_width, grad_out,
                                                       stride, strides, spread, map);
      return;
    }
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes)
      Spread::template add<Vector, 1>(roi, pooled_height, pooled_width, grad_out + c, stride,
                                      strides, spread, map + c);
    for (; c < count; ++c)
      Spread::template add<A, 1>(roi, pooled_height, pooled_width, grad_out + c, stride, strides,
                                 spread, map + c);
  }
};

// A block of channels of one map [C, H, W]. The sums are made in a turned map, whose rows are
// cleared when a RoI first reaches them and written when no further RoI can.
template <class T>
struct AlignTurnedBackward {
  using A = acc_t<T>;
  using Block = ChannelBlock<A>;

  struct Workspace {
    Scratch<A> map, spread, grad;
  };

  // RoIs [first, last) of the plan; grad_out begins at the first of `lanes` channels and has `size`
  // elements a RoI.
  static void run(const RoiAlignParams<A>* params, const RoiPlan<A>* plan, int64_t first,
                  int64_t last, int level, int64_t lanes, bool clear, const T* grad_out,
                  int64_t size, Workspace* work, A* planes) {
    using Spread = SpreadChannels<A>;
    const int64_t height = params->levels[level].height, width = params->levels[level].width;
    const int64_t bins = params->pooled_height * params->pooled_width;
    const typename Spread::Strides strides{turned_width(width) * Block::kChannels,
                                           Block::kChannels};
    A* map = work->map.reserve(height * strides.y);
    A* spread = work->spread.reserve(plan->most_columns() * Block::kChannels);
    A* grad = work->grad.reserve(bins * Block::kChannels);
    TurnedSums<A> sums(planes, height, width, lanes, clear, map);
    for (int64_t i = first; i < last; ++i) {
      const PlannedRoi<A>& roi = (*plan)[i];
      sums.close(roi.rows.front() / plan->kBand * plan->kBand);
      sums.open(roi.rows.back() + 1);
      Block::gather(grad_out + roi.index * size, bins, lanes, bins, grad);
      Spread::template add<typename Lanes<A>::Vector, 1>(roi, params->pooled_height,
                                                         params->pooled_width, grad,
                                                         Block::kChannels, strides, spread, map);
    }
    sums.close();
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
    const A share = A(1) / roi->count;
    A total[4] = {};
    for (int64_t c = 0; c < channels; ++c) {
      A sums[4] = {};
      const T* grads = grad_out + c * strides.grad_channel;
      for (int64_t ph = 0; ph < pooled_height; ++ph) {
        for (int64_t pw = 0; pw < pooled_width; ++pw, grads += strides.grad_bin) {
          const A grad = load(grads) * share;
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

// What a task adds to: channels [c, c + count) of one map, which it clears first if it is to.
struct Target {
  int level;
  int64_t image, c, count;
  bool clear;
};

template <class T>
void add_to_planes(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                   const Target& target, const T* grad_out,
                   typename AlignTurnedBackward<T>::Workspace& work, acc_t<T>* planes) {
  const int64_t height = params.levels[target.level].height;
  const int64_t width = params.levels[target.level].width;
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t first = plan.first_of(target.level, target.image, params.batch);
  const int64_t last = plan.last_of(target.level, target.image, params.batch);
  const int64_t size = params.channels * bins;
  grad_out += target.c * bins;
  if (first < last && can_turn(params)) {
    run_on_best_isa<AlignTurnedBackward<T>>(&params, &plan, first, last, target.level, target.count,
                                            target.clear, grad_out, size, &work, planes);
    return;
  }
  if (target.clear) std::fill_n(planes, target.count * height * width, acc_t<T>(0));
  acc_t<T>* spread = work.spread.reserve(plan.widest());
  for (int64_t i = first; i < last; ++i) {
    run_on_best_isa<AlignPlanarBackward<T>>(&plan[i], params.pooled_height, params.pooled_width,
                                            height, width, target.count,
                                            grad_out + plan[i].index * size, spread, planes);
  }
}

template <class T>
void add_to_interleaved(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                        const Target& target, const T* grad_out,
                        typename AlignInterleavedBackward<T>::Workspace& work, acc_t<T>* map) {
  const auto& level = params.levels[target.level];
  const int64_t bins = params.pooled_height * params.pooled_width;
  for (int64_t i = 0; i < level.height * level.width && target.clear; ++i)
    std::fill_n(map + i * params.channels, target.count, acc_t<T>(0));
  acc_t<T>* spread = work.spread.reserve(plan.most_columns() * kChannels);
  acc_t<T>* gathered = params.planar_out ? work.grad.reserve(bins * kChannels) : nullptr;
  grad_out += params.planar_out ? target.c * bins : target.c;
  for (int64_t i = plan.first_of(target.level, target.image, params.batch);
       i < plan.last_of(target.level, target.image, params.batch); ++i) {
    run_on_best_isa<AlignInterleavedBackward<T>>(
        &plan[i], params.pooled_height, params.pooled_width, level.width, params.channels,
        target.count, grad_out + plan[i].index * bins * params.channels, gathered, spread, map);
  }
}

}  // namespace

template <class T>
void roi_align_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                        const RoiLevelData<acc_t<T>>& grad_features) {
  struct Workspace {
    typename AlignTurnedBackward<T>::Workspace turned;
    typename AlignInterleavedBackward<T>::Workspace interleaved;
  };
  const int64_t block = params.channels_last ? kChannels : ChannelBlock<acc_t<T>>::kChannels;
  const int64_t blocks = (params.channels + block - 1) / block;
  // At least once: without RoIs the gradient is 0.
  int64_t begin = 0;
  do {
    const RoiPlan<acc_t<T>> plan(params, begin, std::min(begin + kPlannedRois, params.num_rois));
    parallel_tasks<Workspace>(
        threads_of(params), params.num_levels * params.batch * blocks,
        [&](Workspace& work, int64_t task) {
          const int64_t c = task % blocks * block;
          const Target target{static_cast<int>(task / blocks / params.batch),
                              task / blocks % params.batch, c, std::min(block, params.channels - c),
                              begin == 0};
          const int64_t cells =
              params.levels[target.level].height * params.levels[target.level].width;
          acc_t<T>* map = grad_features.data[target.level] + target.image * params.channels * cells;
          if (params.channels_last) {
            add_to_interleaved(params, plan, target, grad_out, work.interleaved, map + c);
          } else {
            add_to_planes(params, plan, target, grad_out, work.turned, map + c * cells);
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
    const PlannedRoi<A> roi = plan_roi(params, r, true);
    if (roi.image < 0) return;
    const auto& level = params.levels[roi.level];
    const int64_t cells = level.height * level.width, channels = params.channels;
    typename AlignBoxesBackward<T>::Strides strides{cells, 1, level.width, bins, 1};
    if (params.channels_last) {
      strides = {1, channels, level.width * channels, 1, channels};
      if (params.planar_out) strides.grad_channel = bins, strides.grad_bin = 1;
    }
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
