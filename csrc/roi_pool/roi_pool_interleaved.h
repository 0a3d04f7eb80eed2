// SPDX-License-Identifier: Apache-2.0
// RoI pooling of maps [B, H, W, C] on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "common/lanes.h"
#include "common/scalar.h"
#include "roi_pool/roi_pool.h"
#include "roi_pool/roi_pool_channels.h"
#include "roi_pool/roi_pool_plan.h"

namespace pydet {
namespace cpu {

// Whole vectors of channels as they lie in a cell, some at a time.
template <class T, Isa kIsa>
struct PoolInterleaved {
  using A = acc_t<T>;
  using Vectors = Lanes<A, vector_bytes(kIsa)>;
  using Vector = typename Vectors::Vector;
  static constexpr int kMany = vector_bytes(kIsa) / 16;  // by measurement

  // Calls body(channels, c) for the channels [begin, end): PoolChannels and the first of them.
  template <class Body>
  static void for_each_channels(int64_t begin, int64_t end, const Body& body) {
    constexpr int64_t kLanes = Vectors::kCount;
    int64_t c = begin;
    for (; c + kMany * kLanes <= end; c += kMany * kLanes)
      body(PoolChannels<A, Vector, kMany>{}, c);
    for (; c + kLanes <= end; c += kLanes) body(PoolChannels<A, Vector, 1>{}, c);
    for (; c < end; ++c) body(PoolChannels<A, A, 1>{}, c);
  }

  template <bool kIndexed, class Channels>
  static void find(Channels, const RoiPoolParams<A>& params, const PooledRoi& roi, const T* map,
                   PoolScratch<A>* work) {
    const int64_t row = params.width * params.channels;
    Channels::template find<kIndexed>(
        roi, [&](CellRange y) { return map + y.begin * row; }, params.height,
        {row, params.channels}, params.width, &work->line, &work->found);
  }
};

template <class T, Isa kIsa>
struct InterleavedForward {
  using A = acc_t<T>;
  using Pool = PoolInterleaved<T, kIsa>;

  // The results of a RoI. Values of another map where the largest cells are; where that is null,
  // the cells themselves.
  static void run(const RoiPoolParams<A>* params, const PooledRoi* roi, const T* input,
                  const T* values, PoolScratch<A>* work, T* out) {
    const int64_t channels = params->channels;
    const int64_t image =
        std::max<int64_t>(roi->image, 0) * params->height * params->width * channels;
    out += roi->index * roi->num_bins() * channels;
    Pool::for_each_channels(0, channels, [&](auto some, int64_t c) {
      const T* map = input + image + c;
      if (values == nullptr) {
        Pool::template find<false>(some, *params, *roi, map, work);
      } else {
        Pool::template find<true>(some, *params, *roi, map, work);
        some.pick(*roi, some.kChannels, values + image + c, {1, channels}, &work->found);
      }
      some.write(*roi, work->found, out + c, channels);
    });
  }
};

template <class T, Isa kIsa>
struct InterleavedBackward {
  using A = acc_t<T>;
  using Pool = PoolInterleaved<T, kIsa>;

  // Adds the gradients of RoIs [begin, end), of one image, in channels [first, last).
  static void run(const RoiPoolParams<A>* params, const PooledRoi* begin, const PooledRoi* end,
                  int64_t first, int64_t last, const T* input, const T* grad_out,
                  PoolScratch<A>* work, A* map) {
    const int64_t channels = params->channels;
    for (const PooledRoi* roi = begin; roi < end; ++roi) {
      const T* image = input + roi->image * params->height * params->width * channels;
      const T* grad = grad_out + roi->index * roi->num_bins() * channels;
      Pool::for_each_channels(first, last, [&](auto some, int64_t c) {
        Pool::template find<true>(some, *params, *roi, image + c, work);
        some.add(*roi, some.kChannels, grad + c, channels, work->found,
                 work->sums.reserve(roi->num_slots() * some.kChannels), map + c, {1, channels});
      });
    }
  }
};

}  // namespace cpu
}  // namespace pydet
