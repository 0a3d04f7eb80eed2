// SPDX-License-Identifier: Apache-2.0
// Vector loads and stores: as many elements as one instruction of 128 bits moves.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace pydet {
namespace cuda {

template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// Neighbouring channels of a map with channels_last, moved by one instruction.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) ChannelPack {
  T values[kCount];
};

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// values[k] = p[k] for k < count, 0 beyond.
template <class T>
__device__ void load_pack(const T* p, int count, bool aligned, acc_t<T>* values) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && count == kSize) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = load(&pack.values[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = k < count ? load(p + k) : acc_t<T>(0);
  }
}

template <class T>
__device__ void store_pack(T* p, int count, bool aligned, const acc_t<T>* values) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && count == kSize) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kSize; ++k) store(&pack.values[k], values[k]);
    *reinterpret_cast<Pack<T>*>(p) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (k < count) store(p + k, values[k]);
    }
  }
}

}  // namespace cuda
}  // namespace pydet
