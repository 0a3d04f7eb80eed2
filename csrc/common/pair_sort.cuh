// SPDX-License-Identifier: Apache-2.0
// Numbers sorted by keys of 64 bits on the device: cub's radix sort and its workspace.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "common/launch.cuh"

namespace pydet {
namespace cuda {

// Gives each part of a workspace its place behind those before, aligned for any access.
class Places {
 public:
  // `total` becomes the size of the workspace.
  explicit Places(size_t* total) : total_(total) { *total = 0; }

  // Where a part of so many bytes starts.
  size_t operator()(size_t bytes) const {
    const size_t start = *total_;
    *total_ += (bytes + 255) / 256 * 256;
    return start;
  }

 private:
  size_t* total_;
};

// Where the parts of the workspace start, in bytes.
struct PairSortLayout {
  size_t keys[2], values[2], storage, storage_bytes;
};

// Lays out the workspace for `count` pairs.
inline const char* make_pair_sort_layout(int64_t count, const Places& take,
                                         PairSortLayout* layout) {
  cub::DoubleBuffer<uint64_t> keys;
  cub::DoubleBuffer<int64_t> values;
  layout->storage_bytes = 0;
  const cudaError_t error =
      cub::DeviceRadixSort::SortPairs(nullptr, layout->storage_bytes, keys, values, count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int i = 0; i < 2; ++i) {
    layout->keys[i] = take(count * sizeof(uint64_t));
    layout->values[i] = take(count * sizeof(int64_t));
  }
  layout->storage = take(layout->storage_bytes);
  return nullptr;
}

// The arrays to fill, and the sort of them; where they lie changes with each sort.
class PairSort {
 public:
  PairSort(const PairSortLayout& layout, char* workspace)
      : keys_(reinterpret_cast<uint64_t*>(workspace + layout.keys[0]),
              reinterpret_cast<uint64_t*>(workspace + layout.keys[1])),
        values_(reinterpret_cast<int64_t*>(workspace + layout.values[0]),
                reinterpret_cast<int64_t*>(workspace + layout.values[1])),
        storage_(workspace + layout.storage),
        storage_bytes_(layout.storage_bytes) {}

  uint64_t* keys() { return keys_.Current(); }
  int64_t* values() { return values_.Current(); }

  // Stable, by the lowest `bits` bits of the keys.
  const char* sort(int64_t count, int bits, CUstream_st* stream) {
    size_t bytes = storage_bytes_;
    const cudaError_t error =
        cub::DeviceRadixSort::SortPairs(storage_, bytes, keys_, values_, count, 0, bits, stream);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }

 private:
  cub::DoubleBuffer<uint64_t> keys_;
  cub::DoubleBuffer<int64_t> values_;
  char* storage_;
  size_t storage_bytes_;
};

}  // namespace cuda
}  // namespace pydet
