// SPDX-License-Identifier: Apache-2.0
// Stands for cub's radix sort where there is no GPU: the same interface and promise (stable, by the
// bits [begin_bit, end_bit) of the keys, the result in whichever of the two buffers Current()
// names).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_runtime.h"

namespace cub {

template <class T>
struct DoubleBuffer {
  T* d_buffers[2] = {nullptr, nullptr};
  int selector = 0;

  DoubleBuffer() = default;
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate} {}
  T* Current() const { return d_buffers[selector]; }
  T* Alternate() const { return d_buffers[1 - selector]; }
};

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* storage, size_t& storage_bytes, DoubleBuffer<Key>& keys,
                               DoubleBuffer<Value>& values, int64_t count, int begin_bit = 0,
                               int end_bit = 8 * sizeof(Key), CUstream_st* = nullptr) {
    constexpr size_t kBytes = 1000;
    if (storage == nullptr) {
      storage_bytes = kBytes;
      return cudaSuccess;
    }
    constexpr int kKeyBits = 8 * sizeof(Key);
    if (storage_bytes < kBytes || count < 0) return cudaErrorInvalidConfiguration;
    if (begin_bit < 0 || begin_bit >= end_bit || end_bit > kKeyBits) {
      return cudaErrorInvalidConfiguration;
    }
    std::memset(storage, 0xa5, kBytes);
    const auto digits = [=](Key key) {
      return static_cast<uint64_t>(key) << (64 - end_bit) >> (64 - end_bit + begin_bit);
    };
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return digits(keys.Current()[a]) < digits(keys.Current()[b]);
    });
    for (int64_t i = 0; i < count; ++i) {
      keys.Alternate()[i] = keys.Current()[order[i]];
      values.Alternate()[i] = values.Current()[order[i]];
    }
    keys.selector = 1 - keys.selector;
    values.selector = 1 - values.selector;
    return cudaSuccess;
  }
};

}  // namespace cub
