// SPDX-License-Identifier: Apache-2.0
// RoI pooling of maps [B, H, W, C] on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/lanes.h"
#include "common/scalar.h"
#include "roi_pool/roi_pool.h"
#include "roi_pool/roi_pool_channels.h"

namespace pydet {
namespace cpu {

// Whole vectors of channels as they lie in a cell, some at a time.
template <class T>
struct PoolInterleaved {
  using A = acc_t<T>;
  using Vector = typename Lanes<A>::Vector;
  static constexpr int64_t kLanes = Lanes<A>::kCount;
  static constexpr int kMany = 2;  // a cache line

  // Calls consume(bin, channel, best) for each bin of a RoI and each vector of the channels
  // [begin, end), or each of the last few.
  template <bool kIndexed, class Consume>
  static void pool(const RoiPoolParams<A>& params, const RoiPoolPlace<A>& place, int64_t begin,
                   int64_t end, const T* input, BestCells<A>* line, const Consume& consume) {
    int64_t c = begin;
    for (; c + kMany * kLanes <= end; c += kMany * kLanes)
      pool_from<Vector, kMany, kIndexed>(params, place, c, input, line, consume);
    for (; c + kLanes <= end; c += kLanes)
      pool_from<Vector, 1, kIndexed>(params, place, c, input, line, consume);
    for (; c < end; ++c) pool_from<A, 1, kIndexed>(params, place, c, input, line, consume);
  }

  // The results of RoI r.
  static void forward(const RoiPoolParams<A>* params, int64_t r, const T* input, const T* values,
                      BestCells<A>* line, T* out) {
    const RoiPoolPlace<A> place = roi_pool_place(*params, r);
    const int64_t channels = params->channels, row = params->width * channels;
    T* result = out + r * params->pooled_height * params->pooled_width * channels;
    if (values == nullptr) {
      pool<false>(*params, place, 0, channels, input, line,
                  [&](int64_t bin, int64_t c, const auto& best) {
                    Lanes<A>::store(best.value, result + bin * channels + c);
                  });
      return;
    }
    const T* map = values + std::max<int64_t>(place.image, 0) * params->height * row;
    pool<true>(*params, place, 0, channels, input, line,
               [&](int64_t bin, int64_t c, const auto& best) {
                 for_each_cell(best, [&](int64_t lane, int64_t cell) {
                   store(result + bin * channels + c + lane,
                         cell < 0 ? A(0) : load(map + cell * channels + c + lane));
                 });
               });
  }

  // Adds the gradients of RoIs [begin, end) of an order, of one image, in channels [first, last).
  static void backward(const RoiPoolParams<A>* params, const int64_t* begin, const int64_t* end,
                       int64_t first, int64_t last, const T* input, const T* grad_out,
                       BestCells<A>* line, A* map) {
    const int64_t channels = params->channels;
    for (; begin < end; ++begin) {
      const T* grad = grad_out + *begin * params->pooled_height * params->pooled_width * channels;
      pool<true>(*params, roi_pool_place(*params, *begin), first, last, input, line,
                 [&](int64_t bin, int64_t c, const auto& best) {
                   for_each_cell(best, [&](int64_t lane, int64_t cell) {
                     if (cell >= 0)
                       map[cell * channels + c + lane] += load(grad + bin * channels + c + lane);
                   });
                 });
    }
  }

 private:
  template <class V, int kVectors, bool kIndexed, class Consume>
  static void pool_from(const RoiPoolParams<A>& params, const RoiPoolPlace<A>& place, int64_t c,
                        const T* input, BestCells<A>* line, const Consume& consume) {
    const int64_t row = params.width * params.channels;
    const T* map = input + std::max<int64_t>(place.image, 0) * params.height * row + c;
    PoolChannels<A, V, kVectors>::template pool<kIndexed>(
        params, place, [&](CellRange some, CellRange) { return map + some.begin * row; },
        params.height, {row, params.channels}, params.width, line,
        [&](int64_t bin, int v, const auto& best) { consume(bin, c + v * best.kLanes, best); });
  }

  template <class V, class Visit>
  static void for_each_cell(const BestCell<A, V>& best, const Visit& visit) {
    if constexpr (std::is_same_v<V, A>) {
      visit(0, best.cell);
    } else {
      for (int64_t lane = 0; lane < kLanes; ++lane) visit(lane, best.cell[lane]);
    }
  }
};

template <class T>
struct InterleavedForward {
  template <class... Args>
  static void run(Args... args) {
    PoolInterleaved<T>::forward(args...);
  }
};

template <class T>
struct InterleavedBackward {
  template <class... Args>
  static void run(Args... args) {
    PoolInterleaved<T>::backward(args...);
  }
};

}  // namespace cpu
}  // namespace pydet
