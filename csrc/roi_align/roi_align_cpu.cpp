// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/channel_block.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/stream.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_plan.h"
#include "roi_align/roi_align_planar.h"

namespace pydet {
namespace cpu {
namespace {

// RoIs a task.
constexpr int64_t kPlanarRois = 512, kInterleavedRois = 4;
// Rows of bins of a RoI at a time: heads take 7 or 14.
constexpr int kRowsTogether = 7;

// [B, H, W, C], or a block of channels of [B, C, H, W]: whole vectors of channels at a time. For
// each row of bins first the sums over y, of each column that the RoI touches, then those over x.
template <class A, int kBytes = 32>
struct AlignChannels {
  using Vectors = Lanes<A, kBytes>;

  // Elements between two rows and two columns of the map.
  struct Strides {
    int64_t y, x;
  };

  // Adds kRows rows of cells to the sums of the RoI's columns, or starts the sums with them. V is a
  // vector of channels or, for the last few, one number.
  template <class V, int kVectors, int kRows, class T>
  static void add_rows(const PlannedRoi<A>& roi, const RoiCell<A>* rows, Strides strides,
                       const T* map, bool start, A* sums) {
    constexpr int64_t kLanes = sizeof(V) / sizeof(A);
    const T* cells[kRows];
    A weights[kRows];
    for (int i = 0; i < kRows; ++i) {
      cells[i] = map + rows[i].cell * strides.y;
      weights[i] = rows[i].weight;
    }
    for (const int64_t column : roi.columns) {
      for (int v = 0; v < kVectors; ++v, sums += kLanes) {
        V sum = {};
        if (!start) Vectors::load(sums, &sum);
        for (int i = 0; i < kRows; ++i) {
          V values;
          Vectors::load(cells[i] + column * strides.x + v * kLanes, &values);
          sum += weights[i] * values;
        }
        Vectors::store(sum, sums);
      }
    }
  }

  template <class V, int kVectors, class T>
  static void sum_rows(const PlannedRoi<A>& roi, const RoiBin<A>& bin, Strides strides,
                       const T* map, A* sums) {
    if (bin.empty())
      std::fill_n(sums, roi.columns.size() * kVectors * (sizeof(V) / sizeof(A)), A(0));
    for_each_rows(bin, [&](const RoiCell<A>* rows, auto number, bool start) {
      add_rows<V, kVectors, decltype(number)::value>(roi, rows, strides, map, start, sums);
    });
  }

  // The bins of one RoI, `stride` elements apart. `sums` has room for as many channels of each
  // column that the RoI touches, kRowsTogether times.
  template <class V, int kVectors, class T, class Out>
  static void align(const PlannedRoi<A>& roi, int64_t pooled_height, int64_t pooled_width,
                    Strides strides, const T* map, A* sums, Out* out, int64_t stride) {
    // Of several vectors of channels the sums over x need not wait for each other.
    constexpr int kMost = kVectors == 1 ? kRowsTogether : 1;
    const int64_t row = pooled_width * stride;
    int64_t ph = 0;
    for (; ph + kMost <= pooled_height; ph += kMost)
      align_rows<V, kVectors, kMost>(roi, ph, pooled_width, strides, map, sums, out + ph * row,
                                     stride);
    for (; kMost > 1 && ph < pooled_height; ++ph)
      align_rows<V, kVectors, 1>(roi, ph, pooled_width, strides, map, sums, out + ph * row, stride);
  }

  // kRows rows of bins from ph on.
  template <class V, int kVectors, int kRows, class T, class Out>
  static void align_rows(const PlannedRoi<A>& roi, int64_t ph, int64_t pooled_width,
                         Strides strides, const T* map, A* sums, Out* out, int64_t stride) {
    constexpr int64_t kLanes = sizeof(V) / sizeof(A), kCell = kVectors * kLanes;
    const A share = A(1) / roi.count;
    const int64_t line = static_cast<int64_t>(roi.columns.size()) * kCell;
    for (int i = 0; i < kRows; ++i)
      sum_rows<V, kVectors>(roi, roi.row(ph + i), strides, map, sums + i * line);
    for (int64_t pw = 0; pw < pooled_width; ++pw, out += stride) {
      V totals[kRows][kVectors] = {};
      for (const RoiCell<A>& x : roi.column(pw)) {
        for (int i = 0; i < kRows; ++i) {
          for (int v = 0; v < kVectors; ++v) {
            V sum;
            Vectors::load(sums + i * line + x.slot * kCell + v * kLanes, &sum);
            totals[i][v] += x.weight * sum;
          }
        }
      }
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < kVectors; ++v)
          Vectors::store(totals[i][v] * share, out + i * pooled_width * stride + v * kLanes);
      }
    }
  }
};

constexpr int64_t kInterleavedVectors = 8;  // of channels at a time, at most
static_assert(kRowsTogether <= kInterleavedVectors, "the room for sums is for either");

template <class T>
struct InterleavedWorkspace {
  Scratch<acc_t<T>> sums, bins;
};

template <class T, Isa kIsa>
struct AlignInterleaved {
  using A = acc_t<T>;
  static constexpr int kBytes = vector_bytes(kIsa);
  using Channels = AlignChannels<A, kBytes>;

  // One RoI. For out [C, h, w], `bins` has room for those of kInterleavedVectors vectors; else it
  // is null.
  static void run(const PlannedRoi<A>* roi, int64_t pooled_height, int64_t pooled_width,
                  int64_t width, int64_t channels, const T* map, A* sums, A* bins, T* out) {
    using Vector = typename Channels::Vectors::Vector;
    constexpr int64_t kLanes = Channels::Vectors::kCount;
    const typename Channels::Strides strides{width * channels, channels};
    const int64_t count = pooled_height * pooled_width;
    int64_t c = 0;
    const auto align = [&](auto vector, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int64_t kCell = kVectors * (sizeof(vector) / sizeof(A));
      const auto align_to = [&](auto* to, int64_t stride) {
        Channels::template align<decltype(vector), kVectors>(*roi, pooled_height, pooled_width,
                                                             strides, map + c, sums, to, stride);
      };
      if (bins == nullptr) {
        align_to(out + c, channels);
      } else if constexpr (kCell == 1) {
        align_to(out + c * count, 1);
      } else {
        align_to(bins, kCell);
        for (int64_t v = 0; v < kCell; v += kLanes)
          ChannelBlock<A, kBytes>::scatter(bins + v, kLanes, count, out + (c + v) * count, count,
                                           kCell);
      }
      c += kCell;
    };
    while (c + kInterleavedVectors * kLanes <= channels)
      align(Vector{}, std::integral_constant<int, kInterleavedVectors>{});
    while (c + kLanes <= channels) align(Vector{}, std::integral_constant<int, 1>{});
    while (c < channels) align(A{}, std::integral_constant<int, 1>{});
  }
};

// A block of channels of one map [C, H, W], for some RoIs.
template <class T>
struct TurnedWorkspace {
  std::tuple<TurnedMap<T, 32>, TurnedMap<T, 64>> maps;  // one of them is used
  Scratch<acc_t<T>> sums, bins;
  Scratch<T> result;
};

template <class T, Isa kIsa>
struct AlignTurned {
  using A = acc_t<T>;
  static constexpr int kBytes = vector_bytes(kIsa);

  // `out` begins at the first of `lanes` channels; `size` elements are a RoI's.
  static void run(const RoiAlignParams<A>* params, const RoiPlan<A>* plan, int64_t first,
                  int64_t last, int64_t lanes, const T* planes, TurnedWorkspace<T>* work, T* out,
                  int64_t size) {
    using Channels = AlignChannels<A, kBytes>;
    using Block = ChannelBlock<A, kBytes>;
    constexpr int64_t kLine = 64 / sizeof(T);
    const auto& level = params->levels[(*plan)[first].level];
    const int64_t bins = params->pooled_height * params->pooled_width;
    auto& map = std::get<TurnedMap<T, kBytes>>(work->maps);
    map.reset(planes, level.height, level.width, lanes);
    A* sums = work->sums.reserve(kRowsTogether * plan->most_columns() * Block::kChannels);
    A* found = work->bins.reserve(bins * Block::kChannels);
    const PieceWriter<T> writer(params->num_rois * size, lanes * bins, &work->result);
    const typename Channels::Strides strides{map.row_stride(), Block::kChannels};
    int64_t windows = 0, opened = level.height;
    for (int64_t i = first; i < last; ++i) {
      const PlannedRoi<A>& roi = (*plan)[i];
      opened = std::min(opened, roi.rows.front());
      windows += static_cast<int64_t>(roi.rows.size()) * (roi.x_end() - roi.x_begin());
    }
    // Whole rows one after the other are read several times faster than windows.
    const bool whole = 4 * windows >= level.height * level.width;
    for (int64_t i = first; i < last; ++i) {
      const PlannedRoi<A>& roi = (*plan)[i];
      if (whole) {
        for (; opened <= roi.rows.back(); ++opened) map.require(opened, 0, level.width, true);
      } else {
        for (const int64_t y : roi.rows) map.require(y, roi.x_begin(), roi.x_end(), false);
      }
      T* result = out + roi.index * size;
      // The result's lines, for writing, while the cells are summed.
      for (int64_t k = 0; writer.in_place() && k < lanes * bins; k += kLine)
        __builtin_prefetch(result + k, 1);
      Channels::template align<typename Channels::Vectors::Vector, 1>(
          roi, params->pooled_height, params->pooled_width, strides, map.cells(), sums, found,
          Block::kChannels);
      writer.write(result, [&](T* to) { Block::scatter(found, lanes, bins, to, bins); });
    }
  }
};

template <class T>
void fill_zeros(const RoiPlan<acc_t<T>>& plan, int64_t first, int64_t last, int64_t count, T* out,
                int64_t size) {
  for (int64_t i = first; i < last; ++i) std::fill_n(out + plan[i].index * size, count, T{});
}

template <class T>
void align_planar(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                  const RoiLevelData<const T>& features, T* out) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width, size = params.channels * bins;
  const int64_t block = vector_bytes(active_isa()) / static_cast<int64_t>(sizeof(A));
  const int64_t blocks = (params.channels + block - 1) / block;
  const bool turned = can_turn(params);
  const auto pieces = plan.pieces(kPlanarRois);
  const int64_t num_pieces = static_cast<int64_t>(pieces.size());
  // Tasks that read the same planes follow each other.
  parallel_tasks<TurnedWorkspace<T>>(
      threads_of(params), num_pieces * blocks, [&](TurnedWorkspace<T>& work, int64_t task) {
        const auto [first, last] = pieces[task % num_pieces];
        const int64_t c = task / num_pieces * block, lanes = std::min(block, params.channels - c);
        const PlannedRoi<A>& roi = plan[first];
        T* result = out + c * bins;
        if (roi.image < 0) return fill_zeros(plan, first, last, lanes * bins, result, size);
        const auto& level = params.levels[roi.level];
        const T* planes = features.data[roi.level] +
                          (roi.image * params.channels + c) * level.height * level.width;
        if (turned) {
          run_for_isa<AlignTurned, T>(&params, &plan, first, last, lanes, planes, &work, result,
                                      size);
          return;
        }
        A* sums = work.sums.reserve(2 * Lanes<A>::kCount * (plan.widest() + Lanes<A>::kCount));
        for (int64_t i = first; i < last; ++i) {
          run_on_best_isa<AlignPlanar<T>>(&plan[i], params.pooled_height, params.pooled_width,
                                          level.height, level.width, lanes, planes, sums,
                                          result + plan[i].index * size);
        }
      });
}

template <class T>
void align_interleaved(const RoiAlignParams<acc_t<T>>& params, const RoiPlan<acc_t<T>>& plan,
                       const RoiLevelData<const T>& features, T* out) {
  using A = acc_t<T>;
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t size = bins * params.channels;
  constexpr int64_t kMost = kInterleavedVectors * Lanes<A, 64>::kCount;  // channels
  const int64_t tasks = (plan.size() + kInterleavedRois - 1) / kInterleavedRois;
  parallel_tasks<InterleavedWorkspace<T>>(
      threads_of(params), tasks, [&](InterleavedWorkspace<T>& work, int64_t task) {
        const int64_t first = task * kInterleavedRois;
        A* sums = work.sums.reserve(kMost * plan.most_columns());
        A* found = params.planar_out ? work.bins.reserve(kMost * bins) : nullptr;
        for (int64_t i = first; i < std::min(first + kInterleavedRois, plan.size()); ++i) {
          const PlannedRoi<A>& roi = plan[i];
          if (roi.image < 0) {
            fill_zeros(plan, i, i + 1, size, out, size);
            continue;
          }
          const auto& level = params.levels[roi.level];
          run_for_isa<AlignInterleaved, T>(
              &roi, params.pooled_height, params.pooled_width, level.width, params.channels,
              features.data[roi.level] + roi.image * level.height * level.width * params.channels,
              sums, found, out + roi.index * size);
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
