// SPDX-License-Identifier: Apache-2.0
// The samples of the RoI that a block works on, made once for all of its channels.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/pack.cuh"
#include "common/roi_items.cuh"
#include "common/scalar.h"
#include "roi_align/roi_align_place.h"

namespace pydet {
namespace cuda {

// Outputs of a RoI that one block computes.
constexpr int64_t kRoiItems = 8 * kRoiThreads;
// Blocks that an SM has to hold at least. Without it the compiler spills registers to hold more;
// these kernels wait for several loads at once and need no more.
template <class T>
constexpr int kRoiBlocks = sizeof(T) == 8 ? 1 : 2;
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

// The RoI that a block works on, in shared memory: each thread would hold the same in registers.
template <class A>
struct BlockRoi {
  RoiPlace<A> place;
  RoiTangent<A> tangent_y, tangent_x;
  int64_t height, width;                 // of its level
  int64_t stride_y, stride_x, stride_c;  // distances of neighbouring cells and channels in elements
  int64_t image_start;                   // the first element of its image
  bool keeps_y, keeps_x;                 // whether all samples of an axis are kept
  KeptSample<A> kept_y[kKeptSamples], kept_x[kKeptSamples];
};

template <class A>
__device__ bool fits_kept(const RoiAxis<A>& axis) {
  return axis.grid <= kKeptSamples && axis.bins * axis.grid <= kKeptSamples;
}

// All samples of one axis into `kept`, by all threads of the block.
template <class A>
__device__ void keep_samples(const RoiAxis<A>& axis, int64_t cells, const RoiTangent<A>& tangent,
                             KeptSample<A>* kept) {
  const int grid = static_cast<int>(axis.grid), count = static_cast<int>(axis.bins) * grid;
  for (int s = threadIdx.x; s < count; s += kRoiThreads)
    kept[s] = make_sample(axis, s / grid, s % grid, cells, tangent);
}

// Makes `roi` RoI r, by all threads of the block; what they read of the RoI before must be done.
template <class A>
__device__ void place_roi(const RoiAlignParams<A>& params, int64_t r, BlockRoi<A>& roi) {
  if (threadIdx.x == 0) {
    roi.place = roi_place(params, r);
    const auto& level = params.levels[roi.place.level < 0 ? 0 : roi.place.level];
    roi.tangent_y = roi_tangent_y(params, r);
    roi.tangent_x = roi_tangent_x(params, r);
    roi.height = level.height;
    roi.width = level.width;
    roi.stride_x = params.channels_last ? params.channels : 1;
    roi.stride_y = level.width * roi.stride_x;
    roi.stride_c = params.channels_last ? 1 : level.height * level.width;
    roi.image_start = roi.place.image * params.channels * level.height * level.width;
    roi.keeps_y = fits_kept(roi.place.y);
    roi.keeps_x = fits_kept(roi.place.x);
  }
  __syncthreads();
  if (roi.place.image >= 0) {
    if (roi.keeps_y) keep_samples(roi.place.y, roi.height, roi.tangent_y, roi.kept_y);
    if (roi.keeps_x) keep_samples(roi.place.x, roi.width, roi.tangent_x, roi.kept_x);
  }
  __syncthreads();
}

// Sample i of a bin of the block's RoI, along y and along x.
template <class A>
__device__ KeptSample<A> sample_y(const BlockRoi<A>& roi, int64_t bin, int64_t i) {
  if (roi.keeps_y) return roi.kept_y[bin * roi.place.y.grid + i];
  return make_sample(roi.place.y, bin, i, roi.height, roi.tangent_y);
}
template <class A>
__device__ KeptSample<A> sample_x(const BlockRoi<A>& roi, int64_t bin, int64_t i) {
  if (roi.keeps_x) return roi.kept_x[bin * roi.place.x.grid + i];
  return make_sample(roi.place.x, bin, i, roi.width, roi.tangent_x);
}

}  // namespace cuda
}  // namespace pydet
