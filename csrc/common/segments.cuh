// SPDX-License-Identifier: Apache-2.0
// Groups the boxes of a batch by image and class on the device: a segment is one class of one
// image. The boxes of a segment stay in the order that they come in.
#pragma once

#include "common/box.h"
#include "common/launch.cuh"
#include "common/pair_sort.cuh"

namespace pydet {
namespace cuda {

constexpr int kSegmentThreads = 256;

// Where the parts of the workspace start, in bytes.
struct SegmentLayout {
  PairSortLayout sort;
  size_t begins, count;
};

struct Segments {
  int64_t num_boxes;     // of an image
  int64_t total;         // boxes of all images
  const int64_t* idxs;   // [batch, num_boxes] classes, or null
  const int64_t* order;  // [batch, num_boxes] box numbers over all images, segments in one piece
  int64_t* begins;       // where in `order` each segment begins, in no certain order
  unsigned int* count;   // how many segments there are

  __device__ bool alike(int64_t a, int64_t b) const {  // two box numbers
    return (idxs == nullptr || idxs[a] == idxs[b]) && a / num_boxes == b / num_boxes;
  }

  // The end of the segment that begins there. All threads of the block must call it; each
  // looks at one box at a time.
  __device__ int64_t end(int64_t begin) const {
    const int64_t first = order[begin];
    int64_t end = begin;
    for (int alike_ones = blockDim.x; alike_ones == static_cast<int>(blockDim.x);) {
      const int64_t k = end + threadIdx.x;
      alike_ones = __syncthreads_count(k < total && alike(first, order[k]));
      end += alike_ones;
    }
    return end;
  }
};

// A box of a segment in scratch memory, read and written by 128 bits.
template <class A>
struct alignas(16) SegmentBox {
  Box<A> box;
};

// The numbers of the boxes, and their classes to sort by. Images need no sort: they come one after
// the other, and within a class stay so, as the sort is stable.
inline __global__ void __launch_bounds__(kSegmentThreads)
    segment_key_kernel(int64_t total, const int64_t* idxs, const int64_t* order, int64_t* values,
                       uint64_t* keys, unsigned int* count) {
  const int64_t stride = int64_t{gridDim.x} * kSegmentThreads;
  const int64_t first = int64_t{blockIdx.x} * kSegmentThreads + threadIdx.x;
  if (first == 0) *count = 0;
  for (int64_t i = first; i < total; i += stride) {
    const int64_t index = order == nullptr ? i : order[i];
    values[i] = index;
    if (idxs != nullptr) keys[i] = static_cast<uint64_t>(idxs[index]);
  }
}

inline __global__ void __launch_bounds__(kSegmentThreads) segment_begin_kernel(Segments segments) {
  const int64_t stride = int64_t{gridDim.x} * kSegmentThreads;
  for (int64_t i = int64_t{blockIdx.x} * kSegmentThreads + threadIdx.x; i < segments.total;
       i += stride) {
    if (i > 0 && segments.alike(segments.order[i - 1], segments.order[i])) continue;
    segments.begins[atomicAdd(segments.count, 1u)] = i;
  }
}

// Lays out the workspace for `total` boxes of all images.
inline const char* make_segment_layout(int64_t total, const Places& take, SegmentLayout* layout) {
  if (const char* error = make_pair_sort_layout(total, take, &layout->sort)) return error;
  layout->begins = take(total * sizeof(int64_t));
  layout->count = take(sizeof(unsigned int));
  return nullptr;
}

// Fills *segments, whose arrays lie in the workspace. `order` [batch, num_boxes] are box numbers
// over all images in the order that the boxes of a segment shall have, image by image; null: by
// index. At least one box.
inline const char* find_segments(int64_t batch, int64_t num_boxes, const int64_t* idxs,
                                 const int64_t* order, const SegmentLayout& layout, char* workspace,
                                 Segments* segments, CUstream_st* stream) {
  const int64_t total = batch * num_boxes;
  if (total > int64_t{1} << 31) return "more than 2^31 boxes";
  PairSort pairs(layout.sort, workspace);
  unsigned int* count = reinterpret_cast<unsigned int*>(workspace + layout.count);
  const unsigned int grid = grid_size(total, kSegmentThreads);
  launch(segment_key_kernel, grid, kSegmentThreads, 0, stream, total, idxs, order, pairs.values(),
         pairs.keys(), count);
  if (const char* error = launch_error()) return error;
  if (idxs != nullptr) {
    if (const char* error = pairs.sort(total, 64, stream)) return error;
  }
  *segments = {
      num_boxes, total, idxs, pairs.values(), reinterpret_cast<int64_t*>(workspace + layout.begins),
      count};
  launch(segment_begin_kernel, grid, kSegmentThreads, 0, stream, *segments);
  return launch_error();
}

}  // namespace cuda
}  // namespace pydet
