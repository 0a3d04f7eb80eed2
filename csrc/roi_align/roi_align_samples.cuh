// SPDX-License-Identifier: Apache-2.0
// The samples of the RoI that a block works on, made once for all of its channels.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/scalar.h"
#include "roi_align/roi_align_place.h"

namespace pydet {
namespace cuda {

constexpr int kRoiThreads = 256;
// Outputs of a RoI that one block computes.
constexpr int64_t kRoiItems = 8 * kRoiThreads;
// Samples an axis that shared memory holds; RoIs with more compute each where it is used.
constexpr int kKeptSamples = 256;

// Neighbours and weights of a sample; no constructor, so that shared memory can hold it.
template <class A>
struct KeptSample {
  int32_t low, high;
  A weight_low, weight_high;
};

template <class A>
__device__ KeptSample<A> make_sample(const RoiAxis<A>& axis, int64_t bin, int64_t i, int64_t cells,
                                     const RoiTangent<A>& tangent) {
  const AxisSample<A> s = roi_sample(axis, bin, i, cells, tangent);
  return {s.low, s.high, s.weight_low, s.weight_high};
}

// All samples of one axis into `kept`, by all threads of the block; nothing if they are too many.
template <class A>
__device__ void keep_samples(const RoiAxis<A>& axis, int64_t cells, const RoiTangent<A>& tangent,
                             KeptSample<A>* kept) {
  if (axis.grid > kKeptSamples || axis.bins * axis.grid > kKeptSamples) return;
  const int grid = static_cast<int>(axis.grid), count = static_cast<int>(axis.bins) * grid;
  for (int s = threadIdx.x; s < count; s += kRoiThreads)
    kept[s] = make_sample(axis, s / grid, s % grid, cells, tangent);
}

template <class A>
__device__ KeptSample<A> sample_of(const RoiAxis<A>& axis, int64_t bin, int64_t i, int64_t cells,
                                   const RoiTangent<A>& tangent, const KeptSample<A>* kept) {
  if (axis.grid > kKeptSamples || axis.bins * axis.grid > kKeptSamples)
    return make_sample(axis, bin, i, cells, tangent);
  return kept[bin * axis.grid + i];
}

// Several neighbouring channels, loaded by one instruction.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) ChannelPack {
  T values[kCount];
};

}  // namespace cuda
}  // namespace pydet
