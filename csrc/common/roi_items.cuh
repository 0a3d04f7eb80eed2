// SPDX-License-Identifier: Apache-2.0
// The loop of a kernel whose blocks take pieces of one RoI's outputs.
#pragma once

#include "common/launch.cuh"
#include "common/math.h"

namespace pydet {
namespace cuda {

constexpr int kRoiThreads = 256;

// Blocks for RoIs of `items` items each, of which one block takes `piece` at a time.
inline unsigned int roi_grid_size(int64_t num_rois, int64_t items, int64_t piece) {
  return grid_size(num_rois * ceil_div(items, piece), 1);
}

// Calls body(r, item, bin, group) for all items: an item is a bin of one group of channels, and
// consecutive threads have consecutive bins or, with channels_last, groups. place(r) comes before,
// by the whole block. `piece` items of a RoI are a block's at a time. Whole blocks of kRoiThreads
// must call it.
template <class Params, class Place, class Body>
__device__ void for_each_roi_item(const Params& params, int64_t groups, int64_t piece,
                                  const Place& place, const Body& body) {
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t items = bins * groups, pieces = ceil_div(items, piece);
  for (int64_t i = blockIdx.x; i < params.num_rois * pieces; i += gridDim.x) {
    const int64_t r = i / pieces, first = i % pieces * piece;
    const int64_t last = min_of(first + piece, items);
    place(r);
    for (int64_t item = first + threadIdx.x; item < last; item += kRoiThreads) {
      const int64_t bin = params.channels_last ? item / groups : item % bins;
      body(r, item, bin, params.channels_last ? item % groups : item / bins);
    }
    __syncthreads();  // before the next place() changes what the items look at
  }
}

}  // namespace cuda
}  // namespace pydet
