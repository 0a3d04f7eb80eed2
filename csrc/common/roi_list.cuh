// SPDX-License-Identifier: Apache-2.0
// Gradients of feature maps without atomic additions: one thread for each element of the map adds
// up what the RoIs give it, in the order of the RoIs, so the bits are the same every time. A block
// has a run of elements; it first lists the RoIs that reach one of them.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/pool_bins.h"

namespace pydet {
namespace cuda {

constexpr int kListThreads = 256;

struct MapSize {
  int64_t channels, height, width;
  bool channels_last;
};

struct MapElement {
  int64_t image, channel, y, x;
};

__device__ inline MapElement map_element(const MapSize& size, int64_t index) {
  const int64_t cells = size.height * size.width;
  const int64_t inner = size.channels_last ? size.channels : cells;
  const int64_t low = index % inner, high = index / inner;
  const int64_t outer = size.channels_last ? cells : size.channels;
  const int64_t cell = size.channels_last ? high % outer : low;
  return {high / outer, size.channels_last ? low : high % outer, cell / size.width,
          cell % size.width};
}

// The image of a RoI (-1: none) and the cells that it can reach.
struct RoiReach {
  int64_t image;
  CellRange y, x;
};

// The elements of a block: images [first.image, last.image], and within one of them rows and
// columns. What cannot be told from the first and the last element is the whole map.
struct BlockReach {
  int64_t first_image, last_image;
  CellRange y, x;
};

__device__ inline BlockReach block_reach(const MapSize& size, const MapElement& first,
                                         const MapElement& last) {
  BlockReach reach{first.image, last.image, {0, size.height}, {0, size.width}};
  const bool one_map =
      first.image == last.image && (size.channels_last || first.channel == last.channel);
  if (one_map) {
    reach.y = {first.y, last.y + 1};
    if (first.y == last.y) reach.x = {first.x, last.x + 1};
  }
  return reach;
}

__device__ inline bool touches(const RoiReach& roi, const BlockReach& block) {
  return roi.image >= block.first_image && roi.image <= block.last_image &&
         roi.y.begin < block.y.end && roi.y.end > block.y.begin && roi.x.begin < block.x.end &&
         roi.x.end > block.x.begin;
}

__device__ inline bool contains(const RoiReach& roi, const MapElement& cell) {
  return roi.image == cell.image && cell.y >= roi.y.begin && cell.y < roi.y.end &&
         cell.x >= roi.x.begin && cell.x < roi.x.end;
}

// For each element of a batch of maps put(index, sum of take(r, element)) over the RoIs r whose
// reach(r) contains it, in ascending order. To be called by whole blocks of kListThreads.
template <class A, class Reach, class Take, class Put>
__device__ void for_each_map_element(const MapSize& size, int64_t batch, int64_t num_rois,
                                     const Reach& reach, const Take& take, const Put& put) {
  constexpr int kWarps = kListThreads / 32;
  __shared__ RoiReach listed[kListThreads];
  __shared__ int64_t listed_index[kListThreads];
  __shared__ int warp_counts[kWarps];
  const int64_t count = batch * size.channels * size.height * size.width;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t begin = int64_t{blockIdx.x} * kListThreads; begin < count;
       begin += int64_t{gridDim.x} * kListThreads) {
    const int64_t index = begin + threadIdx.x;
    const MapElement element = map_element(size, min_of(index, count - 1));
    const BlockReach block =
        block_reach(size, map_element(size, begin),
                    map_element(size, min_of<int64_t>(begin + kListThreads, count) - 1));
    A sum = A(0);
    for (int64_t first = 0; first < num_rois; first += kListThreads) {
      const int64_t r = first + threadIdx.x;
      RoiReach mine{-1, {0, 0}, {0, 0}};
      if (r < num_rois) mine = reach(r);
      const bool wanted = mine.image >= 0 && touches(mine, block);
      const unsigned int ballot = __ballot_sync(~0u, wanted);
      if (lane == 0) warp_counts[warp] = __popc(ballot);
      __syncthreads();
      int total = 0, place = __popc(ballot & ((1u << lane) - 1));
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) place += warp_counts[w];
        total += warp_counts[w];
      }
      if (wanted) {
        listed[place] = mine;
        listed_index[place] = r;
      }
      __syncthreads();
      if (index < count) {
        for (int k = 0; k < total; ++k) {
          if (contains(listed[k], element)) sum += take(listed_index[k], element);
        }
      }
      __syncthreads();
    }
    if (index < count) put(index, sum);
  }
}

}  // namespace cuda
}  // namespace pydet
