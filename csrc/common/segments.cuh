// SPDX-License-Identifier: Apache-2.0
// Groups the boxes of a batch by image and class on the device: a segment is one class of one
// image. The boxes of a segment stay in the order that they come in.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "common/launch.cuh"

namespace pydet {
namespace cuda {

constexpr int kSegmentThreads = 256;

// Where the parts of the workspace start, in bytes.
struct SegmentLayout {
  size_t keys[2], values[2], storage, storage_bytes, begins, count;
};

struct Segments {
  int64_t num_boxes;     // of an image
  int64_t total;         // boxes of all images
  const int64_t* idxs;   // [batch, num_boxes] classes, or null
  const int64_t* order;  // [batch, num_boxes] box numbers over all images, by (image, class)
  int64_t* begins;       // where in `order` each segment begins, in no certain order
  unsigned int* count;   // how many segments there are

  __device__ bool alike(int64_t a, int64_t b) const {  // two box numbers
    return a / num_boxes == b / num_boxes && (idxs == nullptr || idxs[a] == idxs[b]);
  }

  // The end of the segment that begins there: boxes of one segment lie together, so bisect.
  __device__ int64_t end(int64_t begin) const {
    const int64_t first = order[begin];
    int64_t low = begin + 1, high = (first / num_boxes + 1) * num_boxes;
    if (idxs == nullptr) return high;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (alike(first, order[middle])) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// 32 bits of the class (word 0 or 1), or the image (word 2).
inline __global__ void __launch_bounds__(kSegmentThreads)
    segment_key_kernel(int64_t total, int64_t num_boxes, int word, bool first, const int64_t* idxs,
                       int64_t* values, uint32_t* keys) {
  const int64_t stride = int64_t{gridDim.x} * kSegmentThreads;
  for (int64_t i = int64_t{blockIdx.x} * kSegmentThreads + threadIdx.x; i < total; i += stride) {
    const int64_t index = first ? i : values[i];
    if (first) values[i] = index;
    if (keys == nullptr) continue;
    keys[i] = word == 2 ? static_cast<uint32_t>(index / num_boxes)
                        : static_cast<uint32_t>(static_cast<uint64_t>(idxs[index]) >> (32 * word));
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

// Lays out the workspace for `total` boxes of all images; take(bytes) gives the start of a part.
template <class Take>
const char* make_segment_layout(int64_t total, const Take& take, SegmentLayout* layout) {
  cub::DoubleBuffer<uint32_t> keys;
  cub::DoubleBuffer<int64_t> values;
  layout->storage_bytes = 0;
  const cudaError_t error =
      cub::DeviceRadixSort::SortPairs(nullptr, layout->storage_bytes, keys, values, total);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int i = 0; i < 2; ++i) {
    layout->keys[i] = take(total * sizeof(uint32_t));
    layout->values[i] = take(total * sizeof(int64_t));
  }
  layout->storage = take(layout->storage_bytes);
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
  if (total >= int64_t{1} << 32) return "more than 2^32 boxes";
  cub::DoubleBuffer<uint32_t> keys(reinterpret_cast<uint32_t*>(workspace + layout.keys[0]),
                                   reinterpret_cast<uint32_t*>(workspace + layout.keys[1]));
  cub::DoubleBuffer<int64_t> values(reinterpret_cast<int64_t*>(workspace + layout.values[0]),
                                    reinterpret_cast<int64_t*>(workspace + layout.values[1]));
  if (order != nullptr) {
    const cudaError_t error = cudaMemcpyAsync(values.Current(), order, total * sizeof(int64_t),
                                              cudaMemcpyDeviceToDevice, stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  const unsigned int grid = grid_size(total, kSegmentThreads);
  int image_bits = 0;
  while (int64_t{1} << image_bits < batch) ++image_bits;
  bool first = order == nullptr;
  if (first && idxs == nullptr) {  // one segment an image, in order: only the numbers are missing
    launch(segment_key_kernel, grid, kSegmentThreads, 0, stream, total, num_boxes, 0, true, idxs,
           values.Current(), nullptr);
    if (const char* error = launch_error()) return error;
  }
  for (int word = 0; idxs != nullptr && word < (image_bits > 0 ? 3 : 2); ++word) {
    launch(segment_key_kernel, grid, kSegmentThreads, 0, stream, total, num_boxes, word, first,
           idxs, values.Current(), keys.Current());
    if (const char* error = launch_error()) return error;
    first = false;
    size_t bytes = layout.storage_bytes;
    const cudaError_t error =
        cub::DeviceRadixSort::SortPairs(workspace + layout.storage, bytes, keys, values, total, 0,
                                        word == 2 ? image_bits : 32, stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  *segments = {num_boxes,
               total,
               idxs,
               values.Current(),
               reinterpret_cast<int64_t*>(workspace + layout.begins),
               reinterpret_cast<unsigned int*>(workspace + layout.count)};
  const cudaError_t error = cudaMemsetAsync(segments->count, 0, sizeof(unsigned int), stream);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  launch(segment_begin_kernel, grid, kSegmentThreads, 0, stream, *segments);
  return launch_error();
}

}  // namespace cuda
}  // namespace pydet
